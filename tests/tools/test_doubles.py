"""Doubles of HTTP clients instead of 88Pay, with and without a token endpoint, and beside the emulator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

import aiohttp
import pook
import pytest
import requests
import requests_mock
import responses
import respx
from mocket import Mocketizer
from mocket.mockhttp import Entry
from recipes import blocks
from toolkit import BY_LIBRARY

from pay88_adapters import SANDBOX_URL, Credentials, TokenEndpointUnavailable, TokenManager, TokenPolicy
from pay88_adapters.testing import Emulator

BALANCE, TOKEN_URL = f"{SANDBOX_URL}/api/balance", f"{SANDBOX_URL}/api/auth/token"
TOKEN = {"data": {"access_token": "made-up", "session_id": "made-up", "expires_in": 60}}

Double = Callable[[bool], AbstractContextManager[Any]]

pytestmark = pytest.mark.usefixtures("pay88_isolated")


@contextmanager
def in_responses(token: bool) -> Iterator[None]:
    """A double above the pools of requests."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as double:
        double.post(BALANCE, json={})
        if token:
            double.post(TOKEN_URL, json=TOKEN)
        yield


@contextmanager
def in_requests_mock(token: bool) -> Iterator[None]:
    """A double instead of the session's adapters."""
    with requests_mock.Mocker() as double:
        double.post(BALANCE, json={})
        if token:
            double.post(TOKEN_URL, json=TOKEN)
        yield


@contextmanager
def in_respx(token: bool) -> Iterator[None]:
    """A double below the transports of httpx."""
    with respx.mock(assert_all_called=False) as double:
        double.post(BALANCE).respond(json={})
        if token:
            double.post(TOKEN_URL).respond(json=TOKEN)
        yield


@contextmanager
def in_pook(token: bool) -> Iterator[None]:
    """A double of several libraries."""
    with pook.use():
        pook.post(BALANCE).response(200).json({})
        if token:
            pook.post(TOKEN_URL).response(200).json(TOKEN)
        yield


@contextmanager
def in_mocket(token: bool) -> Iterator[None]:
    """A double of sockets."""
    with Mocketizer(strict_mode=True):
        Entry.single_register(Entry.POST, BALANCE, body="{}")
        if token:
            Entry.single_register(Entry.POST, TOKEN_URL, body=json.dumps(TOKEN))
        yield


def tool(name: str, library: str, double: Double, **verdict: str) -> Any:
    """Return a parameter that fills a cell of the table."""
    marks = [pytest.mark.tool(name, library, **verdict)]
    if double is in_mocket:  # it closes no socket
        marks += map(pytest.mark.filterwarnings, ("ignore::ResourceWarning", "ignore:Exception ignored in. <socket"))
    return pytest.param(library, double, marks=marks, id=f"{name}-{library}")


ABOVE = [tool("responses", "requests", in_responses), tool("requests-mock", "requests", in_requests_mock)]
"""Doubles that response before a token is needed."""

BELOW = [
    tool("respx", "httpx", in_respx, setting="the token endpoint"),
    tool("pook", "urllib3", in_pook, setting="the token endpoint"),
    tool("pook", "requests", in_pook, setting="the token endpoint"),
    *(tool("mocket", library, in_mocket, setting="the token endpoint") for library in ("urllib3", "requests", "httpx")),
]
"""Doubles that see the token request as well."""


def balance(library: str) -> int:
    """Make one call, with a manager of its own."""
    manager = TokenManager(Credentials("sk_test_1", "MCH-COL-1"), policy=TokenPolicy(fetch_attempts=1))
    client = BY_LIBRARY[library](manager)
    try:
        return client.request("POST", BALANCE).status
    finally:
        client.close()


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize(("library", "double"), [*ABOVE, *BELOW])
def test_with_a_token_endpoint(library: str, double: Double, turn: int) -> None:
    """The double responds, also in the next test."""
    with double(True):
        assert balance(library) == 200


@pytest.mark.parametrize(("library", "double"), ABOVE)
def test_without_a_token_endpoint_above_the_adapter(library: str, double: Double) -> None:
    """No token is needed."""
    with double(False):
        assert balance(library) == 200


@pytest.mark.parametrize(("library", "double"), BELOW)
def test_without_a_token_endpoint_below_the_adapter(library: str, double: Double) -> None:
    """The error names the double's own; it is no outage, and causes no cooldown."""
    with double(False):
        for _ in range(2):
            with pytest.raises(TokenEndpointUnavailable, match=r"(respx|pook|mocket)\.") as failed:
                balance(library)
            assert not failed.value.retryable
    with double(True):
        assert balance(library) == 200


@pytest.mark.tool(
    "aioresponses", "aiohttp", reason="it does not support aiohttp 3.14 yet, with or without this package"
)
@pytest.mark.tool("pook", "aiohttp", reason="it does not support aiohttp 3.14 yet, with or without this package")
@pytest.mark.parametrize("name", ["aioresponses", "pook"])
def test_what_does_not_work_with_the_client_itself(name: str) -> None:
    """If this fails, a release has mended it: the table should say so."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session, session.post(BALANCE):
            pass

    with in_pook(False) if name == "pook" else import_module("aioresponses").aioresponses() as double:
        if double is not None:
            double.post(BALANCE, payload={})
        with pytest.raises(TypeError, match="stream_writer"):
            asyncio.run(main())


@pytest.mark.tool("pytest-httpx", "httpx", setting="the token endpoint")
def test_pytest_httpx(httpx_mock: Any) -> None:
    """Its fixture sees both requests."""
    httpx_mock.add_response(url=TOKEN_URL, json=TOKEN)
    httpx_mock.add_response(url=BALANCE, json={})
    assert balance("httpx") == 200
    _, request = httpx_mock.get_requests()
    assert request.headers["x-session-id"] == "made-up"


@pytest.mark.tool("pytest-httpserver", setting="the token endpoint")
def test_pytest_httpserver(library: str, httpserver: Any) -> None:
    """A server for all clients; its address is the base URL."""
    httpserver.expect_request("/api/auth/token", method="POST").respond_with_json(TOKEN)
    httpserver.expect_request("/api/balance", headers={"x-session-id": "made-up"}).respond_with_json({})
    manager = TokenManager(Credentials("sk_test_1", "MCH-COL-1"), base_url=httpserver.url_for(""))
    client = BY_LIBRARY[library](manager)
    try:
        assert client.request("POST", httpserver.url_for("/api/balance")).status == 200
    finally:
        client.close()


@pytest.fixture
def beside(pay88_emulator: Emulator, pay88_manager: TokenManager) -> Callable[[str], tuple[int, int]]:
    """Return what calls 88Pay at the emulator, and another service at a double."""

    def call(library: str) -> tuple[int, int]:
        client = BY_LIBRARY[library](pay88_manager)
        try:
            charged = client.request("POST", f"{pay88_emulator.url}/api/balance").status
            return charged, client.request("GET", "https://other.example/").status
        finally:
            client.close()

    return call


def test_responses_beside_the_emulator(pay88_emulator: Emulator, beside: Callable[[str], tuple[int, int]]) -> None:
    """Everything else passes through to it."""
    with responses.RequestsMock() as double:
        double.add_passthru(pay88_emulator.url)
        double.get("https://other.example/", status=204)
        assert beside("requests") == (200, 204)
    assert pay88_emulator.journal.token_requests == 1


def test_requests_mock_beside_the_emulator(pay88_emulator: Emulator, beside: Callable[[str], tuple[int, int]]) -> None:
    """Everything else passes through to it."""
    with requests_mock.Mocker(real_http=True) as double:
        double.get("https://other.example/", status_code=204)
        assert beside("requests") == (200, 204)
    assert pay88_emulator.journal.token_requests == 1


def test_respx_beside_the_emulator(pay88_emulator: Emulator, beside: Callable[[str], tuple[int, int]]) -> None:
    """Everything else passes through to it."""
    with respx.mock() as double:
        double.route(url__startswith=pay88_emulator.url).pass_through()
        double.get("https://other.example/").respond(204)
        assert beside("httpx") == (200, 204)
    assert pay88_emulator.journal.token_requests == 1


@pytest.mark.parametrize("library", ["urllib3", "requests"])
def test_pook_beside_the_emulator(
    library: str, pay88_emulator: Emulator, beside: Callable[[str], tuple[int, int]]
) -> None:
    """Everything else passes through to it."""
    with pook.use(network=True):
        pook.enable_network("127.0.0.1")
        pook.get("https://other.example/").response(204)
        assert beside(library) == (200, 204)
    assert pay88_emulator.journal.token_requests == 1


@pytest.mark.httpx_mock(should_mock=lambda request: request.url.host != "127.0.0.1")
def test_pytest_httpx_beside_the_emulator(
    httpx_mock: Any, pay88_emulator: Emulator, beside: Callable[[str], tuple[int, int]]
) -> None:
    """Everything else passes through to it."""
    httpx_mock.add_response(url="https://other.example/", status_code=204)
    assert beside("httpx") == (200, 204)
    assert pay88_emulator.journal.token_requests == 1


ORDERS = [["-p", "xdist.plugin", "-n", "2"], *(["-p", "pytest_randomly", f"--randomly-seed={seed}"] for seed in (1, 2))]


@pytest.mark.parametrize("options", ORDERS, ids=" ".join)
def test_isolated_tests_in_any_order(
    options: list[str], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of docs/testing.md, on several workers and in random order."""
    for block in blocks("testing", "file"):
        if block.about.startswith("test_isolated"):
            pytester.path.joinpath(block.about).write_text(block.text)
    pytester.makeini("[pytest]")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = pytester.runpytest_subprocess("-p", "_pay88_pytest", *options)
    assert set(result.parseoutcomes()) == {"passed"}


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
def test_a_blocked_network() -> None:
    """pytest-socket: the error names it."""
    pytest_socket = import_module("pytest_socket")
    session = requests.Session()
    manager = TokenManager(Credentials("sk_test_1", "MCH-COL-1"))
    import_module("pay88_adapters.requests").attach(session, manager)
    pytest_socket.disable_socket()
    try:
        with pytest.raises(TokenEndpointUnavailable, match="SocketBlockedError") as failed:
            session.post(BALANCE)
    finally:
        pytest_socket.enable_socket()
    assert not failed.value.retryable
