"""Regressions of API requests, with every client library."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import ssl
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
import requests
from requests.adapters import HTTPAdapter

from pay88_adapters import BreakerPolicy, ConfigurationError, Credentials, RetryPolicy, TokenManager
from pay88_adapters.aiohttp import Pay88Middleware, attach
from pay88_adapters.requests import attach as attach_session
from pay88_adapters.testing import Emulator, Hold, ManualClock, RefuseToken, ResetAfterRead, ResetBeforeRead, Status
from support.authority import tls_contexts
from support.proxies import Proxy
from support.stacks import Aiohttp, AsyncStack, PlainResponse, Requests, Urllib3
from support.worlds import World

CHARGES = "/api/transactions/charges"


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # asyncio's own, on Python 3.10
@pytest.mark.parametrize("tunnel", [False, True], ids=["forwarded", "tunnelled"])
def test_a_payment_through_a_proxy_is_sent_once_when_the_response_is_lost(
    make_world: Callable[..., World], tunnel: bool
) -> None:
    """Rule 20: that a connection through a proxy broke does not mean that nothing was sent."""
    server, client = tls_contexts() if tunnel else (None, None)
    world = make_world(ssl_context=server)
    manager = world.new_manager(retry=RetryPolicy(backoff_base=0, backoff_cap=0))
    with Proxy() as proxy:
        stack = world.client(manager, proxy=proxy.url, tls=client)
        world.emulator.faults.add(ResetAfterRead(), on=CHARGES, times=None)
        outcome = stack.attempt("POST", world.emulator.url + CHARGES)
        assert isinstance(outcome, stack.base_error)
    assert world.emulator.journal.count(path=CHARGES) == 1


@pytest.mark.parametrize("kind", [Urllib3, Requests], ids=lambda kind: kind.name)
def test_the_callers_own_retries_send_a_payment_through_a_proxy_once(make_world: Callable[..., World]) -> None:
    """Rule 20: they do not allow POST, which urllib3 does not check after a proxy error."""
    world = make_world()
    with Proxy() as proxy:
        stack = world.client(proxy=proxy.url)
        kw: dict[str, Any] = {"retries": 3}
        if isinstance(stack, Requests):
            kw = {}
            stack.client.mount("http://", HTTPAdapter(max_retries=3))
            attach_session(stack.client, world.manager)
        world.emulator.faults.add(ResetAfterRead(), on=CHARGES, times=None)
        assert isinstance(stack.attempt("POST", world.emulator.url + CHARGES, **kw), stack.base_error)
    assert world.emulator.journal.count(path=CHARGES) == 1


def test_what_the_caller_recovers_from_says_nothing_of_the_attempt(world: World) -> None:
    """Rule 20: an error that is being handled is no part of the attempt's own."""
    manager = world.new_manager(retry=RetryPolicy(attempts=2, backoff_base=0, backoff_cap=0))
    stack = world.client(manager)
    manager.get_token()
    world.emulator.faults.add(ResetBeforeRead(), on="/api/balance")

    async def sent() -> PlainResponse:
        assert isinstance(stack, AsyncStack)
        try:
            raise ssl.SSLCertVerificationError("of another server")
        except ssl.SSLCertVerificationError:
            return await stack.asend("POST", world.url)

    if isinstance(stack, AsyncStack):
        assert stack.run(sent).status == 200
        return
    try:
        raise ssl.SSLCertVerificationError("of another server")
    except ssl.SSLCertVerificationError:
        assert stack.request("POST", world.url).status == 200


def test_a_replay_with_a_connection_error_is_one_replay(world: World) -> None:
    """Rule 7: the attempt after the connection error is a retry."""
    manager = world.new_manager(retry=RetryPolicy(backoff_base=0, backoff_cap=0))
    stack = world.client(manager)
    world.emulator.faults.add(RefuseToken(), on="/api/balance")
    world.emulator.faults.add(ResetBeforeRead(), on="/api/balance")
    assert stack.request("POST", world.url).status == 200
    assert (manager.stats().unauthorized, manager.stats().replayed, manager.stats().retried) == (1, 1, 1)


def test_a_probe_that_is_cancelled_while_it_waits_for_a_token_is_not_in_the_way_of_the_next() -> None:
    """Rules 16 and 23."""
    clock = ManualClock()

    async def scene(emulator: Emulator) -> None:
        manager = TokenManager(
            Credentials(emulator.api_key, emulator.merchant_id),
            base_url=emulator.url,
            retry=RetryPolicy.none(),
            breaker=BreakerPolicy(failure_threshold=1),
            clock=clock,
        )
        async with aiohttp.ClientSession() as session:
            attach(session, manager)

            async def call() -> int:
                async with session.post(f"{emulator.url}/api/balance") as response:
                    return response.status

            emulator.faults.add(Status(500), on="/api/balance")
            assert await call() == 500
            clock.advance(31)
            manager.invalidate(await manager.aget_token())
            hold = Hold()
            emulator.faults.add(hold, on="token")
            probe = asyncio.create_task(call())
            await asyncio.to_thread(emulator.journal.wait_for, 2, "token")
            probe.cancel()
            # A stored exception keeps the frames of the call, and all that was in them.
            (kept,) = await asyncio.gather(probe, return_exceptions=True)
            assert isinstance(kept, asyncio.CancelledError)
            hold.release()
            assert await call() == 200
            del kept

    with Emulator(clock=clock) as emulator:
        asyncio.run(scene(emulator))


class _OfItsOwn(HTTPAdapter):
    """An adapter that pickles in its own way."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__()

    def __getstate__(self) -> str:
        return self.key

    def __setstate__(self, state: str) -> None:
        _OfItsOwn.__init__(self, state)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda session: pickle.loads(pickle.dumps(session))])
def test_a_copied_session_keeps_an_adapter_that_has_a_state_of_its_own(
    again: Callable[[requests.Session], requests.Session],
) -> None:
    """Rule 21."""
    with Emulator() as emulator, requests.Session() as session:
        session.trust_env = False
        session.mount("http://", _OfItsOwn("key"))
        manager = TokenManager(Credentials(emulator.api_key, emulator.merchant_id), base_url=emulator.url)
        attach_session(session, manager)
        with again(session) as copied:
            adapter = copied.get_adapter(emulator.url)
            assert isinstance(adapter, _OfItsOwn)
            assert adapter.key == "key"
            assert copied.post(f"{emulator.url}/api/balance").status_code == 200


def test_an_error_of_a_proxy_names_the_request_as_it_does_without_the_adapter() -> None:
    """Rule 21."""
    with Emulator() as emulator, Proxy() as proxy, requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": proxy.url}
        retry = RetryPolicy.none()
        manager = TokenManager(Credentials(emulator.api_key, emulator.merchant_id), base_url=emulator.url, retry=retry)
        attach_session(session, manager)
        emulator.faults.add(ResetAfterRead(), on="/api/balance")
        with pytest.raises(requests.exceptions.ProxyError) as caught:
            session.post(f"{emulator.url}/api/balance")
        assert caught.value.request is not None
        assert caught.value.request.url == f"{emulator.url}/api/balance"


def test_sessions_with_one_adapter_and_two_managers_are_rejected() -> None:
    """Rule 13: no merchant's calls go out with another one's token; nothing has changed then."""
    with Emulator() as emulator, requests.Session() as one, requests.Session() as other:
        managers = [
            TokenManager(Credentials(emulator.api_key, merchant), base_url=emulator.url)
            for merchant in (emulator.merchant_id, "MCH-COL-OTHER")
        ]
        shared = HTTPAdapter()
        for session in (one, other):
            session.mount("http://", shared)
        attach_session(one, managers[0])
        attach_session(other, managers[0])
        with pytest.raises(ConfigurationError, match="another session"):
            attach_session(one, managers[1])
        assert one.post(f"{emulator.url}/api/balance").status_code == 200
        other.mount("http://", HTTPAdapter())
        other.mount("https://", HTTPAdapter())
        attach_session(other, managers[1])
        assert one.post(f"{emulator.url}/api/balance").status_code == 200


@pytest.mark.parametrize("hops", [False, True], ids=["in one task", "in many"])
def test_aiohttp_sends_nothing_again_whatever_stands_outside(hops: bool) -> None:
    """Rule 20: also where a middleware continues in another task; and one that tries again itself does so."""

    async def outside(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        return await (asyncio.create_task(handler(request)) if hops else handler(request))  # type: ignore[arg-type]

    async def scene(emulator: Emulator) -> None:
        manager = TokenManager(Credentials(emulator.api_key, emulator.merchant_id), base_url=emulator.url)
        async with aiohttp.ClientSession(middlewares=(outside, Pay88Middleware(manager))) as session:
            async with session.post(f"{emulator.url}/api/balance") as response:
                assert response.status == 200
            emulator.faults.add(ResetAfterRead(), on="/api/echo", times=None)
            for calls in (1, 2):
                with pytest.raises(aiohttp.ClientError):
                    await session.put(f"{emulator.url}/api/echo")
                assert emulator.journal.count(path="/api/echo") == calls

    with Emulator() as emulator:
        asyncio.run(scene(emulator))


class _Local:
    """What a caller has in a local variable."""


@pytest.mark.parametrize("failure", ["no connection", "no response", "no response, and a layer that goes on"])
def test_a_request_that_failed_keeps_no_local_variable_of_its_caller(world: World, failure: str) -> None:
    """Neither in what is remembered about it, nor in an exception."""
    manager = world.new_manager(retry=RetryPolicy.none())
    manager.get_token()
    stack = world.client(manager)
    kept: list[weakref.ref[_Local]] = []
    world.emulator.faults.add(ResetBeforeRead(), on="call", times=None)
    if failure == "no connection":
        world.emulator.stop()

    def fail() -> None:
        local = _Local()
        kept.append(weakref.ref(local))
        with suppress(stack.base_error):
            stack.request("GET", world.url)

    async def afail() -> None:
        local = _Local()
        kept.append(weakref.ref(local))
        with suppress(stack.base_error, RuntimeError):
            await stack.asend("GET", world.url)  # type: ignore[attr-defined]

    if isinstance(stack, Aiohttp) and failure.endswith("goes on"):

        async def outer(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
            local = _Local()
            kept.append(weakref.ref(local))
            try:
                return await handler(request)  # type: ignore[no-any-return]
            except aiohttp.ClientError as exc:
                raise RuntimeError("no connection") from exc

        stack.client._middlewares = (outer, *stack.client._middlewares)
    for _ in range(3):
        if isinstance(stack, AsyncStack):
            stack.run(afail)
        else:
            fail()
    gc.collect()
    assert len(kept) >= 3
    assert not any(each() for each in kept)


@pytest.mark.parametrize("kind", [Aiohttp], ids=lambda kind: kind.name)
def test_rule_21_a_middleware_may_send_a_request_again(world: World) -> None:
    """Only a retry of aiohttp itself is not sent; it has a new request object."""
    stack = world.client(world.new_manager(retry=RetryPolicy.none()))
    assert isinstance(stack, Aiohttp)
    entered: list[str] = []

    async def outer(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        entered.append(request.method)
        with suppress(aiohttp.ClientError):
            return await handler(request)  # type: ignore[no-any-return]
        return await handler(request)  # type: ignore[no-any-return]

    stack.client._middlewares = (outer, *stack.client._middlewares)
    world.emulator.faults.add(ResetBeforeRead(), on="call")
    assert stack.request("GET", world.echo).status == 200
    assert (len(entered), world.emulator.journal.calls) == (1, 2)
