"""Waiting, waking and starting, for trio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import trio

from pay88_adapters.stores.realtime import monotonic

from .runtimes import CHECK_INTERVAL, WOKEN_AT_ONCE, LoopEnded, ThreadEvent, WorkCancelled, capture, capture_call
from .threads import Worker

T = TypeVar("T")


class TrioEvent:
    """An event of one trio run."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._waiters = trio.lowlevel.ParkingLot()
        self._is_set = False

    def set(self) -> None:
        self._soon(self._set)

    def notify(self) -> None:
        self._soon(self._wake)

    def _soon(self, act: Callable[[], None]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(act, idempotent=True)

    def _set(self) -> None:
        self._is_set = True
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, trio.lowlevel.ParkingLot()
        self._wake_some(waiters)

    def _wake_some(self, waiters: trio.lowlevel.ParkingLot) -> None:
        """Wake one batch, so that the event loop gets to its sockets and timers before the next one."""
        if len(waiters) > WOKEN_AT_ONCE:  # first: what interrupts this batch must not lose the others
            self._token.run_sync_soon(self._wake_some, waiters)
        waiters.unpark(count=WOKEN_AT_ONCE)

    async def wait(self, seconds: float) -> None:
        with trio.move_on_after(max(seconds, 0.0)):
            if self._is_set:
                await trio.lowlevel.checkpoint()
            else:
                await self._waiters.park()


class TrioRuntime:
    """The current trio run."""

    cancelled = trio.Cancelled
    ends_run: tuple[type[BaseException], ...] = ()  # it would be an internal error of trio's: see spawn()

    def __init__(self) -> None:
        self.key = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._host = _running_asyncio_loop()

    def event(self) -> TrioEvent:
        return TrioEvent(self.key)

    @property
    def is_running(self) -> bool:
        # A run ends with its tasks cancelled, and is never suspended, unless it is the guest of another loop.
        return self._host is None or self._host.is_running()

    def is_on(self, thread: int) -> bool:
        return thread == self._thread

    def spawn(self, job: Callable[[], Coroutine[Any, Any, None]], ended: Callable[[], None]) -> None:
        async def run() -> None:
            try:
                await job()
            except GeneratorExit:  # collected with its run, perhaps by a thread that holds a lock
                raise
            except trio.Cancelled:
                ended()
                raise
            except BaseException:  # noqa: BLE001, S110 - trio would end the whole run with an internal error
                pass
            ended()

        trio.lowlevel.spawn_system_task(run, name="pay88-token-fetch")

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def with_timeout(self, work: Awaitable[T], seconds: float) -> T:
        result: list[Callable[[], T]] = []
        ended, scope = trio.Event(), trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    await capture(work, result, trio.Cancelled)
            finally:
                ended.set()

        trio.lowlevel.spawn_system_task(run, name="pay88-bounded")
        try:
            with trio.move_on_after(seconds):
                await ended.wait()
        finally:
            scope.cancel()  # and no waiting: it may do what it likes with that
        if result:
            return result[0]()
        if ended.is_set():
            raise WorkCancelled("it was cancelled by itself")
        raise TimeoutError(f"no response within {seconds:g} s")

    def run_from_thread(self, work: Awaitable[T], seconds: float) -> T:
        # Not trio.from_thread.run(): the wait must end if the loop is blocked, or a guest of one that has stopped.
        result: list[Callable[[], T]] = []
        event, scope, ended = ThreadEvent(), trio.CancelScope(), False

        def end() -> None:
            nonlocal ended
            ended = True
            event.set()

        async def run() -> None:
            try:
                with scope:
                    await capture(work, result, trio.Cancelled)
            finally:
                end()

        def start() -> None:
            try:
                trio.lowlevel.spawn_system_task(run, name="pay88-bounded")
            except RuntimeError:  # the run is about to end
                end()

        try:
            self.key.run_sync_soon(start)
            until = monotonic() + seconds
            while not ended and (left := until - monotonic()) > 0 and self.is_running:
                event.wait(min(left, CHECK_INTERVAL))
            overdue = not ended and self.is_running  # known before the cancellation, which ends it
            if not ended:
                self.key.run_sync_soon(scope.cancel)
        except trio.RunFinishedError as exc:
            raise LoopEnded("the trio run has ended") from exc
        if result:
            return result[0]()
        if overdue:
            raise TimeoutError(f"no response within {seconds:g} s")
        raise LoopEnded("the trio run has ended")

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        done = trio.Event()
        result: list[Callable[[], T]] = []

        def run() -> None:
            capture_call(work, result)
            with suppress(trio.RunFinishedError):
                self.key.run_sync_soon(done.set)

        # Not a thread of trio's: the process waits for these for a moment when it exits.
        Worker(run, "pay88-store", finishes=True).start()
        await done.wait()
        return result[0]()


def _running_asyncio_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def is_current() -> bool:
    """Whether a task of trio's runs this code."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True
