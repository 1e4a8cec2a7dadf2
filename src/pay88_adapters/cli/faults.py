"""Faults on the command line of ``pay88 emulator``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pay88_adapters.testing import (
    Drip,
    Fault,
    Garbage,
    HugeBody,
    Latency,
    RejectToken,
    ResetAfterRead,
    ResetBeforeRead,
    Status,
    TooMany,
    Truncated,
)

_FORM = re.compile(
    r"(?P<on>token|call|any|/[^:]*):(?P<what>[a-z]+|[2-5]\d\d)(=(?P<seconds>\d+(\.\d+)?))?"
    r"(x(?P<times>[1-9]\d*|all))?(\+(?P<after>\d+))?"
)
_PLAIN: dict[str, Callable[[], Fault]] = {
    "reset": ResetBeforeRead,
    "lost": ResetAfterRead,
    "truncated": Truncated,
    "garbage": Garbage,
    "huge": HugeBody,
    "401": RejectToken,
    "429": TooMany,
}
_TIMED: dict[str, Callable[[float], Fault]] = {"latency": Latency, "drip": Drip}


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault, and the requests that it applies to."""

    fault: Fault
    on: str
    times: int | None
    after: int


def parse(text: str) -> Planned:
    """Parse ``WHERE:WHAT[=SECONDS][xTIMES][+AFTER]``.

    Raises:
        ValueError: *text* has another form.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not of the form WHERE:WHAT[=SECONDS][xTIMES][+AFTER], such as call:401x3")
    times = found["times"] or "1"
    return Planned(
        _fault(found["what"], found["seconds"]),
        found["on"],
        None if times == "all" else int(times),
        int(found["after"] or 0),
    )


def _fault(what: str, seconds: str | None) -> Fault:
    if what in _TIMED:
        if seconds is None:
            raise ValueError(f"{what} needs a number of seconds: {what}=0.5")
        return _TIMED[what](float(seconds))
    if seconds is not None:
        raise ValueError(f"{what} takes no seconds")
    if what in _PLAIN:
        return _PLAIN[what]()
    if not what.isdigit():
        raise ValueError(
            f"unknown fault {what!r}: use a status code, {', '.join([*_TIMED, *(n for n in _PLAIN if n.isalpha())])}"
        )
    return Status(int(what))
