"""How an attempt of an API request gets its permit, from the circuit breaker and the rate limits (rules 22 and 23)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from pay88_adapters.core.breaker import ClosedPermit, Permit, Rejected
from pay88_adapters.core.endpoint import RATE_LIMITED_GROUPS, group_of
from pay88_adapters.core.errors import CircuitOpen, RequestBudgetExhausted, in_seconds, shorten
from pay88_adapters.core.events import CallWaited
from pay88_adapters.core.history import StorageResult
from pay88_adapters.core.retry import ConnectionFailure

from .effects import AcquireTokenFlow, R, RequestFlow, RequestInfo, Sleep, StoreOperation
from .pacing import JITTER, Denied, Pacing, RateLimitPermit
from .request_limits import RequestLimits
from .state import ManagerState
from .token_flow import WaitBudget

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class AttemptPermit(NamedTuple):
    """Permit of an attempt from the circuit breaker and the rate limits."""

    limits: RequestLimits
    group: str
    breaker_permit: Permit
    rate_permit: RateLimitPermit | None = None

    def abandon(self, now: float) -> None:
        """Return the permit unused. Takes no lock: this may run in a signal handler or a finalizer."""
        self.limits.release(self.group, self.breaker_permit)
        self.limits.end_attempt(self.rate_permit, now)


def acquire_permit(
    state: ManagerState,
    limits: RequestLimits,
    call: RequestInfo[Any],
    acquired: Callable[[], AcquireTokenFlow],
    wait_budget: WaitBudget,
) -> RequestFlow[AttemptPermit]:
    """Acquire a permit of the circuit breaker, then wait for the rate limits (rules 22 and 23)."""
    group = group_of(state.settings.endpoint.route(call.path))
    permit = _check_breaker(state, limits, group)
    try:
        permit = permit._replace(
            rate_permit=(yield from acquire_rate_permit(state, limits.pacing, group, acquired, wait_budget))
        )
        # The circuit may have opened during the wait.
        if isinstance(permit.breaker_permit, ClosedPermit) and limits.is_open(group):
            return _check_breaker(state, limits, group)._replace(rate_permit=permit.rate_permit)
    except BaseException:
        permit.abandon(state.settings.clock.now())
        raise
    return permit


def _check_breaker(state: ManagerState, limits: RequestLimits, group: str) -> AttemptPermit:
    answer = state.transition(lambda _, now: limits.try_acquire(group, now))
    if isinstance(answer, Rejected):
        raise CircuitOpen(
            f"circuit open for {group} requests; request not sent; retry in {in_seconds(answer.retry_after)}",
            retry_after=answer.retry_after,
            retryable=True,
        )
    return AttemptPermit(limits, group, answer)


def record_outcome(
    state: ManagerState, permit: AttemptPermit, call: RequestInfo[R], outcome: R | ConnectionFailure
) -> None:
    if isinstance(outcome, ConnectionFailure):
        status, headers = outcome.status, _NO_HEADERS
    else:
        status, headers = call.status(outcome), call.headers(outcome)

    def record(_: object, now: float) -> None:
        permit.limits.end_attempt(permit.rate_permit, now)
        _record_response(state, permit, status, headers, now)

    state.transition(record)


def record_retried_attempt(state: ManagerState, call: RequestInfo[Any], status: int | None) -> bool:
    """Record an attempt that the client library retries by itself; return whether the circuit allows the retry.

    Args:
        state: The state of the manager.
        call: The request. It has the permit of its first attempt until its end.
        status: The status code, ``None`` without a response.
    """
    limits = state.settings.request_limits
    if limits is None:
        return True
    group = group_of(state.settings.endpoint.route(call.path))

    def record(_: object, now: float) -> bool:
        if limits.is_open(group):  # the end of the request is the outcome of the trial request
            return False
        permit = limits.try_acquire(group, now)
        assert not isinstance(permit, Rejected)  # a closed circuit rejects nothing
        _record_response(state, AttemptPermit(limits, group, permit), status, _NO_HEADERS, now)
        return not limits.is_open(group)

    return state.transition(record)


def _record_response(
    state: ManagerState, permit: AttemptPermit, status: int | None, headers: Mapping[str, str], now: float
) -> None:
    wall = state.settings.clock.wall()
    change = permit.limits.record_response(permit.group, permit.breaker_permit, status, headers, now, wall)
    if change is not None:
        event, details = change
        state.queue_event(event, *details)


def acquire_rate_permit(
    state: ManagerState,
    pacing: Pacing | None,
    group: str,
    acquired: Callable[[], AcquireTokenFlow],
    wait_budget: WaitBudget,
) -> RequestFlow[RateLimitPermit | None]:
    """Acquire a rate limit permit for *group*, waiting at most as long as the request still may (rule 22)."""
    if pacing is None or group not in RATE_LIMITED_GROUPS:
        return None
    if state.cached() is None:
        yield from acquired()
    deadline = wait_budget.deadline(state.now())
    since: float | None = None  # start of the wait
    permit: RateLimitPermit | Denied | None = None
    try:
        while True:
            permit = state.transition(lambda _, now: pacing.reserve(group, now))
            if isinstance(permit, RateLimitPermit):
                result: StorageResult = yield StoreOperation(partial(pacing.acquire, group, state.merchant_id))
                state.transition(partial(_record_result, pacing, permit, result))
                wait, reason = result.wait, result.reason
            else:
                wait, reason = permit
            now = state.now()
            left = deadline - now
            if since is not None and (not wait or wait > left):
                _count_paced(state, group, now - since)
            if isinstance(permit, RateLimitPermit) and not wait:
                return permit
            since = now if since is None else since
            if wait > left:
                raise _exhausted(state, group, wait, reason)
            # With jitter against a thundering herd: of many requests at one instant, nearly all would wait again.
            yield Sleep(min(wait + JITTER * state.settings.random(), left))
    except BaseException:
        if isinstance(permit, RateLimitPermit):
            pacing.cancel(permit)
        raise
    finally:
        if since is not None:
            wait_budget.left -= state.now() - since


def _exhausted(state: ManagerState, group: str, wait: float, reason: str) -> RequestBudgetExhausted:
    reason = reason or f"rate limit for {group} requests of {shorten(state.merchant_id, 60)} reached"
    return RequestBudgetExhausted(
        f"{reason}; request not sent; retry in {in_seconds(wait)}", retry_after=wait, retryable=True
    )


def _record_result(pacing: Pacing, rate_permit: RateLimitPermit, result: StorageResult, _: object, now: float) -> None:
    pacing.record_result(rate_permit, result, now)


def _count_paced(state: ManagerState, group: str, seconds: float) -> None:
    def count(*_: object) -> None:
        state.own_request_counters().paced += 1
        state.queue_event(CallWaited, group, seconds)

    state.transition(count)
