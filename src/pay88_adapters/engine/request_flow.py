"""How one API request is made: attach a token, judge the response, replay after a 401, retry (rules 7, 8 and 20)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pay88_adapters.core.constants import FOREVER, TOO_MANY_REQUESTS, UNAUTHORIZED
from pay88_adapters.core.endpoint import group_of
from pay88_adapters.core.errors import Pay88Error
from pay88_adapters.core.events import CallNotSent, CallReplayed, CallRetried, TokenRejected
from pay88_adapters.core.machine import TokenMachine
from pay88_adapters.core.retry import Attempts, ConnectionFailure, RetryPolicy
from pay88_adapters.core.token import Token
from pay88_adapters.core.wire import parse_retry_after

from .effects import DRAIN, AcquireTokenFlow, R, RequestFlow, RequestInfo, RetryDecision, Sleep
from .pacing import RateLimitPermit
from .permit_flow import acquire_permit, acquire_rate_permit, record_outcome
from .state import ManagerState
from .token_flow import WaitBudget


def run_request(
    state: ManagerState,
    call: RequestInfo[R],
    acquired: Callable[[], AcquireTokenFlow],
    began_at: float,
    wait_budget: WaitBudget,
    first: Token | None = None,
) -> RequestFlow[R]:
    """Run one managed request: attach a token, replay after a 401, retry (rules 7, 8 and 20).

    A :class:`Token` as an effect means: send the request with it; result: the response, or :class:`ConnectionFailure`.
    With a *first* token, the first attempt has been sent already.
    """
    try:
        return (yield from _attempts(state, call, acquired, began_at, wait_budget, first))
    except Pay88Error as error:
        _count_not_sent(state, call, error)
        raise


def _attempts(
    state: ManagerState,
    call: RequestInfo[R],
    acquired: Callable[[], AcquireTokenFlow],
    began_at: float,
    wait_budget: WaitBudget,
    first: Token | None,
) -> RequestFlow[R]:
    # In one function, because the order of its steps is what the rules are about: permit, token, response, retry.
    policy, limits = call.retry or state.settings.retry, state.settings.request_limits
    attempts = Attempts(policy, _deadline(state, call, policy, began_at))
    replaying = False
    while True:
        permit = None if limits is None else (yield from acquire_permit(state, limits, call, acquired, wait_budget))
        try:
            token, first = first or state.cached() or (yield from acquired()), None
            if replaying:
                _count_replay(state)
                replaying = False
            outcome: R | ConnectionFailure = yield token
        except BaseException:
            if permit is not None:
                permit.abandon(state.settings.clock.now())
            raise
        if permit is not None:
            record_outcome(state, permit, call, outcome)
        if isinstance(outcome, ConnectionFailure):
            if outcome.status == UNAUTHORIZED:
                _on_unauthorized(state, token)
            pause = _pause(state, call, attempts, wait_budget, outcome)
            yield RetryDecision(retry=pause is not None)
            assert pause is not None  # if not, the runner raises the error of the attempt
            yield Sleep(pause)
            continue
        status = call.status(outcome)
        if status == UNAUTHORIZED:
            replaced = _on_unauthorized(state, call.token_used(outcome, token))
            if not (replaced and attempts.may_replay and call.replayable()):
                return outcome
            attempts.may_replay, replaying = False, True
            yield DRAIN
            continue
        _on_accepted(state, call, outcome, token)
        if status < TOO_MANY_REQUESTS:  # the least one after which a request may be retried
            return outcome
        pause = _pause(state, call, attempts, wait_budget, status, call.headers(outcome))
        if pause is None:
            return outcome
        yield DRAIN
        yield Sleep(pause)


def acquire_permit_and_token(
    state: ManagerState, call: RequestInfo[Any], acquired: Callable[[], AcquireTokenFlow], wait_budget: WaitBudget
) -> RequestFlow[tuple[Token, Callable[[], None]]]:
    """Get a token for a retry of the client library itself, and the function that records its end (rules 20 and 22)."""
    limits = state.settings.request_limits
    rate_permit: RateLimitPermit | None = None

    def end() -> None:
        if limits is not None:
            limits.end_attempt(rate_permit, state.settings.clock.now())

    try:
        if limits is not None:
            group = group_of(state.settings.endpoint.route(call.path))
            rate_permit = yield from acquire_rate_permit(state, limits.pacing, group, acquired, wait_budget)
        return state.cached() or (yield from acquired()), end
    except BaseException as error:
        end()
        if isinstance(error, Pay88Error):
            _count_not_sent(state, call, error)
        raise


def _deadline(state: ManagerState, call: RequestInfo[Any], policy: RetryPolicy, began_at: float) -> float:
    longest = FOREVER if policy.total_timeout is None else policy.total_timeout
    if call.total_timeout is not None:
        longest = min(longest, call.total_timeout * state.settings.clock.speed)
    return began_at + longest


def _pause(
    state: ManagerState,
    call: RequestInfo[Any],
    attempts: Attempts,
    wait_budget: WaitBudget,
    outcome: int | ConnectionFailure,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> float | None:
    """Return the backoff delay in seconds before the retry, or ``None`` without a retry (rule 20)."""
    settings = state.settings
    route, limits = settings.endpoint.route(call.path), settings.request_limits
    safe = attempts.policy.is_safe(call.method, route)
    if limits is not None and limits.is_open(group_of(route)):
        return None

    retry_after = parse_retry_after(headers, settings.clock.wall())

    def next_pause(machine: TokenMachine, now: float) -> float | None:
        pause = attempts.pause(outcome, now, settings.random, safe=safe, retry_after=retry_after)
        return pause if pause is not None and in_time(machine, now, pause) else None

    def in_time(machine: TokenMachine, now: float, pause: float) -> bool:
        # The response has to be drained before any wait: a pool of one connection needs that for the token request.
        waits = 0.0 if limits is None else max(limits.expected_wait(group_of(route), state.merchant_id, now) - pause, 0)
        ready = now + pause + waits
        if not machine.is_usable_at(ready):
            fetch = min(settings.policy.fetch_timeout, settings.policy.max_wait)
            if now + machine.blocked_for(now) > ready or wait_budget.left < waits + fetch:
                return False
            ready += settings.policy.fetch_timeout
        return waits <= wait_budget.left and ready < attempts.deadline

    pause = state.transition(next_pause)
    if pause is None or not call.replayable():  # in this order: without a retry, the caller's file is not rewound
        return None
    wait_budget.until = attempts.deadline
    _count_retry(state, group_of(route), attempts.made, pause, outcome)
    return pause


def _count_retry(state: ManagerState, group: str, attempt: int, pause: float, outcome: int | ConnectionFailure) -> None:
    def count(*_: object) -> None:
        state.own_request_counters().retried += 1
        status = None if isinstance(outcome, ConnectionFailure) else outcome
        state.queue_event(CallRetried, group, attempt, pause, status)

    state.transition(count)


def _count_replay(state: ManagerState) -> None:
    def count(*_: object) -> None:
        state.own_request_counters().replayed += 1
        state.queue_event(CallReplayed)

    state.transition(count)


def _count_not_sent(state: ManagerState, call: RequestInfo[Any], error: Pay88Error) -> None:
    def count(*_: object) -> None:
        state.own_request_counters().not_sent += 1
        group = group_of(state.settings.endpoint.route(call.path))
        state.queue_event(CallNotSent, group, type(error), error.retry_after)

    state.transition(count)


def _on_accepted(state: ManagerState, call: RequestInfo[R], response: R, token: Token) -> None:
    if state.awaiting_first_success:  # almost never: the cached path takes no lock
        used = call.token_used(response, token)
        state.transition(lambda machine, _: machine.on_accepted(used))


def _on_unauthorized(state: ManagerState, token: Token) -> bool:
    def refuse(machine: TokenMachine, now: float) -> bool:
        state.own_request_counters().unauthorized += 1
        replaced = machine.on_unauthorized(token, now)
        state.queue_event(TokenRejected, replaced)
        return replaced

    return state.transition(refuse)
