"""What limits a client, its timeouts and its pool, limits neither its token requests nor the other clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import httpx2
import pytest
import urllib3

import pay88_adapters.httpx
import pay88_adapters.httpx2
from pay88_adapters import Credentials, TokenEndpointUnavailable, TokenManager
from pay88_adapters.engine import NoFreeConnection
from pay88_adapters.testing import Hold, ManualClock, Status
from support.leaks import error_texts, leaked
from support.security import ok
from support.stacks import STACKS, Stack, Urllib3
from support.worlds import World

SHORT = 0.2
"""Seconds. The libraries measure it themselves."""


@pytest.mark.parametrize(
    ("kind", "timeout"),
    [*((kind, SHORT) for kind in STACKS), (Urllib3, urllib3.Timeout(total=SHORT))],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)
def test_rule_16_a_short_timeout_of_one_client_fails_no_other(make_world: Callable[..., World], timeout: Any) -> None:
    """The client that fetches the token for all has it; the token request takes longer."""
    world = make_world()
    manager = world.new_manager(backoff_base=0, backoff_cap=0)
    hasty, patient = world.client(manager, timeout=timeout), world.client(manager)
    with world.emulator.hold("token") as held, ThreadPoolExecutor(2) as pool:
        first = pool.submit(hasty.attempt, "POST", world.url)
        held.wait_for(1)
        second = pool.submit(patient.attempt, "POST", world.url)
        time.sleep(4 * SHORT)
        held.release()
        assert ok(second.result(60))
        first.result(60)
    assert world.emulator.journal.token_requests == 1


@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
@pytest.mark.parametrize("where", ["pool", "request"])
def test_rule_06_a_total_timeout_is_the_deadline_of_a_request(world: World, where: str) -> None:
    """Of its wait for a token, and of its retries; that it is the default of the pool makes no difference."""
    timeout: Any = urllib3.Timeout(total=2)
    client = world.client(timeout=timeout) if where == "pool" else world.client()
    kw = {"timeout": timeout} if where == "request" else {}
    began = world.clock.now()
    with world.emulator.hold("token") as held:
        error = world.as_time_passes(lambda: client.attempt("POST", world.url, **kw))
        assert isinstance(error, TokenEndpointUnavailable)
        assert 2 <= world.clock.now() - began < 3
        held.release()
    world.emulator.faults.add(Status(503, headers={"Retry-After": "3"}), on="call", times=None)
    calls = world.emulator.journal.calls
    assert getattr(world.as_time_passes(lambda: client.attempt("POST", world.url, **kw)), "status", None) == 503
    assert world.emulator.journal.calls == calls + 1


@contextmanager
def full_pool(world: World, manager: TokenManager) -> Iterator[tuple[Stack, Hold]]:
    """Yield a client whose only connection is in use until it is released, after the token has been discarded."""
    client = world.client(manager, connections=1)
    assert ok(client.attempt("POST", world.url))
    with ThreadPoolExecutor(1) as pool, world.emulator.hold("/api/echo") as held:
        busy = pool.submit(client.attempt, "POST", world.echo)
        held.wait_for(1)
        manager.invalidate(manager.get_token())
        yield client, held
        held.release()
        assert ok(busy.result(60))


def test_rule_16_a_full_pool_of_one_client_fails_no_other(world: World) -> None:
    """Another client sends the token request: of those that share the pool, one has tried, which is no failure."""
    manager = world.new_manager(fetch_timeout=2, backoff_base=0, backoff_cap=0)
    with full_pool(world, manager) as (client, busy), ThreadPoolExecutor(2) as pool:
        crowd = pool.submit(client.gather, 5, "POST", world.url)
        world.until(lambda: bool(manager.stats().fetching))
        assert ok(pool.submit(world.client(manager).attempt, "POST", world.url).result(60))
        stats = manager.stats()
        assert (stats.failed_fetches, stats.token_requests, world.emulator.journal.token_requests) == (0, 3, 2)
        busy.release()
        assert all(ok(each) for each in crowd.result(60))


def test_rule_06_with_a_full_pool_a_request_waits_until_its_deadline(world: World) -> None:
    """For the token request of another client; then its error contains that of the pool."""
    manager = world.new_manager(fetch_timeout=2, max_wait=1.5, backoff_base=0, backoff_cap=0)
    with full_pool(world, manager) as (client, busy), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.attempt, "POST", world.url)
        world.until(lambda: manager.stats().token_requests == 2 and not manager.stats().fetching)
        assert not waiting.done()
        world.clock.advance(1.5)
        error = waiting.result(60)
        assert isinstance(error, TokenEndpointUnavailable)
        assert isinstance(error, client.base_error)
        assert isinstance(error.__cause__, NoFreeConnection)
        assert error.retry_after == pytest.approx(0.5)
        stats = manager.stats()
        assert (stats.failed_fetches, world.emulator.journal.token_requests) == (0, 1)
        assert not leaked([world.emulator.api_key], error_texts(error))
        busy.release()
    world.clock.advance(0.5)
    assert ok(client.attempt("POST", world.url))


@pytest.mark.parametrize(
    ("library", "adapter"),
    [(httpx, pay88_adapters.httpx), (httpx2, pay88_adapters.httpx2)],
    ids=["httpx", "httpx2"],
)
def test_rule_21_timeouts_set_for_token_requests_stay_when_a_manager_is_attached(library: Any, adapter: Any) -> None:
    """Those of a transport are; those of its client, and of a request, are not."""
    timeouts = []

    def respond(request: Any) -> Any:
        if not request.url.path.endswith("/auth/token"):
            return library.Response(200)
        timeouts.append(request.extensions["timeout"])
        data = {"access_token": "eyJ.1", "session_id": "sess_1", "expires_in": 60}
        return library.Response(200, json={"data": data})

    class Wrapping(library.BaseTransport):  # type: ignore[misc]
        """A transport of the caller's, which happens to use a name of ours."""

        wrapped = None

        def handle_request(self, request: Any) -> Any:
            return respond(request)

    def manager() -> TokenManager:
        return TokenManager(Credentials("sk_test_1", "MCH-COL-1"), base_url="http://127.0.0.1:9", clock=ManualClock())

    own = library.Timeout(3, read=None)
    for transport in (adapter.Pay88Transport(manager(), Wrapping(), timeout=own), Wrapping()):
        with library.Client(transport=transport, timeout=1, trust_env=False) as client:
            client.get("http://127.0.0.1:9/api/balance", timeout=2)
            for _ in range(2):
                adapter.attach(client, manager()).get("http://127.0.0.1:9/api/balance")
    phases = ("connect", "read", "write", "pool")
    assert timeouts == [{**dict.fromkeys(phases, 3), "read": 5}] * 3 + [{**dict.fromkeys(phases, 5), "pool": 4.5}] * 2
