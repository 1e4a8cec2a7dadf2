"""Simulated hosts and processes with failures, for hours of simulated time (rules 1 to 12, 16, 19 and 24).

What holds is judged from what the service received, in :mod:`simulation`. A failure is shrunk to few faults and printed
with what shows it again.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterable

import pytest

from pay88_adapters import TokenPolicy
from pay88_adapters.testing.windows import largest_window
from support.schedules import KINDS, draw, reproduction, shrink
from support.simulation import Fault, Outcome, Scenario, Violation, simulate
from support.worlds import Report

HOUR = 3_600.0
SEED = int(os.environ.get("PAY88_SIMULATION_SEED") or random.Random().randrange(10**6))


def check(scenario: Scenario) -> Outcome:
    """Let a scenario happen; fail with the smallest one that shows what is wrong."""
    outcome = simulate(scenario)
    if outcome.violations:
        smallest = simulate(shrink(scenario, simulate))
        pytest.fail(f"{reproduction(smallest)}\nfound with {scenario!r}", pytrace=False)
    return outcome


def check_many(seeds: Iterable[int], hours: float, report: Report) -> None:
    """Run scenarios of these seeds until there are enough hours, and return the violations."""
    began_at = time.perf_counter()
    injected, done, calls, failed, requests, first = Counter[str](), 0.0, 0, 0, 0, None
    for seed in seeds:
        first = seed if first is None else first
        outcome = check(draw(seed))
        injected += outcome.injected
        done += outcome.scenario.hours
        calls += outcome.calls
        failed += len(outcome.failed)
        requests += len(outcome.requests)
        if done >= hours:
            break
    faults = ", ".join(f"{number:,} {kind}" for kind, number in sorted(injected.items()))
    report(
        f"{done:,.1f} fleet-hours from seed {first} on in {time.perf_counter() - began_at:.0f} s: no violation; "
        f"{sum(injected.values()):,} faults ({faults}); "
        f"{requests:,} token requests, {calls:,} calls that had to ask for the token, {failed:,} errors"
    )


# Any faults


def test_a_few_hours_with_any_faults(report: Report) -> None:
    """The same ones each time, so that what changes is the package."""
    check_many(range(2_000, 2_100), 4, report)


@pytest.mark.deep
@pytest.mark.timeout(600)
def test_hundreds_of_hours_with_any_faults(report: Report) -> None:
    """The same ones each time, so that what changes is the package."""
    check_many(range(1_000), 200, report)


@pytest.mark.simulation
@pytest.mark.timeout(7_200)
def test_thousands_of_hours_with_any_faults(report: Report) -> None:
    """New ones each time: the seed is printed, and ``PAY88_SIMULATION_SEED`` sets it."""
    check_many(range(SEED, SEED + 10_000), float(os.environ.get("PAY88_SIMULATION_HOURS") or 2_000), report)


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_fault(kind: str) -> None:
    """Each kind, three times in half an hour, to three members."""
    rng = random.Random(kind)
    faults = tuple(KINDS[kind](rng, at, member) for member, at in enumerate((300.0, 700.0, 1_000.0)))
    check(Scenario(seed=len(kind), members=3, hours=0.5, gap=2.0, fallback=kind == "fallback down", faults=faults))


def test_the_same_seed_is_the_same_story() -> None:
    """What one run found the next one finds."""
    first, second = simulate(draw(8)), simulate(draw(8))
    assert first.sent() == second.sent()
    assert (first.calls, len(first.failed), first.injected) == (second.calls, len(second.failed), second.injected)


def test_what_fails_is_shrunk_to_what_matters() -> None:
    """Of a dozen faults the one is left that breaks the rule, and the scenario is printed as it can be pasted."""
    noise = [Fault(100.0 * number, "revoked") for number in range(1, 6)]
    cause = Fault(333.0, "deploy", how="1000/minute;1000/hour")
    scenario = Scenario(members=3, hours=0.2, faults=tuple(sorted([*noise, cause], key=lambda fault: fault.at)))

    def run(smaller: Scenario) -> Outcome:
        outcome = simulate(smaller)
        if outcome.injected["deploy"]:
            outcome.violations.append(Violation(1.0, "made up", "it was deployed"))
        return outcome

    smallest = shrink(scenario, run)
    assert smallest.faults == (cause,)
    assert smallest.members == 1
    assert eval(repr(smallest), {"Scenario": Scenario, "Fault": Fault}) == smallest
    assert repr(smallest) in reproduction(run(smallest))


def test_rule_10_a_429_holds_for_a_key_that_comes_meanwhile() -> None:
    """The new key shares no record with the old one: a new process with it can only get the cooldown from the store."""
    faults = (Fault(300, "limited", amount=400), Fault(350, "rotation", how="dies"), Fault(360, "crash", 5, 1))
    outcome = check(Scenario(1, 3, 0.3, 1.0, faults=faults))
    assert outcome.injected == {"limited": 1, "rotation": 1, "crash": 1}
    sent = [at for at in outcome.sent() if at > 300]
    assert sent[1] >= sent[0] + 400


# What is lost with the store


def store_down(hours: float, at: float) -> Fault:
    """Return an outage of the store alone."""
    return Fault(at, "store down", hours * HOUR, how="refused")


def figures(outcome: Outcome, since: float = 0.0) -> str:
    """Write down what it cost."""
    sent = outcome.sent(since)
    calls = f"{len(outcome.failed):,} of {outcome.calls:,} calls that had to fetch the token failed"
    return f"{largest_window(sent, HOUR)} token requests in an hour, {largest_window(sent, 60)} in a minute; {calls}"


@pytest.mark.parametrize(
    ("members", "idle", "before"),
    [
        (1, 0, 600),
        (4, 0, 600),
        *[
            pytest.param(members, idle, before, marks=pytest.mark.deep)
            for members, idle, before in [
                (4, 2, 600), (4, 3, HOUR), (8, 4, 600), (8, 0, HOUR), (8, 7, HOUR), (64, 0, 600), (64, 32, HOUR),
                (64, 63, 600), (1_000, 0, 300), (1_000, 999, 300),
            ]
        ],
    ],
)  # fmt: skip
@pytest.mark.timeout(300)
def test_rule_24_an_hour_without_the_store(members: int, idle: int, before: float, report: Report) -> None:
    """However many processes the store knew, however many of them were idle before: one budget for all of them.

    Idle processes become active as the store fails: they are replanned to call like the others.
    """
    gap = 2.0 if members < 64 else 120.0 if members < 1_000 else 300.0
    wakes = Fault(before, "awake")
    scenario = Scenario(1, members, (before + HOUR + 600) / HOUR, gap, idle=idle, faults=(store_down(1, before), wakes))
    outcome = check(scenario)
    assert largest_window(outcome.sent(), HOUR) <= 100
    assert largest_window(outcome.sent(), 60) <= 10
    report(figures(outcome, before))


@pytest.mark.parametrize("members", [2, 4])
@pytest.mark.parametrize("seconds", [3, 60, 300])
def test_rule_24_an_idle_process_costs_the_others_nothing_after_an_outage(members: int, seconds: float) -> None:
    """What it could have used alone in that time is set aside, and is less than what they can do without."""
    down = Fault(2_000, "store down", seconds, how="refused")
    outcome = check(Scenario(1, members, 2.0, 1.0, idle=members - 1, faults=(down,)))
    assert not outcome.failed


@pytest.mark.parametrize(
    ("members", "share"),
    [
        (1, None),
        pytest.param(2, None, marks=pytest.mark.deep),
        (4, None),
        pytest.param(8, 1 / 8, marks=pytest.mark.deep),
    ],
)
def test_rule_24_processes_that_never_reached_the_store(members: int, share: float | None, report: Report) -> None:
    """Four of them, which is what they assume, or as many as a share set by hand says: each takes its part."""
    outcome = check(Scenario(1, members, 2.0, 2.0, share=share, faults=(store_down(2, 0),)))
    assert largest_window(outcome.sent(), HOUR) <= 100
    assert largest_window(outcome.sent(), 60) <= 10
    assert len(outcome.sent()) >= 2 * 100 // max(members, 4) * members * 0.8
    assert not [error for at, error in outcome.failed if at < 4 * 60], "each has a token for its first minutes"
    report(figures(outcome))


def test_rule_24_a_denial_lasts_no_longer_than_what_was_set_aside() -> None:
    """More processes than fit used their shares; the first ones to report set aside what all of them have reported."""
    down = Fault(0, "store down", HOUR / 2, how="hangs")
    outcome = check(Scenario(1_000_292, 6, 1.5, 1.0, limits=("100/hour",), faults=(down,)))
    assert outcome.sent(HOUR), "it is served again as soon as there is room"


@pytest.mark.deep
def test_rule_24_processes_that_are_replaced_without_the_store(report: Report) -> None:
    """Their successors only have what is in their hosts' files: it keeps all of them within the budget."""
    deploy = Fault(HOUR + 1_800, "deploy", how="10/minute;100/hour")
    outcome = check(Scenario(1, 8, 2.5, 2.0, hosts=2, fallback=True, faults=(store_down(1.5, HOUR), deploy)))
    assert largest_window(outcome.sent(), HOUR) <= 100
    assert largest_window(outcome.sent(), 60) <= 10
    report(figures(outcome))


@pytest.mark.deep
@pytest.mark.parametrize("lasts", [0, 60], ids=["all immediately", "one after the other"])
def test_rule_24_processes_that_were_replaced_just_before(lasts: float, report: Report) -> None:
    """Those that end cleanly leave their shares to their successors; those that are killed do not for long."""
    outcomes = {}
    for cleanly in (0.0, 1.0):
        deploy = Fault(1_800, "deploy", lasts, amount=cleanly, how="10/minute;100/hour")
        outcomes[cleanly] = outcome = check(Scenario(1, 4, 2.0, 2.0, faults=(deploy, store_down(1, 1_990))))
        assert largest_window(outcome.sent(), HOUR) <= 100
        assert largest_window(outcome.sent(), 60) <= 10
        report(figures(outcome, 1_990))
    killed, ended = (len(outcome.sent(1_990, 1_990 + HOUR)) for outcome in outcomes.values())
    assert killed <= 2
    assert ended >= 4 * 20


@pytest.mark.parametrize("processes", [8, pytest.param(64, marks=pytest.mark.deep)])
@pytest.mark.timeout(300)
def test_rule_24_two_hosts_with_a_fallback_store_each(processes: int, report: Report) -> None:
    """Every call is served for as long as the budget pays for two tokens at a time: more than 30 minutes."""
    scenario = Scenario(1, processes, 1.5, 5.0, hosts=2, fallback=True, faults=(store_down(1, 900),))
    outcome = check(scenario)
    assert largest_window(outcome.sent(), HOUR) <= 100
    assert not [error for at, error in outcome.failed if at < 900 + 30 * 60]
    report(
        f"{figures(outcome, 900)}; the first {min((at for at, _ in outcome.failed), default=HOUR) - 900:.0f} s later"
    )


def failover(seed: int, how: str = "") -> Outcome:
    """Lose the last second of the store at any moment of a burst of forced refreshes and retries.

    With *how* "lags", the replica lags for longer than writes of the budget wait for it, and they are lost, too.
    """
    rng = random.Random(seed)
    apart = rng.choice([2.0, 4.0, 6.0, 11.0])
    lost_at = 100.0 + apart * rng.randrange(1, 12)
    faults = [Fault(100.0 + apart * number, "revoked") for number in range(14)]
    faults += [Fault(lost_at + rng.uniform(0.05, 1.5), "failover", amount=1.0, how=how)]
    if rng.random() < 0.5:
        faults += [Fault(lost_at, "flaky", 30.0, amount=0.5, how="503")]
    members, gap = rng.choice([1, 2, 4, 8]), rng.choice([0.1, 0.3, 1.0])
    return check(Scenario(seed, members, 0.12, gap, faults=tuple(sorted(faults, key=lambda fault: fault.at))))


@pytest.mark.parametrize("seed", [1, 2, 45, 51])
def test_rule_05_a_failover_loses_the_last_second(seed: int) -> None:
    """The budget holds by the service's count."""
    assert largest_window(failover(seed).sent(), 60) <= 10


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_rule_05_failovers_at_hundreds_of_moments(report: Report) -> None:
    """The budget holds by the service's count, at each of them."""
    most = [largest_window(failover(seed).sent(), 60) for seed in range(100, 400)]
    assert max(most) <= 10
    report(f"{len(most)} failovers; at most {max(most)} token requests in a minute")


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_rule_05_failovers_to_a_replica_that_lags(report: Report) -> None:
    """The units of one process in the lost second are unknown to another one that acquires a unit before it.

    So at worst one fetch with its retries comes on top, and seldom: mostly there is room for that.
    """
    outcomes = [failover(seed, "lags") for seed in range(100, 250)]
    most = {outcome.scenario.seed: largest_window(outcome.sent(), 60) for outcome in outcomes}
    over = [outcome for outcome in outcomes if most[outcome.scenario.seed] > 10]
    assert max(most.values()) <= 10 + TokenPolicy().fetch_attempts
    assert len(over) <= 3
    assert all(outcome.scenario.members > 1 for outcome in over), "a process knows what it used itself"
    report(
        f"{len(outcomes)} failovers; more than 10 token requests in a minute: {len(over)}, at most {max(most.values())}"
    )


# Limits


@pytest.mark.parametrize("rate", [1, *(pytest.param(rate, marks=pytest.mark.deep) for rate in (10, 50))])
@pytest.mark.parametrize("amount", [62, 64, 70, 76, 80, 100])
def test_rule_02_limits_that_sustain_the_traffic(amount: int, rate: int, report: Report) -> None:
    """Three hours: no gap in which a call fails, never over the limit."""
    outcome = check(Scenario(amount, 2, 3.0, 2 / rate, limits=("10/minute", f"{amount}/hour")))
    assert not outcome.failed
    assert largest_window(outcome.sent(), HOUR) <= amount
    report(figures(outcome))


@pytest.mark.parametrize(("part", "most"), [(0.1, 0.0), (0.3, 0.35)])
def test_rule_11_token_requests_that_fail_now_and_then(part: float, most: float, report: Report) -> None:
    """For four hours; the reserve pays for the retries, as far as it goes."""
    outcome = check(Scenario(1, 2, 4.0, 2.0, faults=(Fault(0, "flaky", 4 * HOUR, amount=part, how="503"),)))
    report(figures(outcome))
    assert len(outcome.failed) <= most * outcome.calls
