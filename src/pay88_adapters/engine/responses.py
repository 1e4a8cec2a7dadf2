"""Reading response bodies up to a size and a time: any of them may be hostile."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Iterable
from math import inf

from pay88_adapters.core.wire import MAX_BODY


class BodyTimeout(TimeoutError):
    """A response body did not arrive in time."""


def capped(chunks: Iterable[bytes], bound: int = MAX_BODY, until: float = inf) -> bytes:
    """Join *chunks* up to one byte more than *bound*.

    Args:
        chunks: A response body, in pieces as they arrive.
        bound: Bytes.
        until: When the last piece must have arrived, on ``time.monotonic()``.

    Raises:
        BodyTimeout: It has not.
    """
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > bound:
            break
        check_time(until)
    return bytes(body[: bound + 1])


def check_time(until: float) -> float:
    """Return the real seconds until *until*, on ``time.monotonic()``; raise :class:`BodyTimeout` if there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise BodyTimeout("the response body did not arrive in time")
    return left


async def acapped(chunks: AsyncIterable[bytes], bound: int = MAX_BODY) -> bytes:
    """Join *chunks* up to one byte more than *bound*."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > bound:
            break
    return bytes(body[: bound + 1])
