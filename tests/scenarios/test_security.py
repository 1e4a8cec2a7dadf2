"""Rules 13, 14, 15 and 18, each on every stack, over real sockets."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import aiohttp
import httpx
import httpx2
import multidict
import pytest
import trio
import trustme
import urllib3
import yarl

import pay88_adapters.aiohttp
import pay88_adapters.httpx
import pay88_adapters.urllib3
from pay88_adapters import (
    ConfigurationError,
    Credentials,
    CredentialsRejected,
    Pay88Error,
    RetryPolicy,
    Token,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
    TokenManager,
    TokenPolicy,
    TokenRateLimited,
    TokenResponseInvalid,
    unmanaged,
)
from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.wire import TokenResponse, parse_token_response, token_request
from pay88_adapters.testing import (
    Body,
    Emulator,
    Entry,
    Garbage,
    Headers,
    HugeBody,
    Journal,
    ManualClock,
    Redirect,
    RefuseToken,
    ResetAfterRead,
    ResetBeforeRead,
    Service,
    Status,
    TooMany,
    Truncated,
)
from support.http2 import Http2Server
from support.leaks import Eavesdropper, chain, confessed, leaked, shown, told
from support.proxies import Proxy
from support.stacks import (
    Aiohttp,
    AsyncioStack,
    Httpx,
    Httpx2,
    HttpxAsyncio,
    HttpxTrio,
    Outcome,
    Reply,
    Requests,
    Stack,
    Urllib3,
)
from support.worlds import World

SECRET_FIELDS = {"authorization", "x-session-id", "x-api-key"}
PROXY_CREDENTIALS = "proxy-user:proxy-pass"
REDIRECTS = [301, 302, 303, 307, 308]

# What a token request may carry: the two key fields, and what describes the message and the connection.
TOKEN_REQUEST_FIELDS = {
    "host", "x-api-key", "x-merchant-id", "accept", "accept-encoding", "content-length", "connection", "user-agent",
}  # fmt: skip


def ok(outcome: Outcome) -> bool:
    """Whether a call was answered 200."""
    return isinstance(outcome, Reply) and outcome.status == 200


def bare(entries: list[Entry] | Journal) -> bool:
    """Whether none of the requests carries anything of ours."""
    return not any(SECRET_FIELDS & set(entry.headers) for entry in entries)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy. Ask for it before the world: it must outlive the clients."""
    with Proxy() as proxy:
        yield proxy


@pytest.fixture
def strict_proxy() -> Iterator[Proxy]:
    """A proxy that insists on its credentials. Ask for it before the world, too."""
    with Proxy(PROXY_CREDENTIALS) as proxy:
        yield proxy


@pytest.fixture
def other(world: World) -> Iterator[Emulator]:
    """Somebody else's server, on another port."""
    with Emulator(clock=world.clock) as emulator:
        yield emulator


# --- rule 13: origin ----------------------------------------------------------------------------


def test_rule_13_another_port_is_another_origin(world: World, other: Emulator) -> None:
    """A call to another port passes as it is, with a token in the manager and without."""
    client = world.client()
    for _ in range(2):
        outcome = client.attempt("POST", f"{other.url}/api/echo", headers={"X-Mine": "1"})
        assert isinstance(outcome, Reply)
        assert outcome.status == 401
        assert ok(client.attempt("POST", world.url))
    assert bare(other.journal)
    assert [entry.headers["x-mine"] for entry in other.journal] == ["1", "1"]
    assert world.manager.stats().token_requests == 1


def test_rule_13_another_host_is_another_origin(world: World) -> None:
    """The same port on another address gets nothing, nor does another name of the same address."""
    client = world.client()
    with Emulator(clock=world.clock, host="127.0.0.2", port=world.emulator.port) as neighbour:
        assert isinstance(client.attempt("POST", f"{neighbour.url}/api/echo"), Reply)
        assert isinstance(client.attempt("POST", f"http://localhost:{world.emulator.port}/api/echo"), Reply)
        assert len(neighbour.journal) == world.emulator.journal.calls == 1
        assert bare(neighbour.journal)
    assert bare(world.emulator.journal)
    assert world.manager.stats().token_requests == 0


def test_rule_13_the_user_part_of_a_url_is_no_host(world: World) -> None:
    """An origin that only looks like ours, because ours stands where the user's name belongs, gets nothing."""
    client = world.client()
    port = world.emulator.port
    with Emulator(clock=world.clock, host="127.0.0.2") as evil:
        for trick in (f"http://127.0.0.1:{port}@127.0.0.2:{evil.port}", f"http://127.0.0.1@127.0.0.2:{evil.port}"):
            assert isinstance(client.attempt("POST", f"{trick}/api/echo"), Reply)
        assert len(evil.journal) == 2
        for entry in evil.journal:
            assert "x-session-id" not in entry.headers
            assert not entry.headers.get("authorization", "").startswith("Bearer")
    assert world.manager.stats().token_requests == 0


def test_rule_13_a_user_part_does_not_hide_our_origin(world: World) -> None:
    """The host decides: a URL of ours with a user's name in it is managed."""
    assert ok(world.client().attempt("POST", f"http://user:pass@127.0.0.1:{world.emulator.port}/api/echo"))
    [call] = world.emulator.journal.select("call")
    assert call.headers["authorization"].startswith("Bearer ")


def test_rule_13_the_case_of_the_host_does_not_matter(make_world: Callable[..., World]) -> None:
    """Host names are the same in upper and lower case."""
    world = make_world(host="localhost")
    assert ok(world.client().attempt("POST", f"http://LocalHost:{world.emulator.port}/api/echo"))


def test_rule_13_an_ipv6_address_is_an_origin(proxy: Proxy, make_world: Callable[..., World]) -> None:
    """Brackets around the address are not part of the host, with a proxy between or without."""
    try:
        world = make_world(host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    client = world.client()
    assert ok(client.attempt("POST", world.url))
    if not client.name.startswith("httpx"):  # which asks its proxy for http://::1
        assert ok(world.client(proxy=proxy.url).attempt("POST", world.url))
        assert len(proxy.asked) == 1


SPELLINGS = {
    "https://api.example": ["https://api.example", "https://API.Example:443", "HTTPS://api.example:443"],
    "https://api.example:8443": ["https://Api.Example:8443"],
    "https://münchen.example": [
        "https://münchen.example",
        "https://MÜNCHEN.example",
        "https://xn--mnchen-3ya.example:443",
        "https://XN--MNCHEN-3YA.example",
    ],
    "https://straße.example": ["https://straße.example", "https://xn--strae-oqa.example"],
    "https://[2001:db8::1]": [
        "https://[2001:db8::1]",
        "https://[2001:DB8:0:0:0:0:0:1]:443",
        "https://[2001:db8:0::0:1]",
    ],
    "https://[::ffff:192.0.2.1]": ["https://[::ffff:192.0.2.1]", "https://[::FFFF:C000:201]"],
    "https://[fe80::1%25eth0]": ["https://[fe80::1%25eth0]", "https://[fe80::1%eth0]", "https://[FE80:0::1%25eth0]"],
}
OTHERS = {
    "https://api.example": ["https://api.example.", "https://api.example:444", "https://api.example.:443"],
    "https://api.example.": ["https://api.example"],
    "https://münchen.example": ["https://munchen.example", "https://mnchen-3ya.example"],
    "https://straße.example": ["https://strasse.example"],
    "https://[2001:db8::1]": ["https://[2001:db8::2]", "https://[2001:db8::1%25eth0]"],
    "https://[::ffff:192.0.2.1]": ["https://192.0.2.1", "https://[::192.0.2.1]"],
    "https://[fe80::1%25eth0]": ["https://[fe80::1]", "https://[fe80::1%25eth1]"],
}


def _pairs(spellings: Mapping[str, list[str]], ours: bool) -> list[tuple[str, str, bool]]:
    return [(base_url, url, ours) for base_url, urls in spellings.items() for url in urls]


@pytest.mark.parametrize(("base_url", "url", "ours"), [*_pairs(SPELLINGS, True), *_pairs(OTHERS, False)], ids=ascii)
def test_rule_13_an_origin_is_one_however_it_is_spelt(world: World, base_url: str, url: str, ours: bool) -> None:
    """What is managed asks for a token first; the proxy answers nobody, so that nothing leaves this machine."""
    policy = TokenPolicy(fetch_attempts=1)
    manager = TokenManager(world.credentials, base_url=base_url, policy=policy, clock=world.clock)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        client = world.client(manager, proxy=f"http://127.0.0.1:{silent.getsockname()[1]}")
        outcome = world.as_time_passes(lambda: client.attempt("POST", f"{url}/api/balance"))
    assert isinstance(outcome, client.base_error)
    assert (manager.stats().token_requests, isinstance(outcome, Pay88Error)) == (int(ours), ours)


def test_rule_13_another_scheme_is_another_origin(world: World) -> None:
    """Nothing meant for https goes out in clear text, and no token is asked for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        manager = TokenManager(world.credentials, base_url=f"https://{address}", clock=world.clock)
        outcome = world.client(manager, timeout=0.2).attempt("POST", f"http://{address}/api/echo")
        assert isinstance(outcome, Exception)
        assert not isinstance(outcome, Pay88Error)
        listener.settimeout(10)
        connection, _ = listener.accept()
        with connection:
            head = connection.recv(65_536).lower()
    assert head.startswith(b"post /api/echo")
    assert not any(name.encode() in head for name in SECRET_FIELDS)
    assert manager.stats().token_requests == 0


@pytest.mark.parametrize("status", REDIRECTS)
def test_rule_13_a_redirect_takes_nothing_to_another_origin(world: World, other: Emulator, status: int) -> None:
    """The next hop gets neither field, whichever kind of redirect it is and whatever the caller had there."""
    client = world.client()
    world.emulator.faults.add(Redirect(f"{other.url}/api/echo", status), on="call")
    outcome = client.attempt("POST", world.url, headers={"Authorization": "Basic bWluZQ=="})
    assert isinstance(outcome, Reply)
    [call] = world.emulator.journal.select("call")
    assert call.headers["authorization"].startswith("Bearer ")
    [hop] = other.journal
    assert "x-session-id" not in hop.headers
    assert not hop.headers.get("authorization", "").startswith("Bearer")
    assert "x-api-key" not in hop.headers
    assert other.service.issued == 0


def test_rule_13_a_redirect_there_and_back(world: World, other: Emulator) -> None:
    """Each hop counts for itself: ours carry a token, the one between does not."""
    client = world.client()
    world.emulator.faults.add(Redirect(f"{other.url}/api/there"), on="call")
    other.faults.add(Redirect(world.echo), on="call")
    assert ok(client.attempt("POST", world.url))
    assert [call.serial for call in world.emulator.journal.select("call")] == [1, 1]
    assert len(other.journal) == 1
    assert bare(other.journal)
    other.faults.add(Redirect(world.echo), on="call")
    assert ok(client.attempt("POST", f"{other.url}/api/there"))
    assert bare(other.journal)


@pytest.mark.parametrize("status", REDIRECTS)
def test_rule_13_a_redirect_to_the_same_origin_carries_a_token(world: World, status: int) -> None:
    """It is one of 88Pay's own calls."""
    world.emulator.faults.add(Redirect(world.echo, status), on="call")
    assert ok(world.client().attempt("POST", world.url))
    calls = world.emulator.journal.select("call")
    assert [(call.status, call.serial) for call in calls] == [(status, 1), (200, 1)]
    assert world.emulator.journal.token_requests == 1


def test_rule_13_a_redirect_through_a_proxy_takes_nothing_along(proxy: Proxy, world: World, other: Emulator) -> None:
    """To a client with a proxy all origins are behind one pool; they are as different as ever."""
    world.emulator.faults.add(Redirect(f"{other.url}/api/echo"), on="call")
    assert isinstance(world.client(proxy=proxy.url).attempt("POST", world.url), Reply)
    assert len(other.journal) == 1
    assert bare(other.journal)
    assert [each.rpartition("/")[2] for each in proxy.asked] == ["token", world.url.rpartition("/")[2], "echo"]


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("elsewhere", [True, False], ids=["elsewhere", "same origin"])
def test_rule_13_token_requests_follow_no_redirect(world: World, other: Emulator, status: int, elsewhere: bool) -> None:
    """The key goes to the token endpoint, once; a redirect is an error that repeating does not mend."""
    to = other.url if elsewhere else world.emulator.url
    world.emulator.faults.add(Redirect(f"{to}/api/auth/token", status), on="token")
    error = world.client().attempt("POST", world.url)
    assert isinstance(error, TokenEndpointUnavailable)
    assert (error.status, error.retryable) == (status, False)
    assert len(other.journal) == 0
    assert len(world.emulator.journal) == 1


def test_rule_13_calls_to_the_token_endpoint_are_the_callers_own(world: World) -> None:
    """Who asks for a token by hand, or is redirected there, sends what they send."""
    client = world.client()
    assert isinstance(client.attempt("POST", f"{world.emulator.url}/api/auth/token"), Reply)
    assert bare(world.emulator.journal)


def test_rule_13_token_requests_carry_nothing_of_the_callers(make_world: Callable[..., World]) -> None:
    """No default headers, no auth, no cookies: set on the client, on the call, or by the service."""
    world = make_world(host="localhost")  # aiohttp takes no cookies from addresses
    mine = {"Authorization": "Basic bWluZQ==", "X-Custom": "mine", "User-Agent": "mine/1"}
    client = world.client(headers=mine)
    set_cookie(client, "jar", "mine", world.emulator.url)
    world.emulator.faults.add(Headers({"Set-Cookie": "served=mine; Path=/"}), on="call", times=None)
    for headers in ({}, {**mine, "X-Call": "mine"}, {"Cookie": "call=mine"}, {}):
        assert ok(client.attempt("POST", world.url, headers=headers or None, **auth(client)))
        world.emulator.service.refuse_current_tokens()
        world.clock.advance(5)
    asked, calls = world.emulator.journal.select("token"), world.emulator.journal.select("call", path="/api/balance")
    assert len(asked) == 4
    for entry in asked:
        assert set(entry.headers) <= TOKEN_REQUEST_FIELDS
        assert "mine" not in repr(dict(entry.headers))
        assert entry.body == b""
    sent = repr([dict(call.headers) for call in calls])
    assert all(each in sent for each in ("mine/1", "'x-custom': 'mine'", "'x-call': 'mine'", "call=mine"))
    if not isinstance(client, Urllib3):  # which has no cookie jar
        assert all(each in calls[-1].headers["cookie"] for each in ("jar=mine", "served=mine"))


def test_rule_13_cookies_of_the_token_endpoint_stay_there(make_world: Callable[..., World]) -> None:
    """They are neither kept nor sent: not to the calls, and not back."""
    world = make_world(host="localhost")
    client = world.client()
    world.emulator.faults.add(Headers({"Set-Cookie": "spy=1; Path=/"}), on="token", times=None)
    for _ in range(2):
        assert ok(client.attempt("POST", world.url))
        world.clock.advance(60)
    assert world.emulator.journal.token_requests == 2
    assert not any("cookie" in entry.headers for entry in world.emulator.journal)
    assert cookies(client) == []
    world.emulator.faults.add(Headers({"Set-Cookie": "mine=1; Path=/"}), on="call")
    client.attempt("POST", world.url)
    assert cookies(client) == ([] if isinstance(client, Urllib3) else ["mine"])  # so the jar does work


def set_cookie(client: Any, name: str, value: str, url: str) -> None:
    """Put a cookie into the client's jar, if it has one."""
    if isinstance(client, Aiohttp):
        client.loop.call_soon_threadsafe(client.client.cookie_jar.update_cookies, {name: value}, yarl.URL(url))
    elif not isinstance(client, Urllib3):
        client.client.cookies.set(name, value)


def cookies(client: Any) -> list[str]:
    """Return the names in the client's jar."""
    if isinstance(client, Aiohttp):
        return [cookie.key for cookie in client.client.cookie_jar]
    if isinstance(client, Requests):
        return list(client.client.cookies.keys())
    return [] if isinstance(client, Urllib3) else list(client.client.cookies)


def auth(client: Stack) -> dict[str, Any]:
    """Return the argument that sends a user's name and password, where it goes together with headers."""
    return {"auth": ("mine", "mine")} if client.name.startswith("httpx") else {}


@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
def test_rule_13_a_pool_is_where_its_connections_go(world: World, other: Emulator) -> None:
    """urllib3's pools can send absolute URLs, and redirects, down their own connection: the URL alone says nothing."""
    client = world.client()
    assert isinstance(client, Urllib3)
    assert ok(client.attempt("POST", world.url))
    pool = client.client.connection_from_url(other.url)
    other.faults.add(Redirect(world.echo), on="call")
    pool.request("POST", "/api/echo", assert_same_host=False)
    pool.request("POST", world.echo, assert_same_host=False)
    assert len(other.journal) == 3
    assert bare(other.journal)


# --- the caller's own pool ------------------------------------------------------------------------


class Tls:
    """A certificate authority of the test's own, a server that it vouches for, and a client that trusts it."""

    def __init__(self, *names: str) -> None:
        authority = trustme.CA()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*(names or ("127.0.0.1",))).configure_cert(self.server)
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(self.client)


def test_rule_13_a_redirect_within_a_proxys_pool_takes_no_token_along(
    proxy: Proxy, make_world: Callable[..., World], kind: type[Stack]
) -> None:
    """Nor where the caller's own fields occur more than once: what was put in is told from what was there."""
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
    assert proxy.asked == [token, call, call, token, call]
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
    assert set(proxy.asked) == {f"CONNECT 127.0.0.1:{world.emulator.port}"}
    assert len(proxy.asked) == world.emulator.connections
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
    assert strict_proxy.refused == 0
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
    """A refused call with an answer too long to read, its token request and its replay take turns."""
    world = make_world(ssl_context=tls.server)
    client = world.client(connections=1, tls=tls.client, timeout=10)
    streamed = {"preload_content": False} if isinstance(client, Urllib3) else {}  # the others do by themselves
    assert ok(client.attempt("POST", world.url))
    for size in (10, 5_000_000):
        world.clock.advance(5)
        world.emulator.faults.add(Status(401, body=b"x" * size), on="call")
        assert ok(client.attempt("POST", world.echo, **client.bodies["bytes"](), **streamed))
    assert world.emulator.journal.token_requests == 3


# --- rule 14: the caller's own Authorization -------------------------------------------------------

ANY_CASE = ("Authorization", "authorization", "AUTHORIZATION")
OTHER_SCHEMES = ("Basic bWluZQ==", "Digest a=1", "Bearers mine", "Token mine", "mine")


def test_rule_14_the_callers_own_bearer_is_left_as_it_is(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Such a request is not managed: no token is asked for, nothing is added, and its 401 is the caller's.

    It is counted, and logged: the first one so that it shows.
    """
    caplog.set_level(logging.DEBUG, "pay88_adapters")
    client = world.client()
    spellings = [(name, f"{scheme} mine") for name in ANY_CASE for scheme in ("Bearer", "bearer", "BEARER")]
    for name, value in spellings:
        outcome = client.attempt("POST", world.url, headers={name: value, "X-Session-Id": "mine"})
        assert isinstance(outcome, Reply)
        assert outcome.status == 401
    sent = [(entry.headers["authorization"], entry.headers["x-session-id"]) for entry in world.emulator.journal]
    assert sent == [(value, "mine") for _, value in spellings]
    assert world.manager.stats().bypassed == len(spellings)
    lines = [record for record in caplog.records if record.name == "pay88_adapters.calls"]
    assert [line.levelno for line in lines] == [logging.WARNING, *[logging.DEBUG] * len(spellings)]
    assert not any(" mine" in line.getMessage() for line in lines)


def test_rule_14_what_is_not_ours_is_not_counted(world: World, other: Emulator) -> None:
    """Another origin's Bearer, the token endpoint, another scheme, and what is unmanaged."""
    client, mine = world.client(), {"Authorization": "Bearer mine"}
    client.attempt("POST", f"{other.url}/api/echo", headers=mine)
    client.attempt("POST", f"{world.emulator.url}/api/auth/token", headers=mine)
    client.attempt("POST", world.url, headers={"Authorization": "Basic bWluZQ=="})
    with unmanaged():
        client.attempt("POST", world.url, headers=mine)
    assert world.manager.stats().bypassed == 0


def test_rule_14_a_bearer_of_the_clients_is_left_as_it_is(world: World) -> None:
    """It makes no difference whether it was set for the call or for the client."""
    assert isinstance(world.client(headers={"authorization": "Bearer mine"}).attempt("POST", world.url), Reply)
    [entry] = world.emulator.journal
    assert entry.headers["authorization"] == "Bearer mine"
    assert "x-session-id" not in entry.headers


@pytest.mark.parametrize("place", ["call", "client"])
def test_rule_14_any_other_scheme_is_replaced(world: World, place: str) -> None:
    """Each of the two fields is sent once, and it is ours, whatever the case; after a refusal, too."""
    for name, scheme in [
        *((name, OTHER_SCHEMES[0]) for name in ANY_CASE),
        *(("Authorization", s) for s in OTHER_SCHEMES),
    ]:
        headers = {name: scheme, "X-SESSION-ID" if name.isupper() else "x-session-id": "mine"}
        client = world.client(headers=headers if place == "client" else {})
        assert ok(client.attempt("POST", world.url, headers=headers if place == "call" else None))
    world.emulator.service.refuse_current_tokens()
    assert ok(client.attempt("POST", world.url, headers=headers if place == "call" else None))
    calls = world.emulator.journal.select("call")
    assert [(call.status, call.serial) for call in calls] == [*[(200, 1)] * 8, (401, 1), (200, 2)]
    assert not any("mine" in call.headers["x-session-id"] for call in calls)


def test_rule_14_fields_that_occur_twice_are_replaced_by_one(world: World) -> None:
    """However often the caller has them, the two fields are sent once; the other fields as often as they were."""
    pairs = [("Authorization", "Basic a"), ("X-Tag", "1"), ("x-session-id", "a"), ("X-Session-ID", "b"), ("X-Tag", "2")]
    client = world.client()
    headers: Any = pairs
    if isinstance(client, Urllib3):
        headers = urllib3.HTTPHeaderDict(pairs)
    elif isinstance(client, Aiohttp):
        headers = multidict.CIMultiDict(pairs)
    elif isinstance(client, Requests):
        headers = dict(reversed(pairs)) | {"X-Tag": "1, 2"}  # a mapping is all it takes
    outcome = client.attempt("POST", world.url, headers=headers)
    assert ok(outcome)
    [call] = world.emulator.journal.select("call")
    assert call.headers["x-tag"] == "1, 2"
    assert "," not in call.headers["authorization"] + call.headers["x-session-id"]
    assert not leaked(world.emulator.service.secrets(), told(outcome))


@pytest.mark.parametrize("kind", [Urllib3, Httpx], ids=lambda kind: kind.name)  # the others refuse bytes
@pytest.mark.parametrize("convert", [bytes, str])
@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_rule_14_fields_may_be_bytes(world: World, convert: type, scheme: str) -> None:
    """Names and values mean the same as bytes."""
    name: Any = b"Authorization" if convert is bytes else "Authorization"
    session: Any = b"x-session-id" if convert is bytes else "x-session-id"
    headers: Any = {name: f"{scheme} mine".encode(), session: b"mine"}
    assert isinstance(world.client().attempt("POST", world.url, headers=headers), Reply)
    [call] = world.emulator.journal.select("call")
    if scheme == "Bearer":
        assert (call.headers["authorization"], call.headers["x-session-id"]) == ("Bearer mine", "mine")
        assert world.emulator.journal.token_requests == 0
    else:
        assert call.status == 200


@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_rule_14_fields_may_be_bytes_below_request(world: World, scheme: str) -> None:
    """``urlopen`` takes them as they are, where ``request`` makes them text."""
    client = world.client()
    assert isinstance(client, Urllib3)
    headers: Any = {b"Authorization": f"{scheme} mine".encode(), b"x-session-id": b"mine"}
    client.client.urlopen("POST", world.url, headers=headers, retries=False)
    [call] = world.emulator.journal.select("call")
    if scheme == "Bearer":
        assert (call.headers["authorization"], call.headers["x-session-id"]) == ("Bearer mine", "mine")
    else:
        assert call.status == 200


# --- rule 15: secrets -------------------------------------------------------------------------------


@dataclass
class Scene:
    """What a situation is played with, and what came of it."""

    world: World
    client: Stack
    outcomes: list[Outcome] = field(default_factory=list)
    things: list[object] = field(default_factory=list)

    def call(self, count: int = 1, url: str | None = None, **kw: Any) -> None:
        """Make calls."""
        for _ in range(count):
            self.outcomes.append(
                self.world.as_time_passes(lambda: self.client.attempt("POST", url or self.world.url, **kw))
            )

    @property
    def key(self) -> str:
        """The API key."""
        return self.world.emulator.api_key

    def echo(self) -> bytes:
        """Return an error's body that repeats every secret there is."""
        message = " ".join(["refused:", *self.world.emulator.service.secrets()])
        return json.dumps({"status": "Error", "code": 0, "message": message, "data": message}).encode()


def _success(scene: Scene) -> None:
    scene.call(3)
    assert all(map(ok, scene.outcomes))
    token = scene.world.manager.get_token()
    scene.things += [token, token.headers(), token.attached, asdict(token), asdict(scene.world.credentials)]


def _refresh(scene: Scene) -> None:
    scene.call()
    scene.world.clock.advance(46)
    scene.call(2)
    scene.world.settle()
    assert scene.world.emulator.journal.issued == 2


def _replay(scene: Scene) -> None:
    scene.call()
    scene.world.emulator.service.refuse_current_tokens()
    scene.call(**scene.client.bodies["bytes"]())
    assert scene.world.emulator.journal.issued == 2


def _replay_of_a_long_refusal(scene: Scene) -> None:
    scene.world.emulator.faults.add(Status(401, body=b"x" * 1_000_000), on="call")
    scene.call()


def _replay_fails(scene: Scene) -> None:
    scene.call()
    scene.world.emulator.service.refuse_current_tokens()
    scene.world.emulator.faults.add(ResetAfterRead(), on="token", times=None)
    scene.call()
    scene.world.clock.advance(60)
    scene.call()
    assert isinstance(scene.outcomes[-1], TokenEndpointUnavailable)


def _refused_for_good(scene: Scene) -> None:
    scene.world.emulator.service.refuse_where = lambda received, now: True
    scene.call(3)


def _unreplayable(scene: Scene) -> None:
    scene.call()
    scene.world.emulator.service.refuse_current_tokens()
    [kind] = [name for name in scene.client.bodies if name.endswith("generator")]
    scene.call(**scene.client.bodies[kind]())
    assert not ok(scene.outcomes[-1])


def _wrong_key(scene: Scene) -> None:
    scene.world.emulator.service.reject_credentials(scene.key)
    scene.call(2)
    assert isinstance(scene.outcomes[-1], CredentialsRejected)


def _connection_refused(scene: Scene) -> None:
    scene.world.emulator.stop()
    scene.call(2)
    assert isinstance(scene.outcomes[-1], TokenEndpointUnavailable)


def _call_refused(scene: Scene) -> None:
    scene.call()
    scene.world.emulator.stop()
    scene.call()
    assert isinstance(scene.outcomes[-1], scene.client.base_error)


def _token_request_times_out(scene: Scene) -> None:
    with scene.world.emulator.hold("token"):
        scene.client = scene.world.client(scene.world.new_manager(fetch_timeout=0.15, fetch_attempts=1))
        scene.outcomes.append(scene.client.attempt("POST", scene.world.url))
    assert isinstance(scene.outcomes[-1], TokenEndpointUnavailable)


def _call_times_out(scene: Scene) -> None:
    scene.call()
    scene.client = scene.world.client(timeout=0.15)
    with scene.world.emulator.hold("call"):
        scene.call()
    assert isinstance(scene.outcomes[-1], Exception)


def _garbage_that_repeats_what_it_got(scene: Scene) -> None:
    scene.world.emulator.faults.add(Garbage(scene.echo() + b"\r\n\r\n"), on="token", times=None)
    scene.call()


def _retried_by_us(scene: Scene) -> None:
    for fault in (Status(503), ResetAfterRead()):
        with scene.world.emulator.faults.add(fault, on="call", times=None):
            scene.call()
    assert scene.world.emulator.journal.calls == 6


def _retried_by_the_stack(scene: Scene) -> None:
    kw: dict[str, Any] = {}
    if isinstance(scene.client, Urllib3):
        kw["retries"] = urllib3.Retry(2, status_forcelist=[503], allowed_methods=None)
    else:
        scene.client = scene.world.client(scene.world.new_manager(retry=RetryPolicy.none()))
    for fault in (Status(503), ResetAfterRead()):
        with scene.world.emulator.faults.add(fault, on="call", times=None):
            scene.call(**kw)
    assert scene.world.emulator.journal.calls == (6 if kw else 2)


def _own_bearer_beside_ours(scene: Scene) -> None:
    scene.call()
    scene.call(headers={"Authorization": "Bearer mine"})
    scene.call(headers={"Authorization": "Basic mine", "X-Session-Id": "mine"})


def _redirect_elsewhere(scene: Scene) -> None:
    with Emulator(clock=scene.world.clock) as evil:
        scene.world.emulator.faults.add(Redirect(f"{evil.url}/api/echo"), on="call")
        scene.call()


def _redirect_home(scene: Scene) -> None:
    scene.world.emulator.faults.add(Redirect(scene.world.echo), on="call")
    scene.call()


def _through_a_proxy(scene: Scene) -> None:
    with Proxy() as proxy:
        scene.client = scene.world.client(proxy=proxy.url)
        scene.call()
        scene.world.emulator.stop()
        scene.call()


def _through_a_proxy_that_is_gone(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    scene.call()
    scene.client = scene.world.client(proxy=f"http://127.0.0.1:{address[1]}")
    scene.call()
    scene.world.clock.advance(60)
    scene.call()


def _closed(scene: Scene) -> None:
    scene.call()
    scene.world.manager.close()
    scene.call()
    assert isinstance(scene.outcomes[-1], ConfigurationError)


def _budget_spent(scene: Scene) -> None:
    scene.client = scene.world.client(scene.world.new_manager(limits=("1/hour",)))
    scene.call()
    scene.world.clock.advance(60)
    scene.call()
    assert isinstance(scene.outcomes[-1], TokenBudgetExhausted)


def _hung_up_on(scene: Scene) -> None:
    scene.call()
    with hanging_up() as url:
        manager = TokenManager(scene.world.credentials, base_url=url, clock=scene.world.clock)
        scene.client = scene.world.client(manager)
        for _ in range(5):
            scene.call(url=f"{url}/api/echo")
            scene.world.clock.advance(100)


def _on_the_token_endpoint(*faults: Any) -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        for fault in faults:
            scene.call()
            scene.world.clock.advance(60)
            body = scene.echo() if getattr(fault, "body", 0) == b"echo" else getattr(fault, "body", None)
            made = fault if body is None else replace(fault, body=body)
            with scene.world.emulator.faults.add(made, on="token", times=None):
                scene.call()
            assert isinstance(scene.outcomes[-1], Pay88Error)
            scene.world.clock.advance(4000)

    return play


def _on_a_call(*faults: Any) -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        for fault in faults:
            with scene.world.emulator.faults.add(fault, on="call", times=None):
                scene.call(2)

    return play


@contextmanager
def hanging_up() -> Iterator[str]:
    """Reset every connection as soon as it is there."""

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            if over.is_set():
                connection.close()
                return
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


ECHO = b"echo"  # stands for a body with every secret in it
SITUATIONS: dict[str, Callable[[Scene], None]] = {
    **{
        each.__name__.replace("_", " ").strip(): each
        for each in (
            _success, _refresh, _replay, _replay_of_a_long_refusal, _replay_fails, _refused_for_good, _unreplayable,
            _wrong_key, _connection_refused, _call_refused, _token_request_times_out, _call_times_out,
            _garbage_that_repeats_what_it_got,
            _retried_by_us, _retried_by_the_stack, _own_bearer_beside_ours, _redirect_elsewhere, _redirect_home,
            _through_a_proxy, _through_a_proxy_that_is_gone, _closed, _budget_spent, _hung_up_on,
        )
    },
    "refusals that repeat what they got": _on_the_token_endpoint(*(Status(code, body=ECHO) for code in (401, 403))),
    "other errors that repeat what they got": _on_the_token_endpoint(
        *(Status(code, body=ECHO) for code in (400, 404, 422, 429, 500, 503))
    ),
    "answers that repeat what they got": _on_the_token_endpoint(Body(ECHO), Body(ECHO, 201), Body(ECHO, 307)),
    "a token endpoint that breaks": _on_the_token_endpoint(
        Garbage(), ResetBeforeRead(), ResetAfterRead(), Truncated(), HugeBody(100_000), Body(b"{}"), Body(b"\xff")
    ),
    "a token endpoint that says no": _on_the_token_endpoint(
        RefuseToken(), Status(403), TooMany(), TooMany("soon"), Redirect("/elsewhere")
    ),
    "calls that break": _on_a_call(ResetBeforeRead(), ResetAfterRead(), Garbage(), Truncated()),
    "calls that fail": _on_a_call(Status(500), Status(403), TooMany(1), Body(b"", 204)),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_rule_15_no_secret_is_printed(
    make_world: Callable[..., World], situation: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in a log, an error, its causes, a traceback with locals or a pickle, nor by any object a caller gets."""
    world = make_world(api_key=f"sk_test_{secrets.token_hex(16)}")
    client: Any = world.client(connections=5)
    if isinstance(client, AsyncioStack):  # asyncio prints every callback that is slow: let all be
        client.loop.set_debug(True)
        client.loop.slow_callback_duration = 0
    scene = Scene(world, client)
    with Eavesdropper("pay88-emulator") as overheard:
        SITUATIONS[situation](scene)
    manager = scene.client.manager
    things = [
        manager,
        manager.stats(),
        TokenPolicy(),
        world.credentials,
        client.client,
        *scene.things,
    ]
    texts = [*overheard.lines, *capfd.readouterr()]
    for outcome in scene.outcomes:
        texts += told(outcome)
    for thing in things:
        texts += shown(thing)
    assert scene.outcomes
    assert overheard.records
    assert leaked(world.emulator.service.secrets(), texts) == []


def test_rule_15_the_callers_own_objects_hold_what_the_caller_sent(world: World) -> None:
    """Neither the mapping that was passed nor the request that the response shows has anything of ours in it."""
    client = world.client()
    for given in ({}, {"Authorization": "Basic mine", "X-Session-Id": "mine"}):
        headers: dict[str, str] = {**given, "X-Mine": "1"}
        for _ in range(2):
            outcome = client.attempt("POST", world.url, headers=headers)
            assert isinstance(outcome, Reply)
            assert outcome.status == 200
            assert headers == {**given, "X-Mine": "1"}
            sent = getattr(outcome.raw, "request_info", getattr(outcome.raw, "_request", None))
            if sent is not None:
                fields = {name.lower(): str(value) for name, value in sent.headers.items()}
                assert {name: fields.get(name) for name in ("authorization", "x-session-id", "x-api-key")} == {
                    "authorization": given.get("Authorization"),
                    "x-session-id": given.get("X-Session-Id"),
                    "x-api-key": None,
                }
            world.emulator.service.refuse_current_tokens()  # the next one is replayed
            world.clock.advance(5)


def test_rule_15_parts_of_secrets_go_out_as_what_they_are(world: World, kind: type[Stack]) -> None:
    """On a client without us, which cuts them, checks them and puts them together in ways of its own."""
    token = world.manager.get_token()
    fields = {**token.headers(), "X-Part": token.access_token[2:9], "X-Sum": "a " + token.session_id.upper() + " b"}
    with kind(None) as client:
        assert ok(client.attempt("POST", world.url, headers=fields))
    received = world.emulator.journal[-1].headers
    assert {name: received[name.lower()] for name in fields} == {name: f"{value}" for name, value in fields.items()}


@pytest.mark.parametrize("kind", [Aiohttp], ids=lambda kind: kind.name)
def test_rule_15_traces_print_no_secret(world: World) -> None:
    """aiohttp's traces see the header fields while they are sent; printing those shows nothing."""
    seen: list[str] = []

    async def on_headers(*parts: Any) -> None:
        seen.extend(text for part in parts for text in shown(part))

    async def calls() -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(on_headers)
        async with aiohttp.ClientSession(trace_configs=[trace]) as session:
            pay88_adapters.aiohttp.attach(session, world.manager)
            async with session.post(world.url) as response:
                assert response.status == 200

    asyncio.run(calls())
    assert "x-session-id" in repr(seen)
    assert not leaked(world.emulator.service.secrets(), seen)


def test_rule_15_secrets_are_not_copied_out(world: World) -> None:
    """Pickling and copying what holds a secret is refused, or shows nothing."""
    assert ok(world.client().attempt("POST", world.url))
    token = world.manager.get_token()
    for thing in (
        token,
        world.credentials,
        world.manager,
        token.access_token,
        token.headers(),
        world.credentials.api_key,
    ):
        with pytest.raises(TypeError):
            pickle.dumps(thing)
        for copied in (copy.copy, copy.deepcopy):
            try:
                texts = list(shown(copied(thing)))
            except TypeError as error:
                texts = list(confessed(error))
            assert not leaked(world.emulator.service.secrets(), texts)


def test_rule_15_requests_and_replies_print_nothing() -> None:
    """The values that carry the key there and the token back show neither fields nor bodies."""
    credentials = Credentials(f"sk_test_{secrets.token_hex(16)}", "MCH-COL-TEST-1")
    request = token_request(Endpoint.parse("http://127.0.0.1:1"), credentials, timeout=1)
    body = json.dumps(
        {"data": {"access_token": secrets.token_hex(), "session_id": secrets.token_hex(), "expires_in": 60}}
    )
    reply = TokenResponse(200, {"Set-Cookie": credentials.api_key}, body.encode())
    token = parse_token_response(reply, 0.0, credentials, time.time())
    assert isinstance(token, Token)
    hidden = [credentials.api_key, token.access_token, token.session_id]
    assert leaked(hidden, [f"{each!r} {each}" for each in (request, request.headers, reply, token, credentials)]) == []


def test_rule_15_the_search_finds_what_it_looks_for(world: World) -> None:
    """A leak in a log, in a cause's locals and in a response would be seen."""
    client = world.client()
    reply = client.attempt("POST", world.url)
    secret = world.emulator.api_key

    def fail() -> None:
        local = secret
        raise LookupError(len(local))

    def fail_twice() -> None:
        try:
            fail()
        except LookupError:
            raise ValueError("outer") from None

    with pytest.raises(ValueError, match="outer") as caught:
        fail_twice()
    assert leaked([secret], confessed(caught.value))
    assert isinstance(reply, Reply)
    reply.raw.custom = secret
    assert leaked([secret], told(reply))


# --- rule 15 over HTTP/2 ----------------------------------------------------------------------------


def over_threads(
    server: Http2Server, manager: TokenManager, context: ssl.SSLContext, calls: list[dict[str, Any]]
) -> None:
    """Make calls with httpx's Client."""
    with httpx.Client(http2=True, verify=context, trust_env=False) as client:
        pay88_adapters.httpx.attach(client, manager)
        for call in calls:
            assert client.post(f"{server.url}/api/echo", **call).status_code == 200
            manager.invalidate(manager.get_token())


async def over_tasks(
    server: Http2Server, manager: TokenManager, context: ssl.SSLContext, calls: list[dict[str, Any]]
) -> None:
    """Make calls with httpx's AsyncClient."""
    async with httpx.AsyncClient(http2=True, verify=context, trust_env=False) as client:
        pay88_adapters.httpx.attach(client, manager)
        for call in calls:
            assert (await client.post(f"{server.url}/api/echo", **call)).status_code == 200
            manager.invalidate(manager.get_token())


@pytest.mark.parametrize("runtime", ["threads", "asyncio", "trio"])
def test_rule_15_http2_prints_no_secret(runtime: str) -> None:
    """The log of HTTP/2's header compression shows neither fields nor whole blocks, also when it forgets them."""
    authority = trustme.CA()
    serving, context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    authority.configure_trust(context)
    serving.set_alpn_protocols(["h2"])
    clock = ManualClock()
    service = Service(api_key=f"sk_test_{secrets.token_hex(16)}", token_limits=(), call_limits=())
    calls: list[dict[str, Any]] = [{"headers": {f"x-filler-{n}": "x" * 1000}} for n in range(20)]
    with Http2Server(service, clock, serving) as server, Eavesdropper(Http2Server.THREAD) as overheard:
        manager = TokenManager(
            Credentials(service.api_key, service.merchant_id),
            base_url=server.url,
            policy=TokenPolicy(limits=("1000/minute",), forced_reserve=1000),
            clock=clock,
        )
        if runtime == "threads":
            over_threads(server, manager, context, calls)
        elif runtime == "asyncio":
            asyncio.run(over_tasks(server, manager, context, calls))
        else:
            trio.run(over_tasks, server, manager, context, calls)
    assert len(service.secrets()) == 1 + 2 * len(calls)
    assert {"hpack.hpack", "hpack.table"} <= {record.name for record in overheard.records}
    assert leaked(service.secrets(), overheard.lines) == []
    arguments = [each for record in overheard.records if isinstance(record.args, tuple) for each in record.args]
    assert leaked(service.secrets(), [unpacked(each) for each in arguments if isinstance(each, bytes)]) == []


def unpacked(block: bytes) -> str:
    """Return what anybody can read in a compressed block of header fields."""
    import hpack

    try:
        return repr(hpack.Decoder().decode(block))
    except hpack.HPACKError:
        return ""


# --- rule 18: errors --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What an error should be like."""

    kind: type[Pay88Error]
    status: int | None = None
    server_message: str | None = None
    retry_after: float | None = None
    retryable: bool = False
    network: bool = False
    """Whether there is a failure of the network behind it."""


def _token_fault(fault: Any) -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        scene.world.emulator.faults.add(fault, on="token", times=None)
        scene.call()

    return play


UNAVAILABLE = Expected(TokenEndpointUnavailable, retry_after=1, retryable=True, network=True)
ERRORS: dict[str, tuple[Callable[[Scene], None], Expected]] = {
    "bad key": (_wrong_key, Expected(CredentialsRejected, 401, "Invalid API key or merchant ID", 30)),
    "suspended": (_token_fault(Status(403)), Expected(CredentialsRejected, 403, "Access denied", 30)),
    "rate limited": (
        _token_fault(TooMany(120)),
        Expected(TokenRateLimited, 429, "Rate limit exceeded. Please try again later.", 120, retryable=True),
    ),
    "down": (
        _token_fault(Status(500)),
        Expected(TokenEndpointUnavailable, 500, "Internal server error", 1, retryable=True),
    ),
    "not 88Pay": (_token_fault(Status(404)), Expected(TokenEndpointUnavailable, 404, "Not found", 1)),
    "nonsense": (_token_fault(Body(b"{}")), Expected(TokenResponseInvalid, 200, None, 1, retryable=True)),
    "reset": (_token_fault(ResetAfterRead()), UNAVAILABLE),
    "garbage": (_token_fault(Garbage()), UNAVAILABLE),
    "truncated": (_token_fault(Truncated()), UNAVAILABLE),
    "nobody there": (_connection_refused, UNAVAILABLE),
    "silence": (_token_request_times_out, UNAVAILABLE),
    "budget": (_budget_spent, Expected(TokenBudgetExhausted, retry_after=3545, retryable=True)),
    "closed": (_closed, Expected(ConfigurationError)),
}


@pytest.mark.parametrize("case", ERRORS)
def test_rule_18_errors_are_data_and_the_stacks_own(world: World, case: str) -> None:
    """Existing ``except`` clauses catch them, their fields say what to do, and they survive pickling."""
    play, expected = ERRORS[case]
    scene = Scene(world, world.client())
    play(scene)
    error = scene.outcomes[-1]
    assert isinstance(error, Pay88Error)
    assert isinstance(error, expected.kind)
    assert isinstance(error, scene.client.base_error)
    assert (error.status, error.server_message, error.retryable) == (
        expected.status, expected.server_message, expected.retryable,
    )  # fmt: skip
    assert error.retry_after == (None if expected.retry_after is None else pytest.approx(expected.retry_after, abs=20))
    assert "\n" not in str(error)
    if expected.network:
        network_error = scene.client.network_error or scene.client.base_error
        assert isinstance(error.__cause__, (network_error, OSError, TimeoutError))
    for returned in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(returned) is type(error)
        assert (str(returned), returned.args) == (str(error), error.args)
        for name in ("status", "server_message", "retry_after", "retryable"):
            assert getattr(returned, name) == getattr(error, name)


def test_rule_18_every_caller_gets_an_error_of_its_own(world: World) -> None:
    """One object raised by many would collect all their tracebacks."""
    world.emulator.service.reject_credentials(world.emulator.api_key)
    client = world.client()
    errors = client.gather(10, "POST", world.url)
    assert all(isinstance(error, CredentialsRejected) and isinstance(error, client.base_error) for error in errors)
    assert len({id(error) for error in errors}) == 10


@pytest.mark.parametrize("fault", [ResetBeforeRead(), Garbage(), Truncated()], ids=lambda fault: type(fault).__name__)
def test_rule_18_what_goes_wrong_with_a_call_is_the_stacks_own_error(world: World, fault: Any) -> None:
    """A call that was sent and failed raises what it would without us."""
    client = world.client(world.new_manager(retry=RetryPolicy.none()))
    world.emulator.faults.add(fault, on="call", times=None)
    error = client.attempt("POST", world.url)
    assert isinstance(error, (client.base_error, OSError))
    assert not isinstance(error, Pay88Error)
    assert world.emulator.journal.calls == 1
