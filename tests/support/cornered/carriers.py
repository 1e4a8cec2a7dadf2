"""The event loop, client or task of a fetch is closed or stopped before the fetch ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import sysconfig
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import aiohttp
import httpx
import trio

import pay88_adapters.aiohttp
import pay88_adapters.engine.manager
import pay88_adapters.httpx
from pay88_adapters import Credentials, Pay88Error, TokenEndpointUnavailable
from pay88_adapters.events import TokenFetched
from pay88_adapters.testing import ManualClock
from support.stacks import PlainResponse, SyncStack

from .shared import (
    ALONE,
    DEADLINE,
    KINDS,
    OPTIONS,
    TASKS,
    THREADS,
    Corner,
    Crowd,
    Tasks,
    auntil,
    caller,
    case,
    corner,
    run,
    settled,
    tasks,
    until,
)
from .strikes import SoftTimeLimit


@case(*TASKS, ALONE)
def the_run_ends_under_the_fetch(stack: str) -> None:
    """The event loop is done while it fetches for others: one of them takes over."""
    with corner() as here, Crowd(here) as crowd, here.emulator.hold("token") as held:
        clients: list[Tasks] = []

        async def main() -> None:
            clients.append(Tasks(stack, here.manager, here.url))
            async with _leading(stack, clients[0]):
                await auntil(lambda: held.held == 1)
                crowd.start()
                await auntil(lambda: here.waiting == 1 + len(crowd))

        run(stack, main)
        sends = 1 if stack == ALONE else 2
        until(lambda: held.held == sends)
        held.release()
        assert crowd.served()
        here.used(sends)
        run(stack, clients[0].close)


@asynccontextmanager
async def _leading(stack: str, call: Tasks) -> AsyncIterator[None]:
    if stack == "httpx-trio":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            yield
            nursery.cancel_scope.cancel()
    else:
        leader = asyncio.create_task(call())
        yield
        del leader  # left to the end of the run


@case("httpx-asyncio", "aiohttp")
def the_loop_is_stopped_under_the_fetch(stack: str) -> None:
    """Sync code on its thread continues immediately, with a fetch of its own; later the event loop does, too."""
    with corner() as here, here.emulator.hold("token") as held:
        loop = asyncio.new_event_loop()
        clients: list[Tasks] = []
        calls: list[asyncio.Task[bool]] = []

        async def lead() -> None:
            clients.append(Tasks(stack, here.manager, here.url))
            calls.append(asyncio.create_task(clients[0]()))
            await auntil(lambda: held.held == 1)

        loop.run_until_complete(lead())

        def release() -> None:
            until(lambda: held.held == 2)
            held.release()

        releasing = threading.Thread(target=release)
        releasing.start()
        here.manager.get_token()  # long before that fetch is overdue
        releasing.join()
        loop.run_until_complete(calls[0])
        loop.run_until_complete(clients[0].close())
        loop.close()
        here.used(2)
        assert here.manager.stats().failed_fetches == 0


@case(ALONE)
def a_token_is_requested_in_the_middle_of_its_own_fetch(stack: str) -> None:
    """For example by a finalizer on the thread that fetches: it gets an error immediately."""
    received: list[object] = []

    def ask() -> Credentials:
        try:
            received.append(here.manager.get_token())
        except Pay88Error as error:
            received.append(error)
        return here.credentials

    with corner(ManualClock(), ask) as here:
        here.manager.get_token()
        assert [type(each) for each in received] == [TokenEndpointUnavailable]
        until(lambda: not here.manager.stats().fetching)
        here.used(1)
        assert here.manager.stats().failed_fetches == 0


class Stalls(httpx.AsyncBaseTransport):
    """A network that swallows everything, and has no socket of its own to complain about."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("no response")


class StallingConnector(aiohttp.TCPConnector):
    """The same for aiohttp."""

    async def _create_connection(self, *args: Any, **kw: Any) -> Any:
        await asyncio.get_running_loop().create_future()


# Without the GIL, aiohttp's session is finalized before the coroutine that closes it, and complains.
@case("httpx-asyncio", *(() if sysconfig.get_config_var("Py_GIL_DISABLED") else ("aiohttp",)))
def the_loop_is_closed_under_the_fetch(stack: str) -> None:
    """Nothing was cancelled or notified: other requests fetch when the fetch is overdue."""
    with corner(ManualClock()) as here, Crowd(here) as crowd, here.emulator.hold("token") as held:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(_stall(stack, here, crowd))
        loop.close()
        here.advance(here.policy.fetch_timeout + 1.1)
        held.wait_for(1, timeout=DEADLINE / 2)
        held.release()
        assert crowd.served()
        assert here.journal.token_requests == 1  # the other one was never sent
        del loop
        gc.collect()
        here.advance(51)
        with corner() as again:  # another fetch on another loop clears away what the dead one left
            run(stack, partial(_once, stack, again))
        gc.collect()
        here.manager.get_token()


async def _once(stack: str, here: Corner) -> None:
    async with tasks(stack, here) as call:
        await call()
    await settled(here)


async def _stall(stack: str, here: Corner, crowd: Crowd) -> None:
    client = Tasks(stack, here.manager, here.url)
    if stack == "aiohttp":
        await client.close()
        connector = StallingConnector()
        client.client = pay88_adapters.aiohttp.attach(aiohttp.ClientSession(connector=connector), here.manager)
    else:
        await client.close()
        client.client = pay88_adapters.httpx.attach(httpx.AsyncClient(transport=Stalls()), here.manager)
    leader = asyncio.create_task(client())
    await auntil(lambda: here.manager.stats().token_requests == 1)
    crowd.start()
    await auntil(lambda: here.waiting == 1 + len(crowd))
    leader.cancel()
    with suppress(asyncio.CancelledError):
        await leader
    if stack == "aiohttp":
        client.client.detach()  # closing it would end the fetch


@case(*THREADS, *TASKS)
def the_client_is_closed_under_the_fetch(stack: str) -> None:
    """Closing the one client does not fail the others: they get its last response or one of theirs."""
    closers = {"aiohttp": ["session", "connector"]}.get(stack, ["client"])
    for closer in closers:
        with corner() as here, Crowd(here) as crowd, here.emulator.hold("token") as held, ThreadPoolExecutor(1) as pool:
            leader: Any = KINDS[stack](here.manager, OPTIONS)
            leading = pool.submit(leader.attempt, "POST", here.url)
            until(lambda: held.held == 1 and here.waiting == 1)
            crowd.start()
            until(lambda: here.waiting == 1 + len(crowd))
            if isinstance(leader, SyncStack):
                leader.close()
            elif closer == "connector":
                leader.run(leader.client.connector.close)
            else:
                leader.run(leader.client.close if stack == "aiohttp" else leader.client.aclose)
            held.release()
            assert crowd.served()
            assert isinstance(leading.result(DEADLINE), (PlainResponse, Exception))
            assert here.journal.token_requests <= 2
            leader.close()


@case(*TASKS)
def a_task_dies_before_its_first_step(stack: str) -> None:
    """Fire and forget: the run ends as the fetch has been started and not begun. Nothing is left behind."""
    with corner() as here:

        async def forgets() -> None:
            client = Tasks(stack, here.manager, here.url)
            if stack == "httpx-trio":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client)
                    nursery.cancel_scope.cancel()
            else:
                call = asyncio.create_task(client())
                await asyncio.sleep(0)
                call.cancel()
                with suppress(asyncio.CancelledError):
                    await call
            await client.close()

        for _ in range(3):
            run(stack, forgets)
            assert not here.manager.stats().fetching
        run(stack, partial(_once, stack, here))
        assert here.journal.token_requests == 1  # a unit that was granted just before the end is not given back
        assert here.manager.stats().failed_fetches == 0


@case("httpx-asyncio", "aiohttp")
def the_loop_is_closed_and_others_share_the_store(stack: str) -> None:
    """The lease of a fetch that has died with its loop is given back: the other manager does not wait for it."""
    with corner(ManualClock()) as here, here.emulator.hold("token") as held:
        other = here.new_manager()
        loop = asyncio.new_event_loop()
        clients: list[Tasks] = []
        leaders: list[asyncio.Task[bool]] = []

        async def lead() -> None:
            clients.append(Tasks(stack, here.manager, here.url))
            leaders.append(asyncio.create_task(clients[0]()))
            await auntil(lambda: held.held == 1)

        async def end() -> None:
            leaders[0].cancel()
            with suppress(asyncio.CancelledError):
                await leaders[0]
            await clients[0].close()

        loop.run_until_complete(lead())  # and it is stopped from now on
        with ThreadPoolExecutor(1) as pool:
            another = pool.submit(other.get_token)
            until(lambda: here.clock.waiting > 0 or held.held == 2)  # type: ignore[attr-defined]
            until(partial(_moved, here, lambda: held.held == 2))
            held.release()
            another.result(DEADLINE)
        assert here.manager.stats().failed_fetches == other.stats().failed_fetches == 0
        loop.run_until_complete(end())
        loop.close()


def _moved(here: Corner, condition: Callable[[], bool]) -> bool:
    if not condition() and here.clock.now() < 1_010:  # a lease would last longer
        here.advance(0.1)
    return condition()


@case(*THREADS, *TASKS, ALONE)
def a_listener_raises_anything(stack: str) -> None:
    """What a listener raises, no matter what, makes no failure of a fetch that succeeded."""
    raised_: list[object] = []

    def listener(event: object) -> None:
        if isinstance(event, TokenFetched) and len(raised_) < len(kinds):
            raised_.append(event)
            raise kinds[len(raised_) - 1]

    kinds: list[type[BaseException]] = [SoftTimeLimit, SystemExit, KeyboardInterrupt, GeneratorExit, ValueError]
    logging.getLogger("pay88_adapters").setLevel(logging.CRITICAL + 1)
    with corner() as here:
        here.manager.listen(listener)
        for count in range(1, len(kinds) + 1):
            if stack in TASKS:
                run(stack, partial(_once, stack, here))
            else:
                with caller(stack, here) as call:
                    assert call()
            until(lambda: not here.manager.stats().fetching)
            here.used(count)
            here.manager.invalidate(here.manager.get_token())
        assert len(raised_) == len(kinds)
        stats = here.manager.stats()
        assert stats.failed_fetches == stats.consecutive_failures == 0
