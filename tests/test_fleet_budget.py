"""What a process takes of the budget while the store fails, and how the others hear of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pay88_adapters.fleet import Fleet
from pay88_adapters.stores.base import Window
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
    """Asking for the lease is enough: a process that never gets it never asks for the shared budget."""
    clock = ManualClock()
    store = SqliteStore(str(directory / "store.db"), clock)
    leader, follower = Fleet(store, clock, 0.25), Fleet(store, clock, 0.25)
    away = directory.rename(directory.with_name("away"))
    assert follower.budget.acquire_all([MINUTE, HOUR]).wait == 0
    clock.advance(20)
    assert follower.budget.acquire_all([MINUTE, HOUR]).wait == 0
    away.rename(directory)
    clock.advance(20)
    assert leader.lead("key", owner="leader", known=0, lease=30).fence
    assert follower.lead("key", owner="follower", known=0, lease=30).busy_for
    for _ in range(2):  # and reports it once
        assert follower.lead("key", owner="follower", known=0, lease=30).busy_for
        assert [store.budget.ages(window) for window in (MINUTE, HOUR)] == [[40, 20]] * 2


def test_rule_24_what_no_longer_counts_is_not_reported(directory: Path) -> None:
    """After a long time alone the store hears of what it would still count, and no more."""
    clock = ManualClock()
    store = SqliteStore(str(directory / "store.db"), clock)
    fleet = Fleet(store, clock, 0.25)
    away = directory.rename(directory.with_name("away"))
    for _ in range(200):
        assert fleet.budget.acquire_all([MINUTE]).wait == 0
        clock.advance(50)
    away.rename(directory)
    fleet.lead("key", owner="me", known=0, lease=30)
    assert store.budget.get_moving_window(MINUTE.key, MINUTE.limit, 3_600) == (10_950.0, 1)
