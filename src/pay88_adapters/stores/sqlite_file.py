"""The file of the SQLite store: who may use it, one transaction at a time, on a clock that outlives a reboot."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

from pay88_adapters.core.errors import ConfigurationError, shorten
from pay88_adapters.core.history import MIN_TTL
from pay88_adapters.stores.realtime import monotonic

from .base import StoreClock, StoreError
from .record_slot import RecordSlot
from .sqlite_rows import COLUMNS, INSERT, SAVE, decode, real, string, whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK_TIMEOUT = 3.5  # real seconds to wait for other threads and processes: hundreds of them may start concurrently
_FORK_TIMEOUT = 5.0  # real seconds for which a fork waits: longer than any transaction takes
_FORMAT = 2
_TABLES = """
CREATE TABLE clock (boot TEXT NOT NULL, at REAL NOT NULL, wall REAL NOT NULL);
INSERT INTO clock VALUES ('', 0, 0);
CREATE TABLE entries (
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    at REAL NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (key, id)
) WITHOUT ROWID;
CREATE INDEX entries_by_end ON entries (until);
CREATE TABLE bars ( -- cooldowns
    key TEXT NOT NULL PRIMARY KEY,
    at REAL NOT NULL,
    seconds REAL NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE members (
    member TEXT NOT NULL PRIMARY KEY,
    at REAL NOT NULL,
    parts INTEGER NOT NULL -- divisor of the share
);
CREATE TABLE records ( -- a RecordSlot, field by field
    key TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    content TEXT NOT NULL,
    written_at REAL NOT NULL,
    stored_at REAL NOT NULL,
    keep_until REAL NOT NULL,
    fences INTEGER NOT NULL, -- last_fencing_token
    owner TEXT NOT NULL,
    leased_at REAL NOT NULL,
    leased_until REAL NOT NULL
);
CREATE INDEX records_by_end ON records (keep_until)"""

_SHORTEST, _LONGEST = 0.002, 0.05  # real seconds between two attempts to be the next

T = TypeVar("T")


class _LockAcrossForks:
    """A lock that each transaction holds, and each fork from before it until after it.

    A child of a fork during a transaction would inherit SQLite's own locks, and its belief that this process has locked
    the file.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def before_fork(self) -> None:
        # With a timeout, because a transaction in another thread may hang. One in this thread, in which a signal
        # handler forks, delays nothing: the lock is reentrant.
        self.lock.acquire(timeout=_FORK_TIMEOUT)

    def after_fork_in_parent(self) -> None:
        # The lock itself knows how often this thread has acquired it: forks may be nested, or time out.
        with suppress(RuntimeError):  # not acquired
            self.lock.release()

    def after_fork_in_child(self) -> None:
        self.lock = threading.RLock()
        for place in list(_places):  # in the queue: the parent's, which leaves it when it is served
            _leave(place)


_fork_safe = _LockAcrossForks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_fork_safe.before_fork,
        after_in_parent=_fork_safe.after_fork_in_parent,
        after_in_child=_fork_safe.after_fork_in_child,
    )


class DatabaseFile:
    """A file, one transaction at a time.

    Args:
        path: The file; it is created at first use.
        clock: Its seconds must be the same in all processes of the host.
        for_group: Whether the group of the directory is trusted with the file.
        durable: Whether each transaction is flushed to the disk before it ends, which takes milliseconds. If not, all
            processes still see it, and it survives their crashes. A power failure may lose the last seconds, or
            damage the file, which is then replaced.

    Raises:
        ConfigurationError: Other users have access to the file, or the directory is no place for it.
    """

    def __init__(self, path: str, clock: StoreClock, *, for_group: bool, durable: bool = True) -> None:
        self._path = Path(os.path.realpath(path))
        self._clock = clock
        self._boot = _boot_id()
        self._for_group = for_group
        self._durable = durable
        self._checked_id()

    @property
    def host(self) -> str:
        # A container has a root of its own: the same path may be another directory there.
        directory = self._path.parent.stat()
        seen = f"{self._boot or platform.node()}\n{directory.st_dev}\n{directory.st_ino}\n{self._path.name}"
        return hashlib.sha256(seen.encode()).hexdigest()[:32]

    def run(self, operation: Callable[[sqlite3.Connection, float], T]) -> T:
        """Return the result of *operation* with the connection at this time, under an exclusive lock."""
        until, locked = monotonic() + _LOCK_TIMEOUT, False
        while True:
            with _fork_safe.lock:  # and no more around it: an exception may come between any two instructions
                if monotonic() > until:
                    why = "another process has locked it" if locked else "too many threads wait for it"
                    raise StoreError(f"{_name(self._path)} is busy: {why}")
                try:
                    with _queue(self._path, until):
                        try:
                            return self._transaction(operation)
                        except sqlite3.Error as error:
                            if self._durable or type(error) is not sqlite3.DatabaseError:  # which says: it is damaged
                                raise
                        self._path.unlink(missing_ok=True)
                        return self._transaction(operation)
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error) or monotonic() > until:
                        raise StoreError(f"{_name(self._path)} is unavailable: {error}") from error
                    locked = True
                except sqlite3.Error as error:
                    raise StoreError(f"{_name(self._path)} is corrupt ({error}): remove it") from error
                except UnicodeDecodeError:  # a message of SQLite's that quotes what is corrupt
                    raise StoreError(f"{_name(self._path)} is corrupt: remove it") from None
                except (ConfigurationError, OSError) as error:
                    raise StoreError(str(error)) from error
            # Out of the queue, in which the store's other file has its operations, too. SQLite's own wait sleeps longer
            # and longer: of many processes, the first one would starve.
            time.sleep(random.uniform(0.002, 0.020))

    def _transaction(self, operation: Callable[[sqlite3.Connection, float], T]) -> T:
        with closing(self._begin()) as db:
            now = self._now(db)
            result = operation(db, now)
            if db.total_changes:
                db.execute("UPDATE clock SET boot = ?, at = ?, wall = ?", (self._boot, now, self._wall()))
            db.execute("COMMIT")
            return result

    def _begin(self) -> sqlite3.Connection:
        for _ in range(3):
            found = self._checked_id()
            if found is None:
                # Not left to SQLite, whose mode is whatever the umask leaves.
                with suppress(FileExistsError):
                    _create_file(self._path, for_group=self._for_group)
                continue
            db = sqlite3.connect(f"{self._path.as_uri()}?mode=rw", timeout=0, isolation_level=None, uri=True)
            try:
                db.text_factory = decode
                _lock(db, "NORMAL" if self._durable else "OFF")
                if found == self._checked_id():
                    return db
            except BaseException:
                db.close()
                raise
            db.close()
        raise StoreError(f"{_name(self._path)} is replaced again and again by another process")

    def _checked_id(self) -> tuple[int, int] | None:
        return (_check_group_access if self._for_group else _check_owner_access)(self._path)

    def _now(self, db: sqlite3.Connection) -> float:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if not version:
            if db.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise StoreError(f"{_name(self._path)} is the database of another program: use another path")
            _create_tables(db)
        elif version == 1:
            _migrate(db)
        elif version != _FORMAT:
            raise StoreError(f"{_name(self._path)} has an unknown format: remove it to start with a new file")
        boot, at, wall = db.execute("SELECT boot, at, wall FROM clock").fetchone() or (None, None, None)
        now = self._clock.now()
        if string(boot) != self._boot or real(at) > now:
            self._adjust_to_boot(db, now, now - real(at) - max(self._wall() - real(wall), 0.0))
        return now

    def _adjust_to_boot(self, db: sqlite3.Connection, now: float, shift: float) -> None:
        # The clock counts from another boot. Only the wall clock shows how long ago that was, and it may be wrong. So
        # tokens, which must not seem younger than they are, are deleted.
        db.execute("UPDATE entries SET at = at + ?, until = until + ?", (shift, shift))
        db.execute("UPDATE bars SET at = at + ?", (shift,))
        db.execute("UPDATE members SET at = at + ?", (shift,))
        db.execute("UPDATE records SET content = '', keep_until = ?, leased_until = ?", (now, now))

    def _wall(self) -> float:
        return time.time() * self._clock.speed


def _create_tables(db: sqlite3.Connection) -> None:
    for statement in _TABLES.split(";"):  # executescript would commit
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {_FORMAT}")


def _migrate(db: sqlite3.Connection) -> None:
    """Migrate the first format, with a history per limit: the largest one of a merchant contains all entries."""
    clock = db.execute("SELECT boot, at, wall FROM clock").fetchone()
    entries = db.execute("SELECT key, at, until FROM entries").fetchall()
    fences = db.execute("SELECT key, fences FROM records").fetchall()
    for table in ("clock", "entries", "records"):
        db.execute(f"DROP TABLE {table}")
    _create_tables(db)
    if clock is not None:
        db.execute("UPDATE clock SET boot = ?, at = ?, wall = ?", clock)
    by_key: dict[str, list[tuple[float, float]]] = {}
    for key, at, until in entries:
        by_key.setdefault(string(key), []).append((real(at), real(until)))
    largest: dict[str, list[tuple[float, float]]] = {}
    for key, rows in by_key.items():
        history = key.removeprefix("LIMITER/").rsplit("/", 3)[0]
        largest[history] = max(largest.get(history, []), rows, key=len)
    for history, rows in largest.items():
        ttl = max(MIN_TTL, *(until - at for at, until in rows))
        db.executemany(INSERT, [(history, f"1.{n}", at, at + ttl) for n, (at, _) in enumerate(rows)])
    # No record, but the fencing token: a holder with an older one publishes nothing.
    slot = astuple(RecordSlot())
    for key, fence in fences:
        row = dict(zip(COLUMNS.split(", "), slot, strict=True)) | {"version": whole(fence), "fences": whole(fence)}
        db.execute(SAVE, (string(key), *row.values()))


_places: set[int] = set()  # descriptors: places in queues


@contextmanager
def _queue(path: Path, until: float) -> Generator[None]:
    """Wait until no other process uses the file.

    SQLite's own lock is the one that counts, but polling it is too expensive for a stampede of processes.

    Raises:
        StoreError: The wait takes too long.
    """
    if fcntl is None:
        yield
        return
    try:
        place = os.open(path.parent, os.O_RDONLY)  # not the file: to close that would drop SQLite's locks
    except OSError:  # without read permission for the directory, there is no queue
        yield
        return
    _places.add(place)
    try:
        pause = _SHORTEST
        while not _is_next(place):
            left = until - monotonic()
            if left < 0:
                raise StoreError(f"{_name(path)} is busy: another process has locked it")
            time.sleep(pause * random.uniform(0.5, 1.5))
            # A process that has waited for long polls more often than a new one.
            pause = min(2 * pause, _SHORTEST + (_LONGEST - _SHORTEST) * left / _LOCK_TIMEOUT)
        yield
    finally:
        _leave(place)


def _is_next(place: int) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no such locks here
        pass
    return True


def _leave(place: int) -> None:
    if place in _places:
        _places.discard(place)
        os.close(place)


def _lock(db: sqlite3.Connection, synchronous: str) -> None:
    db.execute("PRAGMA journal_mode = TRUNCATE")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("BEGIN EXCLUSIVE")  # more than IMMEDIATE: waiting processes do not delay the COMMIT


def _check_owner_access(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of the file, if any, after checking that only this user has access."""
    _, file = _checked_stats(path)
    if file and os.name == "posix":
        if file.st_uid != os.geteuid():
            raise ConfigurationError(f"{_name(path)} is owned by another user: remove it or use another path")
        if file.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"{_name(path)} is accessible to other users: run chmod 600, or trust its group with ?access=group"
            )
    return (file.st_dev, file.st_ino) if file else None


def _check_group_access(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of the file, if any, after checking that only the directory's group has access."""
    directory, file = _checked_stats(path)
    if os.name == "posix":
        if not directory.st_mode & stat.S_ISGID:  # or else the files in it are of their makers' groups
            raise ConfigurationError(f"files in {_name(path.parent)} do not inherit its group: run chmod 2770 on it")
        if file and (file.st_gid != directory.st_gid or file.st_mode & stat.S_IRWXO):
            raise ConfigurationError(
                f"{_name(path)} is accessible to users outside the group of its directory: remove it"
            )
    return (file.st_dev, file.st_ino) if file else None


def _checked_stats(path: Path) -> tuple[os.stat_result, os.stat_result | None]:
    directory, file = _stat(path.parent), _stat(path)
    if directory is None:
        raise ConfigurationError(f"{_name(path.parent)} does not exist: create it, or use another path")
    if not stat.S_ISDIR(directory.st_mode):
        raise ConfigurationError(f"{_name(path.parent)} is not a directory: use another path")
    if file and not stat.S_ISREG(file.st_mode):
        raise ConfigurationError(f"{_name(path)} is not a regular file: use another path")
    if os.name == "posix" and directory.st_mode & stat.S_IWOTH:
        raise ConfigurationError(f"{_name(path.parent)} is world-writable: use a directory of this user")
    return directory, file


def _create_file(path: Path, *, for_group: bool) -> None:
    """Make an empty file.

    Raises:
        FileExistsError: It is there already.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    made = path.with_name(f".{path.name}-{token_hex(8)}") if for_group else path
    # Closing is harmless only here: nothing in this process has locked a file that was just created.
    os.close(os.open(made, flags, 0o600))
    if for_group:  # whatever the umask, and before other processes see it
        try:
            made.chmod(0o660)
            os.link(made, path)
        finally:
            made.unlink()


def _name(path: Path) -> str:
    return shorten(str(path), 90)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationError(f"{_name(path)} cannot be used ({error.strerror}): check its permissions") from None


def _boot_id() -> str:
    """Return what changes when the clock starts over; "" where only its going back shows it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
