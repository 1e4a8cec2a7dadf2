"""The request that fetches is cancelled or interrupted; callers of all kinds; sync code on an event loop."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import anyio

from pay88_adapters import TokenEndpointUnavailable
from pay88_adapters.testing import Hold, ManualClock
from support.stacks import STACKS, Aiohttp, HttpxAsyncio, HttpxTrio, Stack

from .shared import (
    ALONE,
    DEADLINE,
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

Leave = Callable[[Tasks, Callable[[], Awaitable[None]]], Awaitable[None]]
SHORT = 0.1  # real seconds; whether the fetch is under way when they are over makes no difference


async def _task_cancelled(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.create_task(call())
    await ready()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def _wait_for(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    with raised(asyncio.TimeoutError):
        await asyncio.wait_for(call(), SHORT)
    await ready()


async def _timeout(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    timeout: Any = asyncio.timeout  # type: ignore[attr-defined, unused-ignore]
    with raised(TimeoutError):
        async with timeout(SHORT):
            await call()
    await ready()


async def _own_timeout(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    with raised(asyncio.TimeoutError):
        await call(timeout=SHORT)
    await ready()


async def _scope_cancelled(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await ready()
        group.cancel_scope.cancel()


async def _moved_on(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    with anyio.move_on_after(SHORT) as scope:
        await call()
    assert scope.cancelled_caught
    await ready()


@contextmanager
def raised(*kinds: type[BaseException]) -> Iterator[None]:
    """Expect one of these exceptions."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"no {kinds} was raised")


def _ways(stack: str) -> list[Leave]:
    ways: list[Leave] = [_scope_cancelled, _moved_on]
    if stack != "httpx-trio":
        ways += [_task_cancelled, _wait_for]
        if sys.version_info >= (3, 11):
            ways.append(_timeout)
    if stack == "aiohttp":
        ways.append(_own_timeout)
    return ways


@case(*TASKS, ALONE)
def the_leader_is_cancelled(stack: str) -> None:
    """It goes while its token request is held; followers on its loop, on others and in threads are served."""
    with corner() as here, Crowd(here) as crowd:
        for count, leave in enumerate(_ways(stack), 1):
            with here.emulator.hold("token") as held:
                run(stack, partial(_leader_leaves, stack, leave, here, crowd, held))
            assert crowd.served()
            here.used(count)
            assert here.journal.calls == count * (len(crowd) + (0 if stack == ALONE else 3))
            here.manager.invalidate(here.manager.get_token())


async def _leader_leaves(stack: str, leave: Leave, here: Corner, crowd: Crowd, held: Hold) -> None:
    before = here.waiting

    async def followers_wait() -> None:
        await auntil(lambda: held.held == 1 and here.waiting == before + 1)
        crowd.start()
        for _ in range(3):
            group.start_soon(call)
        await auntil(lambda: here.waiting == before + 1 + 3 + len(crowd))

    async with tasks(stack, here) as call, anyio.create_task_group() as group:
        await leave(call, followers_wait)
        held.release()
    await settled(here)


@case(*THREADS, ALONE)
def the_leader_is_interrupted(stack: str) -> None:
    """Ctrl-C reaches the main thread while it waits for the fetch that it started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started all this in the background
    with corner() as here, Crowd(here) as crowd, here.emulator.hold("token") as held, caller(stack, here) as call:

        def interrupt() -> None:
            until(lambda: held.held == 1 and here.waiting == 1)
            crowd.start()
            until(lambda: here.waiting == 1 + len(crowd))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        interrupter = threading.Thread(target=interrupt)
        with raised(KeyboardInterrupt):
            interrupter.start()
            call()
        interrupter.join()
        held.release()
        assert crowd.served()
        here.used(1)
        assert call()
        here.used(1)


@case("urllib3", "httpx", "httpx-asyncio")
def the_leaders_own_timeout_is_short(stack: str) -> None:
    """A timeout of one request bounds neither the fetch nor other callers; the urllib3 caller raises in time."""
    with corner() as here, Crowd(here) as crowd, here.emulator.hold("token") as held, caller(stack, here) as call:
        with ThreadPoolExecutor(1) as pool:
            leader = pool.submit(call, timeout=SHORT)
            until(lambda: held.held == 1)
            crowd.start()
            until(lambda: here.waiting == 1 + len(crowd))
            if stack == "urllib3":
                assert isinstance(leader.exception(DEADLINE), TokenEndpointUnavailable)
            else:
                time.sleep(2 * SHORT)  # a timeout that did bound the fetch would have come by now
                assert not leader.done()
            held.release()
            if stack != "urllib3":
                assert leader.result(DEADLINE)
        assert crowd.served()
        here.used(1)


@case("all")
def every_kind_of_caller_concurrently(stack: str) -> None:
    """Two event loops of each kind and threads share one fetch: cold, past the reuse window, and after 401s."""
    kinds: tuple[type[Stack], ...] = (*STACKS, HttpxAsyncio, HttpxTrio, Aiohttp)
    with corner(ManualClock()) as here, Crowd(here, *kinds, each=5) as crowd:
        with here.emulator.hold("token") as held:
            crowd.start()
            until(lambda: held.held == 1 and here.waiting == len(crowd))
        assert crowd.served()
        here.used(1)

        here.advance(46)  # background refresh
        with here.emulator.hold("token") as held:
            crowd.start()
            held.wait_for(1, timeout=DEADLINE / 2)
            assert crowd.served()
        until(lambda: not here.manager.stats().fetching)
        here.used(2)

        here.advance(51)  # past the reuse window: all wait
        with here.emulator.hold("token") as held:
            waited = here.waiting
            crowd.start()
            until(lambda: held.held == 1 and here.waiting == waited + len(crowd))
        assert crowd.served()
        assert here.journal.token_requests == 3

        with here.emulator.hold("call") as held:
            crowd.start()
            held.wait_for(len(crowd), timeout=DEADLINE)
            here.emulator.service.refuse_current_tokens()
        assert crowd.served()
        assert here.journal.token_requests == 4
        assert here.manager.stats().replayed == len(crowd)


@case(*TASKS, ALONE)
def a_sync_call_blocks_the_loop_that_fetches(stack: str) -> None:
    """It cannot wait for the fetch that it blocks, and sends its own."""
    sends = 1 if stack == ALONE else 2  # without a client, a thread fetches
    for other in (*THREADS, ALONE):
        with corner() as here, Crowd(here) as crowd:
            with here.emulator.hold("token") as held, caller(other, here) as sync:
                run(stack, partial(_sync_on_the_loop, stack, sync, here, crowd, held, sends))
            assert crowd.served()
            here.used(sends)


async def _sync_on_the_loop(
    stack: str, sync: Callable[[], object], here: Corner, crowd: Crowd, held: Hold, sends: int
) -> None:
    before = here.waiting

    def release() -> None:
        until(lambda: held.held == sends and here.waiting == before + 2 + len(crowd))
        held.release()

    async with tasks(stack, here) as call, anyio.create_task_group() as group:
        group.start_soon(call)
        await auntil(lambda: held.held == 1)
        crowd.start()
        await auntil(lambda: here.waiting == before + 1 + len(crowd))
        releaser = threading.Thread(target=release)
        releaser.start()
        assert sync()
        releaser.join()
    await settled(here)
