"""The rules about fetches: what each result means, and what to do next (rules 4, 5 and 9 to 17)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .budget import AcquireResult
from .cached_token import NO_DEADLINES, CachedToken, deadlines
from .constants import NEVER
from .cooldown import NO_COOLDOWN
from .decisions import EndpointState, TokenState
from .errors import CredentialsRejected, Failure, TokenBudgetExhausted, TokenRateLimited
from .failures import BUDGET_EXHAUSTED, LOST, expired_on_arrival
from .forced_refreshes import NO_FORCED_REFRESHES
from .pending import GRACE, PendingFetch, PendingFetches, fetch_times
from .policy import LIFETIME, TokenPolicy
from .snapshot import Snapshot
from .token import Token

_FIRST_COOLDOWN = 1.0  # seconds; doubles up to the refresh interval                          rule 11
_LOST_BEFORE_OUTAGE = 2  # consecutive fetches that may be lost before they count as an outage    rule 16


class FetchMachine:
    """The state of the token and of the token endpoint, and how fetches change it.

    Args:
        policy: The durations and counts of the rules.
        rotating: Whether the credentials can change, so that they are loaded again after a rejection.
        grace: Seconds beyond its timeouts after which a silent fetch counts as lost.
        reaction: Seconds within which a fetch takes its first step, and reacts to being interrupted when it is
            overdue; ``None`` where neither is observed.
    """

    __slots__ = (
        "_cached_digest",
        "_deadlines",
        "_discarded",
        "_failed",
        "_failures",
        "_pace",
        "_refreshed_at",
        "_rejected",
        "_reserve_used",
        "_token",
        "cooldown",
        "failed_fetches",
        "forced",
        "pending",
    )

    def __init__(
        self,
        policy: TokenPolicy,
        *,
        rotating: bool = False,
        grace: float = GRACE,
        reaction: float | None = None,
    ) -> None:
        self.pending = PendingFetches(fetch_times(policy, rotating, grace, reaction))
        self.cooldown = NO_COOLDOWN
        self.forced = NO_FORCED_REFRESHES
        self._reserve_used = 0.0  # fraction, from 0 to 1
        self._token: Token | None = None
        self._deadlines = NO_DEADLINES  # of that token
        self._cached_digest = ""  # of the credentials that it was fetched with
        self._discarded: Token | None = None
        self._rejected = False
        self._failed: Failure | None = None
        self.failed_fetches = 0
        """Number of failed fetches so far: see :meth:`decide`."""
        self._failures = 0
        self._pace = 0.0
        self._refreshed_at = NEVER

    @property
    def _policy(self) -> TokenPolicy:
        return self.pending.times.policy

    def on_fetch_started(self, ticket: int, now: float) -> bool:
        """Record the first step of a fetch; return whether it is still wanted.

        A fetch that was given up because it started late is still wanted if no other fetch has replaced it.
        """
        fetch = self.pending.by_ticket.get(ticket)
        if fetch is None:
            token_state = self._token_state(now)
            if token_state is TokenState.FRESH or self._endpoint_state(now) is not EndpointState.FREE:
                return False
            self.pending.add(ticket, PendingFetch(now, token_state is TokenState.REJECTED, NEVER, now))
        self.pending.take_first_step(ticket, now)
        return True

    def on_credentials(self, ticket: int, digest: str, now: float) -> bool:
        """Record the credentials of a fetch; return whether it may continue (rule 9)."""
        fetch = self.pending.by_ticket.get(ticket)
        if fetch is None:
            return False
        cooldown = self.cooldown
        if cooldown.reason is not None and cooldown.credentials_rejected and now < cooldown.until:
            if digest == cooldown.rejected_key:
                self.pending.end(ticket)
                self._note_failure(cooldown.reason)
                return False
            self.cooldown = cooldown.ended()  # these have not been rejected
        self.pending.keep(fetch, now)
        fetch.awaiting_credentials, fetch.digest = False, digest
        return True

    def heartbeat(self, ticket: int, now: float, *, pause: float = 0.0) -> bool:
        """Extend the deadline of a fetch, which sleeps for *pause* seconds; return whether it is still pending."""
        fetch = self.pending.by_ticket.get(ticket)
        if fetch is None:
            return False
        self.pending.keep(fetch, now, pause)
        return True

    def merge_snapshot(
        self, ticket: int, found: Snapshot, now: float, *, digest: str, reserve_used: float = 0.0, pace: float = 0.0
    ) -> bool:
        """Merge a snapshot of another manager; return whether the fetch has to continue (rule 4).

        Args:
            ticket: The fetch.
            found: The snapshot from the store.
            now: The time.
            digest: Digest of the credentials, which are the same.
            reserve_used: Used fraction of the reserve, with the budget entries of the snapshot.
            pace: Seconds between refreshes that the budget sustains: see :class:`~.budget.AcquireResult`.
        """
        if not self.heartbeat(ticket, now):
            return False
        self._reserve_used, self._pace = reserve_used, pace
        self._refreshed_at = max(self._refreshed_at, found.refreshed_at)
        if found.token is not None and self._take_over(found.token, digest, now):
            self.pending.end(ticket)
            return False
        if found.cooldown_reason is None or now >= found.cooldown_until:
            return True
        self.pending.end(ticket)
        self._failures = found.failures
        if found.cooldown_reason.kind is CredentialsRejected:
            self.cooldown = replace(self.cooldown, rejected_key=digest)
        until = found.cooldown_until
        if found.cooldown_reason.kind is TokenRateLimited:
            self.cooldown = self.cooldown.requested(until)
            until = min(until, now + self._policy.max_retry_after)
        else:
            self._note_failure(found.cooldown_reason)
        self.cooldown = self.cooldown.started(found.cooldown_reason, until)
        return False

    def snapshot(self, digest: str, budget_entries: Mapping[str, Mapping[str, float]]) -> Snapshot:
        """Return the snapshot for managers with the same credentials, with the known *budget_entries*."""
        ours = not self._rejected and self._cached_digest == digest
        token = self._token if ours else None
        reason, until = self.cooldown.to_report(digest)
        return Snapshot(token, reason, until, self._failures, self._refreshed_at, budget_entries)

    def stopped(self, ticket: int, now: float) -> bool:
        """Return whether a fetch ends here.

        It was given up, or meanwhile a 429 has arrived (rule 10), or a token that another fetch requested (rule 3).
        """
        fetch = self.pending.by_ticket.get(ticket)
        if fetch is None:
            return True
        limited = self.cooldown.is_for(TokenRateLimited) and now < self.cooldown.until
        if not limited and not self._has_token_since(fetch, now):
            return False
        self.pending.end(ticket)
        return True

    def _has_token_since(self, fetch: PendingFetch, now: float) -> bool:
        cached = self._cached
        return (
            cached is not None
            and cached.token.requested_at >= fetch.began_at
            and self._cached_digest == fetch.digest
            and self._token_state(now) is TokenState.FRESH
        )

    def uses_reserve(self, ticket: int, now: float) -> bool:
        """Whether the next attempt uses the reserve (rule 8).

        Only a first attempt at the time of a regular refresh is regular. All attempts in between use the reserve,
        however often the token endpoint fails.
        """
        fetch = self.pending.by_ticket.get(ticket)
        first = fetch is not None and fetch.attempts == 0
        return not first or not self._refresh_is_due(now)

    def on_budget_result(self, ticket: int, result: AcquireResult, now: float, *, from_reserve: bool) -> Failure | None:
        """Record the result of an acquisition; return why the fetch failed, if no unit was granted (rule 5).

        If one was granted, the attempt may be sent unless the fetch was given up.
        """
        fetch = self.pending.by_ticket.get(ticket)
        self._reserve_used, self._pace = result.reserve_used, result.pace
        if result.granted:
            self.cooldown = self.cooldown.unless_exhausted()
            if fetch is not None:
                self._count_attempt(fetch, now, regular=not from_reserve)
            return None
        failure = result.failure or BUDGET_EXHAUSTED
        if fetch is None:
            return failure
        self.pending.end(ticket)
        if fetch.failure is not None:  # no unit for a retry: the failure of the last attempt is the result
            self._back_off(fetch.failure, now)
            return fetch.failure
        until = now + result.retry_in
        if from_reserve:
            until = min(until, max(self._refreshed_at + self._interval(), now + result.refresh_allowed_in))
        self.cooldown = self.cooldown.exhausted(failure, until, now)
        return self.cooldown.reason

    def _count_attempt(self, fetch: PendingFetch, now: float, *, regular: bool) -> None:
        fetch.attempts += 1
        self.pending.keep(fetch, now)
        if not regular:
            return
        if fetch.refreshed_before is None:
            fetch.refreshed_before = self._refreshed_at
        self._refreshed_at = now

    def on_grant_expired(self, ticket: int) -> None:
        """Record that the last grant expired before it was used: nothing was sent (rule 5)."""
        fetch = self.pending.by_ticket.get(ticket)
        if fetch is not None:
            fetch.attempts -= 1
            if not fetch.attempts and fetch.refreshed_before is not None:
                self._refreshed_at, fetch.refreshed_before = fetch.refreshed_before, None

    def on_token(self, ticket: int, token: Token, now: float, *, digest: str = "") -> None:
        """Cache a token, unless it is expired (rules 1, 2 and 12).

        The token of a fetch that was given up is cached too, unless there is a newer one: it has used a unit of the
        budget (rule 16). *digest* is that of the credentials of such a fetch.
        """
        fetch = self.pending.end(ticket)
        cached = self._with_deadlines(token)
        if fetch is None:
            known = NEVER if self._token is None else self._token.requested_at
            if known < token.requested_at and now < cached.usable_until:
                self._cache(cached, digest)
            return
        if cached.usable_until <= now:
            self._back_off(expired_on_arrival(token), now)
            return
        self._cache(cached, fetch.digest)
        if not fetch.forced:
            self.forced = self.forced.succeeded()

    def on_attempt_failed(
        self, ticket: int, failure: Failure, now: float, *, jitter: float, digest: str
    ) -> float | None:
        """Record a failed attempt; return the backoff delay in seconds, or ``None`` after the last attempt.

        Args:
            ticket: The fetch.
            failure: The failure of the attempt.
            now: The time.
            jitter: A random number in [0, 1), for full jitter.
            digest: Digest of the credentials that were used.
        """
        fetch = self.pending.by_ticket.get(ticket)
        if fetch is None:
            if failure.kind is TokenRateLimited:  # it counts, however late it arrives
                self._rate_limited(failure, now)
            return None
        if self._may_retry(fetch, failure):
            bound = self._policy.backoff_base * 2.0 ** min(fetch.attempts - 1, 32)
            pause = min(self._policy.backoff_cap, bound) * jitter
            self.pending.keep(fetch, now, pause)
            fetch.failure = failure
            return pause
        self.pending.end(ticket)
        if failure.is_bug:
            self._note_failure(failure)
        elif failure.kind is CredentialsRejected:
            self.cooldown = replace(self.cooldown, rejected_key=digest)
            if self._rejected:  # the API and the token endpoint reject the credentials
                self._token, self._rejected = None, False
            self._fail(failure, now, self._policy.rejection_cooldown)
        elif failure.kind is TokenRateLimited:
            self._rate_limited(failure, now)
        else:
            self._back_off(failure, now)
        return None

    def on_fetch_failed(self, ticket: int, failure: Failure, now: float) -> None:
        """Record that a fetch cannot continue (rule 11)."""
        if self.pending.end(ticket) is not None:
            self._back_off(failure, now)

    def on_fetch_abandoned(self, ticket: int, now: float) -> Failure | None:
        """Record that the client, event loop, task or thread of a fetch is gone (rules 16 and 17).

        That is not a failure of the token endpoint, unless an attempt had failed before: its failure is returned.
        """
        fetch = self.pending.end(ticket)
        if fetch is None:
            return None
        if fetch.failure is not None:
            self._back_off(fetch.failure, now)
        elif fetch.refreshed_before is not None:
            self._refreshed_at = fetch.refreshed_before  # the fetch that replaces it is a regular one
        return fetch.failure

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
        if self.pending.by_ticket:
            return EndpointState.BUSY
        return EndpointState.FREE if now >= self.cooldown.next_check_at else EndpointState.COOLDOWN

    def _expire_pending_fetches(self, now: float) -> None:
        for ticket, fetch in self.pending.expired(now):
            self.on_fetch_abandoned(ticket, now)
            if fetch.started or self.pending.times.reaction is None:
                self.pending.lost += 1
                if self.pending.lost > _LOST_BEFORE_OUTAGE:
                    self._back_off(LOST, now)

    def _interval(self) -> float:
        """Return the seconds from one regular refresh to the next.

        A token with a shorter lifetime than documented does not shorten the interval: the hourly budget would be
        exhausted long before the hour.
        """
        expires_in = LIFETIME if self._token is None else max(LIFETIME, self._token.expires_in)
        return deadlines(self._policy, expires_in, self._pace).refresh_at

    def _refresh_is_due(self, now: float) -> bool:
        return now >= self._refreshed_at + self._interval()

    @property
    def _cached(self) -> CachedToken | None:
        """The cached token, if any, with its deadlines."""
        token = self._token
        return None if token is None else CachedToken(token, self._deadlines)

    def _with_deadlines(self, token: Token) -> CachedToken:
        return CachedToken(token, deadlines(self._policy, token.expires_in, self._pace))

    def _cache(self, cached: CachedToken, digest: str) -> None:
        self._token, self._deadlines = cached
        self._cached_digest, self._rejected = digest, False
        self._failed, self._failures, self.pending.lost = None, 0, 0
        if not self.cooldown.is_for(TokenBudgetExhausted, TokenRateLimited):
            self.cooldown = self.cooldown.ended()

    def _take_over(self, token: Token, digest: str, now: float) -> bool:
        """Cache a token of another manager, if it is newer; return whether it needs no refresh yet."""
        if token == self._discarded:
            return False
        if self._token is not None and (self._token == token or self._token.requested_at > token.requested_at):
            return False  # the token that has to be replaced, or an older one
        cached = self._with_deadlines(token)
        if now < cached.usable_until:
            self._cache(cached, digest)
        return now < cached.refresh_at

    def _may_retry(self, fetch: PendingFetch, failure: Failure) -> bool:
        if failure.kind in (CredentialsRejected, TokenRateLimited) or not failure.retryable:
            return False
        # A failed fetch is followed by one trial request. A foreground refresh, whose request has a token, tries once.
        return fetch.attempts < self._policy.fetch_attempts and not self._failures and not fetch.foreground

    def _back_off(self, failure: Failure, now: float) -> None:
        interval = self._interval()
        pause = min(_FIRST_COOLDOWN * 2.0 ** min(self._failures, 32), interval)
        self._failures += 1
        # A request before the regular refresh uses the reserve. From half of that on, the cooldown grows: at 75 % it is
        # half of an interval, at 100 % a whole one. It never lasts beyond the regular refresh.
        sparing = min((2.0 * self._reserve_used - 1.0) * interval, self._refreshed_at + interval - now)
        self._fail(failure, now, max(pause, sparing))

    def _fail(self, failure: Failure, now: float, pause: float) -> None:
        self._note_failure(failure)
        self.cooldown = self.cooldown.started(failure, now + pause)

    def _note_failure(self, failure: Failure) -> None:
        self._failed = failure
        self.failed_fetches += 1

    def _rate_limited(self, failure: Failure, now: float) -> None:
        wait = failure.retry_after or 0.0
        until = now + min(wait, self._policy.max_retry_after)
        self.cooldown = self.cooldown.requested(now + wait).started(failure, until)
