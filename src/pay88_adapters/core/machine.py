"""The rules about requests: which of them use the token, fetch one, wait or fail (rules 1 to 3 and 6 to 8).

Events come in with ``now`` (seconds on the manager's clock), decisions go out as frozen values, and the engine acts on
them. What a request gets depends on two things: the state of the token, and the state of the token endpoint.
"""

from __future__ import annotations

from .constants import FOREVER, NEVER
from .decisions import ACTIONS, Action, Decision, EndpointState, Fail, Fetch, TokenState, Use, Wait
from .errors import Failure, TokenBudgetExhausted, TokenRateLimited
from .failures import INTERRUPTING, NO_CREDENTIALS_YET, NO_TOKEN_YET
from .fetch_machine import FetchMachine
from .token import Token, expires_at

_RETRY_AFTER = 1.0  # seconds after which a request that found no token in time may try again


class TokenMachine(FetchMachine):
    """Decides which request uses the token, fetches one, waits or fails. Takes what :class:`FetchMachine` takes."""

    __slots__ = ()

    def decide(
        self,
        now: float,
        *,
        known_failures: int,
        deadline: float,
        min_validity: float = 0.0,
        must_fetch: bool = False,
        dependency_age: float = FOREVER,
        own: int | None = None,
        cannot_fetch: Failure | None = None,
        can_fetch_from: float | None = None,
        cannot_wait: bool = False,
    ) -> Decision:
        """Return the decision for a request.

        Args:
            now: The time.
            known_failures: The value of ``failed_fetches`` when the request started. A fetch that has failed since then
                fails the request too, even if the request is notified late.
            deadline: End of its wait at the latest, in seconds on the manager's clock.
            min_validity: Seconds for which the token must stay usable.
            must_fetch: Whether the request cannot wait without blocking the fetch that it would wait for.
            dependency_age: Age in seconds of the youngest of its client and its event loop. If one of them may end
                before a fetch does, the request starts no background refresh (rule 2).
            own: The ticket of the fetch that this request has started.
            cannot_fetch: Why this request cannot start a fetch, for example because its client was closed.
            can_fetch_from: From when on it can, if that is only for some time.
            cannot_wait: Whether it can neither start a fetch nor wait for one: it interrupts the manager itself.
        """
        if not cannot_wait:
            self._expire_pending_fetches(now)
        token_state, endpoint_state = self._token_state(now, min_validity), self._endpoint_state(now)
        if min_validity and (endpoint_state is EndpointState.COOLDOWN or self.failed_fetches > known_failures):
            token_state = self._token_state(now)  # the best that any fetch can achieve
        if token_state is TokenState.ABSENT:
            # Its own fetch is pending if the other one was that of a call which blocks this one.
            if self._failed is not None and self.failed_fetches > known_failures and own not in self.pending.by_ticket:
                return Fail(self._failed, self.blocked_for(now))
            in_cooldown = endpoint_state is EndpointState.COOLDOWN
            if in_cooldown and self.cooldown.credentials_rejected and self.pending.times.rotating:
                endpoint_state = EndpointState.FREE  # load the credentials again: they may have changed    rule 9
        if cannot_wait:
            return self._without_fetch(now, deadline, INTERRUPTING, None)
        action = ACTIONS[token_state][endpoint_state]
        if (
            cannot_fetch is not None
            and action in (Action.REFRESH, Action.FETCH)
            and (can_fetch_from is None or now < can_fetch_from)
        ):
            return self._without_fetch(now, deadline, cannot_fetch, can_fetch_from)
        match action:
            case Action.USE:
                return self._use_unless_own(own, now, deadline)
            case Action.REFRESH:
                return self._refresh(now, dependency_age)
            case Action.FETCH:
                return Fetch(self.pending.start(now, forced=token_state is TokenState.REJECTED))
            case Action.WAIT:
                if must_fetch:
                    return Fetch(self.pending.start(now, forced=False))
                return self._wait(now, deadline, min_validity)
            case Action.WAIT_OR_FAIL:
                return self._wait_or_fail(now, deadline)

    def _without_fetch(
        self, now: float, deadline: float, cannot_fetch: Failure, can_fetch_from: float | None
    ) -> Decision:
        """Return the decision for a request that would start a fetch, and cannot."""
        if self._token_state(now) is not TokenState.ABSENT:
            return self._use()
        if can_fetch_from is None:
            return Fail(cannot_fetch, 0.0)
        if now >= deadline:
            return Fail(cannot_fetch, can_fetch_from - now)
        return Wait(min(can_fetch_from, deadline))  # for the fetch of another client

    def _refresh(self, now: float, dependency_age: float) -> Decision:
        """Start a background refresh; or, in the last part of the refresh window, one in the foreground (rule 2)."""
        if dependency_age >= self._policy.trusted_after:
            return self._use(self.pending.start(now, forced=False))
        if now < self._foreground_from():
            return self._use()
        return Fetch(self.pending.start(now, forced=False, wait_until=now + self._policy.fetch_timeout))

    def fast_path_token(self, now: float) -> tuple[Token | None, float]:
        """Return the token for requests on the fast path, and until when they may use it."""
        cached = self._cached
        if cached is None:
            return None, NEVER
        endpoint_state = self._endpoint_state(now)
        if self._rejected and endpoint_state is not EndpointState.COOLDOWN:
            return None, NEVER
        if endpoint_state is EndpointState.FREE:
            return cached.token, cached.refresh_at
        if endpoint_state is EndpointState.BUSY:
            return cached.token, min(cached.reuse_until, self.pending.next_due_at)
        return cached.token, min(
            cached.usable_until, max(self.cooldown.next_check_at, 0.0 if self._rejected else cached.refresh_at)
        )

    def blocked_for(self, now: float) -> float:
        """Return the seconds until a token may be requested."""
        return max(self.cooldown.until - now, 0.0)

    def is_usable_at(self, at: float) -> bool:
        """Whether the current token can be used at that instant."""
        cached = self._cached
        return cached is not None and at < cached.usable_until

    def expires_in(self, now: float) -> float | None:
        """Return for how many seconds the token stays valid, if there is one. Needs no lock."""
        token = self._token
        left = 0.0 if token is None else expires_at(token) - now
        return left if left > 0 else None

    @property
    def pending_fetches(self) -> frozenset[int]:
        """The tickets of the pending fetches."""
        return frozenset(self.pending.by_ticket)

    @property
    def awaiting_first_success(self) -> bool:
        """Whether the result of an accepted request changes anything: see :meth:`on_accepted`."""
        return self.forced.consecutive > 0

    def on_unauthorized(self, token: Token, now: float) -> bool:
        """Record a 401; return whether the request should be replayed (rules 7 and 8)."""
        self._expire_pending_fetches(now)
        cached, endpoint_state = self._cached, self._endpoint_state(now)
        if cached is None or cached.token != token:
            return self._token_state(now) is not TokenState.ABSENT or endpoint_state is not EndpointState.COOLDOWN
        if endpoint_state is EndpointState.COOLDOWN:
            return False
        if not self._rejected and endpoint_state is EndpointState.FREE and now < cached.reuse_until:
            is_due = self._refresh_is_due(now)
            forced = self.forced.next(self._policy, now, is_due=is_due, reserve_used=self._reserve_used)
            if forced is None:
                return False
            self.forced = forced
        self._rejected = True
        return True

    def on_accepted(self, token: Token) -> None:
        """Record that a request with *token* got no 401 (rule 8)."""
        if self._token == token:
            self.forced = self.forced.succeeded()

    def discard_token(self, token: Token) -> None:
        """Discard *token* if it is the cached one."""
        if self._token == token:
            self._token, self._rejected, self._discarded = None, False, token

    def _use(self, refresh: int | None = None) -> Use:
        assert self._token is not None
        return Use(self._token, refresh)

    def _foreground_from(self) -> float:
        """Return from when on a request refreshes in the foreground. Before, one with a lasting client may come."""
        cached = self._cached
        assert cached is not None
        window = cached.reuse_until - cached.refresh_at
        return cached.refresh_at + window / 5

    def _use_unless_own(self, own: int | None, now: float, deadline: float) -> Use | Wait:
        fetch = None if own is None else self.pending.by_ticket.get(own)
        until = NEVER if fetch is None else min(fetch.wait_until, deadline)
        return Wait(until) if now < until else self._use()

    def _wait(self, now: float, deadline: float, min_validity: float) -> Decision:
        until = min(deadline, self.pending.next_due_at)
        if self._token_state(now, min_validity) is TokenState.STALE:
            cached = self._cached
            assert cached is not None
            # Rule 6: a request with a usable token does not wait until the token is unusable.
            until = min(until, cached.usable_until - self._policy.expiry_skew)
            if now >= until:
                return self._use()
        if now >= deadline:
            if self._token_state(now) is not TokenState.ABSENT:
                return self._use()  # rejected, or with a lifetime below *min_validity*: better than none
            return Fail(self._waited_for(now), _RETRY_AFTER)
        return Wait(until)

    def _waited_for(self, now: float) -> Failure:
        """Return why a request got no token while a fetch is pending."""
        fetches, reason = self.pending.by_ticket.values(), self.cooldown.reason
        if (
            reason is not None
            and reason.kind in (TokenBudgetExhausted, TokenRateLimited)
            and now < self.cooldown.until + self._policy.max_wait
            and not any(fetch.attempts for fetch in fetches)
        ):
            return reason  # the fetch is about to check whether the reason still holds
        return NO_CREDENTIALS_YET if all(fetch.awaiting_credentials for fetch in fetches) else NO_TOKEN_YET

    def _wait_or_fail(self, now: float, deadline: float) -> Decision:
        assert self.cooldown.reason is not None
        waits = self.cooldown.is_for(TokenBudgetExhausted, TokenRateLimited)
        if waits and self.cooldown.until <= deadline:
            return Wait(self.cooldown.until)
        return Fail(self.cooldown.reason, self.cooldown.until - now)
