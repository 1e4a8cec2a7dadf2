"""The pool that a caller brings: one connection, redirects, defaults of its own."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import urllib3

import pay88_adapters.aiohttp
import pay88_adapters.httpx
import pay88_adapters.urllib3
from pay88_adapters import (
    TokenEndpointUnavailable,
)
from pay88_adapters.testing import (
    Emulator,
    Redirect,
    Status,
)
from support.authority import new_authority
from support.leaks import chain
from support.proxies import Proxy
from support.security import (
    ok,
)
from support.stacks import (
    Aiohttp,
    Httpx,
    Httpx2,
    HttpxAsyncio,
    HttpxTrio,
    Requests,
    Stack,
    Urllib3,
)
from support.worlds import World

PROXY_CREDENTIALS = "proxy-user:proxy-pass"


@pytest.fixture
def strict_proxy() -> Iterator[Proxy]:
    """A proxy that requires its credentials. Request it before the world, too."""
    with Proxy(PROXY_CREDENTIALS) as proxy:
        yield proxy


class Tls:
    """A certificate authority of the test's own, a server that it vouches for, and a client that trusts it."""

    def __init__(self, *names: str) -> None:
        authority = new_authority()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*(names or ("127.0.0.1",))).configure_cert(self.server)
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(self.client)


def test_rule_13_a_redirect_within_a_proxys_pool_takes_no_token_along(
    proxy: Proxy, make_world: Callable[..., World], kind: type[Stack]
) -> None:
    """Also if the caller's own headers are repeated: the injected ones are distinguished from them."""
    if kind is not Urllib3:
        pytest.skip("only urllib3 has pools that follow redirects")
    world = make_world()
    with Emulator() as other:
        world.emulator.faults.add(Redirect(f"{other.url}/api/stolen"))
        client = world.client(proxy=proxy.url)
        assert isinstance(client, Urllib3)
        headers = urllib3.HTTPHeaderDict([("X-Mine", "1"), ("X-Mine", "2"), ("X-Mine", "3")])
        pool = client.client.connection_from_url(world.url)
        pool.urlopen("GET", world.url, headers=headers, assert_same_host=False)
        [stolen] = other.journal
    assert stolen.headers["x-mine"] == "1, 2, 3"
    assert not {"authorization", "x-session-id", "x-api-key"} & set(stolen.headers)


@pytest.fixture(scope="module")
def tls() -> Tls:
    """TLS settings that go together."""
    return Tls()


def test_rule_21_token_requests_go_through_the_callers_proxy(proxy: Proxy, world: World) -> None:
    """A forward proxy sees the token request and the calls, and nothing goes past it."""
    client = world.client(proxy=proxy.url)
    assert ok(client.attempt("POST", world.url))
    world.emulator.service.refuse_current_tokens()
    assert ok(client.attempt("POST", world.url))
    token, call = f"POST {world.emulator.url}/api/auth/token", f"POST {world.url}"
    assert proxy.requested == [token, call, call, token, call]
    assert len(world.emulator.journal) == 5


def test_rule_21_token_requests_go_through_the_callers_tunnel(
    proxy: Proxy, make_world: Callable[..., World], tls: Tls
) -> None:
    """With https a proxy tunnels, and the client's own certificates decide inside."""
    world = make_world(ssl_context=tls.server)
    client = world.client(proxy=proxy.url, tls=tls.client, connections=1)
    assert ok(client.attempt("POST", world.url))
    world.emulator.service.refuse_current_tokens()
    assert ok(client.attempt("POST", world.url))
    assert set(proxy.requested) == {f"CONNECT 127.0.0.1:{world.emulator.port}"}
    assert len(proxy.requested) == world.emulator.connections
    assert len(world.emulator.journal) == 5


@pytest.mark.filterwarnings("ignore:.*[Aa]uth:DeprecationWarning")  # aiohttp 4 will take headers only
@pytest.mark.parametrize("way", ["url", "argument"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_rule_21_token_requests_know_the_proxys_password(
    strict_proxy: Proxy, make_world: Callable[..., World], tls: Tls, way: str, scheme: str
) -> None:
    """A proxy that insists on credentials gets them with the token request too, and the service never does."""
    world = make_world(ssl_context=tls.server if scheme == "https" else None)
    client, kw = with_proxy_credentials(world, strict_proxy, tls, way)
    assert ok(world.as_time_passes(lambda: client.attempt("POST", world.url, **kw)))
    assert strict_proxy.rejected == 0
    assert len(world.emulator.journal) == 2
    assert not any("proxy-authorization" in entry.headers for entry in world.emulator.journal)


def with_proxy_credentials(world: World, proxy: Proxy, tls: Tls, way: str) -> tuple[Stack, dict[str, Any]]:
    """Return a client that knows the proxy's password, in the library's own way, and arguments for its calls."""
    url: Any = f"http://{PROXY_CREDENTIALS}@{proxy.address}"
    client = world.client(proxy=url, tls=tls.client)
    if isinstance(client, Aiohttp):
        if way == "argument":
            return client, {"proxy": proxy.url, "proxy_auth": aiohttp.BasicAuth(*PROXY_CREDENTIALS.split(":"))}
    elif isinstance(client, Urllib3):
        client.client.clear()
        headers = urllib3.make_headers(proxy_basic_auth=PROXY_CREDENTIALS)
        client.client = urllib3.ProxyManager(proxy.url, proxy_headers=headers, ssl_context=tls.client)
        pay88_adapters.urllib3.attach(client.client, world.manager)
    elif way == "argument" and not isinstance(client, Requests):  # which knows the URL only
        user, password = PROXY_CREDENTIALS.split(":")
        library: Any = httpx2 if isinstance(client, Httpx2) else httpx
        client = world.client(proxy=library.Proxy(proxy.url, auth=(user, password)), tls=tls.client)
    return client, {}


def test_rule_21_the_callers_tls_settings_hold_for_token_requests(make_world: Callable[..., World], tls: Tls) -> None:
    """Who trusts the service's certificate gets a token; who does not sends it no key."""
    world = make_world(ssl_context=tls.server)
    stranger = world.client(tls=Tls().client)
    error = world.as_time_passes(lambda: stranger.attempt("POST", world.url))
    assert isinstance(error, TokenEndpointUnavailable)
    assert any(isinstance(each, ssl.SSLCertVerificationError) for each in chain(error))
    assert len(world.emulator.journal) == 0
    world.clock.advance(60)
    assert ok(world.client(tls=tls.client).attempt("POST", world.url))
    assert len(world.emulator.journal) == 2


@pytest.mark.parametrize("kind", [Httpx, HttpxAsyncio, HttpxTrio, Aiohttp], ids=lambda kind: kind.name)
def test_rule_21_what_a_call_says_of_tls_holds_for_its_token_request(make_world: Callable[..., World]) -> None:
    """The certificate is another name's, and only the call itself says so; of urllib3 that is the pool's to say."""
    tls = Tls("pay.test")
    world = make_world(ssl_context=tls.server)
    kw: dict[str, Any] = {"extensions": {"sni_hostname": "pay.test"}}
    client = world.client(tls=tls.client)
    if isinstance(client, Aiohttp):
        kw = {"ssl": tls.client, "server_hostname": "pay.test"}
        client = world.client()
    assert ok(world.as_time_passes(lambda: client.attempt("POST", world.url, **kw)))
    assert len(world.emulator.journal) == 2


def test_rule_21_a_pool_of_one_connection_is_enough(make_world: Callable[..., World], tls: Tls) -> None:
    """A rejected call with a response too long to read, its token request and its replay take turns."""
    world = make_world(ssl_context=tls.server)
    client = world.client(connections=1, tls=tls.client, timeout=10)
    streamed = {"preload_content": False} if isinstance(client, Urllib3) else {}  # the others do by themselves
    assert ok(client.attempt("POST", world.url))
    for size in (10, 5_000_000):
        world.clock.advance(5)
        world.emulator.faults.add(Status(401, body=b"x" * size), on="call")
        assert ok(client.attempt("POST", world.echo, **client.bodies["bytes"](), **streamed))
    assert world.emulator.journal.token_requests == 3
