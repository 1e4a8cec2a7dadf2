"""Chaos: all client libraries concurrently through one manager, with every fault of the emulator."""

from __future__ import annotations

import os
import random
from typing import get_args

import pytest

from pay88_adapters.testing import Fault
from support.chaos import ChaosRun, Scale
from support.chaos_judge import Judge
from support.worlds import Report

# httpx leaves the iterator of a body that it cannot send to the end, and trio says so. Clients that are closed
# under their callers leave connections to the collector: what is still open after it is counted.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:Async generator '(httpx\._content|chaos)\.:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

SEED = os.environ.get("PAY88_CHAOS_SEED")


def a_seed() -> int:
    """Return the seed of the command line, or a new one."""
    return int(SEED) if SEED else random.SystemRandom().randrange(2**32)


def weather(seed: int, scale: Scale, replay: str, report: Report, *, timed: bool = True) -> None:
    """Run a chaos test, and check the requests at the servers against the rules."""
    replay = f"PAY88_CHAOS_SEED={seed} pytest {replay}"
    print(f"again: {replay}", flush=True)  # noqa: T201 - shown where the run does not end
    storm = ChaosRun(seed, scale)
    storm.run()
    judge = Judge(storm)
    report(f"\n{judge.figures()}")
    complaints = judge.complaints(timed=timed)
    if complaints:
        shown = "\n".join(complaints[:10])
        pytest.fail(f"{len(complaints)} complaints. Again: {replay}\n{shown}\n{judge.figures()}", pytrace=False)


@pytest.mark.deep
def test_chaos(report: Report) -> None:
    """A few minutes of the service's time, with seed 1 or that of ``PAY88_CHAOS_SEED``."""
    scale, replay = Scale(speed=15, seconds=20), "tests/scenarios/test_chaos.py::test_chaos"
    weather(int(SEED or 1), scale, replay, report, timed=False)


def test_the_chaos_test_uses_every_fault() -> None:
    """A chaos test can inject every fault of the emulator."""
    storm = ChaosRun(1, Scale(speed=1, seconds=0))
    with storm.elsewhere:
        faults = storm._faults(random.Random(1), "token")
    assert {type(each) for each in faults} == set(get_args(Fault))


LONG = {
    "hour": Scale(speed=30, seconds=135),
    "half-hour": Scale(speed=20, seconds=90),
    "minutes": Scale(speed=10, seconds=45),
}


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scale", LONG)
@pytest.mark.parametrize("seed", [1, "new"])
def test_chaos_for_hours(scale: str, seed: int | str, report: Report) -> None:
    """Long enough for the hour's window of the budget, with a seed that stays and a new one."""
    replay = f"'tests/scenarios/test_chaos.py::test_chaos_for_hours[new-{scale}]'"
    weather(a_seed() if seed == "new" else int(seed), LONG[scale], replay, report)
