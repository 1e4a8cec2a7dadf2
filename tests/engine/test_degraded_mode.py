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
from support.processes import ELSEWHERE, NEW, OLD, URL, FragileStore, Process, WorkerGroup, respond

HOUR = 3_600


class StoreOutage(WorkerGroup):
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

    def __init__(self, fleet: WorkerGroup, spare: FragileStore, host: str, **policy: Any) -> None:
        super().__init__(fleet.store, fleet.endpoint, fleet.clock, **policy)
        self.store_client = self.state.settings.store_client = StoreClient(fleet.store, fleet.clock, None, spare, host)
        self.state.settings.budget = self.store_client.token_budget(self.state.settings.policy, URL)
        self.spare = spare


@pytest.fixture
def outage() -> StoreOutage:
    """A store that works, at first."""
    return StoreOutage()


@pytest.mark.parametrize(
    ("processes", "idle", "before", "least"),
    [
        (1, 0, 600, 50),
        (1, 0, HOUR, 50),
        (2, 1, HOUR, 20),
        (4, 1, HOUR, 20),
        pytest.param(4, 0, 5, 20, marks=pytest.mark.deep),
        pytest.param(4, 0, HOUR, 20, marks=pytest.mark.deep),
        pytest.param(4, 3, 1_800, 10, marks=pytest.mark.deep),
        pytest.param(8, 0, 600, 20, marks=pytest.mark.deep),
        pytest.param(8, 7, 600, 2, marks=pytest.mark.deep),
        pytest.param(64, 0, 600, 0, marks=pytest.mark.deep),
        pytest.param(64, 30, HOUR, 0, marks=pytest.mark.deep),
        pytest.param(1_000, 500, 300, 0, marks=pytest.mark.deep),
    ],
)
def test_rule_24_all_processes_together_stay_within_the_budget(
    outage: StoreOutage, processes: int, idle: int, before: int, least: int
) -> None:
    """For any number of processes, after any idle time, and also if all of them start at the same moment."""
    workers = [outage.process() for _ in range(processes)]
    outage.run(workers, 5)
    outage.run(workers[idle:], before)
    outage.store.broken = True
    known = len(outage.endpoint.sent)
    outage.run(workers, 2 * HOUR, 5 if processes < 64 else 100)
    outage.judge()
    assert len(outage.endpoint.sent) - known >= least
    outage.store.broken = False
    outage.run(workers, 300)
    outage.run(workers, HOUR if processes < 10 else 60)
    outage.judge()
    assert all(isinstance(process.call(), Token) for process in workers)


def test_rule_24_too_many_processes_say_what_would_help(outage: StoreOutage) -> None:
    """None of them has a token request in a minute: the error gives the figures and names the setting."""
    workers = [outage.process() for _ in range(20)]
    outage.run(workers, 200)
    outage.store.broken = True
    outage.clock.advance(60)
    for process in workers:
        reported = process.call()
        assert isinstance(reported, TokenBudgetExhausted)
        assert re.search(r"1/2[01] of 10 ", str(reported))
        assert "fallback_store" in str(reported)
        assert len(str(reported)) <= 200


def test_rule_24_what_is_set_by_hand_holds_whatever_the_store_says(outage: StoreOutage) -> None:
    """A quarter for each of two."""
    workers = [outage.process(fallback_share=0.25) for _ in range(2)]
    outage.run(workers, 60)
    outage.store.broken = True
    outage.run(workers, 2 * HOUR)
    assert 46 <= largest_window(outage.endpoint.sent, HOUR) <= 52


# Hosts with a file each


@pytest.mark.deep
def test_rule_24_a_host_shares_its_fallback_store(outage: StoreOutage) -> None:
    """64 processes on two hosts: every call is served, the hosts together stay within the budget."""
    workers = outage.hosts(2, 64)
    assert outage.run(workers, 200) == 0
    outage.store.broken = True
    before = len(outage.endpoint.sent)
    assert outage.run(workers, 1_200) == 0
    assert 2 * 20 <= len(outage.endpoint.sent) - before <= 2 * 28
    outage.run(workers, HOUR)
    outage.judge()
    outage.store.broken = False
    outage.run(workers, 600)
    outage.judge()
    key = workers[0].state.settings.budget.key(OLD.merchant_id)
    assert outage.store.budget.get(key) == len([at for at in outage.endpoint.sent if at >= outage.clock.now() - 3_660])


def test_rule_24_without_its_fallback_store_a_process_takes_less(outage: StoreOutage) -> None:
    """Both stores fail: the number of processes on the host is unknown."""
    workers = outage.hosts(1, 3)
    outage.run(workers, 200)
    outage.store.broken = workers[0].spare.broken = True  # type: ignore[attr-defined]
    outage.run(workers, HOUR)
    outage.judge()


# Bars


def test_rule_10_a_cooldown_applies_in_degraded_mode_and_is_reported_again(outage: StoreOutage) -> None:
    """For another key of the process in degraded mode; the next operation reports it to the store."""
    one = outage.process()
    second, elsewhere = (Process(outage.store, outage.endpoint, outage.clock, who) for who in (NEW, ELSEWHERE))
    for other in (second, elsewhere):
        other.state.settings.store_client, other.state.settings.budget = (
            one.state.settings.store_client,
            one.state.settings.budget,
        )
    outage.store.broken = True
    outage.endpoint.responses = [respond(429, retry_after="1000")]
    assert isinstance(one.call(), TokenRateLimited)
    assert isinstance(second.call(), TokenRateLimited)
    outage.store.broken = False
    outage.clock.advance(10)
    assert isinstance(elsewhere.call(), Token)
    reported = outage.process(NEW).call()
    assert isinstance(reported, TokenRateLimited)
    assert reported.retry_after == pytest.approx(990, abs=1)
    assert len(outage.endpoint.sent) == 2


def test_rule_10_a_429_bars_all_keys_of_the_merchant_and_no_other(outage: StoreOutage) -> None:
    """In another process, immediately. Each waits as long as its own max_retry_after allows."""
    short, key, merchant = (
        outage.process(max_retry_after=60),
        outage.process(NEW),
        outage.process(Credentials("sk_test_3", "M")),
    )
    outage.endpoint.responses = [respond(429, retry_after="500")]
    assert isinstance(short.call(), TokenRateLimited)
    outage.clock.advance(1)
    reported = key.call()
    assert isinstance(reported, TokenRateLimited)
    assert reported.retry_after == pytest.approx(499, abs=0.1)
    assert isinstance(merchant.call(), Token)
    assert isinstance(outage.process().call(), TokenRateLimited)
    outage.clock.advance(60)
    assert isinstance(short.call(), Token)
    assert isinstance(key.call(), TokenRateLimited)


def test_rule_09_rejected_credentials_bar_the_key_alone(outage: StoreOutage) -> None:
    """The merchant's other key continues."""
    one, other = outage.process(), outage.process(NEW)
    outage.endpoint.responses = [respond(401)]
    assert not isinstance(one.call(), Token)
    assert isinstance(other.call(), Token)


# The store forgets


@pytest.mark.parametrize("loss", ["emptied", "set back"])
def test_rule_05_what_a_store_has_lost_it_is_given_again(outage: StoreOutage, loss: str) -> None:
    """A process restores the entries before any grant: emptied every ten minutes, or failed over to an old copy."""
    workers = [outage.process() for _ in range(3)]
    for _ in range(12):
        kept = dict(outage.store.budget._histories)
        outage.run(workers, 300)
        outage.store.budget._histories = kept if loss == "set back" else {}
        if loss == "emptied":
            outage.store._slots = {}
        for process in workers:
            process.state.drop(process.state.fast_path[0]) if process.state.fast_path[0] else None
        outage.run(workers, 300)
    outage.judge()
    assert outage.store.budget.get(workers[0].state.settings.budget.key(OLD.merchant_id)) >= len(
        [at for at in outage.endpoint.sent if at >= outage.clock.now() - HOUR]
    )


def test_rule_05_a_process_without_budget_restores_what_the_store_has_lost(outage: StoreOutage) -> None:
    """It checks the store once a minute, and sends nothing meanwhile; its errors say how long it takes in fact."""
    one, other = outage.process(), outage.process()
    key = one.state.settings.budget.key(OLD.merchant_id)
    budget = one.store_client.local_copy
    budget.import_history(key, [Entry(str(number), 1_000.0) for number in range(100)], HOUR, outage.clock.now())
    first = one.call()
    assert isinstance(first, TokenBudgetExhausted)
    assert first.retry_after == pytest.approx(2_605.0, abs=0.1)
    outage.store.budget.clear(key)
    outage.clock.advance(59)
    assert isinstance(one.call(), TokenBudgetExhausted)
    assert not outage.store.budget.history(key)
    outage.clock.advance(1)
    later = one.call()
    assert isinstance(later, TokenBudgetExhausted)
    assert later.retry_after == pytest.approx(2_545.0, abs=0.1)
    assert isinstance(other.call(), TokenBudgetExhausted)
    assert not outage.endpoint.sent


def test_rule_04_a_process_without_budget_uses_the_token_of_another(outage: StoreOutage) -> None:
    """The other one has larger limits, for example: a deployment changes them."""
    one, other = outage.process(limits=("1/hour",)), outage.process()
    assert isinstance(one.call(), Token)
    outage.clock.advance(60)
    assert isinstance(one.call(), TokenBudgetExhausted)
    outage.clock.advance(10)
    token = other.call()
    assert isinstance(token, Token)
    outage.clock.advance(50)
    assert one.call() == token


def test_rule_05_a_process_reports_the_units_that_a_record_lacks(outage: StoreOutage) -> None:
    """The writer of the record had fewer entries."""
    one, other = outage.process(), outage.process()
    key = one.state.settings.budget.key(OLD.merchant_id)
    assert isinstance(other.call(), Token)
    for budget in (outage.store.budget, other.store_client.token_entries):
        budget.clear(key)
    one.store_client.local_copy.import_history(key, [Entry("lost", 30.0)], HOUR, outage.clock.now())
    assert isinstance(one.call(), Token)
    outage.clock.advance(46)
    assert isinstance(one.call(), Token)
    assert "lost" in {entry.id for entry in outage.store.budget.history(key)}


# Forks and merchants


def test_rule_24_a_fork_in_the_dark_splits_the_share(outage: StoreOutage) -> None:
    """One that was forked before has none until the store knows it."""
    fleet = outage.process().store_client
    fleet.try_acquire_lease("key", owner="o", known_version=0, lease=1)
    assert fleet.share.divisor(outage.clock.now()) == 4
    fleet.after_fork()
    assert fleet.share.divisor(outage.clock.now()) == 0
    fleet.try_acquire_lease("key", owner="o", known_version=0, lease=1)
    outage.clock.advance(30)
    fleet.try_acquire_lease("key", owner="o", known_version=0, lease=1)
    outage.store.broken = True
    fleet.try_acquire_lease("key", owner="o", known_version=0, lease=1)
    divisor = fleet.share.divisor(outage.clock.now())
    fleet.after_fork()
    assert fleet.share.divisor(outage.clock.now()) == 2 * divisor > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_rule_24_the_parent_of_a_fork_in_the_dark_keeps_half(outage: StoreOutage) -> None:
    """And the child the other half."""
    fleet = outage.process().store_client
    for _ in range(4):
        fleet.try_acquire_lease("key", owner="o", known_version=0, lease=1)
        outage.clock.advance(30)
    outage.store.broken = True
    fleet.try_acquire_lease("key", owner="o", known_version=0, lease=1)
    child = os.fork()
    if not child:
        os._exit(fleet.share.divisor(outage.clock.now()))
    _, status = os.waitpid(child, 0)
    assert (os.waitstatus_to_exitcode(status), fleet.share.divisor(outage.clock.now())) == (2, 2)


def test_unobserved_time_counts_as_used() -> None:
    """As much as the limits allow in as many seconds for long, of what was there before the store failed."""
    clock = ManualClock()
    store = FragileStore(clock)
    fleet = StoreClient(store, clock)
    budget = fleet.token_budget(TokenPolicy(), URL)
    for _ in range(4):
        fleet.try_acquire_lease("key", owner="o", known_version=0, lease=1)
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
