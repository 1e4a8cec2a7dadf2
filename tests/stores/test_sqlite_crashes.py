"""The SQLite store after crashes, forks, reboots and steps of the clock, and its first format."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Cooldown, Window
from pay88_adapters.stores import sqlite_file
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import ManualClock
from support.sqlite_stores import SECRET, WINDOW, change, child, count, fails, line, posix, publish, take

T = TypeVar("T")

pytestmark = pytest.mark.deep  # it breaks things for seconds; the contract of all stores is tested everywhere


CRASH = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = TRUNCATE")
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE records SET content = 'half done', version = 0")
db.executemany("INSERT INTO entries VALUES ('key', ?, 1000, 9000)", [(str(n),) for n in range(20_000)])
os.kill(os.getpid(), signal.SIGKILL)
"""


@posix
def test_rule_24_what_a_killed_process_wrote_by_half_is_undone(store: SqliteStore, path: Path) -> None:
    """Its pages are in the file already, and the old ones in the journal."""
    version = publish(store)
    take(store)
    size = path.stat().st_size
    with child(CRASH, path) as process:
        assert process.wait(30) == -signal.SIGKILL
    assert path.stat().st_size > 2 * size
    assert count(store) == 1
    record = store.try_acquire_lease("key", owner="a", known_version=-1, lease=1.0).record
    assert record is not None
    assert (record.version, record.content) == (version, SECRET)


@posix
def test_rule_24_what_it_left_beside_a_deleted_file_does_not_matter(store: SqliteStore, path: Path) -> None:
    """Its journal is not played back into the new file."""
    publish(store)
    take(store)
    with child(CRASH, path) as process:
        process.wait(30)
    path.unlink()
    assert path.with_name("store.db-journal").stat().st_size
    assert (count(store), take(store), count(store)) == (0, 0, 1)


BUSY = """
import sys
from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Window
from pay88_adapters.stores.sqlite import SqliteStore
store = SqliteStore(sys.argv[1], Clock())
known = turns = 0
while True:
    granted = store.budget.acquire_all([Window("one", 10**6, 1e5), Window("two", 10**6, 1e5)]).wait == 0
    fence = store.try_acquire_lease("key", owner="a", known_version=known, lease=9.0).fencing_token
    assert store.publish("key", fencing_token=fence, content=str(fence) * 2_000, ttl=1e5)
    known = fence
    turns += 1
    print(turns, flush=True)
"""


@posix
def test_rule_24_a_process_may_be_killed_at_any_moment(path: Path) -> None:
    """Again and again: every file it leaves is sound, and has both entries of a step or neither."""
    for turn in range(12):
        path.unlink(missing_ok=True)
        with child(BUSY, path) as process:
            for _ in range(turn % 3 + 1):
                last = int(line(process))
            time.sleep(turn / 1_000)
            process.kill()
            assert process.stdout is not None
            last = max([last, *map(int, process.stdout.read().split())])
        store = SqliteStore(str(path), Clock())
        one, two = (len(store.budget.ages(Window(key, 1, 1e5))) for key in ("one", "two"))
        assert one == two
        assert last <= one <= last + 1
        record = store.try_acquire_lease("key", owner="b", known_version=-1, lease=1.0).record
        assert record is not None
        assert record.content == str(record.version) * 2_000
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


FORK = """
import os, sys, threading
from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Window
from pay88_adapters.stores.sqlite import SqliteStore

inside, forking = threading.Event(), threading.Event()

class Slow(Clock):
    def __init__(self):
        super().__init__()
        steady = self.now
        def now():
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                assert forking.wait(30)
            return steady()
        self.now = now

store = SqliteStore(sys.argv[1], Slow())
window = Window("key", 100, 3_600.0)
assert store.budget.acquire_all([window]).wait == 0
thread = threading.Thread(target=store.budget.acquire_all, args=([window],))
thread.start()
assert inside.wait(30)  # in the middle of its transaction
os.register_at_fork(before=forking.set)  # runs before the store's own
child = os.fork()
if not child:
    import signal
    signal.alarm(10)
    assert len(store.budget.ages(window)) == 2
    assert store.budget.acquire_all([window]).wait == 0
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
thread.join()
assert len(store.budget.ages(window)) == 3
assert store.budget.check()
print("well", flush=True)
"""


@posix
def test_rule_17_a_fork_with_a_transaction_in_progress(path: Path) -> None:
    """It is finished first; then parent and child both continue with the file."""
    with child(FORK, path) as process:
        assert line(process) == "well"


NESTED_FORKS = """
import os, sys, threading

def fork():
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

forks = iter([fork])
os.register_at_fork(after_in_parent=lambda: next(forks, int)())  # runs before the store's own, as a signal handler may
from pay88_adapters.core.history import Window
from pay88_adapters.clock import Clock
from pay88_adapters.stores.sqlite import SqliteStore
store = SqliteStore(sys.argv[1], Clock())
fork()
done = []
thread = threading.Thread(target=lambda: done.append(store.budget.acquire_all([Window("key", 100, 3_600.0)]).wait))
thread.daemon = True
thread.start()
thread.join(10)
assert done == [0]
print("well", flush=True)
"""


@posix
def test_rule_17_a_fork_within_a_fork(path: Path) -> None:
    """Afterwards other threads can use the file."""
    with child(NESTED_FORKS, path) as process:
        assert line(process) == "well"


def test_rule_17_a_fork_that_does_not_wait_longer_for_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it end the wait of others before their time."""
    monkeypatch.setattr(sqlite_file, "_FORK_TIMEOUT", 0.0)
    forks = sqlite_file._LockAcrossForks()

    def in_another_thread(act: Callable[[], T]) -> T:
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(act).result()

    def fork() -> None:
        forks.before_fork()
        forks.after_fork_in_parent()

    def is_free() -> bool:
        free = forks.lock.acquire(blocking=False)
        if free:
            forks.lock.release()
        return free

    forks.before_fork()
    in_another_thread(fork)
    assert not in_another_thread(is_free)
    forks.after_fork_in_parent()
    assert in_another_thread(is_free)


@posix
def test_rule_17_nothing_is_open_between_operations(store: SqliteStore, path: Path) -> None:
    """So there is nothing that a child could close, and nothing to leak."""
    publish(store)
    take(store)
    gc.collect()
    assert not [each for each in Path("/proc/self/fd").glob("*") if str(path) in os.path.realpath(each)]


def reboot(path: Path, *, ago: float) -> None:
    """Let the last write have been on another boot, *ago* seconds ago by the wall clock."""
    change(path, f"UPDATE clock SET boot = 'another', wall = wall - {ago}")


def test_rule_05_entries_keep_their_age_across_a_reboot(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    """By the wall clock; the count of fences continues, records and leases are gone."""
    version = publish(store)
    fencing_token = store.try_acquire_lease("other", owner="a", known_version=0, lease=1e6).fencing_token
    take(store)
    clock.advance(10.0)
    take(store)
    reboot(path, ago=20.0)
    later = SqliteStore(str(path), ManualClock(start=7.0))
    assert list(later.budget.ages(WINDOW)) == pytest.approx([30.0, 20.0], abs=2)
    assert (later.try_acquire_lease("key", owner="b", known_version=0, lease=1.0).fencing_token or 0) > version
    assert (later.try_acquire_lease("other", owner="b", known_version=0, lease=1.0).fencing_token or 0) > (
        fencing_token or 0
    )
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT DISTINCT content FROM records").fetchall() == [("",)]
    assert list(later.budget.ages(WINDOW)) == pytest.approx([30.0, 20.0], abs=2)


def test_rule_05_a_reboot_seems_to_be_in_the_future(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    """The wall clock was set back: the entries are as old as they were then, and no unit is gained or lost."""
    take(store)
    clock.advance(10.0)
    take(store)
    reboot(path, ago=-1_000.0)
    later = SqliteStore(str(path), ManualClock(start=7.0))
    assert list(later.budget.ages(WINDOW)) == [10.0, 0.0]


def test_rule_05_a_clock_that_went_back_is_another_boots(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    """Where no boot id is available."""
    version = publish(store)
    take(store)
    later = SqliteStore(str(path), ManualClock(start=clock.now() - 500))
    assert list(later.budget.ages(WINDOW)) == pytest.approx([0.0], abs=2)
    assert (later.try_acquire_lease("key", owner="b", known_version=0, lease=1.0).fencing_token or 0) > version


def test_rule_05_scaled_clocks_agree(path: Path) -> None:
    """Processes that share a speed share the instants."""
    take(SqliteStore(str(path), Clock(speed=1_000)))
    (age,) = SqliteStore(str(path), Clock(speed=1_000)).budget.ages(WINDOW._replace(expiry=1e9))
    assert 0 <= age < 60_000


FIRST = """
CREATE TABLE clock (boot TEXT NOT NULL, at REAL NOT NULL, wall REAL NOT NULL);
CREATE TABLE entries (key TEXT NOT NULL, at REAL NOT NULL, until REAL NOT NULL);
CREATE INDEX entries_by_key ON entries (key, at);
CREATE TABLE records (
    key TEXT NOT NULL PRIMARY KEY, version INTEGER NOT NULL, content TEXT NOT NULL, written_at REAL NOT NULL,
    keep_until REAL NOT NULL, fences INTEGER NOT NULL, owner TEXT NOT NULL, leased_at REAL NOT NULL,
    leased_until REAL NOT NULL
);
INSERT INTO records VALUES ('key', 7, 'a token', 990, 2000, 9, 'a', 995, 1500);
PRAGMA user_version = 1
"""


def test_rule_05_a_file_of_the_first_format_is_converted(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    """Its histories per limit become one per merchant; fencing tokens continue, and the token is fetched again."""
    take(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        boot, at, wall = db.execute("SELECT boot, at, wall FROM clock").fetchone()
    path.unlink()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(FIRST)
        db.execute("INSERT INTO clock VALUES (?, ?, ?)", (boot, at, wall))
        for key, count_of in (("10/1/minute", 3), ("100/1/hour", 5), ("extra/20/1/hour", 2)):
            rows = [(f"LIMITER/token/digest/{key}", clock.now() - 10 * n, clock.now() + 60) for n in range(count_of)]
            db.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
    path.chmod(0o600)
    assert list(store.budget.ages(Window("token/digest", 9, 3_600.0))) == [40, 30, 20, 10, 0]
    assert list(store.budget.ages(Window("token/digest/extra", 9, 3_600.0))) == [10, 0]
    assert not store.publish("key", fencing_token=9, content="old", ttl=10.0)
    assert store.try_acquire_lease("key", owner="b", known_version=0, lease=1.0).fencing_token == 10


def test_rule_24_a_file_of_the_first_format_that_makes_no_sense(store: SqliteStore, path: Path) -> None:
    """Is as corrupt as any other."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(FIRST)
        db.execute("INSERT INTO entries VALUES ('key', 'now', 'then')")
    path.chmod(0o600)
    fails(lambda: take(store))


def test_merchants_that_are_gone_leave_the_file(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    """Entries, cooldowns, members and records, a day later."""
    for number in range(20):
        take(store)
        store.budget.acquire_all([Window(f"merchant {number}", 10, 3_600.0)])
        store.budget.start_cooldown(f"merchant {number}", Cooldown(300.0, 0.0, "wait"))
        publish(store, f"key {number}")
    clock.advance(2 * 86_400)
    store.budget.acquire_all([Window("another", 10, 3_600.0)])
    publish(store, "another")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        counts = [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("entries", "bars", "records")]
    assert counts == [1, 0, 1]
