"""`pay88 emulator`: a server for any client, from its first line to a signal."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import ssl
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import Credentials, TokenManager
from pay88_adapters.cli.faults import Planned, parse
from pay88_adapters.cli.serving import Tail
from pay88_adapters.testing import (
    Drip,
    Emulator,
    Garbage,
    HugeBody,
    Latency,
    RefuseToken,
    ResetAfterRead,
    ResetBeforeRead,
    Status,
    TooMany,
    Truncated,
)
from support.authority import new_authority
from support.commands import run, started

posix = pytest.mark.skipif(os.name != "posix", reason="no such signals here")


class Served:
    """A running `pay88 emulator`.

    Args:
        process: Its process.
    """

    def __init__(self, process: Any) -> None:
        self.process = process
        self.first = process.stdout.readline()
        self.variables: dict[str, str] = {}
        if self.first.startswith("{"):
            self.variables = json.loads(self.first)["environment"]
        else:
            self.page = process.stdout.readline()
        for _ in range(0 if self.variables else 3):
            word, assignment = shlex.split(process.stdout.readline())
            assert word == "export"
            name, _, value = assignment.partition("=")
            self.variables[name] = value

    def manager(self) -> TokenManager:
        """Return a manager with the printed variables."""
        return TokenManager.from_env(self.variables)

    def ask(self, path: str, headers: dict[str, str], context: ssl.SSLContext | None = None) -> int:
        """Send a POST without this package; return the status code."""
        scheme, _, host = self.variables["PAY88_BASE_URL"].partition("://")
        connection: http.client.HTTPConnection
        if scheme == "https":
            connection = http.client.HTTPSConnection(host, timeout=10, context=context)
        else:
            connection = http.client.HTTPConnection(host, timeout=10)
        try:
            connection.request("POST", path, headers={**headers, "Content-Length": "0"})
            return connection.getresponse().status
        finally:
            connection.close()

    def end(self, number: int = signal.SIGTERM) -> list[str]:
        """Stop it; return the remaining lines."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        assert (self.process.returncode, err) == (0, "")
        lines: list[str] = out.splitlines()
        return lines


@contextmanager
def serving(*arguments: str) -> Generator[Served, None, None]:
    """Run it on a free port."""
    with started("emulator", "--port", "0", *arguments) as process:
        yield Served(process)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_logs_each_request(number: int) -> None:
    """The printed variables work unchanged; no secret is logged; exit code 0."""
    with serving("--fault", "call:503", "--merchant-id", "MCH-IT'S-MINE") as served:
        assert served.first == f"# Emulator running at {served.variables['PAY88_BASE_URL']} (press Ctrl-C to stop)\n"
        assert served.page.endswith(f" {served.variables['PAY88_BASE_URL']}/_emulator/\n")
        assert served.variables["PAY88_MERCHANT_ID"] == "MCH-IT'S-MINE"
        with served.manager() as manager:
            token = manager.get_token()
        assert [served.ask("/api/balance", token.headers()) for _ in range(2)] == [503, 200]
        assert served.ask(f"/api/echo?leak={token.session_id}&key=sk_test_emulator", {}) == 401
        lines = served.end(number)
    assert [line.split("  ")[:3] for line in lines[:3]] == [
        ["POST /api/auth/token", "200", "issued"],
        ["POST /api/balance", "503", "failed"],
        ["POST /api/balance", "200", "balance"],
    ]
    assert lines[1].endswith("fault: Status")
    assert lines[3].startswith("POST /api/echo?leak=[secret]&key=[secret]  401")
    assert not any(value in "\n".join(lines) for value in (token.session_id, token.access_token))


@posix
def test_a_program_gets_a_document_for_each_line(tmp_path: Path) -> None:
    """Over TLS, with a fast clock and other limits."""
    authority = new_authority()
    cert = authority.issue_cert("127.0.0.1")
    cert.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    cert.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    options = ["--tls", f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem", "--token-limits", "1/minute", "--json"]
    with serving(*options, "--speed", "50", "--lifetime", "30", "--api-key", "sk_test_mine") as served:
        assert served.variables["PAY88_BASE_URL"].startswith("https://127.0.0.1:")
        key = {"x-api-key": "sk_test_mine", "x-merchant-id": served.variables["PAY88_MERCHANT_ID"]}
        assert [served.ask("/api/auth/token", key, context) for _ in range(2)] == [200, 429]
        documents = [json.loads(line) for line in served.end()]
    assert [(each["event"], each["status"], each["outcome"]) for each in documents] == [
        ("request", 200, "issued"),
        ("request", 429, "limited"),
    ]
    assert documents[1]["at"] - documents[0]["at"] > 0.01  # of its own seconds: fifty in a real one


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--fault", "call"), "WHERE:WHAT"),
        (("--fault", "call:frogs"), "unknown fault 'frogs'"),
        (("--token-limits", "many"), "write 'off'"),
        (("--api-key", "sk_live_real"), "use a made-up key"),
        (("--tls", "/no/cert", "/no/key"), "does not exist"),
        (("--lifetime", "0"), "--lifetime"),
        (("--speed", "0"), "--speed"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], said: str) -> None:
    """Before the server starts."""
    ended = run("emulator", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


def test_files_that_are_not_a_certificate_exit_with_2(tmp_path: Path) -> None:
    """The error names them."""
    (tmp_path / "cert.pem").write_text("rubbish")
    ended = run("emulator", "--tls", f"{tmp_path}/cert.pem", f"{tmp_path}/cert.pem")
    assert ended.code == 2
    assert "are not a certificate with its key" in ended.err


def test_a_port_that_is_taken_exits_with_1() -> None:
    """And says so."""
    with Emulator() as emulator:
        ended = run("emulator", "--port", str(emulator.port))
    assert (ended.code, ended.out) == (1, "")
    assert "in use" in ended.err


# Faults as they are written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token:500", Planned(Status(500), "token", 1, 0)),
        ("call:401x3", Planned(RefuseToken(), "call", 3, 0)),
        ("call:429xall", Planned(TooMany(), "call", None, 0)),
        ("any:503+2", Planned(Status(503), "any", 1, 2)),
        ("/api/balance:502x2+10", Planned(Status(502), "/api/balance", 2, 10)),
        ("any:latency=0.5xall", Planned(Latency(0.5), "any", None, 0)),
        ("call:drip=2", Planned(Drip(2.0), "call", 1, 0)),
        ("call:reset", Planned(ResetBeforeRead(), "call", 1, 0)),
        ("call:lost", Planned(ResetAfterRead(), "call", 1, 0)),
        ("call:truncated", Planned(Truncated(), "call", 1, 0)),
        ("token:garbage", Planned(Garbage(), "token", 1, 0)),
        ("token:huge", Planned(HugeBody(), "token", 1, 0)),
    ],
)
def test_a_fault_and_its_requests(text: str, expected: Planned) -> None:
    """By default the first request."""
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not of the form"),
        ("500", "is not of the form"),
        ("call:", "is not of the form"),
        ("elsewhere:500", "is not of the form"),
        ("call:99", "is not of the form"),
        ("call:600", "is not of the form"),
        ("call:500x0", "is not of the form"),
        ("call:500=1", "500 takes no seconds"),
        ("call:latency", "latency needs a number of seconds"),
        ("any:drop", "unknown fault 'drop'"),
    ],
)
def test_an_invalid_fault_is_a_usage_error(text: str, said: str) -> None:
    """The error names the wrong part."""
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_a_request_that_waits_does_not_hold_up_the_log() -> None:
    """Each request is printed when it has finished, whatever the order of arrival."""
    with Emulator() as emulator, emulator.hold(on="token") as hold:
        tail = Tail(emulator.journal)
        credentials = Credentials(emulator.api_key, emulator.merchant_id)
        with TokenManager(credentials, base_url=emulator.url) as manager:
            waiting = _in_background(manager.get_token)
            hold.wait_for(1)
            assert _status(emulator, "/api/echo") == 401
            assert [entry.path for entry in tail.fresh()] == ["/api/echo"]
            hold.release()
            waiting()
        assert [entry.path for entry in tail.fresh()] == ["/api/auth/token"]
        assert tail.fresh() == []


def _in_background(act: Callable[[], object]) -> Callable[[], None]:
    thread = threading.Thread(target=act)
    thread.start()
    return thread.join


def _status(emulator: Emulator, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", emulator.port, timeout=10)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status
