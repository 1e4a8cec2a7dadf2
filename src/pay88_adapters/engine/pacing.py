"""Client-side rate limiting: keep API requests within 88Pay's documented limits (rule 22)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute

from pay88_adapters.core.constants import TOO_MANY_REQUESTS
from pay88_adapters.core.endpoint import RATE_LIMITED_GROUPS
from pay88_adapters.core.history import StorageResult, wait_for
from pay88_adapters.core.wire import parse_rate_limit, parse_retry_after
from pay88_adapters.stores.base import EntryStorage

from .budget import AtomicMovingWindow, merchant_digest
from .forks import survive_forks

CALL_LIMITS: tuple[RateLimitItem, ...] = (RateLimitItemPerMinute(60), RateLimitItemPerHour(1000))
"""Limits by group of API requests, as 88Pay documents them."""

_LONGEST = 3600.0  # seconds; no limit has a longer window
_GUARD = 1.0  # seconds of latency difference between two requests
_LONGEST_ATTEMPT = 600.0  # seconds after which an unfinished attempt no longer counts
_LOST_AFTER = 10.0  # seconds until an unfinished permit expires; a store operation fails earlier

JITTER = 0.25  # seconds over which concurrent waiters are spread


@dataclass(slots=True)
class ServerLimit:
    """Requests that remain according to the service, and how long this value is valid."""

    remaining: int
    until: float


@dataclass(eq=False, slots=True)
class RateLimitPermit:
    """A permit to acquire a unit and to send one attempt. The sender reports the end of the attempt."""

    group: str
    server_limit: ServerLimit | None
    lost_at: float
    taken: bool = False


class Denied(NamedTuple):
    """There is no permit."""

    wait: float
    """Seconds until an acquisition can succeed."""
    reason: str = ""
    """Why, unless the rate limit is reached."""


_FREE = Denied(0.0)


class Pacing:
    """The API rate limits of one merchant.

    The storage counts units by the time of their acquisition, for all managers that share it. An attempt may reach the
    service later, because it waits for a connection. So this object counts by the end of the attempt: until then it may
    be sent at any moment. It also holds the limits that the service reports, which include other clients, and the
    concurrent storage operations. The manager's lock guards it.

    Args:
        storage: Storage of the entries.
        base_url: Requests are counted per base URL and merchant.
        max_concurrent: Maximum concurrent storage operations per group, for a slow storage.
    """

    def __init__(self, storage: EntryStorage, base_url: str, *, max_concurrent: int | None = None) -> None:
        self._strategy = AtomicMovingWindow(storage, guard=_GUARD)
        self._base_url = base_url
        self._max_concurrent = max_concurrent
        self._permits: set[RateLimitPermit] = set()
        self._ended: dict[str, list[float]] = {}  # ends of attempts, by group
        self._server_limits: dict[str, ServerLimit] = {}
        self._full: dict[str, tuple[float, str]] = {}  # until when the storage grants nothing, and why
        survive_forks(self)

    def after_fork(self) -> None:
        """Continue without the attempts of the parent's threads."""
        self._permits.clear()

    def reserve(self, group: str, now: float) -> RateLimitPermit | Denied:
        """Return the permit to :meth:`acquire` a unit, or how long there is none.

        A permit consumes one of the remaining requests that the service reported.
        """
        denied, concurrent = self._denied(group, now)
        if denied.wait > 0:
            return denied
        if self._max_concurrent is not None and concurrent >= self._max_concurrent:
            return Denied(JITTER / 10, f"the store is slow: {concurrent} requests wait for it")
        server_limit = self._server_limits.get(group)
        if server_limit is not None:
            server_limit.remaining -= 1
        permit = RateLimitPermit(group, server_limit, now + _LOST_AFTER)
        self._permits.add(permit)
        return permit

    def _denied(self, group: str, now: float) -> tuple[Denied, int]:
        """Return how long there is no permit, as far as is known, and the number of concurrent store operations."""
        for lost in [permit for permit in tuple(self._permits) if now >= permit.lost_at]:
            self._permits.discard(lost)
        permits = [permit for permit in tuple(self._permits) if permit.group == group]
        full_until, reason = self._full.get(group, (now, ""))
        denied = max(_FREE, Denied(full_until - now, reason), Denied(self._full_for(group, len(permits), now)))
        server_limit = self._server_limits.get(group)
        if server_limit is not None and now >= server_limit.until:
            del self._server_limits[group]
        elif server_limit is not None and server_limit.remaining <= 0:
            denied = max(denied, Denied(server_limit.until - now))
        return denied, sum(not permit.taken for permit in permits)

    def expected_wait(self, group: str, merchant_id: str, now: float) -> float:
        """Return the seconds until a unit is available, as far as this process knows.

        Runs under the manager's lock, so the storage must not block: a manager has one in memory, or a local copy of
        a shared one.
        """
        names = self._names(group, merchant_id)
        windows = [self._strategy.window(item, *names) for item in CALL_LIMITS]
        waits = [wait_for(window, self._strategy.ages(window), 1) for window in windows]
        return max(self._denied(group, now)[0].wait, *waits)

    def acquire(self, group: str, merchant_id: str) -> StorageResult:
        """Acquire a unit of every limit of *group*, or none. May block for one store operation."""
        names = self._names(group, merchant_id)
        return self._strategy.acquire_all([(item, names) for item in CALL_LIMITS])

    def left(self, group: str, merchant_id: str) -> dict[str, int]:
        """Return the remaining requests by limit, such as ``{"60 per 1 minute": 59}``."""
        names = self._names(group, merchant_id)
        return {str(item): self._strategy.left(item, *names) for item in CALL_LIMITS}

    def record_result(self, permit: RateLimitPermit, result: StorageResult, now: float) -> None:
        """Record the result of :meth:`acquire`. With a unit, the attempt is in progress until :meth:`end_attempt`."""
        if not result.wait:
            permit.taken, permit.lost_at = True, now + _LONGEST_ATTEMPT
            return
        self._permits.discard(permit)
        self._full[permit.group] = now + result.wait, result.reason
        if permit.server_limit is not None:
            permit.server_limit.remaining += 1

    def end_attempt(self, permit: RateLimitPermit, now: float) -> None:
        """Record the end of an attempt, after which it cannot reach the service any more. Needs no lock."""
        self._permits.discard(permit)
        self._ended.setdefault(permit.group, []).append(now)

    def cancel(self, permit: RateLimitPermit) -> None:
        """Record that it is unknown whether a unit was consumed. Needs no lock."""
        self._permits.discard(permit)

    def _full_for(self, group: str, in_progress: int, now: float) -> float:
        """Return the seconds until one more attempt fits, if all attempts in progress were sent only now."""
        ended, full_for = self._ended.setdefault(group, []), 0.0
        for item in CALL_LIMITS:
            seconds = self._strategy.expiry(item)
            first = bisect_right(ended, now - seconds)  # of the counted attempts
            too_many = in_progress + len(ended) - first - item.amount
            if too_many >= 0:
                last = first + too_many  # the last attempt that has to leave the window
                full_for = max(full_for, ended[last] + seconds - now if last < len(ended) else seconds)
        del ended[: bisect_right(ended, now - _LONGEST - _GUARD)]
        return full_for

    def record_response(self, group: str, status: int, headers: Mapping[str, str], now: float, wall: float) -> None:
        """Record the remaining requests from the ``X-RateLimit-*`` headers, or the ``Retry-After`` of a 429.

        Responses may arrive out of order: within one window the smallest number counts.
        """
        if group not in RATE_LIMITED_GROUPS:
            return
        retry_after = parse_retry_after(headers, wall) if status == TOO_MANY_REQUESTS else None
        reported = (0, retry_after) if retry_after is not None and retry_after > 0 else parse_rate_limit(headers, wall)
        if reported is None or reported[1] <= 0:
            return
        remaining, until = reported[0], now + min(reported[1], _LONGEST)
        server_limit = self._server_limits.get(group)
        if server_limit is None or now >= server_limit.until or remaining < server_limit.remaining:
            self._server_limits[group] = ServerLimit(remaining, until)
        elif remaining <= 0:
            server_limit.until = max(server_limit.until, until)

    def _names(self, group: str, merchant_id: str) -> tuple[str, str]:
        return group, merchant_digest(self._base_url, merchant_id)
