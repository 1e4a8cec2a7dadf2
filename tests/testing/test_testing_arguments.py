"""Arguments of a wrong type or out of range are rejected where they are given, with their names (not by the server)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pay88_adapters import ConfigurationError
from pay88_adapters.clock import Clock
from pay88_adapters.testing import Drip, Emulator, HugeBody, Latency, ManualClock, Truncated, vcr_config
from pay88_adapters.testing.faults import FaultPlan
from pay88_adapters.testing.service import Service

NO_OBJECTS: tuple[object, ...] = ("5", 5, True, math.nan, [1])
NO_NUMBERS: tuple[object, ...] = (None, "5", True, math.nan, math.inf, object(), [1])
NO_COUNTS: tuple[object, ...] = ("5", -1, 1.5, True, math.nan, object(), [1])
NO_SECONDS: tuple[object, ...] = (*NO_NUMBERS, -1, 10**400)
NO_STRINGS: tuple[object, ...] = (None, 5, True, b"key", ["key"])
NO_LIMITS: tuple[object, ...] = (None, 5, "10/minute", ["10/minute"], [(1, 0)], [(1.5, 60)], [(1, "60")], [(1,)])


def _randomly(**given: Any) -> object:
    return FaultPlan().random(**{"rng": 1, "probability": 0.5, "faults": [Latency(1)], **given})


def _planned(**given: Any) -> object:
    return FaultPlan().add(**{"fault": Latency(1), **given})


CASES: list[tuple[Callable[..., object], str, tuple[object, ...]]] = [
    (Clock, "speed", (*NO_SECONDS, 0)),
    (ManualClock, "start", NO_NUMBERS),
    (ManualClock().advance, "seconds", NO_NUMBERS),
    *((Emulator, name, NO_OBJECTS) for name in ("clock", "ssl_context", "service")),
    (Emulator, "host", NO_STRINGS),
    (Emulator, "port", (None, 65_536, *NO_COUNTS)),
    (Emulator, "wall", (None, 5, "now")),
    *((kind, name, NO_STRINGS) for kind in (Emulator, Service) for name in ("api_key", "merchant_id")),
    *((kind, "lifetime", NO_SECONDS) for kind in (Emulator, Service)),
    *((kind, name, NO_LIMITS) for kind in (Emulator, Service) for name in ("token_limits", "call_limits")),
    (_planned, "fault", (None, 5, "503", Latency, object())),
    *((make, "on", (None, 5, True, "calls", "", [1])) for make in (_planned, _randomly)),
    *((make, "times", NO_COUNTS) for make in (_planned, _randomly)),
    *((make, "after", (None, *NO_COUNTS)) for make in (_planned, _randomly)),
    (_randomly, "rng", (None, "5", 1.5, object())),
    (_randomly, "probability", (*NO_NUMBERS, -0.1, 1.1)),
    (_randomly, "faults", (None, 5, [], Latency(1))),
    (Latency, "seconds", NO_SECONDS),
    (Drip, "seconds", NO_SECONDS),
    (Truncated, "missing", (None, *NO_COUNTS)),
    (HugeBody, "size", (None, *NO_COUNTS)),
    (vcr_config, "filter_headers", (5, True, [5], [None])),
    (vcr_config, "before_record_response", (5, "hook", [5])),
]


@pytest.mark.parametrize(
    ("make", "name", "values"), CASES, ids=lambda value: str(getattr(value, "__name__", value))[:20]
)
def test_a_wrong_argument_is_named(make: Callable[..., object], name: str, values: tuple[object, ...]) -> None:
    """With what it must be, in one short line."""
    for value in values:
        with pytest.raises(ConfigurationError) as caught:
            make(**{name: value})
        assert name in str(caught.value)
        assert len(str(caught.value)) <= 200
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("faults", [["503"], [Latency(1), None]])
def test_each_of_several_faults_is_checked(faults: list[Any]) -> None:
    """Before any request arrives."""
    with pytest.raises(ConfigurationError, match="fault must be"):
        _randomly(faults=faults)
