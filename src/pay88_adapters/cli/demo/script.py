"""The script of the demo. A phase ends with a condition, not after a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from pay88_adapters import TokenManager
from pay88_adapters.testing import Emulator, Latency, ResetBeforeRead, Status

from .clock import BusyClock
from .load import CALLERS, Load
from .record import Ledger, Moment, Phase, Scene
from .report import Snapshot
from .views import View

_LOOK = 0.02  # real seconds between two checks of a condition
_SLOWEST = 6  # times the planned duration; more means that something hangs
_STORM_AT = 55.0  # seconds of the service after the start: 10 s after the first refresh
_BEFORE_REFRESH = 40.0  # age of a token in seconds; the refresh starts at 45
_OUTAGE = (Status(500), ResetBeforeRead(), Status(503), Status(500), Status(502))
"""Faults of the token requests in the outage: three attempts of the refresh and two trial requests.

The next trial request is sent when the token is about 53 s old: past its reuse window of 50 s, and valid for 59 s."""

_TEXTS = {
    Scene.COLD: f"{CALLERS} concurrent requests without a token",
    Scene.STEADY: "tokens are refreshed in the background",
    Scene.STORM: f"{CALLERS} concurrent requests get a 401",
    Scene.OUTAGE: "5xx and resets, from before a refresh is due",
}


class Overdue(Exception):
    """A condition did not become true in a time that suffices on any machine."""


class Script:
    """Runs the phases.

    Args:
        clock: Clock of the service.
        emulator: The service.
        manager: The manager of all callers.
        ledger: The outcomes of their requests.
        load: The callers.
        shown: The output.
    """

    def __init__(
        self,
        clock: BusyClock,
        emulator: Emulator,
        manager: TokenManager,
        ledger: Ledger,
        load: Load,
        shown: View,
    ) -> None:
        self._clock, self._emulator, self._manager = clock, emulator, manager
        self._ledger, self._load, self._shown = ledger, load, shown
        self._give_up_at = 0.0
        self.phases: list[Phase] = []

    def run(self, seconds: float) -> str:
        """Run for *seconds* of the service's clock; return the condition that did not become true, or ""."""
        self._give_up_at = time.monotonic() + _SLOWEST * seconds / self._clock.rate
        ends_at = self._clock.now() + seconds
        try:
            self._cold_start()
            self._steady(_STORM_AT)
            self._storm()
            self._steady(self._issued_at() + _BEFORE_REFRESH)
            self._outage()
            self._steady(ends_at)
        except Overdue as overdue:
            return str(overdue)
        return ""

    # The phases

    def _cold_start(self) -> None:
        self._emulator.faults.add(Latency(2), on="token")
        with self._phase(Scene.COLD):
            self._load.start(self._emulator.merchant_id)
            self._settle(1)

    def _steady(self, until: float) -> None:
        with self._phase(Scene.STEADY):
            self._until("the time", lambda: self._clock.now() >= until)

    def _storm(self) -> None:
        # A request is in the journal before it is held. So hold those that are on their way, too, before the phase.
        with self._emulator.hold("call") as earlier:
            self._until("requests of all callers", lambda: earlier.held >= CALLERS)
            with self._phase(Scene.STORM), self._emulator.hold("call") as hold:
                earlier.release()
                self._until("requests of all callers", lambda: hold.held >= CALLERS)
                self._emulator.service.revoke_current_tokens()
                hold.release()
                self._settle(2)

    def _outage(self) -> None:
        faults = [self._emulator.faults.add(fault, on="token") for fault in _OUTAGE]
        issued = self._emulator.service.issued
        with self._phase(Scene.OUTAGE):
            self._until("the end of the outage", lambda: all(fault.used for fault in faults))
            self._until("a token after the outage", lambda: self._emulator.service.issued > issued)
            self._settle(2)

    # Bookkeeping

    @contextmanager
    def _phase(self, scene: Scene) -> Generator[None, None, None]:
        began = self._moment()
        self._shown.phase(began.at, scene.value, _TEXTS[scene])
        try:
            yield
        finally:
            self._show(scene)
            self.phases.append(Phase(scene, began, self._moment()))

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), self._emulator.journal.mark(), self._manager.stats().waited)

    def _issued_at(self) -> float:
        issued = [entry.at for entry in self._emulator.journal.select("token") if entry.event == "issued"]
        return issued[-1]

    def _settle(self, calls: int) -> None:
        """Wait until each caller has finished *calls* more requests; of two, one began after now."""
        before = self._ledger.ended()

        def settled() -> bool:
            now = self._ledger.ended()
            return len(now) == CALLERS and all(now[worker] >= before[worker] + calls for worker in now)

        self._until("a response for every caller", settled)

    def _until(self, what: str, true: Callable[[], bool]) -> None:
        while not true():
            if self._load.crash is not None:
                raise self._load.crash
            if time.monotonic() > self._give_up_at:
                raise Overdue(what)
            self._show(None)
            time.sleep(_LOOK)

    def _show(self, scene: Scene | None) -> None:
        """Show the current state; *scene* is a phase that ends now."""
        if self._shown.is_due(force=scene is not None):
            self._shown.show(
                Snapshot.take(self._clock.now(), self._ledger.outcomes, self._emulator.journal, self._manager.stats())
            )
