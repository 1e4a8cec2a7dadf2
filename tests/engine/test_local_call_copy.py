"""API requests without their store: an immediate share of the rate limits (rules 22 and 24)."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pay88_adapters.core.history import StorageResult
from pay88_adapters.engine.pacing import CALL_LIMITS, Pacing
from pay88_adapters.engine.store_client import StoreClient
from pay88_adapters.events import Event, StoreDegraded, StoreRestored
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import ManualClock
from support.processes import OLD, URL, Process, WorkerGroup

MERCHANT = OLD.merchant_id
A_MINUTE = CALL_LIMITS[0].amount


class Pacer:
    """The pacing of one process."""

    def __init__(self, process: StoreClient) -> None:
        self.pacing = Pacing(process.call_entries, URL)

    def send(self) -> StorageResult:
        """Acquire the unit of one payment."""
        return self.pacing.acquire("transactions", MERCHANT)

    def free(self) -> int:
        """Return how many payments may be sent now."""
        return next(number for number in range(A_MINUTE + 1) if self.send().wait)


@pytest.fixture
def fleet() -> WorkerGroup:
    """A store that works, at first."""
    return WorkerGroup()


def started(fleet: WorkerGroup, count: int) -> list[Process]:
    """Return processes that have a token and have sent no payment."""
    processes = [fleet.process() for _ in range(count)]
    for _ in range(2):  # the first process meets those that came after it
        for process in processes:
            process.call()
        fleet.clock.advance(50)
    return processes


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_rule_24_a_payment_is_not_delayed_by_time_that_no_process_has_observed(fleet: WorkerGroup, count: int) -> None:
    """Without its store each process has an equal part of the limit, and can use all of it immediately."""
    processes = started(fleet, count)
    fleet.store.broken = True
    assert [Pacer(process.store_client).free() for process in processes] == [A_MINUTE // count] * count


def test_rule_24_each_process_may_send_one_payment_however_many_there_are(fleet: WorkerGroup) -> None:
    """A part of less than one payment a minute is one."""
    processes = started(fleet, 2 * A_MINUTE)
    fleet.store.broken = True
    assert {Pacer(process.store_client).free() for process in processes[-10:]} == {1}


def test_rule_22_the_expected_wait_is_known_without_the_store(fleet: WorkerGroup) -> None:
    """It is read under the manager's lock, which no operation of a store may hold up."""
    (process,) = started(fleet, 1)
    pacer = Pacer(process.store_client)
    assert pacer.free() == A_MINUTE
    operations: list[str] = []
    fleet.store.before = operations.append
    fleet.store.budget.history = operations.append  # type: ignore[assignment, method-assign]
    assert pacer.pacing.expected_wait("transactions", MERCHANT, fleet.clock.now()) > 0
    assert operations == []


def test_rule_24_an_idle_process_has_its_share_of_the_rate_limit(fleet: WorkerGroup) -> None:
    """Its share of the token budget shrinks without a lease attempt; payments must not wait for that."""
    (process,) = started(fleet, 1)
    fleet.clock.advance(7_200)
    fleet.store.broken = True
    assert Pacer(process.store_client).free() == A_MINUTE


def test_rule_24_a_forked_process_has_its_share_of_the_rate_limit(fleet: WorkerGroup) -> None:
    """Before the store has seen it, and in degraded mode."""
    one, other = started(fleet, 2)
    one.store_client.after_fork()
    fleet.store.broken = True
    assert Pacer(one.store_client).free() == A_MINUTE // 4
    pacer = Pacer(other.store_client)
    assert not pacer.send().wait
    other.store_client.after_fork()
    fleet.clock.advance(62)
    assert pacer.free() == A_MINUTE // 3


def test_rule_24_each_fork_without_the_store_adds_one_process(fleet: WorkerGroup) -> None:
    """A server that forks many workers leaves each of them an equal part."""
    (process,) = started(fleet, 1)
    fleet.store.broken = True
    assert not Pacer(process.store_client).send().wait
    for _ in range(5):
        process.store_client.share.split()
    fleet.clock.advance(62)
    assert Pacer(process.store_client).free() == A_MINUTE // 6


def test_rule_24_ended_processes_have_no_share_of_the_rate_limit(fleet: WorkerGroup) -> None:
    """Recycled workers, jobs and deployments leave members behind for an hour."""
    (process,) = started(fleet, 1)
    for _ in range(20):
        fleet.process().call()
    fleet.clock.advance(301)
    process.call()
    fleet.store.broken = True
    assert Pacer(process.store_client).free() == A_MINUTE


def test_rule_24_what_is_known_to_be_sent_still_counts(fleet: WorkerGroup) -> None:
    """The payments that the store has reported are no assumption."""
    one, other = started(fleet, 2)
    pacers = [Pacer(process.store_client) for process in (one, other)]
    for _ in range(A_MINUTE - 6):
        assert not pacers[0].send().wait
    assert not pacers[1].send().wait
    fleet.store.broken = True
    assert pacers[1].free() == 2


def test_rule_24_a_recovered_store_delays_no_payment(fleet: WorkerGroup) -> None:
    """What other processes may have sent meanwhile is not kept free for them: a 429 is harmless."""
    one, _ = started(fleet, 2)
    pacer = Pacer(one.store_client)
    fleet.store.broken = True
    assert pacer.free() == A_MINUTE // 2
    fleet.store.broken = False
    fleet.clock.advance(6)
    assert pacer.free() == A_MINUTE - A_MINUTE // 2
    fleet.clock.advance(62)
    assert pacer.free() == A_MINUTE


def test_rule_18_the_error_says_that_the_share_is_exhausted(fleet: WorkerGroup) -> None:
    """And not that the rate limit is reached, also to the requests after the one that the store rejected."""
    pacer = Pacer(started(fleet, 3)[0].store_client)
    fleet.store.broken = True
    assert pacer.free() == A_MINUTE // 3
    result = pacer.send()
    assert "store" in result.reason
    assert "1/3" in result.reason
    assert 0 < result.wait <= 5
    permit = pacer.pacing.reserve("transactions", fleet.clock.now())
    assert not isinstance(permit, tuple)
    pacer.pacing.record_result(permit, result, fleet.clock.now())
    denied = pacer.pacing.reserve("transactions", fleet.clock.now())
    assert isinstance(denied, tuple)
    assert denied.reason == result.reason
    fleet.clock.advance(5)
    assert not isinstance(pacer.pacing.reserve("transactions", fleet.clock.now()), tuple)


@pytest.fixture
def clock() -> ManualClock:
    """Of the processes on this host."""
    return ManualClock()


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """The second file of the store: it cannot be used while a directory has its name."""
    return tmp_path / "store.db-calls"


def test_rule_24_without_its_second_file_a_store_still_has_the_token(
    tmp_path: Path, clock: ManualClock, calls: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the rate limits are shared out: one event and one warning, and one more of each at the end."""
    fleet, events = WorkerGroup(), list[Event]()
    fleet.clock = clock  # type: ignore[assignment]  # no one waits on it
    fleet.store = SqliteStore(str(tmp_path / "store.db"), clock)  # type: ignore[assignment]
    process = fleet.process(listeners=[events.append])
    process.call()
    calls.mkdir()
    pacer = Pacer(process.store_client)
    assert pacer.free() == A_MINUTE
    process.state.transition(lambda *_: None)
    clock.advance(51)
    process.call()
    assert (process.store_client.degraded, process.store_client.link.failing) == (True, False)
    other = fleet.process()
    other.call()
    assert len(fleet.endpoint.sent) == 2, "the processes share the token"
    calls.rmdir()
    clock.advance(60)
    assert not pacer.send().wait
    process.state.transition(lambda *_: None)
    assert not process.store_client.degraded
    assert [type(each) for each in events if isinstance(each, (StoreDegraded, StoreRestored))] == [
        StoreDegraded,
        StoreRestored,
    ]
    warnings = [each for each in caplog.records if each.name == "pay88_adapters.store"]
    assert [each.levelno for each in warnings] == [logging.WARNING] * 2


def test_rule_24_a_store_that_fails_as_a_whole_warns_once(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Not once for each of its files."""
    directory = tmp_path / "directory"
    directory.mkdir()
    process = StoreClient(SqliteStore(str(directory / "store.db"), clock), clock)
    away = directory.rename(tmp_path / "away")
    for restored in (False, True):
        Pacer(process).send()
        process.try_acquire_lease("key", owner="me", known_version=0, lease=5)
        assert process.degraded is not restored
        assert len(caplog.records) == (2 if restored else 1)
        if not restored:
            away.rename(directory)
            clock.advance(6)


def test_rule_24_without_its_second_file_a_fallback_store_still_has_the_token(
    tmp_path: Path, clock: ManualClock, calls: Path
) -> None:
    """The processes of the host continue to share the token in it."""
    fleet = WorkerGroup()
    fleet.store.broken = True
    spare = SqliteStore(str(tmp_path / "store.db"), clock)
    calls.mkdir()
    process = StoreClient(fleet.store, clock, None, spare, "host")
    assert not Pacer(process).send().wait
    assert process.try_acquire_lease("key", owner="me", known_version=0, lease=5).fencing_token
