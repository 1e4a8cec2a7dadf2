"""Rule 21 on every stack, over real sockets: what a client does without the adapter, it does with it.

Each scenario runs three times: with a client as the library makes it, with the same client and a manager of
another origin attached to it, and with a manager of this very origin. What the server received and what the
caller got must be the same each time, down to the order of the fields and the chunks of the bodies; with the
last one the two fields of ours come on top.
"""

from __future__ import annotations

import asyncio
import copy
import io
import os
import pickle
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import anyio.to_thread
import httpx
import httpx2
import pytest
import requests
import trustme
import urllib3
from aiohttp import web
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth

import pay88_adapters.aiohttp
import pay88_adapters.requests
from pay88_adapters import Credentials, RetryPolicy, TokenManager
from pay88_adapters.requests import Pay88Adapter
from pay88_adapters.testing import ManualClock, Received, Service
from pay88_adapters.testing.messages import TOKEN_PATH
from support.http2 import Http2Server
from support.origins import OURS, Origin, Seen
from support.proxies import Proxy
from support.stacks import (
    BYTES,
    STACKS,
    Aiohttp,
    AsyncStack,
    Httpx,
    Httpx2,
    HttpxAsyncio,
    HttpxTrio,
    Options,
    Reply,
    Requests,
    Stack,
    Urllib3,
    close_files,
)

HTTPX: tuple[type[Stack], ...] = (Httpx, HttpxAsyncio, HttpxTrio, Httpx2)
TLS = ssl.create_default_context()  # one for all clients: making it takes longer than most scenarios
REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Setting:
    """What a scenario plays with."""

    client: Any
    """The harness around the library's client."""
    here: Origin
    there: Origin
    """A second one, which is never 88Pay's."""
    proxy: Proxy

    def attached(self, client: Any) -> Any:
        """Return another client with the same manager attached, if there is one."""
        return self.client.attached(client)

    def does(self, method: str, url: str, **kw: Any) -> object:
        """Send a request; return what the caller gets to see of the outcome."""
        outcome = self.client.attempt(method, url, **kw)
        if url.endswith("/silent"):
            assert self.here.silences.acquire(timeout=10)
        return shown(outcome)


Play = Callable[[Setting], object]


@dataclass(frozen=True)
class Scenario:
    """Something to do, and who can."""

    play: Play
    kinds: tuple[type[Stack], ...]
    ours: bool
    """Whether 88Pay's own calls do the same."""


SCENARIOS: list[Scenario] = []


def scenario(*kinds: type[Stack], ours: bool = True) -> Callable[[Play], Play]:
    """Let a scenario run with clients of these kinds, or of all."""

    def add(play: Play) -> Play:
        SCENARIOS.append(Scenario(play, kinds or STACKS, ours))
        return play

    return add


# --- what is compared ---------------------------------------------------------------------------------


def shown(outcome: object) -> object:
    """Return all that a caller sees of a reply or an error, in terms that can be compared."""
    if isinstance(outcome, Exception):
        return type(outcome), re.sub(r"0x[0-9a-f]+", "0x…", str(outcome))
    raw: Any = outcome.raw if isinstance(outcome, Reply) else outcome
    body = outcome.body if isinstance(outcome, Reply) else None
    if isinstance(raw, requests.Response):
        jar = [(each.name, each.value, each.domain, each.path) for each in raw.cookies]
        seen = raw.status_code, raw.reason, [*raw.headers.items()], raw.url, raw.encoding, raw.is_redirect, jar
        history = [(each.status_code, each.url, [*each.headers.items()], asked(each.request)) for each in raw.history]
        return name(raw), body, seen, asked(raw.request), history  # of which, in older versions, each holds itself
    if isinstance(raw, (httpx.Response, httpx2.Response)):
        more = {name: value for name, value in raw.extensions.items() if isinstance(value, (bytes, str))}
        start = raw.status_code, raw.reason_phrase, raw.http_version, raw.headers.multi_items(), str(raw.url), more
        return name(raw), body, start, [*raw.cookies.items()], asked(raw.request), [shown(each) for each in raw.history]
    if isinstance(raw, aiohttp.ClientResponse):
        fields, cookies = raw.raw_headers, [str(each) for each in raw.cookies.values()]
        return name(raw), body, raw.status, raw.reason, raw.version, fields, str(raw.url), cookies, raw.method, (
            asked(raw.request_info),
            [(each.status, str(each.url), each.raw_headers) for each in raw.history],  # it may hold itself
        )  # fmt: skip
    if isinstance(raw, urllib3.BaseHTTPResponse):
        steps = [replaced(each) for each in (raw.retries.history if raw.retries else ())]
        return name(raw), body, raw.status, raw.reason, raw.version, [*raw.headers.items()], raw.geturl(), steps
    return raw


def name(thing: object) -> str:
    """Return the name of a class, which a scenario may make anew each time."""
    return type(thing).__qualname__


def replaced(step: Any) -> object:
    """Return a step of urllib3's history; errors have no equality."""
    return step._replace(error=type(step.error))


def asked(request: Any) -> object:
    """Return what a response shows of its request."""
    fields = getattr(request.headers, "multi_items", request.headers.items)()
    body = getattr(request, "body", None)
    return request.method, str(request.url), [*fields], body if isinstance(body, (str, bytes)) else type(body)


def plain(seen: Seen) -> Seen:
    """Return what was seen with one name for what is drawn by lot."""
    found = re.search(r"boundary=(\S+)", " ".join(seen.field("content-type")))
    boundary = found[1] if found else "\0"
    fields = tuple((name, value.replace(boundary, "BOUNDARY")) for name, value in seen.fields)
    pieces = tuple(piece.replace(boundary.encode(), b"BOUNDARY") for piece in seen.pieces)
    return replace(seen, fields=fields, pieces=pieces)


def without_ours(seen: Seen) -> Seen:
    """Return what was seen without the two fields, each of which must be there once."""
    assert [len(seen.field(name)) for name in OURS] == [1, 1]
    assert seen.field("authorization")[0].startswith("Bearer ")
    return replace(seen, fields=tuple(each for each in seen.fields if each[0].lower() not in OURS))


# --- the comparison -----------------------------------------------------------------------------------


@pytest.fixture
def origins() -> Iterator[tuple[Origin, Origin, Proxy]]:
    """Two servers and a proxy. They outlive the clients."""
    with Origin() as here, Origin() as there, Proxy() as proxy:
        yield here, there, proxy
    close_files()


def manager_of(origin: Origin | None, retry: RetryPolicy | None = None) -> TokenManager:
    """Return a manager for *origin*, or for one where nobody answers."""
    if origin is None:
        return TokenManager(Credentials("sk_test_1", "MCH-1"), base_url="http://127.0.0.1:1")
    service = origin.service
    return TokenManager(
        Credentials(service.api_key, service.merchant_id), base_url=origin.base, retry=retry, clock=origin.clock
    )


def played(
    kind: type[Stack], play: Play, manager: TokenManager | None, origins: tuple[Origin, Origin, Proxy]
) -> tuple[object, list[Seen], list[Seen], list[str]]:
    """Play a scenario with a new client; return what came of it, and what both servers and the proxy saw."""
    here, there, proxy = origins
    with kind(manager, Options(timeout=10, tls=TLS)) as client:
        assert isinstance(client.attempt("POST", here.url("/warm-up")), Reply)
        here.take()
        there.take()
        proxy.asked.clear()
        result = play(Setting(client, here, there, proxy))
        return result, [*map(plain, here.take())], [*map(plain, there.take())], [*proxy.asked]


# --- the scenarios ------------------------------------------------------------------------------------


@scenario()
def bodies(on: Setting) -> object:
    """Bytes, text, JSON, forms, multipart, files and generators: the same framing and the same chunks."""
    bodies: dict[str, dict[str, Any]] = {name: body() for name, body in on.client.bodies.items()}
    if isinstance(on.client, HTTPX):  # which would send the number of the open file as its name
        bodies["multipart file"] = {"files": {"file": ("a.txt", bodies["multipart file"]["files"]["file"])}}
    outcomes = [on.does("POST", on.here.url(), **body) for body in bodies.values()]
    return [re.sub(r"[0-9a-f]{32}|0x[0-9a-f]+", "…", repr(each)) for each in outcomes]


@scenario()
def methods_and_targets(on: Setting) -> object:
    """Methods of every kind, and paths and queries that somebody might be tempted to tidy up."""
    targets = ["/echo", "/a%20b/%7e/..%2fc", "/x?a=1&a=2&b=&c", "/x?q=%C3%B1+%2B#part", "//double", "/x;p=1"]
    methods = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "POST"]
    return [on.does(method, on.here.base + target) for method in methods for target in targets]


@scenario()
def fields_of_requests(on: Setting) -> object:
    """The caller's spelling and order stay."""
    headers = {"X-b": "1", "x-A": "", "accept": "text/x", "User-Agent": "mine/1", "Cookie": "c=1", "Host": "localhost"}
    return [on.does("POST", on.here.url(), headers=headers), on.does("GET", on.here.url(), headers=headers), headers]


@scenario()
def responses(on: Setting) -> object:
    """Statuses without bodies, odd ones, fields that occur twice, and what is to be decompressed."""
    wanted: list[dict[str, Any]] = [
        {"status": 204},
        {"status": 304, "field": "ETag: x"},
        {"status": 404, "body": "gone"},
        {"status": 418, "body": "añ"},
        {"status": 201, "field": ["Link: a", "Link: b", "Retry-After: soon"]},
        {"status": 299},
    ]
    return [
        *(on.does("POST", on.here.url("/answer", **each)) for each in wanted),
        on.does("HEAD", on.here.url("/answer", body="unseen")),
        on.does("GET", on.here.url("/gzip")),
    ]


@scenario()
def streamed_up(on: Setting) -> object:
    """The second piece of a body is made only after the first has arrived."""
    began = on.here.began.wait

    def pieces() -> Iterator[bytes]:
        yield b"first"
        assert began(10)
        yield b"second"

    async def apieces() -> Any:
        yield b"first"
        assert await anyio.to_thread.run_sync(began, 10)
        yield b"second"

    body = apieces() if isinstance(on.client, AsyncStack) else pieces()
    name = "body" if isinstance(on.client, Urllib3) else "content" if isinstance(on.client, HTTPX) else "data"
    return on.does("POST", on.here.url(), **{name: body})


@scenario()
def streamed_down(on: Setting) -> object:
    """The first piece is handed over before the second is sent, and the connection is used again."""
    first: list[bytes] = []

    def arrived(piece: bytes) -> None:
        first.append(piece)
        on.here.go_on.set()

    body = streamed(on.client, on.here.url("/drip", size=15_000), arrived)
    return len(first[0]), len(body), [on.does("POST", on.here.url()) for _ in range(2)]


def streamed(client: Any, url: str, arrived: Callable[[bytes], None]) -> bytes:
    """Read a response piece by piece."""
    body = bytearray()

    def take(piece: bytes) -> None:
        if not body:
            arrived(piece)
        body.extend(piece)

    async def aread() -> None:
        if isinstance(client, Aiohttp):
            async with client.client.get(url) as response:
                async for piece in response.content.iter_any():
                    take(piece)
        else:
            async with client.client.stream("GET", url) as response:
                async for piece in response.aiter_bytes():
                    take(piece)

    if isinstance(client, AsyncStack):
        client.run(aread)
    elif isinstance(client, Httpx):
        with client.client.stream("GET", url) as response:
            for piece in response.iter_bytes():
                take(piece)
    elif isinstance(client, Requests):
        with client.client.get(url, stream=True) as response:
            for piece in response.iter_content(None):
                take(piece)
    else:
        response = client.client.request("GET", url, preload_content=False)
        for piece in response.stream():
            take(piece)
        response.release_conn()
    return bytes(body)


@scenario()
def closed_early(on: Setting) -> object:
    """Who leaves a response unread gets a connection for the next call, the same as ever."""
    left_early(on.client, on.here.url("/stream", size=500_000))
    return [on.does("POST", on.here.url()) for _ in range(2)]


def left_early(client: Any, url: str) -> None:
    """Open a response and close it unread."""

    async def aleave() -> None:
        if isinstance(client, Aiohttp):
            response = await client.client.get(url)
            assert len(await response.content.read(10)) == 10
            response.close()
        else:
            async with client.client.stream("GET", url) as response:
                assert response.status_code == 200

    if isinstance(client, AsyncStack):
        client.run(aleave)
    elif isinstance(client, Httpx):
        with client.client.stream("GET", url) as response:
            assert response.status_code == 200
    elif isinstance(client, Requests):
        response = client.client.get(url, stream=True)
        assert len(response.raw.read(10)) == 10
        response.close()
    else:
        response = client.client.request("GET", url, preload_content=False)
        assert len(response.read(10)) == 10
        response.close()
        response.release_conn()


@scenario()
def redirected(on: Setting) -> object:
    """Every kind of redirect, to another origin and back again, with the history of it."""
    home = on.here.url("/echo")
    found = []
    for status in REDIRECTS:
        away = on.there.url("/away", status=status, field=f"Location: {home}")
        start = on.here.url("/start", status=status, field=f"Location: {away}")
        found += [on.does(method, start) for method in ("GET", "POST")]
    return found


@scenario()
def redirected_within(on: Setting) -> object:
    """Relative ones, with a body that goes along."""
    relative = [on.here.url("/start", status=status, field="Location: echo?x") for status in (303, 307)]
    return [on.does("POST", url, **on.client.bodies["json"]()) for url in relative]


@scenario()
def redirects_not_followed(on: Setting) -> object:
    """Whoever asks for the redirect itself gets it."""
    away = on.here.url("/start", status=302, field=f"Location: {on.there.url()}")
    option = "redirect" if isinstance(on.client, Urllib3) else "allow_redirects"
    if isinstance(on.client, HTTPX):
        option = "follow_redirects"
    return [on.does(method, away, **{option: False}) for method in ("GET", "POST")]


@scenario()
def redirected_for_ever(on: Setting) -> object:
    """Too many redirects are the library's error, after as many as ever."""
    return on.does("POST", on.here.url("/start", status=307, field="Location: "), **on.client.bodies["bytes"]())


@scenario(Requests, Httpx, HttpxAsyncio, HttpxTrio, Httpx2, Aiohttp)
def cookies(on: Setting) -> object:
    """The jar takes them from every hop, sends them where they belong, and forgets them."""
    set_one = on.here.url("/a", field=["Set-Cookie: one=1; Path=/", "Set-Cookie: two=2; Path=/only"])
    redirect = on.here.url(
        "/r", status=302, field=["Set-Cookie: hop=3; Path=/; HttpOnly", f"Location: {on.here.url()}"]
    )
    forget = on.here.url("/f", field="Set-Cookie: one=; Path=/; Max-Age=0")
    return [
        *(on.does("POST", url) for url in (set_one, on.here.url("/only"), redirect, forget, on.here.url())),
        jar(on.client),
    ]


def jar(client: Any) -> object:
    """Return what the client's cookie jar holds."""
    if isinstance(client, Aiohttp):
        return sorted((each.key, each.value, each["domain"], each["path"]) for each in client.client.cookie_jar)
    cookies = client.client.cookies if isinstance(client, Requests) else client.client.cookies.jar
    return sorted((each.name, each.value, each.domain, each.path) for each in cookies)


@scenario()
def calls_that_break(on: Setting) -> object:
    """A POST that meets a reset, silence or garbage: the library's own error, and nothing is sent again."""
    quick: Any = {"timeout": 0.1}
    patient = on.client.options
    if isinstance(on.client, Requests):
        on.client.options = replace(patient, timeout=0.1)
        quick = {}
    elif isinstance(on.client, Aiohttp):
        quick = {"timeout": aiohttp.ClientTimeout(sock_read=0.1)}
    silence = on.does("POST", on.here.url("/silent"), **quick)
    on.client.options = patient
    return [
        silence,
        on.does("POST", on.here.url("/reset")),
        on.does("POST", on.here.url("/garbage")),
        on.does("POST", on.here.url()),
    ]


@scenario(ours=False)
def retries(on: Setting) -> object:
    """What the library sends again by itself, and how often, is its own."""
    outcomes = [
        on.does("GET", on.here.url("/busy", status=503, field="Retry-After: 0")),
        on.does("GET", on.here.url("/reset")),
        on.does("PUT", on.here.url("/reset"), **on.client.bodies["bytes"]()),
    ]
    sent = sum(each.target.startswith("/busy") for each in on.here.seen)
    assert sent == (4 if isinstance(on.client, Urllib3) else 1)
    return outcomes


@scenario(ours=False)
def connections_refused(on: Setting) -> object:
    """Nobody there, and no such name."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    outcomes = [on.client.attempt("GET", f"http://127.0.0.1:{port}/"), on.client.attempt("POST", "http://no.invalid/")]
    return [re.sub(rf"\b{port}\b", "PORT", str(shown(each))) for each in outcomes]


@scenario(ours=False)
def refusals(on: Setting) -> object:
    """Somebody else's 401 is nobody's business."""
    return on.does("POST", on.here.url("/a", status=401, field="WWW-Authenticate: Bearer", body="no"))


@scenario()
def urls_that_are_none(on: Setting) -> object:
    """What cannot be sent fails as ever."""
    urls = ["nonsense", "http://", "ftp://localhost/", "http://localhost:99999999/", "http://[::1/", "http://a b/"]
    return [on.does("GET", url) for url in urls]


@scenario()
def proxied(on: Setting) -> object:
    """A proxy is asked for the same things."""
    urls = (on.here.url(), on.there.url(), on.here.url("/r", status=307, field=f"Location: {on.there.url()}"))
    with type(on.client)(on.client._manager, replace(on.client.options, proxy=on.proxy.url)) as client:
        outcomes = [shown(client.attempt("POST", url, **client.bodies["bytes"]())) for url in urls]
    on.proxy.asked[:] = [each for each in on.proxy.asked if not each.endswith("/api/auth/token")]
    return outcomes


# --- of one library each ------------------------------------------------------------------------------


@scenario(Urllib3)
def urllib3_options(on: Setting) -> object:
    """Whatever may be said of a single request."""
    start = on.here.url("/start", status=302, field=f"Location: {on.there.url()}")
    chunks = [b"one", b"two"]
    return [
        on.does("GET", start, redirect=False, retries=False),
        on.does("GET", start, retries=False),
        on.does("GET", start, retries=0),
        on.does("GET", start, retries=urllib3.Retry(redirect=0, raise_on_redirect=False)),
        on.does("POST", on.here.url(), retries=urllib3.Retry(2), body=io.BytesIO(BYTES)),
        on.does("GET", on.here.url("/gzip"), decode_content=False),
        on.does("POST", on.here.url(), body=iter(chunks), chunked=True),
        on.does("POST", on.here.url(), body=chunks),
        on.does("POST", on.here.url(), body=b"x" * 40_000, chunked=True, headers={"X-A": "1"}),
        on.does("POST", on.here.url(), body=io.BytesIO(BYTES), body_pos=0),
        on.does("POST", on.here.url(), timeout=urllib3.Timeout(connect=5, read=5)),
        on.does("POST", on.here.url("/silent"), timeout=urllib3.Timeout(read=0.05), retries=False),
        on.does("POST", on.here.url("/reset"), retries=False),
        on.does("POST", on.here.url("/reset"), retries=0),
        on.does("GET", on.here.url("/a", status=500), retries=urllib3.Retry(0, status_forcelist=[500])),
        on.does("POST", on.here.url(), headers=urllib3.HTTPHeaderDict([("X-Twice", "1"), ("x-twice", "2")])),
        on.does("POST", on.here.url(), headers={b"X-Bytes": b"1"}),
    ]


@scenario(Urllib3)
def urllib3_retries_elsewhere(on: Setting) -> object:
    """Where a redirect has led to somebody else's server, urllib3's own retries are what counts."""
    away = on.there.url("/busy", status=503, field="Retry-After: 0")
    outcome = on.does("GET", on.here.url("/start", status=302, field=f"Location: {away}"))
    assert [each.method for each in on.there.seen] == ["GET"] * 3  # the redirect was one of four
    return outcome


@scenario(Urllib3)
def urllib3_responses(on: Setting) -> object:
    """Reading by hand, and giving the connection back or not."""
    pools = on.client.client
    seen = []
    for kw in ({"release_conn": False}, {"release_conn": True}, {"decode_content": False}, {}):
        response = pools.request("GET", on.here.url("/gzip"), preload_content=False, **kw)
        seen += [response.tell(), response.read(5), response.closed, response.connection is None, response.data]
        response.drain_conn()
        response.release_conn()
        seen += [response.closed, response.connection is None, response.read(), shown(response)]
    pool = pools.connection_from_url(on.here.base)
    seen += [pool.num_connections, pool.pool.qsize(), pools.pools.keys()]
    return [*seen, shown(pool.urlopen("POST", "/echo", body=b"x")), shown(pool.request("GET", "/gzip"))]


@scenario(Urllib3)
def urllib3_custom_classes(on: Setting) -> object:
    """Pools and connections of the caller's own go on being used."""
    made: list[str] = []

    class Connection(urllib3.connection.HTTPConnection):
        def connect(self) -> None:
            made.append("connected")
            super().connect()

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = Connection

        def urlopen(self, method: str, url: str, *args: Any, **kw: Any) -> Any:
            made.append(f"{method} {url}")
            return super().urlopen(method, url, *args, **kw)

    pools = urllib3.PoolManager(retries=urllib3.Retry(1), headers={"X-Default": "1"}, num_pools=1)
    pools.pool_classes_by_scheme = {"http": Pool}
    on.attached(pools)
    with pools:
        replies = [shown(pools.request("POST", url, body=b"x")) for url in (on.here.url(), on.there.url())]
        return replies, [each for each in made if "token" not in each]


@scenario(Requests)
def requests_options(on: Setting) -> object:
    """Whatever may be said of a single request."""
    session = on.client.client
    on.client.options = replace(on.client.options, timeout=5)
    hooked: list[object] = []

    def hook(response: Any, *args: Any, **kw: Any) -> None:
        hooked.append((shown(response), args, sorted(kw)))

    def sign(request: Any) -> Any:
        request.headers["X-Signed"] = "1"
        return request

    session.hooks["response"].append(hook)
    session.params = {"always": "1"}
    start = on.here.url("/start", status=302, field=f"Location: {on.here.url()}")
    silent = on.here.url("/silent")
    replies = [
        on.does("GET", on.here.url(), params={"a": ["1", "2"], "b": "ñ"}, hooks={"response": [hook]}),
        on.does("POST", on.here.url(), auth=sign, data=BYTES),
        on.does("GET", start, allow_redirects=False),
        on.does("HEAD", start),
        on.does("GET", on.here.url(), verify=False, cert=None, stream=True),
        on.does("GET", on.here.url(), proxies={"http": on.proxy.url}),
    ]
    on.proxy.asked[:] = [each for each in on.proxy.asked if not each.endswith("/api/auth/token")]
    for timeout in ((5, 0.05), urllib3.Timeout(read=0.05)):
        with pytest.raises(requests.ReadTimeout) as caught:
            session.post(silent, timeout=timeout)
        assert on.here.silences.acquire(timeout=10)
        replies += [shown(caught.value), asked(caught.value.request)]
    return replies, hooked


@scenario(Requests)
def requests_by_hand(on: Setting) -> object:
    """Prepared requests, lines, the raw response, the next hop, and raise_for_status()."""
    session = on.client.client
    prepared = session.prepare_request(requests.Request("POST", on.here.url(), json={"a": 1}))
    seen = [shown(session.send(prepared)), shown(session.send(prepared)), asked(prepared)]
    with session.get(on.here.url("/a", body="one\ntwo\n"), stream=True) as response:
        seen += [list(response.iter_lines()), response.raw.closed, response.raw.connection is None]
    with session.get(on.here.url("/gzip"), stream=True) as response:
        seen += [len(response.raw.read()), response.raw.read(decode_content=True)]
    first = session.get(on.here.url("/s", status=307, field=f"Location: {on.there.url()}"), allow_redirects=False)
    seen += [asked(first.next), shown(session.send(first.next))]
    for status in (404, 599):
        with pytest.raises(requests.HTTPError) as caught:
            session.post(on.here.url("/a", status=status)).raise_for_status()
        seen += [shown(caught.value), shown(caught.value.response), asked(caught.value.request)]
    return seen


@scenario(Requests)
def requests_adapters(on: Setting) -> object:
    """Adapters of the caller's own, with methods and fields of their own, at prefixes of their own."""
    told: list[object] = []

    class Mine(HTTPAdapter):
        __attrs__ = [*HTTPAdapter.__attrs__, "mine"]  # noqa: RUF012 - as requests has it

        def __init__(self, mine: str, **kw: Any) -> None:
            self.mine = mine
            super().__init__(**kw)

        def add_headers(self, request: Any, **kw: Any) -> None:
            request.headers["X-Mine"] = self.mine

        def send(self, request: Any, *args: Any, **kw: Any) -> Any:
            told.append((request.url, args, sorted(kw)))
            return super().send(request, *args, **kw)

        def build_response(self, req: Any, resp: Any) -> Any:
            response = super().build_response(req, resp)
            response.headers["X-Built"] = self.mine
            return response

    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", Mine("a", pool_maxsize=1, pool_block=True))
        session.mount(on.there.base, Mine("b", max_retries=urllib3.Retry(1, status_forcelist=[503])))
        on.attached(session)
        busy = on.there.url("/a", status=503)
        seen = [shown(session.post(url, data=BYTES)) for url in (on.here.url(), on.there.url())]
        with pytest.raises(requests.exceptions.RetryError) as caught:
            session.get(busy)
        prefixes = [(prefix, getattr(each, "mine", None)) for prefix, each in session.adapters.items()]
        return seen, shown(caught.value), told, prefixes


@scenario(Requests, ours=False)
def requests_auth(on: Setting) -> object:
    """Passwords, of the session, of the call and in the URL; a redirect takes none along."""
    session = on.client.client
    session.auth = HTTPBasicAuth("u", "p")
    start = on.here.url("/s", status=302, field=f"Location: {on.there.url()}")
    inside = on.here.url().replace("//", "//me:secret@")
    return [on.does("GET", on.here.url()), on.does("GET", start, auth=("a", "b")), on.does("GET", inside)]


def family(client: Any) -> Any:
    """Return the library of one of httpx's stacks."""
    return httpx2 if isinstance(client, Httpx2) else httpx


@scenario(*HTTPX)
def httpx_options(on: Setting) -> object:
    """Timeouts, extensions, and the target of a request."""
    hx, names = family(on.client), list[str]()

    def heard(name: str, info: Any) -> None:
        names.append(name)

    async def aheard(name: str, info: Any) -> None:
        names.append(name)

    trace = aheard if isinstance(on.client, AsyncStack) else heard
    replies = [
        on.does("POST", on.here.url(), content=BYTES, extensions={"trace": trace}),
        on.does("POST", on.here.url(), extensions={"target": b"/echo?other", "trace": trace}),
        on.does("POST", on.here.url("/silent"), timeout=hx.Timeout(5, read=0.05)),
        on.does("POST", on.here.url("/silent"), extensions={"timeout": {"read": 0.05}}),
        on.does("POST", on.here.url(), timeout=None),
        on.does("POST", on.here.url(), content=iter([b"a", b"b"]) if isinstance(on.client, Httpx) else b""),
        on.does("POST", on.here.url(), headers=[("X-Twice", "1"), ("x-twice", "2")], cookies=None),
    ]
    return replies, names


@scenario(*HTTPX)
def httpx_hooks(on: Setting) -> object:
    """Event hooks see each request and each response as they would, and so does raise_for_status()."""
    hx, heard = family(on.client), list[object]()

    def request(request: Any) -> None:
        heard.append((asked(request), sorted(request.extensions)))

    def response(response: Any) -> None:
        heard.append(
            (response.status_code, asked(response.request), response.is_closed, response.has_redirect_location)
        )

    async def arequest(each: Any) -> None:
        request(each)

    async def aresponse(each: Any) -> None:
        response(each)

    waits = isinstance(on.client, AsyncStack)
    on.client.client.event_hooks = (
        {"request": [arequest], "response": [aresponse]} if waits else {"request": [request], "response": [response]}
    )
    start = on.here.url("/start", status=307, field=f"Location: {on.there.url('/a', status=404)}")
    outcome = on.client.attempt("POST", start, content=BYTES)
    with pytest.raises(hx.HTTPStatusError) as caught:
        outcome.raw.raise_for_status()
    return shown(outcome), heard, shown(caught.value), asked(caught.value.request), outcome.raw.elapsed.days


@scenario(*HTTPX)
def httpx_by_hand(on: Setting) -> object:
    """Requests built and sent by hand, streams left open, raw bytes, and what a response knows of its stream."""
    client = on.client.client
    url, packed = on.here.url(), on.here.url("/gzip")

    def look(response: Any) -> object:
        stream = response.extensions["network_stream"]
        return shown(response), sorted(response.extensions), stream.get_extra_info("server_addr"), response.is_closed

    async def ajob() -> object:
        request = client.build_request("POST", url, json={"a": 1})
        first = await client.send(request, stream=True)
        seen = [look(first), first.num_bytes_downloaded, await first.aread(), asked(first.request)]
        assert first.request is request
        async with client.stream("GET", packed) as response:
            return [*seen, b"".join([each async for each in response.aiter_raw()]), response.is_stream_consumed]

    def job() -> object:
        request = client.build_request("POST", url, json={"a": 1})
        first = client.send(request, stream=True)
        seen = [look(first), first.num_bytes_downloaded, first.read(), asked(first.request)]
        assert first.request is request
        with client.stream("GET", packed) as response:
            return [*seen, b"".join(response.iter_raw()), response.is_stream_consumed]

    return on.client.run(ajob) if isinstance(on.client, AsyncStack) else job()


@scenario(*HTTPX)
def httpx_transports(on: Setting) -> object:
    """Transports of the caller's own and mounts stay in force, and are entered and closed as often as ever."""
    hx, told = family(on.client), list[str]()
    waits = isinstance(on.client, AsyncStack)

    class Mine(hx.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            told.append(str(request.url))
            return super().handle_request(request)

        def close(self) -> None:
            told.append("closed")
            super().close()

        def __enter__(self) -> Any:
            told.append("entered")
            return super().__enter__()

        def __exit__(self, *exc: Any) -> None:
            told.append("left")
            super().__exit__(*exc)

    class AsyncMine(hx.AsyncHTTPTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            told.append(str(request.url))
            return await super().handle_async_request(request)

        async def aclose(self) -> None:
            told.append("closed")
            await super().aclose()

        async def __aenter__(self) -> Any:
            told.append("entered")
            return await super().__aenter__()

        async def __aexit__(self, *exc: Any) -> None:
            told.append("left")
            await super().__aexit__(*exc)

    def made(up: str) -> hx.Response:  # type: ignore[name-defined]
        return hx.Response(200, text=up)

    mounts = {
        on.there.base: AsyncMine(verify=TLS) if waits else Mine(verify=TLS),
        "http://made.up": hx.MockTransport(lambda request: made(f"{request.url} {len(request.headers)}")),
        "http://nothing": None,
    }
    urls = [on.here.url(), on.there.url(), "http://made.up/x"]

    async def ajob() -> list[object]:
        async with on.attached(
            hx.AsyncClient(transport=AsyncMine(verify=TLS), verify=TLS, mounts=mounts, trust_env=False)
        ) as client:
            return [(await client.post(url, content=BYTES)).text for url in urls]

    def job() -> list[object]:
        with on.attached(hx.Client(transport=Mine(verify=TLS), verify=TLS, mounts=mounts, trust_env=False)) as client:
            return [client.post(url, content=BYTES).text for url in urls]

    replies = on.client.run(ajob) if waits else job()
    return replies, [each for each in told if not each.endswith("/api/auth/token")]


@scenario(*HTTPX, ours=False)
def httpx_auth(on: Setting) -> object:
    """Passwords, and schemes with a challenge of their own."""
    hx = family(on.client)
    challenge = 'WWW-Authenticate: Digest realm="r", nonce="n"'
    inside = on.here.url().replace("//", "//me:secret@")
    first = on.does("POST", on.here.url("/a", status=401, field=challenge), auth=hx.BasicAuth("u", "p"))
    digest = on.client.attempt("POST", on.here.url("/a", status=401, field=challenge), auth=hx.DigestAuth("u", "p"))
    # Its answer holds a random number.
    on.here.seen[-1] = replace(on.here.seen[-1], fields=())
    return first, on.does("GET", inside), [each.status_code for each in (digest.raw, *digest.raw.history)]


@scenario(Aiohttp)
def aiohttp_options(on: Setting) -> object:
    """Whatever may be said of a single request."""
    start = on.here.url("/start", status=302, field=f"Location: {on.there.url()}")
    silent = on.here.url("/silent")
    return [
        on.does("GET", on.here.url(), params={"a": "1", "b": "ñ"}, cookies={"c": "1"}),
        on.does("POST", on.here.url(), data=BYTES, compress="deflate"),
        on.does("POST", on.here.url(), data=BYTES, chunked=True),
        on.does("POST", on.here.url(), data=BYTES, expect100=True),
        on.does("POST", on.here.url(), data=BYTES, skip_auto_headers=["User-Agent", "Content-Type"]),
        on.does("GET", on.here.url("/gzip"), auto_decompress=False, read_bufsize=64),
        on.does("GET", start, max_redirects=1),
        on.does("GET", start, max_redirects=2, raise_for_status=True),
        on.does("POST", silent, timeout=aiohttp.ClientTimeout(sock_read=0.05)),
        on.does("POST", silent, timeout=aiohttp.ClientTimeout(total=0.3)),
        on.does("POST", on.here.url(), read_until_eof=False, ssl=False),
        *(on.does("POST", on.here.url("/a", status=404), raise_for_status=wanted) for wanted in (True, False)),
    ]


@scenario(Aiohttp)
def aiohttp_sessions(on: Setting) -> object:
    """A session of the caller's own: raise_for_status, base URL, defaults, connector, response class, traces."""
    heard: list[object] = []
    trace = aiohttp.TraceConfig()

    def listen(name: str) -> None:
        async def called(session: Any, context: Any, params: Any) -> None:
            known = ((each, getattr(params, each)) for each in params.__slots__ or params.__attrs_attrs__)
            fields: dict[str, object] = {key: value for key, value in known if isinstance(value, (str, bytes, int))}
            if isinstance(getattr(params, "headers", None), Iterable):
                fields["headers"] = [each for each in params.headers.items() if each[0].lower() not in OURS]
            heard.append((name, fields))

        getattr(trace, name).append(called)

    for name in (
        "on_request_start", "on_request_end", "on_request_exception", "on_request_redirect",
        "on_request_headers_sent", "on_request_chunk_sent", "on_response_chunk_received",
        "on_connection_reuseconn", "on_dns_resolvehost_start",
    ):  # fmt: skip
        listen(name)

    class Response(aiohttp.ClientResponse):
        async def shout(self) -> bytes:
            return (await self.read()).upper()

    async def explain(response: aiohttp.ClientResponse) -> None:
        if response.status == 418:
            raise LookupError("a teapot")

    class Resolver(aiohttp.ThreadedResolver):
        async def resolve(self, host: str, *args: Any, **kw: Any) -> Any:
            heard.append(("resolve", host))
            return await super().resolve(host, *args, **kw)

    async def job() -> list[object]:
        connector = aiohttp.TCPConnector(limit=1, resolver=Resolver(), use_dns_cache=False)
        async with aiohttp.ClientSession(
            on.here.base,
            connector=connector,
            headers={"X-Default": "1"},
            cookies={"c": "1"},
            raise_for_status=True,
            response_class=Response,
            trace_configs=[trace],
            skip_auto_headers=["User-Agent"],
        ) as session:
            on.attached(session)
            (await session.post("/warm-up")).release()
            heard.clear()
            seen: list[object] = []
            async with session.post("/echo", json={"a": "b"}) as response:
                seen += [shown(response), await cast(Any, response).shout()]
            away = on.here.url("/s", status=307, field=f"Location: {on.there.url()}").removeprefix(on.here.base)
            async with session.get(away) as response:
                seen += [shown(response), await cast(Any, response).shout()]
            for query, kw in (("404", {}), ("418", {"raise_for_status": explain})):
                try:
                    await session.post(f"/a?status={query}", **kw)
                except (aiohttp.ClientResponseError, LookupError) as error:
                    seen += [shown(error), repr(error)]
            with suppress(aiohttp.ServerDisconnectedError):
                await session.post("/reset")
            return seen

    return on.client.run(job), heard


@scenario(Aiohttp)
def aiohttp_middlewares(on: Setting) -> object:
    """The session's other middlewares stay in force, in their order."""
    told: list[str] = []

    def middleware(name: str) -> Any:
        async def act(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
            told.append(f"{name} {request.method} {request.url}")
            request.headers[f"X-{name}"] = "1"
            response: aiohttp.ClientResponse = await handler(request)
            told.append(f"{name} {response.status}")
            return response

        return act

    async def job() -> list[object]:
        async with aiohttp.ClientSession(middlewares=(middleware("one"), middleware("two"))) as session:
            on.attached(session)
            away = on.here.url("/s", status=307, field=f"Location: {on.there.url()}")
            return [shown(await session.post(url)) for url in (on.here.url(), away)]

    return on.client.run(job), told


@scenario(Aiohttp, ours=False)
def aiohttp_auth(on: Setting) -> object:
    """Passwords, of the call and in the URL."""
    inside = on.here.url().replace("//", "//me:secret@")
    return [on.does("GET", on.here.url(), auth=aiohttp.BasicAuth("u", "p")), on.does("GET", inside)]


# --- the comparison, again ----------------------------------------------------------------------------

CASES = [pytest.param(kind, each, id=f"{each.play.__name__}-{kind.name}") for each in SCENARIOS for kind in each.kinds]


@pytest.mark.filterwarnings("ignore:BasicAuth:DeprecationWarning")  # aiohttp 4 will take headers only
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_rule_21_nothing_changes(kind: type[Stack], case: Scenario, origins: tuple[Origin, Origin, Proxy]) -> None:
    """To another origin everything is as without the adapter, and to 88Pay's but for the two fields."""
    here, _, _ = origins
    expected = played(kind, case.play, None, origins)
    outcome, seen, elsewhere, proxied = expected
    assert not any(each.field("x-session-id") for each in (*seen, *elsewhere))

    bystander = manager_of(None)
    assert played(kind, case.play, bystander, origins) == expected
    assert bystander.stats().token_requests == here.token_requests == 0

    if case.ours:
        again = played(kind, case.play, manager_of(here), origins)
        assert again[0] == outcome
        assert [without_ours(each) for each in again[1]] == seen
        assert again[2:] == (elsewhere, proxied)
        assert here.token_requests == 1


def test_rule_21_a_server_that_is_gone_is_the_librarys_own_error(kind: type[Stack]) -> None:
    """Of 88Pay's, too; only urllib3 would have wrapped it in one that counts its retries."""

    def raised(manager_for: Callable[[Origin], TokenManager | None]) -> list[type[Exception]]:
        with ExitStack() as stack:
            origin = stack.enter_context(Origin())
            client = stack.enter_context(kind(manager_for(origin), Options(timeout=10, tls=TLS)))
            assert isinstance(client.attempt("POST", origin.url(), headers={"Connection": "close"}), Reply)
            origin.__exit__(None, None, None)
            error = client.attempt("POST", origin.url())
            assert isinstance(error, Exception)
            reason = getattr(error, "reason", error)
            return [type(reason if kind is Urllib3 else error)]

    expected = raised(lambda origin: None)
    assert raised(lambda origin: manager_of(None)) == expected
    assert raised(lambda origin: manager_of(origin, RetryPolicy.none())) == expected


@pytest.mark.parametrize("kind", HTTPX, ids=lambda kind: kind.name)
def test_rule_21_http2_stays_http2(kind: type[Stack]) -> None:
    """The same fields in the same order, the same bodies, and several calls at once on one connection."""
    authority = trustme.CA()
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    authority.configure_trust(trusting)
    serving.set_alpn_protocols(["h2"])
    clock = ManualClock()
    service = Service(token_limits=(), call_limits=())

    def play(server: Http2Server, manager: TokenManager | None) -> tuple[list[object], list[object]]:
        server.received.clear()
        with kind(manager, Options(tls=trusting, http2=True, connections=1)) as client:
            bodies = [make() for name, make in client.bodies.items() if name != "multipart file"]
            outcomes = [client.attempt("POST", server.url + "/x", **body) for body in bodies]
            if isinstance(client, AsyncStack):  # a crowd of threads may break the libraries' one connection by itself
                outcomes += client.gather(5, "GET", server.url + "/y?a=1")
        for outcome in outcomes:
            assert isinstance(outcome, Reply), outcome
            assert outcome.raw.http_version == "HTTP/2"
        received: list[object] = []
        for each in server.received:
            if each.route == TOKEN_PATH:
                continue
            assert all((field in each.headers) == (manager is not None) for field in OURS)
            fields = [item for item in each.headers.items() if item[0] not in OURS]
            received.append(re.sub("[0-9a-f]{32}", "BOUNDARY", repr((each.method, each.path, fields, each.body))))
        return [(outcome.status, outcome.body) for outcome in outcomes if isinstance(outcome, Reply)], received

    with Http2Server(service, clock, serving) as server:
        expected = play(server, None)
        credentials = Credentials(service.api_key, service.merchant_id)
        assert play(server, TokenManager(credentials, base_url=server.url, clock=clock)) == expected
    close_files()


def test_rule_21_websockets_go_on_working() -> None:
    """Those of another origin as ever, and those of 88Pay's with the two fields on the request that opens them."""
    service, clock = Service(token_limits=(), call_limits=()), ManualClock()
    opened: list[list[tuple[str, str]]] = []

    async def token(request: web.Request) -> web.Response:
        answer = service.handle(Received("POST", TOKEN_PATH, {k.lower(): v for k, v in request.headers.items()}), 0, 0)
        return web.Response(status=answer.status, body=answer.body)

    async def serve(request: web.Request) -> web.WebSocketResponse:
        opened.append([item for item in request.headers.items() if item[0] != "Sec-WebSocket-Key"])
        socket = web.WebSocketResponse(protocols=("b",))
        await socket.prepare(request)
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data.upper())
            elif message.data:
                await socket.send_bytes(message.data)
            else:
                await socket.close(code=4000, message=b"enough")
        return socket

    async def talk(session: aiohttp.ClientSession, url: str) -> list[object]:
        async with session.ws_connect(url, protocols=("a", "b"), headers={"X-Mine": "1"}, max_msg_size=0) as socket:
            await socket.send_str("text")
            await socket.send_bytes(b"x" * 100_000)
            heard: list[object] = [await socket.receive_str(), len(await socket.receive_bytes())]
            await socket.send_bytes(b"")
            last = await socket.receive()
            return [*heard, last.type, last.data, socket.protocol, socket.close_code, socket.closed]

    async def job() -> None:
        app = web.Application()
        app.add_routes([web.post(TOKEN_PATH, token), web.get("/ws", serve)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        here = f"127.0.0.1:{runner.addresses[0][1]}"
        manager = TokenManager(
            Credentials(service.api_key, service.merchant_id), base_url=f"http://{here}", clock=clock
        )
        try:
            seen = []
            for attached, scheme in ((None, "http"), (manager_of(None), "http"), (manager, "ws"), (manager, "http")):
                async with aiohttp.ClientSession() as session:
                    if attached is not None:
                        pay88_adapters.aiohttp.attach(session, attached)
                    seen.append(await talk(session, f"{scheme}://{here}/ws"))
            assert seen[0] == ["TEXT", 100_000, aiohttp.WSMsgType.CLOSE, 4000, "b", 4000, True]
            assert seen == [seen[0]] * 4
        finally:
            await runner.cleanup()

    asyncio.run(job())
    *others, ours = opened
    assert others == [others[0]] * 3
    assert [item for item in ours if item[0].lower() not in OURS] == others[0]
    assert {item[0].lower() for item in ours} - {item[0].lower() for item in others[0]} == set(OURS)


# --- copies of sessions -------------------------------------------------------------------------------


class Branded(HTTPAdapter):
    """An adapter of a user's own."""

    __attrs__ = [*HTTPAdapter.__attrs__, "brand"]  # noqa: RUF012 - as requests has it

    def __init__(self, brand: str, **kw: Any) -> None:
        self.brand = brand
        super().__init__(**kw)

    def add_headers(self, request: Any, **kw: Any) -> None:
        """Say whose it is."""
        request.headers["X-Brand"] = self.brand


class BrandedPay88(Pay88Adapter):
    """One of ours that a user derived from."""

    __attrs__ = [*Pay88Adapter.__attrs__, "brand"]  # noqa: RUF012 - as requests has it

    def __init__(self, brand: str, manager: TokenManager, **kw: Any) -> None:
        self.brand = brand
        super().__init__(manager, **kw)

    add_headers = Branded.add_headers


def session_with(how: str, manager: TokenManager) -> requests.Session:
    """Return a session that is managed in one of the ways there are."""
    session = requests.Session()
    session.trust_env = False
    session.headers["X-Session"] = "1"
    session.cookies.set("c", "1")
    if how == "attached":
        return pay88_adapters.requests.attach(session, manager)
    if how == "attached, with an adapter of its own":
        session.mount("http://", Branded("mine", pool_maxsize=3))
        return pay88_adapters.requests.attach(session, manager)
    if how == "mounted":
        session.mount(manager.base_url, Pay88Adapter(manager, pool_maxsize=3, max_retries=urllib3.Retry(2)))
    else:
        session.mount("http://", BrandedPay88("mine", manager, pool_maxsize=3))
    return session


WAYS = ("attached", "attached, with an adapter of its own", "mounted", "mounted, with a class of its own")
COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "pickle twice, and oldest": lambda thing: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(thing, 0)), 2)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("copied", COPIES)
def test_rule_21_a_copy_of_a_session_is_managed_too(
    way: str, copied: str, origins: tuple[Origin, Origin, Proxy]
) -> None:
    """It has the same adapters with the same settings, and the same manager: no second token is asked for."""
    here, there, _ = origins
    manager = manager_of(here)
    with session_with(way, manager) as session, COPIES[copied](session) as other:
        assert session.adapters.keys() == other.adapters.keys()
        adapters: Any = zip(session.adapters.values(), other.adapters.values(), strict=True)
        for adapter, twin in adapters:
            assert type(adapter) is type(twin)
            named = {each: str(getattr(adapter, each)) for each in adapter.__attrs__}
            assert named == {each: str(getattr(twin, each)) for each in adapter.__attrs__}
        for client in (session, other):
            for url in (here.url(), there.url()):
                assert client.post(url, data=BYTES).status_code == 200
    before, after = here.seen
    assert without_ours(before).fields == without_ours(after).fields
    assert [each.fields for each in there.seen] == [there.seen[0].fields] * 2
    assert not any(there.seen[0].field(name) for name in OURS)
    assert here.token_requests == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("copied", COPIES)
def test_rule_21_a_copy_of_an_adapter_is_managed_too(
    way: str, copied: str, origins: tuple[Origin, Origin, Proxy]
) -> None:
    """The adapter alone can be copied as well, and mounted elsewhere."""
    here, _, proxy = origins
    with session_with(way, manager_of(here)) as session, requests.Session() as other:
        original = session.get_adapter(here.base)
        twin = COPIES[copied](original)
        assert type(twin) is type(original)
        assert twin is not original
        other.mount("http://", twin)
        for proxies in (None, {"http": proxy.url}):
            assert other.post(here.url(), proxies=proxies).status_code == 200
    assert all(without_ours(each).field("x-brand") == (["mine"] if "own" in way else []) for each in here.seen)
    assert len(proxy.asked) == 1


ELSEWHERE = """
import pickle, sys
from pay88_adapters import ConfigurationError, Credentials, TokenManager
from pay88_adapters.requests import attach
import requests

base, other, key, merchant = sys.argv[1:]
session = pickle.load(sys.stdin.buffer)
session = pickle.loads(pickle.dumps(session))
for _ in range(2):
    try:
        session.post(base + "/echo")
    except ConfigurationError as error:
        assert isinstance(error, requests.RequestException)
        print("ConfigurationError")
print(session.post(other + "/echo", data=b"x").text)
attach(session, TokenManager(Credentials(key, merchant), base_url=base))
print(session.post(base + "/echo", data=b"y").text)
"""


@pytest.mark.parametrize("way", WAYS)
def test_rule_21_a_session_that_was_pickled_for_another_process(
    way: str, origins: tuple[Origin, Origin, Proxy]
) -> None:
    """There is no manager there: calls to 88Pay say so, all others work, and one can be attached."""
    here, there, _ = origins
    with session_with(way, manager_of(here)) as session:
        pickled = pickle.dumps(session)
    assert here.service.api_key.encode() not in pickled
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, here.base, there.base, here.service.api_key, here.service.merchant_id],
        input=pickled,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])},
        check=False,
    )
    assert done.stdout.decode().split() == ["ConfigurationError", "ConfigurationError", "x", "y"], done.stderr
    [called] = here.seen
    assert without_ours(called).pieces == (b"y",)
