"""An hour of worker processes in simulated time: each worker has a manager of its own and calls now and then.

Time is one number that all of them read. The libraries that take no clock have the module replaced through which
they read it; the token requests are real ones, to an emulator on the same time and without its limits.
"""

from __future__ import annotations

import datetime
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import byhand, peers
from benchmarks.service import Service
from pay88_adapters import Credentials, TokenManager
from pay88_adapters.clock import Clock
from pay88_adapters.testing import Emulator, ManualClock

HOUR = 3600.0
GAP = 0.5
"""Seconds between two calls of one worker, on average."""

ROWS = (
    "by hand",
    "pay88-adapters",
    "pay88-adapters, sqlite",
    "google-auth",
    "authlib",
    "httpx-auth",
    "botocore",
    "azure-core",
)


class _Now:
    """Stands in for the modules ``time`` and ``datetime``, and for the class ``datetime``."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.timedelta, self.timezone = datetime.timedelta, datetime.timezone
        self.datetime = self
        self.fromtimestamp = datetime.datetime.fromtimestamp
        self.monotonic = clock.now
        self._epoch = 1_800_000_000.0

    def time(self) -> float:
        return self._epoch + self._clock.now()

    def now(self, zone: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.time(), zone)

    def utcnow(self) -> datetime.datetime:
        return self.now(datetime.timezone.utc).replace(tzinfo=None)


class _Shown(ManualClock):
    """A clock of a process's own that shows the time of all."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.now = clock.now


def hour(row: str, workers: int, hours: float) -> dict[str, float]:
    """Return the token requests of an hour."""
    clock, chance = ManualClock(), random.Random(88)
    with (
        Emulator(clock=clock, token_limits=(), call_limits=()) as emulator,
        tempfile.TemporaryDirectory() as directory,
    ):
        service = Service(emulator.url, emulator.api_key, emulator.merchant_id)
        make = _maker(row, service, clock, Path(directory))
        reads = [make(number) for number in range(workers)]
        for _ in range(int(HOUR * hours / GAP)):
            chance.shuffle(reads)
            for read in reads:
                clock.advance(GAP / workers)
                read()
        return {"token requests": emulator.journal.token_requests / hours}


def _maker(row: str, service: Service, clock: ManualClock, directory: Path) -> Callable[[int], Callable[[], object]]:
    now: Any = _Now(clock)
    if row.startswith("pay88-adapters"):
        store = f"sqlite:///{directory / 'store.db'}" if "sqlite" in row else "memory://"
        return lambda number: _ours(service, _Shown(clock), store)
    if row == "by hand":
        setattr(byhand, "time", now)  # noqa: B010 - for mypy, a module of another module
        return lambda number: byhand.Manager(service.ask, service.margin).headers
    setattr(peers, "time", now)  # noqa: B010
    peers.now = now.now
    if row == "google-auth":
        from google.auth import _helpers

        _helpers.utcnow = now.utcnow
        return lambda number: _google(service)
    if row == "authlib":
        from authlib.integrations.requests_client import OAuth2Session
        from authlib.oauth2.rfc6749 import wrappers

        wrappers.time = now

        def authlib(number: int) -> Callable[[], object]:
            session = peers.hook_authlib(OAuth2Session(**peers.authlib_options(service)), service)
            read: Callable[[], object] = session.ensure_active_token
            return read

        return authlib
    if row == "httpx-auth":
        from httpx_auth._oauth2 import tokens

        tokens.datetime = now
        return lambda number: peers.httpx_auth_reader(service, str(number))
    if row == "botocore":
        return lambda number: _frozen(service, now)
    from azure.core.pipeline.policies import _authentication

    _authentication.time = now
    return lambda number: peers.azure_reader(service)


def _google(service: Service) -> Callable[[], object]:
    google, headers = peers.google_credentials(service), dict[str, str]()

    def read() -> None:
        google.before_request(None, "POST", service.call_url, headers)
        worker = google._refresh_worker._worker
        if worker is not None:
            worker.join()  # the clock is not advanced until it is there

    return read


def _frozen(service: Service, now: Any) -> Callable[[], object]:
    credentials = peers.botocore_credentials(service)
    credentials._time_fetcher = lambda: now.now(datetime.timezone.utc)
    credentials._expiry_time = now.now(datetime.timezone.utc)
    frozen: Callable[[], object] = credentials.get_frozen_credentials
    return frozen


def _ours(service: Service, clock: Clock, store: str) -> Callable[[], object]:
    credentials = Credentials(service.api_key, service.merchant_id)
    manager = TokenManager(credentials, base_url=service.url, store=store, clock=clock)

    def read() -> None:
        manager.get_token()
        while manager.sync_runner.fetches.is_fetching:
            time.sleep(0.001)  # the clock is not advanced until it is there

    return read
