"""Waiting, waking and starting, for threads, asyncio and trio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

from pay88_adapters.stores.realtime import monotonic

from .threads import Worker

T = TypeVar("T")
CHECK_INTERVAL = 0.25
"""Real seconds between checks of a waiting thread whether the event loop still runs."""


WOKEN_AT_ONCE = 50
"""Number of tasks that one batch wakes before the event loop handles its sockets and timers: a batch takes 1 ms."""


def never() -> bool:
    """Return ``False``."""
    return False


class WaitEvent(Protocol):
    """One-shot event, set from any thread."""

    def set(self) -> None:
        """Set the event and notify all waiters. Never raises, even if a waiter has ended."""
        ...

    def notify(self) -> None:
        """Notify the current waiters without setting the event. Never raises."""
        ...


class AsyncWaitEvent(WaitEvent, Protocol):
    """An event for the tasks of one event loop."""

    async def wait(self, seconds: float) -> None:
        """Wait until the event is set, or its waiters are notified, at most *seconds* (real ones)."""
        ...


class ThreadEvent:
    """An event for threads.

    Each waiter has a lock of its own and none is shared: a signal handler or a finalizer that interrupts one of these
    methods may call any of them.
    """

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._waiters: dict[int, threading.Lock] = {}
        self._is_set = False

    def set(self) -> None:
        self._is_set = True  # first: who joins from now on does not wait
        self.notify()

    def notify(self) -> None:
        for waiter in list(self._waiters.values()):
            with suppress(RuntimeError):  # woken already
                waiter.release()

    def wait(self, seconds: float, *, unless: Callable[[], bool] = never) -> None:
        """Wait until the event is set or notified, at most *seconds* (real ones); not if *unless* holds by then."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters[id(waiter)] = waiter
        try:
            if not self._is_set and not unless():
                waiter.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))
        finally:
            self._waiters.pop(id(waiter), None)


class AsyncRuntime(Protocol):
    """What the core needs of an event loop. Seconds are real ones."""

    @property
    def key(self) -> object:
        """Id of the event loop: waiters with the same key share an event."""
        ...

    @property
    def cancelled(self) -> type[BaseException]:
        """Exception class of a cancelled task."""
        ...

    @property
    def ends_run(self) -> tuple[type[BaseException], ...]:
        """Exception classes of a task that end the whole run: nothing may suppress them there."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether the loop runs, as far as another thread can detect."""
        ...

    def is_on(self, thread: int) -> bool:
        """Whether blocking the thread with this id blocks the loop."""
        ...

    def event(self) -> AsyncWaitEvent:
        """Return a new event for this loop."""
        ...

    def spawn(self, job: Callable[[], Coroutine[Any, Any, None]], ended: Callable[[], None]) -> None:
        """Run *job* in its own task, in an empty context; call *ended* after its end, also if it never begins.

        An exception of *job* in :attr:`ends_run` ends the run, like that of any task.
        """
        ...

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        ...

    async def with_timeout(self, work: Awaitable[T], seconds: float) -> T:
        """Await *work* in its own task; raise ``TimeoutError`` after *seconds*, even if *work* continues.

        A ``CancelledError`` of *work* that does not come from the caller is raised as a :class:`WorkCancelled`.
        """
        ...

    def run_from_thread(self, work: Awaitable[T], seconds: float) -> T:
        """Await *work* on this loop, for at most *seconds*; called from a thread.

        Raises:
            TimeoutError: It takes longer.
            LoopEnded: The event loop has stopped.
        """
        ...

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Run *work* in its own thread. A cancelled caller does not wait for it.

        Raises:
            NoThread: No thread can be started.
        """
        ...


class WorkCancelled(Exception):
    """The awaited code was cancelled, but not by its caller."""


class LoopEnded(Exception):
    """The event loop has stopped."""


class AsyncioEvent:
    """Futures of one event loop: a cancelled waiter removes only its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiters: set[asyncio.Future[None]] = set()
        self._is_set = False

    def set(self) -> None:
        self._soon(self._set)

    def notify(self) -> None:
        self._soon(self._wake)

    def _soon(self, act: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:  # the loop is closed, and its tasks with it
            self._waiters.clear()

    def _set(self) -> None:
        self._is_set = True
        self._wake()

    def _wake(self) -> None:
        self._wake_some(list(self._waiters))

    def _wake_some(self, waiters: list[asyncio.Future[None]]) -> None:
        """Wake one batch, so that the event loop gets to its sockets and timers before the next one."""
        if len(waiters) > WOKEN_AT_ONCE:  # first: an interruption of this batch must not lose the rest
            self._loop.call_soon(self._wake_some, waiters)
        for waiter in waiters[-WOKEN_AT_ONCE:]:
            _resolve(waiter)
        del waiters[-WOKEN_AT_ONCE:]

    async def wait(self, seconds: float) -> None:
        if self._is_set:
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

    cancelled = asyncio.CancelledError
    ends_run: tuple[type[BaseException], ...] = (SystemExit, KeyboardInterrupt)

    # The loop itself keeps only weak references to its tasks.
    _tasks: ClassVar[set[asyncio.Task[None]]] = set()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.key = loop
        self._thread = threading.get_ident()

    def event(self) -> AsyncioEvent:
        return AsyncioEvent(self.key)

    @property
    def is_running(self) -> bool:
        return self.key.is_running()

    def is_on(self, thread: int) -> bool:
        return thread == self._thread

    def spawn(self, job: Callable[[], Coroutine[Any, Any, None]], ended: Callable[[], None]) -> None:
        # An empty context: the fetch serves all callers and must not see the variables of the request that started it.
        for dead in [task for task in tuple(self._tasks) if task.get_loop().is_closed()]:
            self._tasks.discard(dead)
        task = contextvars.Context().run(self.key.create_task, job())
        _silence_destroy_warning(task)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                task.exception()  # it has ended the run, and asyncio need not log it
            ended()

        task.add_done_callback(done)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def with_timeout(self, work: Awaitable[T], seconds: float) -> T:
        result: list[Callable[[], T]] = []
        task = self.key.create_task(capture(work, result, asyncio.CancelledError))
        _silence_destroy_warning(task)
        try:
            await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            # A loop that ends cancels that task, too: a second time would be in the middle of its cleaning up.
            self.key.call_later(CHECK_INTERVAL, task.cancel)
            raise
        if result:
            return result[0]()
        if task.done():
            raise WorkCancelled("it was cancelled by itself")
        task.cancel()  # and no waiting: it may do what it likes with that
        raise TimeoutError(f"no response within {seconds:g} s")

    def run_from_thread(self, work: Awaitable[T], seconds: float) -> T:
        result: list[Callable[[], T]] = []
        job = capture(work, result, asyncio.CancelledError, ends_run=self.ends_run)
        try:
            future = asyncio.run_coroutine_threadsafe(job, self.key)
        except RuntimeError as exc:
            raise LoopEnded("the event loop is closed") from exc
        until = monotonic() + seconds
        while not result:
            try:
                future.result(min(max(until - monotonic(), 0.0), CHECK_INTERVAL))
            except concurrent.futures.TimeoutError:
                if monotonic() >= until:
                    future.cancel()
                    raise TimeoutError(f"no response within {seconds:g} s") from None
                if not self.is_running:
                    future.cancel()
                    raise LoopEnded("the event loop has stopped") from None
            except concurrent.futures.CancelledError:
                raise LoopEnded("the event loop has ended") from None
        return result[0]()

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        done: asyncio.Future[None] = self.key.create_future()
        result: list[Callable[[], T]] = []

        def run() -> None:
            capture_call(work, result)
            with suppress(RuntimeError):  # the loop is closed
                self.key.call_soon_threadsafe(_resolve, done)

        # Not the loop's executor: it may be full of the caller's work, and holds up the loop's end.
        Worker(run, "pay88-store", finishes=True).start()
        await done
        return result[0]()


async def capture(
    work: Awaitable[T],
    result: list[Callable[[], T]],
    cancelled: type[BaseException],
    *,
    ends_run: tuple[type[BaseException], ...] = (),
) -> None:
    """Await *work*; store its outcome as a function in *result*, unless it was cancelled.

    What ends the run is raised here, too: the caller may be in another thread.

    In debug mode asyncio logs the results and exceptions of tasks, whatever they quote: this one has neither.
    """
    try:
        returned = await work
    except cancelled:
        raise
    except BaseException as exc:
        result.append(partial(_raise, exc))
        if isinstance(exc, ends_run):
            raise
    else:
        result.append(lambda: returned)


def capture_call(work: Callable[[], T], result: list[Callable[[], T]]) -> None:
    """Call *work*; store its outcome as a function in *result*."""
    try:
        returned = work()
    except BaseException as exc:  # noqa: BLE001 - raised where it is awaited
        result.append(partial(_raise, exc))
    else:
        result.append(lambda: returned)


def _raise(exc: BaseException) -> NoReturn:
    raise exc


def _silence_destroy_warning(task: asyncio.Task[Any]) -> None:
    """Suppress asyncio's warning about *task* if its event loop is closed first."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather() does
