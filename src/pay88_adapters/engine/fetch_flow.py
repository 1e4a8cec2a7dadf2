"""How a token is fetched: from the shared store, or with the lease by token requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from pay88_adapters.core.budget import AcquireResult
from pay88_adapters.core.errors import ClientClosed, Failure, TokenRateLimited
from pay88_adapters.core.events import BudgetExhausted, SharedTokenUsed, TokenFetched, TokenRequestFailed
from pay88_adapters.core.machine import TokenMachine
from pay88_adapters.core.snapshot import load
from pay88_adapters.core.token import Token
from pay88_adapters.core.wire import (
    TokenResponse,
    network_failure,
    parse_token_response,
    token_request,
    unexpected_failure,
)
from pay88_adapters.stores.base import LeaseResult

from .credentials import Credentials
from .effects import FetchEffect, LoadCredentials, SendTokenRequest, Sleep, StoreOperation, UnexpectedError
from .fetches import Fetches, FetchRun, sweep
from .sharing import import_budget
from .state import ManagerState

_MIN_POLL = 0.1  # seconds, plus or minus half, between polls of another holder's lease; doubles
_MAX_POLL = 1.0  # up to this


def fetch_token(
    fetches: Fetches, run: FetchRun, client_is_open: Callable[[], bool]
) -> Generator[FetchEffect, Any, None]:
    """Get a token from the shared store or from the service (rules 4, 5 and 9 to 12).

    Args:
        fetches: The fetches of the manager.
        run: The fetch.
        client_is_open: Whether the client can send requests. If not, the fetch consumes no unit of the budget.

    Raises:
        ClientClosed: The HTTP client was closed.
        NoFreeConnection: Its pool had no free connection.
    """
    state, events = fetches.state, run.events
    if state.transition(lambda machine, now: machine.on_fetch_started(run.ticket, now), events):
        credentials = yield LoadCredentials()
        if state.transition(partial(_use_credentials, state, run, credentials), events):
            request = _Fetch(fetches, run, credentials, client_is_open)
            while (yield from request.acquire_lease()) and (yield from request.send()):
                pass  # the lease or the unit of the budget became too old before the request
            yield StoreOperation(partial(fetches.publish, run))
    fetches.report(run)  # not earlier: a listener may be slow, or raise anything


def _use_credentials(
    state: ManagerState, run: FetchRun, credentials: Credentials | Failure, machine: TokenMachine, now: float
) -> bool:
    if isinstance(credentials, Failure):
        if run.ticket in machine.pending_fetches:
            machine.on_fetch_failed(run.ticket, credentials, now)
            state.record_failure(credentials, now)
        return False
    state.merchant_id, run.secrets = credentials.merchant_id, (credentials.api_key,)
    return machine.on_credentials(run.ticket, state.record_key(credentials), now)


class _Fetch:
    """One fetch with its credentials loaded."""

    def __init__(
        self,
        fetches: Fetches,
        run: FetchRun,
        credentials: Credentials,
        client_is_open: Callable[[], bool],
    ) -> None:
        self._fetches, self._state, self._run = fetches, fetches.state, run
        self._credentials, self._events = credentials, run.events
        self._digest = self._state.record_key(credentials)
        self._client_is_open = client_is_open

    def acquire_lease(self) -> Generator[FetchEffect, Any, bool]:
        """Acquire the refresh lease; return whether a token request is still needed (rule 4)."""
        state, run = self._state, self._run
        pause = _MIN_POLL
        while True:
            requested_at = state.now()
            result: LeaseResult = yield StoreOperation(partial(self._fetches.try_acquire_lease, run, self._credentials))
            remaining = result.lease_remaining
            wait = min(remaining, pause * (0.5 + state.settings.random())) if remaining else 0.0
            needed = state.transition(partial(self._on_lease_result, result, requested_at, wait), self._events)
            if needed is not None:
                return needed
            if result.record is None:
                yield Sleep(wait)
                sweep()
                pause = min(2 * pause, _MAX_POLL)

    def _on_lease_result(
        self, result: LeaseResult, requested_at: float, wait: float, machine: TokenMachine, now: float
    ) -> bool | None:
        """Return whether a token request is needed; ``None`` if the store has to be polled again."""
        state, ticket = self._state, self._run.ticket
        if result.fencing_token is not None:
            return machine.heartbeat(ticket, now)
        if result.record is None:
            return None if machine.heartbeat(ticket, now, pause=wait) else False
        found = load(result.record.content, result.record.age, requested_at, now, stored=result.record.stored)
        if found is None:
            return None
        seen = requested_at - result.record.age
        reserve_used, pace = import_budget(state.settings, self._credentials, found.budget_entries, now, seen)
        if machine.merge_snapshot(ticket, found, now, digest=self._digest, reserve_used=reserve_used, pace=pace):
            return None
        if found.token is not None and found.token == machine.fast_path_token(now)[0]:
            state.record_token(SharedTokenUsed)
        return False

    def send(self) -> Generator[FetchEffect, Any, bool]:
        """Send token requests until one succeeds or a retry is pointless (rules 5 and 9 to 12).

        Returns:
            Whether the lease has to be acquired again first: its remaining time is too short for another request.
        """
        state, run, policy = self._state, self._run, self._state.settings.policy
        while True:
            if not self._client_is_open():
                raise ClientClosed("the HTTP client was closed before the token request was sent")
            requested_at = state.now()
            if not self._fetches.lease_lasts(run, policy.guard):  # until the request arrives
                return True
            from_reserve = state.transition(self._uses_reserve, self._events)
            if from_reserve is None:
                return False
            grant: AcquireResult = yield StoreOperation(
                partial(state.settings.budget.acquire, self._credentials.merchant_id, from_reserve=from_reserve)
            )
            if not state.transition(partial(self._granted, grant, from_reserve), self._events):
                return False
            sent_at = state.now()  # the last reading of the clock before the request is sent
            timeout = policy.timeout_after(sent_at - requested_at)
            if timeout is None:
                # The process was stopped: the unit may have left its window by now, and another process have the lease.
                state.transition(self._grant_expired, self._events)
                continue
            real_timeout = state.settings.clock.real(timeout)
            reply = yield SendTokenRequest(token_request(state.settings.endpoint, self._credentials, real_timeout))
            state.settings.lifetimes.pool_was_free(run.dependencies)
            outcome = self._outcome(reply, sent_at)
            if (
                isinstance(outcome, Failure) and outcome.kind is TokenRateLimited
            ):  # before another manager acquires a unit
                merchant_id = self._credentials.merchant_id
                yield StoreOperation(partial(state.settings.budget.rate_limited, merchant_id, outcome))
            pause = state.transition(partial(self._answered, outcome, sent_at), self._events)
            if pause is None:
                return False
            yield Sleep(pause)

    def _uses_reserve(self, machine: TokenMachine, now: float) -> bool | None:
        ticket = self._run.ticket
        return None if machine.stopped(ticket, now) else machine.uses_reserve(ticket, now)

    def _granted(self, grant: AcquireResult, from_reserve: bool, machine: TokenMachine, now: float) -> bool:
        state = self._state
        if not grant.granted:
            state.queue_event(BudgetExhausted, grant.retry_in)
        failure = machine.on_budget_result(self._run.ticket, grant, now, from_reserve=from_reserve)
        if failure is not None:
            state.record_failure(failure, now)
        if self._run.ticket not in machine.pending_fetches:
            return False
        state.counters.token_requests += 1
        return True

    def _grant_expired(self, machine: TokenMachine, _: float) -> None:
        machine.on_grant_expired(self._run.ticket)
        self._state.counters.token_requests -= 1

    def _outcome(self, reply: TokenResponse | BaseException | UnexpectedError, sent_at: float) -> Token | Failure:
        settings = self._state.settings
        if isinstance(reply, UnexpectedError):
            return unexpected_failure(reply.error, self._credentials.api_key)
        if isinstance(reply, BaseException):
            return network_failure(reply, self._credentials.api_key, base_url=settings.endpoint.base_url)
        return parse_token_response(
            reply, sent_at, self._credentials, settings.clock.wall(), base_url=settings.endpoint.base_url
        )

    def _answered(self, outcome: Token | Failure, sent_at: float, machine: TokenMachine, now: float) -> float | None:
        """Return the backoff delay before the next attempt, or ``None`` after the last one."""
        state, ticket, digest = self._state, self._run.ticket, self._digest
        if isinstance(outcome, Token):
            state.counters.tokens += 1
            state.record_token(TokenFetched, outcome.expires_in, now - sent_at, more=(time.time(),))
            machine.on_token(ticket, outcome, now, digest=digest)
            return None
        state.queue_event(TokenRequestFailed, outcome.kind, outcome.status, now - sent_at, time.time())
        pause = machine.on_attempt_failed(ticket, outcome, now, jitter=state.settings.random(), digest=digest)
        if pause is None:
            state.record_failure(outcome, now)
        return pause
