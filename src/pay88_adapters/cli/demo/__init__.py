"""The demo: four HTTP clients, one token manager, and the guarantees, checked against the server's journal."""

from __future__ import annotations

from pay88_adapters import Credentials, TokenManager
from pay88_adapters.testing import Emulator

from .clock import BusyClock
from .guarantees import judge
from .load import Load
from .record import Evidence, Ledger
from .report import closing, document, opening, summary
from .script import Script
from .views import JsonView, View, view

__all__ = ["conclude", "run"]

SPEED = 10.0  # speed-up factor of the service's clock


def run(seconds: float, *, as_json: bool = False) -> int:
    """Run the demo for about *seconds*, print the summary, and return the exit code."""
    with (
        BusyClock(SPEED) as clock,
        Emulator(clock=clock, call_limits=()) as emulator,
        TokenManager(
            Credentials(emulator.api_key, emulator.merchant_id), base_url=emulator.url, clock=clock
        ) as manager,
    ):
        ledger = Ledger(clock)
        with JsonView() if as_json else view() as shown:
            shown.say(opening(SPEED))
            with Load(manager, ledger) as load:
                script = Script(clock, emulator, manager, ledger, load, shown)
                unfinished = script.run(seconds * SPEED)
            evidence = Evidence(
                emulator.journal,
                ledger.outcomes,
                script.phases,
                manager.stats(),
                emulator.service.charges,
                unfinished,
            )
        return conclude(evidence, shown)


def conclude(evidence: Evidence, shown: View) -> int:
    """Print the summary; return 0, or 1 if a guarantee was broken or the run did not finish."""
    verdicts = judge(evidence)
    shown.say([*summary(evidence, verdicts), *closing(verdicts, evidence.unfinished)])
    good = all(verdict.kept for verdict in verdicts) and not evidence.unfinished
    shown.conclude(document(evidence, verdicts, good=good))
    return 0 if good else 1
