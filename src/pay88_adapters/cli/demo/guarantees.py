"""The guarantees of the package, each as a function that checks the evidence.

Wherever possible the evidence is the server's journal, not the client's own counters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from pay88_adapters.testing import Entry

from .record import Evidence, Scene, call_id

Finding = tuple[bool, str]
"""Whether the guarantee was kept, and the evidence."""

_LIFETIME = 60.0
_MINUTE, _HOUR = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A guarantee: true of every run."""

    rule: int
    text: str
    check: Callable[[Evidence], Finding]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A guarantee and its result."""

    guarantee: Guarantee
    kept: bool
    evidence: str


GUARANTEES: list[Guarantee] = []


def judge(evidence: Evidence) -> list[Verdict]:
    """Check every guarantee against the evidence."""
    return [Verdict(guarantee, *guarantee.check(evidence)) for guarantee in GUARANTEES]


def _guarantee(rule: int, text: str) -> Callable[[Callable[[Evidence], Finding]], Callable[[Evidence], Finding]]:
    def add(check: Callable[[Evidence], Finding]) -> Callable[[Evidence], Finding]:
        GUARANTEES.append(Guarantee(rule, text, check))
        return check

    return add


# Tokens


@_guarantee(1, "a token is reused for at most 50 s")
def reuse(evidence: Evidence) -> Finding:
    """Outside the outage, where rule 6 holds."""
    oldest = _oldest(evidence.calls(Scene.COLD, Scene.STEADY, Scene.STORM))
    return oldest <= evidence.policy.reuse_for, f"oldest: {oldest:.1f} s"


@_guarantee(2, "no request waits under steady load")
def refresh_ahead(evidence: Evidence) -> Finding:
    waited = sum(phase.waited for phase in evidence.phases if phase.scene is Scene.STEADY)
    return waited == 0, f"{waited} of {len(evidence.calls(Scene.STEADY)):,}"


@_guarantee(3, "a cold start sends one token request")
def single_flight(evidence: Evidence) -> Finding:
    sent = len(evidence.token_requests(Scene.COLD))
    waited = sum(phase.waited for phase in evidence.phases if phase.scene is Scene.COLD)
    return sent == 1, f"{sent} for {waited} callers"


@_guarantee(5, "at most 10 token requests per minute")
def minute_budget(evidence: Evidence) -> Finding:
    most = evidence.journal.max_in_window(_MINUTE)
    return most <= 10, f"most in 60 s: {most}"


@_guarantee(5, "at most 100 token requests per hour")
def hour_budget(evidence: Evidence) -> Finding:
    most = evidence.journal.max_in_window(_HOUR)
    return most <= 100, f"most in an hour: {most}"


@_guarantee(5, "every token request was counted")
def counted(evidence: Evidence) -> Finding:
    """A fetch that the end of the run interrupted may be counted and not sent, never the reverse."""
    ours, theirs = evidence.stats.token_requests, evidence.journal.token_requests
    return theirs <= ours, f"{theirs} received, {ours} counted"


@_guarantee(6, "a stale token is used in an outage")
def degraded(evidence: Evidence) -> Finding:
    old = [entry for entry in evidence.calls(Scene.OUTAGE) if (entry.age or 0) > evidence.policy.reuse_for]
    used = [entry for entry in old if entry.executed]
    return len(used) > 0, f"{len(used)}, up to {_oldest(used):.1f} s old"


@_guarantee(6, "no request fails in the outage")
def no_failure_in_the_outage(evidence: Evidence) -> Finding:
    calls = [each for phase in evidence.phases if phase.scene is Scene.OUTAGE for each in evidence.begun_in(phase)]
    failed = sum(not each.answered for each in calls)
    return failed == 0, f"{failed} of {len(calls)}"


@_guarantee(6, "no expired token is attached")
def expiry(evidence: Evidence) -> Finding:
    oldest = _oldest(evidence.journal.select("call"))
    return oldest < _LIFETIME, f"oldest: {oldest:.1f} of {_LIFETIME:.0f} s"


# Rejected tokens


@_guarantee(7, "a request is retried once after a 401")
def replay(evidence: Evidence) -> Finding:
    unauthorized = {call_id(entry) for entry in evidence.journal.select("call") if entry.event == "unauthorized"}
    sent: dict[str, list[Entry]] = {each: [] for each in unauthorized}
    for entry in evidence.journal.select("call"):
        if call_id(entry) in sent:
            sent[call_id(entry)].append(entry)
    good = sum(len(entries) == 2 and entries[1].executed for entries in sent.values())
    return good == len(unauthorized), f"{good} of {len(unauthorized)}"


@_guarantee(8, "a 401 storm costs one token request")
def storm(evidence: Evidence) -> Finding:
    sent = len(evidence.token_requests(Scene.STORM))
    unauthorized = sum(entry.event == "unauthorized" for entry in evidence.calls(Scene.STORM))
    return sent == 1 and unauthorized > 0, f"{sent} for {unauthorized} 401s"


@_guarantee(8, "no other request gets a 401")
def no_other_401(evidence: Evidence) -> Finding:
    unauthorized = sum(
        entry.event == "unauthorized" for entry in evidence.calls(Scene.COLD, Scene.STEADY, Scene.OUTAGE)
    )
    return unauthorized == 0, f"{unauthorized} with 401"


@_guarantee(11, "the backoff grows in an outage")
def backoff(evidence: Evidence) -> Finding:
    """The attempts of one fetch come first; then each failure doubles the cooldown, from one second."""
    at = [entry.at for entry in evidence.token_requests(Scene.OUTAGE)]
    delays = [later - earlier for earlier, later in pairwise(at[evidence.policy.fetch_attempts - 1 :])]
    growing = all(delay >= 2.0**number for number, delay in enumerate(delays))
    shown = ", ".join(f"{delay:.1f}" for delay in delays)
    return growing and len(delays) > 0, f"after {shown} s"


# API requests


@_guarantee(13, "only token requests carry the API key")
def origin(evidence: Evidence) -> Finding:
    leaked = sum("x-api-key" in entry.headers for entry in evidence.journal if entry.kind != "token")
    return leaked == 0, f"{leaked} other requests did"


@_guarantee(18, "requests return or raise a Pay88Error")
def explained(evidence: Evidence) -> Finding:
    good = sum(each.explained for each in evidence.outcomes)
    return good == len(evidence.outcomes), f"{good:,} of {len(evidence.outcomes):,}"


@_guarantee(20, "no request is executed twice")
def once(evidence: Evidence) -> Finding:
    executed = Counter(call_id(entry) for entry in evidence.journal.select("call") if entry.executed)
    twice = sum(times > 1 for times in executed.values())
    charged = {charge.body["description"] for charge in evidence.charges}
    twice += len(evidence.charges) - len(charged)
    return twice == 0, f"{twice} of {len(executed):,}"


@_guarantee(20, "only successful requests were executed")
def truth(evidence: Evidence) -> Finding:
    executed = {call_id(entry) for entry in evidence.journal.select("call") if entry.executed}
    answered = {each.call_id for each in evidence.outcomes if each.answered}
    wrong = len(executed ^ answered)
    return wrong == 0, f"{len(executed):,}, {wrong} differ"


def _oldest(entries: list[Entry]) -> float:
    return max((entry.age for entry in entries if entry.age is not None), default=0.0)
