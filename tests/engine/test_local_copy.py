"""Units that a process acquires in degraded mode, and how they are reported to the store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pay88_adapters.core.history import Acquisition, History, StorageResult, Window
from pay88_adapters.engine.store_client import StoreClient
from pay88_adapters.stores.base import StoreError
from pay88_adapters.stores.memory import MemoryStorage, MemoryStore
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import ManualClock

MINUTE, HOUR = Window("minute", 10, 60.0), Window("hour", 100, 3_600.0)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the file is; the store fails while it is gone."""
    path = tmp_path / "store"
    path.mkdir()
    return path


def test_rule_24_who_only_follows_reports_what_it_took_alone(directory: Path) -> None:
    """A lease attempt is enough: a process that never gets the lease never uses the shared budget."""
    clock = ManualClock()
    store = SqliteStore(str(directory / "store.db"), clock)
    leader, follower = StoreClient(store, clock, 0.25), StoreClient(store, clock, 0.25)
    away = directory.rename(directory.with_name("away"))
    assert follower.token_entries.acquire_all([MINUTE, HOUR]).wait == 0
    clock.advance(20)
    assert follower.token_entries.acquire_all([MINUTE, HOUR]).wait == 0
    away.rename(directory)
    clock.advance(20)
    assert leader.try_acquire_lease("key", owner="leader", known_version=0, lease=30).fencing_token
    assert follower.try_acquire_lease("key", owner="follower", known_version=0, lease=30).lease_remaining
    for _ in range(2):  # and reports it once
        assert follower.try_acquire_lease("key", owner="follower", known_version=0, lease=30).lease_remaining
        assert [store.budget.ages(window) for window in (MINUTE, HOUR)] == [[40, 20]] * 2


def test_rule_24_what_no_longer_counts_is_not_reported(directory: Path) -> None:
    """After a long time in degraded mode the store gets the last hour, which other limits may count, and no more."""
    clock = ManualClock()
    store = SqliteStore(str(directory / "store.db"), clock)
    fleet = StoreClient(store, clock, 0.25)
    away = directory.rename(directory.with_name("away"))
    for _ in range(200):
        assert fleet.token_entries.acquire_all([MINUTE]).wait == 0
        clock.advance(50)
    away.rename(directory)
    fleet.try_acquire_lease("key", owner="me", known_version=0, lease=30)
    oldest, count = store.budget.get_moving_window(MINUTE.key, MINUTE.limit, 10_000)
    assert clock.now() - 3_700 < oldest <= clock.now() - 3_600
    assert count == 73


class Ledger(MemoryStore):
    """A store that records its operations; *before* runs ahead of each operation of its budget."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock.now)
        self.reported: list[tuple[str, list[float]]] = []
        self.before: Callable[[str], object] = lambda _: None
        self.budget = _LedgerStorage(clock, self)


class _LedgerStorage(MemoryStorage):
    def __init__(self, clock: ManualClock, ledger: Ledger) -> None:
        super().__init__(clock.now)
        self._ledger = ledger

    def acquire(self, acquisition: Acquisition) -> StorageResult:
        self._ledger.before("acquire")
        return super().acquire(acquisition)

    def merge(self, key: str, entries: History, ttl: float) -> None:
        self._ledger.before("add")
        self._ledger.reported.append((key, [entry.age for entry in entries]))
        super().merge(key, entries, ttl)


def down(_: str) -> None:
    """Fail."""
    raise StoreError("down")


def works(_: str) -> None:
    """Let it be done."""


def lead(fleet: StoreClient) -> None:
    """Try to acquire the lease of any record."""
    fleet.try_acquire_lease("key", owner="me", known_version=0, lease=30)


def unreported(*windows: Window, since: float) -> tuple[ManualClock, Ledger, StoreClient]:
    """A process that acquired a unit in degraded mode, some seconds ago, and the store, which still fails."""
    clock = ManualClock()
    store = Ledger(clock)
    fleet = StoreClient(store, clock, 0.25)
    store.before = down
    assert fleet.token_entries.acquire_all(windows).wait == 0
    clock.advance(since)
    return clock, store, fleet


def hours_alone(fleet: StoreClient, clock: ManualClock, merchants: int) -> list[Window]:
    """Let many merchants spend their shares of three hours."""
    windows = [Window(f"hour {number}", 100, 3_600.0) for number in range(merchants)]
    for _ in range(75):
        for window in windows:
            fleet.token_entries.acquire_all([window])
        clock.advance(145)
    return windows


def test_rule_24_the_first_lease_after_hours_of_degraded_mode_reports_few_units() -> None:
    """A hundred merchants: a bounded number of operations, all units of a window in one; the rest in its turn."""
    clock = ManualClock()
    store = Ledger(clock)
    fleet = StoreClient(store, clock, 0.25)
    store.before = down
    windows = hours_alone(fleet, clock, 100)
    store.before = works
    lead(fleet)
    assert 0 < len(store.reported) <= 25
    for _ in range(20):
        lead(fleet)
    assert len(store.reported) == len(windows)
    assert {key for key, _ in store.reported} == {window.key for window in windows}
    assert all(20 <= len(ages) <= 25 and max(ages) <= 3_660 for _, ages in store.reported)


def test_rule_24_a_merchant_without_recent_requests_has_nothing_to_report() -> None:
    """Its units from a long time in degraded mode count nowhere, even without another request."""
    _, store, fleet = unreported(MINUTE, HOUR, since=3_670)
    store.before = works
    lead(fleet)
    assert store.reported == []


def test_rule_24_units_that_the_store_missed_are_reported_again() -> None:
    """It fails between two windows: each unit is reported once in the end."""
    clock, store, fleet = unreported(MINUTE, HOUR, since=10)

    def once(_: str) -> None:
        if store.reported:
            raise StoreError("down")

    store.before = once
    lead(fleet)
    clock.advance(10)
    store.before = works
    for _ in range(2):
        lead(fleet)
    assert sorted(key for key, _ in store.reported) == ["hour", "minute"]
    assert [ages for _, ages in store.reported] == [[10.0], [20.0]]


def test_rule_24_a_report_to_a_slow_store_delays_no_other_thread() -> None:
    """While the store handles the report slowly, others acquire units from it, or in degraded mode."""
    _, store, fleet = unreported(HOUR, since=10)
    hearing, received, done = threading.Event(), threading.Event(), threading.Event()

    def slow(operation: str) -> None:
        if operation == "add" and threading.current_thread() is teller:
            hearing.set()
            received.wait()

    def others() -> None:
        store.before = down
        fleet.token_entries.acquire_all([MINUTE])
        lead(fleet)
        done.set()

    teller = threading.Thread(target=lead, args=(fleet,))
    other = threading.Thread(target=others)
    store.before = slow
    teller.start()
    assert hearing.wait(5)
    other.start()
    try:
        assert done.wait(3), "they wait for the one who tells"
    finally:
        received.set()
        teller.join()
        other.join()


def test_rule_05_two_concurrent_reports_add_a_unit_once() -> None:
    """Each thread uses another merchant's budget while the store gets the unreported units: each counts once."""
    _, store, fleet = unreported(HOUR, since=10)
    hearing, received = threading.Event(), threading.Event()

    def slow(operation: str) -> None:
        if operation == "add":
            hearing.set()
            received.wait(10)

    store.before = slow
    threads = [threading.Thread(target=lead, args=(fleet,)) for _ in range(3)]
    for thread in threads:
        thread.start()
        assert hearing.wait(5)
    for thread in threads[1:]:
        thread.join(0.2)  # whether they wait or continue is their affair
    assert fleet.token_entries.ages(HOUR) == [10.0] * 4, "it counts meanwhile"
    received.set()
    for thread in threads:
        thread.join(5)
    lead(fleet)
    assert store.budget.ages(HOUR) == fleet.token_entries.ages(HOUR) == [10.0], "once, however often it was reported"
