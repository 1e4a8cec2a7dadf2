"""The stores, each with time for it to pass and a way for other processes to reach it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar

from pay88_adapters.clock import Clock
from pay88_adapters.stores.base import Store
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.stores.redis import redis_store
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import ManualClock
from support.servers import Valkey


class Scene(ABC):
    """A store of one kind, empty at first.

    Tests measure durations in *units*, each as long as the kind needs to distinguish them.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]
    """Whether only :meth:`advance` moves the time."""
    shared: ClassVar[bool]
    """Whether other processes can reach the store."""
    unit: ClassVar[float]
    """Seconds. On a real clock, advancing by one really takes so long."""

    store: Store

    @abstractmethod
    def __init__(self, directory: Path, stack: ExitStack) -> None:
        """Make it; *stack* is closed when the test has ended."""

    @abstractmethod
    def advance(self, seconds: float) -> None:
        """Let time pass."""

    def opener(self) -> Callable[[], Store]:
        """Return a picklable function that opens the same store again, on the host's clock."""
        raise NotImplementedError(f"{self.name} is not shared")


class MemoryScene(Scene):
    """One process's memory."""

    name = "memory"
    exact = True
    shared = False
    unit = 60.0

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock.now)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


class SqliteScene(Scene):
    """A file of its own."""

    name = "sqlite"
    exact = True
    shared = True
    unit = 60.0

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.clock = ManualClock()
        self._path = directory / "store.db"
        self.store = SqliteStore(str(self._path), self.clock)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def opener(self) -> Callable[[], Store]:
        return partial(open_sqlite, str(self._path.with_name("raced.db")))


def open_sqlite(path: str) -> Store:
    """Open the file on the host's clock."""
    return SqliteStore(path, Clock())


class RealTime(Scene):
    """A store on a clock that cannot be moved."""

    exact = False
    unit = 0.5

    def advance(self, seconds: float) -> None:
        time.sleep(seconds)


class RedisScene(RealTime):
    """A server of its own."""

    name = "redis"
    shared = True

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._url = stack.enter_context(Valkey(directory)).url
        self.store = open_redis(self._url)

    def opener(self) -> Callable[[], Store]:
        return partial(open_redis, self._url)


def open_redis(url: str) -> Store:
    """Open the server's only database."""
    return redis_store(url, Clock())


SCENES: tuple[type[Scene], ...] = (MemoryScene, SqliteScene, RedisScene)
