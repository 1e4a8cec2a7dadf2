"""A listener or a client raises what is no ``Exception`` during a fetch, as test doubles and signal handlers do."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import trio

from pay88_adapters import Credentials, Pay88Error, TokenEndpointUnavailable, TokenManager
from pay88_adapters.clock import Clock
from pay88_adapters.events import CallNotSent, CallWaited, Event, RefreshFailed, TokenRequestFailed
from pay88_adapters.httpx import AsyncPay88Transport, Pay88Transport
from pay88_adapters.testing import Emulator, ManualClock
from support.servers import until

Main = Callable[[], Coroutine[Any, Any, None]]
_RUNS: list[Callable[[Main], None]] = [lambda main: asyncio.run(main()), trio.run]
_IDS = ["asyncio", "trio"]


class SoftTimeLimit(BaseException):
    """What a signal handler raises."""


class Raising(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Raises the same exception for each token request."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise self._error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self._error


def _manager(emulator: Emulator, **options: Any) -> TokenManager:
    return TokenManager(Credentials(emulator.api_key, emulator.merchant_id), base_url=emulator.url, **options)


@pytest.mark.parametrize("run", _RUNS, ids=_IDS)
def test_rule_17_a_listener_of_a_failed_fetch_does_not_end_the_run(
    run: Callable[[Main], None], emulator: Emulator
) -> None:
    """It is logged: the task of the fetch has no caller, and trio would end the run with an internal error."""

    def listener(event: Event) -> None:
        if isinstance(event, RefreshFailed):
            raise SystemExit(3)

    def credentials() -> Credentials:
        raise LookupError("no such secret")

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncPay88Transport(manager)) as client:
            with pytest.raises(Pay88Error, match="LookupError"):
                await client.post(f"{emulator.url}/api/balance")

    manager = TokenManager(credentials, base_url=emulator.url, listeners=[listener])
    run(main)
    assert manager.stats().failed_fetches == 1


@pytest.mark.parametrize("run", _RUNS, ids=_IDS)
def test_rule_18_an_exception_of_any_kind_of_the_client_is_named(
    run: Callable[[Main], None], emulator: Emulator
) -> None:
    """It is no outage."""
    manager = _manager(emulator)

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncPay88Transport(manager, Raising(SoftTimeLimit("now")))) as client:
            with pytest.raises(TokenEndpointUnavailable, match=r"SoftTimeLimit.*: now$") as raised:
                await client.post(f"{emulator.url}/api/balance")
        assert not raised.value.retryable

    run(main)
    assert not manager.stats().fetching


class Quoting(Raising):
    """Raises what it was given to send."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise SoftTimeLimit(request.headers)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise SoftTimeLimit(request.headers)


@pytest.mark.parametrize("run", _RUNS, ids=_IDS)
def test_rule_15_an_exception_that_quotes_the_key(run: Callable[[Main], None]) -> None:
    """No error shows it, in a task or a thread, even if it does not look like a key."""
    key = "correct-horse-battery-staple"

    async def main() -> None:
        with TokenManager(Credentials(key, "MCH-1"), base_url="http://127.0.0.1:9") as manager:
            async with httpx.AsyncClient(transport=AsyncPay88Transport(manager, Quoting(SoftTimeLimit()))) as client:
                with pytest.raises(TokenEndpointUnavailable, match="SoftTimeLimit") as raised:
                    await client.get("http://127.0.0.1:9/api/balance")
        errors.append(raised.value)

    errors: list[BaseException] = []
    run(main)
    with (
        TokenManager(Credentials(key, "MCH-1"), base_url="http://127.0.0.1:9") as manager,
        httpx.Client(transport=Pay88Transport(manager, Quoting(SoftTimeLimit()))) as client,
        pytest.raises(TokenEndpointUnavailable, match="SoftTimeLimit") as raised,
    ):
        client.get("http://127.0.0.1:9/api/balance")
    for error in (*errors, raised.value):
        assert key not in "".join(traceback.format_exception(error))


class Failing(Raising):
    """Responds with 503 first."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self._responses = [httpx.Response(503)]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._responses.pop() if self._responses else super().handle_request(request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


@pytest.mark.parametrize("run", [*_RUNS, None], ids=[*_IDS, "threads"])
def test_rule_16_the_events_of_a_fetch_that_ends_before_its_outcome(run: Callable[[Main], None] | None) -> None:
    """Listeners get those from before, too."""
    url, failed = "http://127.0.0.1:9/api/balance", "503"
    events: list[Event] = []
    clock = ManualClock(auto_advance=True)
    who = Credentials("sk_test_1", "MCH-1")

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncPay88Transport(manager, Failing(SoftTimeLimit()))) as client:
            with pytest.raises(TokenEndpointUnavailable, match=failed):
                await client.get(url)

    with TokenManager(who, base_url="http://127.0.0.1:9", listeners=[events.append], clock=clock) as manager:
        if run is not None:
            run(main)
        else:
            with (
                httpx.Client(transport=Pay88Transport(manager, Failing(SoftTimeLimit()))) as client,
                pytest.raises(TokenEndpointUnavailable, match=failed),
            ):
                client.get(url)
    until(lambda: len(events) >= 4)  # the thread of a fetch calls them after its callers have their error
    assert [type(each) for each in events if not isinstance(each, (CallWaited, CallNotSent))] == [
        TokenRequestFailed,
        RefreshFailed,
    ]


def test_rule_17_sys_exit_of_a_transport_causes_no_internal_error_of_trio(emulator: Emulator) -> None:
    """On asyncio it ends the run, as without a manager."""
    manager = _manager(emulator)

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncPay88Transport(manager, Raising(SystemExit(3)))) as client:
            with pytest.raises(TokenEndpointUnavailable, match="SystemExit"):
                await client.post(f"{emulator.url}/api/balance")

    trio.run(main)
    assert not manager.stats().fetching


def test_rule_16_an_interrupt_reaches_the_caller_where_no_thread_can_be_started(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fetch runs on the thread of its caller."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    manager = _manager(emulator)
    with httpx.Client(transport=Pay88Transport(manager, Raising(KeyboardInterrupt()))) as client:
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            client.post(f"{emulator.url}/api/balance")
    assert not manager.stats().fetching


def test_rule_17_an_overdue_fetch_where_no_thread_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subinterpreter of Python 3.12 cannot import ctypes: requests fail with an error of the package."""
    monkeypatch.setitem(sys.modules, "ctypes", None)
    ends = threading.Event()

    def credentials() -> Credentials:
        ends.wait()
        raise LookupError("too late")

    manager = TokenManager(credentials, base_url="http://127.0.0.1:9", clock=Clock(speed=100))
    for _ in range(3):
        with pytest.raises(Pay88Error, match=r"credentials provider|no credentials"):
            manager.get_token()
    ends.set()


def _terminated() -> Credentials:
    """Return no credentials: SIGTERM arrives first, for which a program has the usual handler."""
    signal.raise_signal(signal.SIGTERM)
    raise AssertionError


async def _terminated_later() -> Credentials:
    return _terminated()


@pytest.fixture
def exits_on_sigterm() -> Iterator[None]:
    """Install the usual handler."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("exits_on_sigterm")
@pytest.mark.parametrize(
    ("provider", "standalone"), [(_terminated, False), (_terminated_later, False), (_terminated_later, True)]
)
def test_rule_17_sys_exit_during_a_credentials_provider_ends_the_run(
    provider: Callable[[], Any], standalone: bool
) -> None:
    """The signal strikes on the thread of the event loop, where a provider may block."""
    manager = TokenManager(provider, base_url="http://127.0.0.1:9")
    went_on = False

    async def main() -> None:
        nonlocal went_on
        with suppress(Pay88Error):
            if standalone:
                await manager.aget_token()
            else:
                async with httpx.AsyncClient(transport=AsyncPay88Transport(manager)) as client:
                    await client.get("http://127.0.0.1:9/api/balance")
        went_on = True

    with pytest.raises(SystemExit) as raised:
        asyncio.run(main())
    assert (raised.value.code, went_on) == (7, False)


@pytest.mark.usefixtures("exits_on_sigterm")
@pytest.mark.parametrize("provider", [_terminated, _terminated_later])
def test_rule_17_sys_exit_during_a_credentials_provider_is_no_internal_error_of_trio(
    provider: Callable[[], Any],
) -> None:
    """It is named."""

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncPay88Transport(manager)) as client:
            with pytest.raises(Pay88Error, match="credentials provider raised SystemExit"):
                await client.get("http://127.0.0.1:9/api/balance")

    manager = TokenManager(provider, base_url="http://127.0.0.1:9")
    trio.run(main)


def test_rule_17_sys_exit_of_a_credentials_provider_in_a_thread_of_the_package() -> None:
    """It ends no thread silently: the caller gets an error."""

    def provider() -> Credentials:
        sys.exit("no such secret")

    with pytest.raises(Pay88Error, match="credentials provider raised SystemExit"):
        TokenManager(provider, base_url="http://127.0.0.1:9").get_token()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SoftTimeLimit(), SystemExit(7)], ids=lambda each: type(each).__name__
)
@pytest.mark.parametrize("is_async", [False, True])
def test_rule_17_an_interrupt_during_a_credentials_provider_reaches_the_caller_where_no_thread_can_be_started(
    error: BaseException, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider runs on the thread of the caller."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def provider() -> Credentials:
        raise error

    async def async_provider() -> Credentials:
        raise error

    manager = TokenManager(async_provider if is_async else provider, base_url="http://127.0.0.1:9")
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(type(error)):
        manager.get_token()
    assert not manager.stats().fetching
