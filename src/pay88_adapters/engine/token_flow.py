"""How a request gets a token: it uses the cached one, fetches one, or waits for a fetch in progress."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pay88_adapters.core.constants import FOREVER
from pay88_adapters.core.decisions import Decision, Fail, Fetch, Use, Wait
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.events import CallWaited
from pay88_adapters.core.failures import NO_CONNECTION, after_waiting
from pay88_adapters.core.machine import TokenMachine

from .effects import AcquireTokenFlow, Sleep, StartFetch, WaitForFetch
from .fetches import Fetches, FetchRun, sweep
from .runtimes import WaitEvent

_LOOP_POLL = 0.5  # seconds until a fetch on another event loop, which may stop without an event, is checked


class WaitBudget:
    """Seconds of the clock that one call may still wait for permits and tokens, over all its attempts (rules 6 and 22).

    Attributes:
        left: The remaining seconds.
        until: Instant after which the call does not wait in any case.
    """

    __slots__ = ("left", "until")

    def __init__(self, left: float) -> None:
        self.left, self.until = left, FOREVER

    def deadline(self, now: float) -> float:
        """Return the end of a wait that starts now."""
        return min(now + self.left, self.until)


class TokenAcquisition:
    """Gets a token for one attempt: uses it, fetches it, or waits for a fetch in progress (rules 2, 3 and 6).

    Args:
        fetches: Those of the manager.
        join: Returns the event to wait for; called with the lock held, so that no wake-up is lost.
        wait_budget: How long the call may still wait.
        dependencies: What a fetch of this call needs and may end before it: its client, the run of its event loop.
        min_validity: Seconds for which the token must stay usable, if a fetch can achieve that.
        blocks: Whether the caller blocks its thread while it waits. It sends its own token request where a fetch
            needs an event loop of that thread.
    """

    __slots__ = (
        "_blocks",
        "_deadline",
        "_dependencies",
        "_fetched",
        "_fetches",
        "_join",
        "_known_failures",
        "_min_validity",
        "_own",
        "_state",
        "_wait",
        "_wait_budget",
        "_waiting_since",
    )

    def __init__(
        self,
        fetches: Fetches,
        join: Callable[[], WaitEvent],
        *,
        wait_budget: WaitBudget,
        dependencies: tuple[object, ...] = (),
        min_validity: float = 0.0,
        blocks: bool = False,
    ) -> None:
        self._fetches = fetches
        self._state = state = fetches.state
        self._join = join
        self._wait_budget = wait_budget
        self._dependencies = dependencies
        self._min_validity = min_validity
        self._blocks = blocks
        self._deadline = wait_budget.deadline(state.now())
        self._known_failures = state.failed_fetches
        self._waiting_since: float | None = None
        self._fetched = False
        self._own: FetchRun | None = None
        self._wait: WaitForFetch | Sleep | None = None

    def run(self) -> AcquireTokenFlow:
        """Return the token.

        Raises:
            Pay88Error: There is no usable token, and none can be fetched in time.
        """
        state = self._state
        try:
            while True:
                state.check_open()
                decision = state.transition(partial(self._decide, state.is_held_here))
                if state.has_overdue:
                    self._fetches.interrupt_overdue()
                match decision:
                    case Use(token, refresh):
                        if refresh is not None:
                            yield StartFetch(refresh, background=True)
                        return token
                    case Fetch(ticket):
                        self._own = yield StartFetch(ticket, background=False)
                    case Wait():
                        assert self._wait is not None
                        sweep()  # which sets the event, if it ends what this call is about to wait for
                        yield self._wait
                    case Fail(failure, retry_after):
                        waited = 0.0 if self._waiting_since is None else state.now() - self._waiting_since
                        raise after_waiting(failure, waited).error(retry_after)
        finally:
            if self._waiting_since is not None:
                self._wait_budget.left -= state.now() - self._waiting_since

    def _decide(self, interrupts: bool, machine: TokenMachine, now: float) -> Decision:
        state, since = self._state, self._waiting_since
        own = None if self._own is None else self._own.ticket
        if since is not None and (not machine.pending_fetches or own not in (None, *machine.pending_fetches)):
            token, _ = machine.fast_path_token(now)
            # One token request per call; a token of another fetch may be older than the call.
            if self._fetched or token is None or token.requested_at >= since:
                self._min_validity = 0.0
            self._fetched = True
        cannot_fetch, can_fetch_from = self._cannot_fetch()
        decision = machine.decide(
            now,
            known_failures=self._known_failures,
            deadline=self._deadline,
            min_validity=self._min_validity,
            must_fetch=self._blocks and self._own is None and self._fetches.needs_this_thread(),
            dependency_age=state.settings.lifetimes.age(self._dependencies, now),
            own=own,
            cannot_fetch=cannot_fetch,
            can_fetch_from=can_fetch_from,
            cannot_wait=interrupts or self._fetches.on_this_thread(),
        )
        if isinstance(decision, (Fetch, Wait)):
            if since is None:
                self._waiting_since = now
                state.counters.waited += 1
        elif since is not None:
            state.queue_event(CallWaited, "token", now - since)
        if isinstance(decision, Wait):
            left = decision.until - now
            if self._fetches.on_another_loop():
                left = min(left, _LOOP_POLL * state.settings.clock.speed)
            skips = state.settings.clock.skips_pauses and not machine.pending_fetches  # nothing but time ends this wait
            self._wait = Sleep(left) if skips else WaitForFetch(self._join(), left)
        if isinstance(decision, Use) and decision.refresh is not None:
            state.counters.refreshes += 1
        return decision

    def _cannot_fetch(self) -> tuple[Failure | None, float | None]:
        """Return why this call cannot start a fetch, if so, and from when on it can, if that is only for some time."""
        own = self._own
        if own is not None and own.death is not None:
            return own.death, None
        can_fetch_from = self._state.settings.lifetimes.can_fetch_from(self._dependencies)
        if can_fetch_from is None:
            return None, None
        return (NO_CONNECTION if own is None else own.no_connection or NO_CONNECTION), can_fetch_from
