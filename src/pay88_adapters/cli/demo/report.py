"""The demo's output as lines of text of up to 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from statistics import median

from pay88_adapters import Stats
from pay88_adapters.testing import Journal

from .guarantees import Verdict
from .load import STACKS
from .record import Evidence, Outcome, call_id, stack_of


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its style, in the notation of rich."""

    text: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Counters of one client, or of all."""

    name: str
    calls: int
    failed: int
    replayed: int
    median: float
    p99: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Current state of the demo."""

    at: float
    rows: Sequence[Row]
    stats: Stats

    @classmethod
    def take(cls, at: float, outcomes: Iterable[Outcome], journal: Journal, stats: Stats) -> Snapshot:
        """Return the counters so far."""
        outcomes = list(outcomes)
        unauthorized = {call_id(entry) for entry in journal.select("call") if entry.event == "unauthorized"}
        replayed = Counter(stack_of(each) for each in unauthorized)
        by_stack = {stack: [each for each in outcomes if each.stack == stack] for stack in STACKS}
        rows = [_row(stack, ended, replayed[stack]) for stack, ended in by_stack.items()]
        return cls(at, [*rows, _row("all", outcomes, replayed.total())], stats)


def _row(name: str, outcomes: Sequence[Outcome], replayed: int) -> Row:
    took = sorted(each.seconds for each in outcomes) or [0.0]
    failed = sum(not each.answered for each in outcomes)
    return Row(name, len(outcomes), failed, replayed, median(took), took[ceil(0.99 * len(took)) - 1])


def clock_time(at: float) -> str:
    """Return seconds of the service as minutes and seconds."""
    return f"{int(at) // 60}:{int(at) % 60:02}"


def opening(speed: float) -> list[Line]:
    """Return the introduction."""
    return [
        Line(f"{', '.join(STACKS[:-1])} and {STACKS[-1]} share one TokenManager.", "bold"),
        Line("The service is an emulator on this machine. A token expires after 60 s."),
        Line(f"All times are those of the emulator, whose clock runs {speed:g} times as fast."),
        Line(),
    ]


def stack_table(rows: Iterable[Row]) -> list[Line]:
    """Return a row for each client."""
    head = f"{'client':<20}{'requests':>8}{'failed':>9}{'replayed':>11}{'median':>12}{'p99':>12}"
    return [
        Line(head, "bold"),
        *(
            Line(
                f"{row.name:<20}{row.calls:>8,}{row.failed:>9,}{row.replayed:>11,}"
                f"{_milliseconds(row.median):>12}{_milliseconds(row.p99):>12}",
                "red" if row.failed else "",
            )
            for row in rows
        ),
    ]


def token_table(stats: Stats) -> list[Line]:
    """Return the counters of tokens and budget."""
    said = {
        "token requests": f"{stats.token_requests}, {stats.tokens} returned a token",
        "refreshes": f"{stats.refreshes} in the background",
        "budget left": ", ".join(f"{left} of {limit}" for limit, left in stats.budget_left.items()),
        "waited requests": f"{stats.waited}",
        "401s": f"{stats.unauthorized}, replayed: {stats.replayed}",
    }
    return [Line(f"{name:<20}{text}") for name, text in said.items()]


def status_line(snapshot: Snapshot) -> Line:
    """Return the current state in one line."""
    every, stats = snapshot.rows[-1], snapshot.stats
    left = " and ".join(str(left) for left in stats.budget_left.values())
    said = f"{every.calls:>5,} requests, {every.failed} failed, {every.replayed} replayed"
    return Line(f"{clock_time(snapshot.at):>6}  {said}; token requests: {stats.token_requests}, {left} left")


def summary(evidence: Evidence, verdicts: Iterable[Verdict]) -> list[Line]:
    """Return the tables and the guarantees."""
    now = Snapshot.take(0.0, evidence.outcomes, evidence.journal, evidence.stats)
    return [
        Line(),
        *stack_table(now.rows),
        Line(),
        *_phase_table(evidence),
        Line(),
        *token_table(evidence.stats),
        Line(),
        *_guarantee_table(verdicts),
    ]


def document(evidence: Evidence, verdicts: Iterable[Verdict], *, good: bool) -> dict[str, object]:
    """Return the result for a program."""
    now = Snapshot.take(0.0, evidence.outcomes, evidence.journal, evidence.stats)
    return {
        "ok": good,
        "unfinished": evidence.unfinished or None,
        "clients": [asdict(row) for row in now.rows],
        "stats": asdict(evidence.stats),
        "guarantees": [
            {
                "rule": each.guarantee.rule,
                "guarantee": each.guarantee.text,
                "kept": each.kept,
                "evidence": each.evidence,
            }
            for each in verdicts
        ],
    }


def _phase_table(evidence: Evidence) -> list[Line]:
    lines = [Line(f"{'phase':<22}{'from':>6}{'requests':>9}{'failed':>9}{'waited':>9}{'token requests':>17}", "bold")]
    for phase in evidence.phases:
        begun = evidence.begun_in(phase)
        failed = sum(not each.answered for each in begun)
        entries = evidence.journal[phase.began.mark : phase.ended.mark]
        sent = sum(entry.kind == "token" for entry in entries)
        text = f"{phase.scene.value:<22}{clock_time(phase.began.at):>6}{len(begun):>9,}{failed:>9,}"
        lines.append(Line(f"{text}{phase.waited:>9,}{sent:>17,}"))
    return lines


def _guarantee_table(verdicts: Iterable[Verdict]) -> list[Line]:
    return [
        Line(f"{'':<7}{'rule':>4}  {'guarantee':<42}evidence", "bold"),
        *(_guarantee_line(each) for each in verdicts),
    ]


def _guarantee_line(verdict: Verdict) -> Line:
    mark, style = ("ok", "") if verdict.kept else ("BROKEN", "bold red")
    return Line(f"{mark:<7}{verdict.guarantee.rule:>4}  {verdict.guarantee.text:<42}{verdict.evidence}", style)


def closing(verdicts: Sequence[Verdict], unfinished: str) -> list[Line]:
    """Return the last line; *unfinished* is the condition that the run waited for until it was given up."""
    broken = sum(not each.kept for each in verdicts)
    if unfinished:
        return [
            Line(),
            Line(f"Timeout while waiting for {unfinished}; {broken} guarantees BROKEN.", "bold red"),
        ]
    if broken:
        return [
            Line(),
            Line(f"{broken} of {len(verdicts)} guarantees BROKEN.", "bold red"),
            Line("On a busy machine, delayed requests can cause this: run the demo again."),
        ]
    return [Line(), Line(f"All {len(verdicts)} guarantees kept.", "bold green")]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"
