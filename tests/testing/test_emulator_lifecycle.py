"""Starting, stopping, and many concurrent clients."""

from __future__ import annotations

import gc
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import urllib3

from pay88_adapters.testing import (
    Emulator,
    Garbage,
    Latency,
    ResetAfterRead,
    ResetBeforeRead,
    Service,
    Truncated,
)
from support.authority import new_authority
from support.emulators import ECHO, Client, _connected, _request


def together(count: int, act: Callable[[int], Any]) -> list[Any]:
    """Run something in *count* threads concurrently; return the results."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(act, range(count)))


def test_a_thousand_concurrent_connections() -> None:
    """Opened together and all served; none is rejected, reset or forgotten."""
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
    """Pipelined without a pause, each gets one response and one entry in the journal."""
    request = _request("GET", ECHO, {**client.headers, "Host": "x"})
    mark = emulator.journal.mark()

    def converse(_: int) -> int:
        with _connected(emulator) as sock, sock.makefile("rb") as responses:
            sock.sendall(request * 30)
            return sum(_responded(responses) == 200 for _ in range(30))

    assert sum(together(100, converse)) == 3_000
    entries = emulator.journal.select("call", since=mark)
    assert (len(entries), {entry.status for entry in entries}) == (3_000, {200})


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
    """Reading its URL is an error; its repr is not, nor is stopping it."""
    emulator = Emulator()
    emulator.stop()
    with pytest.raises(RuntimeError, match="no port before"):
        _ = emulator.url
    with pytest.raises(RuntimeError, match="not running"):
        emulator.drop_connections()
    assert "stopped" in repr(emulator)


def test_an_outage_ends_where_it_began(emulator: Emulator, client: Client) -> None:
    """Stopped: connections are rejected. Started again: the same port, tokens and journal."""
    emulator.stop()
    with pytest.raises(urllib3.exceptions.HTTPError):
        client.call()
    with pytest.raises(urllib3.exceptions.NewConnectionError):
        client.call()
    emulator.start()
    assert client.call().status == 200
    assert (emulator.journal.token_requests, emulator.journal.calls) == (1, 1)


def test_dropped_connections_end_and_new_ones_are_served(emulator: Emulator, client: Client) -> None:
    """Idle connections are closed immediately."""
    with _connected(emulator) as sock:
        sock.sendall(_request("GET", ECHO, {**client.headers, "Host": "x"}))
        with sock.makefile("rb") as responses:
            assert _responded(responses) == 200
            emulator.drop_connections()
            assert responses.read(1) == b""
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
    """HTTPS with your own certificate: a response, a reset, and a quick stop."""
    authority = new_authority()
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
    """All arguments of a service are available, and its credentials are the emulator's."""
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


def _responded(stream: Any) -> int:
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


def _raised(act: Callable[[], object]) -> bytes:
    try:
        act()
    except Exception as exc:  # noqa: BLE001 - whatever it is, the parent wants its name
        return type(exc).__name__.encode() + b" "
    return b"nothing "


def test_stopping_closes_connections_that_were_just_accepted() -> None:
    """Also where a connection and the stop reach the server's loop in the same turn: nothing stays open."""
    emulator = Emulator().start()
    loop, entered, resume = emulator._loop, threading.Event(), threading.Event()
    assert loop is not None

    def busy() -> None:
        entered.set()
        resume.wait(10)

    loop.call_soon_threadsafe(busy)
    assert entered.wait(10)
    clients = [socket.create_connection(("127.0.0.1", emulator.port)) for _ in range(5)]
    stopping = threading.Thread(target=emulator.stop)
    stopping.start()
    while not loop._ready:  # type: ignore[attr-defined]  # the stop is the first in line
        time.sleep(0.001)
    resume.set()
    stopping.join(10)
    for client in clients:
        client.settimeout(10)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        client.close()


def test_the_date_is_that_of_the_wall_clock_it_was_given() -> None:
    """As every date of a response is, and errors are dated too."""
    with Emulator(wall=lambda: 1_700_000_000.0) as emulator, urllib3.PoolManager() as http:
        for path in ("/api/auth/token", "/api/balance", "/elsewhere"):
            response = http.request("POST", emulator.url + path)
            assert response.headers["Date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
