"""The package's own threads, and what happens where none can be started."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.abc
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio

from pay88_adapters import Credentials, TokenManager
from pay88_adapters.engine import threads
from pay88_adapters.engine.store_link import Link, _Operation
from pay88_adapters.engine.threads import Worker
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.testing import ManualClock

_RUNS: list[Callable[[Callable[[], Coroutine[Any, Any, None]]], None]] = [lambda main: asyncio.run(main()), trio.run]


def _no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def manager(tmp_path: Path) -> TokenManager:
    """A manager with a store that may block."""
    tmp_path.chmod(0o700)
    return TokenManager(Credentials("sk_test_1", "MCH-1"), store=f"sqlite:///{tmp_path}/store.db")


@pytest.mark.parametrize("run", _RUNS, ids=["asyncio", "trio"])
def test_a_store_operation_that_raises_runs_once(
    run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None], manager: TokenManager
) -> None:
    """On a thread of its own: a second time, it would block the event loop."""
    threads: list[threading.Thread] = []

    def operation() -> None:
        threads.append(threading.current_thread())
        raise RuntimeError("a bug")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="a bug"):
            await manager.async_runner.run_store_operation(operation)

    run(main)
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


@pytest.mark.parametrize("run", _RUNS, ids=["asyncio", "trio"])
def test_a_store_operation_runs_where_no_thread_can_be_started(
    run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
    manager: TokenManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It finds out by itself that it must not block."""

    async def main() -> None:
        monkeypatch.setattr(threading.Thread, "start", _no_thread)
        assert await manager.async_runner.run_store_operation(threading.current_thread) is threading.current_thread()

    run(main)


def test_rule_24_a_store_works_where_daemon_threads_are_disabled(
    manager: TokenManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in some subinterpreters."""
    real = threading.Thread.__init__

    def init(thread: threading.Thread, *args: Any, daemon: bool | None = None, **more: Any) -> None:
        if daemon:
            raise RuntimeError("daemon threads are disabled in this interpreter")
        real(thread, *args, daemon=daemon, **more)

    monkeypatch.setattr(threading.Thread, "__init__", init)
    store = manager._state.settings.store_client
    assert store.try_acquire_lease("k", owner="o", known_version=0, lease=5.0).fencing_token
    assert not store.degraded


@pytest.mark.parametrize(("owner", "step"), [(threading.Thread, "start"), (_Operation, "result_in_time")])
def test_rule_24_an_interrupted_start_of_a_store_operation_is_no_slow_operation(
    monkeypatch: pytest.MonkeyPatch, owner: type[Any], step: str
) -> None:
    """Ctrl-C may strike before its thread exists: later operations must not wait for it."""

    def interrupted(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    store = MemoryStore(ManualClock().now)
    monkeypatch.setattr(store, "blocking", True)
    link = Link(store, ManualClock())
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            link.attempt(lambda _: None)
    assert not link._running
    assert link.attempt(lambda _: 1) == 1


class SlowImport(importlib.abc.MetaPathFinder):
    """Imports one module slowly, as from a file system that hangs."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.began, self.may_end = threading.Event(), threading.Event()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._name:
            self.began.set()
            self.may_end.wait()


def test_rule_17_the_import_of_a_driver_delays_no_other_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the file system of a store: no lock is held meanwhile."""
    slow = SlowImport("pay88_adapters.stores.redis")
    monkeypatch.delitem(sys.modules, "pay88_adapters.stores.redis", raising=False)
    monkeypatch.setattr(sys, "meta_path", [slow, *sys.meta_path])
    credentials, url = Credentials("sk_test_1", "MCH-1"), "redis://127.0.0.1:9"
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(TokenManager, credentials, store=url)
            slow.began.wait()
            pool.submit(TokenManager, credentials, clock=ManualClock()).result(30)
        finally:
            slow.may_end.set()
        other = TokenManager(credentials, store=url)
        assert first.result()._state.settings.store_client is other._state.settings.store_client


class WatchedLock:
    """A reentrant lock that says when a thread is about to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.waiting: dict[threading.Thread, threading.Event] = {}

    def acquire(self, blocking: bool = True) -> bool:
        """Acquire it."""
        if event := self.waiting.get(threading.current_thread()):
            event.set()
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """Release it."""
        self._lock.release()


def test_rule_17_a_thread_that_ends_while_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may give its id to a thread of the caller's: it must not end before the interruption."""
    done, real = threading.Event(), ctypes.c_ulong
    worker = Worker(done.wait, "worker", finishes=False)
    lock: Any = WatchedLock()
    lock.waiting[worker] = at_the_lock = threading.Event()
    worker._interruption = lock

    def ends_now(ident: int) -> Any:  # between the check whether it is alive and the interruption
        done.set()
        at_the_lock.wait()
        assert worker.is_alive()
        return real(ident)

    worker.start()
    monkeypatch.setattr(ctypes, "c_ulong", ends_now)
    worker.interrupt()
    worker.join()
    assert worker not in threads._workers


def test_rule_17_a_thread_whose_work_is_done_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever thread has its id, this one among them."""
    done = threading.Event()
    worker = Worker(lambda: None, "worker", finishes=False)
    monkeypatch.setattr(worker, "is_alive", lambda: not done.is_set())  # as before the very end of a thread
    monkeypatch.setattr(ctypes, "c_ulong", None)
    worker.start()
    worker.join()
    worker.interrupt()
    done.set()
    worker.interrupt()
    assert not worker._interruption.acquire(blocking=False)


def test_rule_17_an_interruption_that_is_itself_interrupted_keeps_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler may raise at any instruction: the thread ends nevertheless."""

    def interrupts(_: int) -> None:
        raise KeyboardInterrupt

    done = threading.Event()
    worker = Worker(done.wait, "worker", finishes=False)
    worker.start()
    monkeypatch.setattr(ctypes, "c_ulong", interrupts)
    with pytest.raises(KeyboardInterrupt):
        worker.interrupt()
    done.set()
    worker.join()
