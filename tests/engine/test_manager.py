"""The manager without an HTTP client."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from pay88_adapters import ConfigurationError, Credentials, Token, TokenEndpointUnavailable, TokenManager, TokenPolicy
from pay88_adapters.clock import Clock
from pay88_adapters.core.wire import TokenRequest, TokenResponse
from pay88_adapters.engine.fetches import FetchRun
from pay88_adapters.httpx import AsyncPay88Transport, Pay88Transport
from pay88_adapters.testing import Emulator, ManualClock, Status
from support.servers import until


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An emulator on a clock that the test moves."""
    with Emulator(clock=ManualClock()) as emulator:
        yield emulator


def advance(emulator: Emulator, seconds: float) -> None:
    """Move the emulator's clock."""
    assert isinstance(emulator.clock, ManualClock)
    emulator.clock.advance(seconds)


def manager_for(emulator: Emulator, store: str = "memory://", **policy: Any) -> TokenManager:
    """A manager on the emulator's clock."""
    credentials = Credentials(emulator.api_key, emulator.merchant_id)
    return TokenManager(
        credentials,
        base_url=emulator.url,
        policy=TokenPolicy(**policy),
        clock=emulator.clock,
        store=store,
    )


def test_a_token_can_be_fetched_without_any_client(emulator: Emulator) -> None:
    """From a thread, an asyncio task and a trio task: the same token, for one token request."""
    manager = manager_for(emulator)
    tokens = [manager.get_token(), asyncio.run(manager.aget_token()), trio.run(manager.aget_token)]
    assert tokens[0] is tokens[1] is tokens[2]
    assert emulator.journal.token_requests == 1
    headers = tokens[0].headers()
    assert set(headers) == {"Authorization", "x-session-id"}
    assert str(headers["Authorization"]) == f"Bearer {tokens[0].access_token!s}"


@pytest.mark.parametrize("run", [lambda job: asyncio.run(job()), trio.run], ids=["asyncio", "trio"])
def test_a_cold_start_may_be_async(emulator: Emulator, run: Callable[..., object]) -> None:
    """The event loop continues while a thread of its own fetches the token."""
    assert isinstance(run(manager_for(emulator).aget_token), Token)
    assert emulator.journal.token_requests == 1


def test_min_validity_fetches_a_younger_token(emulator: Emulator) -> None:
    """A token that ends too soon is replaced; one that lasts is not; what no token can last is rejected."""
    manager = manager_for(emulator)
    first = manager.get_token()
    advance(emulator, 20)
    assert manager.get_token(min_validity=30) is first
    second = manager.get_token(min_validity=45)
    assert second is not first
    assert asyncio.run(manager.aget_token(min_validity=45)) is second
    for impossible in (-1, 60, float("nan")):
        with pytest.raises(ConfigurationError):
            manager.get_token(min_validity=impossible)


def test_min_validity_looks_at_what_others_have_fetched(emulator: Emulator, tmp_path: Path) -> None:
    """A new process uses the shared token, and replaces it only if its remaining lifetime is too short."""

    def got(min_validity: float) -> Token:
        manager = manager_for(emulator, store=f"sqlite:///{tmp_path}/tokens.db")
        token = manager.get_token(min_validity=min_validity)
        deadline = time.monotonic() + 10
        while manager.stats().fetching:  # until the others can have it
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return token

    first = got(0)
    advance(emulator, 30)
    assert got(20) == first
    assert emulator.journal.token_requests == 1
    second = got(45)
    assert second != first
    assert got(45) == second
    assert emulator.journal.token_requests == 2


def test_min_validity_fetches_once_where_no_token_lasts(emulator: Emulator) -> None:
    """Tokens with a lifetime below the documented one do not cause another token request."""
    emulator.service.lifetime = 20
    assert manager_for(emulator).get_token(min_validity=45).expires_in == 20
    assert emulator.journal.token_requests == 1


def test_min_validity_does_without_where_no_fetch_can_be_made(emulator: Emulator) -> None:
    """An older token is better than an error."""
    manager = manager_for(emulator, fetch_attempts=1)
    first = manager.get_token()
    advance(emulator, 20)
    emulator.faults.add(Status(500), on="token", times=None)
    assert manager.get_token(min_validity=45) is first


def test_invalidate_forgets_only_the_current_token(emulator: Emulator) -> None:
    """An older token's end changes nothing."""
    manager = manager_for(emulator)
    first = manager.get_token()
    manager.invalidate(first)
    second = manager.get_token()
    manager.invalidate(first)
    assert manager.get_token() is second is not first


def test_rule_04_managers_of_one_process_share_the_token(emulator: Emulator) -> None:
    """Two of them for one key: one token request, and the refresh of one serves both."""
    one, other = manager_for(emulator), manager_for(emulator)
    for requests in (1, 2):
        token = one.get_token()
        until(lambda: not one.stats().fetching)  # its lease has been released, too: the fake clock has not moved
        assert other.get_token() == token
        assert emulator.journal.token_requests == requests
        advance(emulator, 51)
    assert other.stats().token_requests == 0


def test_rule_04_managers_of_one_merchant_share_the_budget(emulator: Emulator) -> None:
    """Another key has its own token; the used units count for both."""
    emulator.service.accept_credentials("sk_test_another")
    one = manager_for(emulator)
    other = TokenManager(
        Credentials("sk_test_another", emulator.merchant_id), base_url=emulator.url, clock=emulator.clock
    )
    assert one.get_token() != other.get_token()
    assert one.stats().budget_left == other.stats().budget_left == {"10 per 1 minute": 8, "100 per 1 hour": 98}


def test_shared_returns_the_same_manager_for_the_same_arguments() -> None:
    """From any thread; other arguments, or a closed manager, give another."""
    credentials = Credentials("sk_test_shared", "MCH-COL-SHARED")
    found: list[TokenManager] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(TokenManager.shared(Credentials("sk_test_shared", "MCH-COL-SHARED")))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert TokenManager.shared(credentials, policy=TokenPolicy(max_wait=1)) is not found[0]
    found[0].close()
    assert TokenManager.shared(credentials) is not found[0]


def test_a_closed_manager_says_so(emulator: Emulator) -> None:
    """All forms of closing, and after each of them an error that says what to do."""
    with manager_for(emulator) as manager:
        manager.get_token()
    with pytest.raises(ConfigurationError):
        manager.get_token()

    async def asynchronously() -> TokenManager:
        async with manager_for(emulator) as manager:
            await manager.aget_token()
        return manager

    closed = asyncio.run(asynchronously())
    with pytest.raises(ConfigurationError):
        asyncio.run(closed.aget_token())


class Meddler(Token):
    """A token whose comparison invalidates another one, as a finalizer or a signal handler may at any moment."""

    __slots__ = ("act",)
    act: Callable[[], object]

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__("eyJ.x", "sess_x", 60.0, 0.0)
        object.__setattr__(self, "act", act)

    def __eq__(self, other: object) -> bool:
        self.act()
        return super().__eq__(other)

    __hash__ = Token.__hash__


def test_rule_17_a_token_that_is_invalidated_while_another_one_is_discarded_is_not_forgotten(
    emulator: Emulator,
) -> None:
    """The next request fetches a new one."""
    manager = manager_for(emulator)
    tokens = [manager.get_token()]
    manager.invalidate(Meddler(lambda: manager.invalidate(tokens.pop()) if tokens else None))
    assert not tokens
    manager.get_token()
    assert emulator.journal.token_requests == 2


def test_close_wakes_a_waiter(emulator: Emulator) -> None:
    """Closing the manager wakes the waiters for a token."""
    manager = manager_for(emulator)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            manager.get_token()
        except ConfigurationError as exc:
            errors.append(exc)

    with emulator.hold("token") as held:
        thread = threading.Thread(target=ask)
        thread.start()
        held.wait_for(1)
        manager.close()
        thread.join(10)
    assert len(errors) == 1


def test_the_error_of_a_dead_endpoint_names_its_cause() -> None:
    """No server listens at the port: the error is raised immediately, with the network's own as its cause."""
    manager = TokenManager(
        Credentials("sk_test_dead", "MCH-COL-DEAD"), base_url="http://127.0.0.1:9", clock=Clock(speed=100)
    )
    with pytest.raises(TokenEndpointUnavailable) as caught:
        manager.get_token()
    assert caught.value.__cause__ is not None
    assert caught.value.retry_after is not None


def test_importing_the_package_imports_no_http_library() -> None:
    """A user of one client library does not pay for the others."""
    check = (
        "import sys, pay88_adapters;"
        "print([m for m in ('urllib3','requests','httpx','httpx2','aiohttp','trio','rich') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("stack", ["urllib3", "httpx", "aiohttp"])
def test_a_missing_library_is_named_with_its_extra(stack: str) -> None:
    """Importing an adapter without its library says what to install."""
    check = f"import sys; sys.modules[{stack!r}] = None; import pay88_adapters.{stack}"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"ImportError: {stack} is not installed: pip install 'pay88-adapters[{stack}]'" in result.stderr


@pytest.mark.parametrize("gone", [(), ("urllib3",), ("urllib3", "httpx")], ids=["all", "no urllib3", "aiohttp alone"])
def test_whichever_library_is_installed_fetches_the_token(emulator: Emulator, gone: tuple[str, ...]) -> None:
    """A manager without a client uses urllib3, else httpx, else aiohttp."""
    script = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {gone!r} else find(name, *rest)
for name in {gone!r}:
    sys.modules[name] = None
from pay88_adapters import Credentials, TokenManager
manager = TokenManager(Credentials({emulator.api_key!r}, {emulator.merchant_id!r}), base_url={emulator.url!r})
print(manager.get_token().expires_in)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("60.0", "")


def test_without_any_library_the_error_names_the_extras(emulator: Emulator) -> None:
    """Nothing to send a token request with is a mistake of the installation."""
    script = f"""
import importlib.util
importlib.util.find_spec = lambda name, *rest: None
from pay88_adapters import ConfigurationError, Credentials, TokenManager
manager = TokenManager(Credentials({emulator.api_key!r}, {emulator.merchant_id!r}), base_url={emulator.url!r})
try:
    manager.get_token()
except ConfigurationError as exc:
    print("pay88-adapters[urllib3]" in str(exc))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("True", "")


def test_a_transport_that_is_no_network_can_be_wrapped() -> None:
    """httpx's own mock transport hands over responses that were read before: sync and async alike."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/auth/token":
            token = {"access_token": "eyJ.a.b", "session_id": "sess_1", "expires_in": 60}
            return httpx.Response(200, json={"data": token})
        return httpx.Response(200 if "x-session-id" in request.headers else 401)

    inner = httpx.MockTransport(respond)
    manager = TokenManager(Credentials("sk_test_mock", "MCH-COL-MOCK"), clock=ManualClock())
    url = f"{manager.base_url}/api/balance"
    with httpx.Client(transport=Pay88Transport(manager, inner)) as client:
        assert client.post(url).status_code == 200

    async def asynchronously() -> int:
        other = TokenManager(Credentials("sk_test_mock", "MCH-COL-MOCK"), clock=ManualClock())
        async with httpx.AsyncClient(transport=AsyncPay88Transport(other, inner)) as client:
            return (await client.post(url)).status_code

    assert asyncio.run(asynchronously()) == 200


class NeverResponds:
    """A sender, and the event loop it runs on, that stop in the middle of a fetch."""

    key = "a loop"
    is_running = True
    cancelled = asyncio.CancelledError
    network_errors = (OSError,)

    @types.coroutine
    def _stop(self) -> Generator[None, None, None]:
        yield

    def is_on(self, thread: int) -> bool:
        """It belongs to no thread."""
        return False

    async def post(self, request: TokenRequest) -> TokenResponse:
        """Wait without end."""
        await self._stop()
        raise AssertionError("unreachable")

    async def with_timeout(self, work: Any, seconds: float) -> Any:
        """Wait for *work*."""
        return await work


def test_rule_17_a_fetch_that_is_collected_with_its_loop_takes_no_lock(emulator: Emulator) -> None:
    """The garbage collector may end it anywhere, also in a thread that holds the lock."""
    manager: Any = manager_for(emulator)
    state = manager._state
    decision = state.transition(lambda machine, now: machine.decide(now, known_failures=0, deadline=now + 1))
    carrier: Any = NeverResponds()
    run = FetchRun(decision.ticket, loop=carrier)
    manager.async_runner.fetches.begin(run)
    fetch = manager.async_runner._fetch(carrier, run, carrier)
    fetch.send(None)
    collector = threading.Thread(target=fetch.close)
    with state._lock:
        collector.start()
        collector.join(5)
        assert not collector.is_alive()
    assert not manager.stats().fetching
    assert isinstance(manager.get_token(), Token)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_rule_17_a_child_forked_while_the_lock_is_held_continues(emulator: Emulator) -> None:
    """It has the parent's token, locks of its own, and waits for no fetch that stayed behind."""
    manager: Any = manager_for(emulator)
    token = manager.get_token()
    with manager._state._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # a hanging child is killed, which its exit status shows
            os._exit(0 if manager.get_token(min_validity=1) == token else 1)  # not by way of the cache
    assert os.waitpid(child, 0)[1] == 0
    assert manager.get_token() is token
