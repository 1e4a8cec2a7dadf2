"""Scenarios of simulated workers: faults, what may be concluded from them, and the outcome."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pay88_adapters import Pay88Error, TokenPolicy

if TYPE_CHECKING:
    from support.simulation.process import Process

URL = "https://api-sandbox.88pay.io"
MERCHANT = "MCH-COL-FLEET"
LIFETIME = 60.0
HOUR = 3_600.0
DOCUMENTED = ((10, 60.0), (100, HOUR))
START = 10_000.0
GUARD = TokenPolicy().fetch_timeout
ALONE = ("store down", "partition", "emptied", "failover", "old copy", "deploy")
"""Faults after which more of the budget may be used than one process would have used."""
RECOVERY = 70.0
"""Seconds after the last fault from which on no call fails: the life of a token, and until a store is tried again."""
UNDER_WAY = 10.0  # seconds for which what began during a fault may be under way
REPORTING = 1.0  # seconds in which a process reports a 429 to the store
CLOSE = 2.0  # seconds by which an error may be wrong about when a retry can succeed
WORKERS = 3  # calls that a manager has under way at most
PROBING = 16  # members at most, that take errors at their word: with more of them there are enough calls
EASES_OFF = 15.0  # seconds after an error in which calls are further apart
APART = 10.0  # seconds, then
EPSILON = 1e-6
TICK = 1e-4  # seconds: no timer is more exact


@dataclass(frozen=True)
class Fault:
    """An injected fault.

    Attributes:
        at: Seconds after the beginning.
        kind: What: see :data:`KINDS`.
        lasts: For how many seconds.
        who: Which member it happens to, where it happens to one.
        amount: How much: a probability, or seconds. For a deploy, 1 if the processes end cleanly.
        how: In which way.
    """

    at: float
    kind: str
    lasts: float = 0.0
    who: int = 0
    amount: float = 0.0
    how: str = ""


@dataclass(frozen=True)
class Scenario:
    """Workers, and the faults.

    Attributes:
        seed: Of all chance.
        members: How many processes.
        hours: For how long they run.
        gap: Mean seconds from one call of a manager to the next.
        limits: Of the token budget.
        hosts: On how many hosts, which have a fallback store each if *fallback* is true.
        managers: How many a process has.
        churn: Mean seconds that a process lives; 0 for no end. Another one replaces it.
        young: Whether each call has an HTTP client and an event loop of its own, which end with it.
        idle: How many members make no call, but for the first.
        share: Each one's of the budget while the store fails, if it is set by hand.
        faults: The injected faults.
    """

    seed: int = 0
    members: int = 1
    hours: float = 1.0
    gap: float = 1.0
    limits: tuple[str, ...] = ("10/minute", "100/hour")
    hosts: int = 1
    fallback: bool = False
    managers: int = 1
    churn: float = 0.0
    young: bool = False
    idle: int = 0
    share: float | None = None
    faults: tuple[Fault, ...] = ()


class Violation(NamedTuple):
    """A rule that was broken."""

    at: float
    rule: str
    what: str


@dataclass(frozen=True)
class Request:
    """A token request, as the service received it."""

    at: float
    process: Process
    unit: str
    granted_at: float
    known: bool  # whether its process had ever reached the store
    through_store: bool  # whether the store granted it
    cut_off: bool  # whether its process alone could not reach the store


@dataclass
class Outcome:
    """What came of it."""

    scenario: Scenario
    violations: list[Violation] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    waited: int = 0
    failed: list[tuple[float, Pay88Error]] = field(default_factory=list)
    rejected: int = 0
    used: int = 0
    """Calls that failed because the budget was exhausted before, within the rules."""
    forgotten: int = 0
    """Units of the budget that no process knows any longer."""

    def sent(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Return when token requests arrived, in seconds after the beginning."""
        return [each.at - START for each in self.requests if since <= each.at - START < until]
