"""What the tests of redis store and their neighbours share."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Window
from pay88_adapters.engine.store_link import OPERATION_TIMEOUT
from pay88_adapters.stores.base import StoreError
from pay88_adapters.stores.redis import RedisStore, redis_store
from support.leaks import RootLogCapture, error_texts, leaked
from support.servers import Valkey

PASSWORD = "a-password-of-the-store"


TOKEN = "a-token-to-keep-secret"


MINUTE, HOUR = Window("minute", 10, 65.0), Window("hour", 100, 3605.0)


def open_store(server: Valkey, query: str = "", speed: float = 1) -> RedisStore:
    """Return a store on *server*."""
    return redis_store(server.url + query, Clock(speed))


def lead(store: RedisStore, key: str = "key", *, owner: str = "a", known_version: int = 0, lease: float = 30.0) -> int:
    """Take the lease; return the fence."""
    fencing_token = store.try_acquire_lease(key, owner=owner, known_version=known_version, lease=lease).fencing_token
    assert fencing_token is not None
    return fencing_token


def operations(store: RedisStore) -> list[Callable[[], object]]:
    """Return all operations of a store, each of which may fail."""
    return [
        lambda: store.budget.acquire_all([MINUTE, HOUR]),
        lambda: store.budget.add(MINUTE, [1.0]),
        lambda: store.budget.ages(MINUTE),
        lambda: store.budget.get("minute"),
        lambda: store.budget.get_moving_window("minute", 10, 60),
        lambda: store.try_acquire_lease("key", owner="a", known_version=0, lease=30.0),
        lambda: store.publish("key", fencing_token=1, content=TOKEN, ttl=50.0),
        lambda: store.peek("key"),
        lambda: store.remove_member("a"),
    ]


def do_all(asks: Iterable[Callable[[], object]]) -> None:
    """Call each."""
    for ask in asks:
        ask()


def fails(ask: Callable[[], object], within: float = OPERATION_TIMEOUT) -> str:
    """Check that *ask* is a `StoreError`, soon and without a secret; return what it says."""
    before = time.monotonic()
    with RootLogCapture() as eavesdropper, pytest.raises(StoreError) as raised:
        ask()
    assert time.monotonic() - before < within
    texts = [*error_texts(raised.value), *eavesdropper.lines]
    assert not leaked([PASSWORD, TOKEN], texts)
    return str(raised.value)


@pytest.fixture
def nothing_is_left_open() -> Iterator[None]:
    """Make whatever was not closed warn here, and not in a later test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One server for the tests that leave it as it was."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def server(running: Valkey) -> Valkey:
    """The same, empty."""
    running.command("FLUSHALL")
    return running


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., Valkey]]:
    """Make servers for one test."""
    with ExitStack() as stack:

        def make(**options: str) -> Valkey:
            return stack.enter_context(Valkey(tmp_path, binary=None, **options))

        yield make
