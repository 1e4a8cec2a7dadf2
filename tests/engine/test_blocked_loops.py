"""Sync calls on the thread of an event loop that a fetch needs: they wait for nothing that they block (rules 3 and 17).

A call that does wait gets a moved clock, so that it ends, and the test fails.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import urllib3

import pay88_adapters.urllib3
from pay88_adapters import ConfigurationError, Credentials, Token, TokenManager, TokenPolicy
from pay88_adapters.testing import Emulator, ManualClock
from support.plain_calls import AsyncCall, Call, at_once, await_threads
from support.processes import ELSEWHERE, OLD, Endpoint88
from support.servers import Valkey

# The fetch is a task, and may hold the lease


def _file(directory: Path) -> tuple[str, dict[str, Any]]:
    return f"sqlite:///{directory}/real/tokens.db", {}


STORES: dict[str, Callable[[Path], tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]]] = {
    "memory": lambda _: (("memory://", {}), ("memory://", {})),
    "memory, another policy": lambda _: (("memory://", {}), ("memory://", {"policy": TokenPolicy(fallback_share=0.5)})),
    "file": lambda path: (_file(path), _file(path)),
    "file, a symlink": lambda path: (_file(path), (f"sqlite:///{path}/link/tokens.db", {})),
    "file, a slash more": lambda path: (_file(path), (f"sqlite:///{path}/real//tokens.db", {})),
    "fallback": lambda path: (
        ("redis://127.0.0.1:1", {"fallback_store": _file(path)[0]}),
        ("redis://localhost:1", {"fallback_store": _file(path)[0]}),
    ),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with another name."""
    tmp_path.chmod(0o700)
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    return tmp_path


def _sync_during_a_fetch(one: TokenManager, other: TokenManager, clock: ManualClock) -> Endpoint88:
    """Call *other* on the event loop that fetches for *one*; return the endpoint of that call."""
    endpoint = Endpoint88()

    async def main() -> None:
        call = AsyncCall()
        task = asyncio.ensure_future(one.async_runner.call(call))
        await call.requested.wait()
        with at_once(clock):
            assert isinstance(other.sync_runner.call(Call(endpoint)), Token)
        call.responded.set()
        assert isinstance(await task, Token)

    asyncio.run(main())
    return endpoint


@pytest.mark.parametrize("stores", STORES.values(), ids=STORES)
def test_rule_17_a_sync_call_does_not_wait_for_the_lease_of_a_fetch_that_it_blocks(
    stores: Callable[..., Any], directory: Path
) -> None:
    """However the store of the other manager is spelt: the call fetches without the lease."""
    clock = ManualClock()
    one, other = (TokenManager(OLD, store=url, clock=clock, **options) for url, options in stores(directory))
    assert len(_sync_during_a_fetch(one, other, clock).sent) == 1


def test_rule_17_a_sync_call_does_not_wait_for_the_lease_in_a_redis_server_with_two_names(server: Valkey) -> None:
    """A host has many."""
    clock = ManualClock()
    urls = (server.url, server.url.replace("127.0.0.1", "localhost"))
    assert urls[0] != urls[1]
    one, other = (TokenManager(OLD, store=url, clock=clock) for url in urls)
    assert len(_sync_during_a_fetch(one, other, clock).sent) == 1


def test_rule_17_a_sync_call_does_not_wait_for_a_thread_that_waits_for_the_lease_of_a_fetch_that_it_blocks() -> None:
    """The thread was started by another thread's call, before the loop was blocked."""
    clock, endpoint = ManualClock(), Endpoint88()
    one, other = (TokenManager(OLD, clock=clock) for _ in range(2))

    async def main() -> None:
        call = AsyncCall()
        task = asyncio.ensure_future(one.async_runner.call(call))
        await call.requested.wait()
        waiter = threading.Thread(target=other.sync_runner.call, args=[Call(endpoint)])
        waiter.start()
        while not clock.waiting:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.001)
        with at_once(clock):
            assert isinstance(other.sync_runner.call(Call(endpoint)), Token)
        call.responded.set()
        await task
        waiter.join()

    threads = set(threading.enumerate())
    asyncio.run(main())
    while set(threading.enumerate()) - threads:  # the first one's fetch ends after its next poll of the lease
        clock.advance(1)
        time.sleep(0.001)
    assert len(endpoint.sent) == 1


def test_rule_04_the_fetch_of_another_merchant_costs_no_lease(directory: Path) -> None:
    """A sync call on the same event loop publishes its token: another process uses it."""
    clock, (store, _) = ManualClock(), _file(directory)
    one = TokenManager(ELSEWHERE, store=store, clock=clock)
    other, process = (TokenManager(OLD, store=store, clock=clock) for _ in range(2))
    threads = set(threading.enumerate())
    _sync_during_a_fetch(one, other, clock)
    await_threads(threads)  # which publish
    endpoint = Endpoint88()
    assert isinstance(process.sync_runner.call(Call(endpoint)), Token)
    assert endpoint.sent == []


def test_rule_04_a_call_that_cannot_wait_uses_a_token_in_the_store(directory: Path) -> None:
    """Another process has published it since: no token request is sent."""
    clock, (store, _) = ManualClock(), _file(directory)
    one, other, process = (TokenManager(OLD, store=store, clock=clock) for _ in range(3))
    endpoint = Endpoint88()

    async def main() -> None:
        call = AsyncCall()
        task = asyncio.ensure_future(one.async_runner.call(call))
        await call.requested.wait()
        clock.advance(one._state.settings.policy.lease_duration + 1)
        threads = set(threading.enumerate())
        assert isinstance(process.sync_runner.call(Call()), Token)
        await_threads(threads)
        with at_once(clock):
            assert isinstance(other.sync_runner.call(Call(endpoint)), Token)
        call.responded.set()
        await task

    asyncio.run(main())
    assert endpoint.sent == []


def test_rule_06_a_sync_call_with_a_validity_sends_one_token_request_and_waits_for_no_other() -> None:
    """No token lasts that long; the fetch that it blocks is none that it would wait for."""
    clock, endpoint = ManualClock(), Endpoint88()
    manager = TokenManager(OLD, clock=clock)

    async def main() -> None:
        call = AsyncCall()
        task = asyncio.ensure_future(manager.async_runner.call(call))
        await call.requested.wait()
        with at_once(clock):
            assert isinstance(manager.sync_runner.token(Call(endpoint), min_validity=59.0), Token)
        call.responded.set()
        await task

    asyncio.run(main())
    assert len(endpoint.sent) == 1


# The fetch is a thread, and awaits credentials on the loop


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An emulator on a clock that the test moves."""
    with Emulator(clock=ManualClock()) as emulator:
        yield emulator


class Vault:
    """A credentials provider on the event loop of an application. The first call returns when *opened* is set."""

    def __init__(self, emulator: Emulator) -> None:
        self.credentials = Credentials(emulator.api_key, emulator.merchant_id)
        self.requested, self.opened = anyio.Event(), anyio.Event()
        self.calls = 0
        self.elsewhere: Exception | None = None

    async def __call__(self) -> Credentials:
        self.calls += 1
        if self.calls == 1:
            self.requested.set()
            await self.opened.wait()
        elif self.elsewhere is not None:
            raise self.elsewhere
        return self.credentials


def _in_guest_mode(main: Callable[[], Awaitable[None]]) -> None:
    """Run *main* on trio, as a guest of asyncio."""

    async def host() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            main, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=ended.set_result
        )
        (await ended).unwrap()

    asyncio.run(host())


LOOPS: dict[str, Callable[[Callable[[], Any]], object]] = {
    "asyncio": lambda main: asyncio.run(main()),
    "trio": trio.run,
    "guest": _in_guest_mode,
}


def _get_token(manager: TokenManager, emulator: Emulator) -> object:
    del emulator
    return manager.get_token()


def _request(manager: TokenManager, emulator: Emulator) -> object:
    url = f"{emulator.url}/api/balance?id={emulator.merchant_id}"
    with pay88_adapters.urllib3.Pay88PoolManager(manager) as pools:
        return pools.request("POST", url).status == 200


@pytest.mark.parametrize("has_client", [False, True], ids=["", "client"])
@pytest.mark.parametrize("call", [_get_token, _request])
@pytest.mark.parametrize("run", LOOPS.values(), ids=LOOPS)
def test_rule_19_a_sync_call_does_not_wait_for_credentials_that_its_thread_awaits(
    run: Callable[..., object], call: Callable[..., object], has_client: bool, emulator: Emulator
) -> None:
    """It loads the credentials itself. The fetch that it blocked uses the token of the call (rule 3)."""

    async def main() -> None:
        vault = Vault(emulator)
        manager = TokenManager(vault, base_url=emulator.url, clock=emulator.clock, client=pools if has_client else None)
        tokens: list[Token] = []

        async def fetch() -> None:
            tokens.append(await manager.aget_token())

        async with anyio.create_task_group() as group:
            group.start_soon(fetch)
            await vault.requested.wait()
            with at_once(clock):
                assert call(manager, emulator)
            vault.opened.set()
        assert tokens == [manager.get_token()]
        assert vault.calls == 2
        manager.close()

    clock: Any = emulator.clock
    with urllib3.PoolManager() as pools:
        run(main)
    assert emulator.journal.token_requests == 1


def test_rule_19_a_sync_call_of_another_manager_gets_the_lease(emulator: Emulator) -> None:
    """A fetch without credentials has none yet: the token is published, and used by both."""

    async def main() -> None:
        vault = Vault(emulator)
        one, other = (TokenManager(vault, base_url=emulator.url, clock=emulator.clock) for _ in range(2))
        task = asyncio.create_task(one.aget_token())
        await vault.requested.wait()
        with at_once(clock):
            token = other.get_token()
        vault.opened.set()
        assert await task == token
        one.close()
        other.close()

    clock: Any = emulator.clock
    asyncio.run(main())
    assert emulator.journal.token_requests == 1


class LateVault:
    """A sync credentials provider that responds when two calls wait for a token: with credentials, or a coroutine."""

    manager: TokenManager

    def __init__(self, emulator: Emulator, *, is_async: bool) -> None:
        self.credentials = Credentials(emulator.api_key, emulator.merchant_id)
        self._is_async = is_async
        self.threads: list[str] = []

    def __call__(self) -> Any:
        self.threads.append(threading.current_thread().name)
        while self.manager.stats().waited < 2:
            threading.Event().wait(0.001)
        return self._respond() if self._is_async else self.credentials

    async def _respond(self) -> Credentials:
        return self.credentials


@pytest.mark.parametrize(("is_async", "calls"), [(True, 2), (False, 1)], ids=["async", "sync"])
def test_rule_03_a_sync_call_waits_until_the_credentials_need_its_thread(
    is_async: bool, calls: int, emulator: Emulator
) -> None:
    """It waits for a fetch in a thread, like any call, unless the provider turns out to need the event loop."""

    async def main() -> None:
        vault = LateVault(emulator, is_async=is_async)
        manager = vault.manager = TokenManager(vault, base_url=emulator.url, clock=emulator.clock)
        task = asyncio.create_task(manager.aget_token())
        while not vault.threads:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.001)
        with at_once(clock):
            token = manager.get_token()
        assert await task == token
        assert len(vault.threads) == calls
        manager.close()

    clock: Any = emulator.clock
    asyncio.run(main())
    assert emulator.journal.token_requests == 1


def test_rule_16_credentials_that_fail_away_from_their_loop_fail_the_sync_call_alone(emulator: Emulator) -> None:
    """The task, whose provider works, gets its token."""

    async def main() -> None:
        vault = Vault(emulator)
        vault.elsewhere = RuntimeError("attached to a different loop")
        manager = TokenManager(vault, base_url=emulator.url, clock=emulator.clock)
        task = asyncio.create_task(manager.aget_token())
        await vault.requested.wait()
        with at_once(clock), pytest.raises(ConfigurationError, match="RuntimeError"):
            manager.get_token()
        vault.opened.set()
        assert isinstance(await task, Token)
        manager.close()

    clock: Any = emulator.clock
    asyncio.run(main())
    assert emulator.journal.token_requests == 1
