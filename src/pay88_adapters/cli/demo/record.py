"""The records of the callers and of the server."""

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
    """Subject of a phase."""

    COLD = "cold start"
    STEADY = "steady load"
    STORM = "401 storm"
    OUTAGE = "token endpoint down"


@dataclass(frozen=True, slots=True)
class Moment:
    """State of the demo at one instant."""

    at: float
    """On the service's clock."""
    mark: int
    """Position in the journal."""
    waited: int
    """Number of requests that had waited for a token."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of the run."""

    scene: Scene
    began: Moment
    ended: Moment

    @property
    def waited(self) -> int:
        """Number of requests that waited for a token."""
        return self.ended.waited - self.began.waited


@dataclass(frozen=True, slots=True)
class Job:
    """One request to send."""

    call_id: str
    target: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of one request for its caller."""

    call_id: str
    stack: str
    began_at: float
    """On the service's clock."""
    seconds: float
    """Duration in real seconds."""
    status: int | None = None
    error: Exception | None = None

    @property
    def answered(self) -> bool:
        """Whether the service executed the request."""
        return self.status == 200

    @property
    def explained(self) -> bool:
        """Whether the request got a response or a Pay88Error."""
        return self.status is not None or isinstance(self.error, Pay88Error)


class Ledger:
    """Numbers the requests and stores their outcomes. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.outcomes: list[Outcome] = []
        self._lock = threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()

    def job(self, stack: str, merchant_id: str) -> Job:
        """Return the next request for the client *stack*: balance and charge alternate."""
        with self._lock:
            self._numbers[stack] += 1
            number = self._numbers[stack]
        call_id = f"{stack.replace(' ', '-')}-{number:04}"
        if number % 2:
            return Job(call_id, f"/api/balance?id={merchant_id}&{_CALL_ID}={call_id}", None)
        body = f'{{"flow": "payin", "amount": 1000, "currency": "COP", "description": "{call_id}"}}'
        return Job(call_id, f"/api/transactions/charges?{_CALL_ID}={call_id}", body.encode())

    def add(self, worker: str, outcome: Outcome) -> None:
        """Store the outcome of a request."""
        with self._lock:
            self.outcomes.append(outcome)
            self._ended[worker] += 1

    def ended(self) -> Counter[str]:
        """Return the number of finished requests of each worker."""
        with self._lock:
            return self._ended.copy()


@dataclass(frozen=True, slots=True)
class Evidence:
    """The records that the guarantees are checked against."""

    journal: Journal
    outcomes: Sequence[Outcome]
    phases: Sequence[Phase]
    stats: Stats
    charges: Sequence[Charge] = ()
    unfinished: str = ""
    """The condition that the run waited for until it was given up; empty if it finished."""
    policy: TokenPolicy = field(default_factory=TokenPolicy)

    def entries(self, *scenes: Scene) -> list[Entry]:
        """Return the requests that the server received in these scenes."""
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
        """Return the API requests among them."""
        return [entry for entry in self.entries(*scenes) if entry.kind == "call"]

    def begun_in(self, phase: Phase) -> list[Outcome]:
        """Return the outcomes of requests that began in *phase*."""
        return [each for each in self.outcomes if phase.began.at <= each.began_at < phase.ended.at]


def call_id(entry: Entry) -> str:
    """Return the id of the request that an entry belongs to."""
    return parse_qs(urlsplit(entry.path).query)[_CALL_ID][0]


def stack_of(an_id: str) -> str:
    """Return the client that sent a request."""
    return an_id.rpartition("-")[0].replace("-", " ")
