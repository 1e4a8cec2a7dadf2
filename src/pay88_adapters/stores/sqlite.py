"""The store of one host's processes: a file, with the standard library's SQLite.

Each operation opens the file, takes one transaction and closes it again. Nothing is open in between: no
connection crosses a fork, nothing has to be closed, and the next operation meets whatever is there by
then, in place of a file that was deleted, replaced or repaired.

The journal is a rollback journal. With a write-ahead log, whoever has a deleted file open goes on
sharing the index of the log, and at last deletes the log itself, of the new file by that name.
"""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple
from math import isfinite
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote

from pay88_adapters.clock import Clock
from pay88_adapters.errors import ConfigurationError
from pay88_adapters.secret import redact

from .base import Acquired, Ages, BudgetStorage, Lead, Look, StoreError, Window, wait_for
from .place import Place

_SCHEME = "sqlite://"
_PATIENCE = 1.0  # real seconds, to wait for other processes
_THREADS_PATIENCE = 2.5  # real seconds, to wait for other threads: hundreds of merchants may start at once
_DAY = 86_400.0
_FORMAT = 1
_COLUMNS = "version, content, written_at, keep_until, fences, owner, leased_at, leased_until"
_TABLES = """
CREATE TABLE clock (boot TEXT NOT NULL, at REAL NOT NULL, wall REAL NOT NULL);
INSERT INTO clock VALUES ('', 0, 0);
CREATE TABLE entries (key TEXT NOT NULL, at REAL NOT NULL, until REAL NOT NULL);
CREATE INDEX entries_by_key ON entries (key, at);
CREATE TABLE records ( -- a Place, field by field
    key TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    content TEXT NOT NULL,
    written_at REAL NOT NULL,
    keep_until REAL NOT NULL,
    fences INTEGER NOT NULL,
    owner TEXT NOT NULL,
    leased_at REAL NOT NULL,
    leased_until REAL NOT NULL
)"""


class _Turnstile:
    """Lets one thread in, and no fork while it is inside.

    The child would inherit SQLite's own locks, and its belief that this process has locked the file.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._held = False

    def before_fork(self) -> None:
        # Longer than any transaction waits, but not for ever: a signal handler may fork inside of one.
        self._held = self.lock.acquire(timeout=5 * _PATIENCE)

    def after_fork_in_parent(self) -> None:
        if self._held:
            self._held = False
            self.lock.release()

    def after_fork_in_child(self) -> None:
        self.lock = threading.Lock()


_turnstile = _Turnstile()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_turnstile.before_fork,
        after_in_parent=_turnstile.after_fork_in_parent,
        after_in_child=_turnstile.after_fork_in_child,
    )


class _File:
    """The file, one transaction at a time."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = Path(os.path.realpath(path))
        self._clock = clock
        self._boot = _boot_id()
        _look(self._path)

    @contextmanager
    def transaction(self) -> Generator[tuple[sqlite3.Connection, float], None, None]:
        """Keep everybody else out; give the connection and the time."""
        lock = _turnstile.lock
        if not lock.acquire(timeout=_THREADS_PATIENCE):
            raise StoreError(f"{self._path} is busy: too many threads wait for it")
        try:
            with closing(self._begin()) as db:
                now = self._now(db)
                yield db, now
                if db.total_changes:
                    db.execute("UPDATE clock SET boot = ?, at = ?, wall = ?", (self._boot, now, self._wall()))
                db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise StoreError(f"{self._path} cannot be used at present: {error}") from error
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} is corrupt ({error}): remove it, and a new one is made") from error
        except UnicodeDecodeError:  # a message of SQLite's that quotes what is corrupt
            raise StoreError(f"{self._path} is corrupt: remove it, and a new one is made") from None
        except (ConfigurationError, OSError) as error:
            raise StoreError(str(error)) from error
        finally:
            lock.release()

    def _begin(self) -> sqlite3.Connection:
        until = time.monotonic() + _PATIENCE
        for _ in range(3):
            found = _look(self._path)
            if found is None:
                # Not left to SQLite, whose mode is whatever the umask leaves. Closing is harmless here alone:
                # nothing in this process can have locked a file that it has just made.
                with suppress(FileExistsError):
                    os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                continue
            db = sqlite3.connect(f"{self._path.as_uri()}?mode=rw", timeout=0, isolation_level=None, uri=True)
            try:
                db.text_factory = _decode
                _lock(db, until)
                if found == _look(self._path):
                    return db
            except BaseException:
                db.close()
                raise
            db.close()
        raise StoreError(f"{self._path} is being replaced all the time")

    def _now(self, db: sqlite3.Connection) -> float:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if not version:
            if db.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise StoreError(f"{self._path} is another program's database: name a file of the store's own")
            for statement in _TABLES.split(";"):  # executescript would commit
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_FORMAT}")
        elif version != _FORMAT:
            raise StoreError(f"{self._path} is of another format: remove it, and a new one is made")
        boot, at, wall = db.execute("SELECT boot, at, wall FROM clock").fetchone() or (None, None, None)
        now = self._clock.now()
        if _string(boot) != self._boot or _real(at) > now:
            self._start_over(db, now, now - _real(at) - max(self._wall() - _real(wall), 0.0))
        return now

    def _start_over(self, db: sqlite3.Connection, now: float, shift: float) -> None:
        # The clock counts from another boot. Only the wall clock knows how long ago that was; what must not
        # be taken for younger than it is, goes.
        db.execute("UPDATE entries SET at = at + ?, until = until + ?", (shift, shift))
        db.execute("UPDATE records SET content = '', keep_until = ?, leased_until = ?", (now, now))

    def _wall(self) -> float:
        return time.time() * self._clock.speed


def _lock(db: sqlite3.Connection, until: float) -> None:
    # SQLite's own waiting naps for longer and longer: of a herd, who came first would wait in vain.
    while True:
        try:
            db.execute("PRAGMA journal_mode = TRUNCATE")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("BEGIN EXCLUSIVE")  # more than IMMEDIATE: those who wait do not get in the way of the COMMIT
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(random.uniform(0.002, 0.020))


class SqliteStorage(BudgetStorage):
    """Entries in the file, one a row."""

    def __init__(self, file: _File) -> None:
        super().__init__()
        self._file = file

    def acquire_all(self, windows: Sequence[Window], amount: int = 1) -> Acquired:
        with self._file.transaction() as (db, now):
            wait = max(wait_for(window, _ages(db, window, now), amount) for window in windows)
            if wait == 0:
                for window in windows:
                    _insert(db, window, [now] * amount, now)
            return Acquired(wait, [_ages(db, window, now) for window in windows])

    def add(self, window: Window, ages: Ages) -> None:
        with self._file.transaction() as (db, now):
            _insert(db, window, [now - age for age in ages], now)

    def ages(self, window: Window) -> Ages:
        with self._file.transaction() as (db, now):
            return _ages(db, window, now)

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        with self._file.transaction() as (db, now):
            live = _live(db, Window(key, limit, expiry), now)
            return (live[0] if live else now, len(live))

    def clear(self, key: str) -> None:
        """Forget the entries of *key*."""
        with self._file.transaction() as (db, _):
            db.execute("DELETE FROM entries WHERE key = ?", (key,))

    def reset(self) -> int:
        """Forget all entries; return how many keys there were."""
        with self._file.transaction() as (db, _):
            (keys,) = db.execute("SELECT count(DISTINCT key) FROM entries").fetchone()
            db.execute("DELETE FROM entries")
            return int(keys)

    def check(self) -> bool:
        """Say whether the file can be used."""
        try:
            with self._file.transaction():
                return True
        except StoreError:
            return False

    def get(self, key: str) -> int:
        """Return how many entries *key* holds."""
        with self._file.transaction() as (db, _):
            (count,) = db.execute("SELECT count(*) FROM entries WHERE key = ?", (key,)).fetchone()
            return int(count)


class SqliteStore:
    """What the managers of one host share.

    Args:
        path: The file; it is made when it is first needed. Its directory must exist, on a local disk, and
            others must not be able to write there.
        clock: Its seconds must be the same in all processes of the host.

    Raises:
        ConfigurationError: Others have access to the file, or the directory is no place for it.
    """

    blocking: ClassVar[bool] = True

    def __init__(self, path: str, clock: Clock) -> None:
        self._file = _File(path, clock)
        self.budget = SqliteStorage(self._file)

    def lead(self, key: str, *, owner: str, known: int, lease: float) -> Lead:
        with self._file.transaction() as (db, now):
            place = _load(db, key)
            lead = place.lead(now, owner=owner, known=known, lease=lease)
            if lead.fence is not None:
                _save(db, key, place)
            return lead

    def publish(self, key: str, *, fence: int, content: str, keep: float, after: float = 0.0) -> bool:
        with self._file.transaction() as (db, now):
            place = _load(db, key)
            published = place.publish(now, fence=fence, content=content, keep=keep, after=after)
            if published:
                _save(db, key, place)
                db.execute("DELETE FROM records WHERE max(keep_until, leased_until) < ?", (now - _DAY,))
            return published

    def look(self, key: str) -> Look:
        with self._file.transaction() as (db, now):
            return _load(db, key).look(now)


def sqlite_store(url: str, clock: Clock) -> SqliteStore:
    """Return the store that *url* names: ``sqlite:////absolute/path``.

    Raises:
        ConfigurationError: It names none, or a path that another working directory makes another file of.
    """
    rest = url.removeprefix(_SCHEME)
    path = unquote(rest[1:])
    if rest == url or not rest.startswith("/") or "?" in rest or "#" in rest:
        raise ConfigurationError("a store in a file is named sqlite:////absolute/path, without a host or a query")
    if not path or path == ":memory:" or "\0" in path or "\ufffd" in path:
        raise ConfigurationError("sqlite:// must name a file, as in sqlite:////absolute/path; memory:// needs none")
    if not Path(path).is_absolute():
        raise ConfigurationError(
            f"the store {redact(url)} is relative to the working directory: write {redact(_absolute(path))}"
        )
    return SqliteStore(path, clock)


def _absolute(path: str) -> str:
    return f"{_SCHEME}/{quote(str(Path.cwd() / path))}"


# --- rows


def _live(db: sqlite3.Connection, window: Window, now: float) -> list[float]:
    rows = db.execute("SELECT at FROM entries WHERE key = ? AND at >= ? ORDER BY at", (window.key, now - window.expiry))
    return [_real(at) for (at,) in rows]


def _ages(db: sqlite3.Connection, window: Window, now: float) -> Ages:
    return [now - at for at in _live(db, window, now)]


def _insert(db: sqlite3.Connection, window: Window, instants: Sequence[float], now: float) -> None:
    db.execute("DELETE FROM entries WHERE until < ?", (now - 1.0,))  # of all keys; rounding must not take a live one
    db.executemany("INSERT INTO entries VALUES (?, ?, ?)", [(window.key, at, at + window.expiry) for at in instants])


def _load(db: sqlite3.Connection, key: str) -> Place:
    row = db.execute(f"SELECT {_COLUMNS} FROM records WHERE key = ?", (key,)).fetchone()  # noqa: S608
    if row is None:
        return Place()
    version, content, written_at, keep_until, fences, owner, leased_at, leased_until = row
    if not 0 <= _whole(version) <= _whole(fences):
        raise sqlite3.DatabaseError("a version without a fence")
    record = (version, _string(content), _real(written_at), _real(keep_until))
    return Place(*record, fences, _string(owner), _real(leased_at), _real(leased_until))


def _save(db: sqlite3.Connection, key: str, place: Place) -> None:
    db.execute("REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (key, *astuple(place)))


def _decode(raw: bytes) -> str:
    return raw.decode(errors="replace")  # SQLite's own error would show the text


def _real(value: object) -> float:
    if not isinstance(value, float) or not isfinite(value):
        raise sqlite3.DatabaseError("an instant that is none")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise sqlite3.DatabaseError("a number that is none")
    return value


def _string(value: object) -> str:
    if not isinstance(value, str) or "\ufffd" in value:
        raise sqlite3.DatabaseError("a text that is none")
    return value


# --- the file


def _look(path: Path) -> tuple[int, int] | None:
    """Return which file is there, if any, once it is sure that nobody else has a say in it."""
    directory, file = _stat(path.parent), _stat(path)
    if directory is None or not stat.S_ISDIR(directory.st_mode):
        raise ConfigurationError(f"{path.parent} is not a directory: create it, for the store to be in")
    if file and not stat.S_ISREG(file.st_mode):
        raise ConfigurationError(f"{path} is not a regular file: name another for the store")
    if os.name == "posix":
        if directory.st_mode & stat.S_IWOTH:
            raise ConfigurationError(f"everybody may write to {path.parent}: name a directory of your own")
        if file and file.st_uid != os.geteuid():
            raise ConfigurationError(f"{path} belongs to somebody else: remove it, or name another for the store")
        if file and file.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(f"others have access to {path}, which holds tokens: chmod 600 it")
    return (file.st_dev, file.st_ino) if file else None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be used for a store: {error.strerror}") from None


def _boot_id() -> str:
    """Return what changes when the clock starts over; "" where only its going back shows it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
