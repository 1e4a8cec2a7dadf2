"""Waiting, waking and starting, for trio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import trio

T = TypeVar("T")


class TrioGate:
    """An event of one trio run."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._event = trio.Event()
        self._is_open = False

    def open(self) -> None:
        self._soon(self._open)

    def stir(self) -> None:
        self._soon(self._wake)

    def _soon(self, act: Callable[[], None]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(act, idempotent=True)

    def _open(self) -> None:
        self._is_open = True
        self._event.set()

    def _wake(self) -> None:
        if not self._is_open:
            self._event.set()
            self._event = trio.Event()

    async def wait(self, seconds: float) -> None:
        with trio.move_on_after(max(seconds, 0.0)):
            await self._event.wait()


class TrioRuntime:
    """The current trio run."""

    def __init__(self) -> None:
        self.key = trio.lowlevel.current_trio_token()

    def gate(self) -> TrioGate:
        return TrioGate(self.key)

    def spawn(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        trio.lowlevel.spawn_system_task(job, name="pay88-token-fetch")

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def bounded(self, work: Awaitable[T], seconds: float) -> T:
        with trio.move_on_after(seconds):
            return await work
        raise TimeoutError(f"no answer within {seconds:g} s")

    async def in_thread(self, work: Callable[[], T]) -> T:
        # Not trio's own limiter, which the caller's threads may have used up.
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
