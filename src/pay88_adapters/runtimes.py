"""Waiting, waking and starting, for threads, asyncio and trio."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

T = TypeVar("T")


class Gate(Protocol):
    """Opened once, from any thread; whoever waits at it goes on."""

    def open(self) -> None:
        """Let everybody through, now and later. Never raises, whatever became of the waiters."""
        ...

    def stir(self) -> None:
        """Wake who waits now, and stay closed. Never raises, either."""
        ...


class AsyncGate(Gate, Protocol):
    """A gate for the tasks of one event loop."""

    async def wait(self, seconds: float) -> None:
        """Wait until the gate is open, or stirred, at most *seconds* (real ones)."""
        ...


class ThreadGate:
    """A gate for threads."""

    def __init__(self) -> None:
        self._moved = threading.Condition(threading.Lock())
        self._is_open = False

    def open(self) -> None:
        with self._moved:
            self._is_open = True
            self._moved.notify_all()

    def stir(self) -> None:
        with self._moved:
            self._moved.notify_all()

    def wait(self, seconds: float, *, unless: Callable[[], bool] = bool) -> None:
        """Wait until the gate is open, or stirred, at most *seconds* (real ones); not if *unless* holds by then."""
        with self._moved:
            if not self._is_open and not unless():
                self._moved.wait(seconds)


class AsyncRuntime(Protocol):
    """What the core needs of an event loop. Seconds are real ones."""

    @property
    def key(self) -> object:
        """Names the loop: waiters with the same key share a gate."""
        ...

    def gate(self) -> AsyncGate:
        """Return a new gate for this loop."""
        ...

    def spawn(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run *job* in a task of its own, in an empty context."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        ...

    async def bounded(self, work: Awaitable[T], seconds: float) -> T:
        """Await *work*; raise ``TimeoutError`` after *seconds*."""
        ...

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Let a thread of its own do *work*. Who is cancelled meanwhile does not wait for it."""
        ...


class AsyncioGate:
    """Futures of one loop: a cancelled waiter takes only its own away."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiters: set[asyncio.Future[None]] = set()
        self._is_open = False

    def open(self) -> None:
        self._soon(self._open)

    def stir(self) -> None:
        self._soon(self._wake)

    def _soon(self, act: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:  # the loop is closed, and its tasks with it
            self._waiters.clear()

    def _open(self) -> None:
        self._is_open = True
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            _resolve(waiter)

    async def wait(self, seconds: float) -> None:
        if self._is_open:
            return
        waiter = self._loop.create_future()
        timer = self._loop.call_later(max(seconds, 0.0), _resolve, waiter)
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class AsyncioRuntime:
    """The running asyncio loop."""

    # The loop itself keeps only weak references to its tasks.
    _tasks: ClassVar[set[asyncio.Task[None]]] = set()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.key = loop

    def gate(self) -> AsyncioGate:
        return AsyncioGate(self.key)

    def spawn(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # An empty context: the fetch serves everybody and must not see the leader's variables.
        for dead in [task for task in tuple(self._tasks) if task.get_loop().is_closed()]:
            self._tasks.discard(dead)
        task = contextvars.Context().run(self.key.create_task, job())
        _quiet(task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def bounded(self, work: Awaitable[T], seconds: float) -> T:
        try:
            async with _timeout(seconds):
                return await work
        except asyncio.TimeoutError:  # not the builtin one on Python 3.10
            raise TimeoutError(f"no answer within {seconds:g} s") from None

    async def in_thread(self, work: Callable[[], T]) -> T:
        done: asyncio.Future[T] = self.key.create_future()

        def tell(result: Callable[[], None]) -> None:
            if not done.done():
                result()

        def run() -> None:
            try:
                answer = work()
            except BaseException as exc:  # noqa: BLE001 - raised where it is awaited
                told = partial(done.set_exception, exc)
            else:
                told = partial(done.set_result, answer)
            with suppress(RuntimeError):  # the loop is closed
                self.key.call_soon_threadsafe(tell, told)

        # Not the loop's executor: it may be full of the caller's work, and holds up the loop's end.
        threading.Thread(target=run, name="pay88-store", daemon=True).start()
        return await done


# Not asyncio.wait_for(): before Python 3.12 it makes a task, which a loop that ends cancels a second time, in the
# middle of its cleaning up.
if sys.version_info >= (3, 11):
    _timeout = asyncio.timeout
else:

    @asynccontextmanager
    async def _timeout(seconds: float) -> AsyncGenerator[None, None]:
        task, expired = asyncio.current_task(), threading.Event()
        assert task is not None

        def expire() -> None:
            expired.set()
            task.cancel()

        timer = asyncio.get_running_loop().call_later(seconds, expire)
        try:
            yield
        except asyncio.CancelledError:
            if expired.is_set():
                raise asyncio.TimeoutError from None
            raise
        finally:
            timer.cancel()


def _quiet(task: asyncio.Task[Any]) -> None:
    """Let *task* die without a word if its loop is closed under it."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather() does


def current_runtime() -> AsyncRuntime:
    """Return the event loop this code runs on.

    Raises:
        RuntimeError: None does.
    """
    try:
        return AsyncioRuntime(asyncio.get_running_loop())
    except RuntimeError:
        pass
    try:
        from . import runtime_trio  # trio is imported only where nothing else can be running
    except ModuleNotFoundError:
        raise RuntimeError("no event loop is running") from None
    return runtime_trio.TrioRuntime()
