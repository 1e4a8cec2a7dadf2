"""Rejected responses: drained or closed within a second, whatever happens in the meantime (rules 7 and 16)."""

from __future__ import annotations

import asyncio
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import aiohttp
import pytest
import urllib3

import pay88_adapters.aiohttp
import pay88_adapters.httpx
import pay88_adapters.httpx2
import pay88_adapters.urllib3
from pay88_adapters import Credentials, CredentialsRejected, Pay88Error, TokenManager, TokenRateLimited
from pay88_adapters.clock import Clock
from pay88_adapters.core.wire import TokenRequest
from pay88_adapters.events import TokenRejected
from pay88_adapters.testing import ManualClock, Service
from support.authority import new_authority
from support.http2 import Http2Server
from support.rejections import Rejections, message, rejected
from support.stacks import (
    Aiohttp,
    Httpx,
    Httpx2,
    HttpxAsyncio,
    HttpxTrio,
    Options,
    PlainResponse,
    Requests,
    Stack,
    Urllib3,
)

Send = Callable[[bytes], None]
HEAD = b"HTTP/1.1 401 Unauthorized\r\n"
CHUNKED, LENGTH = b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: 1000\r\n\r\n"

LONG = 5.0
"""Seconds: more than any wait for a rejected response, also on a busy machine, and less than a client's timeout."""


def drip(head: bytes, drop: bytes) -> Callable[[Send, threading.Event], bool]:
    """Send *drop* again and again."""

    def respond(send: Send, over: threading.Event) -> bool:
        send(HEAD + head)
        while not over.wait(0.05):
            send(drop)
        return False

    return respond


def stop(head: bytes, start: bytes) -> Callable[[Send, threading.Event], bool]:
    """Send *start*, and nothing more."""

    def respond(send: Send, over: threading.Event) -> bool:
        send(HEAD + head + start)
        over.wait(60)
        return False

    return respond


def flood(send: Send, over: threading.Event) -> bool:
    """Send far more than is worth reading."""
    send(HEAD + CHUNKED)
    while not over.is_set():
        send(b"10000\r\n" + bytes(0x10000) + b"\r\n")
    return False


def late(send: Send, over: threading.Event) -> bool:
    """Send the body a moment after the head."""
    whole = message(401, b'{"code": 401}')
    at = whole.index(b"{")
    send(whole[:at])
    over.wait(0.05)
    send(whole[at:])
    return True


NEVER = {
    "drips": drip(LENGTH, b"x"),
    "drips chunks": drip(CHUNKED, b"1\r\nx\r\n"),
    "drips a chunk": drip(CHUNKED + b"ff\r\n", b"x"),
    "stops": stop(LENGTH, b"abc"),
    "stops between chunks": stop(CHUNKED, b"3\r\nabc\r\n"),
    "stops before the body": stop(LENGTH, b""),
    "stops without a length": stop(b"\r\n", b"abc"),
    "stops and says that it closes": stop(b"Connection: close\r\n" + LENGTH, b"abc"),
    "floods": flood,
}
QUICK = ("drips chunks", "stops", "stops without a length", "floods")


@pytest.mark.parametrize("how", [how if how in QUICK else pytest.param(how, marks=pytest.mark.deep) for how in NEVER])
def test_rule_07_a_rejected_response_without_end_is_closed(kind: type[Stack], how: str) -> None:
    """After a second; the only connection of the pool is free for the token request and the retry."""
    with Rejections(response=NEVER[how]) as server, kind(server.manager(), Options(connections=1)) as client:
        began = time.monotonic()
        outcome = client.attempt("POST", f"{server.url}/api/echo")
        assert isinstance(outcome, PlainResponse)
        assert (outcome.status, outcome.body) == (200, b"fine")
        assert time.monotonic() - began < LONG
        assert isinstance(again := client.attempt("POST", f"{server.url}/api/echo"), PlainResponse)
        assert again.status == 200
        assert len(server.tokens) == 2


def drip_for_long(send: Send, over: threading.Event) -> bool:
    """Send a byte now and then, and end at last."""
    send(HEAD + CHUNKED)
    until = time.monotonic() + LONG
    while time.monotonic() < until and not over.wait(0.05):
        send(b"1\r\nx\r\n")
    return False


@pytest.mark.parametrize("retries", [False, 3, urllib3.Retry(2)], ids=repr)
def test_rule_07_with_the_callers_own_retries_too(retries: Any) -> None:
    """urllib3 would read the whole response."""
    with Rejections(response=drip_for_long) as server, Urllib3(server.manager(), Options(connections=1)) as client:
        began = time.monotonic()
        outcome = client.attempt("POST", f"{server.url}/api/echo", retries=retries)
        assert isinstance(outcome, PlainResponse)
        assert (outcome.status, outcome.body) == (200, b"fine")
        assert time.monotonic() - began < LONG


@pytest.mark.parametrize("respond", [rejected, late])
def test_rule_07_a_rejected_response_that_ends_keeps_its_connection(kind: type[Stack], respond: Any) -> None:
    """Whether it arrives immediately or a little later."""
    with Rejections(response=respond) as server, kind(server.manager(), Options(connections=1)) as client:
        for _ in range(2):
            assert isinstance(response := client.attempt("POST", f"{server.url}/api/echo"), PlainResponse)
            assert response.status == 200
        assert server.connections == 2  # one of them for the first token


@pytest.mark.parametrize("body", ["none", "bytes"])
@pytest.mark.parametrize(("status", "end", "attempts"), [(401, 200, 2), (429, 429, 3)])
def test_rules_07_and_20_a_request_that_expects_100_continue_is_retried(
    kind: type[Stack], body: str, status: int, end: int, attempts: int
) -> None:
    """It gets its rejection instead, before it has sent its body; the next request works, too."""

    def respond(send: Send, over: threading.Event) -> bool:
        send(message(status, b"{}"))
        return False

    headers = {"Expect": "100-continue"}
    with Rejections("before", response=respond) as server, kind(server.manager(), Options(connections=1)) as client:
        url, content = f"{server.url}/api/echo", client.bodies[body]
        outcome = client.attempt("POST", url, headers=headers, **content())
        assert isinstance(outcome, PlainResponse)
        assert (outcome.status, len(server.bodies)) == (end, attempts)
        if end == 200:
            assert isinstance(again := client.attempt("POST", url, headers=headers, **content()), PlainResponse)
            assert again.status == 200
            assert server.bodies[-2] == server.bodies[-1]
            assert bool(server.bodies[-1]) is (body != "none")


def test_rule_07_where_aiohttp_cannot_wait_twice_the_caller_gets_the_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version may set up its wait for "100 Continue" elsewhere: there is no documented name."""
    set_up: Any = aiohttp.ClientRequest.update_expect_continue

    def once(self: Any, expect: bool = False) -> None:
        if self._continue is None:
            set_up(self, expect)

    monkeypatch.setattr(aiohttp.ClientRequest, "update_expect_continue", once)
    with Rejections("before") as server, Aiohttp(server.manager()) as client:
        outcome = client.attempt("POST", f"{server.url}/api/echo", headers={"Expect": "100-continue"})
        assert isinstance(outcome, PlainResponse)
        assert (outcome.status, len(server.bodies)) == (401, 1)


@pytest.mark.parametrize("kind", [HttpxAsyncio, HttpxTrio, Aiohttp], ids=lambda kind: kind.name)
@pytest.mark.parametrize("how", ["stops", "drips chunks"])
def test_rule_16_a_call_cancelled_while_its_response_is_drained_loses_no_connection(
    kind: type[Stack], how: str
) -> None:
    """The only connection of the pool is free for the next one."""
    with Rejections(response=NEVER[how]) as server, kind(server.manager(), Options(connections=1)) as client:
        cancel = client.start("POST", f"{server.url}/api/echo")
        assert cancel is not None
        assert server.responding.wait(10)
        time.sleep(0.1)  # the client reads: should it not have begun yet, the test is weaker, and passes
        cancel()
        assert isinstance(response := client.attempt("POST", f"{server.url}/api/echo"), PlainResponse)
        assert response.status == 200


@pytest.mark.parametrize("how", ["stops", "drips chunks"])
def test_rule_16_a_timeout_of_the_callers_ends_the_draining(how: str) -> None:
    """aiohttp's ``total`` is the caller's, and ``sock_read`` only says that this connection is no good."""
    with Rejections(response=NEVER[how]) as server, Aiohttp(server.manager(), Options(connections=1)) as client:
        url = f"{server.url}/api/echo"
        outcome = client.attempt("POST", url, timeout=aiohttp.ClientTimeout(total=0.3))
        assert isinstance(outcome, asyncio.TimeoutError)
        assert len(server.bodies) <= 1
        assert isinstance(response := client.attempt("POST", url), PlainResponse)
        assert response.status == 200
    with Rejections(response=NEVER["stops"]) as server, Aiohttp(server.manager(), Options(connections=1)) as client:
        outcome = client.attempt("POST", f"{server.url}/api/echo", timeout=aiohttp.ClientTimeout(sock_read=0.3))
        assert isinstance(outcome, PlainResponse)
        assert outcome.status == 200


class Interrupted(Exception):
    """What a signal handler raises."""


@contextmanager
def interrupted(seconds: float) -> Iterator[None]:
    """Raise in the main thread after so many seconds."""

    def handler(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", [Urllib3, Requests, Httpx, Httpx2], ids=lambda kind: kind.name)
def test_rule_16_a_signal_handler_that_raises_loses_no_connection(kind: type[Stack]) -> None:
    """Nor is what it raises swallowed."""
    with Rejections(response=NEVER["stops"]) as server, kind(server.manager(), Options(connections=1)) as client:
        with interrupted(0.2), pytest.raises(Interrupted):
            client.request("POST", f"{server.url}/api/echo")
        assert isinstance(response := client.attempt("POST", f"{server.url}/api/echo"), PlainResponse)
        assert response.status == 200


class Stopped(BaseException):
    """What no handler of errors catches."""


def test_rule_17_a_listener_that_raises_loses_no_connection(kind: type[Stack]) -> None:
    """Not even something that is no error."""

    def listener(event: object) -> None:
        if isinstance(event, TokenRejected):
            raise Stopped

    with Rejections() as server:
        manager = server.manager()
        with kind(manager, Options(connections=1)) as client:
            manager.listen(listener)
            with pytest.raises(Stopped):
                client.request("POST", f"{server.url}/api/echo")
            assert isinstance(response := client.attempt("POST", f"{server.url}/api/echo"), PlainResponse)
            assert response.status == 200


@pytest.mark.parametrize("kind", [Httpx, HttpxAsyncio, HttpxTrio, Httpx2], ids=lambda kind: kind.name)
def test_rule_07_one_stream_of_http2_harms_no_other(kind: type[Stack]) -> None:
    """A rejected response without end leaves its connection as it is."""
    clock = ManualClock()
    service = Service(call_limits=())
    with ExitStack() as stack:
        authority = new_authority()
        serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.issue_cert("127.0.0.1").configure_cert(serving)
        authority.configure_trust(trusting)
        serving.set_alpn_protocols(["h2"])
        server = stack.enter_context(Http2Server(service, clock, serving))
        credentials = Credentials(service.api_key, service.merchant_id)
        manager = TokenManager(credentials, base_url=server.url, clock=clock)
        client = stack.enter_context(kind(manager, Options(tls=trusting, http2=True)))
        assert client.request("POST", f"{server.url}/api/balance?id={service.merchant_id}").status == 200
        service.refuse_current_tokens()
        server.unfinished = 401
        began = time.monotonic()
        response = client.request("POST", f"{server.url}/api/balance?id={service.merchant_id}")
        assert (response.status, response.raw.http_version) == (200, "HTTP/2")
        assert time.monotonic() - began < LONG
        assert server.connected == 1


def dripping_token(send: Send, over: threading.Event) -> bool:
    """Begin a token response that does not end."""
    send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n")
    while not over.wait(0.05):
        send(b" ")
    return False


def broken_off(send: Send, over: threading.Event) -> bool:
    """Announce a body and close the connection."""
    return False


@pytest.mark.parametrize(
    ("head", "error", "retry_after"),
    [(b"429 Many\r\nRetry-After: 33", TokenRateLimited, 33), (b"401 Unauthorized", CredentialsRejected, 30)],
)
@pytest.mark.parametrize(
    "body",
    [drip(b"", b" "), pytest.param(stop(b"", b""), marks=pytest.mark.deep), broken_off],
    ids=["drips", "stops", "breaks off"],
)
def test_rules_09_and_10_an_error_counts_without_its_body(
    kind: type[Stack], body: Any, head: bytes, error: type[Pay88Error], retry_after: float
) -> None:
    """The status code and ``Retry-After`` are there: no second token request follows."""
    requests = []

    def respond(send: Send, over: threading.Event) -> bool:
        requests.append(head)
        send(b"HTTP/1.1 " + head + b"\r\n" + LENGTH)
        return bool(body(lambda data: send(data.removeprefix(HEAD)), over))

    with Rejections(token_response=respond) as server:
        manager = TokenManager(Credentials("sk_test_1", "MCH-COL-1"), base_url=server.url, clock=Clock())
        with kind(manager, Options()) as client:
            outcome = client.attempt("POST", f"{server.url}/api/echo")
            assert isinstance(outcome, error)
            assert outcome.retry_after == pytest.approx(retry_after, abs=LONG)
            assert len(requests) == 1


@pytest.mark.parametrize(
    "adapter", [pay88_adapters.urllib3, pay88_adapters.httpx, pay88_adapters.httpx2, pay88_adapters.aiohttp]
)
def test_rule_17_a_token_response_is_read_no_longer_than_the_request_may_take(adapter: Any) -> None:
    """In all, and not only for each piece of it."""
    with Rejections(token_response=dripping_token) as server:
        sender = adapter.standalone_sender()
        began = time.monotonic()
        with pytest.raises(sender.network_errors):
            sender.post(TokenRequest(f"{server.url}/api/auth/token", "/api/auth/token", {}, 0.3))
        assert time.monotonic() - began < LONG
