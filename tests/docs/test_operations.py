"""The health check of docs/operations, in an outage and after it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import TokenEndpointUnavailable
from pay88_adapters.testing import Emulator, ManualClock, Status

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_health_check_ends_an_outage_without_traffic(pay88_emulator: Emulator, pay88_clock: ManualClock) -> None:
    """A process that is not ready gets no requests, which would fetch the next token."""
    [code] = re.findall(r"```python\n(from pay88_adapters import .*?def health.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    with pay88_emulator.faults.add(Status(503), on="token", times=None):
        for _ in range(3):
            with pytest.raises(TokenEndpointUnavailable):
                names["manager"].get_token()
            pay88_clock.advance(600)
        assert names["health"]()[0] == 503
        sent = pay88_emulator.journal.token_requests
        assert names["health"]()[0] == 503, "in the cooldown"
        assert pay88_emulator.journal.token_requests == sent
    pay88_clock.advance(600)
    status, details = names["health"]()
    assert (status, details["consecutive_failures"]) == (200, 0)
