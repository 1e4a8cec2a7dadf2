"""The second file of the SQLite store: the API requests, which need not outlive a power failure (rule 22)."""

from __future__ import annotations

import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pay88_adapters.core.history import Cooldown, Entry, Window
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import ManualClock
from support.sqlite_stores import change, check_foreign, child, count, posix, take

REQUESTS = Window("transactions/merchant", 10, 60.0)


@pytest.fixture
def calls(path: Path) -> Path:
    """The second file."""
    return path.with_name("store.db-calls")


def acquire(store: SqliteStore) -> float:
    """Acquire a unit for an API request; return the wait."""
    return store.budget.acquire_all([REQUESTS]).wait


@pytest.mark.parametrize("group", ["transactions", "balance"])
def test_rule_22_api_requests_have_a_file_of_their_own(store: SqliteStore, path: Path, calls: Path, group: str) -> None:
    """A token request and its record are in the file that is flushed to the disk, an API request is not."""
    take(store)
    before = path.read_bytes()
    window = REQUESTS._replace(key=f"{group}/merchant")
    assert store.budget.acquire_all([window]).wait == 0
    store.budget.merge(window.key, [Entry("other", 1.0)], 60.0)
    store.budget.start_cooldown(window.key, Cooldown(5.0, 0.0, "429"))
    assert (len(store.budget.history(window.key)), count(store)) == (2, 1)
    assert store.budget.cooldown(window.key) is not None
    assert store.budget.get_moving_window(window.key, 10, 60)[1] == 2
    assert path.read_bytes() == before
    store.budget.clear(window.key)
    assert store.budget.history(window.key) == []
    acquire(store)
    assert store.budget.reset() == 2
    assert (len(store.budget.ages(REQUESTS)), count(store)) == (0, 0)


def test_rule_22_without_pacing_there_is_one_file(store: SqliteStore, path: Path) -> None:
    """The second file is created with the first API request."""
    take(store)
    assert [each.name for each in path.parent.glob("*.db*") if "journal" not in each.name] == [path.name]


@posix
def test_rule_15_only_the_owner_can_read_the_second_file(store: SqliteStore, calls: Path) -> None:
    """It has the same mode as the first."""
    acquire(store)
    assert calls.stat().st_mode & 0o777 == 0o600


@posix
def test_rule_22_a_link_to_the_file_leads_to_the_same_second_file(
    store: SqliteStore, path: Path, clock: ManualClock
) -> None:
    """Two processes with different paths to one file share one rate limit."""
    take(store)
    link = path.with_name("link.db")
    link.symlink_to(path)
    acquire(SqliteStore(str(link), clock))
    assert len(store.budget.ages(REQUESTS)) == 1


@pytest.mark.parametrize(
    "damage",
    [b"garbage " * 10_000, b"\0" * 8_192, b"SQLite format 3\0" + b"\xff" * 8_192],
)
def test_rule_24_a_damaged_second_file_is_replaced(store: SqliteStore, calls: Path, damage: bytes) -> None:
    """A power failure may do that. It must not cause degraded mode until an operator removes the file."""
    take(store)
    acquire(store)
    calls.write_bytes(damage)
    assert (acquire(store), len(store.budget.ages(REQUESTS)), count(store)) == (0, 1, 1)


@pytest.mark.parametrize("statement", ["UPDATE entries SET at = 'now'", "UPDATE entries SET id = x'00'"])
def test_rule_24_a_second_file_with_damaged_rows_is_replaced(store: SqliteStore, calls: Path, statement: str) -> None:
    """SQLite does not notice such damage."""
    acquire(store)
    change(calls, statement)
    assert (acquire(store), len(store.budget.ages(REQUESTS))) == (0, 1)


def test_rule_24_another_programs_database_is_not_replaced(store: SqliteStore, calls: Path) -> None:
    """It is intact, so no power failure damaged it."""
    check_foreign(calls, lambda: acquire(store))


def test_rule_24_a_locked_second_file_delays_no_token(store: SqliteStore, calls: Path) -> None:
    """An operation that waits for it holds neither the other threads nor the queue of the processes."""
    acquire(store)
    with closing(sqlite3.connect(calls, isolation_level=None)) as db, ThreadPoolExecutor(1) as pool:
        db.execute("BEGIN EXCLUSIVE")
        waiting = pool.submit(acquire, store)
        for _ in range(50):
            store.peek("key")
        assert not waiting.done()
        db.execute("COMMIT")
        assert waiting.result(30) == 0


KILLED = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = TRUNCATE")
db.execute("PRAGMA synchronous = OFF")
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN EXCLUSIVE")
db.executemany("INSERT INTO entries VALUES ('transactions/merchant', ?, 0, 9e9)", [(str(n),) for n in range(20_000)])
os.kill(os.getpid(), signal.SIGKILL)
"""


@posix
def test_rule_22_a_killed_process_neither_loses_nor_gains_a_unit(store: SqliteStore, calls: Path) -> None:
    """Without a flush the journal still is complete for the other processes."""
    assert acquire(store) == acquire(store) == 0
    size = calls.stat().st_size
    with child(KILLED, calls) as process:
        assert process.wait(30) == -signal.SIGKILL
    assert calls.stat().st_size > 2 * size
    assert len(store.budget.ages(REQUESTS)) == 2
