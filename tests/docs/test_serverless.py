"""The page about functions that are frozen between calls: its handler, in processes that are stopped and killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3

import pay88_adapters.urllib3
from pay88_adapters import Credentials, TokenManager, TokenPolicy
from pay88_adapters.testing import Emulator, Latency, ManualClock
from support.servers import Valkey

PAGE = (Path(__file__).parents[2] / "docs" / "deployment" / "serverless.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
LEASE = 2 * 2 + 0.25 + 2
"""Seconds, as the page says."""

PLATFORM = """
import sys, handler
for line in sys.stdin:
    print(handler.handler({}, None)["statusCode"], flush=True)
"""

posix = pytest.mark.skipif(os.name != "posix", reason="nothing is stopped here")


class Function:
    """A process of the platform, which handles a request on command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self) -> None:
        """Let it handle a call."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def call(self) -> int:
        """Let it handle a call; return the status."""
        self.ask()
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


class Platform:
    """Starts processes that have the page's file, a store, and an emulator with a token *lifetime* in seconds."""

    def __init__(self, directory: Path, emulator: Emulator, store: str) -> None:
        for name, text in FILES.items():
            (directory / name).write_text(text, encoding="utf-8")
        self._directory = directory
        self._environment = {
            **os.environ,
            "PAY88_API_KEY": emulator.api_key,
            "PAY88_MERCHANT_ID": emulator.merchant_id,
            "PAY88_BASE_URL": emulator.url,
            "PAY88_STORE": store,
        }

    @contextmanager
    def function(self) -> Iterator[Function]:
        """Start a process; end it as it comes."""
        with subprocess.Popen(
            [sys.executable, "-c", PLATFORM],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield Function(process)
            finally:
                process.kill()


@contextmanager
def platform(directory: Path, lifetime: float = 60.0) -> Iterator[tuple[Platform, Emulator]]:
    """Set all of it up."""
    with Valkey(directory) as server, Emulator(call_limits=(), lifetime=lifetime) as emulator:
        yield Platform(directory, emulator, server.url), emulator


@posix
@pytest.mark.deep
def test_rule_04_one_call_per_process(tmp_path: Path) -> None:
    """Five processes, one after the other, fetch one token, which is in the store before a response is sent."""
    with platform(tmp_path) as (functions, emulator):
        emulator.faults.add(Latency(0.3), on="call", times=None)  # what a call takes that leaves the machine
        for _ in range(5):
            with functions.function() as function:
                assert function.call() == 200
        assert (emulator.journal.token_requests, emulator.journal.calls) == (1, 5)


@posix
@pytest.mark.deep
def test_rule_01_a_process_that_thaws_knows_how_old_its_token_is(tmp_path: Path) -> None:
    """It was stopped for longer than the lifetime of a token, and fetches another one before any 401."""
    with platform(tmp_path, lifetime=1.5) as (functions, emulator), functions.function() as function:
        assert function.call() == 200
        function.process.send_signal(signal.SIGSTOP)
        time.sleep(1.6)
        function.process.send_signal(signal.SIGCONT)
        assert function.call() == 200
        assert [entry.status for entry in emulator.journal.select("call")] == [200, 200]
        assert emulator.journal.token_requests == 2


@posix
@pytest.mark.deep
def test_rule_04_a_process_that_is_killed_while_it_fetches(tmp_path: Path) -> None:
    """Another one fetches as soon as the right to do so has lapsed, which is within the wait that the page allows."""
    with platform(tmp_path) as (functions, emulator), functions.function() as other:
        with emulator.hold("token") as held, functions.function() as function:
            function.ask()
            held.wait_for(1)
            began = time.monotonic()
        assert other.call() == 200
        assert time.monotonic() - began < LEASE + 1.5
        assert emulator.journal.token_requests == 2


def test_rule_07_a_frozen_clock_costs_one_token_request() -> None:
    """The token is older than the manager assumes: its request gets a 401, and is replayed."""
    here, there = ManualClock(), ManualClock()
    with Emulator(clock=there) as emulator, urllib3.PoolManager() as http:
        credentials = Credentials(emulator.api_key, emulator.merchant_id)
        manager = TokenManager(credentials, base_url=emulator.url, clock=here)
        pay88_adapters.urllib3.attach(http, manager)
        url = f"{emulator.url}/api/balance"
        assert http.request("POST", url).status == 200
        there.advance(3600)
        assert http.request("POST", url).status == 200
        assert [entry.status for entry in emulator.journal.select("call")] == [200, 401, 200]
        assert emulator.journal.token_requests == 2


def test_rule_02_without_refresh_ahead_nothing_continues_beside_a_call() -> None:
    """Just before the end of the window the token is used; after it, a call fetches the next one itself."""
    clock = ManualClock()
    with Emulator(clock=clock) as emulator:
        manager = TokenManager(
            Credentials(emulator.api_key, emulator.merchant_id),
            base_url=emulator.url,
            clock=clock,
            policy=TokenPolicy(refresh_ahead=0),
        )
        first = manager.get_token()
        clock.advance(49.9)
        assert manager.get_token() == first
        assert not manager.stats().fetching
        clock.advance(0.2)
        assert manager.get_token() != first
        assert (manager.stats().refreshes, emulator.journal.token_requests) == (0, 2)


def test_every_block_of_the_page_is_run() -> None:
    """No code on the page but the handler."""
    assert re.findall(r"^```(?:python|sh|console)$", PAGE, re.MULTILINE) == ["```python"]
    assert list(FILES) == ["handler.py"]
