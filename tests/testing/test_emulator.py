"""The emulator as clients meet it: over sockets, with urllib3 or byte by byte."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter

import pytest
import urllib3

from pay88_adapters.clock import Clock
from pay88_adapters.testing import (
    Emulator,
    Latency,
    ManualClock,
    ResetBeforeRead,
)
from support.emulators import CHARGES, ECHO, TOKEN, Client, _connected, _request


def test_a_token_request_and_a_call_are_journalled(emulator: Emulator, client: Client) -> None:
    """The request, its response, and its token."""
    client.call("/api/balance?id=" + emulator.merchant_id)
    requested, called = emulator.journal
    assert (requested.kind, requested.method, requested.path, requested.status) == ("token", "POST", TOKEN, 200)
    assert (requested.event, requested.serial, requested.executed, requested.age) == ("issued", 1, True, None)
    assert requested.headers["x-api-key"] == emulator.api_key
    assert (called.kind, called.status, called.serial) == ("call", 200, 1)
    assert called.age is not None
    assert 0 < called.age < 5
    assert emulator.journal.oldest_token_age == called.age
    assert emulator.journal.token_requests == emulator.journal.issued == emulator.journal.calls == 1


def test_a_response_is_in_the_journal_before_the_client_has_it(emulator: Emulator, client: Client) -> None:
    """A client with the response can assert on the entry immediately."""
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


def test_the_largest_window_counts_rejected_and_reset_requests_too(emulator: Emulator) -> None:
    """Every token request that reached the server is held against the client."""
    client = Client(emulator)
    emulator.faults.add(ResetBeforeRead(), on="token", after=10)
    responses = [client.ask().status for _ in range(10)]
    with pytest.raises(urllib3.exceptions.ProtocolError):
        client.ask()
    assert [*responses, client.ask().status] == [200] * 10 + [429]
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


def test_a_client_may_wait_for_100_continue(emulator: Emulator, client: Client) -> None:
    """``Expect: 100-continue`` gets its response before the body is sent."""
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
    """Half a body is no request; the entry ends without a status, and the server continues."""
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


def test_a_token_that_expired_is_rejected_over_the_wire() -> None:
    """On a clock that a test moves: good a moment before its lifetime ends, rejected at its end."""
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
        rejected = client.ask()
        assert (rejected.status, rejected.headers["Retry-After"]) == (429, "3000")
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
        rejected = client.call("/api/balance")
        assert (rejected.status, rejected.json()["retry_after"]) == (429, 1)
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
