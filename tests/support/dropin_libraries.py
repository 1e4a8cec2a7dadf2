"""What clients of one library do, for the comparison with and without the adapter."""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth

from support.dropin import HTTPX, TLS, Setting, requested, scenario, shown
from support.origins import OURS
from support.stacks import (
    BYTES,
    Aiohttp,
    AsyncStack,
    Httpx,
    Httpx2,
    Requests,
    Urllib3,
)


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
    """Where a redirect has led to another client's server, urllib3's own retries are what counts."""
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
    """Pools and connections of the caller's own continue being used."""
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
        responses = [shown(pools.request("POST", url, body=b"x")) for url in (on.here.url(), on.there.url())]
        return responses, [each for each in made if "token" not in each]


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
    responses = [
        on.does("GET", on.here.url(), params={"a": ["1", "2"], "b": "ñ"}, hooks={"response": [hook]}),
        on.does("POST", on.here.url(), auth=sign, data=BYTES),
        on.does("GET", start, allow_redirects=False),
        on.does("HEAD", start),
        on.does("GET", on.here.url(), verify=False, cert=None, stream=True),
        on.does("GET", on.here.url(), proxies={"http": on.proxy.url}),
    ]
    on.proxy.requested[:] = [each for each in on.proxy.requested if not each.endswith("/api/auth/token")]
    for timeout in ((5, 0.05), urllib3.Timeout(read=0.05)):
        with pytest.raises(requests.ReadTimeout) as caught:
            session.post(silent, timeout=timeout)
        assert on.here.silences.acquire(timeout=10)
        responses += [shown(caught.value), requested(caught.value.request)]
    return responses, hooked


@scenario(Requests)
def requests_by_hand(on: Setting) -> object:
    """Prepared requests, lines, the raw response, the next hop, and raise_for_status()."""
    session = on.client.client
    prepared = session.prepare_request(requests.Request("POST", on.here.url(), json={"a": 1}))
    seen = [shown(session.send(prepared)), shown(session.send(prepared)), requested(prepared)]
    with session.get(on.here.url("/a", body="one\ntwo\n"), stream=True) as response:
        seen += [list(response.iter_lines()), response.raw.closed, response.raw.connection is None]
    with session.get(on.here.url("/gzip"), stream=True) as response:
        seen += [len(response.raw.read()), response.raw.read(decode_content=True)]
    first = session.get(on.here.url("/s", status=307, field=f"Location: {on.there.url()}"), allow_redirects=False)
    seen += [requested(first.next), shown(session.send(first.next))]
    for status in (404, 599):
        with pytest.raises(requests.HTTPError) as caught:
            session.post(on.here.url("/a", status=status)).raise_for_status()
        seen += [shown(caught.value), shown(caught.value.response), requested(caught.value.request)]
    return seen


@scenario(Requests)
def requests_adapters(on: Setting) -> object:
    """Adapters of the caller's own, with methods and fields of their own, at prefixes of their own."""
    reported: list[object] = []

    class Mine(HTTPAdapter):
        __attrs__ = [*HTTPAdapter.__attrs__, "mine"]  # noqa: RUF012 - as requests has it

        def __init__(self, mine: str, **kw: Any) -> None:
            self.mine = mine
            super().__init__(**kw)

        def add_headers(self, request: Any, **kw: Any) -> None:
            request.headers["X-Mine"] = self.mine

        def send(self, request: Any, *args: Any, **kw: Any) -> Any:
            reported.append((request.url, args, sorted(kw)))
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
        return seen, shown(caught.value), reported, prefixes


@scenario(Requests, ours=False)
def requests_auth(on: Setting) -> object:
    """Passwords, of the session, of the call and in the URL; a redirect takes none along."""
    session = on.client.client
    session.auth = HTTPBasicAuth("u", "p")
    start = on.here.url("/s", status=302, field=f"Location: {on.there.url()}")
    inside = on.here.url().replace("//", "//me:secret@")
    return [on.does("GET", on.here.url()), on.does("GET", start, auth=("a", "b")), on.does("GET", inside)]


def family(client: Any) -> Any:
    """Return the library of httpx or httpx2."""
    return httpx2 if isinstance(client, Httpx2) else httpx


@scenario(*HTTPX)
def httpx_options(on: Setting) -> object:
    """Timeouts, extensions, and the target of a request."""
    hx, names = family(on.client), list[str]()

    def received(name: str, info: Any) -> None:
        names.append(name)

    async def aheard(name: str, info: Any) -> None:
        names.append(name)

    trace = aheard if isinstance(on.client, AsyncStack) else received
    responses = [
        on.does("POST", on.here.url(), content=BYTES, extensions={"trace": trace}),
        on.does("POST", on.here.url(), extensions={"target": b"/echo?other", "trace": trace}),
        on.does("POST", on.here.url("/silent"), timeout=hx.Timeout(5, read=0.05)),
        on.does("POST", on.here.url("/silent"), extensions={"timeout": {"read": 0.05}}),
        on.does("POST", on.here.url(), timeout=None),
        on.does("POST", on.here.url(), content=iter([b"a", b"b"]) if isinstance(on.client, Httpx) else b""),
        on.does("POST", on.here.url(), headers=[("X-Twice", "1"), ("x-twice", "2")], cookies=None),
    ]
    return responses, names


@scenario(*HTTPX)
def httpx_hooks(on: Setting) -> object:
    """Event hooks see each request and each response as they would, and so does raise_for_status()."""
    hx, received = family(on.client), list[object]()

    def request(request: Any) -> None:
        received.append((requested(request), sorted(request.extensions)))

    def response(response: Any) -> None:
        received.append(
            (response.status_code, requested(response.request), response.is_closed, response.has_redirect_location)
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
    return shown(outcome), received, shown(caught.value), requested(caught.value.request), outcome.raw.elapsed.days


@scenario(*HTTPX)
def httpx_by_hand(on: Setting) -> object:
    """Requests built and sent without the client's shortcuts, open streams, raw bytes, and the state of a stream."""
    client = on.client.client
    url, packed = on.here.url(), on.here.url("/gzip")

    def look(response: Any) -> object:
        stream = response.extensions["network_stream"]
        return shown(response), sorted(response.extensions), stream.get_extra_info("server_addr"), response.is_closed

    async def ajob() -> object:
        request = client.build_request("POST", url, json={"a": 1})
        first = await client.send(request, stream=True)
        seen = [look(first), first.num_bytes_downloaded, await first.aread(), requested(first.request)]
        assert first.request is request
        async with client.stream("GET", packed) as response:
            return [*seen, b"".join([each async for each in response.aiter_raw()]), response.is_stream_consumed]

    def job() -> object:
        request = client.build_request("POST", url, json={"a": 1})
        first = client.send(request, stream=True)
        seen = [look(first), first.num_bytes_downloaded, first.read(), requested(first.request)]
        assert first.request is request
        with client.stream("GET", packed) as response:
            return [*seen, b"".join(response.iter_raw()), response.is_stream_consumed]

    return on.client.run(ajob) if isinstance(on.client, AsyncStack) else job()


@scenario(*HTTPX)
def httpx_transports(on: Setting) -> object:
    """Transports of the caller's own and mounts stay in force, and are entered and closed as often as ever."""
    hx, reported = family(on.client), list[str]()
    waits = isinstance(on.client, AsyncStack)

    class Mine(hx.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            reported.append(str(request.url))
            return super().handle_request(request)

        def close(self) -> None:
            reported.append("closed")
            super().close()

        def __enter__(self) -> Any:
            reported.append("entered")
            return super().__enter__()

        def __exit__(self, *exc: Any) -> None:
            reported.append("left")
            super().__exit__(*exc)

    class AsyncMine(hx.AsyncHTTPTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            reported.append(str(request.url))
            return await super().handle_async_request(request)

        async def aclose(self) -> None:
            reported.append("closed")
            await super().aclose()

        async def __aenter__(self) -> Any:
            reported.append("entered")
            return await super().__aenter__()

        async def __aexit__(self, *exc: Any) -> None:
            reported.append("left")
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

    responses = on.client.run(ajob) if waits else job()
    return responses, [each for each in reported if not each.endswith("/api/auth/token")]


@scenario(*HTTPX, ours=False)
def httpx_auth(on: Setting) -> object:
    """Passwords, and schemes with a challenge of their own."""
    hx = family(on.client)
    challenge = 'WWW-Authenticate: Digest realm="r", nonce="n"'
    inside = on.here.url().replace("//", "//me:secret@")
    first = on.does("POST", on.here.url("/a", status=401, field=challenge), auth=hx.BasicAuth("u", "p"))
    digest = on.client.attempt("POST", on.here.url("/a", status=401, field=challenge), auth=hx.DigestAuth("u", "p"))
    # Its response holds a random number.
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
    received: list[object] = []
    trace = aiohttp.TraceConfig()

    def listen(name: str) -> None:
        async def called(session: Any, context: Any, params: Any) -> None:
            known = ((each, getattr(params, each)) for each in params.__slots__ or params.__attrs_attrs__)
            fields: dict[str, object] = {key: value for key, value in known if isinstance(value, (str, bytes, int))}
            if isinstance(getattr(params, "headers", None), Iterable):
                fields["headers"] = [each for each in params.headers.items() if each[0].lower() not in OURS]
            received.append((name, fields))

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
            received.append(("resolve", host))
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
            received.clear()
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

    return on.client.run(job), received


@scenario(Aiohttp)
def aiohttp_middlewares(on: Setting) -> object:
    """The session's other middlewares stay in force, in their order."""
    reported: list[str] = []

    def middleware(name: str) -> Any:
        async def act(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
            reported.append(f"{name} {request.method} {request.url}")
            request.headers[f"X-{name}"] = "1"
            response: aiohttp.ClientResponse = await handler(request)
            reported.append(f"{name} {response.status}")
            return response

        return act

    async def job() -> list[object]:
        async with aiohttp.ClientSession(middlewares=(middleware("one"), middleware("two"))) as session:
            on.attached(session)
            away = on.here.url("/s", status=307, field=f"Location: {on.there.url()}")
            return [shown(await session.post(url)) for url in (on.here.url(), away)]

    return on.client.run(job), reported


@scenario(Aiohttp, ours=False)
def aiohttp_auth(on: Setting) -> object:
    """Passwords, of the call and in the URL."""
    inside = on.here.url().replace("//", "//me:secret@")
    return [on.does("GET", on.here.url(), auth=aiohttp.BasicAuth("u", "p")), on.does("GET", inside)]
