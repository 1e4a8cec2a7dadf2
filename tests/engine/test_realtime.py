"""Time is real where a test has replaced the clocks of the standard library."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from pay88_adapters.testing import Emulator

PROGRAM = """
    import time
    stands_still, real = (lambda: 1.6e9), time.monotonic
    vars(time).pop("CLOCK_BOOTTIME", None)  # where the platform has no clock that counts suspended time
    if {before}:
        time.monotonic = stands_still
    from pay88_adapters import TokenManager
    from pay88_adapters.urllib3 import Pay88PoolManager
    time.monotonic = stands_still
    for clock in (stands_still, real):
        time.monotonic = clock
        manager = TokenManager.from_env()
        assert Pay88PoolManager(manager).request("GET", manager.base_url + "/api/echo").status == 200
        assert manager.stats().token_requests == (clock is stands_still)
"""


@pytest.mark.parametrize("before", [True, False])
def test_rule_01_age_is_measured_in_real_time(before: bool) -> None:
    """Frozen before the package is imported or after it: calls work, and one token serves both."""
    with Emulator() as emulator:
        program = textwrap.dedent(PROGRAM.format(before=before))
        subprocess.run([sys.executable, "-c", program], env={**os.environ, **emulator.environ}, check=True, timeout=30)
