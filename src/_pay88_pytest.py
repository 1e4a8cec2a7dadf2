"""Fixtures for the tests of code that talks to 88Pay: docs/testing.md.

pytest loads this in every run where the package is installed, so it is next to the package and imports nothing of
it before a fixture is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pay88_adapters import TokenManager
    from pay88_adapters.testing import Emulator, ManualClock

_LINES = 100  # of a journal, at most, in the report of a failure


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "pay88(**options): arguments for the Emulator behind pay88_emulator")


@pytest.fixture
def pay88_clock() -> ManualClock:
    """A fake clock: pay88_clock.advance(seconds) moves it, and so does every backoff delay.

    pay88_emulator runs on it, and so does every TokenManager that is made in a test with pay88_emulator.
    """
    return _clock()


@pytest.fixture
def pay88_isolated() -> Iterator[None]:
    """No token, failures or used budget from outside of the test; pay88_emulator and pay88_manager bring that along.

    For tests with doubles of an HTTP client: @pytest.mark.usefixtures("pay88_isolated"), or usefixtures in pytest.ini.
    """
    from pay88_adapters.testing import isolated

    with isolated():
        yield


@pytest.fixture
def pay88_vcr_config(pay88_isolated: None) -> dict[str, Any]:
    """Options for vcrpy: no secret in a cassette; each test records its own token request.

    For pytest-recording: a fixture vcr_config(pay88_vcr_config) that returns it.
    """
    from pay88_adapters.testing import vcr_config

    return vcr_config()


@pytest.fixture
def pay88_emulator(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, pay88_clock: ManualClock
) -> Iterator[Emulator]:
    """88Pay on a loopback port, new for each test; TokenManager.from_env() uses it.

    PAY88_API_KEY, PAY88_MERCHANT_ID and PAY88_BASE_URL are set for it; every other variable of the package and the
    vendor is removed. @pytest.mark.pay88(lifetime=20, call_limits=()) gives arguments to the Emulator. When the test
    fails, pytest shows what arrived.
    """
    from pay88_adapters.testing import Emulator, isolated

    mark = request.node.get_closest_marker("pay88") or pytest.mark.pay88.mark
    with Emulator(*mark.args, clock=pay88_clock, **mark.kwargs) as emulator, isolated(pay88_clock):
        for name in [name for name in os.environ if name.startswith(("PAY88_", "EIGHTY_EIGHT_PAY_"))]:
            monkeypatch.delenv(name)
        for name, value in emulator.environ.items():
            monkeypatch.setenv(name, value)
        yield emulator
    if len(emulator.journal):
        request.node.add_report_section("teardown", "88Pay journal", _listed(emulator))


@pytest.fixture
def pay88_manager(pay88_emulator: Emulator) -> Iterator[TokenManager]:
    """A TokenManager for pay88_emulator, on the same clock."""
    from pay88_adapters import TokenManager

    with TokenManager.from_env(pay88_emulator.environ) as manager:
        yield manager


@pytest.fixture(scope="session")
def pay88_session_clock() -> ManualClock:
    """The fake clock of pay88_session_emulator, like pay88_clock."""
    return _clock()


@pytest.fixture(scope="session")
def pay88_session_emulator(pay88_session_clock: ManualClock) -> Iterator[Emulator]:
    """88Pay on a loopback port, one for the session, with no limit on calls; for code that outlives a test.

    It does not change the environment: pay88_session_emulator.environ is what TokenManager.from_env() needs.
    """
    from pay88_adapters.testing import Emulator

    with Emulator(clock=pay88_session_clock, call_limits=()) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def pay88_session_manager(pay88_session_emulator: Emulator, pay88_session_clock: ManualClock) -> Iterator[TokenManager]:
    """A TokenManager for pay88_session_emulator, on the same clock."""
    from pay88_adapters import Credentials, TokenManager

    emulator = pay88_session_emulator
    credentials = Credentials(emulator.api_key, emulator.merchant_id)
    with TokenManager(credentials, base_url=emulator.url, clock=pay88_session_clock) as manager:
        yield manager


def _clock() -> ManualClock:
    from pay88_adapters.testing import ManualClock

    return ManualClock(auto_advance=True)


def _listed(emulator: Emulator) -> str:
    entries = list(emulator.journal)
    left_out = len(entries) - _LINES
    more = [f"({left_out} earlier requests)"] if left_out > 0 else []
    return "\n".join([*more, *map(str, entries[-_LINES:])])
