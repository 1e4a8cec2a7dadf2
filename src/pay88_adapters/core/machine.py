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

from .budget import AcquireResult
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


class TokenState(Enum):
    """Of the token held, counted from the moment its request was sent."""

    FRESH = auto()  # inside the reuse window                                                  rule 1
    AGING = auto()  # in the last part of that window                                          rule 2
    STALE = auto()  # past it, and not past `expires_in - expiry_skew`                         rule 6
    REJECTED = auto()  # FRESH or AGING, but a call was answered 401                            rule 7
    ABSENT = auto()  # past all that, or never fetched


class EndpointState(Enum):
    """The token endpoint, as far as we are concerned."""

    FREE = auto()  # a request may be sent
    BUSY = auto()  # one is in flight                                                          rule 3
    COOLDOWN = auto()  # none before `_cooldown_until`                                             rules 5, 9-11


class Action(Enum):
    """What a call is told."""

    USE = auto()
    REFRESH = auto()  # use it, and start a fetch beside the call
    FETCH = auto()  # start a fetch, then wait for it
    WAIT = auto()
    WAIT_OR_FAIL = auto()  # wait for the bar to lift if that is soon enough, else fail


ACTIONS: Mapping[TokenState, Mapping[EndpointState, Action]] = {
    token_state: dict(zip(EndpointState, row, strict=True))
    for token_state, row in {
        #            FREE            BUSY         BARRED
        TokenState.FRESH: (Action.USE, Action.USE, Action.USE),
        TokenState.AGING: (Action.REFRESH, Action.USE, Action.USE),
        TokenState.STALE: (Action.FETCH, Action.WAIT, Action.USE),
        TokenState.REJECTED: (Action.FETCH, Action.WAIT, Action.USE),
        TokenState.ABSENT: (Action.FETCH, Action.WAIT, Action.WAIT_OR_FAIL),
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
class PendingFetch:
    """A fetch in progress."""

    due_at: float  # it is lost if it has not been heard of by then
    forced: bool
    wait_until: float  # until when the request that started it waits for it, although it has a token
    started: bool = False  # whether it has taken its first step
    interrupted: bool = False  # whether it was interrupted because it is overdue
    awaiting_credentials: bool = False  # for the credentials
    digest: str = ""  # of the credentials
    attempts: int = 0
    failure: Failure | None = None  # of the last attempt
    refreshed_before: float | None = None  # what `_refreshed_at` was before this fetch used the ordinary slot

    @property
    def foreground(self) -> bool:
        """Whether the request that started it waits for it, although it has a token (rule 2)."""
        return self.wait_until > _NEVER


class _CachedToken(NamedTuple):
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
        "_cached",
        "_cached_digest",
        "_consecutive_forced",
        "_cooldown_reason",
        "_cooldown_until",
        "_failed",
        "_failures",
        "_forced_at",
        "_grace",
        "_last_ticket",
        "_lost_fetches",
        "_pace",
        "_pending",
        "_policy",
        "_reaction",
        "_refreshed_at",
        "_rejected",
        "_rejected_key",
        "_requested_until",
        "_reserve_used",
        "_reserve_used_at",
        "_rotating",
        "ended_fetches",
        "failed_fetches",
        "overdue",
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
        self._cached: _CachedToken | None = None
        self._cached_digest = ""  # of the credentials that bought it
        self._rejected = False
        self._pending: dict[int, PendingFetch] = {}
        self._last_ticket = 0
        self._cooldown_reason: Failure | None = None
        self._cooldown_until = self._requested_until = _NEVER
        self._rejected_key: str | None = None
        self._failed: Failure | None = None
        self.failed_fetches = 0
        """How many fetches have failed so far: see :meth:`decide`."""
        self.ended_fetches = 0
        """How many fetches have ended so far, in whatever way."""
        self.overdue: tuple[int, ...] = ()
        """Tickets of overdue fetches to interrupt: they are lost unless they are heard of soon."""
        self._failures = 0
        self._lost_fetches = 0  # consecutive fetches that fell silent
        self._reserve_used = 0.0  # on the budget: see Grant
        self._pace = 0.0
        self._refreshed_at = _NEVER
        self._consecutive_forced = 0
        self._forced_at = _NEVER
        self._reserve_used_at = _NEVER  # on the reserve, by a forced refresh

    # --- what a call asks ---------------------------------------------------------------------

    def decide(
        self,
        now: float,
        *,
        known_failures: int,
        deadline: float,
        min_validity: float = 0.0,
        must_fetch: bool = False,
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
            self._expire_pending_fetches(now)
        token_state, endpoint_state = self._token_state(now, min_validity), self._endpoint_state(now)
        if min_validity and (endpoint_state is EndpointState.COOLDOWN or self.failed_fetches > known_failures):
            token_state = self._token_state(now)  # no fetch can improve on what there is
        if token_state is TokenState.ABSENT and self._failed is not None and self.failed_fetches > known_failures:
            return Fail(self._failed, self.blocked_for(now))
        if (
            token_state is TokenState.ABSENT
            and self._rotating
            and endpoint_state is EndpointState.COOLDOWN
            and self._credentials_rejected
        ):
            endpoint_state = (
                EndpointState.FREE
            )  # ask for the credentials again: they may have changed             rule 9
        action = ACTIONS[token_state][endpoint_state]
        if cannot_wait:
            cannot_lead = _INTERRUPTING
        if cannot_lead is not None and (action in (Action.REFRESH, Action.FETCH) or cannot_wait):
            return Fail(cannot_lead, 0.0) if token_state is TokenState.ABSENT else self._use()
        match action:
            case Action.USE:
                return self._use_unless_own(own, now, deadline)
            case Action.REFRESH:
                if carrier_age >= self._policy.trusted_after:
                    return self._use(self._start_fetch(now, forced=False))
                if now < self._foreground_from():
                    return self._use()
                return Fetch(self._start_fetch(now, forced=False, wait_until=now + self._policy.fetch_timeout))
            case Action.FETCH:
                return Fetch(self._start_fetch(now, forced=token_state is TokenState.REJECTED))
            case Action.WAIT:
                return (
                    Fetch(self._start_fetch(now, forced=False))
                    if must_fetch
                    else self._wait(now, deadline, min_validity)
                )
            case Action.WAIT_OR_FAIL:
                return self._wait_or_fail(now, deadline)

    def fast_path_token(self, now: float) -> tuple[Token | None, float]:
        """Return the token that calls may use without asking, and until when."""
        cached = self._cached
        if cached is None:
            return None, _NEVER
        endpoint_state = self._endpoint_state(now)
        if self._rejected and endpoint_state is not EndpointState.COOLDOWN:
            return None, _NEVER
        if endpoint_state is EndpointState.FREE:
            return cached.token, cached.refresh_at
        if endpoint_state is EndpointState.BUSY:
            return cached.token, min([cached.reuse_until, *(fetch.due_at for fetch in self._pending.values())])
        return cached.token, min(
            cached.usable_until, max(self._cooldown_until, 0.0 if self._rejected else cached.refresh_at)
        )

    def blocked_for(self, now: float) -> float:
        """Return for how many seconds no token may be requested."""
        return max(self._cooldown_until - now, 0.0)

    def expires_in(self, now: float) -> float | None:
        """Return for how many seconds the token stays valid, if there is one. Needs no lock."""
        cached = self._cached
        left = 0.0 if cached is None else cached.token.requested_at + cached.token.expires_in - now
        return left if left > 0 else None

    @property
    def pending_fetches(self) -> frozenset[int]:
        """The tickets of the fetches under way."""
        return frozenset(self._pending)

    @property
    def awaiting_first_success(self) -> bool:
        """Whether an accepted call would be news: see :meth:`on_accepted`."""
        return self._consecutive_forced > 0

    # --- what happened to a fetch ---------------------------------------------------------------

    def on_fetch_started(self, ticket: int, now: float) -> bool:
        """Note the first step of a fetch; return whether it is still wanted.

        One whose start took so long that it was given up is still wanted if no other has taken its place.
        """
        fetch = self._pending.get(ticket)
        if fetch is None:
            token_state = self._token_state(now)
            if token_state is TokenState.FRESH or self._endpoint_state(now) is not EndpointState.FREE:
                return False
            fetch = self._pending[ticket] = PendingFetch(now, token_state is TokenState.REJECTED, _NEVER)
        fetch.started, fetch.awaiting_credentials, fetch.due_at = True, self._rotating, self._first_due(now)
        return True

    def on_credentials(self, ticket: int, digest: str, now: float) -> bool:
        """Note which credentials a fetch will use; return whether it may go on (rule 9)."""
        fetch = self._pending.get(ticket)
        if fetch is None:
            return False
        if self._cooldown_reason is not None and self._credentials_rejected and now < self._cooldown_until:
            if digest == self._rejected_key:
                self._end(ticket)
                self._note_failure(self._cooldown_reason)
                return False
            self._end_cooldown()  # nobody has rejected these
        fetch.due_at, fetch.awaiting_credentials, fetch.interrupted, fetch.digest = self._due(now), False, False, digest
        return True

    def heartbeat(self, ticket: int, now: float, *, pause: float = 0.0) -> bool:
        """Note that a fetch is under way and will be heard of again after *pause* seconds; return whether it counts."""
        fetch = self._pending.get(ticket)
        if fetch is None:
            return False
        fetch.due_at, fetch.interrupted = self._due(now) + pause, False
        return True

    def merge_snapshot(
        self, ticket: int, found: Snapshot, now: float, *, digest: str, reserve_used: float = 0.0, pace: float = 0.0
    ) -> bool:
        """Take over what others have found out; return whether the fetch has to go on (rule 4).

        Args:
            ticket: The fetch.
            found: What they have found out.
            now: The time.
            digest: Names the credentials of all of them.
            pressure: On the budget, by what they know of it.
            pace: That it sustains, see :class:`~pay88_adapters.engine.budget.AcquireResult`.
        """
        if not self.heartbeat(ticket, now):
            return False
        self._reserve_used, self._pace = reserve_used, pace
        self._refreshed_at = max(self._refreshed_at, found.refreshed_at)
        if found.token is not None and self._take_over(found.token, digest, now):
            self._end(ticket)
            return False
        if found.cooldown_reason is None or now >= found.cooldown_until:
            return True
        self._end(ticket)
        self._failures = found.failures
        if found.cooldown_reason.kind is CredentialsRejected:
            self._rejected_key = digest
        until = found.cooldown_until
        if found.cooldown_reason.kind is TokenRateLimited:
            self._requested_until = max(self._requested_until, until)
            until = min(until, now + self._policy.max_retry_after)
        else:
            self._note_failure(found.cooldown_reason)
        self._start_cooldown(found.cooldown_reason, until)
        return False

    def snapshot(self, digest: str, spent: Mapping[str, Mapping[str, float]]) -> Snapshot:
        """Return what others with the same credentials should know; *spent* is what is known of the budget."""
        ours = self._cached is not None and not self._rejected and self._cached_digest == digest
        others_too = (
            self._cooldown_reason is not None and self._cooldown_reason.kind is not TokenBudgetExhausted
        )  # the budget says it itself
        if self._credentials_rejected and self._rejected_key != digest:
            others_too = False
        return Snapshot(
            self._cached.token if self._cached is not None and ours else None,
            self._cooldown_reason if others_too else None,
            self._reported_until() if others_too else _NEVER,
            self._failures,
            self._refreshed_at,
            spent,
        )

    def stopped(self, ticket: int, now: float) -> bool:
        """Return whether a fetch ends here: given up as lost, or the service has asked to wait meanwhile (rule 10)."""
        if ticket not in self._pending:
            return True
        if (
            self._cooldown_reason is None
            or self._cooldown_reason.kind is not TokenRateLimited
            or now >= self._cooldown_until
        ):
            return False
        self._end(ticket)
        return True

    def uses_reserve(self, ticket: int, now: float) -> bool:
        """Say whether the next attempt draws on the reserve (rule 8).

        Only a first attempt that comes no sooner than the ordinary refresh would is ordinary: however
        often the token endpoint fails, what comes in between is paid for by the reserve.
        """
        fetch = self._pending.get(ticket)
        first = fetch is not None and fetch.attempts == 0
        return not first or not self._ordinary_is_due(now)

    def on_budget_result(self, ticket: int, result: AcquireResult, now: float, *, from_reserve: bool) -> bool:
        """Note what the budget said; return whether the attempt may be sent (rule 5)."""
        fetch = self._pending.get(ticket)
        self._reserve_used, self._pace = result.reserve_used, result.pace
        if not from_reserve and result.granted:
            if fetch is not None and fetch.refreshed_before is None:
                fetch.refreshed_before = self._refreshed_at
            self._refreshed_at = now
        if fetch is None:
            return False
        if result.granted:
            fetch.attempts += 1
            fetch.due_at, fetch.interrupted = self._due(now), False
            return True
        self._end(ticket)
        if fetch.failure is not None:  # no unit for another attempt: the last one's failure stands
            self._back_off(fetch.failure, now)
            return False
        until = now + result.retry_in
        if from_reserve:
            until = min(until, max(self._refreshed_at + self._interval(), now + result.refresh_allowed_in))
        self._start_cooldown(result.failure or BUDGET_EXHAUSTED, until)
        return False

    def on_grant_expired(self, ticket: int) -> None:
        """Note that the last grant has become too old to be used: nothing was sent (rule 5)."""
        fetch = self._pending.get(ticket)
        if fetch is not None:
            fetch.attempts -= 1
            if not fetch.attempts and fetch.refreshed_before is not None:
                self._refreshed_at, fetch.refreshed_before = fetch.refreshed_before, None

    def on_token(self, ticket: int, token: Token, now: float, *, digest: str = "") -> None:
        """Take over a token, if it is of any use (rules 1, 2 and 12).

        That of a fetch that was given up is used, too, unless there is a newer one: it was paid for (rule 16).
        *digest* names the credentials of such a fetch.
        """
        fetch = self._end(ticket)
        cached = self._with_deadlines(token)
        if fetch is None:
            known = _NEVER if self._cached is None else self._cached.token.requested_at
            if known < token.requested_at and now < cached.usable_until:
                self._cache(cached, digest)
            return
        if cached.usable_until <= now:
            self._back_off(_expired_on_its_way(token), now)
            return
        self._cache(cached, fetch.digest)
        if not fetch.forced:
            self._consecutive_forced = 0

    def on_attempt_failed(
        self, ticket: int, failure: Failure, now: float, *, jitter: float, digest: str
    ) -> float | None:
        """Note a failed attempt; return the pause before the next one, or ``None`` if that was all.

        Args:
            ticket: The fetch.
            failure: What went wrong.
            now: The time.
            draw: A random number in [0, 1), for full jitter.
            digest: Names the credentials that were used.
        """
        fetch = self._pending.get(ticket)
        if fetch is None:
            if failure.kind is TokenRateLimited:  # it is true, however late it comes
                self._rate_limited(failure, now)
            return None
        if self._may_retry(fetch, failure):
            bound = self._policy.backoff_base * 2.0 ** min(fetch.attempts - 1, 32)
            pause = min(self._policy.backoff_cap, bound) * jitter
            fetch.due_at, fetch.interrupted = self._due(now) + pause, False
            fetch.failure = failure
            return pause
        self._end(ticket)
        if failure.is_bug:
            self._note_failure(failure)
        elif failure.kind is CredentialsRejected:
            self._rejected_key = digest
            if self._rejected:  # the service says no on both sides
                self._cached, self._rejected = None, False
            self._fail(failure, now, self._policy.rejection_cooldown)
        elif failure.kind is TokenRateLimited:
            self._rate_limited(failure, now)
        else:
            self._back_off(failure, now)
        return None

    def on_fetch_failed(self, ticket: int, failure: Failure, now: float) -> None:
        """Note that a fetch cannot go on (rule 11)."""
        if self._end(ticket) is not None:
            self._back_off(failure, now)

    def on_fetch_abandoned(self, ticket: int, now: float) -> Failure | None:
        """Note that what carried a fetch is gone: its client, event loop, task or thread (rules 16 and 17).

        That says nothing of the token endpoint, unless an attempt had failed before: its failure is returned.
        """
        fetch = self._end(ticket)
        if fetch is None:
            return None
        if fetch.failure is not None:
            self._back_off(fetch.failure, now)
        elif fetch.refreshed_before is not None:
            self._refreshed_at = fetch.refreshed_before  # the fetch that takes its place is an ordinary one
        return fetch.failure

    def forget_fetches(self) -> None:
        """Give up all fetches without a word: this is another process now (rule 17)."""
        self._pending.clear()
        self.overdue = ()

    # --- what happened to a call ------------------------------------------------------------------

    def on_unauthorized(self, token: Token, now: float) -> bool:
        """Note a 401; return whether the call should be sent again (rules 7 and 8)."""
        self._expire_pending_fetches(now)
        endpoint_state = self._endpoint_state(now)
        if self._cached is None or self._cached.token != token:
            return self._token_state(now) is not TokenState.ABSENT or endpoint_state is not EndpointState.COOLDOWN
        if endpoint_state is EndpointState.COOLDOWN:
            return False
        if not self._rejected and endpoint_state is EndpointState.FREE and now < self._cached.reuse_until:
            if not self._may_force_refresh(now):
                return False
            self._count_forced(now)
        self._rejected = True
        return True

    def on_accepted(self, token: Token) -> None:
        """Note that a call with *token* was not answered 401 (rule 8)."""
        if self._cached is not None and self._cached.token == token:
            self._consecutive_forced = 0

    def discard_token(self, token: Token) -> None:
        """Forget *token* if it is the current one."""
        if self._cached is not None and self._cached.token == token:
            self._cached, self._rejected = None, False

    # --- the two axes of the table ----------------------------------------------------------------

    def _token_state(self, now: float, min_validity: float = 0.0) -> TokenState:
        cached = self._cached
        if cached is None or now + min_validity >= cached.usable_until:
            return TokenState.ABSENT
        if now >= cached.reuse_until:
            return TokenState.STALE
        if self._rejected:
            return TokenState.REJECTED
        return TokenState.FRESH if now < cached.refresh_at else TokenState.AGING

    def _endpoint_state(self, now: float) -> EndpointState:
        if self._pending:
            return EndpointState.BUSY
        return EndpointState.FREE if now >= self._cooldown_until else EndpointState.COOLDOWN

    @property
    def _credentials_rejected(self) -> bool:
        return self._cooldown_reason is not None and self._cooldown_reason.kind is CredentialsRejected

    # --- details ------------------------------------------------------------------------------

    def _use(self, refresh: int | None = None) -> Use:
        assert self._cached is not None
        return Use(self._cached.token, refresh)

    def _foreground_from(self) -> float:
        """Return from when on a request refreshes in the foreground: before, one whose carrier lives on may come."""
        assert self._cached is not None
        window = self._cached.reuse_until - self._cached.refresh_at
        return self._cached.refresh_at + window / 5

    def _use_unless_own(self, own: int | None, now: float, deadline: float) -> Use | Wait:
        fetch = None if own is None else self._pending.get(own)
        until = _NEVER if fetch is None else min(fetch.wait_until, deadline)
        return Wait(until) if now < until else self._use()

    def _wait(self, now: float, deadline: float, min_validity: float) -> Decision:
        until = min([deadline, *(fetch.due_at for fetch in self._pending.values())])
        if self._token_state(now, min_validity) is TokenState.STALE:
            assert self._cached is not None
            # Rule 6: whoever has a usable token does not wait until it has none.
            until = min(until, self._cached.usable_until - self._policy.expiry_skew)
            if now >= until:
                return self._use()
        if now >= deadline:
            if self._token_state(now) is not TokenState.ABSENT:
                return self._use()  # refused, or too short for the wish: better than none
            awaiting_credentials = all(fetch.awaiting_credentials for fetch in self._pending.values())
            return Fail(_NO_CREDENTIALS_YET if awaiting_credentials else _NO_ANSWER_YET, _FIRST_COOLDOWN)
        return Wait(until)

    def _wait_or_fail(self, now: float, deadline: float) -> Decision:
        assert self._cooldown_reason is not None
        waits = self._cooldown_reason.kind in (TokenBudgetExhausted, TokenRateLimited)
        if waits and self._cooldown_until <= deadline:
            return Wait(self._cooldown_until)
        return Fail(self._cooldown_reason, self._cooldown_until - now)

    def _start_fetch(self, now: float, *, forced: bool, wait_until: float = _NEVER) -> int:
        self._last_ticket += 1
        due_at = self._first_due(now) if self._reaction is None else now + self._reaction
        self._pending[self._last_ticket] = PendingFetch(due_at, forced, wait_until, awaiting_credentials=self._rotating)
        return self._last_ticket

    def _end(self, ticket: int) -> PendingFetch | None:
        fetch = self._pending.pop(ticket, None)
        if fetch is not None:
            self.ended_fetches += 1
        return fetch

    def _first_due(self, now: float) -> float:
        due_at = self._due(now)
        # A secrets manager may take longer than a token request.
        return max(due_at, now + self._policy.max_wait + self._grace) if self._rotating else due_at

    def _due(self, now: float) -> float:
        return now + self._policy.fetch_timeout + self._grace

    def _expire_pending_fetches(self, now: float) -> None:
        for ticket, fetch in list(self._pending.items()):
            if now < fetch.due_at:
                continue
            if fetch.started and not fetch.interrupted and self._reaction is not None:
                fetch.interrupted, fetch.due_at = True, now + self._reaction
                self.overdue = (*self.overdue, ticket)
                continue
            self.on_fetch_abandoned(ticket, now)
            if fetch.started or self._reaction is None:
                self._lost_fetches += 1
                if self._lost_fetches > _LOST_BEFORE_OUTAGE:
                    self._back_off(_LOST, now)

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
        expires_in = LIFETIME if self._cached is None else max(LIFETIME, self._cached.token.expires_in)
        return self._window(expires_in)[0]

    def _ordinary_is_due(self, now: float) -> bool:
        return now >= self._refreshed_at + self._interval()

    def _with_deadlines(self, token: Token) -> _CachedToken:
        return _CachedToken(token, *(token.requested_at + seconds for seconds in self._window(token.expires_in)))

    def _cache(self, cached: _CachedToken, digest: str) -> None:
        self._cached, self._cached_digest, self._rejected = cached, digest, False
        self._failed, self._failures, self._lost_fetches = None, 0, 0
        if self._cooldown_reason is not None and self._cooldown_reason.kind not in (
            TokenBudgetExhausted,
            TokenRateLimited,
        ):
            self._end_cooldown()

    def _take_over(self, token: Token, digest: str, now: float) -> bool:
        """Take a token that somebody else fetched, if it is better; return whether it is young enough to stay."""
        if self._cached is not None and (
            self._cached.token == token or self._cached.token.requested_at > token.requested_at
        ):
            return False  # the very one that has to be replaced, or an older one
        cached = self._with_deadlines(token)
        if now < cached.usable_until:
            self._cache(cached, digest)
        return now < cached.refresh_at

    def _may_retry(self, fetch: PendingFetch, failure: Failure) -> bool:
        if failure.kind in (CredentialsRejected, TokenRateLimited) or not failure.retryable:
            return False
        # After a failed fetch comes one trial request, not a stampede. And who has a token waits for one attempt.
        return fetch.attempts < self._policy.fetch_attempts and not self._failures and not fetch.foreground

    def _back_off(self, failure: Failure, now: float) -> None:
        interval = self._interval()
        pause = min(_FIRST_COOLDOWN * 2.0 ** min(self._failures, 32), interval)
        self._failures += 1
        # What comes sooner than the ordinary request draws on the reserve: spare the second half of it.
        sparing = min((2.0 * self._reserve_used - 1.0) * interval, self._refreshed_at + interval - now)
        self._fail(failure, now, max(pause, sparing))

    def _fail(self, failure: Failure, now: float, pause: float) -> None:
        self._note_failure(failure)
        self._start_cooldown(failure, now + pause)

    def _note_failure(self, failure: Failure) -> None:
        self._failed = failure
        self.failed_fetches += 1

    def _reported_until(self) -> float:
        # What the service said, not what our own max_retry_after makes of it: others may have another one.
        limited = self._cooldown_reason is not None and self._cooldown_reason.kind is TokenRateLimited
        return max(self._requested_until, self._cooldown_until) if limited else self._cooldown_until

    def _rate_limited(self, failure: Failure, now: float) -> None:
        self._requested_until = max(self._requested_until, now + (failure.retry_after or 0.0))
        self._start_cooldown(failure, now + min(failure.retry_after or 0.0, self._policy.max_retry_after))

    def _start_cooldown(self, failure: Failure, until: float) -> None:
        if until >= self._cooldown_until:
            self._cooldown_reason, self._cooldown_until = failure, until

    def _end_cooldown(self) -> None:
        self._cooldown_reason, self._cooldown_until, self._rejected_key = None, _NEVER, None

    def _may_force_refresh(self, now: float) -> bool:
        policy = self._policy
        if self._consecutive_forced >= policy.max_forced_refreshes:
            if now < self._forced_at + policy.rejection_cooldown or not policy.max_forced_refreshes:
                return False
            self._consecutive_forced = 0
        if not policy.forced_reserve:
            return False
        return self._ordinary_is_due(now) or now >= self._reserve_used_at + self._spacing()

    def _spacing(self) -> float:
        """Return how far apart forced refreshes are, by what is left of the reserve (rule 8)."""
        reserve = self._policy.forced_reserve
        # The last of it, at most half, is for the retries within a fetch.
        if self._reserve_used >= max(1.0 - (self._policy.fetch_attempts - 1) / reserve, 0.5):
            return _EVER
        doubled: float = 2.0 ** min(max(self._reserve_used * reserve - 1.0, 0.0), 32)
        return min(_FIRST_SPACING * doubled, _HOUR / reserve)

    def _count_forced(self, now: float) -> None:
        self._forced_at = now
        self._consecutive_forced += 1
        if not self._ordinary_is_due(now):
            self._reserve_used_at = now


BUDGET_EXHAUSTED = Failure(
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
