"""The emulator as clients meet it: over sockets, with urllib3 or byte by byte."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import trustme
import urllib3

from pay88_adapters.clock import Clock
from pay88_adapters.testing import (
    Body,
    Drip,
    Emulator,
    Fault,
    Garbage,
    Headers,
    HugeBody,
    Latency,
    ManualClock,
    Received,
    Redirect,
    RefuseToken,
    ResetAfterRead,
    ResetBeforeRead,
    Service,
    Status,
    TooMany,
    Truncated,
)

TOKEN, ECHO = "/api/auth/token", "/api/echo"
CHARGES = "/api/transactions/charges"


class Client:
    """A merchant with urllib3, no retries, and whatever token it got last."""

    def __init__(self, emulator: Emulator, **pool: Any) -> None:
        self.emulator = emulator
        self.http = urllib3.PoolManager(retries=False, timeout=10, **pool)
        self.headers: dict[str, str] = {}

    def ask(self) -> urllib3.BaseHTTPResponse:
        """Request a token, and keep it."""
        keys = {"x-api-key": self.emulator.api_key, "x-merchant-id": self.emulator.merchant_id}
        response = self.http.request("POST", self.emulator.url + TOKEN, headers=keys, redirect=False)
        if response.status == 200:
            granted = response.json()["data"]
            self.headers = {
                "Authorization": f"Bearer {granted['access_token']}",
                "x-session-id": granted["session_id"],
            }
        return response

    def call(self, path: str = ECHO, method: str = "POST", **how: Any) -> urllib3.BaseHTTPResponse:
        """Make a call with the token."""
        headers = {**self.headers, **how.pop("headers", {})}
        return self.http.request(method, self.emulator.url + path, headers=headers, redirect=False, **how)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An emulator without limits on calls."""
    with Emulator(call_limits=()) as running:
        yield running


@pytest.fixture
def client(emulator: Emulator) -> Iterator[Client]:
    """A client of it that has a token."""
    merchant = Client(emulator, maxsize=4)
    merchant.ask()
    yield merchant
    merchant.http.clear()


def _has_body(received: Received) -> bool:
    return received.body != b""


def together(count: int, act: Callable[[int], Any]) -> list[Any]:
    """Do something in *count* threads at once; return the results."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(act, range(count)))


# The journal


def test_a_token_request_and_a_call_are_journalled(emulator: Emulator, client: Client) -> None:
    """What arrived, what was answered, and which token it was."""
    client.call("/api/balance?id=" + emulator.merchant_id)
    asked, called = emulator.journal
    assert (asked.kind, asked.method, asked.path, asked.status) == ("token", "POST", TOKEN, 200)
    assert (asked.event, asked.serial, asked.executed, asked.age) == ("issued", 1, True, None)
    assert asked.headers["x-api-key"] == emulator.api_key
    assert (called.kind, called.status, called.serial) == ("call", 200, 1)
    assert called.age is not None
    assert 0 < called.age < 5
    assert emulator.journal.oldest_token_age == called.age
    assert emulator.journal.token_requests == emulator.journal.issued == emulator.journal.calls == 1


def test_an_answer_is_in_the_journal_before_the_client_has_it(emulator: Emulator, client: Client) -> None:
    """Whoever holds the answer can assert on the entry at once."""
    for _ in range(200):
        client.call(body=b"x")
        assert emulator.journal[-1].finished
        assert emulator.journal[-1].body == b"x"


def test_entries_are_selected_by_kind_path_and_mark(emulator: Emulator, client: Client) -> None:
    """And counted in the same way."""
    client.call("/api/balance")
    mark = emulator.journal.mark()
    client.call(ECHO)
    client.ask()
    journal = emulator.journal
    assert [entry.path for entry in journal.select("call")] == ["/api/balance", ECHO]
    assert [entry.path for entry in journal.select(since=mark)] == [ECHO, TOKEN]
    assert journal.count(path="/api/bal") == 1
    assert journal.count("token", since=mark) == 1
    assert len(journal) == 4


def test_the_largest_window_counts_refused_and_reset_requests_too(emulator: Emulator) -> None:
    """Every token request that reached the server is held against the client."""
    client = Client(emulator)
    emulator.faults.add(ResetBeforeRead(), on="token", after=10)
    answers = [client.ask().status for _ in range(10)]
    with pytest.raises(urllib3.exceptions.ProtocolError):
        client.ask()
    assert [*answers, client.ask().status] == [200] * 10 + [429]
    assert emulator.journal.max_in_window(60) == 12
    assert emulator.journal.max_in_window(60, "call") == 0
    client.http.clear()


def test_waiting_for_arrivals(emulator: Emulator, client: Client) -> None:
    """It returns once they have arrived, and says how many had when they do not."""
    mark = emulator.journal.mark()
    with emulator.hold():
        caller = threading.Thread(target=client.call)
        caller.start()
        emulator.journal.wait_for(1, "call", since=mark)
        with pytest.raises(TimeoutError, match=r"1 of 2 call requests arrived"):
            emulator.journal.wait_for(2, "call", since=mark, timeout=0.01)
    caller.join()


def test_no_secret_is_printed(emulator: Emulator, client: Client) -> None:
    """By the emulator, its journal or its entries; keys, tokens and bodies alike."""
    client.call(CHARGES, json={"card": "4111-1111"})
    printed = repr([emulator, emulator.service, emulator.journal, list(emulator.journal), emulator.faults])
    assert not [secret for secret in emulator.service.secrets() | {"4111"} if secret in printed]


# Requests as they are


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
def test_bodies_of_any_size_arrive_whole(emulator: Emulator, client: Client, size: int) -> None:
    """The echo's digest and the journal's copy are those of what was sent."""
    body = os.urandom(size)
    echoed = client.call(body=body).json()["data"]
    assert echoed == {"method": "POST", "length": size, "sha256": hashlib.sha256(body).hexdigest()}
    assert emulator.journal[-1].body == body


def test_bodies_are_kept_as_sent(emulator: Emulator, client: Client) -> None:
    """Chunks are joined; what says it is gzip is not unpacked."""
    client.call(body=iter([b"one", b"two"]), headers={"Content-Encoding": "gzip"})
    assert emulator.journal[-1].headers["transfer-encoding"] == "chunked"
    assert emulator.journal[-1].body == b"onetwo"


def test_a_client_may_wait_to_be_told_to_go_on(emulator: Emulator, client: Client) -> None:
    """``Expect: 100-continue`` is answered before the body is sent."""
    fields = {**client.headers, "Host": "emulator", "Expect": "100-continue", "Content-Length": "4"}
    with _connected(emulator) as sock:
        sock.sendall(_request("POST", ECHO, fields))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"body")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_repeated_fields_are_joined(emulator: Emulator) -> None:
    """Two session ids are no session id, and the journal shows both."""
    with _connected(emulator) as sock:
        sock.sendall(b"GET /api/echo HTTP/1.1\r\nHost: x\r\nX-Session-Id: a\r\nx-session-id: b\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 401")
    assert emulator.journal[-1].headers["x-session-id"] == "a, b"


def test_a_client_that_goes_away_midway_executes_nothing(emulator: Emulator, client: Client) -> None:
    """Half a body is no request; the entry ends without a status, and the server goes on."""
    fields = {**client.headers, "Host": "x", "Content-Type": "application/json", "Content-Length": "100"}
    mark = emulator.journal.mark()
    with _connected(emulator) as sock:
        sock.sendall(_request("POST", CHARGES, fields) + b"{}")
        emulator.journal.wait_for(1, since=mark)
    assert client.call().status == 200
    entry = emulator.journal[mark]
    assert (entry.status, entry.executed, emulator.service.charges) == (None, False, ())


def test_connections_are_counted(emulator: Emulator, client: Client) -> None:
    """A pooled connection is one, however many requests it carries."""
    for _ in range(3):
        client.call()
    assert (emulator.connections, emulator.open_connections) == (1, 1)
    assert {entry.peer for entry in emulator.journal} == {emulator.journal[0].peer}


# The service over the wire


def test_a_token_that_expired_is_refused_over_the_wire() -> None:
    """On a clock that a test moves: good a moment before its lifetime ends, refused at its end."""
    clock = ManualClock()
    with Emulator(lifetime=60, clock=clock) as emulator:
        client = Client(emulator)
        client.ask()
        clock.advance(59.9)
        assert client.call().status == 200
        clock.advance(0.1)
        assert client.call().status == 401
        assert emulator.journal.oldest_token_age == pytest.approx(60)
        client.http.clear()


def test_token_limits_hold_over_the_wire_to_the_instant() -> None:
    """Ten in a minute, the eleventh 429 until the sixtieth second; the hour's hundred likewise."""
    clock = ManualClock()
    with Emulator(clock=clock) as emulator:
        client = Client(emulator)
        for _ in range(10):
            assert [client.ask().status for _ in range(11)] == [200] * 10 + [429]
            clock.advance(59.5)
            assert client.ask().status == 429
            clock.advance(0.5)
        refused = client.ask()
        assert (refused.status, refused.headers["Retry-After"]) == (429, "3000")
        clock.advance(3000)
        assert client.ask().status == 200
        assert emulator.journal.issued == 101
        assert emulator.journal.max_in_window(60) == 12
        client.http.clear()


def test_call_limits_hold_over_the_wire_to_the_instant() -> None:
    """Sixty balances in a minute, and the next at its end."""
    clock = ManualClock()
    with Emulator(clock=clock, lifetime=600) as emulator:
        client = Client(emulator)
        client.ask()
        assert Counter(client.call("/api/balance").status for _ in range(62)) == {200: 60, 429: 2}
        clock.advance(59.5)
        refused = client.call("/api/balance")
        assert (refused.status, refused.json()["retry_after"]) == (429, 1)
        clock.advance(0.5)
        assert client.call("/api/balance").status == 200
        client.http.clear()


def test_time_can_run_fast() -> None:
    """With a clock at 1,000 times the speed a minute's life is over in 60 ms."""
    with Emulator(lifetime=60, clock=Clock(1_000)) as emulator:
        client = Client(emulator)
        client.ask()
        emulator.faults.add(Latency(61))
        started = time.monotonic()
        assert client.call().status == 401
        assert 0.06 <= time.monotonic() - started < 5
        client.http.clear()


# Faults, as a client sees them


def test_latency_is_measured_on_the_emulators_clock() -> None:
    """The answer comes when the clock has been moved far enough, and is decided then."""
    clock = ManualClock()
    with Emulator(clock=clock, lifetime=100) as emulator:
        client = Client(emulator)
        client.ask()
        emulator.faults.add(Latency(30))
        mark = emulator.journal.mark()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.call)
            emulator.journal.wait_for(1, since=mark)
            clock.advance(29.9)
            assert not emulator.journal[mark].finished
            clock.advance(0.1)
            assert answer.result(10).status == 200
        assert emulator.journal[mark].fault == "Latency"
        client.http.clear()


@pytest.mark.parametrize("status", [400, 403, 404, 422, 500, 502, 503, 504])
def test_status_has_the_documented_body(emulator: Emulator, client: Client, status: int) -> None:
    """And the rate limit's fields, like every answer; nothing is executed."""
    emulator.faults.add(Status(status))
    response = client.call(CHARGES, json={})
    assert response.status == status
    assert response.json().keys() == {"status", "code", "message"}
    assert response.json()["code"] == status
    assert "X-RateLimit-Reset" in response.headers
    assert emulator.service.charges == ()
    assert (emulator.journal[-1].fault, emulator.journal[-1].executed) == ("Status", False)


def test_status_may_bring_its_own_words(emulator: Emulator, client: Client) -> None:
    """A body that is not JSON, and fields that replace the usual ones."""
    emulator.faults.add(Status(502, {"Content-Type": "text/html", "Retry-After": "7"}, b"<h1>no</h1>"))
    response = client.call()
    assert (response.status, response.data) == (502, b"<h1>no</h1>")
    assert (response.headers["Content-Type"], response.headers["Retry-After"]) == ("text/html", "7")


def test_failed_token_requests_count_against_the_limits(emulator: Emulator) -> None:
    """Ten times 500 spend the minute as ten tokens would."""
    client = Client(emulator)
    emulator.faults.add(Status(500), on="token", times=10)
    assert [client.ask().status for _ in range(11)] == [500] * 10 + [429]
    client.http.clear()


@pytest.mark.parametrize(
    ("fault", "header", "field"),
    [
        (TooMany(), "60", 60),
        (TooMany(2.5), "2.5", 2.5),
        (TooMany(None), None, None),
        (TooMany("Fri, 31 Dec 2027 23:59:59 GMT"), "Fri, 31 Dec 2027 23:59:59 GMT", None),
        (TooMany(None, body_retry_after=30), None, 30),
        (TooMany(5, body_retry_after="soon"), "5", "soon"),
        (TooMany(5, body_retry_after=None), "5", None),
    ],
)
def test_too_many_says_when_in_either_place(emulator: Emulator, fault: Fault, header: str | None, field: Any) -> None:
    """The header, the body's field, both or neither; and it costs no unit."""
    client = Client(emulator)
    emulator.faults.add(fault, on="token")
    response = client.ask()
    assert response.status == 429
    assert response.headers.get("Retry-After") == header
    assert response.json().get("retry_after") == field
    assert [client.ask().status for _ in range(10)] == [200] * 10
    client.http.clear()


def test_a_good_token_can_be_refused(emulator: Emulator, client: Client) -> None:
    """Once, unexecuted; afterwards the same token is good again."""
    emulator.faults.add(RefuseToken())
    refused = client.call(CHARGES, json={})
    assert (refused.status, refused.json()["message"]) == (401, "Invalid or expired token")
    assert emulator.service.charges == ()
    assert client.call(CHARGES, json={}).status == 200


def test_good_credentials_can_be_refused(emulator: Emulator, client: Client) -> None:
    """On the token endpoint it says what that says."""
    emulator.faults.add(RefuseToken(), on="token")
    assert client.ask().json()["message"] == "Invalid API key or merchant ID"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(emulator: Emulator, client: Client, status: int) -> None:
    """The location as given, and nothing executed."""
    emulator.faults.add(Redirect("https://elsewhere.example/api", status), on="any")
    response = client.ask()
    assert (response.status, response.headers["Location"]) == (status, "https://elsewhere.example/api")
    assert emulator.journal.issued == 1


def test_a_reset_before_the_body_is_read(emulator: Emulator, client: Client) -> None:
    """The client sees RST although its body is not all sent; the service saw nothing."""
    emulator.faults.add(ResetBeforeRead())
    fields = {**client.headers, "Host": "x", "Content-Type": "application/json", "Content-Length": "100"}
    with _connected(emulator) as sock:
        sock.sendall(_request("POST", CHARGES, fields))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    entry = emulator.journal[-1]
    assert (entry.status, entry.executed, entry.body, entry.fault) == (None, False, b"", "ResetBeforeRead")
    assert emulator.service.charges == ()


def test_a_reset_after_the_request_was_executed(emulator: Emulator, client: Client) -> None:
    """The client sees RST and no answer; the charge is booked."""
    emulator.faults.add(ResetAfterRead())
    fields = {**client.headers, "Host": "x", "Content-Type": "application/json", "Content-Length": "2"}
    with _connected(emulator) as sock:
        sock.sendall(_request("POST", CHARGES, fields) + b"{}")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    entry = emulator.journal[-1]
    assert (entry.status, entry.executed, entry.event, entry.body) == (None, True, "charged", b"{}")
    assert len(emulator.service.charges) == 1


def test_a_lost_token_was_issued_and_counted(emulator: Emulator) -> None:
    """Ten answers that never arrive spend the minute."""
    client = Client(emulator)
    emulator.faults.add(ResetAfterRead(), on="token", times=10)
    for _ in range(10):
        with pytest.raises(urllib3.exceptions.ProtocolError, match="reset by peer"):
            client.ask()
    assert (client.ask().status, emulator.journal.issued) == (429, 10)
    client.http.clear()


def test_a_truncated_answer(emulator: Emulator, client: Client) -> None:
    """Fewer bytes than were promised, then the end; the request was executed."""
    emulator.faults.add(Truncated(missing=5))
    with pytest.raises(urllib3.exceptions.ProtocolError, match="5 more expected"):
        client.call(CHARGES, json={})
    assert (emulator.journal[-1].status, len(emulator.service.charges)) == (200, 1)


def test_garbage_is_sent_as_it_is(emulator: Emulator, client: Client) -> None:
    """Byte for byte, then the end of the connection; nothing is executed."""
    emulator.faults.add(Garbage(b"\x16\x03\x01 not HTTP"))
    with _connected(emulator) as sock:
        sock.sendall(_request("GET", ECHO, {**client.headers, "Host": "x"}))
        assert b"".join(iter(lambda: sock.recv(100), b"")) == b"\x16\x03\x01 not HTTP"
    assert (emulator.journal[-1].status, emulator.journal[-1].executed) == (None, False)


def test_a_body_of_ones_own(emulator: Emulator, client: Client) -> None:
    """Any bytes and status in place of the answer, and the service has acted."""
    emulator.faults.add(Body(b"[]", 201, {"Set-Cookie": "a=1"}), on="token")
    response = client.ask()
    assert (response.status, response.data, response.headers["Set-Cookie"]) == (201, b"[]", "a=1")
    assert emulator.journal.issued == 2


def test_a_content_encoding_that_lies(emulator: Emulator, client: Client) -> None:
    """The field says gzip, the bytes do not, and the client finds out."""
    emulator.faults.add(Body(b"plain", headers={"Content-Encoding": "gzip"}))
    with pytest.raises(urllib3.exceptions.DecodeError):
        client.call()


def test_more_fields_on_a_true_answer(emulator: Emulator, client: Client) -> None:
    """New ones are added, those that are there are replaced and not repeated."""
    emulator.faults.add(Headers([("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("x-ratelimit-remaining", "0")]))
    response = client.call()
    assert response.json()["data"]["length"] == 0
    assert response.headers.getlist("Set-Cookie") == ["a=1", "b=2"]
    assert response.headers.getlist("X-RateLimit-Remaining") == ["0"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_valid_but_for_its_size(emulator: Emulator, client: Client, chunked: bool) -> None:
    """JSON padded with blanks, announced or in chunks."""
    emulator.faults.add(HugeBody(1_000_000, chunked=chunked), on="token")
    response = client.ask()
    assert len(response.data) == 1_000_000
    assert response.json()["data"]["session_id"].startswith("sess_")
    assert ("Content-Length" in response.headers) is not chunked
    assert (emulator.journal[-1].fault, emulator.journal[-1].event) == ("HugeBody", "issued")


def test_a_huge_body_may_be_left_unread(emulator: Emulator, client: Client) -> None:
    """A client that closes early ends it; the server goes on."""
    emulator.faults.add(HugeBody(1_000_000_000))
    response = client.call(preload_content=False)
    assert len(response.read(1000)) == 1000
    response.close()
    assert client.call().status == 200


def test_a_dripping_answer() -> None:
    """The head at once, then one byte at a time, as the clock is moved."""
    clock = ManualClock()
    with Emulator(clock=clock) as emulator:
        client = Client(emulator)
        client.ask()
        emulator.faults.add(Drip(1.0))
        response = client.call(preload_content=False)
        assert response.read(1) == b"{"
        assert not _readable(response)
        assert (emulator.journal[-1].fault, emulator.journal[-1].executed) == ("Drip", True)
        clock.advance(1.0)
        assert response.read(1) == b'"'
        clock.advance(1_000.0)
        assert json.loads(b'{"' + response.read())["code"] == 200
        client.http.clear()


# The plan


def test_faults_strike_one_after_another(emulator: Emulator, client: Client) -> None:
    """Each rule in turn, in the order in which they were added; then all is well."""
    for status in (500, 502, 503):
        emulator.faults.add(Status(status))
    assert [client.call().status for _ in range(4)] == [500, 502, 503, 200]


def test_a_reset_before_reading_waits_for_its_turn(emulator: Emulator, client: Client) -> None:
    """Though it is decided earlier, an earlier rule goes first."""
    emulator.faults.add(Status(500))
    emulator.faults.add(ResetBeforeRead())
    assert client.call().status == 500
    with pytest.raises(urllib3.exceptions.ProtocolError):
        client.call()
    assert client.call().status == 200


def test_faults_can_spare_the_first_and_strike_often_or_for_good(emulator: Emulator, client: Client) -> None:
    """``after`` and ``times``, and a rule says how often it struck."""
    emulator.faults.add(Status(500), times=2, after=1)
    assert [client.call().status for _ in range(4)] == [200, 500, 500, 200]
    with emulator.faults.add(Status(503), times=None) as rule:
        assert [client.call().status for _ in range(3)] == [503] * 3
    assert (client.call().status, rule.used) == (200, 3)


@pytest.mark.parametrize(
    ("on", "struck"),
    [
        ("call", [ECHO, "/api/balance"]),
        ("token", [TOKEN]),
        ("any", [ECHO, "/api/balance", TOKEN]),
        ("/api/bal", ["/api/balance"]),
        (_has_body, [ECHO]),
    ],
)
def test_faults_strike_where_they_are_meant_to(emulator: Emulator, client: Client, on: Any, struck: list[str]) -> None:
    """By kind, by the start of the path, or by a predicate that sees the whole request."""
    mark = emulator.journal.mark()
    emulator.faults.add(Status(500), on=on, times=None)
    client.call(ECHO, body=b"x")
    client.call("/api/balance")
    client.ask()
    assert [entry.path for entry in emulator.journal.select(since=mark) if entry.fault] == struck


def test_a_target_that_cannot_be_meant_is_an_error(emulator: Emulator) -> None:
    """A misspelt kind would strike nothing, silently."""
    with pytest.raises(ValueError, match="not 'tokens'"):
        emulator.faults.add(Status(500), on="tokens")


def test_latency_combines_with_any_fault(emulator: Emulator, client: Client) -> None:
    """Slow and then broken; the journal names both."""
    emulator.faults.add(Latency(0.001))
    emulator.faults.add(Status(503))
    assert client.call().status == 503
    assert emulator.journal[-1].fault == "Latency+Status"


def test_faults_by_chance_are_the_same_with_the_same_seed(emulator: Emulator, client: Client) -> None:
    """About as many as was asked for, of each kind, in the same order again."""
    drawn: list[list[int]] = []
    for _ in range(2):
        with emulator.faults.random(11, 0.5, [Status(500), Status(503), Latency(0)], on="call"):
            drawn.append([client.call().status for _ in range(100)])
    assert drawn[0] == drawn[1]
    assert all(10 <= drawn[0].count(status) <= 25 for status in (500, 503))


def test_clearing_the_plan_lets_go_of_what_is_held(emulator: Emulator, client: Client) -> None:
    """No fault strikes afterwards, and nobody waits for ever."""
    emulator.faults.add(Status(500), times=None)
    hold = emulator.hold()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.call)
        hold.wait_for(1)
        emulator.faults.clear()
        assert answer.result(10).status == 200
    assert client.call().status == 200


# Holding


def test_a_storm_of_refusals_can_be_staged(emulator: Emulator) -> None:
    """200 calls arrive with a good token, which is refused while they are held: 200 times 401."""
    client = Client(emulator, maxsize=200)
    client.ask()
    hold = emulator.hold()
    with ThreadPoolExecutor(200) as pool:
        answers = [pool.submit(client.call) for _ in range(200)]
        hold.wait_for(200)
        assert (hold.held, emulator.journal.calls) == (200, 200)
        emulator.service.refuse_current_tokens()
        hold.release()
        assert Counter(answer.result(10).status for answer in answers) == {401: 200}
    client.ask()
    assert client.call().status == 200
    client.http.clear()


def test_holds_can_let_go_of_some(emulator: Emulator, client: Client) -> None:
    """The first that came goes first; the others go on waiting."""
    hold = emulator.hold(on=ECHO)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.call)
        hold.wait_for(1)
        second = pool.submit(client.call)
        hold.wait_for(2)
        hold.release(1)
        assert first.result(10).status == 200
        assert (second.done(), hold.held) == (False, 1)
        with pytest.raises(TimeoutError, match="1 of 2 requests are held"):
            hold.wait_for(2, timeout=0.01)
        hold.release()
        assert second.result(10).status == 200


def test_a_fault_added_while_a_request_is_held_strikes_it(emulator: Emulator, client: Client) -> None:
    """What becomes of a held request is decided when it is released."""
    with ThreadPoolExecutor(1) as pool:
        with emulator.hold() as hold:
            answer = pool.submit(client.call)
            hold.wait_for(1)
            emulator.faults.add(Status(503))
        assert answer.result(10).status == 503


def test_token_requests_can_be_held(emulator: Emulator) -> None:
    """They stand in the journal meanwhile; calls pass."""
    client = Client(emulator, maxsize=2)
    with ThreadPoolExecutor(1) as pool:
        with emulator.hold(on="token") as hold:
            answer = pool.submit(client.ask)
            hold.wait_for(1)
            assert (emulator.journal.token_requests, emulator.journal.issued) == (1, 0)
            assert client.call().status == 401
        assert (answer.result(10).status, emulator.journal.issued) == (200, 1)
    client.http.clear()


# Many at once


def test_a_thousand_connections_at_once() -> None:
    """Opened together and all served; none is refused, reset or forgotten."""
    with Emulator(call_limits=()) as emulator:
        client = Client(emulator)
        client.ask()
        request = _request("GET", ECHO, {**client.headers, "Host": "x"})
        socks = [socket.socket() for _ in range(1_000)]
        try:
            for sock in socks:
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", emulator.port))
            for sock in socks:
                sock.settimeout(10)
                _wait(sock, select.POLLOUT)
                sock.sendall(request)
            assert {sock.recv(15) for sock in socks} == {b"HTTP/1.1 200 OK"}
            assert emulator.open_connections == 1_001
        finally:
            for sock in socks:
                sock.close()
        assert (emulator.connections, emulator.journal.calls) == (1_001, 1_000)
        client.http.clear()


def test_thousands_of_requests_over_a_hundred_connections(emulator: Emulator, client: Client) -> None:
    """Pipelined as fast as they go, each is answered and journalled once."""
    request = _request("GET", ECHO, {**client.headers, "Host": "x"})
    mark = emulator.journal.mark()

    def converse(_: int) -> int:
        with _connected(emulator) as sock, sock.makefile("rb") as answers:
            sock.sendall(request * 30)
            return sum(_answered(answers) == 200 for _ in range(30))

    assert sum(together(100, converse)) == 3_000
    entries = emulator.journal.select("call", since=mark)
    assert (len(entries), {entry.status for entry in entries}) == (3_000, {200})


# Starting and stopping


def test_starting_twice_is_an_error(emulator: Emulator) -> None:
    """And says where it runs."""
    with pytest.raises(RuntimeError, match=f"already running at {emulator.url}"):
        emulator.start()


def test_a_taken_port_is_an_error(emulator: Emulator) -> None:
    """The second emulator on a port fails, and can be stopped all the same."""
    second = Emulator(port=emulator.port)
    with pytest.raises(OSError, match="in use"):
        second.start()
    second.stop()
    assert not second.running


def test_an_emulator_that_never_ran_has_no_port() -> None:
    """Asking for its URL is an error; looking at it is not, nor is stopping it."""
    emulator = Emulator()
    emulator.stop()
    with pytest.raises(RuntimeError, match="no port before"):
        _ = emulator.url
    with pytest.raises(RuntimeError, match="not running"):
        emulator.drop_connections()
    assert "stopped" in repr(emulator)


def test_an_outage_ends_where_it_began(emulator: Emulator, client: Client) -> None:
    """Stopped: connections are refused. Started again: the same port, tokens and journal."""
    emulator.stop()
    with pytest.raises(urllib3.exceptions.HTTPError):
        client.call()
    with pytest.raises(urllib3.exceptions.NewConnectionError):
        client.call()
    emulator.start()
    assert client.call().status == 200
    assert (emulator.journal.token_requests, emulator.journal.calls) == (1, 1)


def test_dropped_connections_end_and_new_ones_are_served(emulator: Emulator, client: Client) -> None:
    """Idle connections see the end at once."""
    with _connected(emulator) as sock:
        sock.sendall(_request("GET", ECHO, {**client.headers, "Host": "x"}))
        with sock.makefile("rb") as answers:
            assert _answered(answers) == 200
            emulator.drop_connections()
            assert answers.read(1) == b""
    assert emulator.open_connections == 0
    assert client.call().status == 200


def test_stopping_does_not_wait_for_what_is_held() -> None:
    """Nor for a latency, an idle connection or one that is still to send its request."""
    emulator = Emulator(call_limits=()).start()
    client = Client(emulator, maxsize=3)
    client.ask()
    hold = emulator.hold(on="/api/balance")
    emulator.faults.add(Latency(3_600), on=ECHO)
    idle = _connected(emulator)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.call, path) for path in ("/api/balance", ECHO)]
        hold.wait_for(1)
        emulator.journal.wait_for(2, "call")
        started = time.monotonic()
        emulator.stop()
        assert time.monotonic() - started < 2
        assert all(isinstance(each.exception(10), urllib3.exceptions.HTTPError) for each in waiting)
    hold.release()
    idle.close()
    client.http.clear()


def test_nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    """No thread, no open socket, no task that was destroyed, no line in any log."""
    threads = set(threading.enumerate())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Emulator() as emulator:
            client = Client(emulator)
            client.ask()
            for fault in (ResetBeforeRead(), ResetAfterRead(), Truncated(), Garbage()):
                emulator.faults.add(fault)
                with pytest.raises(urllib3.exceptions.HTTPError):
                    client.call()
        client.http.clear()
        del emulator, client
        gc.collect()
    assert set(threading.enumerate()) <= threads
    assert [str(warning.message) for warning in caught] == []
    assert [record.message for record in caplog.records if record.name != "urllib3.connectionpool"] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_holds_no_connection_open(emulator: Emulator, client: Client) -> None:
    """A reset reaches the client although a child forked before it is alive; the child may not stop it."""
    report_from, report_to = os.pipe()
    end_from, end_to = os.pipe()
    with _connected(emulator) as sock:
        sock.sendall(_request("GET", ECHO, {**client.headers, "Host": "x"}))
        assert sock.recv(15) == b"HTTP/1.1 200 OK"
        child = os.fork()
        if not child:
            os.close(end_to)
            os.write(report_to, _raised(emulator.start) + _raised(emulator.stop))
            os.read(end_from, 1)
            os._exit(0)
        os.close(report_to)
        try:
            assert os.read(report_from, 100) == b"RuntimeError RuntimeError "
            emulator.drop_connections()
            while sock.recv(1000):
                pass
        finally:
            os.close(end_to)
            os.waitpid(child, 0)
            os.close(report_from)
            os.close(end_from)


def test_tls() -> None:
    """HTTPS with a certificate of one's own: an answer, a reset, and a quick stop."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with Emulator(ssl_context=context) as emulator:
        assert emulator.url.startswith("https://127.0.0.1:")
        client = Client(emulator, ssl_context=trusted)
        assert client.ask().status == 200
        # To a client's ssl module a reset is one more way to end without a goodbye.
        for fault, error in ((ResetAfterRead(), "Connection aborted"), (Truncated(), "more expected")):
            emulator.faults.add(fault)
            with pytest.raises(urllib3.exceptions.ProtocolError, match=error):
                client.call()
        assert client.call().status == 200
        started = time.monotonic()
    assert time.monotonic() - started < 2
    client.http.clear()
    gc.collect()  # a transport that was left open would say so now


def test_a_service_of_ones_own() -> None:
    """Everything a service can be told is at hand, and its credentials are the emulator's."""
    service = Service(api_key="sk_test_mine", merchant_id="MCH-PER-TEST-1", reissue=True)
    with Emulator(service=service) as emulator:
        client = Client(emulator)
        assert client.ask().json()["data"]["access_token"] == client.ask().json()["data"]["access_token"]
        assert (emulator.service, emulator.api_key, emulator.merchant_id) == (
            service,
            "sk_test_mine",
            "MCH-PER-TEST-1",
        )
        client.http.clear()


def test_without_aiohttp_the_error_names_the_extra() -> None:
    """The emulator cannot be imported; what needs no server can."""
    script = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from pay88_adapters.testing import ManualClock, Service\n"
        "from pay88_adapters.testing import Emulator\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ImportError: aiohttp is not installed: pip install 'pay88-adapters[testing]'" in ran.stderr
    assert "line 3, in <module>" in ran.stderr


# Byte by byte


def _connected(emulator: Emulator) -> socket.socket:
    return socket.create_connection(("127.0.0.1", emulator.port), timeout=10)


def _request(method: str, path: str, fields: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def _answered(stream: Any) -> int:
    """Read one response; return its status."""
    status = int(stream.readline().split()[1])
    length = 0
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    stream.read(length)
    return status


def _wait(sock: socket.socket, event: int) -> None:
    poll = select.poll()  # select() cannot watch a thousand
    poll.register(sock, event)
    assert poll.poll(10_000)


def _readable(response: urllib3.BaseHTTPResponse) -> bool:
    """Return whether more of a response has arrived."""
    return bool(select.select([response.connection.sock], [], [], 0.02)[0])  # type: ignore[union-attr]


def _raised(act: Callable[[], object]) -> bytes:
    try:
        act()
    except Exception as exc:  # noqa: BLE001 - whatever it is, the parent wants its name
        return type(exc).__name__.encode() + b" "
    return b"nothing "


def test_stopping_closes_connections_that_were_just_accepted() -> None:
    """Also where a connection and the stop reach the server's loop in the same turn: nothing stays open."""
    emulator = Emulator().start()
    loop, entered, go_on = emulator._loop, threading.Event(), threading.Event()
    assert loop is not None

    def busy() -> None:
        entered.set()
        go_on.wait(10)

    loop.call_soon_threadsafe(busy)
    assert entered.wait(10)
    clients = [socket.create_connection(("127.0.0.1", emulator.port)) for _ in range(5)]
    stopping = threading.Thread(target=emulator.stop)
    stopping.start()
    while not loop._ready:  # type: ignore[attr-defined]  # the stop is the first in line
        time.sleep(0.001)
    go_on.set()
    stopping.join(10)
    for client in clients:
        client.settimeout(10)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        client.close()


def test_the_date_is_that_of_the_wall_clock_it_was_given() -> None:
    """As every date of an answer is, and errors are dated too."""
    with Emulator(wall=lambda: 1_700_000_000.0) as emulator, urllib3.PoolManager() as http:
        for path in ("/api/auth/token", "/api/balance", "/elsewhere"):
            answer = http.request("POST", emulator.url + path)
            assert answer.headers["Date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
