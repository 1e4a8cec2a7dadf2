"""What clients of several libraries do, for the comparison with and without the adapter."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import aiohttp
import anyio.to_thread

from support.dropin import HTTPX, REDIRECTS, Setting, scenario, shown
from support.stacks import (
    Aiohttp,
    AsyncStack,
    Httpx,
    Httpx2,
    HttpxAsyncio,
    HttpxTrio,
    Requests,
    Urllib3,
)


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
    """Methods of every kind, and paths and queries that a caller might be tempted to tidy up."""
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
        on.here.resume.set()

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
    """A caller that disables redirects gets the redirect."""
    away = on.here.url("/start", status=302, field=f"Location: {on.there.url()}")
    option = "redirect" if isinstance(on.client, Urllib3) else "allow_redirects"
    if isinstance(on.client, HTTPX):
        option = "follow_redirects"
    return [on.does(method, away, **{option: False}) for method in ("GET", "POST")]


@scenario()
def redirect_loop(on: Setting) -> object:
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
def connection_errors(on: Setting) -> object:
    """A POST that meets a reset, a timeout or garbage: the library's own error, and no retry."""
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
    """The library's own retries stay its own."""
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
    """No server, and no such name."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    outcomes = [on.client.attempt("GET", f"http://127.0.0.1:{port}/"), on.client.attempt("POST", "http://no.invalid/")]
    return [re.sub(rf"\b{port}\b", "PORT", str(shown(each))) for each in outcomes]


@scenario(ours=False)
def rejections(on: Setting) -> object:
    """Another client's 401 passes through unchanged."""
    return on.does("POST", on.here.url("/a", status=401, field="WWW-Authenticate: Bearer", body="no"))


@scenario()
def urls_that_are_none(on: Setting) -> object:
    """What cannot be sent fails as ever."""
    urls = ["nonsense", "http://", "ftp://localhost/", "http://localhost:99999999/", "http://[::1/", "http://a b/"]
    return [on.does("GET", url) for url in urls]


@scenario()
def proxied(on: Setting) -> object:
    """A proxy receives the same requests."""
    urls = (on.here.url(), on.there.url(), on.here.url("/r", status=307, field=f"Location: {on.there.url()}"))
    with type(on.client)(on.client._manager, replace(on.client.options, proxy=on.proxy.url)) as client:
        outcomes = [shown(client.attempt("POST", url, **client.bodies["bytes"]())) for url in urls]
    on.proxy.requested[:] = [each for each in on.proxy.requested if not each.endswith("/api/auth/token")]
    return outcomes
