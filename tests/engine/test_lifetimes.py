"""Rules 2 and 16 where a fetch can stand on nothing that lasts: clients, event loops or processes for one request each.

A request a second, on a clock that is moved between the requests; a token request takes longer than an API request.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import trio

import pay88_adapters.aiohttp
import pay88_adapters.httpx
from pay88_adapters import Credentials, TokenManager, TokenPolicy
from pay88_adapters.engine.lifetimes import Lifetimes
from pay88_adapters.events import Event, RefreshFailed
from pay88_adapters.testing import Emulator, Hold, ManualClock
from support.stacks import Aiohttp, Httpx, Httpx2, HttpxAsyncio, HttpxTrio, Options, Requests, Stack, Urllib3

HOUR = 3600
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # one for all: they take long to make
Request = Callable[[], int]


class Steady:
    """An emulator whose token requests take a while, a manager, and what happened to it."""

    def __init__(self, emulator: Emulator, clock: ManualClock, hold: Hold, store: str = "memory://") -> None:
        self.emulator, self.clock, self._hold = emulator, clock, hold
        self.url = f"{emulator.url}/api/balance?id={emulator.merchant_id}"
        self.events: list[Event] = []
        self.manager = TokenManager(
            Credentials(emulator.api_key, emulator.merchant_id),
            base_url=emulator.url,
            store=store,
            clock=clock,
            listeners=[self.events.append],
        )

    def run(self, request: Request, seconds: int) -> Counter[int]:
        """Make a request a second; return how often each status code came."""
        statuses: Counter[int] = Counter()
        for _ in range(seconds):
            statuses[request()] += 1
            # What is in flight now either continues beside the requests, or has died with what carried it.
            until = time.monotonic() + 10
            while self.manager.stats().fetching:
                assert time.monotonic() < until, "a fetch neither ends nor dies"
                time.sleep(0.001)
            self.clock.advance(1)
        return statuses

    def check(self, statuses: Counter[int], seconds: int, *, waited: int | None = None) -> None:
        """Check that all were served, at the price of the ordinary refreshes."""
        stats = self.manager.stats()
        journal = self.emulator.journal
        sent = journal.token_requests
        assert statuses == {200: seconds}
        assert seconds // 48 <= sent <= seconds * 80 / HOUR + 2
        assert journal.max_in_window(HOUR) <= 82
        assert journal.max_in_window(60) <= 10
        assert stats.tokens == stats.token_requests == sent, "a token request was wasted"
        assert stats.waited <= (sent if waited is None else waited)
        assert stats.failed_fetches == 0
        assert not [each for each in self.events if isinstance(each, RefreshFailed)]


@contextmanager
def steady() -> Iterator[Steady]:
    """Set everything up; each token request is held until it has been seen, and a little longer."""
    clock, stopped = ManualClock(skips_pauses=True), threading.Event()
    with Emulator(clock=clock, call_limits=()) as emulator, emulator.hold("token") as hold:

        def respond() -> None:
            while not stopped.wait(0.001):
                if held := hold.held:
                    stopped.wait(0.02)
                    hold.release(held)

        responding = threading.Thread(target=respond)
        responding.start()
        try:
            yield Steady(emulator, clock, hold)
        finally:
            stopped.set()
            responding.join()


# --- who makes the requests


def client_per_request(kind: type[Stack], here: Steady) -> Iterator[Request]:
    """A sync client for each request."""

    def request() -> int:
        with kind(here.manager, Options(tls=TLS)) as client:
            return client.request("POST", here.url).status

    yield request


async def _send(kind: type[Stack], here: Steady) -> int:
    """Make one request by an async client of its own."""
    if kind is Aiohttp:
        async with (
            pay88_adapters.aiohttp.attach(aiohttp.ClientSession(), here.manager) as session,
            session.post(here.url) as response,
        ):
            await response.read()
            return response.status
    async with pay88_adapters.httpx.attach(httpx.AsyncClient(verify=TLS, trust_env=False), here.manager) as client:
        return (await client.post(here.url)).status_code


def run_per_request(kind: type[Stack], here: Steady) -> Iterator[Request]:
    """An event loop for each request, and a client."""
    if kind is HttpxTrio:
        yield lambda: trio.run(_send, kind, here)
    else:
        yield lambda: asyncio.run(_send(kind, here))


def bridge(kind: type[Stack], here: Steady) -> Iterator[Request]:
    """One event loop that runs only during a request, and one client."""
    loop = asyncio.new_event_loop()

    async def opened() -> Any:
        if kind is Aiohttp:
            return pay88_adapters.aiohttp.attach(aiohttp.ClientSession(), here.manager)
        return pay88_adapters.httpx.attach(httpx.AsyncClient(verify=TLS, trust_env=False), here.manager)

    client = loop.run_until_complete(opened())

    async def send() -> int:
        response = await client.post(here.url)
        if kind is Aiohttp:
            await response.read()
            return int(response.status)
        return int(response.status_code)

    try:
        yield lambda: loop.run_until_complete(send())
    finally:
        loop.run_until_complete(client.close() if kind is Aiohttp else client.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def client_per_request_on_one_loop(kind: type[Stack], here: Steady) -> Iterator[Request]:
    """A long-lived event loop, and an async client for each request."""
    with kind(here.manager, Options(tls=TLS)) as lasting:
        run: Callable[[Callable[[], Awaitable[int]]], int] = lasting.run  # type: ignore[attr-defined]
        yield lambda: run(partial(_send, kind, here))


def lasting(kind: type[Stack], here: Steady) -> Iterator[Request]:
    """One client that lives on."""
    with kind(here.manager, Options(tls=TLS)) as client:
        yield lambda: client.request("POST", here.url).status


Way = Callable[[type[Stack], Steady], Iterator[Request]]
SYNC: tuple[type[Stack], ...] = (Urllib3, Requests, Httpx, Httpx2)
ASYNC: tuple[type[Stack], ...] = (HttpxAsyncio, HttpxTrio, Aiohttp)
SHORT_LIVED: list[tuple[Way, type[Stack]]] = [
    *((client_per_request, kind) for kind in SYNC),
    *((client_per_request_on_one_loop, kind) for kind in ASYNC),
    *((run_per_request, kind) for kind in ASYNC),
    *((bridge, kind) for kind in (HttpxAsyncio, Aiohttp)),
]
NAMES = [f"{way.__name__}-{kind.name}" for way, kind in SHORT_LIVED]


def serve(way: Way, kind: type[Stack], seconds: int, **expected: Any) -> None:
    """Make the requests, and check what came of it."""
    with steady() as here:
        requests = way(kind, here)
        statuses = here.run(next(requests), seconds)
        for _ in requests:
            raise AssertionError("one kind of request is all there is")
        here.check(statuses, seconds, **expected)


@pytest.mark.parametrize(("way", "kind"), SHORT_LIVED, ids=NAMES)
def test_rule_02_nothing_outlives_a_request(way: Way, kind: type[Stack]) -> None:
    """Three refreshes, each in the foreground of one request: no error, no token request wasted."""
    serve(way, kind, 200)


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("way", "kind"), SHORT_LIVED, ids=NAMES)
def test_rule_02_an_hour_in_which_nothing_outlives_a_request(way: Way, kind: type[Stack]) -> None:
    """The same for an hour."""
    serve(way, kind, HOUR)


def test_rule_02_no_request_of_a_lasting_client_waits_after_the_first(kind: type[Stack]) -> None:
    """Its refreshes run in the background."""
    serve(lasting, kind, 200, waited=1)


PROCESS = """
    import sys
    import urllib3
    from pay88_adapters import Credentials, TokenManager
    from pay88_adapters.urllib3 import attach

    url, store = sys.argv[1:]
    manager = TokenManager(Credentials("sk_test_emulator", "MCH-COL-TEST-EMULATOR"), base_url=url, store=store)
    print(attach(urllib3.PoolManager(), manager).request("POST", url + "/api/balance").status)
"""


@pytest.mark.deep
def test_rule_04_short_processes_one_after_the_other(tmp_path: Path) -> None:
    """Each makes one request and exits: they share one token, and none waits for one that has exited."""
    tmp_path.chmod(0o700)
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROCESS)]
    with Emulator() as emulator:
        began = time.monotonic()
        for _ in range(6):
            done = subprocess.run(
                [*command, emulator.url, f"sqlite:///{tmp_path}/store.db"], capture_output=True, text=True, check=False
            )
            assert (done.stdout, done.stderr) == ("200\n", "")
        took = time.monotonic() - began
        assert emulator.journal.token_requests == 1 or took > 40


def test_rule_16_a_client_with_a_full_pool_pauses_until_it_had_a_free_connection() -> None:
    """Each client by itself; one that no longer exists leaves nothing."""

    class Client: ...

    lifetimes, policy, first, second = Lifetimes(), TokenPolicy(), Client(), Client()
    lifetimes.pool_was_full((first, object()), 100.0, policy)  # one that supports no weak references cannot pause
    lifetimes.pool_was_full((first,), 105.0, policy)
    lifetimes.pool_was_full((second,), 105.0, policy)
    assert [lifetimes.can_fetch_from((each,)) for each in (first, second, Client())] == [115.0, 110.0, None]
    assert lifetimes.can_fetch_from((first, second)) == 115.0
    lifetimes.pool_was_free((first,))
    assert [lifetimes.can_fetch_from((each,)) for each in (first, second)] == [None, 110.0]
    del second
    gc.collect()
    lifetimes.pool_was_full((first,), 120.0, policy)
    assert lifetimes.can_fetch_from((first,)) == 125.0
    assert len(lifetimes._full) == 1
    lifetimes.after_fork()
    assert lifetimes.can_fetch_from((first,)) is None
