"""Hundreds and thousands of workers that share a store (rule 4)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pay88_adapters.clock import Clock
from pay88_adapters.stores.base import Store
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import ManualClock
from pay88_adapters.testing.windows import largest_window
from support.fleets import Simulation
from support.worlds import Report


def memory(clock: Clock) -> Store:
    """The store's code without a file."""
    return MemoryStore(clock.now)


def fleet(make_store: Callable[[ManualClock], Store], workers: int, seconds: float, report: Report) -> None:
    """Run the processes of several hosts, and return what it cost."""
    simulation = Simulation(make_store, workers, seed=4, gap=2.0).run(seconds)
    requests, operations = len(simulation.sent), simulation.store.operations
    report(
        f"{workers:,} workers, {seconds:g} s: {requests} token requests, {operations:,} store operations, "
        f"{operations / workers / requests:.2f} a worker and refresh; the longest wait was {simulation.waited:.2f} s"
    )
    assert not simulation.failed
    assert largest_window(simulation.sent, 3600) <= 80
    assert largest_window(simulation.sent, 60) <= 2
    assert operations <= 2 * workers * requests + 2 * requests


@pytest.mark.deep
def test_rule_04_hundreds_of_workers_fetch_what_one_would(report: Report) -> None:
    """An hour of calls: at most 80 token requests, and less than two operations of the store a worker and refresh."""
    fleet(memory, 200, 3_600, report)


@pytest.mark.deep
def test_rule_04_workers_that_share_a_file(tmp_path: Path, report: Report) -> None:
    """The same, with the code that processes really use."""
    tmp_path.chmod(0o700)
    fleet(lambda clock: SqliteStore(str(tmp_path / "tokens.db"), clock), 20, 600, report)


@pytest.mark.figures
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("workers", [1_000, 10_000])
def test_rule_04_thousands_of_workers(workers: int, report: Report) -> None:
    """An hour of ten thousand."""
    fleet(memory, workers, 3_600, report)


@pytest.mark.figures
@pytest.mark.timeout(1_200)
def test_rule_04_a_thousand_workers_that_share_a_file(tmp_path: Path, report: Report) -> None:
    """On the file, for a quarter of an hour."""
    tmp_path.chmod(0o700)
    fleet(lambda clock: SqliteStore(str(tmp_path / "tokens.db"), clock), 1_000, 900, report)
