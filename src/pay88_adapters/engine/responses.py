"""Response bodies with a limit of size and time: any response may be hostile."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from math import inf

from pay88_adapters.core.wire import MAX_BODY, OK
from pay88_adapters.stores.realtime import monotonic


class BodyTimeout(TimeoutError):
    """A response body did not arrive in time."""


def read_limited(chunks: Iterable[bytes], bound: int = MAX_BODY, until: float = inf) -> bytes:
    """Join *chunks* up to one byte more than *bound*.

    Args:
        chunks: A response body, in pieces as they arrive.
        bound: Bytes.
        until: Deadline for the last piece, in seconds on a monotonic clock.

    Raises:
        BodyTimeout: The body was not complete by then.
    """
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > bound:
            break
        remaining_seconds(until)
    return bytes(body[: bound + 1])


def tolerated(status: int, errors: tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
    """Return which of *errors* may end the reading of a token response: an error counts without its body."""
    return () if status == OK else errors


def remaining_seconds(until: float) -> float:
    """Return the real seconds until *until*, on a monotonic clock; raise :class:`BodyTimeout` if there are none."""
    left = until - monotonic()
    if left <= 0:
        raise BodyTimeout("the response body did not arrive in time")
    return left


async def aread_limited(chunks: AsyncIterable[bytes], bound: int = MAX_BODY) -> bytes:
    """Join *chunks* up to one byte more than *bound*."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > bound:
            break
    return bytes(body[: bound + 1])
