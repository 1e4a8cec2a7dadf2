"""The rate limits of API requests in a shared store, and the share that this process uses in degraded mode."""

from __future__ import annotations

from pay88_adapters.core.history import Acquisition, Window

from .local_copy import LocalCopy


class LocalCallCopy(LocalCopy):
    """This process's copy of the shared rate limits, from which it acquires units in degraded mode (rules 22 and 24).

    Unlike the token budget, a rate limit may be exceeded: the service responds with a 429 and has executed nothing. But
    no payment may fail because the store does. So only what is known counts: the acquired units, and the number of
    processes. At least one request may be sent immediately, and nothing stays reserved after the store has recovered.
    """

    @property
    def _rounds_down(self) -> bool:
        return False

    def _divisor(self) -> int:
        return self._share.members

    def _assumed_units(self, window: Window) -> int:
        return 0

    def _without_reserved(self, window: Window) -> Window:
        return window

    def _denial_reason(self, acquisition: Acquisition, divisor: int) -> str:
        why = f"the rate limit of this {self._who} (1/{divisor}) is reached"
        return f"the shared store is unavailable and {why}: {self._remedy}"
