"""What was seen: by the callers, by the server, and when."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qs, urlsplit

from pay88_adapters import Pay88Error, Stats, TokenPolicy
from pay88_adapters.engine.clock import Clock
from pay88_adapters.testing import Charge, Entry, Journal

_CALL_ID = "call"


class Scene(Enum):
    """What a phase is about."""

    COLD = "cold start"
    STEADY = "steady load"
    STORM = "storm of 401s"
    OUTAGE = "token endpoint down"


@dataclass(frozen=True, slots=True)
class Moment:
    """The state of things at one instant."""

    at: float
    """On the service's clock."""
    mark: int
    """Of the journal."""
    waited: int
    """How many calls had waited for a token until then."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run."""

    scene: Scene
    began: Moment
    ended: Moment

    @property
    def waited(self) -> int:
        """How many calls waited for a token."""
        return self.ended.waited - self.began.waited


@dataclass(frozen=True, slots=True)
class Job:
    """One call to make."""

    call_id: str
    target: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call, as its caller saw it."""

    call_id: str
    stack: str
    began_at: float
    """On the service's clock."""
    seconds: float
    """Real ones."""
    status: int | None = None
    error: Exception | None = None

    @property
    def answered(self) -> bool:
        """Whether the service did what was asked."""
        return self.status == 200

    @property
    def explained(self) -> bool:
        """Whether it was answered, or failed as the package says that calls fail."""
        return self.status is not None or isinstance(self.error, Pay88Error)


class Ledger:
    """Numbers the calls and keeps their outcomes. Any thread may use it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.outcomes: list[Outcome] = []
        self._lock = threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()

    def job(self, stack: str, merchant_id: str) -> Job:
        """Return the next call for *stack*: a balance and a charge by turns."""
        with self._lock:
            self._numbers[stack] += 1
            number = self._numbers[stack]
        call_id = f"{stack.replace(' ', '-')}-{number:04}"
        if number % 2:
            return Job(call_id, f"/api/balance?id={merchant_id}&{_CALL_ID}={call_id}", None)
        body = f'{{"flow": "payin", "amount": 1000, "currency": "COP", "description": "{call_id}"}}'
        return Job(call_id, f"/api/transactions/charges?{_CALL_ID}={call_id}", body.encode())

    def add(self, worker: str, outcome: Outcome) -> None:
        """Keep what became of a call."""
        with self._lock:
            self.outcomes.append(outcome)
            self._ended[worker] += 1

    def ended(self) -> Counter[str]:
        """Return how many calls each worker has seen the end of."""
        with self._lock:
            return self._ended.copy()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the promises are held against."""

    journal: Journal
    outcomes: Sequence[Outcome]
    phases: Sequence[Phase]
    stats: Stats
    charges: Sequence[Charge] = ()
    unfinished: str = ""
    """What the run did not come to the end of; empty if it did."""
    policy: TokenPolicy = field(default_factory=TokenPolicy)

    def entries(self, *scenes: Scene) -> list[Entry]:
        """Return what the server received in these scenes."""
        return [
            entry
            for phase in self.phases
            if phase.scene in scenes
            for entry in self.journal[phase.began.mark : phase.ended.mark]
        ]

    def token_requests(self, *scenes: Scene) -> list[Entry]:
        """Return the token requests among them."""
        return [entry for entry in self.entries(*scenes) if entry.kind == "token"]

    def calls(self, *scenes: Scene) -> list[Entry]:
        """Return the calls among them."""
        return [entry for entry in self.entries(*scenes) if entry.kind == "call"]

    def begun_in(self, phase: Phase) -> list[Outcome]:
        """Return the calls that began in *phase*."""
        return [each for each in self.outcomes if phase.began.at <= each.began_at < phase.ended.at]


def call_id(entry: Entry) -> str:
    """Return which call a request belongs to."""
    return parse_qs(urlsplit(entry.path).query)[_CALL_ID][0]


def stack_of(an_id: str) -> str:
    """Return which stack made a call."""
    return an_id.rpartition("-")[0].replace("-", " ")
