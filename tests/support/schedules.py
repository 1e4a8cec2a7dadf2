"""Scenarios drawn from a seed, and the few steps that are left of one that fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from support.simulation import Fault, Outcome, Scenario

HOUR = 3_600.0
_NO_RESPONSE = ["refused", "hangs", "deaf"]  # deaf: the operation succeeds, and its response is lost
_MOST_TRIED = 60  # scenarios
_LIMITS = ["10/minute;100/hour", "9/minute;80/hour", "10/minute;70/hour"]


def _uniform(low: float, high: float) -> Callable[[random.Random], float]:
    return lambda rng: round(rng.uniform(low, high), 1)


def _some(*values: float) -> Callable[[random.Random], float]:
    return lambda rng: rng.choice(values)


KINDS: dict[str, Callable[[random.Random, float, int], Fault]] = {
    "crash": lambda rng, at, who: Fault(at, "crash", _some(0, 1, 30, 300)(rng), who),
    "crash while leading": lambda rng, at, who: Fault(at, "crash while leading", 0, who),
    "pause": lambda rng, at, who: Fault(at, "pause", _some(2, 10, 40, 90, 900)(rng), who),
    "stall": lambda rng, at, who: Fault(
        at, "stall", _some(1, 3, 8, 30, 100)(rng), who, how=rng.choice(["before", "after"])
    ),
    "partition": lambda rng, at, who: Fault(
        at, "partition", _some(3, 30, 300, 1800)(rng), who, how=rng.choice(_NO_RESPONSE)
    ),
    "store down": lambda rng, at, who: Fault(
        rng.choice([0.0, at, at]),
        "store down",
        _some(3, 30, 300, 1800)(rng),
        how=rng.choice(["refused", "hangs", "deaf"]),
    ),
    "fallback down": lambda rng, at, who: Fault(at, "fallback down", _some(30, 300)(rng), who),
    "emptied": lambda rng, at, who: Fault(at, "emptied"),
    "failover": lambda rng, at, who: Fault(at, "failover", amount=_some(0.2, 1)(rng), how=rng.choice(["", "lags"])),
    "old copy": lambda rng, at, who: Fault(at, "old copy", amount=_some(30, 300, 1800)(rng)),
    "wall clock": lambda rng, at, who: Fault(at, "wall clock", amount=_some(-HOUR, -5, 5, HOUR)(rng)),
    "rotation": lambda rng, at, who: Fault(at, "rotation", how=rng.choice(["lives", "dies"])),
    "revoked": lambda rng, at, who: Fault(at, "revoked"),
    "storm": lambda rng, at, who: Fault(at, "storm", _some(10, 60, 600)(rng), amount=_some(0.3, 0.5, 1)(rng)),
    "outage": lambda rng, at, who: Fault(
        at, "outage", _some(2, 20, 120, 900)(rng), how=rng.choice(["503", "hangs", "refused"])
    ),
    "flaky": lambda rng, at, who: Fault(
        at, "flaky", _some(120, 900)(rng), amount=_some(0.1, 0.3, 0.6)(rng), how=rng.choice(["503", "hangs", "refused"])
    ),
    "limited": lambda rng, at, who: Fault(
        at, "limited", amount=_some(1, 5, 60, 200, 1000)(rng), how=rng.choice(["", "date"])
    ),
    "deploy": lambda rng, at, who: Fault(
        at,
        "deploy",
        _some(0, 5, 60)(rng),
        amount=_some(0, 1)(rng),
        how=rng.choice(_LIMITS),
    ),
}
"""The faults that can be injected, and how they are drawn."""


def draw(seed: int) -> Scenario:
    """Return the scenario of a seed."""
    rng = random.Random(seed)
    members = rng.choice([1, 1, 2, 2, 3, 4, 4, 6, 8, 12])
    hours = rng.choice([1.0, 1.5, 2.0])
    fallback = rng.random() < 0.3
    kinds = [kind for kind in KINDS if fallback or kind != "fallback down"]
    kinds = rng.sample(kinds, rng.randint(1, 5))  # a few kinds at a time: one hides what another one would show
    faults = [
        KINDS[rng.choice(kinds)](rng, round(rng.uniform(5.0, 0.7 * hours * HOUR), 1), rng.randrange(members))
        for _ in range(rng.randint(1, 10))
    ]
    return Scenario(
        seed=seed,
        members=members,
        hours=hours,
        gap=rng.choice([0.5, 1.0, 2.0, 3.0, 10.0, 40.0]),
        limits=rng.choice([("10/minute", "100/hour")] * 4 + [("10/minute", "80/hour"), ("100/hour",)]),
        hosts=rng.choice([1, 1, 2, 3]),
        fallback=fallback,
        managers=rng.choice([1, 1, 1, 2]),
        churn=rng.choice([0.0] * 5 + [60.0, 400.0]),
        young=rng.random() < 0.15,
        idle=rng.choice([0, 0, 0, members // 2]),
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    for index in range(len(scenario.faults)):
        yield replace(scenario, faults=scenario.faults[:index] + scenario.faults[index + 1 :])
    yield replace(scenario, churn=0.0)
    yield replace(scenario, young=False)
    yield replace(scenario, managers=1)
    yield replace(scenario, idle=0)
    yield replace(scenario, fallback=False, hosts=1)
    yield replace(scenario, members=max(scenario.members // 2, 1))
    yield replace(scenario, members=max(scenario.members - 1, 1))
    yield replace(scenario, limits=("10/minute", "100/hour"))
    yield replace(scenario, hours=max(round(scenario.hours / 2, 2), 0.1))


def shrink(scenario: Scenario, run: Callable[[Scenario], Outcome]) -> Scenario:
    """Return the smallest scenario that breaks one of the rules that *scenario* breaks, by leaving out what it can.

    Or one that is small enough: it is to be printed before the test is out of time.
    """
    rules = {violation.rule for violation in run(scenario).violations}
    tried = {scenario}
    while True:
        for smaller in _smaller(scenario):
            if smaller in tried:
                continue
            if len(tried) > _MOST_TRIED:
                return scenario
            tried.add(smaller)
            if rules & {violation.rule for violation in run(smaller).violations}:
                scenario = smaller
                break
        else:
            return scenario


def reproduction(outcome: Outcome) -> str:
    """Write down how to see a failure again."""
    broken = "\n".join(f"    at {each.at:g} s, {each.rule}: {each.what}" for each in outcome.violations[:8])
    return f"{len(outcome.violations)} violations:\n{broken}\nsee it again with:\n\n    check({outcome.scenario!r})\n"
