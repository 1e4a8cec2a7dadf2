"""Rule 15: no key, token or session id is shown by anything."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import aiohttp
import httpx
import pytest
import trio
import urllib3

import pay88_adapters.aiohttp
import pay88_adapters.httpx
import pay88_adapters.urllib3
from pay88_adapters import (
    ConfigurationError,
    Credentials,
    Pay88Error,
    RetryPolicy,
    Token,
    TokenEndpointUnavailable,
    TokenManager,
    TokenPolicy,
)
from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.wire import TokenResponse, parse_token_response, token_request
from pay88_adapters.testing import (
    Body,
    Emulator,
    Garbage,
    HugeBody,
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
from support.authority import new_authority
from support.http2 import Http2Server
from support.leaks import RootLogCapture, error_texts, leaked, outcome_texts, shown
from support.proxies import Proxy
from support.security import (
    Scene,
    _budget_exhausted,
    _closed,
    _connection_refused,
    _token_request_times_out,
    _wrong_key,
    ok,
)
from support.stacks import (
    Aiohttp,
    AsyncioStack,
    PlainResponse,
    Stack,
    Urllib3,
)
from support.worlds import World


def _success(scene: Scene) -> None:
    scene.call(3)
    assert all(map(ok, scene.outcomes))
    token = scene.world.manager.get_token()
    scene.things += [token, token.headers(), token.attached, token.encoded()]
    scene.things += [asdict(token), asdict(scene.world.credentials)]


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


def _replay_of_a_long_401(scene: Scene) -> None:
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


def _rejected_permanently(scene: Scene) -> None:
    scene.world.emulator.service.refuse_where = lambda received, now: True
    scene.call(3)


def _unreplayable(scene: Scene) -> None:
    scene.call()
    scene.world.emulator.service.refuse_current_tokens()
    [kind] = [name for name in scene.client.bodies if name.endswith("generator")]
    scene.call(**scene.client.bodies[kind]())
    assert not ok(scene.outcomes[-1])


def _call_refused(scene: Scene) -> None:
    scene.call()
    scene.world.emulator.stop()
    scene.call()
    assert isinstance(scene.outcomes[-1], scene.client.base_error)


def _call_times_out(scene: Scene) -> None:
    scene.call()
    scene.client = scene.world.client(timeout=0.15)
    with scene.world.emulator.hold("call"):
        scene.call()
    assert isinstance(scene.outcomes[-1], Exception)


def _garbage_with_the_request(scene: Scene) -> None:
    scene.world.emulator.faults.add(Garbage(scene.echo() + b"\r\n\r\n"), on="token", times=None)
    scene.call()


def _body_among_the_headers(scene: Scene) -> None:
    """The server, or a proxy, has lost the empty line before the body."""
    message = b"HTTP/1.1 200 OK\r\n{\r\n" + scene.echo() + b"\r\n\r\n"
    scene.world.emulator.faults.add(Garbage(message), on="token", times=None)
    scene.call()
    assert isinstance(scene.outcomes[-1], TokenEndpointUnavailable)


def _retried_by_us(scene: Scene) -> None:
    for fault in (Status(503), ResetAfterRead()):
        with scene.world.emulator.faults.add(fault, on="call", times=None):
            scene.call()
    assert scene.world.emulator.journal.calls == 6


def _retried_by_the_client_library(scene: Scene) -> None:
    kw: dict[str, Any] = {}
    if isinstance(scene.client, Urllib3):
        kw["retries"] = urllib3.Retry(2, status_forcelist=[503], allowed_methods=None)
    else:
        scene.client = scene.world.client(scene.world.new_manager(retry=RetryPolicy.none()))
    for fault in (Status(503), ResetAfterRead()):
        with scene.world.emulator.faults.add(fault, on="call", times=None):
            scene.call(**kw)
    assert scene.world.emulator.journal.calls == (6 if kw else 2)


def _own_bearer_token(scene: Scene) -> None:
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


def _hung_up_on(scene: Scene) -> None:
    scene.call()
    with hanging_up() as url:
        manager = TokenManager(scene.world.credentials, base_url=url, clock=scene.world.clock)
        scene.client = scene.world.client(manager)
        for _ in range(5):
            scene.call(url=f"{url}/api/echo")
            scene.world.clock.advance(100)


def _credentials_provider_raises(scene: Scene) -> None:
    errors = (
        ValueError(f"the vault returned {scene.key} in a wrong format"),
        TimeoutError(scene.key),
        ConfigurationError(f"not a key: {scene.key}"),
        LookupError("no such secret"),
    )
    for error in errors:

        def credentials(error: Exception = error, key: str = scene.key) -> Credentials:
            try:
                raise OSError(key)
            except OSError as cause:
                raise error from cause

        async def async_credentials(provider: Callable[[], Credentials] = credentials) -> Credentials:
            return provider()

        for provider in (credentials, async_credentials):
            scene.client = scene.world.client(scene.world.new_manager(provider))
            scene.call()
            assert isinstance(scene.outcomes[-1], ConfigurationError)


def _credentials_provider_has_the_key_in_a_variable(scene: Scene) -> None:
    def credentials() -> Credentials:
        key = scene.key
        raise LookupError(f"no merchant for a key of {len(key)} characters")

    scene.client = scene.world.client(scene.world.new_manager(credentials))
    scene.call()
    assert isinstance(scene.outcomes[-1], ConfigurationError)
    assert "no merchant for a key of" in str(scene.outcomes[-1].__cause__)


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
            _success, _refresh, _replay, _replay_of_a_long_401, _replay_fails, _rejected_permanently, _unreplayable,
            _wrong_key, _connection_refused, _call_refused, _token_request_times_out, _call_times_out,
            _garbage_with_the_request, _body_among_the_headers,
            _retried_by_us, _retried_by_the_client_library, _own_bearer_token, _redirect_elsewhere, _redirect_home,
            _credentials_provider_raises, _credentials_provider_has_the_key_in_a_variable,
            _through_a_proxy, _through_a_proxy_that_is_gone, _closed, _budget_exhausted, _hung_up_on,
        )
    },
    "rejections that repeat the request": _on_the_token_endpoint(*(Status(code, body=ECHO) for code in (401, 403))),
    "other errors that repeat the request": _on_the_token_endpoint(
        *(Status(code, body=ECHO) for code in (400, 404, 422, 429, 500, 503))
    ),
    "responses that repeat the request": _on_the_token_endpoint(Body(ECHO), Body(ECHO, 201), Body(ECHO, 307)),
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
    with RootLogCapture("pay88-emulator") as overheard:
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
        texts += outcome_texts(outcome)
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
            assert isinstance(outcome, PlainResponse)
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
    """aiohttp's traces see the headers while they are sent; printing those shows nothing."""
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
    """Pickling and copying what holds a secret is rejected, or shows nothing."""
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
                texts = list(error_texts(error))
            assert not leaked(world.emulator.service.secrets(), texts)


def test_rule_15_requests_and_responses_print_nothing() -> None:
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
    assert leaked([secret], error_texts(caught.value))
    assert isinstance(reply, PlainResponse)
    reply.raw.custom = secret
    assert leaked([secret], outcome_texts(reply))


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
    authority = new_authority()
    serving, context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    authority.configure_trust(context)
    serving.set_alpn_protocols(["h2"])
    clock = ManualClock()
    service = Service(api_key=f"sk_test_{secrets.token_hex(16)}", token_limits=(), call_limits=())
    calls: list[dict[str, Any]] = [{"headers": {f"x-filler-{n}": "x" * 1000}} for n in range(20)]
    with Http2Server(service, clock, serving) as server, RootLogCapture(Http2Server.THREAD) as overheard:
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
    """Return the readable text of a compressed block of headers."""
    import hpack

    try:
        return repr(hpack.Decoder().decode(block))
    except hpack.HPACKError:
        return ""
