"""Fault injection: the faults between a client and the service, and the plan of when they occur.

Faults are values; :mod:`._responder` injects them. Durations are seconds of the emulator's clock. "Executed" means that
the service acted on the request, although the client may not see it.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, TypeAlias, get_args

from pay88_adapters.core.arguments import check_count, check_finite, check_number, class_of, shown
from pay88_adapters.core.errors import ConfigurationError, shorten

from .holds import Hold
from .messages import Request

Fields: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
On: TypeAlias = str | Callable[[Request], bool]


@dataclass(frozen=True, slots=True)
class Latency:
    """The request is decided *seconds* later; combines with every other fault."""

    seconds: float

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds)


@dataclass(frozen=True, slots=True)
class Status:
    """A status code instead of the service's own, with the documented error body unless *body* is given.

    Not executed, but counted against the limits (unless it is a 429).
    """

    status: int = 500
    headers: Fields = ()
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TooMany:
    """A 429, although no rate limit is reached. Not executed.

    Args:
        retry_after: The header: seconds, any string (an HTTP date, say), or ``None`` to omit it.
        body_retry_after: The body's field; ``"same"`` is the header's seconds, or nothing where the
            header is not a number.
    """

    retry_after: float | str | None = 60
    body_retry_after: float | str | Literal["same"] | None = "same"


@dataclass(frozen=True, slots=True)
class RejectToken:
    """A 401 for a valid token, or for valid credentials. Not executed."""


RefuseToken = RejectToken
"""Deprecated name of :class:`RejectToken`."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirect to *to*. Not executed."""

    to: str
    status: int = 307


@dataclass(frozen=True, slots=True)
class ResetBeforeRead:
    """The connection is reset (RST) as soon as the headers have arrived. Not executed.

    The only fault that does not wait for a latency or a hold.
    """


@dataclass(frozen=True, slots=True)
class ResetAfterRead:
    """The request is read and executed; then the connection is reset (RST) without a response."""


@dataclass(frozen=True, slots=True)
class Truncated:
    """Executed; the response is truncated: the connection ends *missing* bytes before the body does."""

    missing: int = 20

    def __post_init__(self) -> None:
        check_count("missing", self.missing)


@dataclass(frozen=True, slots=True)
class Garbage:
    """Bytes that are not HTTP; then the connection is closed. Not executed."""

    data: bytes = field(default=b"\x00\xff\x16\x03 this is no HTTP \r\n\r\n", repr=False)


@dataclass(frozen=True, slots=True)
class Body:
    """Executed; the response has this body instead of the service's.

    The headers are sent too: ``{"Content-Encoding": "gzip"}`` with a body that is not gzip is wrong,
    and ``{"Set-Cookie": …}`` shows where cookies go.
    """

    body: bytes = field(repr=False)
    status: int = 200
    headers: Fields = ()


@dataclass(frozen=True, slots=True)
class Headers:
    """Executed; the response has these headers in addition.

    They replace headers of the same name, such as ``X-RateLimit-Remaining``.
    """

    headers: Fields


@dataclass(frozen=True, slots=True)
class HugeBody:
    """Executed; the JSON of the response is followed by spaces, up to *size* bytes.

    Args:
        chunked: Send it in chunks, without a ``Content-Length`` header.
    """

    size: int = 10_000_000
    chunked: bool = False

    def __post_init__(self) -> None:
        check_count("size", self.size)


@dataclass(frozen=True, slots=True)
class Drip:
    """Executed; the body of the response is sent slowly: one byte every *seconds*."""

    seconds: float

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds)


Delay: TypeAlias = Latency | Hold
Outcome: TypeAlias = (
    Status
    | TooMany
    | RejectToken
    | Redirect
    | ResetBeforeRead
    | ResetAfterRead
    | Truncated
    | Garbage
    | Body
    | Headers
    | HugeBody
    | Drip
)
Fault: TypeAlias = Delay | Outcome


class Rule:
    """One line of the plan: which requests, which fault, how often.

    As a context manager it is removed from the plan at the end of the block.
    """

    def __init__(
        self,
        plan: FaultPlan,
        faults: Sequence[Fault],
        draw: Callable[[], Fault | None],
        on: On,
        times: int | None,
        after: int,
        probability: float = 1.0,
    ) -> None:
        for fault in faults:
            if not isinstance(fault, get_args(Fault)):
                raise ConfigurationError(f"fault must be one of pay88_adapters.testing, not {class_of(fault)}")
        if times is not None:
            check_count("times", times)
        check_count("after", after)
        self._plan = plan
        self._draw = draw
        self._matches = _matcher(on)
        self.number = next(plan.numbers)
        """Number of the rule in its plan, counted from 1."""
        self.faults = tuple(faults)
        """The faults that may be injected."""
        self.probability = probability
        """Probability of a fault, from 0 to 1."""
        self.on = on
        self.left = times
        """Number of remaining requests that it applies to; ``None`` until it is removed."""
        self.spared = after
        """Number of matching requests that it still lets through first."""
        self.upcoming = draw()
        """The fault for the next matching request: drawn in advance, so that reading it changes nothing."""
        self.used = 0
        """Number of requests that it was applied to so far."""

    def __enter__(self) -> Rule:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove it from the plan. Removing it twice is allowed."""
        self._plan.remove(self)

    def peek(self, received: Request) -> Fault | None:
        """Return what :meth:`take` would return, without a change."""
        if self.left == 0 or self.spared or not self._matches(received):
            return None
        return self.upcoming

    def take(self, received: Request) -> Fault | None:
        """Offer the rule a request; return the fault that it meets, if any."""
        if self.left == 0 or not self._matches(received):
            return None
        if self.spared:
            self.spared -= 1
            return None
        fault, self.upcoming = self.upcoming, self._draw()
        if fault is not None:
            self.used += 1
            self.left = None if self.left is None else self.left - 1
        return fault


class FaultPlan:
    """The plan of faults. Thread-safe.

    Each request meets every latency and hold whose rule matches it, and then the first other fault:
    later rules do not apply to a request that an earlier one has responded to. So faults that were added
    for a path one after another, each with ``times=1``, apply to its requests one after another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self.numbers = itertools.count(1)
        """Source of the rules' numbers."""

    def __repr__(self) -> str:
        return f"<FaultPlan rules={len(self._rules)}>"

    def __iter__(self) -> Iterator[Rule]:
        """Iterate over the current rules, including used ones."""
        with self._lock:
            return iter(list(self._rules))

    def add(self, fault: Fault, on: On = "call", times: int | None = 1, after: int = 0) -> Rule:
        """Plan a fault.

        Args:
            fault: The fault.
            on: To which requests: ``"token"``, ``"call"``, ``"any"``, the start of a path, or a
                predicate (which sees no body yet when it decides on a :class:`ResetBeforeRead`).
            times: How often; ``None`` until it is removed.
            after: Number of matching requests without the fault before the first one with it.

        Raises:
            ConfigurationError: An argument has the wrong type or is out of range.
        """
        return self._append(Rule(self, [fault], lambda: fault, on, times, after))

    def random(
        self,
        rng: int | random.Random,
        probability: float,
        faults: Sequence[Fault],
        on: On = "any",
        times: int | None = None,
        after: int = 0,
    ) -> Rule:
        """Plan one of several faults, at random, for each matching request.

        Args:
            rng: A seed, or a source of random numbers. Draws are in the order of arrival.
            probability: Probability that a request gets a fault, from 0 to 1.
            faults: The faults, all with the same probability.
            on: See :meth:`add`, as for other faults.

        Raises:
            ConfigurationError: An argument has the wrong type or is out of range.
        """
        check_finite("probability", probability)
        if not 0 <= probability <= 1:
            raise ConfigurationError(f"probability is {shown(probability)}: it must be from 0 to 1")
        if not isinstance(rng, (int, random.Random)):
            raise ConfigurationError(f"rng must be a seed or a random.Random, not {class_of(rng)}")
        if not isinstance(faults, Iterable) or not faults:
            raise ConfigurationError(f"faults must be a list of at least one fault, not {class_of(faults)}")
        source = random.Random(rng) if isinstance(rng, int) else rng
        choices = list(faults)

        def draw() -> Fault | None:
            return source.choice(choices) if source.random() < probability else None

        return self._append(Rule(self, choices, draw, on, times, after, probability))

    def clear(self) -> None:
        """Remove all faults, and release held requests."""
        with self._lock:
            rules, self._rules = self._rules, []
        for rule in rules:
            if isinstance(rule.upcoming, Hold):
                rule.upcoming.release()

    def _append(self, rule: Rule) -> Rule:
        with self._lock:
            self._rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """Remove a rule, unless it was removed already."""
        with self._lock:
            if rule in self._rules:
                self._rules.remove(rule)

    # The queries of the server for each request, in this order

    def unread(self, received: Request) -> ResetBeforeRead | None:
        """Return the reset that strikes before the body is read, if that is what comes first."""
        with self._lock:
            rules = self._deciding(frozenset())
            first = next(filter(None, (rule.peek(received) for rule in rules)), None)
            if not isinstance(first, ResetBeforeRead):
                return None
            _first_taken(rules, received)
            return first

    def delays(self, received: Request) -> tuple[list[Delay], frozenset[Rule]]:
        """Return every latency and hold, and the rules that have now seen the request."""
        with self._lock:
            rules = [rule for rule in self._rules if isinstance(rule.upcoming, (Latency, Hold))]
            taken = [rule.take(received) for rule in rules]
        return [fault for fault in taken if isinstance(fault, (Latency, Hold))], frozenset(rules)

    def outcome(self, received: Request, seen: frozenset[Rule]) -> Outcome | None:
        """Return the fault that replaces the response of the service."""
        with self._lock:
            return _first_taken(self._deciding(seen), received)

    def _deciding(self, seen: frozenset[Rule]) -> list[Rule]:
        return [rule for rule in self._rules if rule not in seen and not isinstance(rule.upcoming, (Latency, Hold))]


def _first_taken(rules: Sequence[Rule], received: Request) -> Outcome | None:
    for rule in rules:
        fault = rule.take(received)
        if fault is not None and not isinstance(fault, (Latency, Hold)):
            return fault
    return None


def _matcher(on: On) -> Callable[[Request], bool]:
    if callable(on):
        return on
    if on == "any":
        return lambda received: True
    if isinstance(on, str) and on.startswith("/"):
        return lambda received: received.path.startswith(on)
    if on in ("token", "call", "other"):
        return lambda received: received.kind == on
    given = repr(shorten(on, 60)) if isinstance(on, str) else class_of(on)
    raise ConfigurationError(f"on must be 'token', 'call', 'other', 'any', a path or a predicate, not {given}")
