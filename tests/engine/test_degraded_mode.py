"""Processes that lose their store: all of them together stay within the budget, in simulated time (rules 5 and 24)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import (
    ConfigurationError,
    Credentials,
    Token,
    TokenBudgetExhausted,
    TokenManager,
    TokenPolicy,
    TokenRateLimited,
)
from pay88_adapters.core.history import Entry
from pay88_adapters.engine.store_client import StoreClient
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import ManualClock
from pay88_adapters.testing.windows import largest_window
from support.processes import ELSEWHERE, NEW, OLD, URL, Fleetlet, FragileStore, Process, answer

HOUR = 3_600


class Darkness(Fleetlet):
    """Processes that call every five seconds, and a store that can be lost, emptied or set back."""

    def run(self, processes: list[Process], seconds: int, gap: int = 5) -> int:
        """Let time pass; return how many calls found no token."""
        failed = 0
        for _ in range(0, seconds, gap):
            failed += sum(not isinstance(process.call(), Token) for process in processes)
            self.clock.advance(gap)
        return failed

    def hosts(self, hosts: int, processes: int, **policy: Any) -> list[Process]:
        """Return processes of several hosts, each host with a fallback store of its own."""
        spares = [FragileStore(self.clock) for _ in range(hosts)]
        return [Spared(self, spares[number % hosts], f"host {number % hosts}", **policy) for number in range(processes)]

    def judge(self) -> None:
        """Check that the budget held all the time."""
        assert largest_window(self.endpoint.sent, HOUR) <= 100
        assert largest_window(self.endpoint.sent, 60) <= 10


class Spared(Process):
    """A process with a fallback store."""

    def __init__(self, fleet: Fleetlet, spare: FragileStore, host: str, **policy: Any) -> None:
        super().__init__(fleet.store, fleet.endpoint, fleet.clock, **policy)
        self.state.settings.store_client = StoreClient(fleet.store, fleet.clock, None, spare, host)
        self.state.settings.budget = self.state.settings.store_client.token_budget(self.state.settings.policy, URL)
        self.spare = spare


@pytest.fixture
def dark() -> Darkness:
    """A store that works, at first."""
    return Darkness()


@pytest.mark.parametrize(
    ("processes", "idle", "before", "least"),
    [
        (1, 0, 600, 50),
        (1, 0, HOUR, 50),
        (2, 1, HOUR, 20),
        (4, 0, 5, 20),
        (4, 0, HOUR, 20),
        (4, 1, HOUR, 20),
        (4, 3, 1_800, 10),
        (8, 0, 600, 20),
        (8, 7, 600, 2),
        pytest.param(64, 0, 600, 0, marks=pytest.mark.deep),
        pytest.param(64, 30, HOUR, 0, marks=pytest.mark.deep),
        pytest.param(1_000, 500, 300, 0, marks=pytest.mark.deep),
    ],
)
def test_rule_24_all_processes_together_stay_within_the_budget(
    dark: Darkness, processes: int, idle: int, before: int, least: int
) -> None:
    """For any number of processes, after any idle time, and also if all of them start at the same moment."""
    workers = [dark.process() for _ in range(processes)]
    dark.run(workers, 5)
    dark.run(workers[idle:], before)
    dark.store.broken = True
    known = len(dark.endpoint.sent)
    dark.run(workers, 2 * HOUR, 5 if processes < 64 else 100)
    dark.judge()
    assert len(dark.endpoint.sent) - known >= least
    dark.store.broken = False
    dark.run(workers, 300)
    dark.run(workers, HOUR if processes < 10 else 60)
    dark.judge()
    assert all(isinstance(process.call(), Token) for process in workers)


def test_rule_24_too_many_processes_say_what_would_help(dark: Darkness) -> None:
    """None of them has a token request in a minute: the error gives the figures and names the setting."""
    workers = [dark.process() for _ in range(20)]
    dark.run(workers, 200)
    dark.store.broken = True
    dark.clock.advance(60)
    for process in workers:
        told = process.call()
        assert isinstance(told, TokenBudgetExhausted)
        assert re.search(r"1/2[01] of 10 ", str(told))
        assert "fallback_store" in str(told)
        assert len(str(told)) <= 200


def test_rule_24_what_is_set_by_hand_holds_whatever_the_store_says(dark: Darkness) -> None:
    """A quarter for each of two."""
    workers = [dark.process(fallback_share=0.25) for _ in range(2)]
    dark.run(workers, 60)
    dark.store.broken = True
    dark.run(workers, 2 * HOUR)
    assert 46 <= largest_window(dark.endpoint.sent, HOUR) <= 52


# Hosts with a file each


def test_rule_24_a_host_shares_its_fallback_store(dark: Darkness) -> None:
    """64 processes on two hosts: every call is served, the hosts together stay within the budget."""
    workers = dark.hosts(2, 64)
    assert dark.run(workers, 200) == 0
    dark.store.broken = True
    before = len(dark.endpoint.sent)
    assert dark.run(workers, 1_200) == 0
    assert 2 * 20 <= len(dark.endpoint.sent) - before <= 2 * 28
    dark.run(workers, HOUR)
    dark.judge()
    dark.store.broken = False
    dark.run(workers, 600)
    dark.judge()
    key = workers[0].state.settings.budget.key(OLD.merchant_id)
    assert dark.store.budget.get(key) == len([at for at in dark.endpoint.sent if at >= dark.clock.now() - 3_660])


def test_rule_24_without_its_fallback_store_a_process_takes_less(dark: Darkness) -> None:
    """Both stores fail: the number of processes on the host is unknown."""
    workers = dark.hosts(1, 3)
    dark.run(workers, 200)
    dark.store.broken = workers[0].spare.broken = True  # type: ignore[attr-defined]
    dark.run(workers, HOUR)
    dark.judge()


# Bars


def test_rule_10_a_cooldown_applies_in_degraded_mode_and_is_reported_again(dark: Darkness) -> None:
    """For another key of the process in degraded mode; the next operation reports it to the store."""
    one = dark.process()
    second, elsewhere = (Process(dark.store, dark.endpoint, dark.clock, who) for who in (NEW, ELSEWHERE))
    for other in (second, elsewhere):
        other.state.settings.store_client, other.state.settings.budget = (
            one.state.settings.store_client,
            one.state.settings.budget,
        )
    dark.store.broken = True
    dark.endpoint.answers = [answer(429, retry_after="1000")]
    assert isinstance(one.call(), TokenRateLimited)
    assert isinstance(second.call(), TokenRateLimited)
    dark.store.broken = False
    dark.clock.advance(10)
    assert isinstance(elsewhere.call(), Token)
    told = dark.process(NEW).call()
    assert isinstance(told, TokenRateLimited)
    assert told.retry_after == pytest.approx(990, abs=1)
    assert len(dark.endpoint.sent) == 2


def test_rule_10_a_429_bars_all_keys_of_the_merchant_and_no_other(dark: Darkness) -> None:
    """In another process, immediately. Each waits as long as its own max_retry_after allows."""
    short, key, merchant = (
        dark.process(max_retry_after=60),
        dark.process(NEW),
        dark.process(Credentials("sk_test_3", "M")),
    )
    dark.endpoint.answers = [answer(429, retry_after="500")]
    assert isinstance(short.call(), TokenRateLimited)
    dark.clock.advance(1)
    told = key.call()
    assert isinstance(told, TokenRateLimited)
    assert told.retry_after == pytest.approx(499, abs=0.1)
    assert isinstance(merchant.call(), Token)
    assert isinstance(dark.process().call(), TokenRateLimited)
    dark.clock.advance(60)
    assert isinstance(short.call(), Token)
    assert isinstance(key.call(), TokenRateLimited)


def test_rule_09_rejected_credentials_bar_the_key_alone(dark: Darkness) -> None:
    """The merchant's other key continues."""
    one, other = dark.process(), dark.process(NEW)
    dark.endpoint.answers = [answer(401)]
    assert not isinstance(one.call(), Token)
    assert isinstance(other.call(), Token)


# The store forgets


@pytest.mark.parametrize("loss", ["emptied", "set back"])
def test_rule_05_what_a_store_has_lost_it_is_given_again(dark: Darkness, loss: str) -> None:
    """A process restores the entries before any grant: emptied every ten minutes, or failed over to an old copy."""
    workers = [dark.process() for _ in range(3)]
    for _ in range(12):
        kept = dict(dark.store.budget._histories)
        dark.run(workers, 300)
        dark.store.budget._histories = kept if loss == "set back" else {}
        if loss == "emptied":
            dark.store._places = {}
        for process in workers:
            process.state.drop(process.state.fast_path[0]) if process.state.fast_path[0] else None
        dark.run(workers, 300)
    dark.judge()
    assert dark.store.budget.get(workers[0].state.settings.budget.key(OLD.merchant_id)) >= len(
        [at for at in dark.endpoint.sent if at >= dark.clock.now() - HOUR]
    )


def test_rule_05_a_process_reports_the_units_that_a_record_lacks(dark: Darkness) -> None:
    """The writer of the record had fewer entries."""
    one, other = dark.process(), dark.process()
    key = one.state.settings.budget.key(OLD.merchant_id)
    assert isinstance(other.call(), Token)
    for budget in (dark.store.budget, other.state.settings.store_client.budget):
        budget.clear(key)
    one.state.settings.store_client.budget.learn(key, [Entry("lost", 30.0)], HOUR, dark.clock.now())
    assert isinstance(one.call(), Token)
    dark.clock.advance(46)
    assert isinstance(one.call(), Token)
    assert "lost" in {entry.id for entry in dark.store.budget.history(key)}


# Forks and merchants


def test_rule_24_a_fork_in_the_dark_splits_the_share(dark: Darkness) -> None:
    """One that was forked before has none until the store knows it."""
    fleet = dark.process().state.settings.store_client
    for _ in range(4):
        fleet.try_acquire_lease("key", owner="o", known=0, lease=1)
        dark.clock.advance(30)
    assert fleet.share.parts(dark.clock.now()) == 1
    fleet.after_fork()
    assert fleet.share.parts(dark.clock.now()) == 0
    fleet.try_acquire_lease("key", owner="o", known=0, lease=1)
    dark.clock.advance(30)
    fleet.try_acquire_lease("key", owner="o", known=0, lease=1)
    dark.store.broken = True
    fleet.try_acquire_lease("key", owner="o", known=0, lease=1)
    parts = fleet.share.parts(dark.clock.now())
    fleet.after_fork()
    assert fleet.share.parts(dark.clock.now()) == 2 * parts > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_rule_24_the_parent_of_a_fork_in_the_dark_keeps_half(dark: Darkness) -> None:
    """And the child the other half."""
    fleet = dark.process().state.settings.store_client
    for _ in range(4):
        fleet.try_acquire_lease("key", owner="o", known=0, lease=1)
        dark.clock.advance(30)
    dark.store.broken = True
    fleet.try_acquire_lease("key", owner="o", known=0, lease=1)
    child = os.fork()
    if not child:
        os._exit(fleet.share.parts(dark.clock.now()))
    _, status = os.waitpid(child, 0)
    assert (os.waitstatus_to_exitcode(status), fleet.share.parts(dark.clock.now())) == (2, 2)


def test_unobserved_time_counts_as_used() -> None:
    """As much as the limits allow in as many seconds for long, of what was there before the store failed."""
    clock = ManualClock()
    store = FragileStore(clock)
    fleet = StoreClient(store, clock)
    budget = fleet.token_budget(TokenPolicy(), URL)
    for _ in range(4):
        fleet.try_acquire_lease("key", owner="o", known=0, lease=1)
        clock.advance(30)
    assert budget.acquire("M", from_reserve=False).granted
    clock.advance(900)
    store.broken = True
    assert budget.acquire("M", from_reserve=False).granted
    left = budget.left("M")["100 per 1 hour"]
    assert 100 - 25 - 3 <= left <= 100 - 25 - 2
    clock.advance(3_000)
    assert budget.left("M")["100 per 1 hour"] > left, "it was spread over that time"


# Real managers


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory that only this user can write to."""
    tmp_path.chmod(0o700)
    return tmp_path


def test_a_fallback_store_is_a_file_of_its_own(directory: Path) -> None:
    """And there is something to fall back from; the environment can name it."""
    file = f"sqlite:///{directory}/fallback.db"
    for store, fallback in (
        ("memory://", file),
        (file, file),
        ("redis://127.0.0.1:1", "redis://127.0.0.1:2"),
        ("redis://127.0.0.1:1", "memory://"),
        ("redis://127.0.0.1:1", 7),
        ("redis://127.0.0.1:1", "sqlite:///:memory:"),
    ):
        with pytest.raises(ConfigurationError):
            TokenManager(OLD, store=store, fallback_store=fallback)  # type: ignore[arg-type]
    environ = {
        "PAY88_API_KEY": "sk_test_x",
        "PAY88_MERCHANT_ID": "M",
        "PAY88_STORE": "redis://127.0.0.1:1",
        "PAY88_FALLBACK_STORE": file,
    }
    manager: Any = TokenManager.from_env(environ)
    assert isinstance(manager._state.settings.store_client.fallback.store, SqliteStore)
    assert TokenManager.shared(OLD, store="redis://127.0.0.1:1", fallback_store=file) is not TokenManager.shared(
        OLD, store="redis://127.0.0.1:1"
    )


def test_processes_that_share_the_file_are_one_host(directory: Path) -> None:
    """The same through another path; another file is another one."""
    clock = ManualClock()
    one = SqliteStore(str(directory / "a.db"), clock)
    assert one.host == SqliteStore(f"{directory}/./a.db", clock).host
    assert one.host != SqliteStore(str(directory / "b.db"), clock).host
    (directory / "sub").mkdir(mode=0o700)
    assert one.host != SqliteStore(str(directory / "sub" / "a.db"), clock).host
