"""A finalizer uses another manager in the middle of a fetch, on the thread of that fetch or of its store (rule 17)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pay88_adapters import Credentials, Pay88Error, Token, TokenManager
from pay88_adapters.testing import ManualClock
from support.plain_calls import Call
from support.processes import Endpoint88
from support.servers import until


class StrikingClock(ManualClock):
    """Calls *strike* at its *count*-th reading on a thread of the package."""

    def __init__(self, count: int, strike: Callable[[], object]) -> None:
        super().__init__(auto_advance=True)
        self.left, self._strike = count, strike
        read = self.now

        def now() -> float:
            if threading.current_thread().name.startswith("pay88-"):
                self.left -= 1
                if not self.left:
                    self._strike()
            return read()

        self.now = now


@pytest.mark.parametrize("store", ["memory", "file"])
def test_rule_17_a_finalizer_that_uses_another_manager_stalls_neither(store: str, tmp_path: Path) -> None:
    """At any reading of the clock: it gets a token, or an error immediately where it interrupts the store."""
    tmp_path.chmod(0o700)
    outcomes: set[type] = set()
    managers: list[TokenManager] = []

    def strike() -> None:
        try:
            outcomes.add(type(managers[1].sync_runner.call(Call(Endpoint88()))))
        except Pay88Error as error:
            assert error.retryable  # noqa: PT017 - on another thread
            outcomes.add(type(error))
        until(
            lambda: not managers[1].stats().fetching
        )  # what it publishes is in the store: the clock waits for nothing

    for count in range(1, 1_000):
        clock = StrikingClock(count, strike)
        url = "memory://" if store == "memory" else f"sqlite:///{tmp_path}/{count}.db"
        managers[:] = [TokenManager(Credentials("sk_test_1", "MCH-COL-1"), store=url, clock=clock) for _ in range(2)]
        since = clock.now()
        assert isinstance(managers[0].sync_runner.call(Call(Endpoint88())), Token)
        assert clock.now() < since + 2  # a lease lasts longer
        assert not managers[0].stats().store_degraded  # as it is if an operation gets no response
        if clock.left > 0:
            assert outcomes >= {Token}
            return
    raise AssertionError("there is no end to it")
