"""``pay88 demo``: its output, its exit codes, and the detection of each broken guarantee."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from rich.console import Console

from pay88_adapters import Stats, TokenBudgetExhausted
from pay88_adapters.cli.demo import conclude
from pay88_adapters.cli.demo.clock import BusyClock
from pay88_adapters.cli.demo.guarantees import GUARANTEES, judge
from pay88_adapters.cli.demo.record import Evidence, Moment, Outcome, Phase, Scene
from pay88_adapters.cli.demo.report import Snapshot
from pay88_adapters.cli.demo.views import JsonView, LiveView, PlainView, view
from pay88_adapters.testing import Charge, Journal, Request
from support.commands import PAY88, run

COMMAND = (*PAY88, "demo")

# --- the command ---------------------------------------------------------------------------------


def test_every_guarantee_is_kept_and_the_output_is_plain_where_there_is_no_terminal() -> None:
    """Exit code 0, a summary without control codes that fits 80 columns, and nothing left open."""
    ended = subprocess.run(
        [*COMMAND, "--seconds", "20"],  # a shorter run needs a faster clock, and then a busy machine breaks guarantees
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    lines = ended.stdout.splitlines()
    assert lines[-1] == f"All {len(GUARANTEES)} guarantees kept."
    assert sum(line.startswith("ok ") for line in lines) == len(GUARANTEES)
    for stack in ("urllib3", "httpx", "httpx async", "aiohttp"):
        assert any(line.startswith(f"{stack}   ") for line in lines)
    assert "\x1b" not in ended.stdout
    assert max(map(len, lines)) <= 80


@contextmanager
def interruptible() -> Iterator[None]:
    """Start processes that SIGINT ends, even where a shell started this one in the background, without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT between processes")
def test_an_interrupt_ends_it_cleanly() -> None:
    """Exit code 130, one line, no traceback."""
    with interruptible():
        started = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with started as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "steady load" in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()

    assert (process.returncode, errors) == (130, "pay88: interrupted\n")


@pytest.mark.parametrize("name", ["rich", "urllib3", "httpx", "aiohttp"])
def test_a_missing_library_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and exit code 2."""
    monkeypatch.setitem(sys.modules, name, None)

    ended = run("demo")
    assert (ended.code, ended.err) == (2, f"pay88: {name} is not installed: pip install 'pay88-adapters[all]'\n")


@pytest.mark.parametrize("seconds", ["3", "soon", "601"])
def test_wrong_usage_exits_with_2(seconds: str) -> None:
    """The error names the wrong value."""
    ended = run("demo", "--seconds", seconds)

    assert ended.code == 2
    assert "Error: Invalid value for '--seconds'" in ended.err


# --- the clock and the views ------------------------------------------------------------------------


def test_the_clock_does_not_make_up_for_a_stall() -> None:
    """Ten times as fast as real time, but a machine that stops for five seconds loses them."""
    clock = BusyClock(10)

    clock.passed(0.02)
    assert clock.now() == pytest.approx(0.2)
    clock.passed(5.0)
    assert clock.now() < 1.0


class Terminal(io.StringIO):
    """Output that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return true."""
        return True


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TERM": "xterm"}, LiveView),
        ({"TERM": "dumb"}, PlainView),
        ({"TERM": "xterm", "NO_COLOR": "1"}, PlainView),
    ],
)
def test_a_terminal_is_redrawn_unless_it_cannot_be(
    variables: dict[str, str], expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TERM=dumb and NO_COLOR get plain lines."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal())

    assert type(view()) is expected


def test_the_live_view_draws_tables() -> None:
    """The client libraries, the tokens and the time, below the lines that stay."""
    evidence, screen = Story().evidence(), Terminal()
    with LiveView(Console(file=screen, force_terminal=True, width=80)) as shown:
        shown.phase(61.0, "401 storm", "requests get a 401")
        shown.show(Snapshot.take(65.0, evidence.outcomes, evidence.journal, evidence.stats))

    drawn = screen.getvalue()
    for text in ("1:01  401 storm: requests get a 401", "httpx async", "1:05", "9 of 10 per 1 minute"):
        assert text in drawn


def test_a_program_gets_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """One document, with the guarantees and whether all were kept."""
    story = Story()
    with JsonView() as shown:
        shown.phase(61.0, "401 storm", "requests get a 401")
        assert conclude(story.evidence(), shown) == 0
        good = json.loads(capsys.readouterr().out)
        _leaks_the_key(story)
        assert conclude(story.evidence(), shown) == 1
    bad = json.loads(capsys.readouterr().out)

    assert (good["ok"], bad["ok"]) == (True, False)
    assert [each["rule"] for each in good["guarantees"]] == [guarantee.rule for guarantee in GUARANTEES]
    assert [each["kept"] for each in bad["guarantees"]].count(False) == 1
    assert good["stats"]["budget_left"] == {"10 per 1 minute": 9, "100 per 1 hour": 91}
    assert good["clients"][-1]["calls"] == 5


# --- the guarantees --------------------------------------------------------------------------------------

SCENES = (
    (Scene.COLD, 0.0),
    (Scene.STEADY, 2.0),
    (Scene.STORM, 55.0),
    (Scene.STEADY, 57.0),
    (Scene.OUTAGE, 96.0),
    (Scene.STEADY, 110.0),
)
END = 200.0


@dataclass(frozen=True)
class Call:
    """An API request as the server received it."""

    at: float
    name: str
    age: float = 1.0
    rejected: bool = False
    key: bool = False


@dataclass
class Story:
    """A short run in which every guarantee is kept, until a test changes it."""

    tokens: list[float] = field(default_factory=lambda: [0.0, 45.0, 56.0, 101.0, 101.2, 101.5, 102.7, 104.9, 109.1])
    calls: list[Call] = field(
        default_factory=lambda: [
            Call(1.0, "urllib3-0001"),
            Call(47.0, "httpx-0001", age=2.0),
            Call(55.5, "aiohttp-0001", age=10.5, rejected=True),
            Call(56.5, "aiohttp-0001", age=0.5),
            Call(108.0, "httpx-async-0001", age=52.0),
            Call(120.0, "urllib3-0002"),
        ]
    )
    waited: dict[Scene, int] = field(default_factory=lambda: {Scene.COLD: 1})
    errors: dict[str, Exception] = field(default_factory=dict)
    uncounted: int = 0
    unfinished: str = ""

    def evidence(self) -> Evidence:
        """Return the evidence of the story."""
        journal, marks = self._journal()
        waited = 0
        moments = []
        for scene, at in SCENES:
            moments.append(Moment(at, marks[at], waited))
            waited += self.waited.get(scene, 0)
        moments.append(Moment(END, len(journal), waited))
        phases = [Phase(scene, *moments[number : number + 2]) for number, (scene, _) in enumerate(SCENES)]
        sent = len(self.tokens) - self.uncounted
        stats = Stats(
            token_requests=sent,
            tokens=4,
            refreshes=3,
            failed_fetches=3,
            consecutive_failures=0,
            unauthorized=1,
            replayed=1,
            retried=0,
            waited=waited,
            paced=0,
            not_sent=0,
            bypassed=0,
            budget_left={"10 per 1 minute": 9, "100 per 1 hour": 91},
            fetching=False,
            token_expires_in=50.0,
            circuits_open={},
            store_degraded=False,
        )
        charges = [Charge(str(call), call.at, {"description": call.name}) for call in self.calls if not call.rejected]
        return Evidence(journal, self._outcomes(), phases, stats, charges, self.unfinished)

    def _journal(self) -> tuple[Journal, dict[float, int]]:
        journal, marks = Journal(), {}
        arrivals: list[float | Call] = sorted([*self.tokens, *self.calls], key=_at)
        for _, began in SCENES:
            marks[began] = sum(_at(each) < began for each in arrivals)
        for each in arrivals:
            _arrive(journal, each)
        return journal, marks

    def _outcomes(self) -> list[Outcome]:
        outcomes = {}
        for call in self.calls:
            error = self.errors.get(call.name)
            stack = call.name.rpartition("-")[0].replace("-", " ")
            outcomes[call.name] = Outcome(call.name, stack, call.at, 0.002, None if error else 200, error)
        return list(outcomes.values())


def _at(arrival: float | Call) -> float:
    return arrival.at if isinstance(arrival, Call) else arrival


def _arrive(journal: Journal, arrival: float | Call) -> None:
    if isinstance(arrival, float):
        request = Request("POST", "/api/auth/token", {"x-api-key": "sk_test_x"})
        ticket = journal.arrived(request, arrival, None, None)
        journal.finished(ticket, body=b"", status=200, executed=True, event="issued", serial=1, fault=None)
        return
    headers = {"x-api-key": "sk_test_x"} if arrival.key else {}
    request = Request("POST", f"/api/transactions/charges?call={arrival.name}", headers)
    ticket = journal.arrived(request, arrival.at, 1, arrival.age)
    journal.finished(
        ticket,
        body=json.dumps({"description": arrival.name}).encode(),
        status=401 if arrival.rejected else 200,
        executed=not arrival.rejected,
        event="unauthorized" if arrival.rejected else "charged",
        serial=1,
        fault=None,
    )


def test_a_good_run_breaks_no_guarantee(capsys: pytest.CaptureFixture[str]) -> None:
    """The run that the other tests modify is a good one: exit code 0."""
    assert [verdict for verdict in judge(Story().evidence()) if not verdict.kept] == []
    assert conclude(Story().evidence(), PlainView()) == 0
    assert "guarantees kept." in capsys.readouterr().out


def _call(*calls: Call) -> Callable[[Story], None]:
    return lambda story: story.calls.extend(calls)


def _tokens(*at: float) -> Callable[[Story], None]:
    return lambda story: story.tokens.extend(at)


def _waits(scene: Scene) -> Callable[[Story], None]:
    return lambda story: story.waited.update({scene: 1})


def _fails(name: str, error: Exception) -> Callable[[Story], None]:
    return lambda story: story.errors.update({name: error})


def _loses_its_count(story: Story) -> None:
    story.uncounted = 1


def _never_degrades(story: Story) -> None:
    story.calls = [call for call in story.calls if call.age < 50]


def _is_not_replayed(story: Story) -> None:
    story.calls = [call for call in story.calls if call.name != "aiohttp-0001" or call.rejected]


def _probes_at_once(story: Story) -> None:
    story.tokens.remove(102.7)
    story.tokens.append(101.9)


def _leaks_the_key(story: Story) -> None:
    story.calls[0] = replace(story.calls[0], key=True)


BROKEN: list[tuple[str, Callable[[Story], None]]] = [
    ("a token is reused", _call(Call(99.0 - 5, "httpx-0009", age=50.5))),
    ("no request waits", _waits(Scene.STEADY)),
    ("a cold start", _tokens(0.1)),
    ("at most 10 token requests", _tokens(*(60.0 + number / 10 for number in range(11)))),
    ("at most 100 token requests", _tokens(*(111.0 + number / 10 for number in range(101)))),
    ("every token request was counted", _loses_its_count),
    ("a stale token is used", _never_degrades),
    ("no request fails", _fails("httpx-async-0001", TokenBudgetExhausted("spent"))),
    ("no expired token", _call(Call(98.0, "httpx-0009", age=60.0))),
    ("a request is retried once", _is_not_replayed),
    ("a 401 storm", _tokens(56.1)),
    ("no other request", _call(Call(70.0, "httpx-0009", rejected=True), Call(70.1, "httpx-0009"))),
    ("the backoff grows", _probes_at_once),
    ("only token requests carry", _leaks_the_key),
    ("requests return or raise", _fails("urllib3-0001", TimeoutError())),
    ("no request is executed twice", _call(Call(120.5, "urllib3-0002"))),
    ("only successful requests", _fails("urllib3-0002", TokenBudgetExhausted("spent"))),
]


@pytest.mark.parametrize(("text", "spoil"), BROKEN, ids=[text for text, _ in BROKEN])
def test_a_broken_guarantee_is_noticed_and_ends_with_1(
    text: str, spoil: Callable[[Story], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each guarantee in turn, in a run that is otherwise good."""
    story = Story()
    spoil(story)

    assert any(verdict.guarantee.text.startswith(text) and not verdict.kept for verdict in judge(story.evidence()))
    assert conclude(story.evidence(), PlainView()) == 1
    assert any(line.startswith("BROKEN ") and text in line for line in capsys.readouterr().out.splitlines())


def test_every_guarantee_has_a_run_that_breaks_it() -> None:
    """A guarantee that no test breaks may be unbreakable."""
    assert [guarantee.text.startswith(text) for guarantee, (text, _) in zip(GUARANTEES, BROKEN, strict=True)].count(
        False
    ) == 0


def test_an_aborted_run_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """Also if no guarantee was broken until then."""
    story = Story(unfinished="the end of the outage")

    assert conclude(story.evidence(), PlainView()) == 1
    assert "Timeout while waiting for the end of the outage" in capsys.readouterr().out
