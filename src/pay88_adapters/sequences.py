"""The three sequences everything follows, as generators of effects.

Each is written once. What it yields is an effect for a driver to carry out, sync or async; what the
driver sends back is the effect's result. Nothing here blocks, awaits or knows an HTTP library.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

from .breaker import Closed, Open, Passage
from .budget import Grant
from .credentials import Credentials
from .endpoint import group_of
from .errors import CircuitOpen, Failure, Pay88Error, RequestBudgetExhausted, TokenRateLimited
from .events import (
    BudgetExhausted,
    CallNotSent,
    CallReplayed,
    CallRetried,
    CallWaited,
    Event,
    TokenFetched,
    TokenRefused,
    TokenRequestFailed,
    TokenTakenOver,
)
from .guards import Guards
from .machine import BUDGET_SPENT, Fail, Fetch, Use, Wait
from .pacing import APART, PACED, Pacing, Turn
from .retry import Attempts, Broken, RetryPolicy
from .runtimes import Gate
from .snapshot import load
from .state import SharedState
from .stores.base import Lead
from .token import Token
from .wire import TokenRequest, asked_wait, network_failure, read_reply, token_request

REFUSED = 401
"""The status of a refused call, and the least after which there is anything to decide."""
_TOO_MANY = 429  # the least status after which a call may be sent again
_FOREVER = float("inf")

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


class Start(NamedTuple):
    """Start the fetch with this ticket; result: nothing."""

    ticket: int
    beside: bool
    """Whether the call goes on without it."""


class Hold(NamedTuple):
    """Wait at the gate; result: nothing."""

    gate: Gate
    seconds: float


class Discard:
    """Drain a refused response (to a bound) or close it, so that its connection is free again."""

    __slots__ = ()


class AskCredentials:
    """Ask for the credentials; result: :class:`Credentials` or :class:`Failure`."""

    __slots__ = ()


class Consult(NamedTuple):
    """Do something with the store, which may take its time; result: what it returns."""

    operation: Callable[[], object]


class Post(NamedTuple):
    """Send a token request; result: :class:`TokenReply`, or the exception of the network."""

    request: TokenRequest


class Pause(NamedTuple):
    """Sleep; result: nothing."""

    seconds: float


class Verdict(NamedTuple):
    """What follows from an attempt without a response; where there is no other one, its error is the caller's."""

    again: bool


Acquisition = Generator[Start | Hold | Pause, None, Token]
Exchange = Generator[Start | Hold | Consult | Pause | Token | Verdict | Discard, Any, R]
FetchEffect = AskCredentials | Consult | Post | Pause

DISCARD = Discard()

_FIRST_LOOK = 0.1  # seconds, give or take half, until a fetch of somebody else's is looked after; doubles
_LAST_LOOK = 1.0  # up to this


class Managed(Protocol[R_contra]):
    """What the exchange needs to know of a call, without any I/O."""

    @property
    def method(self) -> str:
        """The HTTP method."""
        ...

    @property
    def path(self) -> str:
        """The path, with or without the query."""
        ...

    @property
    def retry(self) -> RetryPolicy | None:
        """The call's own policy; ``None`` for the manager's."""
        ...

    @property
    def patience(self) -> float | None:
        """Real seconds that the caller is ready to wait for a token, if it said so."""
        ...

    @property
    def total(self) -> float | None:
        """Real seconds that the caller has for the call with all its attempts, if it said so."""
        ...

    def status(self, response: R_contra, /) -> int:
        """Return the status code."""
        ...

    def headers(self, response: R_contra) -> Mapping[str, str]:
        """Return the header fields, names in any case."""
        ...

    def token_used(self, response: R_contra, token: Token) -> Token:
        """Return the token that the answered attempt carried; *token* is what it was given."""
        ...

    def replayable(self) -> bool:
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
    since: float | None = None  # when it began to wait
    fetched = False
    while True:
        state.check_open()
        with state.deciding() as (machine, now):
            if since is not None and not machine.in_flight:
                token, _ = machine.unasked(now)
                # One token request is all that a call can ask for; another's token may be older than the call.
                if fetched or token is None or token.requested_at >= since:
                    min_validity = 0.0
                fetched = True
            decision = machine.decide(now, seen=seen, deadline=deadline, min_validity=min_validity, alone=alone)
            if isinstance(decision, Fetch) and alone:
                state.under_way[decision.ticket] = True
            if isinstance(decision, (Fetch, Wait)):
                alone = False  # it has sent its own
                if since is None:
                    since = now
                    state.counters.waited += 1
            elif since is not None:
                state.tell(CallWaited, "token", now - since)
            hold: Hold | Pause | None = None
            if isinstance(decision, Wait):
                left = decision.until - now
                skips = state.clock.skips_pauses and not machine.in_flight  # nothing but time ends this wait
                hold = Pause(left) if skips else Hold(join(), left)
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
    state.under_way.setdefault(ticket, False)
    credentials = yield AskCredentials()
    with state.deciding() as (machine, now):
        if isinstance(credentials, Failure):
            machine.fetch_failed(ticket, credentials, now)
            return state.fetch_failed(credentials, now)
        state.merchant_id = credentials.merchant_id
        if not machine.credentials_arrived(ticket, credentials.digest, now):
            return None
    news: list[Event] = []
    if (yield from _lead(state, ticket, credentials, news)):
        yield from _request(state, ticket, credentials, news)
        yield Consult(state.take_lease(ticket))
    state.notify(news)  # not before: a listener may take its time
    return None


def _lead(
    state: SharedState, ticket: int, credentials: Credentials, news: list[Event]
) -> Generator[FetchEffect, Any, bool]:
    """Become the one of all who share the store; return whether there is still need of one."""
    pause = _FIRST_LOOK
    while True:
        asked_at = state.clock.now()
        led: Lead = yield Consult(partial(state.lead, ticket, credentials))
        with state.deciding(news) as (machine, now):
            if led.fence is not None:
                machine.still_there(ticket, now)
                return True
            if led.record is not None:
                found = load(led.record.content, led.record.age, asked_at, now, stored=led.record.stored)
                if found is not None:
                    pressure = state.learn(credentials, found.spent, now, asked_at - led.record.age)
                    if not machine.consulted(ticket, found, now, digest=credentials.digest, pressure=pressure):
                        if found.token is not None and found.token == machine.unasked(now)[0]:
                            state.token_came(TokenTakenOver)
                        return False
                continue
            wait = min(led.busy_for, pause * (0.5 + state.draw()))
            if not machine.still_there(ticket, now, pause=wait):
                return False
        yield Pause(wait)
        pause = min(2 * pause, _LAST_LOOK)


def _request(
    state: SharedState, ticket: int, credentials: Credentials, news: list[Event]
) -> Generator[FetchEffect, Any, None]:
    """Send token requests until one is answered or there is no sense in another (rules 5 and 9 to 12)."""
    request = token_request(state.endpoint, credentials, state.clock.real(state.policy.fetch_timeout))
    failure = BUDGET_SPENT
    while True:
        with state.deciding(news) as (machine, now):
            if machine.stopped(ticket, now):
                return None
            extra = machine.next_is_extra(ticket, now)
        grant: Grant = yield Consult(partial(state.budget.acquire, credentials.merchant_id, extra=extra))
        with state.deciding(news) as (machine, now):
            if not grant.granted:
                state.tell(BudgetExhausted, grant.retry_in)
            if not machine.budget_answered(ticket, grant, now, extra=extra):
                return None if grant.granted else state.fetch_failed(grant.failure or failure, now)
            state.counters.token_requests += 1
        sent_at = state.clock.now()
        reply = yield Post(request)
        if isinstance(reply, BaseException):
            outcome: Token | Failure = network_failure(reply, credentials.api_key)
        else:
            outcome = read_reply(reply, sent_at, credentials)
        if isinstance(outcome, Failure) and outcome.kind is TokenRateLimited:  # before anybody else asks for a unit
            yield Consult(partial(state.budget.rate_limited, credentials.merchant_id, outcome))
        with state.deciding(news) as (machine, now):
            if isinstance(outcome, Token):
                state.counters.tokens += 1
                state.token_came(TokenFetched, outcome.expires_in, now - sent_at)
                return machine.token_arrived(ticket, outcome, now)
            failure = outcome
            state.tell(TokenRequestFailed, outcome.kind, outcome.status, now - sent_at)
            pause = machine.attempt_failed(ticket, outcome, now, draw=state.draw(), digest=credentials.digest)
            if pause is None:
                return state.fetch_failed(outcome, now)
        yield Pause(pause)


def exchange(
    state: SharedState,
    call: Managed[R],
    acquired: Callable[[], Acquisition],
    began_at: float,
    first: Token | None = None,
) -> Exchange[R]:
    """Make one managed call: attach, look at the answer, replace a refused token, send again (rules 7, 8, 20).

    A :class:`Token` as an effect means: send the call with it; result: the response, or :class:`Broken`.
    With a *first* token the first attempt is one that has been sent already.
    """
    try:
        return (yield from _attempts(state, call, acquired, began_at, first))
    except Pay88Error as error:
        _count_not_sent(state, call, error)
        raise


def _attempts(
    state: SharedState,
    call: Managed[R],
    acquired: Callable[[], Acquisition],
    began_at: float,
    first: Token | None,
) -> Exchange[R]:
    policy = call.retry or state.retry
    attempts = Attempts(policy, _deadline(state, call, policy, began_at))
    replayable, replaying = policy.replay_refused, False
    while True:
        entry = None if state.guards is None else (yield from _enter(state, state.guards, call, acquired))
        try:
            token, first = first or state.cached() or (yield from acquired()), None
            if replaying:
                _count_replay(state)
                replaying = False
            outcome: R | Broken = yield token
        except BaseException:
            if entry is not None:
                entry.abandon()
            raise
        if entry is not None:
            _leave(state, entry, call, outcome)
        if isinstance(outcome, Broken):
            pause = _pause(state, call, attempts, outcome)
            yield Verdict(again=pause is not None)
            assert pause is not None  # or else the driver raises what the attempt did
            yield Pause(pause)
            continue
        status = call.status(outcome)
        if status == REFUSED:
            replaced = _refused(state, call.token_used(outcome, token))
            if not (replaced and replayable and call.replayable()):
                return outcome
            replayable, replaying = False, True
            yield DISCARD
            continue
        _accepted(state, call, outcome, token)
        if status < _TOO_MANY:
            return outcome
        pause = _pause(state, call, attempts, status, call.headers(outcome))
        if pause is None:
            return outcome
        yield DISCARD
        yield Pause(pause)


class _Entry(NamedTuple):
    """An attempt that the guards have let pass."""

    guards: Guards
    group: str
    passage: Passage

    def abandon(self) -> None:
        """Note that it came to nothing. Takes no lock: that the caller is gone may be noticed anywhere."""
        self.guards.abandoned(self.group, self.passage)


def _enter(
    state: SharedState, guards: Guards, call: Managed[Any], acquired: Callable[[], Acquisition]
) -> Exchange[_Entry]:
    """Pass the circuit breaker, and wait for the pacing (rules 22 and 23)."""
    group = group_of(state.endpoint.route(call.path))
    entry = _pass(state, guards, group)
    try:
        yield from _paced(state, guards.pacing, group, call, acquired)
    except BaseException:
        entry.abandon()
        raise
    if isinstance(entry.passage, Closed) and guards.is_open(group):  # by now, since that may have taken its time
        return _pass(state, guards, group)
    return entry


def _pass(state: SharedState, guards: Guards, group: str) -> _Entry:
    with state.deciding() as (_, now):
        answer = guards.ask(group, now)
    if isinstance(answer, Open):
        raise CircuitOpen(
            f"88Pay fails: calls ({group}) fail at once for a while; this attempt was not sent: see retry_after",
            retry_after=answer.retry_after,
            retryable=True,
        )
    return _Entry(guards, group, answer)


def _leave(state: SharedState, entry: _Entry, call: Managed[R], outcome: R | Broken) -> None:
    with state.deciding() as (_, now):
        if isinstance(outcome, Broken):
            news = entry.guards.heard(entry.group, entry.passage, None, {}, now)
        else:
            status, headers = call.status(outcome), call.headers(outcome)
            news = entry.guards.heard(entry.group, entry.passage, status, headers, now)
        if news is not None:
            event, details = news
            state.tell(event, *details)


def paced(state: SharedState, call: Managed[Any], acquired: Callable[[], Acquisition]) -> Exchange[Token]:
    """Get a token for another attempt that the stack makes by itself (rules 20 and 22)."""
    try:
        if state.guards is not None:
            yield from _paced(state, state.guards.pacing, group_of(state.endpoint.route(call.path)), call, acquired)
        return state.cached() or (yield from acquired())
    except Pay88Error as error:
        _count_not_sent(state, call, error)
        raise


def _paced(
    state: SharedState, pacing: Pacing | None, group: str, call: Managed[Any], acquired: Callable[[], Acquisition]
) -> Exchange[None]:
    """Wait for a unit of the limits of *group*, at most ``max_wait`` (rule 22)."""
    if pacing is None or group not in PACED:
        return
    longest = state.policy.max_wait
    patience = longest if call.patience is None else min(call.patience * state.clock.speed, longest)
    deadline = state.clock.now() + patience
    if state.cached() is None:
        yield from acquired()
    since: float | None = None  # when it was first held back
    while True:
        with state.deciding() as (_, now):
            turn = pacing.turn(group, now)
        if isinstance(turn, Turn):
            try:
                wait: float = yield Consult(partial(pacing.take, group, state.merchant_id))
            except BaseException:
                pacing.abandoned(turn)
                raise
            with state.deciding() as (_, now):
                pacing.ended(turn, wait, now)
        else:
            wait = turn
        now = state.clock.now()
        left = deadline - now
        if since is not None and (not wait or wait > left):
            _count_held(state, group, now - since)
        if not wait:
            return
        since = now if since is None else since
        if wait > left:
            raise RequestBudgetExhausted(
                f"88Pay's limit of calls ({group}) is used up for another {wait:.1f} s; this attempt was not sent",
                retry_after=wait,
                retryable=True,
            )
        yield Pause(min(wait + APART * state.draw(), left))  # a crowd that comes back at one instant asks in vain


def _deadline(state: SharedState, call: Managed[Any], policy: RetryPolicy, began_at: float) -> float:
    longest = _FOREVER if policy.total_timeout is None else policy.total_timeout
    if call.total is not None:
        longest = min(longest, call.total * state.clock.speed)
    return began_at + longest


def _pause(
    state: SharedState,
    call: Managed[Any],
    attempts: Attempts,
    outcome: int | Broken,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> float | None:
    """Return for how long to wait before the call is sent again, or ``None`` if it is not (rule 20)."""
    route = state.endpoint.route(call.path)
    safe = attempts.policy.is_safe(call.method, route)
    if not call.replayable() or (state.guards is not None and state.guards.is_open(group_of(route))):
        return None
    with state.deciding() as (_, now):
        pause = attempts.pause(outcome, now, state.draw, safe=safe, asked=asked_wait(headers))
        if pause is not None:
            state.counters.retried += 1
            status = None if isinstance(outcome, Broken) else outcome
            state.tell(CallRetried, group_of(route), attempts.made, pause, status)
    return pause


def _count_replay(state: SharedState) -> None:
    with state.deciding():
        state.counters.replayed += 1
        state.tell(CallReplayed)


def _count_held(state: SharedState, group: str, seconds: float) -> None:
    with state.deciding():
        state.counters.held += 1
        state.tell(CallWaited, group, seconds)


def _count_not_sent(state: SharedState, call: Managed[Any], error: Pay88Error) -> None:
    with state.deciding():
        state.counters.not_sent += 1
        state.tell(CallNotSent, group_of(state.endpoint.route(call.path)), type(error), error.retry_after)


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
