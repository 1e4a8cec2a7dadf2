"""Processes that end cleanly give their shares back: immediately, and never more than the whole (rule 24)."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import TokenManager, TokenPolicy
from pay88_adapters.core.history import Window
from pay88_adapters.engine.store_client import StoreClient
from pay88_adapters.stores.base import LeaseResult, StoreError
from pay88_adapters.stores.members import MAX_MEMBERS, share_left
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import ManualClock
from support.processes import OLD, URL, FragileStore, WorkerGroup

HOUR = Window("hour", 100, 3_600.0)
STEP = 31.0  # seconds, after which a share may grow
VISITOR: dict[str, Any] = {"owner": "visitor/1", "known_version": 0, "lease": 1.0}


class Choices:
    """Every sequence of choices, one after the other: each number was one of so many options."""

    def __init__(self) -> None:
        self._made: list[tuple[int, int]] = []
        self._place = 0

    def __iter__(self) -> Iterator[int]:
        """Go through all sequences."""
        for number in itertools.count():
            self._place = 0
            yield number
            while self._made and self._made[-1][0] == self._made[-1][1] - 1:
                self._made.pop()
            if not self._made:
                return
            chosen, options = self._made[-1]
            self._made[-1] = chosen + 1, options

    def among(self, options: int) -> int:
        """Choose one of *options*."""
        if self._place == len(self._made):
            self._made.append((0, options))
        self._place += 1
        return self._made[self._place - 1][0]

    def __str__(self) -> str:
        return str([chosen for chosen, _ in self._made])


class Exploration(MemoryStore):
    """A store, and processes that do things while the operations of others are on their way."""

    def __init__(self, choices: Choices, processes: int, actions: int) -> None:
        self.clock = ManualClock()
        super().__init__(self.clock.now)
        self._choices, self._left = choices, actions
        self._late: list[str] = []  # removals that the store has yet to execute
        self._depth = self._asked = 0
        self.violations: list[str] = []  # an error in an operation would be one of the store
        self._processes: list[StoreClient] = []
        started = [StoreClient(self, self.clock) for _ in range(processes)]
        for process in [started[0]] * 4 + started[1:]:  # the first one has the whole
            self._attempt(process)
        self._processes = started

    def _attempt(self, process: StoreClient) -> None:
        self.clock.advance(STEP)
        process.try_acquire_lease("key", owner="o", known_version=0, lease=1.0)

    def _act(self) -> None:
        self._left -= 1
        acts: list[Callable[[], object]] = []
        for process in self._processes:
            acts += [lambda process=process: self._attempt(process), process.at_exit]  # type: ignore[misc]
        if self._late:
            acts.append(lambda: super(Exploration, self).remove_member(self._late.pop()))
        acts[self._choices.among(len(acts))]()

    def run(self) -> list[str]:
        """Act, and check the shares; return what is wrong with them."""
        while self._left:
            self._act()
            self.check()
        return self.violations

    def _meanwhile(self) -> None:
        self.clock.advance(0.001)
        if not self._processes:
            return
        self._depth += 1
        while self._left and self._depth <= 2 and self._choices.among(2):
            self._act()
            self.check()
        self._depth -= 1

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        self._asked += 1
        self._meanwhile()
        result = super().try_acquire_lease(key, owner=owner, known_version=known_version, lease=lease)
        self._meanwhile()
        self._asked -= 1
        return result

    def remove_member(self, member: str) -> None:
        self._meanwhile()
        match self._choices.among(3):
            case 0:
                super().remove_member(member)
            case 1:
                self._late.append(member)
                raise StoreError("no response, and it is executed later")
            case _:
                raise StoreError("it is lost")
        self._meanwhile()

    def check(self) -> None:
        """The store reserves for each process at least what it would use. All of that is at most the whole.

        Not while a process waits for the response to a lease attempt: then it does not know its share.
        """
        if self._asked:
            return
        now = self.clock.now()
        shares = [process.share.divisor(now) for process in self._processes]
        for process, divisor in zip(self._processes, shares, strict=True):
            at, assigned = self._members.get(process.member, (now, 0))
            if divisor and 1 / divisor > share_left(assigned, now - at) + 1e-9:
                self.violations.append(f"a share of 1/{divisor} that is not reserved, with the choices {self._choices}")
        if sum(share_left(assigned, now - at) for at, assigned in self._members.values()) > 1 + 1e-9:
            self.violations.append(f"more than the whole is reserved, with the choices {self._choices}")


@pytest.fixture
def outage() -> WorkerGroup:
    """A store that works, at first."""
    return WorkerGroup()


def attempt(process: StoreClient) -> int:
    """Attempt a lease; return the divisor of the share."""
    process.try_acquire_lease("key", owner="o", known_version=0, lease=1.0)
    return process.share.divisor(process.link.failing_since)


def test_rule_24_a_new_process_gets_the_share_of_one_that_left(outage: WorkerGroup) -> None:
    """The one that left has none until it acquires another one."""
    old, new = [[outage.process().store_client for _ in range(4)] for _ in range(2)]
    assert [attempt(process) for process in [*old, *new]] == [4, 4, 4, 4, 0, 0, 0, 0]
    for process in old:
        process.at_exit()
    assert [attempt(process) for process in new] == [4, 4, 4, 4]
    outage.store.broken = True
    assert [process.share.divisor(outage.clock.now()) for process in old] == [0, 0, 0, 0]
    outage.store.broken = False
    assert attempt(old[0]) == 0
    new[0].at_exit()
    assert attempt(old[0]) == 4


def removals(outage: WorkerGroup) -> list[str]:
    """Return a list to which each operation on the store is added from now on."""
    seen: list[str] = []
    outage.store.before = seen.append
    return seen


def fails(outage: WorkerGroup) -> StoreClient:
    """Return a process that knows that the store fails."""
    process = outage.process().store_client
    attempt(process)
    outage.store.broken = True
    attempt(process)
    outage.store.broken = False
    outage.clock.advance(60)
    return process


def has_units_unseen(outage: WorkerGroup) -> StoreClient:
    """Return a process with a token request that the store has lost."""
    process = outage.process().store_client
    budget = process.token_budget(TokenPolicy(), URL)
    assert budget.acquire("M", from_reserve=False).granted
    attempt(process)
    process.local_copy.mark_missing(budget.key("M"), ())
    return process


def split(outage: WorkerGroup) -> StoreClient:
    """Return a process with a child that uses a half of its share."""
    process = fails(outage)
    process.share.split()
    attempt(process)
    return process


def has_never_asked(outage: WorkerGroup) -> StoreClient:
    """Return a process without a lease attempt."""
    return outage.process().store_client


def has_left(outage: WorkerGroup) -> StoreClient:
    """Return a process that has given its share back."""
    process = outage.process().store_client
    attempt(process)
    process.at_exit()
    return process


def child(outage: WorkerGroup) -> StoreClient:
    """Return a forked process that has no share yet."""
    process = outage.process().store_client
    attempt(process)
    process.after_fork()
    return process


def set_by_hand(outage: WorkerGroup) -> StoreClient:
    """Return a process whose share the store cannot assign to others."""
    process = outage.process(fallback_share=0.25).store_client
    attempt(process)
    return process


def one_of_a_host(outage: WorkerGroup) -> StoreClient:
    """Return a process that has its share with others."""
    process = StoreClient(outage.store, outage.clock, None, FragileStore(outage.clock), "host")
    attempt(process)
    return process


@pytest.mark.parametrize(
    "make", [fails, has_units_unseen, split, has_never_asked, has_left, child, set_by_hand, one_of_a_host]
)
def test_rule_24_a_process_without_a_share_of_its_own_sends_nothing_when_it_ends(
    outage: WorkerGroup, make: Callable[[WorkerGroup], StoreClient]
) -> None:
    """And its share stays what it was."""
    process = make(outage)
    before = process.share.divisor(outage.clock.now()), process.member
    seen = removals(outage)
    process.at_exit()
    assert seen == []
    assert (process.share.divisor(outage.clock.now()), process.member) == before


def test_rule_24_an_error_is_no_reason_to_log_a_warning_at_the_end(
    outage: WorkerGroup, caplog: pytest.LogCaptureFixture
) -> None:
    """The share is given up all the same, because the store may have executed the operation."""
    caplog.set_level(logging.INFO)
    process = outage.process().store_client
    assert attempt(process) == 4
    outage.store.broken = True
    process.at_exit()
    assert not process.degraded
    assert process.share.divisor(outage.clock.now()) == 0
    assert caplog.records == []


# What the others reserve for a process that they do not see any longer


def leaves(outage: WorkerGroup, other: StoreClient) -> None:
    """End cleanly."""
    other.at_exit()


def is_lost(outage: WorkerGroup, other: StoreClient) -> None:
    """Let the store lose all data."""
    outage.store._members = {}


def was_never_there(outage: WorkerGroup, other: StoreClient) -> None:
    """Let the store lose the last minutes, such as in a failover."""
    outage.store._members.pop(other.member)
    outage.store._members = {name: (at - 300.0, part) for name, (at, part) in outage.store._members.items()}


def are_too_many(outage: WorkerGroup, other: StoreClient) -> None:
    """Use the store beside a hundred others, of which it names none."""
    for number in range(MAX_MEMBERS):
        outage.process().store_client.try_acquire_lease("key", owner=f"{number}", known_version=0, lease=1.0)


def is_away(outage: WorkerGroup, other: StoreClient) -> None:
    """Be idle."""


@pytest.mark.parametrize(
    ("happens", "reserved"),
    [(leaves, 0), (is_lost, 1), (was_never_there, 1), (are_too_many, 1), (is_away, 1)],
)
def test_rule_24_after_an_outage_nothing_is_reserved_for_a_process_that_left_before(
    outage: WorkerGroup, happens: Callable[[WorkerGroup, StoreClient], None], reserved: int
) -> None:
    """A member that the store has lost may have used its share."""
    process, other = outage.process().store_client, outage.process().store_client
    attempt(process)
    outage.clock.advance(60)
    attempt(other)
    outage.clock.advance(60)
    attempt(process)
    happens(outage, other)
    outage.clock.advance(60)
    attempt(process)
    outage.store.broken = True
    attempt(process)
    outage.store.broken = False
    outage.clock.advance(60)
    attempt(process)
    outage.clock.advance(60)
    assert len(process.share.unreported_shares(process.link)) == reserved


def test_rule_24_during_an_outage_none_is_known_to_have_left(outage: WorkerGroup) -> None:
    """So its share stays reserved after the outage."""
    process, other = outage.process().store_client, outage.process().store_client
    for _ in range(2):
        attempt(process)
        attempt(other)
    outage.store.broken = True
    attempt(process)
    outage.store.broken = False
    other.at_exit()
    outage.clock.advance(6)
    attempt(process)
    outage.clock.advance(60)
    assert len(process.share.unreported_shares(process.link)) == 1


def test_rule_24_after_an_outage_the_units_that_another_process_may_have_acquired_stay_reserved(
    outage: WorkerGroup,
) -> None:
    """A quarter of 76: of 100 per hour, it saw 20, and counts 4 for the 144 s until the store failed."""
    process, other = outage.process().store_client, outage.process().store_client
    for _ in range(20):
        assert process.token_entries.acquire_all([HOUR]).wait == 0
    for each in (process, other, process):
        attempt(each)
    outage.clock.advance(144)
    outage.store.broken = True
    attempt(process)
    outage.clock.advance(1_800)
    outage.store.broken = False
    attempt(process)
    assert process.token_entries.usable_limit(HOUR) < 81, "more, for members that it does not know"
    outage.clock.advance(61)
    assert process.token_entries.usable_limit(HOUR) == 81
    attempt(other)
    attempt(process)
    assert process.token_entries.usable_limit(HOUR) == 100


# Real managers


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A shared store."""
    tmp_path.chmod(0o700)
    return f"sqlite:///{tmp_path}/store.db"


def close(manager: TokenManager) -> None:
    """Close it on a thread."""
    manager.close()


def close_in_a_task(manager: TokenManager) -> None:
    """Close it on an event loop, which is not blocked meanwhile."""

    async def main() -> None:
        async with manager:
            pass

    asyncio.run(main())


@pytest.mark.parametrize("end", [close, close_in_a_task])
def test_rule_24_the_last_manager_gives_the_share_of_the_process_back(
    url: str, end: Callable[[TokenManager], None]
) -> None:
    """Of those with this store that still exist and are open. If it returns, it has a share from then on."""
    clock = ManualClock()

    def members() -> set[str]:
        return {each.name for each in SqliteStore(url[10:], clock).try_acquire_lease("k", **VISITOR).others}

    first, second, _ = [TokenManager(OLD, store=url, clock=clock) for _ in range(3)]
    other: Any = TokenManager(OLD, store=url, clock=clock, policy=TokenPolicy(fallback_share=0.5))
    process: Any = first._state.settings.store_client
    assert process is not other._state.settings.store_client
    del _
    gc.collect()
    attempt(process)
    attempt(other._state.settings.store_client)
    mine, its = process.member, other._state.settings.store_client.member
    end(first)
    assert members() == {mine, its}
    end(second)
    assert members() == {its}
    third: Any = TokenManager(OLD, store=url, clock=clock)
    assert third._state.settings.store_client is process
    end(second)
    attempt(process)
    assert members() == {process.member, its} != {mine, its}
    end(third)
    assert members() == {process.member, its}, "it may return again"
    process.at_exit()
    assert members() == {its}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_rule_24_a_child_that_ends_does_not_take_its_parents_share(url: str) -> None:
    """Neither before nor after it had one of its own."""
    clock = ManualClock()
    manager: Any = TokenManager(OLD, store=url, clock=clock)
    process = manager._state.settings.store_client
    attempt(process)
    child = os.fork()
    if not child:
        manager.close()
        attempt(process)
        manager.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    others = SqliteStore(url[10:], clock).try_acquire_lease("k", **VISITOR).others
    assert {each.name for each in others} == {process.member}


def test_rule_24_a_closing_task_does_not_block_its_loop(url: str) -> None:
    """A store that is locked for seconds."""

    async def main() -> int:
        manager: Any = TokenManager(OLD, store=url)
        process = manager._state.settings.store_client
        attempt(process)
        member = process.member
        with closing(sqlite3.connect(url[10:], isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            closes = asyncio.create_task(manager.aclose())
            turns = 0
            while process.member == member or turns < 10:
                await asyncio.sleep(0.01)
                turns += 1
            assert not closes.done()
        await closes
        return turns

    assert asyncio.run(main()) >= 10


@pytest.mark.parametrize(
    ("processes", "actions"),
    [(2, 3), pytest.param(2, 4, marks=pytest.mark.deep), pytest.param(3, 3, marks=pytest.mark.deep)],
)
def test_rule_24_shares_are_never_more_than_the_whole_in_any_order_of_leaving(processes: int, actions: int) -> None:
    """Every order of lease attempts and removals, on their way at the same time, executed late or not at all."""
    choices = Choices()
    explored = 0
    for explored in choices:  # noqa: B007
        assert not Exploration(choices, processes, actions).run()
    assert explored > 10**actions
