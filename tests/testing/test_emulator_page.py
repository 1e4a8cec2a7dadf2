"""The emulator's page as a program meets it: its API, its stream of events, and who may use them."""

from __future__ import annotations

import gc
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from typing import Any, get_args
from urllib.parse import quote

import pytest
import urllib3

from pay88_adapters.clock import Clock
from pay88_adapters.testing import Body, Emulator, Fault, Hold, ManualClock, Redirect, Status
from pay88_adapters.testing.page import stream
from support.leaks import leaked

TOKEN, ECHO = "/api/auth/token", "/api/echo"
JSON = {"Content-Type": "application/json"}


class Client:
    """A merchant, and a caller at the page, each with connections of their own."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.http = urllib3.PoolManager(retries=False, timeout=10)
        self.browser = urllib3.PoolManager(retries=False, timeout=10)
        self.token: dict[str, str] = {}

    def ask(self, key: str | None = None) -> int:
        """Request a token, and keep it; return the status."""
        keys = {"x-api-key": key or self.emulator.api_key, "x-merchant-id": self.emulator.merchant_id}
        response = self.http.request("POST", self.emulator.url + TOKEN, headers=keys)
        if response.status == 200:
            granted = response.json()["data"]
            self.token = {"Authorization": f"Bearer {granted['access_token']}", "x-session-id": granted["session_id"]}
        return response.status

    def call(self, path: str = ECHO, **headers: str) -> int:
        """Make a call; return the status."""
        return self.http.request("POST", self.emulator.url + path, headers={**self.token, **headers}).status

    def page(self, method: str, path: str, body: Any = None, **headers: str) -> urllib3.BaseHTTPResponse:
        """Send a request to the page; a body is sent as JSON, unless it is bytes."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            given = {**JSON, **given}
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.browser.request(method, f"{self.emulator.page_url}{path}", body=body, headers=given, redirect=False)

    def state(self) -> dict[str, Any]:
        """Return what the page's API says."""
        state: dict[str, Any] = self.page("GET", "state").json()
        return state

    def add_fault(self, **fault: Any) -> int:
        """Add a fault; return its id."""
        response = self.page("POST", "faults", fault)
        assert response.status == 201, response.data
        number: int = response.json()["id"]
        return number

    def act(self, **wish: Any) -> None:
        """Have something done."""
        response = self.page("POST", "actions", wish)
        assert (response.status, response.json()) == (200, {"done": wish["do"]})


@pytest.fixture
def clock() -> ManualClock:
    """The emulator's clock."""
    return ManualClock()


@pytest.fixture
def emulator(clock: ManualClock) -> Iterator[Emulator]:
    """An emulator on a fake clock."""
    with Emulator(clock=clock) as running:
        yield running


@pytest.fixture
def client(emulator: Emulator) -> Iterator[Client]:
    """A client of it that has a token."""
    merchant = Client(emulator)
    assert merchant.ask() == 200
    yield merchant
    merchant.http.clear()
    merchant.browser.clear()


Events = Iterator[tuple[str, dict[str, Any]]]


@contextmanager
def events(emulator: Emulator) -> Iterator[Events]:
    """Open the stream; what is yielded gives each event's name and data."""
    connection = http.client.HTTPConnection("127.0.0.1", emulator.port, timeout=10)
    connection.request("GET", "/_emulator/events")
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")

    assert [response.readline(), response.readline()] == [b"retry: 1000\n", b"\n"]

    def read() -> Events:
        while line := response.readline():
            name, data, end = line, response.readline(), response.readline()
            assert (name[:7], data[:6], end) == (b"event: ", b"data: ", b"\n")
            yield name[7:].decode().strip(), json.loads(data[6:])

    with response:
        yield read()
    connection.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait until the server has come to it."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.005)


# What is shown


def test_the_state_contains_requests_tokens_and_budgets(clock: ManualClock, emulator: Emulator, client: Client) -> None:
    """Each request with its client, its token and its outcome, and the remaining units of each limit."""
    started = clock.now()
    clock.advance(7)
    client.call(f"/api/balance?id={emulator.merchant_id}", **{"User-Agent": "billing/1"})
    state = client.state()
    assert (state["now"], state["emulator"]["movable"], state["emulator"]["speed"]) == (started + 7, True, 0)
    assert state["counts"] == {"token_requests": 1, "calls": 1, "others": 0, "issued": 1, "open_connections": 1}
    token, call = state["timeline"]
    assert (token["n"], token["kind"], token["status"], token["event"], token["token"]) == (
        1,
        "token",
        200,
        "issued",
        1,
    )
    peer = "127.0.0.1:" + call["peer"].partition(":")[2]
    assert call == {
        "n": 2, "at": started + 7, "kind": "call", "method": "POST", "path": "/api/balance?id=MCH-COL-TEST-EMULATOR",
        "status": 200, "took": 0.0, "event": "balance", "token": 1, "token_age": 7.0, "client": "billing/1",
        "peer": peer, "fault": None, "finished": True,
    }  # fmt: skip
    used = {
        (each["group"], each["limit"], each["seconds"]): (each["used"], each["frees_at"]) for each in state["windows"]
    }
    assert used == {
        ("token", 10, 60): (1, started + 60),
        ("token", 100, 3600): (1, started + 3600),
        ("transactions", 60, 60): (0, None),
        ("transactions", 1000, 3600): (0, None),
        ("balance", 60, 60): (1, started + 67),
        ("balance", 1000, 3600): (1, started + 3607),
    }
    assert state["tokens"] == [
        {
            "serial": 1, "issued_at": started, "expires_at": started + 60, "merchant": emulator.merchant_id,
            "rejected": False, "users": [{"client": "billing/1", "peer": "127.0.0.1", "calls": 1}],
        }
    ]  # fmt: skip
    clock.advance(53)
    state = client.state()
    assert (state["tokens"], state["windows"][0]["used"]) == ([], 0)


def test_latency_is_shown_on_the_emulators_clock(clock: ManualClock, emulator: Emulator, client: Client) -> None:
    """What was held for five of its seconds took five."""
    with emulator.hold() as hold:
        calling = threading.Thread(target=client.call)
        calling.start()
        hold.wait_for(1)
        assert (client.state()["timeline"][-1]["finished"], client.state()["timeline"][-1]["took"]) == (False, None)
        clock.advance(5)
    calling.join()
    assert client.state()["timeline"][-1]["took"] == 5


def test_only_the_latest_requests_are_shown(emulator: Emulator, client: Client) -> None:
    """Two hundred; the counts include all."""
    for _ in range(205):
        client.call()
    state = client.state()
    assert [entry["n"] for entry in state["timeline"]] == list(range(7, 207))
    assert state["counts"]["calls"] == 205


def test_no_secret_is_sent(emulator: Emulator, client: Client) -> None:
    """Whatever clients, faults and actions put where it can be seen: paths, names, merchants, headers, errors."""
    service = emulator.service
    service.accept_credentials("a key/of my own, and long enough")
    secrets = [*service.secrets(), "sk_live_never_seen_before"]
    reported: list[str] = []
    with events(emulator) as stream:
        reported.append(json.dumps(next(stream)))
        for secret in secrets:
            quoted = quote(secret, safe="")
            client.call(f"{ECHO}?token={quoted}", **{"User-Agent": f"me {secret}"})
            client.call(f"/api/{quoted}")
            client.http.request("POST", emulator.url + TOKEN, headers={"x-api-key": "MCH", "x-merchant-id": secret})
            for fault in (
                Redirect(f"http://127.0.0.1/{secret}"), Body(secret.encode()), Status(500, {"X-Secret": secret}),
            ):  # fmt: skip
                emulator.faults.add(fault, on=f"/{secret}")
            wishes = ({"fault": secret}, {"fault": "Status", secret: 1}, {"fault": "Redirect", "to": secret})
            reported += [client.page("POST", "faults", wish).data.decode() for wish in wishes]
            reported.append(client.page("DELETE", f"faults/{quoted}").data.decode())
            reported.append(client.page("POST", "actions", {"do": "rotate_key", "api_key": secret}).data.decode())
            reported.append(client.page("GET", quoted).data.decode())
        reported += [client.page("GET", path).data.decode() for path in ("", "page.js", "page.css", "state", "faults")]
        until(lambda: emulator.journal[-1].finished)
        while f'"n": {len(emulator.journal)},' not in reported[-1]:
            reported.append(json.dumps(next(stream)))
    assert len(reported) > 20 + len(secrets)
    assert leaked([*secrets, *service.secrets()], reported) == []
    assert sum(r"me \u2022" in text for text in reported) >= 2  # a bullet replaces the secret


# The stream


def test_a_late_subscriber_gets_the_state_first(emulator: Emulator, client: Client) -> None:
    """Then what is new, and nothing twice: a request that was seen unfinished comes again when it has ended."""
    client.call()
    with emulator.hold() as hold, events(emulator) as stream:
        name, first = next(stream)
        assert (name, [entry["n"] for entry in first["timeline"]]) == ("state", [1, 2])
        calling = threading.Thread(target=client.call)
        calling.start()
        hold.wait_for(1)
        name, change = next(stream)
        assert (name, [(entry["n"], entry["finished"]) for entry in change["timeline"]]) == ("change", [(3, False)])
        hold.release()
        calling.join()
        reported: list[tuple[int, bool]] = []
        while not reported:
            reported += [(entry["n"], entry["finished"]) for entry in next(stream)[1]["timeline"]]
        assert reported == [(3, True)]


def test_only_the_clock_is_sent_while_nothing_happens(clock: ManualClock, emulator: Emulator) -> None:
    """The first message after the state is the first event."""
    with events(emulator) as stream:
        _, first = next(stream)
        clock.advance(1)
        assert next(stream) == ("change", {"now": first["now"] + 1, "timeline": []})
        emulator.faults.add(Status(500))
        name, change = next(stream)
        assert (name, set(change)) == ("change", {"now", "faults", "timeline"})


def test_concurrent_events_are_sent_together(emulator: Emulator, client: Client) -> None:
    """A thousand requests are no thousand messages, and no message has more than the latest two hundred."""
    with events(emulator) as stream:
        next(stream)
        for _ in range(400):
            client.call()
        messages, last = 0, 0
        while last < 401:
            _, change = next(stream)
            assert len(change["timeline"]) <= 200
            messages, last = messages + 1, max([last, *(entry["n"] for entry in change["timeline"])])
        assert messages < 100


def test_a_reader_that_does_not_read_costs_nothing(
    emulator: Emulator, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other readers are served in the meantime, little is stored for it, and in the end it is disconnected."""
    monkeypatch.setattr(stream, "_WRITE_TIMEOUT", 0.3)
    monkeypatch.setattr(stream, "_POLL_INTERVAL", 0.002)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", emulator.port))
    with sock:
        sock.sendall(b"GET /_emulator/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: emulator._page.streams == 1)
        for number in range(500):
            emulator.faults.add(Status(500), on=f"/{number}{'x' * 150}")

        def released() -> bool:
            emulator.faults.add(Status(500), on="/new")  # which makes all of them news again
            assert client.call() == 200
            return not emulator._page.streams

        until(released)


def test_a_reader_that_is_gone_is_noticed(emulator: Emulator) -> None:
    """Also if there is nothing to send."""
    with events(emulator) as stream:
        next(stream)
        assert emulator._page.streams == 1
    until(lambda: not emulator._page.streams)


def test_there_is_a_limit_to_readers(emulator: Emulator, client: Client) -> None:
    """The seventeenth is rejected, and accepted when another one has left."""
    socks = [socket.create_connection(("127.0.0.1", emulator.port), timeout=10) for _ in range(16)]
    for sock in socks:
        sock.sendall(b"GET /_emulator/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(15) == b"HTTP/1.1 200 OK"
    assert client.page("GET", "events").status == 503
    socks[0].close()
    until(lambda: emulator._page.streams == 15)
    with events(emulator) as stream:
        assert next(stream)[0] == "state"
    for sock in socks:
        sock.close()


def test_stopping_ends_streams_immediately() -> None:
    """And leaves nothing behind: no thread, no task, no open socket."""
    threads = set(threading.enumerate())
    emulator = Emulator().start()
    with events(emulator) as stream:
        next(stream)
        started = time.monotonic()
        emulator.stop()
        with suppress(ConnectionError):
            assert list(stream) == []
        assert time.monotonic() - started < 2
    del emulator, stream
    gc.collect()
    assert set(threading.enumerate()) <= threads


def test_the_page_survives_a_restart(emulator: Emulator, client: Client) -> None:
    """On the same port, with the same state."""
    emulator.stop()
    emulator.start()
    with events(emulator) as stream:
        assert [entry["n"] for entry in next(stream)[1]["timeline"]] == [1]


# The switches

SAMPLES: dict[str, dict[str, Any]] = {
    "Latency": {"seconds": 1.5},
    "Hold": {},
    "Status": {"status": 503, "headers": {"X-Why": "test"}, "body": "down"},
    "TooMany": {"retry_after": 3, "body_retry_after": "soon"},
    "RejectToken": {},
    "Redirect": {"to": "/elsewhere", "status": 302},
    "ResetBeforeRead": {},
    "ResetAfterRead": {},
    "Truncated": {"missing": 5},
    "Garbage": {"data": "no HTTP"},
    "Body": {"body": "{}", "status": 201, "headers": {"Set-Cookie": "a=b"}},
    "Headers": {"headers": {"X-RateLimit-Remaining": "0"}},
    "HugeBody": {"size": 1000, "chunked": True},
    "Drip": {"seconds": 0.5},
}


def test_every_fault_there_is_can_be_switched_on(emulator: Emulator, client: Client) -> None:
    """With all its parameters, which arrive as they would from Python, and with those that go without saying."""
    kinds = {kind["fault"]: kind for kind in client.page("GET", "faults").json()["kinds"]}
    faults = {kind.__name__ for part in get_args(Fault) for kind in (get_args(part) or (part,))}
    assert set(kinds) == set(SAMPLES) == faults
    for name, sample in SAMPLES.items():
        assert set(kinds[name]["parameters"]) == set(sample)
        assert kinds[name]["about"]
        number = client.add_fault(fault=name, on="any", times=None, **sample)
        rule = next(rule for rule in emulator.faults if rule.number == number)
        for each, said in sample.items():
            value = getattr(rule.upcoming, each)
            expected = said.encode() if isinstance(value, bytes) else said
            assert (dict(value) if isinstance(value, tuple) else value) == expected
        assert client.page("DELETE", f"faults/{number}").status == 204
    assert list(emulator.faults) == []


def test_a_fault_is_injected_as_often_as_set(emulator: Emulator, client: Client) -> None:
    """Once by default, after the requests that it lets through, on its target; then it is no longer listed."""
    client.add_fault(fault="Status", status=503, after=1, times=2)
    client.add_fault(fault="Status", status=500, on="/api/balance")
    assert [(each["times"], each["after"]) for each in client.state()["faults"]] == [(2, 1), (1, 0)]
    assert [client.call() for _ in range(4)] == [200, 503, 503, 200]
    assert [each["on"] for each in client.state()["faults"]] == ["/api/balance"]
    assert [client.call("/api/balance") for _ in range(2)] == [500, 200]
    assert client.state()["faults"] == []
    assert client.state()["timeline"][2]["fault"] == "Status"


def test_a_fault_stays_until_it_is_removed(emulator: Emulator, client: Client) -> None:
    """One of several, or all."""
    first = client.add_fault(fault="Status", times=None)
    client.add_fault(fault="TooMany", times=None, probability=0.5)
    assert {client.call() for _ in range(3)} == {500}
    assert client.page("DELETE", f"faults/{first}").status == 204
    assert client.page("DELETE", f"faults/{first}").status == 404
    assert {client.call() for _ in range(100)} == {200, 429}
    assert client.page("DELETE", "faults").status == 204
    assert {client.call() for _ in range(5)} == {200}


def test_held_calls_are_released(emulator: Emulator, client: Client) -> None:
    """One at a time, and all when the hold is removed."""
    number = client.add_fault(fault="Hold", times=None)
    hold = next(iter(emulator.faults)).upcoming
    assert isinstance(hold, Hold)
    threads = [threading.Thread(target=Client.call, args=(client,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    hold.wait_for(3)
    assert client.state()["faults"][0]["held"] == 3
    client.act(do="release", id=number)
    until(lambda: sum(entry.finished for entry in emulator.journal.select("call")) == 1)
    assert client.state()["faults"][0]["held"] == 2
    assert client.page("DELETE", f"faults/{number}").status == 204
    for thread in threads:
        thread.join(10)
    assert [entry.status for entry in emulator.journal.select("call")] == [200] * 3


def test_a_hold_of_a_test_is_released_as_well(emulator: Emulator, client: Client) -> None:
    """What Python switched on is listed beside the rest, and can be switched off."""
    hold = emulator.hold(on=lambda received: True)
    thread = threading.Thread(target=client.call)
    thread.start()
    hold.wait_for(1)
    (fault,) = client.state()["faults"]
    assert (fault["fault"], fault["on"], fault["held"]) == ("Hold", "a predicate", 1)
    client.page("DELETE", f"faults/{fault['id']}")
    thread.join(10)
    assert emulator.journal[-1].status == 200


def test_actions(clock: ManualClock, emulator: Emulator, client: Client) -> None:
    """Each does what its name says."""
    client.act(do="revoke_tokens")
    assert (client.call(), client.state()["tokens"][0]["rejected"]) == (401, True)
    client.act(do="suspend")
    assert (client.ask(), client.state()["emulator"]["suspended"]) == (403, True)
    client.act(do="reinstate")
    assert (client.ask(), client.call()) == (200, 200)
    client.act(do="rotate_key", api_key="sk_test_new")
    assert (client.ask(), client.ask("sk_test_new"), client.call()) == (401, 200, 200)
    for _ in range(10):
        client.ask("sk_test_new")
    assert client.ask("sk_test_new") == 429
    client.act(do="reset_rate_limits")
    assert client.ask("sk_test_new") == 200
    before = clock.now()
    client.act(do="advance", seconds=2.5)
    assert clock.now() == before + 2.5


def test_dropped_connections_are_the_clients(emulator: Emulator, client: Client) -> None:
    """The page's own continue: a stream is not cut, and its reader gets a response."""
    other = Client(emulator)
    with events(emulator) as stream, socket.create_connection(("127.0.0.1", emulator.port), timeout=10) as sock:
        next(stream)
        sock.sendall(b"GET /api/echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 401"
        other.act(do="drop_connections")
        while sock.recv(1000):
            pass
        assert emulator.open_connections == 0
        emulator.faults.add(Status(500))
        assert any("faults" in next(stream)[1] for _ in range(3))
    other.http.clear()


def test_a_clock_that_goes_by_itself_cannot_be_moved() -> None:
    """It says so, and what could be."""
    with Emulator(clock=Clock(2)) as emulator:
        client = Client(emulator)
        assert (client.state()["emulator"]["movable"], client.state()["emulator"]["speed"]) == (False, 2)
        response = client.page("POST", "actions", {"do": "advance", "seconds": 1})
        assert (response.status, "ManualClock" in response.json()["error"]) == (409, True)
        client.http.clear()


# Who may use it


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[::1", ""])
def test_a_name_that_was_pointed_here_is_rejected(emulator: Emulator, client: Client, host: str) -> None:
    """DNS rebinding: the page itself, its API, its stream."""
    for method, path, body in (
        ("GET", "", None),
        ("GET", "state", None),
        ("GET", "events", None),
        ("POST", "faults", {}),
    ):
        assert client.page(method, path, body, Host=host).status in (400, 421)
    assert list(emulator.faults) == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8088", "127.0.0.1:1", "[::1]:80", "pay88.localhost"])
def test_addresses_and_localhost_are_accepted(client: Client, host: str) -> None:
    """With any port: it may have been forwarded."""
    assert client.page("GET", "state", Host=host).status == 200


def test_the_configured_host_is_accepted() -> None:
    """A configured name, for a network of containers."""
    with Emulator(host="localhost") as emulator:
        assert Client(emulator).page("GET", "state", Host="localhost").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_other_websites_are_rejected(emulator: Emulator, client: Client, headers: dict[str, str]) -> None:
    """Another port of this machine is another website, too. Nothing changes, and nothing is revealed."""
    for method, path, body in (
        ("GET", "state", None),
        ("GET", "events", None),
        ("POST", "faults", {"fault": "Status"}),
        ("POST", "actions", {"do": "suspend"}),
        ("DELETE", "faults", None),
    ):
        response = client.page(method, path, body, **headers)
        assert (response.status, b"MCH-" in response.data) == (403, False)
    assert (list(emulator.faults), emulator.service.suspended) == ([], frozenset())


def test_the_page_may_use_its_own_api(emulator: Emulator, client: Client) -> None:
    """A browser says where the request comes from."""
    own = {"Origin": emulator.url, "Sec_Fetch_Site": "same-origin"}
    assert client.page("POST", "faults", {"fault": "Status"}, **own).status == 201
    assert client.page("GET", "", Sec_Fetch_Site="cross-site").status == 200  # a link from elsewhere


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_can_send_is_rejected(emulator: Emulator, client: Client, kind: str) -> None:
    """Only JSON, for which a browser sends a preflight; and the preflight is rejected."""
    for path in ("faults", "actions"):
        body = b'{"fault": "Status", "do": "suspend"}'
        assert client.page("POST", path, body, Content_Type=kind).status == 415
        preflight = client.page("OPTIONS", path, Access_Control_Request_Method="POST")
        assert (preflight.status, [name for name in preflight.headers if name.lower().startswith("access-")]) == (
            404,
            [],
        )
    assert (list(emulator.faults), emulator.service.suspended) == ([], frozenset())


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"{", 400, "not valid JSON"),
        (b"\xff", 400, "not valid JSON"),
        (b"[" * 60_000, 400, "not valid JSON"),
        (b"[]", 400, "object"),
        (b" " * 70_000, 413, "65536"),
        ({}, 400, "fault is missing"),
        ({"fault": 1}, 400, "fault must be a string"),
        ({"fault": "Nothing"}, 400, "one of Latency, Hold, Status"),
        ({"fault": "Latency"}, 400, "needs seconds"),
        ({"fault": "Latency", "seconds": -1}, 400, "0"),
        ({"fault": "Latency", "seconds": True}, 400, "number"),
        (b'{"fault": "Latency", "seconds": NaN}', 400, "number"),
        ({"fault": "Latency", "seconds": 10**400}, 400, "number"),
        ({"fault": "Status", "status": 99}, 400, "200 to 599"),
        ({"fault": "Status", "status": "500"}, 400, "whole"),
        ({"fault": "Status", "headers": {"A": "b\r\nC: d"}}, 400, "header"),
        ({"fault": "Status", "headers": {"A b": "c"}}, 400, "names"),
        ({"fault": "Redirect", "to": "a\nb"}, 400, "URL"),
        ({"fault": "TooMany", "retry_after": [1]}, 400, "number"),
        ({"fault": "HugeBody", "chunked": 1}, 400, "true or false"),
        ({"fault": "Status", "on": "nowhere"}, 400, "path"),
        ({"fault": "Status", "times": 0.5}, 400, "whole"),
        ({"fault": "Status", "probability": 2}, 400, "between"),
        ({"fault": "Status", "colour": "red"}, 400, "unknown: colour"),
        ({"fault": "Hold"}, 400, "times is null"),
    ],
)
def test_what_makes_no_sense_is_explained(emulator: Emulator, client: Client, body: Any, status: int, why: str) -> None:
    """And changes nothing."""
    response = client.page("POST", "faults", body)
    assert (response.status, why in response.json()["error"]) == (status, True), response.data
    assert list(emulator.faults) == []


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({"do": "nothing"}, 400),
        ({}, 400),
        ({"do": "rotate_key"}, 400),
        ({"do": "rotate_key", "api_key": "a b"}, 400),
        ({"do": "release", "id": 9}, 404),
        ({"do": "suspend", "id": 9}, 400),
        ({"do": "advance", "seconds": -1}, 400),
    ],
)
def test_actions_that_make_no_sense_are_explained(client: Client, wish: Any, status: int) -> None:
    """Without doing anything."""
    assert client.page("POST", "actions", wish).status == status
    assert client.page("GET", "state").json()["emulator"]["suspended"] is False


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "x"), ("PUT", "faults"), ("DELETE", "faults/x"), ("GET", "page.css/"), ("GET", "..%2Fview.py")],
)
def test_anything_else_is_not_found(client: Client, method: str, path: str) -> None:
    """With an error in JSON."""
    response = client.page(method, path)
    assert (response.status, set(response.json())) == (404, {"error"})


def test_a_body_that_does_not_arrive_changes_nothing(
    emulator: Emulator, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that goes away midway is no error of the server's."""
    with socket.create_connection(("127.0.0.1", emulator.port)) as sock:
        head = b"POST /_emulator/faults HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(head + b'Content-Length: 100\r\n\r\n{"fault": "Status"}')
        until(lambda: len(emulator._page.connections) == 1)
    until(lambda: all(each.transport is None for each in emulator._page.connections))
    assert client.state()["faults"] == []
    assert [record.name for record in caplog.records if record.name.startswith(("aiohttp", "asyncio"))] == []


# What it is apart from


def test_the_service_does_not_notice(clock: ManualClock, emulator: Emulator, client: Client) -> None:
    """No journal, no fault, no hold, no limit: not even those for every request."""
    emulator.faults.add(Status(500), on="any", times=None)
    before = (len(emulator.journal), emulator.service.usage(clock.now()), emulator.open_connections)
    with emulator.hold(on="any") as hold, events(emulator) as stream:
        next(stream)
        for path in ("", "page.css", "page.js", "icon.svg", "state", "faults", "nothing", "?x=/api/auth/token"):
            assert client.page("GET", path).status in (200, 404)
        moved = client.browser.request("GET", f"{emulator.url}/_emulator", redirect=False)
        assert (moved.status, moved.headers["Location"]) == (308, "/_emulator/")
        assert hold.held == 0
        after = (len(emulator.journal), emulator.service.usage(clock.now()), emulator.open_connections)
    assert after == before
    assert next(iter(emulator.faults)).used == 0


@pytest.mark.parametrize("path", ["/api/_emulator/", "/_emulators", "/api/echo?/_emulator/", "//_emulator/"])
def test_what_only_looks_like_the_page_is_the_services(emulator: Emulator, client: Client, path: str) -> None:
    """It is in the journal."""
    client.call(path)
    assert emulator.journal[-1].path == path


def test_every_response_forbids_what_the_page_does_not_need(client: Client) -> None:
    """No inline script or style, no other origin, no frame, no cache; nothing in the files would need one."""
    for path in ("", "page.css", "page.js", "icon.svg", "state", "nothing", "faults"):
        headers = client.page("GET", path).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert ("unsafe" not in policy, "frame-ancestors 'none'" in policy) == (True, True)
        assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
        assert headers["Connection"] == "close"
    static = resources.files("pay88_adapters.testing.page").joinpath("static")
    files = {file.name: file.read_text(encoding="utf-8") for file in static.iterdir()}
    assert set(files) == {"index.html", "page.css", "page.js", "icon.svg"}
    assert not any(word in files["index.html"] for word in ("style=", "onclick", "https://", "<style"))
    assert not any(word in files["page.js"] for word in ("innerHTML", "eval(", "https://"))
    assert sum(map(len, files.values())) < 60_000
