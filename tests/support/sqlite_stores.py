"""What the tests of sqlite store and their neighbours share."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pay88_adapters.core.history import Window
from pay88_adapters.stores.base import StoreError
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import ManualClock

posix = pytest.mark.skipif(os.name != "posix", reason="no such permissions or signals here")


SECRET = "a-secret-token"


WINDOW = Window("key", 10, 60.0)


def publish(store: SqliteStore, key: str = "key", content: str = SECRET) -> int:
    """Replace the record."""
    fencing_token = store.try_acquire_lease(key, owner="publisher", known_version=-1, lease=10.0).fencing_token
    assert fencing_token is not None
    assert store.publish(key, fencing_token=fencing_token, content=content, ttl=100.0)
    return fencing_token


def take(store: SqliteStore) -> float:
    """Take one unit; return the wait."""
    return store.budget.acquire_all([WINDOW]).wait


def count(store: SqliteStore) -> int:
    """Return how many units are taken."""
    return len(store.budget.ages(WINDOW))


def change(path: Path, statement: str) -> None:
    """Write to the file behind the store's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)


def check_foreign(path: Path, operate: Callable[[], object]) -> None:
    """Check that the database of another program at *path* stays as it is, and that the error names it."""
    change(path, "CREATE TABLE theirs (x)")
    path.chmod(0o600)
    before = path.read_bytes()
    assert "another program" in fails(operate)
    assert path.read_bytes() == before


def fails(operate: Callable[[], object]) -> str:
    """Check that the store says so, without a secret; return what it says."""
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        operate()
    assert time.monotonic() - started < 6, "it hung"
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    return str(caught.value)


@contextmanager
def child(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run *script* in a process of its own, which ends with the test."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """Wait until it says something."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file will be."""
    return tmp_path / "store.db"


@pytest.fixture
def clock() -> ManualClock:
    """What the store's instants are on."""
    return ManualClock()


@pytest.fixture
def store(path: Path, clock: ManualClock) -> SqliteStore:
    """A store whose file is not there yet."""
    return SqliteStore(str(path), clock)
