"""The fetches that a machine waits for (rules 3, 16 and 17)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from .constants import FOREVER, NEVER
from .errors import Failure
from .policy import TokenPolicy

GRACE = 1.0  # seconds beyond its timeouts after which a silent fetch counts as lost                rule 17


@dataclass(slots=True)
class PendingFetch:
    """A fetch in progress."""

    due_at: float  # it counts as lost if it reports nothing by then
    forced: bool
    wait_until: float  # until when the request that started it waits for it, although it has a token
    began_at: float
    started: bool = False  # whether it has taken its first step
    interrupted: bool = False  # whether it was interrupted as overdue
    awaiting_credentials: bool = False  # whether the credentials provider has not returned
    digest: str = ""  # of the credentials
    attempts: int = 0
    failure: Failure | None = None  # of the last attempt
    refreshed_before: float | None = None  # `_refreshed_at` before this fetch, if it counted as the regular refresh

    @property
    def foreground(self) -> bool:
        """Whether the request that started it waits for it, although it has a token (rule 2)."""
        return self.wait_until > NEVER


@dataclass(frozen=True, slots=True)
class FetchTimes:
    """When the fetches of a machine become due. The machines of a process share nearly all of them.

    Attributes:
        policy: The timeouts.
        rotating: Whether a fetch calls a credentials provider first.
        grace: Seconds beyond its timeouts after which a silent fetch counts as lost.
        reaction: Seconds within which a fetch takes its first step, and reacts to being interrupted when it is
            overdue; ``None`` where neither is observed.
    """

    policy: TokenPolicy
    rotating: bool
    grace: float
    reaction: float | None

    def added(self, now: float) -> float:
        """Return when a fetch that is added now becomes due unless it takes its first step."""
        return self.started(now) if self.reaction is None else now + self.reaction

    def started(self, now: float) -> float:
        """Return when a fetch that starts now becomes due: a secrets manager may take longer than a token request."""
        sent = self.sent(now)
        return max(sent, now + self.policy.max_wait + self.grace) if self.rotating else sent

    def sent(self, now: float) -> float:
        """Return when a fetch that sends a token request now becomes due."""
        return now + self.policy.fetch_timeout + self.grace


@lru_cache(maxsize=32)  # one object for nearly all machines of a process
def fetch_times(policy: TokenPolicy, rotating: bool, grace: float, reaction: float | None) -> FetchTimes:
    """Return when fetches become due: see :class:`FetchTimes`."""
    return FetchTimes(policy, rotating, grace, reaction)


_NONE: Mapping[int, PendingFetch] = MappingProxyType({})


class PendingFetches:
    """The fetches in progress, by ticket.

    Args:
        times: When they become due.
    """

    __slots__ = ("by_ticket", "ended", "last_ticket", "lost", "overdue", "times")

    def __init__(self, times: FetchTimes) -> None:
        self.times = times
        self.by_ticket = _NONE
        """Never changed, only replaced: most managers have none at most times, and reading needs no lock."""
        self.last_ticket = 0
        self.ended = 0
        """Number of fetches that have ended so far, for any reason."""
        self.lost = 0
        """Number of consecutive lost fetches."""
        self.overdue: tuple[int, ...] = ()
        """Tickets of overdue fetches to interrupt: they count as lost unless they report soon."""

    def start(self, now: float, *, forced: bool, wait_until: float = NEVER) -> int:
        """Add a fetch and return its ticket."""
        self.last_ticket += 1
        due_at, awaits = self.times.added(now), self.times.rotating
        self.add(self.last_ticket, PendingFetch(due_at, forced, wait_until, now, awaiting_credentials=awaits))
        return self.last_ticket

    def add(self, ticket: int, fetch: PendingFetch) -> None:
        """Add a fetch that has a ticket."""
        self.by_ticket = {**self.by_ticket, ticket: fetch}

    def take_first_step(self, ticket: int, now: float) -> None:
        """Record that a fetch has started."""
        fetch = self.by_ticket[ticket]
        fetch.started, fetch.awaiting_credentials = True, self.times.rotating
        fetch.due_at = self.times.started(now)

    def keep(self, fetch: PendingFetch, now: float, pause: float = 0.0) -> None:
        """Extend the deadline of *fetch*, which sleeps for *pause* seconds."""
        fetch.due_at, fetch.interrupted = self.times.sent(now) + pause, False

    def end(self, ticket: int) -> PendingFetch | None:
        """Remove a fetch and return it, unless it has ended before."""
        # No function call between read and write: a signal handler could end another fetch there.
        left = {**self.by_ticket}
        if ticket not in left:
            return None
        fetch = left[ticket]
        del left[ticket]
        self.by_ticket = left or _NONE
        self.ended += 1
        return fetch

    def clear(self) -> None:
        """Remove all fetches: they belong to the parent process (rule 17)."""
        self.by_ticket, self.overdue = _NONE, ()

    def expired(self, now: float) -> Iterator[tuple[int, PendingFetch]]:
        """Yield the lost fetches. A fetch that is overdue for the first time is interrupted instead."""
        reaction = self.times.reaction
        for ticket, fetch in list(self.by_ticket.items()):
            if now < fetch.due_at:
                continue
            if fetch.started and not fetch.interrupted and reaction is not None:
                fetch.interrupted, fetch.due_at = True, now + reaction
                self.overdue = (*self.overdue, ticket)
                continue
            yield ticket, fetch

    @property
    def next_due_at(self) -> float:
        """The first instant at which one of them becomes due."""
        return min((fetch.due_at for fetch in self.by_ticket.values()), default=FOREVER)
