"""The managers that a careful user writes by hand: a lock, and a second look once it is held."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

from .service import Grant


class Manager:
    """For threads."""

    def __init__(self, ask: Callable[[], Grant], margin: float) -> None:
        self._ask, self._margin = ask, margin
        self._lock = threading.Lock()
        self._headers: dict[str, str] = {}
        self._until = 0.0

    def headers(self) -> dict[str, str]:
        """Return the two headers; fetch a token when there is none or it is too old."""
        if time.monotonic() < self._until:
            return self._headers
        with self._lock:
            now = time.monotonic()
            if now >= self._until:
                grant = self._ask()
                self._headers = grant.headers()
                self._until = now + grant.expires_in - self._margin
            return self._headers

    def invalidate(self, headers: dict[str, str]) -> None:
        """Discard a rejected token, and no newer one."""
        with self._lock:
            if headers is self._headers:
                self._until = 0.0


class AsyncManager:
    """For tasks."""

    def __init__(self, ask: Callable[[], Awaitable[Grant]], margin: float) -> None:
        self._ask, self._margin = ask, margin
        self._lock = asyncio.Lock()
        self._headers: dict[str, str] = {}
        self._until = 0.0

    async def headers(self) -> dict[str, str]:
        """Return the two headers; fetch a token when there is none or it is too old."""
        if time.monotonic() < self._until:
            return self._headers
        async with self._lock:
            now = time.monotonic()
            if now >= self._until:
                grant = await self._ask()
                self._headers = grant.headers()
                self._until = now + grant.expires_in - self._margin
            return self._headers

    def invalidate(self, headers: dict[str, str]) -> None:
        """Discard a rejected token, and no newer one."""
        if headers is self._headers:
            self._until = 0.0


class Floor:
    """The least that knows a token's age: a clock and an attribute, in a method."""

    def __init__(self, grant: Grant) -> None:
        self._headers = grant.headers()
        self._until = time.monotonic() + grant.expires_in

    def headers(self) -> dict[str, str]:
        """Return the two header fields."""
        if time.monotonic() < self._until:
            return self._headers
        raise RuntimeError("the token is too old")

    async def aheaders(self) -> dict[str, str]:
        """Return the two header fields."""
        if time.monotonic() < self._until:
            return self._headers
        raise RuntimeError("the token is too old")
