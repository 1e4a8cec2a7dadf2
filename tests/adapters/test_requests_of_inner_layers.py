"""An inner layer sends requests of its own: their errors say nothing about the request of the caller (rule 20)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import aiohttp
import anyio
import pytest
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ProxyError
from yarl import URL

from pay88_adapters import Credentials, RetryPolicy, TokenManager
from pay88_adapters.urllib3 import attach
from pay88_adapters.urllib3_io import was_not_sent
from support.authority import tls_contexts
from support.proxies import Proxy
from support.stacks import STACKS, Aiohttp, AsyncStack, Httpx, Requests, Stack, Urllib3
from support.worlds import World

CHARGES = "/api/transactions/charges"
NOWHERE = "http://127.0.0.1:1"


def on(*kinds: type[Stack]) -> pytest.MarkDecorator:
    """Restrict a test to some client libraries."""
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name)


def but(*kinds: type[Stack]) -> pytest.MarkDecorator:
    """Restrict a test to all client libraries but some."""
    return on(*(kind for kind in STACKS if kind not in kinds))


@pytest.fixture
def manager(world: World) -> TokenManager:
    """A manager that retries without delays, and has a token."""
    manager = world.new_manager(retry=RetryPolicy(backoff_base=0, backoff_cap=0))
    manager.get_token()
    return manager


class Layers:
    """Puts a layer between the adapter and the network.

    Args:
        stack: The client.
        patch: Replaces attributes for the test.
    """

    def __init__(self, stack: Stack, patch: pytest.MonkeyPatch) -> None:
        self.stack, self._patch = stack, patch

    def add(self, act: Callable[[Callable[[], Any]], Any], aact: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        """Add one for requests to :data:`CHARGES`: *act*, or *aact*, gets what sends the request."""
        stack: Any = self.stack
        if isinstance(stack, Aiohttp):

            async def middleware(request: aiohttp.ClientRequest, handler: Any) -> Any:
                return await aact(lambda: handler(request))

            stack.client._middlewares = (*stack.client._middlewares, middleware)
        elif isinstance(stack, (Urllib3, Requests)):
            plain = urllib3.HTTPConnectionPool.urlopen

            def urlopen(pool: Any, method: str, url: str, *args: Any, **kw: Any) -> Any:
                def send() -> Any:
                    return plain(pool, method, url, *args, **kw)

                return act(send) if url.endswith(CHARGES) else send()

            self._patch.setattr(urllib3.HTTPConnectionPool, "urlopen", urlopen)
        else:
            library = stack.library
            base: Any = library.AsyncBaseTransport if isinstance(stack, AsyncStack) else library.BaseTransport

            class Transport(base):  # type: ignore[misc]
                def __init__(self, managed: Any) -> None:
                    self._inner = managed.wrapped

                def handle_request(self, request: Any) -> Any:
                    return act(lambda: self._inner.handle_request(request))

                async def handle_async_request(self, request: Any) -> Any:
                    return await aact(lambda: self._inner.handle_async_request(request))

            stack.client._transport = Transport(stack.client._transport)
            stack.client._mounts = {key: each and Transport(each) for key, each in stack.client._mounts.items()}
            stack.adapter.attach(stack.client, stack.manager)

    def audit(self, url: str) -> Any:
        """Send a request to *url* with a client of its own; awaitable for an async client."""
        stack: Any = self.stack
        if isinstance(stack, (Urllib3, Requests)):
            with urllib3.PoolManager() as pools:
                return pools.request("POST", url, retries=False)
        if isinstance(stack, Httpx):
            with stack.library.Client(trust_env=False) as client:
                return client.post(url)
        return self._audit(url)

    async def _audit(self, url: str) -> None:
        stack: Any = self.stack
        if isinstance(stack, Aiohttp):
            async with aiohttp.ClientSession() as session, session.post(url):
                return
        async with stack.library.AsyncClient(trust_env=False) as client:
            await client.post(url)

    def audit_without_client(self, url: str) -> Any:
        """Do the same with a bare transport, whose error has no request."""
        stack: Any = self.stack
        request = stack.library.Request("POST", url)
        if isinstance(stack, Httpx):
            return stack.library.HTTPTransport().handle_request(request)
        return stack.library.AsyncHTTPTransport().handle_async_request(request)


@pytest.fixture
def layers(world: World, manager: TokenManager, monkeypatch: pytest.MonkeyPatch) -> Layers:
    """A client whose layers a test adds."""
    return Layers(world.client(manager), monkeypatch)


def charge(world: World, layers: Layers) -> tuple[int, int]:
    """Send a payment that fails; return how often it arrived, and how often it was retried."""
    # A connection that is kept may break later, which is another error.
    outcome = layers.stack.attempt("POST", world.emulator.url + CHARGES, headers={"Connection": "close"})
    assert isinstance(outcome, layers.stack.base_error)
    return world.emulator.journal.count(path=CHARGES), layers.stack.manager.stats().retried


async def aclose(response: Any) -> None:
    """Close the response of any async client."""
    if isinstance(response, aiohttp.ClientResponse):
        response.close()
    else:
        await response.aclose()


def add_audit(layers: Layers, audit: Callable[[], Any], before: Callable[[], object] = lambda: None) -> None:
    """Add a layer that sends *audit* after each payment, and calls *before* before that."""

    def act(send: Callable[[], Any]) -> Any:
        response = send()
        response.close()
        before()
        audit()
        return response

    async def aact(send: Callable[[], Any]) -> Any:
        response = await send()
        await aclose(response)
        before()
        await audit()
        return response

    layers.add(act, aact)


def test_rule_20_an_audit_request_without_a_connection_sends_no_payment_again(world: World, layers: Layers) -> None:
    """The payment was executed; the error is about another request."""
    add_audit(layers, lambda: layers.audit(NOWHERE))
    assert charge(world, layers) == (1, 0)


def test_rule_20_an_audit_request_to_the_same_origin_sends_no_payment_again(world: World, layers: Layers) -> None:
    """The host and port of the error are those of the payment."""
    add_audit(layers, lambda: layers.audit(f"{world.emulator.url}/api/audit"), before=world.emulator.stop)
    assert charge(world, layers) == (1, 0)


@but(Urllib3, Requests, Aiohttp)
def test_rule_20_an_audit_request_without_a_client_sends_no_payment_again(world: World, layers: Layers) -> None:
    """httpx sets the request of an exception in its clients only."""
    add_audit(layers, lambda: layers.audit_without_client(NOWHERE))
    assert charge(world, layers) == (1, 0)


@but(Urllib3, Requests)  # which do not show whether the first one was sent
def test_rule_20_a_second_attempt_of_an_inner_layer_does_not_undo_the_first(world: World, layers: Layers) -> None:
    """A layer that retries by itself: only its last attempt had no connection."""

    def act(send: Callable[[], Any]) -> Any:
        send().close()
        world.emulator.stop()
        return send()

    async def aact(send: Callable[[], Any]) -> Any:
        await aclose(await send())
        world.emulator.stop()
        return await send()

    layers.add(act, aact)
    assert charge(world, layers) == (1, 0)


def test_rule_20_a_payment_that_is_not_sent_is_retried_through_an_inner_layer(world: World, layers: Layers) -> None:
    """The layer sends its request after the payment, which never had a connection."""
    add_audit(layers, lambda: layers.audit(NOWHERE))
    world.emulator.stop()
    assert charge(world, layers) == (0, 2)


def test_rule_20_a_payment_is_retried_after_an_error_before_it_was_sent(world: World, layers: Layers) -> None:
    """An attempt that got a response says nothing about the next one, which had no connection."""
    attempts: list[str] = []

    def is_first() -> bool:
        attempts.append("another")
        if len(attempts) == 2:
            world.emulator.stop()
        return len(attempts) == 1

    def act(send: Callable[[], Any]) -> Any:
        return _as_too_many(send()) if is_first() else send()

    async def aact(send: Callable[[], Any]) -> Any:
        return _as_too_many(await send()) if is_first() else await send()

    layers.add(act, aact)
    assert charge(world, layers) == (1, 2)
    assert len(attempts) == 3


def _as_too_many(response: Any) -> Any:
    """Return *response* with the status code of one whose request was not executed."""
    name = "status_code" if hasattr(response, "status_code") else "status"
    setattr(response, name, 429)
    return response


def test_rule_20_a_test_double_without_a_connection_has_not_sent_a_payment(world: World, layers: Layers) -> None:
    """It raises the error of the client library without a request."""
    errors = {
        "aiohttp": lambda: aiohttp.ClientConnectorError(_key(world), OSError("refused")),
        "urllib3": lambda: urllib3.exceptions.NewConnectionError(None, "refused"),  # type: ignore[arg-type]
    }
    stack: Any = layers.stack
    error = errors.get("urllib3" if isinstance(stack, Requests) else stack.name)
    raised = error or (lambda: stack.library.ConnectError("refused"))

    def act(send: Callable[[], Any]) -> Any:
        raise raised()

    async def aact(send: Callable[[], Any]) -> Any:
        await asyncio.sleep(0) if isinstance(stack, Aiohttp) else None
        raise raised()

    layers.add(act, aact)
    assert charge(world, layers) == (0, 2)


@contextmanager
def proxied(
    make_world: Callable[..., World], patch: pytest.MonkeyPatch, tunnel: bool
) -> Generator[tuple[World, Layers, Proxy]]:
    """Run a client with a token and an audit layer behind a proxy."""
    server, client = tls_contexts() if tunnel else (None, None)
    world = make_world(ssl_context=server)
    manager = world.new_manager(retry=RetryPolicy(backoff_base=0, backoff_cap=0))
    with Proxy() as proxy:
        layers = Layers(world.client(manager, proxy=proxy.url, tls=client), patch)
        assert layers.stack.request("POST", world.url, headers={"Connection": "close"}).status == 200
        add_audit(layers, lambda: layers.audit(NOWHERE))
        yield world, layers, proxy


def _key(world: World) -> Any:
    url = URL(world.emulator.url)
    return aiohttp.client_reqrep.ConnectionKey(url.raw_host or "", url.port, False, True, None, None, None)


@pytest.mark.parametrize("tunnel", [False, True], ids=["forwarded", "tunnelled"])
def test_rule_20_a_payment_is_retried_if_the_proxy_has_no_connection(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, tunnel: bool
) -> None:
    """Such an error names the proxy in place of the service."""
    with proxied(make_world, monkeypatch, tunnel) as (world, layers, _):
        pass
    assert charge(world, layers) == (0, 2)


class AtLocalhost(HTTPConnection):
    """A connection to a socket of this host, whatever the host of the URL is."""

    def __init__(self, host: str, port: int | None = None, **kw: Any) -> None:
        super().__init__("localhost", 1, **kw)


class Pinned(HTTPConnection):
    """A connection to an address that its user has looked up."""

    def _new_conn(self) -> Any:
        self.host, self.port = "127.0.0.1", 1
        return super()._new_conn()


@on(Urllib3, Requests)
@pytest.mark.parametrize("connection", [AtLocalhost, Pinned])
def test_rule_20_a_payment_is_retried_if_the_pool_connects_elsewhere(
    world: World, layers: Layers, monkeypatch: pytest.MonkeyPatch, connection: type[HTTPConnection]
) -> None:
    """The host and port of such a connection are not those of its pool."""
    monkeypatch.setattr(urllib3.HTTPConnectionPool, "ConnectionCls", connection)
    assert charge(world, layers) == (0, 2)


@on(Urllib3, Requests)
def test_rule_20_a_nested_request_of_another_pool_sends_no_payment_again(world: World, layers: Layers) -> None:
    """One that is used without a pool manager, for the same host and port."""
    url = urllib3.util.parse_url(world.emulator.url)

    def audit() -> Any:
        with urllib3.HTTPConnectionPool(url.host or "", url.port) as pool:
            return pool.urlopen("POST", "/api/audit", retries=False)

    add_audit(layers, audit, before=world.emulator.stop)
    assert charge(world, layers) == (1, 0)


@on(Urllib3, Requests)
def test_rule_20_a_nested_request_without_a_tunnel_sends_no_payment_again(world: World, layers: Layers) -> None:
    """Such an error names neither a connection nor a pool."""
    with Proxy() as proxy, urllib3.ProxyManager(proxy.url) as pools:
        add_audit(layers, lambda: pools.request("POST", "https://127.0.0.1:1/audit", retries=False))
        assert charge(world, layers) == (1, 0)


def test_rule_20_a_payment_is_retried_if_a_proxy_with_an_ipv6_address_is_down(
    world: World, manager: TokenManager
) -> None:
    """The request is managed although it is sent to another host."""
    stack = world.client(manager, proxy="http://[::1]:1")
    assert isinstance(stack.attempt("POST", world.emulator.url + CHARGES), stack.base_error)
    assert manager.stats().retried == 2


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_rule_20_a_proxy_with_an_ipv6_address_has_no_connection(scheme: str) -> None:
    """Its URL has brackets; whether the host of a connection has them, depends on the version of Python."""
    manager = TokenManager(Credentials("sk_test_1", "MCH-1"), base_url="https://api.example")
    pool: Any = attach(urllib3.ProxyManager("http://[::1]:1"), manager).connection_from_url(f"{scheme}://api.example/")
    with pytest.raises(ProxyError) as caught:
        pool.plain_urlopen("POST", "/", retries=False)
    assert was_not_sent(caught.value, pool)


class Bridge:
    """A transport for tasks over one for threads, or the other way round.

    Args:
        library: httpx or httpx2.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def handle_request(self, request: Any) -> Any:
        """Send *request* with a transport for tasks."""
        return anyio.run(self._send_from_task, request)

    async def handle_async_request(self, request: Any) -> Any:
        """Send *request* with a transport for threads."""
        return await anyio.to_thread.run_sync(self._send_from_thread, request)

    def close(self) -> None:
        """Close nothing: it keeps no connection."""

    async def aclose(self) -> None:
        """Do the same."""

    async def _send_from_task(self, request: Any) -> Any:
        async with self._library.AsyncHTTPTransport() as transport:
            response = await transport.handle_async_request(request)
            return self._library.Response(response.status_code, content=await response.aread())

    def _send_from_thread(self, request: Any) -> Any:
        with self._library.HTTPTransport() as transport:
            response = transport.handle_request(request)
            return self._library.Response(response.status_code, content=response.read())


@but(Urllib3, Requests, Aiohttp)
def test_rule_21_a_layer_passes_a_request_to_a_transport_of_the_other_kind(world: World, layers: Layers) -> None:
    """httpcore distinguishes threads from tasks by what a trace extension returns."""
    stack: Any = layers.stack
    stack.client._transport = Bridge(stack.library)
    stack.adapter.attach(stack.client, stack.manager)
    assert stack.request("POST", world.url).status == 200


@but(Urllib3, Requests, Aiohttp)
def test_rule_21_a_trace_extension_of_the_wrong_kind_is_an_error_as_ever(world: World, layers: Layers) -> None:
    """Nothing calls the caller's function in another way than httpcore does."""
    stack: Any = layers.stack

    async def nothing() -> None: ...

    def trace(_: str, __: object) -> Any:
        if isinstance(stack, AsyncStack):
            return None
        coroutine = nothing()
        coroutine.close()
        return coroutine

    async def apass(send: Callable[[], Any]) -> Any:
        return await send()

    layers.add(lambda send: send(), apass)
    with pytest.raises(TypeError, match="the callback of the `trace` extension should be"):
        stack.request("POST", world.emulator.url + CHARGES, extensions={"trace": trace})


@but(Aiohttp)
def test_rule_20_a_payment_is_retried_if_there_is_no_tunnel(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its CONNECT request was written, but not the payment."""
    with proxied(make_world, monkeypatch, tunnel=True) as (world, layers, proxy):
        world.emulator.stop()
        assert charge(world, layers) == (0, 2)
        assert proxy.requested[-3:] == [f"CONNECT {world.emulator.url.removeprefix('https://')}"] * 3


@on(Urllib3, Requests)
def test_rule_20_a_nested_request_of_the_same_pool_sends_no_payment_again(world: World, layers: Layers) -> None:
    """Neither through the client itself nor through the pool."""
    pools: Any = layers.stack.client  # type: ignore[attr-defined]
    if isinstance(layers.stack, Requests):
        pools = pools.get_adapter(world.emulator.url).poolmanager
    url = f"{world.emulator.url}/api/audit"
    ways = [
        lambda: pools.request("POST", url, retries=False),
        lambda: pools.connection_from_url(url).urlopen("POST", "/api/audit", retries=False),
    ]

    def audit() -> Any:
        return ways[world.emulator.journal.count(path=CHARGES) - 1]()

    add_audit(layers, audit, before=world.emulator.stop)
    assert charge(world, layers) == (1, 0)
    world.emulator.start()
    assert charge(world, layers) == (2, 0)


@on(Aiohttp)
def test_rule_20_a_payment_that_waits_for_a_connection_is_not_sent(world: World, manager: TokenManager) -> None:
    """aiohttp's error names its URL, and nothing else that shows which request it is about."""
    stack: Any = world.client(manager, connections=1)
    with world.emulator.hold("call") as held:
        cancel = stack.start("POST", world.url)
        world.emulator.journal.wait_for(1, "call")
        timeout = aiohttp.ClientTimeout(connect=0.05)
        outcome = stack.attempt("POST", world.emulator.url + CHARGES, timeout=timeout)
        assert isinstance(outcome, aiohttp.ConnectionTimeoutError)
        assert manager.stats().retried == 2
        cancel()
        held.release()


@on(Aiohttp)
def test_rule_20_a_connection_timeout_of_another_request_sends_no_payment_again(world: World, layers: Layers) -> None:
    """A middleware may send a copy of the payment, so that the request itself was never written."""

    async def aact(_: Callable[[], Any]) -> Any:
        async with aiohttp.ClientSession() as session:
            await aclose(await session.post(world.emulator.url + CHARGES))
        raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {NOWHERE}/audit")

    layers.add(lambda send: send(), aact)
    assert charge(world, layers) == (1, 0)
