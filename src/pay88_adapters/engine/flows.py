"""The three sequences everything follows, as generators of effects.

Each is written once. What it yields is an effect for a driver to carry out, sync or async; what the
driver sends back is the effect's result. Nothing here blocks, awaits or knows an HTTP library.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

from pay88_adapters.core.breaker import Closed, Open, Passage
from pay88_adapters.core.budget import Grant
from pay88_adapters.core.endpoint import group_of
from pay88_adapters.core.errors import (
    CarrierLost,
    CircuitOpen,
    Failure,
    Pay88Error,
    RequestBudgetExhausted,
    TokenRateLimited,
)
from pay88_adapters.core.events import (
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
from pay88_adapters.core.machine import BUDGET_SPENT, Decision, Fail, Fetch, TokenMachine, Use, Wait
from pay88_adapters.core.retry import Attempts, Broken, RetryPolicy
from pay88_adapters.core.snapshot import load
from pay88_adapters.core.token import Token
from pay88_adapters.core.wire import (
    TokenReply,
    TokenRequest,
    asked_wait,
    network_failure,
    read_reply,
    token_request,
    unexpected_failure,
)
from pay88_adapters.stores.base import Lead

from .credentials import Credentials
from .fetches import FetchRun, sweep
from .pacing import APART, PACED, Pacing, Turn
from .request_limits import Guards
from .runtimes import Gate
from .state import SharedState

REFUSED = 401
"""The status of a refused call, and the least after which there is anything to decide."""
_TOO_MANY = 429  # the least status after which a call may be sent again
_FOREVER = float("inf")

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


class Start(NamedTuple):
    """Start the fetch with this ticket; result: its :class:`FetchRun`."""

    ticket: int
    background: bool
    """Whether the call does not wait for it."""
    cannot_wait: bool = False
    """Whether the fetch must not wait for another one's lease."""


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
    """Send a token request; result: :class:`TokenReply`, or the exception: of the network, or :class:`Unexpected`."""

    request: TokenRequest


class Unexpected(NamedTuple):
    """What a client raised that is no network error: a mistake in code around it, or a test double's protest."""

    error: Exception


class Pause(NamedTuple):
    """Sleep; result: nothing."""

    seconds: float


class Verdict(NamedTuple):
    """What follows from an attempt without a response; where there is no other one, its error is the caller's."""

    again: bool


Acquisition = Generator[Start | Hold | Pause, Any, Token]
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


class Patience:
    """Seconds of the clock that one call may still wait for tokens, over all its attempts (rule 6)."""

    __slots__ = ("left",)

    def __init__(self, left: float) -> None:
        self.left = left


class Acquirer:
    """Gets a token for one attempt: uses it, fetches it, or waits for a fetch in progress (rules 2, 3 and 6).

    Args:
        state: What the callers share.
        join: Returns the gate to wait at; called with the lock held, so that no wake-up is lost.
        patience: How long the call may still wait.
        carriers: What would carry a fetch of this call and may end before it does: its client, the run of its loop.
        min_validity: Seconds for which the token must stay usable, if a fetch can achieve that.
        alone: Whether the caller cannot wait without blocking the fetch it would wait for.
    """

    def __init__(
        self,
        state: SharedState,
        join: Callable[[], Gate],
        *,
        patience: Patience,
        carriers: tuple[object, ...] = (),
        min_validity: float = 0.0,
        alone: bool = False,
    ) -> None:
        self._state = state
        self._join = join
        self._patience = patience
        self._carriers = carriers
        self._min_validity = min_validity
        self._alone = alone
        self._deadline = state.now() + patience.left
        self._seen = state.failed_fetches
        self._waiting_since: float | None = None
        self._fetched = False
        self._own: FetchRun | None = None
        self._wait: Hold | Pause | None = None

    def run(self) -> Acquisition:
        """Return the token.

        Raises:
            Pay88Error: There is no usable token and none can be had in time.
        """
        state = self._state
        try:
            while True:
                state.check_open()
                alone = self._alone
                match state.transition(self._decide):
                    case Use(token, refresh):
                        if refresh is not None:
                            yield Start(refresh, background=True)
                        return token
                    case Fetch(ticket):
                        self._own = yield Start(ticket, background=False, cannot_wait=alone)
                    case Wait():
                        assert self._wait is not None
                        sweep()  # which opens the gate, if it ends what this call is about to wait for
                        yield self._wait
                    case Fail(failure, retry_after):
                        raise failure.error(retry_after)
        finally:
            if self._waiting_since is not None:
                self._patience.left -= state.now() - self._waiting_since

    def _decide(self, machine: TokenMachine, now: float) -> Decision:
        state, since = self._state, self._waiting_since
        if since is not None and not machine.in_flight:
            token, _ = machine.unasked(now)
            # One token request is all that a call can ask for; another's token may be older than the call.
            if self._fetched or token is None or token.requested_at >= since:
                self._min_validity = 0.0
            self._fetched = True
        decision = machine.decide(
            now,
            seen=self._seen,
            deadline=self._deadline,
            min_validity=self._min_validity,
            alone=self._alone,
            carrier_age=state.carriers.age(self._carriers, now),
            own=None if self._own is None else self._own.ticket,
            cannot_lead=None if self._own is None else self._own.death,
            cannot_wait=state.interrupts_itself or state.fetches.on_this_thread(),
        )
        if isinstance(decision, (Fetch, Wait)):
            self._alone = False  # it sends its own
            if since is None:
                self._waiting_since = now
                state.counters.waited += 1
        elif since is not None:
            state.tell(CallWaited, "token", now - since)
        if isinstance(decision, Wait):
            left = decision.until - now
            if state.fetches.on_another_loop():
                left = min(left, _LAST_LOOK / 2 * state.clock.speed)
            skips = state.clock.skips_pauses and not machine.in_flight  # nothing but time ends this wait
            self._wait = Pause(left) if skips else Hold(self._join(), left)
        if isinstance(decision, Use) and decision.refresh is not None:
            state.counters.refreshes += 1
        return decision


def fetch(state: SharedState, run: FetchRun, client_is_open: Callable[[], bool]) -> Generator[FetchEffect, Any, None]:
    """Get a token, from whoever shares the store or from the service (rules 4, 5 and 9 to 12).

    Args:
        state: What the callers share.
        run: The fetch.
        client_is_open: Whether its client can send requests: if not, no unit of the budget is consumed for it.

    Raises:
        CarrierLost: Its client was closed.
    """
    if not state.transition(lambda machine, now: machine.fetch_started(run.ticket, now)):
        return
    credentials = yield AskCredentials()
    if not state.transition(partial(_use_credentials, state, run, credentials)):
        return
    events: list[Event] = []
    request = _Fetch(state, run, credentials, events, client_is_open)
    while (yield from request.lead()) and (yield from request.send()):
        pass  # its lease or its unit of the budget has become too old on the way
    yield Consult(partial(state.fetches.publish, run.ticket))
    state.notify_safely(events)  # not before: a listener may take its time


def _use_credentials(
    state: SharedState, run: FetchRun, credentials: Credentials | Failure, machine: TokenMachine, now: float
) -> bool:
    if isinstance(credentials, Failure):
        if run.ticket in machine.in_flight:
            machine.fetch_failed(run.ticket, credentials, now)
            state.fetch_failed(credentials, now)
        return False
    state.merchant_id = credentials.merchant_id
    return machine.credentials_arrived(run.ticket, credentials.digest, now)


class _Fetch:
    """One fetch with its credentials at hand. What happens is added to *events*."""

    def __init__(
        self,
        state: SharedState,
        run: FetchRun,
        credentials: Credentials,
        events: list[Event],
        client_is_open: Callable[[], bool],
    ) -> None:
        self._state, self._run, self._credentials, self._events = state, run, credentials, events
        self._client_is_open = client_is_open
        self._failure = BUDGET_SPENT

    def lead(self) -> Generator[FetchEffect, Any, bool]:
        """Acquire the refresh lease; return whether a token request is still needed (rule 4)."""
        state, run = self._state, self._run
        pause = _FIRST_LOOK
        while True:
            asked_at = state.now()
            led: Lead = yield Consult(partial(state.fetches.lead, run, self._credentials))
            wait = min(led.busy_for, pause * (0.5 + state.draw())) if led.busy_for else 0.0
            needed = state.transition(partial(self._led, led, asked_at, wait), self._events)
            if needed is not None:
                return needed
            if led.record is None:
                yield Pause(wait)
                sweep()
                pause = min(2 * pause, _LAST_LOOK)

    def _led(self, led: Lead, asked_at: float, wait: float, machine: TokenMachine, now: float) -> bool | None:
        """Return whether a token request is needed; ``None`` if the store has to be asked again."""
        state, ticket, credentials = self._state, self._run.ticket, self._credentials
        if led.fence is not None:
            return machine.still_there(ticket, now)
        if led.record is None:
            return None if machine.still_there(ticket, now, pause=wait) else False
        found = load(led.record.content, led.record.age, asked_at, now, stored=led.record.stored)
        if found is None:
            return None
        pressure, pace = state.learn(credentials, found.spent, now, asked_at - led.record.age)
        if machine.consulted(ticket, found, now, digest=credentials.digest, pressure=pressure, pace=pace):
            return None
        if found.token is not None and found.token == machine.unasked(now)[0]:
            state.token_came(TokenTakenOver)
        return False

    def send(self) -> Generator[FetchEffect, Any, bool]:
        """Send token requests until one is answered or there is no sense in another (rules 5 and 9 to 12).

        Returns:
            Whether the lease has to be acquired again first: it does not last for another request.
        """
        state, run, policy = self._state, self._run, self._state.policy
        while True:
            if not self._client_is_open():
                raise CarrierLost("the HTTP client was closed before the token request was sent")
            if not state.fetches.lasts(run, policy.fetch_timeout):
                return True
            extra = state.transition(self._next_is_extra, self._events)
            if extra is None:
                return False
            asked_at = state.now()
            grant: Grant = yield Consult(partial(state.budget.acquire, self._credentials.merchant_id, extra=extra))
            if not state.transition(partial(self._granted, grant, extra), self._events):
                return False
            sent_at = state.now()  # the last look at the clock before the request is sent
            age = sent_at - asked_at
            if age > policy.fetch_timeout / 2:  # the process was stopped: the unit may have left its window by now
                state.transition(self._grant_expired, self._events)
                continue
            timeout = state.clock.real(policy.fetch_timeout - age)
            reply = yield Post(token_request(state.endpoint, self._credentials, timeout))
            outcome = self._outcome(reply, sent_at)
            if isinstance(outcome, Failure) and outcome.kind is TokenRateLimited:  # before anybody else asks for a unit
                yield Consult(partial(state.budget.rate_limited, self._credentials.merchant_id, outcome))
            pause = state.transition(partial(self._answered, outcome, sent_at), self._events)
            if pause is None:
                return False
            yield Pause(pause)

    def _next_is_extra(self, machine: TokenMachine, now: float) -> bool | None:
        ticket = self._run.ticket
        return None if machine.stopped(ticket, now) else machine.next_is_extra(ticket, now)

    def _granted(self, grant: Grant, extra: bool, machine: TokenMachine, now: float) -> bool:
        state = self._state
        if not grant.granted:
            state.tell(BudgetExhausted, grant.retry_in)
        sent = machine.budget_answered(self._run.ticket, grant, now, extra=extra)
        if sent:
            state.counters.token_requests += 1
        elif not grant.granted:
            state.fetch_failed(grant.failure or self._failure, now)
        return sent

    def _grant_expired(self, machine: TokenMachine, _: float) -> None:
        machine.grant_expired(self._run.ticket)
        self._state.counters.token_requests -= 1

    def _outcome(self, reply: TokenReply | BaseException | Unexpected, sent_at: float) -> Token | Failure:
        if isinstance(reply, Unexpected):
            return unexpected_failure(reply.error, self._credentials.api_key)
        if isinstance(reply, BaseException):
            return network_failure(reply, self._credentials.api_key)
        return read_reply(reply, sent_at, self._credentials, self._state.clock.wall())

    def _answered(self, outcome: Token | Failure, sent_at: float, machine: TokenMachine, now: float) -> float | None:
        """Return the pause before the next attempt, or ``None`` if that was all."""
        state, ticket, digest = self._state, self._run.ticket, self._credentials.digest
        if isinstance(outcome, Token):
            state.counters.tokens += 1
            state.token_came(TokenFetched, outcome.expires_in, now - sent_at)
            machine.token_arrived(ticket, outcome, now, digest=digest)
            return None
        self._failure = outcome
        state.tell(TokenRequestFailed, outcome.kind, outcome.status, now - sent_at)
        pause = machine.attempt_failed(ticket, outcome, now, draw=state.draw(), digest=digest)
        if pause is None:
            state.fetch_failed(outcome, now)
        return pause


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
                entry.abandon(state.clock.now())
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
    turn: Turn | None = None

    def abandon(self, now: float) -> None:
        """Note that it came to nothing. Takes no lock: that the caller is gone may be noticed anywhere."""
        self.guards.abandoned(self.group, self.passage)
        self.guards.over(self.turn, now)


def _enter(
    state: SharedState, guards: Guards, call: Managed[Any], acquired: Callable[[], Acquisition]
) -> Exchange[_Entry]:
    """Pass the circuit breaker, and wait for the pacing (rules 22 and 23)."""
    group = group_of(state.endpoint.route(call.path))
    entry = _pass(state, guards, group)
    try:
        entry = entry._replace(turn=(yield from _paced(state, guards.pacing, group, call, acquired)))
        if isinstance(entry.passage, Closed) and guards.is_open(group):  # by now, since that may have taken its time
            return _pass(state, guards, group)._replace(turn=entry.turn)
    except BaseException:
        entry.abandon(state.clock.now())
        raise
    return entry


def _pass(state: SharedState, guards: Guards, group: str) -> _Entry:
    answer = state.transition(lambda _, now: guards.ask(group, now))
    if isinstance(answer, Open):
        raise CircuitOpen(
            f"88Pay fails: calls ({group}) fail at once for a while; this attempt was not sent: see retry_after",
            retry_after=answer.retry_after,
            retryable=True,
        )
    return _Entry(guards, group, answer)


def _leave(state: SharedState, entry: _Entry, call: Managed[R], outcome: R | Broken) -> None:
    status: int | None = None
    headers: Mapping[str, str] = {}
    if not isinstance(outcome, Broken):
        status, headers = call.status(outcome), call.headers(outcome)

    def record(_: object, now: float) -> None:
        entry.guards.over(entry.turn, now)
        news = entry.guards.heard(entry.group, entry.passage, status, headers, now, state.clock.wall())
        if news is not None:
            event, details = news
            state.tell(event, *details)

    state.transition(record)


def paced(
    state: SharedState, call: Managed[Any], acquired: Callable[[], Acquisition]
) -> Exchange[tuple[Token, Callable[[], None]]]:
    """Get a token for another attempt that the stack makes by itself, and what notes its end (rules 20 and 22)."""
    turn: Turn | None = None

    def end() -> None:
        if state.guards is not None:
            state.guards.over(turn, state.clock.now())

    try:
        if state.guards is not None:
            group = group_of(state.endpoint.route(call.path))
            turn = yield from _paced(state, state.guards.pacing, group, call, acquired)
        return state.cached() or (yield from acquired()), end
    except BaseException as error:
        end()
        if isinstance(error, Pay88Error):
            _count_not_sent(state, call, error)
        raise


def _paced(
    state: SharedState, pacing: Pacing | None, group: str, call: Managed[Any], acquired: Callable[[], Acquisition]
) -> Exchange[Turn | None]:
    """Wait for a unit of the limits of *group*, at most ``max_wait``; return the turn that has it (rule 22)."""
    if pacing is None or group not in PACED:
        return None
    longest = state.policy.max_wait
    patience = longest if call.patience is None else min(call.patience * state.clock.speed, longest)
    deadline = state.clock.now() + patience
    if state.cached() is None:
        yield from acquired()
    since: float | None = None  # when it was first held back
    while True:
        turn = state.transition(lambda _, now: pacing.turn(group, now))
        if isinstance(turn, Turn):
            wait: float
            try:
                wait = yield Consult(partial(pacing.take, group, state.merchant_id))
            except BaseException:
                pacing.abandoned(turn)
                raise
            state.transition(partial(_end_turn, pacing, turn, wait))
        else:
            wait = turn
        now = state.clock.now()
        left = deadline - now
        if since is not None and (not wait or wait > left):
            _count_held(state, group, now - since)
        if isinstance(turn, Turn) and not wait:
            return turn
        since = now if since is None else since
        if wait > left:
            raise RequestBudgetExhausted(
                f"88Pay's limit of calls ({group}) is used up for another {wait:.1f} s; this attempt was not sent",
                retry_after=wait,
                retryable=True,
            )
        yield Pause(min(wait + APART * state.draw(), left))  # a crowd that comes back at one instant asks in vain


def _end_turn(pacing: Pacing, turn: Turn, wait: float, _: object, now: float) -> None:
    pacing.ended(turn, wait, now)


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

    def next_pause(_: object, now: float) -> float | None:
        pause = attempts.pause(outcome, now, state.draw, safe=safe, asked=asked_wait(headers, state.clock.wall()))
        if pause is not None:
            state.counters.retried += 1
            status = None if isinstance(outcome, Broken) else outcome
            state.tell(CallRetried, group_of(route), attempts.made, pause, status)
        return pause

    return state.transition(next_pause)


def _count_replay(state: SharedState) -> None:
    def count(*_: object) -> None:
        state.counters.replayed += 1
        state.tell(CallReplayed)

    state.transition(count)


def _count_held(state: SharedState, group: str, seconds: float) -> None:
    def count(*_: object) -> None:
        state.counters.held += 1
        state.tell(CallWaited, group, seconds)

    state.transition(count)


def _count_not_sent(state: SharedState, call: Managed[Any], error: Pay88Error) -> None:
    def count(*_: object) -> None:
        state.counters.not_sent += 1
        state.tell(CallNotSent, group_of(state.endpoint.route(call.path)), type(error), error.retry_after)

    state.transition(count)


def _accepted(state: SharedState, call: Managed[R], response: R, token: Token) -> None:
    if state.unproven:  # almost never: the cached path takes no lock
        used = call.token_used(response, token)
        state.transition(lambda machine, _: machine.token_accepted(used))


def _refused(state: SharedState, token: Token) -> bool:
    def refuse(machine: TokenMachine, now: float) -> bool:
        state.counters.refused += 1
        replaced = machine.token_refused(token, now)
        state.tell(TokenRefused, replaced)
        return replaced

    return state.transition(refuse)
