"""The three sequences everything follows, as generators of effects.

Each is written once. What it yields is an effect for a driver to carry out, sync or async; what the
driver sends back is the effect's result. Nothing here blocks, awaits or knows an HTTP library.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from .budget import Grant
from .credentials import Credentials
from .errors import Failure
from .events import BudgetExhausted, CallReplayed, TokenFetched, TokenRefused
from .machine import Fail, Fetch, Use, Wait
from .runtimes import Gate
from .snapshot import load
from .state import SharedState
from .stores.base import Lead
from .token import Token
from .wire import TokenRequest, network_failure, read_reply, token_request

UNAUTHORIZED = 401

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Start:
    """Start the fetch with this ticket; result: nothing."""

    ticket: int
    beside: bool
    """Whether the call goes on without it."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait at the gate; result: nothing."""

    gate: Gate
    seconds: float


@dataclass(frozen=True, slots=True)
class Discard:
    """Drain a refused response (to a bound) or close it, so that its connection is free again."""


@dataclass(frozen=True, slots=True)
class AskCredentials:
    """Ask for the credentials; result: :class:`Credentials` or :class:`Failure`."""


@dataclass(frozen=True, slots=True)
class Consult:
    """Do something with the store, which may take its time; result: what it returns."""

    operation: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Post:
    """Send a token request; result: :class:`TokenReply`, or the exception of the network."""

    request: TokenRequest


@dataclass(frozen=True, slots=True)
class Pause:
    """Sleep; result: nothing."""

    seconds: float


Acquisition = Generator[Start | Hold, None, Token]
FetchEffect = AskCredentials | Consult | Post | Pause

DISCARD = Discard()

_FIRST_LOOK = 0.1  # seconds, give or take half, until a fetch of somebody else's is looked after; doubles
_LAST_LOOK = 1.0  # up to this


class Managed(Protocol[R_contra]):
    """What the exchange needs to know of a call, without any I/O."""

    @property
    def patience(self) -> float | None:
        """Real seconds that the caller is ready to wait for a token, if it said so."""
        ...

    def status(self, response: R_contra) -> int:
        """Return the status code."""
        ...

    def token_used(self, response: R_contra, token: Token) -> Token:
        """Return the token that the answered attempt carried; *token* is what it was given."""
        ...

    def replayable(self, response: R_contra) -> bool:
        """Whether the body can be sent again, byte for byte."""
        ...


def acquire(
    state: SharedState,
    join: Callable[[], Gate],
    *,
    patience: float | None = None,
    min_validity: float = 0.0,
    alone: bool = False,
) -> Acquisition:
    """Get a token: use it, fetch it, or wait for the one who does (rules 2, 3 and 6).

    Args:
        state: What the callers share.
        join: Returns the gate to wait at; called with the lock held, so that no wake-up is lost.
        patience: Seconds of the clock to wait at most, if less than ``max_wait``.
        min_validity: Seconds for which the token must stay usable, if a fetch can achieve that.
        alone: Whether the caller cannot wait without blocking the fetch it would wait for.

    Raises:
        Pay88Error: There is no usable token and none can be had in time.
    """
    longest = state.policy.max_wait
    deadline = state.clock.now() + (longest if patience is None else min(patience, longest))
    seen = state.failed_fetches
    waited = False
    while True:
        state.check_open()
        with state.deciding() as (machine, now):
            if waited and not machine.in_flight:
                min_validity = 0.0  # one fetch is all that a call can ask for
            decision = machine.decide(now, seen=seen, deadline=deadline, min_validity=min_validity, alone=alone)
            if isinstance(decision, Fetch) and alone:
                state.lone.add(decision.ticket)
            if isinstance(decision, (Fetch, Wait)):
                alone = False  # it has sent its own
                state.counters.waited += not waited
                waited = True
            hold = Hold(join(), decision.until - now) if isinstance(decision, Wait) else None
            if isinstance(decision, Use) and decision.refresh is not None:
                state.counters.refreshes += 1
        match decision:
            case Use(token, refresh):
                if refresh is not None:
                    yield Start(refresh, beside=True)
                return token
            case Fetch(ticket):
                yield Start(ticket, beside=False)
            case Wait():
                assert hold is not None
                yield hold
            case Fail(failure, retry_after):
                raise failure.error(retry_after)


def fetch(state: SharedState, ticket: int) -> Generator[FetchEffect, Any, None]:
    """Get a token, from whoever shares the store or from the service (rules 4, 5 and 9 to 12)."""
    state.under_way.add(ticket)
    credentials = yield AskCredentials()
    with state.deciding() as (machine, now):
        if isinstance(credentials, Failure):
            machine.fetch_failed(ticket, credentials, now)
            return state.fetch_failed(credentials, now)
        state.merchant_id = credentials.merchant_id
        if not machine.credentials_arrived(ticket, credentials.digest, now):
            return None
    if (yield from _lead(state, ticket, credentials)):
        yield from _request(state, ticket, credentials)
        yield Consult(state.take_lease(ticket))
    return None


def _lead(state: SharedState, ticket: int, credentials: Credentials) -> Generator[FetchEffect, Any, bool]:
    """Become the one of all who share the store; return whether there is still need of one."""
    pause = _FIRST_LOOK
    while True:
        asked_at = state.clock.now()
        led: Lead = yield Consult(partial(state.lead, ticket, credentials))
        with state.deciding() as (machine, now):
            if led.fence is not None:
                machine.still_there(ticket, now)
                return True
            if led.record is not None:
                found = load(led.record.content, led.record.age, asked_at, now)
                if found is not None:
                    pressure = state.learn(credentials, found.spent, now)
                    if not machine.consulted(ticket, found, now, digest=credentials.digest, pressure=pressure):
                        return False
                continue
            wait = min(led.busy_for, pause * (0.5 + state.draw()))
            if not machine.still_there(ticket, now, pause=wait):
                return False
        yield Pause(wait)
        pause = min(2 * pause, _LAST_LOOK)


def _request(state: SharedState, ticket: int, credentials: Credentials) -> Generator[FetchEffect, Any, None]:
    """Send token requests until one is answered or there is no sense in another (rules 5 and 9 to 12)."""
    request = token_request(state.endpoint, credentials, state.clock.real(state.policy.fetch_timeout))
    while True:
        with state.deciding() as (machine, now):
            if machine.stopped(ticket, now):
                return None
            extra = machine.next_is_extra(ticket, now)
        grant: Grant = yield Consult(partial(state.budget.acquire, credentials.merchant_id, extra=extra))
        with state.deciding() as (machine, now):
            if not grant.granted:
                state.tell(BudgetExhausted, grant.retry_in)
            if not machine.budget_answered(ticket, grant, now, extra=extra):
                return None
            state.counters.token_requests += 1
        sent_at = state.clock.now()
        reply = yield Post(request)
        if isinstance(reply, BaseException):
            outcome: Token | Failure = network_failure(reply, credentials.api_key)
        else:
            outcome = read_reply(reply, sent_at, credentials)
        with state.deciding() as (machine, now):
            if isinstance(outcome, Token):
                state.counters.tokens += 1
                state.tell(TokenFetched, outcome.expires_in)
                return machine.token_arrived(ticket, outcome, now)
            pause = machine.attempt_failed(ticket, outcome, now, draw=state.draw(), digest=credentials.digest)
            if pause is None:
                return state.fetch_failed(outcome, now)
        yield Pause(pause)


def exchange(
    state: SharedState, call: Managed[R], acquired: Callable[[], Acquisition]
) -> Generator[Start | Hold | Token | Discard, Any, R]:
    """Make one managed call: attach, look at the answer, replace a refused token, replay (rules 7, 8).

    A :class:`Token` as an effect means: send the call with it; result: the response.
    """
    token = state.cached() or (yield from acquired())
    response: R = yield token
    if call.status(response) != UNAUTHORIZED:
        _accepted(state, call, response, token)
        return response
    if not _refused(state, call.token_used(response, token)) or not call.replayable(response):
        return response
    yield DISCARD
    token = state.cached() or (yield from acquired())
    with state.deciding():
        state.counters.replayed += 1
        state.tell(CallReplayed)
    response = yield token
    if call.status(response) != UNAUTHORIZED:
        _accepted(state, call, response, token)
    else:
        _refused(state, call.token_used(response, token))
    return response


def _accepted(state: SharedState, call: Managed[R], response: R, token: Token) -> None:
    if state.unproven:  # almost never: the cached path takes no lock
        with state.deciding() as (machine, _):
            machine.token_accepted(call.token_used(response, token))


def _refused(state: SharedState, token: Token) -> bool:
    with state.deciding() as (machine, now):
        state.counters.refused += 1
        replaced = machine.token_refused(token, now)
        state.tell(TokenRefused, replaced)
        return replaced
