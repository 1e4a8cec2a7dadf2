"""Requests that wait at the server until a test releases them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

from pay88_adapters.stores.realtime import monotonic


class Hold:
    """Keeps requests waiting at the server.

    A held request has been read and is in the journal, but the service has not decided on it: changes while it
    waits (a token is rejected, a fault is added) apply. If the client disconnects, its request is decided all the
    same once it is released.

    As a context manager it releases everything at the end of the block.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._released = False
        self.on_release: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<Hold held={self.held} released={self._released}>"

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    @property
    def held(self) -> int:
        """Number of requests that wait now."""
        return len(self._waiting)

    def wait_for(self, count: int, timeout: float = 10) -> None:
        """Block until *count* requests are held.

        Raises:
            TimeoutError: They did not within *timeout* real seconds.
        """
        deadline = monotonic() + timeout
        with self._changed:
            while len(self._waiting) < count:
                if not self._changed.wait(deadline - monotonic()) and monotonic() >= deadline:
                    raise TimeoutError(f"{len(self._waiting)} of {count} requests are held after {timeout} s")

    def release(self, count: int | None = None) -> None:
        """Release all requests and hold no more; or release only the first *count*."""
        with self._changed:
            if count is None:
                self._released = True
                count = len(self._waiting)
            freed = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        if self._released:
            self.on_release()
        for loop, future in freed:
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # the emulator was stopped, and its requests have ended
                return

    async def passed(self) -> None:
        """Wait to be released. Called by the server."""
        loop = asyncio.get_running_loop()
        with self._changed:
            if self._released:
                return
            waiter = (loop, loop.create_future())
            self._waiting.append(waiter)
            self._changed.notify_all()
        try:
            await waiter[1]
        finally:
            with self._changed:
                if waiter in self._waiting:  # cancelled, not released
                    self._waiting.remove(waiter)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
