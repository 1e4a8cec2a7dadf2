"""The store of the processes on one host: a SQLite file, and a second one for API requests, which need not be durable.

Each operation opens the file, takes one transaction and closes it again. No connection stays open: none crosses a fork,
and none has to be closed. The next operation finds the current file, also after the file was deleted, replaced or
restored.

The journal is a rollback journal. With a write-ahead log, a process that has a deleted file open would share the index
of the log with the new file of that name. In the end it would delete the log of the new file.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote

from pay88_adapters.core.endpoint import RATE_LIMITED_GROUPS
from pay88_adapters.core.errors import ConfigurationError, shorten
from pay88_adapters.core.history import (
    Acquisition,
    Cooldown,
    Entry,
    History,
    StorageResult,
    Window,
    counted,
    longest,
    verdict,
)
from pay88_adapters.core.secret import redact

from .base import EntryStorage, LeaseResult, StoreClock, StoreError, StoreView
from .members import member_of
from .sqlite_file import DatabaseFile
from .sqlite_rows import (
    DAY,
    forget_entries,
    join_members,
    load_slot,
    merge_entries,
    read_cooldown,
    read_history,
    save_slot,
    with_entries,
)

_SCHEME = "sqlite://"
_ACCESS = ("access=owner", "access=group")


class SqliteStorage(EntryStorage):
    """Entries in two files, one a row.

    Args:
        tokens: Contains the token requests.
        calls: Contains the API requests. There are many, each waits for its transaction, and what a power failure loses
            of them costs a 429 at most: so it need not be durable.
    """

    def __init__(self, tokens: DatabaseFile, calls: DatabaseFile) -> None:
        super().__init__()
        self._tokens, self._calls = tokens, calls

    def _file(self, key: str) -> DatabaseFile:
        return self._calls if key.partition("/")[0] in RATE_LIMITED_GROUPS else self._tokens

    def acquire(self, acquisition: Acquisition) -> StorageResult:
        keys = dict.fromkeys(window.key for window in acquisition.windows)
        ttl = max(window.expiry for window in acquisition.windows)

        def operation(db: sqlite3.Connection, now: float) -> StorageResult:
            forget_entries(db, now)
            for key in keys:
                merge_entries(db, key, acquisition.known.get(key, ()), ttl, now)
            histories = {key: read_history(db, key, now) for key in keys}
            cooldown = longest(read_cooldown(db, key, now) for key in keys)
            wait = verdict(acquisition, histories, cooldown)
            if wait == 0:
                new = [Entry(name, 0.0) for name in acquisition.ids]
                for key in keys:
                    merge_entries(db, key, new, ttl, now)
                histories = {key: with_entries(past, acquisition.ids) for key, past in histories.items()}
            return StorageResult(wait, histories, cooldown)

        return self._file(next(iter(keys))).run(operation)

    def merge(self, key: str, entries: History, ttl: float) -> None:
        self._file(key).run(lambda db, now: merge_entries(db, key, entries, ttl, now))

    def history(self, key: str) -> History:
        return self._file(key).run(lambda db, now: read_history(db, key, now))

    def start_cooldown(self, key: str, cooldown: Cooldown) -> None:
        def operation(db: sqlite3.Connection, now: float) -> None:
            current = read_cooldown(db, key, now)
            if current is None or current.left() < cooldown.left():
                row = (key, now - cooldown.age, cooldown.seconds, cooldown.reason)
                db.execute("REPLACE INTO bars VALUES (?, ?, ?, ?)", row)

        self._file(key).run(operation)

    def cooldown(self, key: str) -> Cooldown | None:
        return self._file(key).run(lambda db, now: read_cooldown(db, key, now))

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        def operation(db: sqlite3.Connection, now: float) -> tuple[float, int]:
            ages = counted(Window(key, limit, expiry), read_history(db, key, now))
            return (now - ages[0] if ages else now, len(ages))

        return self._file(key).run(operation)

    def clear(self, key: str) -> None:
        """Forget the entries of *key*."""

        def operation(db: sqlite3.Connection, now: float) -> None:
            del now
            for table in ("entries", "bars"):
                db.execute(f"DELETE FROM {table} WHERE key = ?", (key,))  # noqa: S608

        self._file(key).run(operation)

    def reset(self) -> int:
        """Forget all entries; return how many keys there were."""

        def operation(db: sqlite3.Connection, now: float) -> int:
            del now
            (keys,) = db.execute("SELECT count(DISTINCT key) FROM entries").fetchone()
            db.execute("DELETE FROM entries")
            db.execute("DELETE FROM bars")
            return int(keys)

        return sum(file.run(operation) for file in (self._tokens, self._calls))

    def check(self) -> bool:
        """Say whether the file can be used."""
        try:
            return all(file.run(lambda db, now: True) for file in (self._tokens, self._calls))
        except StoreError:
            return False


class SqliteStore:
    """The store of the managers on one host.

    Args:
        path: The file; it is created at first use. Its directory must exist, on a local disk, and
            other users must not have write access to it.
        clock: Its seconds must be the same in all processes of the host.
        for_group: Whether the group of the directory is trusted with the file.

    Raises:
        ConfigurationError: Other users have access to the file, or the directory is no place for it.
    """

    blocking: ClassVar[bool] = True
    separate_calls: ClassVar[bool] = True

    def __init__(self, path: str, clock: StoreClock, *, for_group: bool = False) -> None:
        self._file = DatabaseFile(path, clock, for_group=for_group)
        calls = DatabaseFile(f"{os.path.realpath(path)}-calls", clock, for_group=for_group, durable=False)
        self.budget = SqliteStorage(self._file, calls)

    @property
    def host(self) -> str:
        """Names all that share the file: the processes of this boot of this host that see it at this place."""
        return self._file.host

    def after_fork(self) -> None:
        pass  # no connection crosses a fork

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        def operation(db: sqlite3.Connection, now: float) -> LeaseResult:
            slot = load_slot(db, key)
            result = slot.try_acquire_lease(now, owner=owner, known_version=known_version, lease=lease)
            if result.fencing_token is not None:
                save_slot(db, key, slot)
            return join_members(db, result, member_of(owner), now)

        return self._file.run(operation)

    def remove_member(self, member: str) -> None:
        self._file.run(lambda db, now: db.execute("DELETE FROM members WHERE member = ?", (member,)))

    def publish(self, key: str, *, fencing_token: int, content: str, ttl: float, write_delay: float = 0.0) -> bool:
        def operation(db: sqlite3.Connection, now: float) -> bool:
            slot = load_slot(db, key)
            published = slot.publish(
                now, fencing_token=fencing_token, content=content, ttl=ttl, write_delay=write_delay
            )
            if published:
                save_slot(db, key, slot)
                db.execute("DELETE FROM records WHERE keep_until < ? AND leased_until < ?", (now - DAY, now - DAY))
            return published

        return self._file.run(operation)

    def peek(self, key: str) -> StoreView:
        return self._file.run(lambda db, now: load_slot(db, key).peek(now))


def sqlite_store(url: str, clock: StoreClock) -> SqliteStore:
    """Return the store that *url* names: ``sqlite:////absolute/path``, ``?access=group`` if the group is trusted.

    Raises:
        ConfigurationError: It names none, or a path that another working directory makes another file of.
    """
    rest, _, query = url.removeprefix(_SCHEME).partition("?")
    path = unquote(rest[1:])
    if (
        not url.startswith(_SCHEME)
        or not rest.startswith("/")
        or "#" in url
        or (query or "access=owner") not in _ACCESS
    ):
        raise ConfigurationError(
            "store (PAY88_STORE) must be sqlite:////absolute/path, with ?access=group or without, and no host"
        )
    if not path or path == ":memory:" or "\0" in path or "\ufffd" in path:
        raise ConfigurationError("sqlite:// needs a file: use sqlite:////absolute/path, or memory:// without a file")
    if not Path(path).is_absolute():
        absolute = redact(_absolute(path) + url[len(_SCHEME) + len(rest) :])
        raise ConfigurationError(
            f"store {shorten(redact(url), 60)} is relative to the working directory: use {shorten(absolute, 90)}"
        )
    return SqliteStore(path, clock, for_group=query == "access=group")


def _absolute(path: str) -> str:
    return f"{_SCHEME}/{quote(str(Path.cwd() / path))}"
