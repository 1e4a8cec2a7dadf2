"""The way to a store that fails, comes and goes, or hangs (rule 24)."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from typing import ClassVar

import pytest

from pay88_adapters import Token
from pay88_adapters.core.snapshot import Snapshot
from pay88_adapters.engine.store_link import Link
from pay88_adapters.stores.base import StoreView
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.testing import ManualClock
from support.processes import WorkerGroup


@pytest.fixture
def fleet() -> WorkerGroup:
    """A store that works, in simulated time."""
    return WorkerGroup()


@pytest.mark.parametrize("error", [OverflowError("x"), AttributeError("x"), MemoryError("x"), RecursionError("x")])
def test_rule_24_whatever_a_store_raises_it_takes_no_call_down(fleet: WorkerGroup, error: Exception) -> None:
    """It counts as failing."""

    def fail(_: str) -> None:
        raise error

    process = fleet.process()
    fleet.store.before = fail
    assert isinstance(process.call(), Token)


def warnings_of(caplog: pytest.LogCaptureFixture) -> int:
    """Return how often the store was written about."""
    return sum(record.name == "pay88_adapters.store" for record in caplog.records)


def test_rule_24_what_began_before_a_store_failed_does_not_bring_it_back(
    fleet: WorkerGroup, caplog: pytest.LogCaptureFixture
) -> None:
    """Its late success says nothing about the present."""
    process = fleet.process()
    view = process.state.settings.store_client
    nested = itertools.count()

    def fail_meanwhile(_: str) -> None:
        if next(nested) == 0:
            fleet.clock.advance(1)
            fleet.store.broken = True
            assert not view.publish("k", fencing_token=1, snapshot=Snapshot(), now=0.0, write_delay=0.0)
            fleet.store.broken = False

    fleet.store.before = fail_meanwhile
    view.try_acquire_lease("k", owner="o", known_version=0, lease=5)
    assert view.degraded
    assert warnings_of(caplog) == 1
    fleet.clock.advance(6)
    view.try_acquire_lease("k", owner="o", known_version=0, lease=5)
    assert not view.degraded
    assert warnings_of(caplog) == 2


def test_rule_24_a_store_that_fails_every_other_time_is_not_loud(
    fleet: WorkerGroup, caplog: pytest.LogCaptureFixture
) -> None:
    """An hour of it: tens of warnings, not hundreds."""
    caplog.set_level(logging.WARNING)
    view = fleet.process().state.settings.store_client
    for turn in range(600):
        fleet.store.broken = turn % 2 == 0
        view.try_acquire_lease("k", owner="o", known_version=0, lease=5)
        fleet.clock.advance(6)
    assert 1 <= warnings_of(caplog) <= 130


class Hanging(MemoryStore):
    """A store whose operations hang until it is released."""

    blocking: ClassVar[bool] = True

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock.now)
        self.release = threading.Event()

    def peek(self, key: str) -> StoreView:
        self.release.wait(30)
        return super().peek(key)


@pytest.mark.deep
def test_rule_24_a_store_that_hangs_leaves_one_thread_behind() -> None:
    """However often it is tried, by many threads; when it recovers, they finish."""
    clock = ManualClock()
    store = Hanging(clock)
    link = Link(store, clock)
    before = set(threading.enumerate())
    first = threading.Thread(target=link.attempt, args=(lambda store: store.peek("key"),))
    first.start()
    time.sleep(0.6)  # in real time, as the threads hang
    others = [threading.Thread(target=link.attempt, args=(lambda store: store.peek("key"),)) for _ in range(20)]
    for thread in others:
        thread.start()
    for thread in [first, *others]:
        thread.join(10)
    for _ in range(5):
        clock.advance(6)
        since = time.monotonic()
        assert link.attempt(lambda store: store.peek("key")) is None
        assert time.monotonic() - since < 1
    assert len(set(threading.enumerate()) - before) == 1
    store.release.set()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    clock.advance(6)
    assert link.attempt(lambda store: store.peek("key")) == StoreView()
