"""The emulator from the point of view of its page."""

from __future__ import annotations

from typing import Protocol

from pay88_adapters.engine.clock import Clock
from pay88_adapters.testing.faults import FaultPlan, On
from pay88_adapters.testing.holds import Hold
from pay88_adapters.testing.journal import Journal
from pay88_adapters.testing.service import Service


class Emulated(Protocol):
    """What the page shows and controls: :class:`~pay88_adapters.testing.Emulator`."""

    clock: Clock
    service: Service
    faults: FaultPlan
    journal: Journal
    host: str

    @property
    def url(self) -> str:
        """The base URL of the emulator."""
        ...

    @property
    def open_connections(self) -> int:
        """Number of open connections."""
        ...

    def hold(self, on: On = "call") -> Hold:
        """Hold responses back until the hold is released."""
        ...

    async def close_connections(self) -> None:
        """Close every open connection except the page's, on the server's event loop."""
        ...
