"""The store in a file, and what may become of the file."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

import pytest

from pay88_adapters import ConfigurationError
from pay88_adapters.clock import Clock
from pay88_adapters.stores.base import StoreError
from pay88_adapters.stores.sqlite import SqliteStore, sqlite_store
from pay88_adapters.testing import ManualClock
from support.sqlite_stores import SECRET, change, check_foreign, child, count, fails, line, posix, publish, take

pytestmark = pytest.mark.deep  # it breaks things for seconds; the contract of all stores is tested everywhere


OTHER_USER = 65534


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///{}/store.db", "store.db"),
        ("sqlite:///{}/with%20space%3F%23%25.db", "with space?#%.db"),
        ("sqlite:///{}/file:name.db", "file:name.db"),
        ("sqlite:///{}/ñ.db", "ñ.db"),
        ("sqlite:///{}/%C3%B1.db", "ñ.db"),
    ],
)
def test_rule_04_a_url_names_the_file(tmp_path: Path, url: str, path: str) -> None:
    """An absolute path makes four slashes; what a URL cannot hold is percent-encoded."""
    publish(sqlite_store(url.format(tmp_path), Clock()))
    assert {each.name for each in tmp_path.iterdir()} - {path, f"{path}-journal"} == set()
    assert (tmp_path / path).stat().st_size


@pytest.mark.parametrize("path", ["store.db", "./store.db", "a%20b/store.db", "~/store.db"])
def test_rule_05_a_relative_path_is_rejected(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Two working directories would make two budgets of it; the message says what to write instead."""
    # A short path: the message would shorten a long one.
    with TemporaryDirectory() as directory, monkeypatch.context() as patch:
        folder = Path(directory).resolve()
        patch.chdir(folder)
        with pytest.raises(ConfigurationError) as caught:
            sqlite_store(f"sqlite:///{path}", Clock())
        absolute = str(caught.value).rpartition(" ")[2]
        assert absolute == f"sqlite:///{folder}/{path.removeprefix('./')}"
        (folder / unquote(path)).parent.mkdir(exist_ok=True)
        publish(sqlite_store(absolute, Clock()))
        assert (folder / unquote(path)).exists()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:",
        "sqlite:///:memory:",
        "sqlite:///%3Amemory%3A",
        "sqlite://host/path",
        "sqlite://user:a-secret-token@host/path",
        "sqlite:////tmp/x?mode=rwc",
        "sqlite:////tmp/x#y",
        "sqlite:////tmp/%00",
        "sqlite:////tmp/%FF",
        "redis://host",
        "/tmp/x",
        "",
    ],
)
def test_rule_04_a_url_that_names_no_file_is_rejected(url: str) -> None:
    """With what to write instead, and without what it holds."""
    with pytest.raises(ConfigurationError, match="sqlite:////absolute/path") as caught:
        sqlite_store(url, Clock())
    assert SECRET not in str(caught.value)


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_rule_15_no_other_user_can_read_the_file(path: Path, umask: int) -> None:
    """Whatever the umask, from the first moment; nor the journal that is beside it in a transaction."""
    modes: list[int] = []

    class Spy(ManualClock):
        """Reads the files whenever the store reads the time, in the middle of a transaction."""

        def __init__(self) -> None:
            super().__init__()
            self.now = self.peek

        def peek(self) -> float:
            modes.extend(each.stat().st_mode & 0o777 for each in path.parent.iterdir())
            return 1.0

    before = os.umask(umask)
    try:
        store = SqliteStore(str(path), Spy())
        publish(store)
        publish(store, "another")
    finally:
        os.umask(before)
    assert len(modes) > 4, "the journal was there, too"
    assert set(modes) == {0o600}


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o610])
def test_rule_15_a_file_that_others_can_use_is_rejected(path: Path, clock: ManualClock, mode: int) -> None:
    """When the store is created, and also later; then it recovers automatically."""
    store = SqliteStore(str(path), clock)
    publish(store)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        SqliteStore(str(path), clock)
    assert "chmod 600" in fails(lambda: take(store))
    path.chmod(0o600)
    assert take(store) == 0


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_rule_15_a_world_writable_directory_is_rejected(path: Path, mode: int) -> None:
    """Others could put a journal there; the sticky bit does not help against that."""
    path.parent.chmod(mode)
    with pytest.raises(ConfigurationError, match="directory of this user"):
        SqliteStore(str(path), Clock())
    path.parent.chmod(0o700)
    SqliteStore(str(path), Clock())


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_rule_15_the_file_of_another_user_is_rejected(path: Path) -> None:
    """Also behind a symbolic link."""
    path.touch(0o600)
    os.chown(path, 12_345, 12_345)
    link = path.with_name("link.db")
    link.symlink_to(path)
    for each in (path, link):
        with pytest.raises(ConfigurationError, match="another user"):
            SqliteStore(str(each), Clock())


@posix
def test_rule_15_what_a_link_leads_to_is_what_counts(path: Path, clock: ManualClock) -> None:
    """One's own file through a link is that file, its directory the one that matters."""
    open_to_all = path.parent / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (path.parent / "link.db").symlink_to(path)
    take(SqliteStore(str(path.parent / "link.db"), clock))
    assert count(SqliteStore(str(path), clock)) == 1
    (path.parent / "other.db").symlink_to(open_to_all / "store.db")
    with pytest.raises(ConfigurationError):
        SqliteStore(str(path.parent / "other.db"), clock)


@posix
def test_rule_15_a_link_put_in_the_files_place_is_not_followed(store: SqliteStore, path: Path) -> None:
    """The path was resolved once."""
    take(store)
    path.rename(path.with_name("elsewhere.db"))
    path.symlink_to("elsewhere.db")
    fails(lambda: take(store))


@pytest.mark.parametrize("place", ["missing/store.db", "file/store.db", "directory"])
def test_rule_04_where_no_file_can_be_is_rejected(tmp_path: Path, place: str) -> None:
    """No directory, a file instead of it, or a directory instead of the file."""
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with pytest.raises(ConfigurationError):
        SqliteStore(str(tmp_path / place), Clock())


def test_rule_24_a_deleted_file_is_created_again(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    """All who had it open meet in the new one; no old fence publishes there."""
    other = SqliteStore(str(path), clock)
    fencing_token = publish(store)
    assert (take(store), take(other)) == (0, 0)
    path.unlink()
    assert (count(store), count(other)) == (0, 0)
    assert not other.publish("key", fencing_token=fencing_token, content=SECRET, ttl=9.0)
    assert (take(store), take(other)) == (0, 0)
    assert (count(store), count(other)) == (2, 2)
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


def test_rule_04_a_deleted_files_fences_are_not_given_out_again(
    store: SqliteStore, path: Path, clock: ManualClock
) -> None:
    """A process with the lost record gets the next one, and cannot publish into a new file."""
    first = publish(store)
    clock.advance(1)
    path.unlink()
    assert not store.publish("key", fencing_token=first, content="late", ttl=100.0)
    second = publish(store, content="new")
    assert second != first
    record = store.try_acquire_lease("key", owner="other", known_version=first, lease=10.0).record
    assert record is not None
    assert (record.version, record.content) == (second, "new")


def test_rule_24_a_file_that_replaces_it_is_used(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    """As it is."""
    take(store)
    another = SqliteStore(str(path.with_name("another.db")), clock)
    take(another)
    take(another)
    path.with_name("another.db").replace(path)
    assert count(store) == 2


def test_rule_24_a_file_deleted_between_looking_and_locking_is_noticed(
    store: SqliteStore, path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry goes into the file that others will find."""
    take(store)
    connect, opened = sqlite3.connect, 0

    def hook(*arguments: Any, **options: Any) -> sqlite3.Connection:
        nonlocal opened
        db: sqlite3.Connection = connect(*arguments, **options)
        opened += 1
        if opened == 1:
            path.unlink()
        return db

    monkeypatch.setattr(sqlite3, "connect", hook)
    take(store)
    assert opened == 2
    assert count(SqliteStore(str(path), clock)) == 1


@pytest.mark.parametrize("size", [0, 2, 100, 4_096, 5_000])
def test_rule_24_a_truncated_file_fails_or_starts_over(store: SqliteStore, path: Path, size: int) -> None:
    """An empty one is a new one. Any other says that it must be removed, each time; then all is well."""
    for _ in range(5):
        take(store)
    publish(store, content=SECRET * 1_000)
    os.truncate(path, size)
    if size:
        for _ in range(2):
            assert "remove it" in fails(lambda: publish(store))
        path.unlink()
    publish(store)
    assert take(store) == 0
    assert count(store) == 1


@pytest.mark.parametrize(
    "garbage", [b"xx", b"garbage " * 10_000, b"\0" * 8_192, b"SQLite format 3\0" + b"\xff" * 8_192]
)
def test_rule_24_garbage_fails_until_it_is_removed(store: SqliteStore, path: Path, garbage: bytes) -> None:
    """The store must not remove what might be a user's work under a mistaken name."""
    take(store)
    path.write_bytes(garbage)
    for operate in (lambda: take(store), lambda: count(store), lambda: publish(store)):
        fails(operate)
    assert not store.budget.check()
    assert path.read_bytes() == garbage
    path.unlink()
    assert take(store) == 0
    assert store.budget.check()


def test_rule_24_any_page_may_be_broken(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    """It returns a right result or raises a StoreError, and never anything else."""
    publish(store)
    for _ in range(5):
        take(store)
    sound, shown = path.read_bytes(), list[str]()
    for offset in range(0, len(sound), 61):
        path.write_bytes(sound[:offset] + b"\xa5" * 16 + sound[offset + 16 :])
        try:
            record = store.try_acquire_lease("key", owner="a", known_version=-1, lease=1.0).record
            assert record is None or "\ufffd" not in str(record.content)
            assert take(store) >= 0
        except StoreError as error:
            shown.append(f"{error} {error.__cause__}")
    path.write_bytes(sound)
    assert count(store) == 5
    assert len(shown) > 10
    assert SECRET not in "".join(shown)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET version = 'one'",
        "UPDATE records SET version = fences + 1",
        "UPDATE records SET version = -1",
        "UPDATE records SET version = 0.5",
        "UPDATE records SET fences = x'00'",
        "UPDATE records SET content = x'0102'",
        "UPDATE records SET content = CAST(x'612d7365637265742d746f6b656eff' AS TEXT)",
        "UPDATE records SET owner = x'00'",
        "UPDATE records SET written_at = 'yesterday'",
        "UPDATE records SET keep_until = 9e999",
        "UPDATE records SET leased_until = x'00'",
        "UPDATE entries SET at = 'now'",
        "UPDATE entries SET at = 9e999",
        "UPDATE entries SET id = x'00'",
        "UPDATE clock SET at = 'now'",
        "UPDATE clock SET wall = 9e999, boot = 'other'",
        "UPDATE clock SET boot = x'00'",
        "DELETE FROM clock",
        "DROP TABLE records",
        "DROP TABLE entries",
        "DROP TABLE bars",
        "DROP TABLE clock",
        "PRAGMA user_version = 3",
    ],
)
def test_rule_24_a_row_that_makes_no_sense_is_never_used(store: SqliteStore, path: Path, statement: str) -> None:
    """Nor is what it holds shown."""
    publish(store)
    take(store)
    change(path, statement)

    def operate() -> None:
        store.try_acquire_lease("key", owner="a", known_version=-1, lease=1.0)
        take(store)

    fails(operate)
    fails(operate)
    if "records" in statement:
        fails(lambda: store.peek("key"))
    path.unlink()
    publish(store)


def test_rule_24_another_programs_database_stays_unchanged(store: SqliteStore, path: Path) -> None:
    """It is not filled with our tables."""
    check_foreign(path, lambda: take(store))


@posix
def test_rule_24_a_directory_that_is_gone(store: SqliteStore, path: Path) -> None:
    """Until it is there again."""
    take(store)
    path.parent.rename(path.parent.with_name("moved"))
    fails(lambda: take(store))
    path.parent.mkdir()
    assert (take(store), count(store)) == (0, 1)


@pytest.fixture
def bound_by_permissions() -> Iterator[Path]:
    """A directory of a user with limited permissions: where root runs the tests, another user in the block."""
    with TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        take(SqliteStore(f"{name}/other.db", ManualClock()))  # its imports may be unreadable for other users
        os.chown(name, OTHER_USER, OTHER_USER)
        os.seteuid(OTHER_USER)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


@posix
@pytest.mark.parametrize("what", ["file", "directory"])
def test_rule_24_a_file_or_directory_that_is_read_only(bound_by_permissions: Path, what: str) -> None:
    """Until it is not; and a file that is not there yet cannot be made."""
    path = bound_by_permissions / "store.db"
    store = SqliteStore(str(path), ManualClock())
    if what == "directory":
        path.parent.chmod(0o500)
        fails(lambda: take(store))
        path.parent.chmod(0o700)
    take(store)
    place = path if what == "file" else path.parent
    path.with_name("store.db-journal").unlink()
    mode = place.stat().st_mode
    place.chmod(mode & ~0o222)
    fails(lambda: take(store))
    place.chmod(mode)
    assert (take(store), count(store)) == (0, 2)


LOCK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(sys.argv[2])
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_rule_24_a_lock_that_another_process_holds(store: SqliteStore, path: Path, begin: str) -> None:
    """The store raises an error within seconds, in several threads, too, and recovers with the end of the lock."""
    publish(store)
    with child(LOCK, path, begin) as holder:
        assert line(holder) == "locked"
        threads = [threading.Thread(target=fails, args=(lambda: take(store),)) for _ in range(8)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 0.9 < time.monotonic() - started < 6, "they waited one after the other"
        assert "locked" in fails(lambda: take(store))
        holder.communicate("\n")
    assert (take(store), count(store)) == (0, 1)


def test_rule_24_a_reader_blocks_it_only_while_it_reads(store: SqliteStore, path: Path) -> None:
    """A long read in another process blocks all writers: an error, and no unit was acquired."""
    take(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM entries").fetchone()
        fails(lambda: take(store))
    assert count(store) == 1


FULL = """
import resource, sys
from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Window
from pay88_adapters.stores.base import StoreError
from pay88_adapters.stores.sqlite import SqliteStore

store = SqliteStore(sys.argv[1], Clock())
window = Window("key", 10_000, 3_600.0)
if sys.argv[2] == "used":
    store.budget.acquire_all([window])
for size in (0, 512, 4_096, 8_192, 20_480):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    taken, failed = len(store.budget.ages(window)) if size > 20_000 else None, 0
    try:
        store.budget.acquire_all([window], 5_000)
    except StoreError:
        failed = 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert failed, size
    assert len(store.budget.ages(window)) == (sys.argv[2] == "used"), "nothing was taken"
assert store.budget.acquire_all([window], 5_000).wait == 0
print("well", flush=True)
"""


@posix
@pytest.mark.parametrize("what", ["fresh", "used"])
def test_rule_24_no_room_for_the_file_to_grow(path: Path, what: str) -> None:
    """A limit on its size fails writes as a full disk does, at any point; afterwards nothing is lost or gained."""
    with child(FULL, path, what) as process:
        assert line(process) == "well"
