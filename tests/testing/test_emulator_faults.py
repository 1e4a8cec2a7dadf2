"""Faults, as a client sees them, and the plan that they come from."""

from __future__ import annotations

import json
import select
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3

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
    Redirect,
    RefuseToken,
    Request,
    ResetAfterRead,
    ResetBeforeRead,
    Status,
    TooMany,
    Truncated,
)
from support.emulators import CHARGES, ECHO, TOKEN, Client, _connected, _request
from support.servers import until


def _has_body(received: Request) -> bool:
    return received.body != b""


def test_latency_is_measured_on_the_emulators_clock() -> None:
    """The response comes when the clock has been moved far enough, and is decided then."""
    clock = ManualClock()
    with Emulator(clock=clock, lifetime=100) as emulator:
        client = Client(emulator)
        client.ask()
        emulator.faults.add(Latency(30))
        mark = emulator.journal.mark()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.call)
            emulator.journal.wait_for(1, since=mark)
            until(lambda: clock.waiting)
            clock.advance(29.9)
            assert not emulator.journal[mark].finished
            clock.advance(0.1)
            assert answer.result(10).status == 200
        assert emulator.journal[mark].fault == "Latency"
        client.http.clear()


@pytest.mark.parametrize("status", [400, 403, 404, 422, 500, 502, 503, 504])
def test_status_has_the_documented_body(emulator: Emulator, client: Client, status: int) -> None:
    """And the rate limit's fields, like every response; nothing is executed."""
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


def test_a_good_token_can_be_rejected(emulator: Emulator, client: Client) -> None:
    """Once, unexecuted; afterwards the same token is accepted again."""
    emulator.faults.add(RefuseToken())
    rejected = client.call(CHARGES, json={})
    assert (rejected.status, rejected.json()["message"]) == (401, "Invalid or expired token")
    assert emulator.service.charges == ()
    assert client.call(CHARGES, json={}).status == 200


def test_good_credentials_can_be_rejected(emulator: Emulator, client: Client) -> None:
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
    """The client sees RST and no response; the charge is booked."""
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
    """Ten responses that never arrive exhaust the minute."""
    client = Client(emulator)
    emulator.faults.add(ResetAfterRead(), on="token", times=10)
    for _ in range(10):
        with pytest.raises(urllib3.exceptions.ProtocolError, match="reset by peer"):
            client.ask()
    assert (client.ask().status, emulator.journal.issued) == (429, 10)
    client.http.clear()


def test_a_truncated_response(emulator: Emulator, client: Client) -> None:
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
    """Any bytes and status in place of the response, and the service has acted."""
    emulator.faults.add(Body(b"[]", 201, {"Set-Cookie": "a=1"}), on="token")
    response = client.ask()
    assert (response.status, response.data, response.headers["Set-Cookie"]) == (201, b"[]", "a=1")
    assert emulator.journal.issued == 2


def test_a_content_encoding_that_lies(emulator: Emulator, client: Client) -> None:
    """The field says gzip, the bytes do not, and the client finds out."""
    emulator.faults.add(Body(b"plain", headers={"Content-Encoding": "gzip"}))
    with pytest.raises(urllib3.exceptions.DecodeError):
        client.call()


def test_more_headers_on_a_regular_response(emulator: Emulator, client: Client) -> None:
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
    """A client that closes early ends it; the server continues."""
    emulator.faults.add(HugeBody(1_000_000_000))
    response = client.call(preload_content=False)
    assert len(response.read(1000)) == 1000
    response.close()
    assert client.call().status == 200


def test_a_dripping_response() -> None:
    """The head immediately, then one byte at a time, as the clock advances."""
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


def test_faults_strike_one_after_another(emulator: Emulator, client: Client) -> None:
    """Each rule in turn, in the order in which they were added; then all is well."""
    for status in (500, 502, 503):
        emulator.faults.add(Status(status))
    assert [client.call().status for _ in range(4)] == [500, 502, 503, 200]


def test_a_reset_before_reading_comes_in_order(emulator: Emulator, client: Client) -> None:
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
    """About as many as configured, of each kind, in the same order again."""
    drawn: list[list[int]] = []
    for _ in range(2):
        with emulator.faults.random(11, 0.5, [Status(500), Status(503), Latency(0)], on="call"):
            drawn.append([client.call().status for _ in range(100)])
    assert drawn[0] == drawn[1]
    assert all(10 <= drawn[0].count(status) <= 25 for status in (500, 503))


def test_clearing_the_plan_releases_held_requests(emulator: Emulator, client: Client) -> None:
    """No fault is injected afterwards, and no request waits without end."""
    emulator.faults.add(Status(500), times=None)
    hold = emulator.hold()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.call)
        hold.wait_for(1)
        emulator.faults.clear()
        assert answer.result(10).status == 200
    assert client.call().status == 200


def test_a_401_storm_can_be_staged(emulator: Emulator) -> None:
    """200 calls arrive with a good token, which is rejected while they are held: 200 times 401."""
    client = Client(emulator, maxsize=200)
    client.ask()
    hold = emulator.hold()
    with ThreadPoolExecutor(200) as pool:
        responses = [pool.submit(client.call) for _ in range(200)]
        hold.wait_for(200)
        assert (hold.held, emulator.journal.calls) == (200, 200)
        emulator.service.refuse_current_tokens()
        hold.release()
        assert Counter(answer.result(10).status for answer in responses) == {401: 200}
    client.ask()
    assert client.call().status == 200
    client.http.clear()


def test_holds_can_release_some(emulator: Emulator, client: Client) -> None:
    """The first that came goes first; the others continue waiting."""
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
    """They stand in the journal in the meantime; calls pass."""
    client = Client(emulator, maxsize=2)
    with ThreadPoolExecutor(1) as pool:
        with emulator.hold(on="token") as hold:
            answer = pool.submit(client.ask)
            hold.wait_for(1)
            assert (emulator.journal.token_requests, emulator.journal.issued) == (1, 0)
            assert client.call().status == 401
        assert (answer.result(10).status, emulator.journal.issued) == (200, 1)
    client.http.clear()


def _readable(response: urllib3.BaseHTTPResponse) -> bool:
    """Return whether more of a response has arrived."""
    return bool(select.select([response.connection.sock], [], [], 0.02)[0])  # type: ignore[union-attr]
