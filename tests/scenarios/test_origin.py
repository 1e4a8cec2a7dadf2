"""Rules 13, 14, 15 and 18, each with every client library, over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yarl

from pay88_adapters import (
    Pay88Error,
    TokenEndpointUnavailable,
    TokenManager,
    TokenPolicy,
)
from pay88_adapters.testing import (
    Emulator,
    Entry,
    Headers,
    Journal,
    Redirect,
)
from support.proxies import Proxy
from support.security import (
    ok,
)
from support.stacks import (
    Aiohttp,
    PlainResponse,
    Requests,
    Stack,
    Urllib3,
)
from support.worlds import World

SECRET_FIELDS = {"authorization", "x-session-id", "x-api-key"}


REDIRECTS = [301, 302, 303, 307, 308]


# What a token request may carry: the two key fields, and what describes the message and the connection.
TOKEN_REQUEST_FIELDS = {
    "host", "x-api-key", "x-merchant-id", "accept", "accept-encoding", "content-length", "connection", "user-agent",
}  # fmt: skip


def bare(entries: list[Entry] | Journal) -> bool:
    """Whether none of the requests carries anything of ours."""
    return not any(SECRET_FIELDS & set(entry.headers) for entry in entries)


def test_rule_13_another_port_is_another_origin(world: World, other: Emulator) -> None:
    """A call to another port passes as it is, with a token in the manager and without."""
    client = world.client()
    for _ in range(2):
        outcome = client.attempt("POST", f"{other.url}/api/echo", headers={"X-Mine": "1"})
        assert isinstance(outcome, PlainResponse)
        assert outcome.status == 401
        assert ok(client.attempt("POST", world.url))
    assert bare(other.journal)
    assert [entry.headers["x-mine"] for entry in other.journal] == ["1", "1"]
    assert world.manager.stats().token_requests == 1


def test_rule_13_another_host_is_another_origin(world: World) -> None:
    """The same port on another address gets nothing, nor does another name of the same address."""
    client = world.client()
    with Emulator(clock=world.clock, host="127.0.0.2", port=world.emulator.port) as neighbour:
        assert isinstance(client.attempt("POST", f"{neighbour.url}/api/echo"), PlainResponse)
        assert isinstance(client.attempt("POST", f"http://localhost:{world.emulator.port}/api/echo"), PlainResponse)
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
            assert isinstance(client.attempt("POST", f"{trick}/api/echo"), PlainResponse)
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
    if not client.name.startswith("httpx"):  # which sends its proxy the URL http://::1
        assert ok(world.client(proxy=proxy.url).attempt("POST", world.url))
        assert len(proxy.requested) == 1


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
    """What is managed requests a token first; the proxy does not respond, so that nothing leaves this machine."""
    policy = TokenPolicy(fetch_attempts=1)
    manager = TokenManager(world.credentials, base_url=base_url, policy=policy, clock=world.clock)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        client = world.client(manager, proxy=f"http://127.0.0.1:{silent.getsockname()[1]}")
        outcome = world.as_time_passes(lambda: client.attempt("POST", f"{url}/api/balance"))
    assert isinstance(outcome, client.base_error)
    assert (manager.stats().token_requests, isinstance(outcome, Pay88Error)) == (int(ours), ours)


def test_rule_13_another_scheme_is_another_origin(world: World) -> None:
    """No request for https is sent in clear text, and no token is fetched."""
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
    assert isinstance(outcome, PlainResponse)
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
    assert isinstance(world.client(proxy=proxy.url).attempt("POST", world.url), PlainResponse)
    assert len(other.journal) == 1
    assert bare(other.journal)
    assert [each.rpartition("/")[2] for each in proxy.requested] == ["token", world.url.rpartition("/")[2], "echo"]


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
    """Who requests a token by hand, or is redirected there, sends what they send."""
    client = world.client()
    assert isinstance(client.attempt("POST", f"{world.emulator.url}/api/auth/token"), PlainResponse)
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
    requested, calls = (
        world.emulator.journal.select("token"),
        world.emulator.journal.select("call", path="/api/balance"),
    )
    assert len(requested) == 4
    for entry in requested:
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
