"""Rule 21 with every client library, over real sockets: a client works with the adapter as without it.

Each scenario runs three times: with a client without a manager, with a manager of another origin attached to it,
and with a manager of this origin. What the server received and what the
caller got must be the same each time, down to the order of the headers and the chunks of the bodies. Only the
last client adds the two headers.
"""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
import urllib3
from aiohttp import web
from requests.adapters import HTTPAdapter

import pay88_adapters.aiohttp
import pay88_adapters.requests
from pay88_adapters import Credentials, RetryPolicy, TokenManager
from pay88_adapters.requests import Pay88Adapter
from pay88_adapters.testing import ManualClock, Request, Service
from pay88_adapters.testing.messages import TOKEN_PATH
from support import dropin_libraries, dropin_scenarios
from support.authority import new_authority
from support.dropin import HTTPX, SCENARIOS, TLS, Scenario, manager_of, played, without_ours
from support.http2 import Http2Server
from support.origins import OURS, Origin
from support.proxies import Proxy
from support.stacks import (
    BYTES,
    AsyncStack,
    Options,
    PlainResponse,
    Stack,
    Urllib3,
    close_files,
)

REGISTERED = (dropin_scenarios, dropin_libraries)  # each module registers its scenarios when it is imported


@pytest.fixture
def origins() -> Iterator[tuple[Origin, Origin, Proxy]]:
    """Two servers and a proxy. They outlive the clients."""
    with Origin() as here, Origin() as there, Proxy() as proxy:
        yield here, there, proxy
    close_files()


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
            assert isinstance(client.attempt("POST", origin.url(), headers={"Connection": "close"}), PlainResponse)
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
    """The same headers in the same order, the same bodies, and several concurrent requests on one connection."""
    authority = new_authority()
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
            assert isinstance(outcome, PlainResponse), outcome
            assert outcome.raw.http_version == "HTTP/2"
        received: list[object] = []
        for each in server.received:
            if each.route == TOKEN_PATH:
                continue
            assert all((field in each.headers) == (manager is not None) for field in OURS)
            fields = [item for item in each.headers.items() if item[0] not in OURS]
            received.append(re.sub("[0-9a-f]{32}", "BOUNDARY", repr((each.method, each.path, fields, each.body))))
        return [(outcome.status, outcome.body) for outcome in outcomes if isinstance(outcome, PlainResponse)], received

    with Http2Server(service, clock, serving) as server:
        expected = play(server, None)
        credentials = Credentials(service.api_key, service.merchant_id)
        assert play(server, TokenManager(credentials, base_url=server.url, clock=clock)) == expected
    close_files()


def test_rule_21_websockets_work_with_the_adapter() -> None:
    """Those of another origin as ever, and those of 88Pay's with the two fields on the request that opens them."""
    service, clock = Service(token_limits=(), call_limits=()), ManualClock()
    opened: list[list[tuple[str, str]]] = []

    async def token(request: web.Request) -> web.Response:
        response = service.handle(Request("POST", TOKEN_PATH, {k.lower(): v for k, v in request.headers.items()}), 0, 0)
        return web.Response(status=response.status, body=response.body)

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
    """It has the same adapters with the same settings, and the same manager: no second token is fetched."""
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
    assert len(proxy.requested) == 1


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
