"""The log: one line when a problem starts, one when it ends, and nothing that the application did not enable."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable

import pytest

from pay88_adapters import BreakerPolicy
from pay88_adapters.events import Event
from pay88_adapters.testing import Status
from support.worlds import World

HOUR = 3600


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    """Return the names and levels of the records since the last call."""
    records = [(record.name, record.levelno) for record in caplog.records if record.name.startswith("pay88_adapters")]
    caplog.clear()
    return records


def for_an_hour(world: World, act: Callable[[], object], step: float = 15) -> None:
    """Act again and again."""
    for _ in range(int(HOUR / step)):
        act()
        world.clock.advance(step)


def test_an_outage_of_an_hour_makes_a_handful_of_lines(one_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Eighty fetches fail, and more calls; a line each time their number has doubled, and one when it is over."""
    world = one_world
    manager = world.new_manager(fetch_attempts=1)
    client = world.client(manager)
    world.emulator.faults.add(Status(503), on="token", times=None)
    for_an_hour(world, lambda: client.attempt("POST", world.url))
    world.settle(manager)
    failed = manager.stats().consecutive_failures
    assert failed > 60
    assert lines(caplog) == [("pay88_adapters.tokens", logging.WARNING)] * failed.bit_length()
    world.emulator.faults.clear()
    world.clock.advance(60)
    assert client.request("POST", world.url).status == 200
    world.settle(manager)
    assert lines(caplog) == [("pay88_adapters.tokens", logging.WARNING)]
    for_an_hour(world, lambda: client.request("POST", world.url))
    assert lines(caplog) == []


def test_a_circuit_that_stays_open_is_logged_once(one_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """However many probes fail; and once more when it is closed."""
    world = one_world
    client = world.client(world.new_manager(breaker=BreakerPolicy(failure_threshold=2)))
    world.emulator.faults.add(Status(500), on="call", times=None)
    for_an_hour(world, lambda: client.attempt("POST", world.echo), step=30)
    assert lines(caplog) == [("pay88_adapters.calls", logging.WARNING)]
    world.emulator.faults.clear()
    assert client.request("POST", world.echo).status == 200
    assert lines(caplog) == [("pay88_adapters.calls", logging.WARNING)]


def test_a_listener_that_always_raises_does_not_flood(one_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Its exceptions are logged at the 1st, 2nd, 4th … occurrence."""
    world = one_world
    mistakes = 0

    def broken(_: Event) -> None:
        nonlocal mistakes
        mistakes += 1
        raise RuntimeError("a mistake in a listener")

    client = world.client(world.new_manager(listeners=[broken]))
    for_an_hour(world, lambda: client.request("POST", world.url), step=46)
    world.settle(client.manager)
    assert mistakes > 64
    assert lines(caplog) == [("pay88_adapters.events", logging.ERROR)] * mistakes.bit_length()


def test_an_application_that_configures_no_logging_sees_none() -> None:
    """A warning goes nowhere, also not to Python's last resort."""
    code = "import logging, pay88_adapters; logging.getLogger('pay88_adapters.tokens').warning('not to be seen')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert (ran.stdout, ran.stderr) == (b"", b"")
