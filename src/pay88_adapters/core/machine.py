"""Every rule about tokens, and nothing else.

There is no clock, lock, chance or I/O in this file. Events come in with ``now`` (seconds on the
manager's clock), decisions go out as frozen values, and :class:`~pay88_adapters.TokenManager` acts on
them. What a call gets depends on two things: how old the token is, and whether one may be requested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from .budget import Grant
from .errors import (
    CredentialsRejected,
    Failure,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
)
from .policy import LIFETIME, TokenPolicy
from .snapshot import Snapshot
from .token import Token

_HOUR = 3600.0
_NEVER = float("-inf")
_EVER = float("inf")
_FIRST_COOLDOWN = 1.0  # seconds; doubles up to the refresh interval                          rule 11
_FIRST_SPACING = 1.0  # seconds between forced refreshes; doubles with each that counts       rule 8
GRACE = 1.0  # seconds beyond its timeouts after which a silent fetch counts as lost          rule 17
_LOST_BEFORE_OUTAGE = 2  # consecutive fetches that may fall silent before it counts as an outage rule 16


class Age(Enum):
    """Of the token held, counted from the moment its request was sent."""

    FRESH = auto()  # inside the reuse window                                                  rule 1
    AGING = auto()  # in the last part of that window                                          rule 2
    STALE = auto()  # past it, and not past `expires_in - expiry_skew`                         rule 6
    REFUSED = auto()  # FRESH or AGING, but a call was answered 401                            rule 7
    ABSENT = auto()  # past all that, or never fetched


class Source(Enum):
    """The token endpoint, as far as we are concerned."""

    FREE = auto()  # a request may be sent
    BUSY = auto()  # one is in flight                                                          rule 3
    BARRED = auto()  # none before `_barred_until`                                             rules 5, 9-11


class Answer(Enum):
    """What a call is told."""

    USE = auto()
    REFRESH = auto()  # use it, and start a fetch beside the call
    FETCH = auto()  # start a fetch, then wait for it
    WAIT = auto()
    HOLD = auto()  # wait for the bar to lift if that is soon enough, else fail


ANSWERS: Mapping[Age, Mapping[Source, Answer]] = {
    age: dict(zip(Source, row, strict=True))
    for age, row in {
        #            FREE            BUSY         BARRED
        Age.FRESH: (Answer.USE, Answer.USE, Answer.USE),
        Age.AGING: (Answer.REFRESH, Answer.USE, Answer.USE),
        Age.STALE: (Answer.FETCH, Answer.WAIT, Answer.USE),
        Age.REFUSED: (Answer.FETCH, Answer.WAIT, Answer.USE),
        Age.ABSENT: (Answer.FETCH, Answer.WAIT, Answer.HOLD),
    }.items()
}


class Use(NamedTuple):
    """Attach *token*; with a ticket, also start that fetch beside the call."""

    token: Token
    refresh: int | None = None


class Fetch(NamedTuple):
    """Start a fetch, hand *ticket* back with every event, and wait for it."""

    ticket: int


class Wait(NamedTuple):
    """Ask again when a fetch has ended, at the latest at *until*."""

    until: float


class Fail(NamedTuple):
    """No token; *retry_after* is in seconds from now."""

    failure: Failure
    retry_after: float


Decision = Use | Fetch | Wait | Fail


@dataclass(slots=True)
class Flight:
    """A fetch in progress."""

    due_at: float  # it is lost if it has not been heard of by then
    forced: bool
    wait_until: float  # until when the request that started it waits for it, although it has a token
    started: bool = False  # whether it has taken its first step
    late: bool = False  # whether it was interrupted because it is overdue
    asking: bool = False  # for the credentials
    digest: str = ""  # of the credentials
    attempts: int = 0
    failure: Failure | None = None  # of the last attempt
    ordinary_before: float | None = None  # what `_ordinary_at` was before this fetch used the ordinary slot

    @property
    def foreground(self) -> bool:
        """Whether the request that started it waits for it, although it has a token (rule 2)."""
        return self.wait_until > _NEVER


class _Held(NamedTuple):
    """A token and the instants at which its age changes."""

    token: Token
    refresh_at: float
    reuse_until: float
    usable_until: float


class TokenMachine:
    """Decides who uses, fetches, waits or fails.

    Args:
        policy: The durations and counts of the rules.
        rotating: Whether the credentials can change, so that a rejection has to be looked at again.
        grace: Seconds beyond its timeouts after which a silent fetch counts as lost.
        reaction: Seconds within which a fetch takes its first step, and reacts to being interrupted when it is
            overdue; ``None`` where neither is observed.
    """

    __slots__ = (
        "_asked_until",
        "_bar",
        "_barred_until",
        "_drawn_at",
        "_failed",
        "_failures",
        "_flights",
        "_forced_at",
        "_forced_in_row",
        "_grace",
        "_held",
        "_held_digest",
        "_last_ticket",
        "_lost",
        "_ordinary_at",
        "_pace",
        "_policy",
        "_pressure",
        "_reaction",
        "_refused",
        "_rejected_digest",
        "_rotating",
        "ended_fetches",
        "failed_fetches",
        "late",
    )

    def __init__(
        self,
        policy: TokenPolicy,
        *,
        rotating: bool = False,
        grace: float = GRACE,
        reaction: float | None = None,
    ) -> None:
        self._policy = policy
        self._rotating = rotating
        self._grace = grace
        self._reaction = reaction
        self._held: _Held | None = None
        self._held_digest = ""  # of the credentials that bought it
        self._refused = False
        self._flights: dict[int, Flight] = {}
        self._last_ticket = 0
        self._bar: Failure | None = None
        self._barred_until = self._asked_until = _NEVER
        self._rejected_digest: str | None = None
        self._failed: Failure | None = None
        self.failed_fetches = 0
        """How many fetches have failed so far: see :meth:`decide`."""
        self.ended_fetches = 0
        """How many fetches have ended so far, in whatever way."""
        self.late: tuple[int, ...] = ()
        """Tickets of overdue fetches to interrupt: they are lost unless they are heard of soon."""
        self._failures = 0
        self._lost = 0  # consecutive fetches that fell silent
        self._pressure = 0.0  # on the budget: see Grant
        self._pace = 0.0
        self._ordinary_at = _NEVER
        self._forced_in_row = 0
        self._forced_at = _NEVER
        self._drawn_at = _NEVER  # on the reserve, by a forced refresh

    # --- what a call asks ---------------------------------------------------------------------

    def decide(
        self,
        now: float,
        *,
        seen: int,
        deadline: float,
        min_validity: float = 0.0,
        alone: bool = False,
        carrier_age: float = _EVER,
        own: int | None = None,
        cannot_lead: Failure | None = None,
        cannot_wait: bool = False,
    ) -> Decision:
        """Say what a call should do.

        Args:
            now: The time.
            seen: What ``failed_fetches`` was when this call came: a fetch that failed since then is the
                call's answer, also when it hears of it late.
            deadline: Until when it can wait.
            min_validity: Seconds for which the token must stay usable.
            alone: Whether the call cannot wait without blocking the very fetch it would wait for.
            carrier_age: Seconds for which what would carry its fetch, such as its client and its event loop, has
                existed. What may end before a fetch does carries no background refresh (rule 2).
            own: The ticket of the fetch that this call has started.
            cannot_lead: Why this call cannot start a fetch, such as that its client was closed.
            cannot_wait: Whether it can neither start a fetch nor wait for one: it interrupts the manager itself.
        """
        if not cannot_wait:
            self._drop_lost_flights(now)
        age, source = self._age(now, min_validity), self._source(now)
        if min_validity and (source is Source.BARRED or self.failed_fetches > seen):
            age = self._age(now)  # no fetch can improve on what there is
        if age is Age.ABSENT and self._failed is not None and self.failed_fetches > seen:
            return Fail(self._failed, self.blocked_for(now))
        if age is Age.ABSENT and self._rotating and source is Source.BARRED and self._rejected:
            source = Source.FREE  # ask for the credentials again: they may have changed             rule 9
        answer = ANSWERS[age][source]
        if cannot_wait:
            cannot_lead = _INTERRUPTING
        if cannot_lead is not None and (answer in (Answer.REFRESH, Answer.FETCH) or cannot_wait):
            return Fail(cannot_lead, 0.0) if age is Age.ABSENT else self._use()
        match answer:
            case Answer.USE:
                return self._use_unless_own(own, now, deadline)
            case Answer.REFRESH:
                if carrier_age >= self._policy.trusted_after:
                    return self._use(self._depart(now, forced=False))
                if now < self._foreground_from():
                    return self._use()
                return Fetch(self._depart(now, forced=False, wait_until=now + self._policy.fetch_timeout))
            case Answer.FETCH:
                return Fetch(self._depart(now, forced=age is Age.REFUSED))
            case Answer.WAIT:
                return Fetch(self._depart(now, forced=False)) if alone else self._wait(now, deadline, min_validity)
            case Answer.HOLD:
                return self._hold(now, deadline)

    def unasked(self, now: float) -> tuple[Token | None, float]:
        """Return the token that calls may use without asking, and until when."""
        held = self._held
        if held is None:
            return None, _NEVER
        source = self._source(now)
        if self._refused and source is not Source.BARRED:
            return None, _NEVER
        if source is Source.FREE:
            return held.token, held.refresh_at
        if source is Source.BUSY:
            return held.token, min([held.reuse_until, *(flight.due_at for flight in self._flights.values())])
        return held.token, min(held.usable_until, max(self._barred_until, 0.0 if self._refused else held.refresh_at))

    def blocked_for(self, now: float) -> float:
        """Return for how many seconds no token may be requested."""
        return max(self._barred_until - now, 0.0)

    def expires_in(self, now: float) -> float | None:
        """Return for how many seconds the token stays valid, if there is one. Needs no lock."""
        held = self._held
        left = 0.0 if held is None else held.token.requested_at + held.token.expires_in - now
        return left if left > 0 else None

    @property
    def in_flight(self) -> frozenset[int]:
        """The tickets of the fetches under way."""
        return frozenset(self._flights)

    @property
    def unproven(self) -> bool:
        """Whether an accepted call would be news: see :meth:`token_accepted`."""
        return self._forced_in_row > 0

    # --- what happened to a fetch ---------------------------------------------------------------

    def fetch_started(self, ticket: int, now: float) -> bool:
        """Note the first step of a fetch; return whether it is still wanted.

        One whose start took so long that it was given up is still wanted if no other has taken its place.
        """
        flight = self._flights.get(ticket)
        if flight is None:
            age = self._age(now)
            if age is Age.FRESH or self._source(now) is not Source.FREE:
                return False
            flight = self._flights[ticket] = Flight(now, age is Age.REFUSED, _NEVER)
        flight.started, flight.asking, flight.due_at = True, self._rotating, self._first_due(now)
        return True

    def credentials_arrived(self, ticket: int, digest: str, now: float) -> bool:
        """Note which credentials a fetch will use; return whether it may go on (rule 9)."""
        flight = self._flights.get(ticket)
        if flight is None:
            return False
        if self._bar is not None and self._rejected and now < self._barred_until:
            if digest == self._rejected_digest:
                self._end(ticket)
                self._note_failure(self._bar)
                return False
            self._lift_bar()  # nobody has rejected these
        flight.due_at, flight.asking, flight.late, flight.digest = self._due(now), False, False, digest
        return True

    def still_there(self, ticket: int, now: float, *, pause: float = 0.0) -> bool:
        """Note that a fetch is under way and will be heard of again after *pause* seconds; return whether it counts."""
        flight = self._flights.get(ticket)
        if flight is None:
            return False
        flight.due_at, flight.late = self._due(now) + pause, False
        return True

    def consulted(
        self, ticket: int, found: Snapshot, now: float, *, digest: str, pressure: float = 0.0, pace: float = 0.0
    ) -> bool:
        """Take over what others have found out; return whether the fetch has to go on (rule 4).

        Args:
            ticket: The fetch.
            found: What they have found out.
            now: The time.
            digest: Names the credentials of all of them.
            pressure: On the budget, by what they know of it.
            pace: That it sustains, see :class:`~pay88_adapters.engine.budget.Grant`.
        """
        if not self.still_there(ticket, now):
            return False
        self._pressure, self._pace = pressure, pace
        self._ordinary_at = max(self._ordinary_at, found.ordinary_at)
        if found.token is not None and self._take_over(found.token, digest, now):
            self._end(ticket)
            return False
        if found.bar is None or now >= found.barred_until:
            return True
        self._end(ticket)
        self._failures = found.failures
        if found.bar.kind is CredentialsRejected:
            self._rejected_digest = digest
        until = found.barred_until
        if found.bar.kind is TokenRateLimited:
            self._asked_until = max(self._asked_until, until)
            until = min(until, now + self._policy.max_retry_after)
        else:
            self._note_failure(found.bar)
        self._raise_bar(found.bar, until)
        return False

    def snapshot(self, digest: str, spent: Mapping[str, Mapping[str, float]]) -> Snapshot:
        """Return what others with the same credentials should know; *spent* is what is known of the budget."""
        ours = self._held is not None and not self._refused and self._held_digest == digest
        others_too = self._bar is not None and self._bar.kind is not TokenBudgetExhausted  # the budget says it itself
        if self._rejected and self._rejected_digest != digest:
            others_too = False
        return Snapshot(
            self._held.token if self._held is not None and ours else None,
            self._bar if others_too else None,
            self._told_until() if others_too else _NEVER,
            self._failures,
            self._ordinary_at,
            spent,
        )

    def stopped(self, ticket: int, now: float) -> bool:
        """Return whether a fetch ends here: given up as lost, or the service has asked to wait meanwhile (rule 10)."""
        if ticket not in self._flights:
            return True
        if self._bar is None or self._bar.kind is not TokenRateLimited or now >= self._barred_until:
            return False
        self._end(ticket)
        return True

    def next_is_extra(self, ticket: int, now: float) -> bool:
        """Say whether the next attempt draws on the reserve (rule 8).

        Only a first attempt that comes no sooner than the ordinary refresh would is ordinary: however
        often the token endpoint fails, what comes in between is paid for by the reserve.
        """
        flight = self._flights.get(ticket)
        first = flight is not None and flight.attempts == 0
        return not first or not self._ordinary_is_due(now)

    def budget_answered(self, ticket: int, grant: Grant, now: float, *, extra: bool) -> bool:
        """Note what the budget said; return whether the attempt may be sent (rule 5)."""
        flight = self._flights.get(ticket)
        self._pressure, self._pace = grant.pressure, grant.pace
        if not extra and grant.granted:
            if flight is not None and flight.ordinary_before is None:
                flight.ordinary_before = self._ordinary_at
            self._ordinary_at = now
        if flight is None:
            return False
        if grant.granted:
            flight.attempts += 1
            flight.due_at, flight.late = self._due(now), False
            return True
        self._end(ticket)
        if flight.failure is not None:  # no unit for another attempt: the last one's failure stands
            self._cool_down(flight.failure, now)
            return False
        until = now + grant.retry_in
        if extra:
            until = min(until, max(self._ordinary_at + self._interval(), now + grant.ordinary_in))
        self._raise_bar(grant.failure or BUDGET_SPENT, until)
        return False

    def grant_expired(self, ticket: int) -> None:
        """Note that the last grant has become too old to be used: nothing was sent (rule 5)."""
        flight = self._flights.get(ticket)
        if flight is not None:
            flight.attempts -= 1
            if not flight.attempts and flight.ordinary_before is not None:
                self._ordinary_at, flight.ordinary_before = flight.ordinary_before, None

    def token_arrived(self, ticket: int, token: Token, now: float, *, digest: str = "") -> None:
        """Take over a token, if it is of any use (rules 1, 2 and 12).

        That of a fetch that was given up is used, too, unless there is a newer one: it was paid for (rule 16).
        *digest* names the credentials of such a fetch.
        """
        flight = self._end(ticket)
        held = self._hold_token(token)
        if flight is None:
            known = _NEVER if self._held is None else self._held.token.requested_at
            if known < token.requested_at and now < held.usable_until:
                self._hold_on_to(held, digest)
            return
        if held.usable_until <= now:
            self._cool_down(_expired_on_its_way(token), now)
            return
        self._hold_on_to(held, flight.digest)
        if not flight.forced:
            self._forced_in_row = 0

    def attempt_failed(self, ticket: int, failure: Failure, now: float, *, draw: float, digest: str) -> float | None:
        """Note a failed attempt; return the pause before the next one, or ``None`` if that was all.

        Args:
            ticket: The fetch.
            failure: What went wrong.
            now: The time.
            draw: A random number in [0, 1), for full jitter.
            digest: Names the credentials that were used.
        """
        flight = self._flights.get(ticket)
        if flight is None:
            if failure.kind is TokenRateLimited:  # it is true, however late it comes
                self._rate_limited(failure, now)
            return None
        if self._may_retry(flight, failure):
            bound = self._policy.backoff_base * 2.0 ** min(flight.attempts - 1, 32)
            pause = min(self._policy.backoff_cap, bound) * draw
            flight.due_at, flight.late = self._due(now) + pause, False
            flight.failure = failure
            return pause
        self._end(ticket)
        if failure.is_bug:
            self._note_failure(failure)
        elif failure.kind is CredentialsRejected:
            self._rejected_digest = digest
            if self._refused:  # the service says no on both sides
                self._held, self._refused = None, False
            self._fail(failure, now, self._policy.rejection_cooldown)
        elif failure.kind is TokenRateLimited:
            self._rate_limited(failure, now)
        else:
            self._cool_down(failure, now)
        return None

    def fetch_failed(self, ticket: int, failure: Failure, now: float) -> None:
        """Note that a fetch cannot go on (rule 11)."""
        if self._end(ticket) is not None:
            self._cool_down(failure, now)

    def fetch_abandoned(self, ticket: int, now: float) -> Failure | None:
        """Note that what carried a fetch is gone: its client, event loop, task or thread (rules 16 and 17).

        That says nothing of the token endpoint, unless an attempt had failed before: its failure is returned.
        """
        flight = self._end(ticket)
        if flight is None:
            return None
        if flight.failure is not None:
            self._cool_down(flight.failure, now)
        elif flight.ordinary_before is not None:
            self._ordinary_at = flight.ordinary_before  # the fetch that takes its place is an ordinary one
        return flight.failure

    def forget_flights(self) -> None:
        """Give up all fetches without a word: this is another process now (rule 17)."""
        self._flights.clear()
        self.late = ()

    # --- what happened to a call ------------------------------------------------------------------

    def token_refused(self, token: Token, now: float) -> bool:
        """Note a 401; return whether the call should be sent again (rules 7 and 8)."""
        self._drop_lost_flights(now)
        source = self._source(now)
        if self._held is None or self._held.token != token:
            return self._age(now) is not Age.ABSENT or source is not Source.BARRED
        if source is Source.BARRED:
            return False
        if not self._refused and source is Source.FREE and now < self._held.reuse_until:
            if not self._may_force(now):
                return False
            self._count_forced(now)
        self._refused = True
        return True

    def token_accepted(self, token: Token) -> None:
        """Note that a call with *token* was not answered 401 (rule 8)."""
        if self._held is not None and self._held.token == token:
            self._forced_in_row = 0

    def token_dropped(self, token: Token) -> None:
        """Forget *token* if it is the current one."""
        if self._held is not None and self._held.token == token:
            self._held, self._refused = None, False

    # --- the two axes of the table ----------------------------------------------------------------

    def _age(self, now: float, min_validity: float = 0.0) -> Age:
        held = self._held
        if held is None or now + min_validity >= held.usable_until:
            return Age.ABSENT
        if now >= held.reuse_until:
            return Age.STALE
        if self._refused:
            return Age.REFUSED
        return Age.FRESH if now < held.refresh_at else Age.AGING

    def _source(self, now: float) -> Source:
        if self._flights:
            return Source.BUSY
        return Source.FREE if now >= self._barred_until else Source.BARRED

    @property
    def _rejected(self) -> bool:
        return self._bar is not None and self._bar.kind is CredentialsRejected

    # --- details ------------------------------------------------------------------------------

    def _use(self, refresh: int | None = None) -> Use:
        assert self._held is not None
        return Use(self._held.token, refresh)

    def _foreground_from(self) -> float:
        """Return from when on a request refreshes in the foreground: before, one whose carrier lives on may come."""
        assert self._held is not None
        window = self._held.reuse_until - self._held.refresh_at
        return self._held.refresh_at + window / 5

    def _use_unless_own(self, own: int | None, now: float, deadline: float) -> Use | Wait:
        flight = None if own is None else self._flights.get(own)
        until = _NEVER if flight is None else min(flight.wait_until, deadline)
        return Wait(until) if now < until else self._use()

    def _wait(self, now: float, deadline: float, min_validity: float) -> Decision:
        until = min([deadline, *(flight.due_at for flight in self._flights.values())])
        if self._age(now, min_validity) is Age.STALE:
            assert self._held is not None
            # Rule 6: whoever has a usable token does not wait until it has none.
            until = min(until, self._held.usable_until - self._policy.expiry_skew)
            if now >= until:
                return self._use()
        if now >= deadline:
            if self._age(now) is not Age.ABSENT:
                return self._use()  # refused, or too short for the wish: better than none
            asking = all(flight.asking for flight in self._flights.values())
            return Fail(_NO_CREDENTIALS_YET if asking else _NO_ANSWER_YET, _FIRST_COOLDOWN)
        return Wait(until)

    def _hold(self, now: float, deadline: float) -> Decision:
        assert self._bar is not None
        waits = self._bar.kind in (TokenBudgetExhausted, TokenRateLimited)
        if waits and self._barred_until <= deadline:
            return Wait(self._barred_until)
        return Fail(self._bar, self._barred_until - now)

    def _depart(self, now: float, *, forced: bool, wait_until: float = _NEVER) -> int:
        self._last_ticket += 1
        due_at = self._first_due(now) if self._reaction is None else now + self._reaction
        self._flights[self._last_ticket] = Flight(due_at, forced, wait_until, asking=self._rotating)
        return self._last_ticket

    def _end(self, ticket: int) -> Flight | None:
        flight = self._flights.pop(ticket, None)
        if flight is not None:
            self.ended_fetches += 1
        return flight

    def _first_due(self, now: float) -> float:
        due_at = self._due(now)
        # A secrets manager may take longer than a token request.
        return max(due_at, now + self._policy.max_wait + self._grace) if self._rotating else due_at

    def _due(self, now: float) -> float:
        return now + self._policy.fetch_timeout + self._grace

    def _drop_lost_flights(self, now: float) -> None:
        for ticket, flight in list(self._flights.items()):
            if now < flight.due_at:
                continue
            if flight.started and not flight.late and self._reaction is not None:
                flight.late, flight.due_at = True, now + self._reaction
                self.late = (*self.late, ticket)
                continue
            self.fetch_abandoned(ticket, now)
            if flight.started or self._reaction is None:
                self._lost += 1
                if self._lost > _LOST_BEFORE_OUTAGE:
                    self._cool_down(_LOST, now)

    def _window(self, expires_in: float) -> tuple[float, float, float]:
        """Return when a token is refreshed, until when it is reused and usable (rules 1, 2 and 6).

        Where the limits do not sustain more, it is refreshed later: through the reuse window, and to its very end.
        """
        refresh_at, reuse_for, usable_for = self._policy.windows(expires_in)
        later = min(max(refresh_at, self._pace), usable_for)
        return later, min(max(reuse_for, later + reuse_for - refresh_at), usable_for), usable_for

    def _interval(self) -> float:
        """Return how long after one ordinary request the next one is due.

        A token that lives shorter than documented does not make its successors ordinary: the hour's
        budget would be gone long before the hour.
        """
        expires_in = LIFETIME if self._held is None else max(LIFETIME, self._held.token.expires_in)
        return self._window(expires_in)[0]

    def _ordinary_is_due(self, now: float) -> bool:
        return now >= self._ordinary_at + self._interval()

    def _hold_token(self, token: Token) -> _Held:
        return _Held(token, *(token.requested_at + seconds for seconds in self._window(token.expires_in)))

    def _hold_on_to(self, held: _Held, digest: str) -> None:
        self._held, self._held_digest, self._refused = held, digest, False
        self._failed, self._failures, self._lost = None, 0, 0
        if self._bar is not None and self._bar.kind not in (TokenBudgetExhausted, TokenRateLimited):
            self._lift_bar()

    def _take_over(self, token: Token, digest: str, now: float) -> bool:
        """Take a token that somebody else fetched, if it is better; return whether it is young enough to stay."""
        if self._held is not None and (self._held.token == token or self._held.token.requested_at > token.requested_at):
            return False  # the very one that has to be replaced, or an older one
        held = self._hold_token(token)
        if now < held.usable_until:
            self._hold_on_to(held, digest)
        return now < held.refresh_at

    def _may_retry(self, flight: Flight, failure: Failure) -> bool:
        if failure.kind in (CredentialsRejected, TokenRateLimited) or not failure.retryable:
            return False
        # After a failed fetch comes one trial request, not a stampede. And who has a token waits for one attempt.
        return flight.attempts < self._policy.fetch_attempts and not self._failures and not flight.foreground

    def _cool_down(self, failure: Failure, now: float) -> None:
        interval = self._interval()
        pause = min(_FIRST_COOLDOWN * 2.0 ** min(self._failures, 32), interval)
        self._failures += 1
        # What comes sooner than the ordinary request draws on the reserve: spare the second half of it.
        sparing = min((2.0 * self._pressure - 1.0) * interval, self._ordinary_at + interval - now)
        self._fail(failure, now, max(pause, sparing))

    def _fail(self, failure: Failure, now: float, pause: float) -> None:
        self._note_failure(failure)
        self._raise_bar(failure, now + pause)

    def _note_failure(self, failure: Failure) -> None:
        self._failed = failure
        self.failed_fetches += 1

    def _told_until(self) -> float:
        # What the service said, not what our own max_retry_after makes of it: others may have another one.
        limited = self._bar is not None and self._bar.kind is TokenRateLimited
        return max(self._asked_until, self._barred_until) if limited else self._barred_until

    def _rate_limited(self, failure: Failure, now: float) -> None:
        self._asked_until = max(self._asked_until, now + (failure.retry_after or 0.0))
        self._raise_bar(failure, now + min(failure.retry_after or 0.0, self._policy.max_retry_after))

    def _raise_bar(self, failure: Failure, until: float) -> None:
        if until >= self._barred_until:
            self._bar, self._barred_until = failure, until

    def _lift_bar(self) -> None:
        self._bar, self._barred_until, self._rejected_digest = None, _NEVER, None

    def _may_force(self, now: float) -> bool:
        policy = self._policy
        if self._forced_in_row >= policy.max_forced_refreshes:
            if now < self._forced_at + policy.rejection_cooldown or not policy.max_forced_refreshes:
                return False
            self._forced_in_row = 0
        if not policy.forced_reserve:
            return False
        return self._ordinary_is_due(now) or now >= self._drawn_at + self._spacing()

    def _spacing(self) -> float:
        """Return how far apart forced refreshes are, by what is left of the reserve (rule 8)."""
        reserve = self._policy.forced_reserve
        # The last of it, at most half, is for the retries within a fetch.
        if self._pressure >= max(1.0 - (self._policy.fetch_attempts - 1) / reserve, 0.5):
            return _EVER
        doubled: float = 2.0 ** min(max(self._pressure * reserve - 1.0, 0.0), 32)
        return min(_FIRST_SPACING * doubled, _HOUR / reserve)

    def _count_forced(self, now: float) -> None:
        self._forced_at = now
        self._forced_in_row += 1
        if not self._ordinary_is_due(now):
            self._drawn_at = now


BUDGET_SPENT = Failure(
    TokenBudgetExhausted,
    "token budget exhausted; request not sent",
    retryable=True,
)
_LOST = Failure(
    TokenEndpointUnavailable,
    "the token request was never heard of again; the call was not sent: try again",
    retryable=True,
)
_NO_CREDENTIALS_YET = Failure(
    TokenEndpointUnavailable,
    "the credentials callable has not returned within the time this call can wait; the call was not sent",
    retryable=True,
)
_NO_ANSWER_YET = Failure(
    TokenEndpointUnavailable,
    "the token endpoint has not answered within the time this call can wait; the call was not sent",
    retryable=True,
)


_INTERRUPTING = Failure(
    TokenEndpointUnavailable,
    "no usable token, and a signal handler or finalizer that interrupts the manager cannot fetch one; not sent: retry",
    retryable=True,
)


def _expired_on_its_way(token: Token) -> Failure:
    return Failure(
        TokenResponseInvalid,
        f"the token was granted for {token.expires_in:g} s and had expired when it came; the call was not sent",
        status=200,
        retryable=True,
    )
