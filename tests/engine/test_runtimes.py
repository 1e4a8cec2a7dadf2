"""Events that crowds of tasks wait at, and guest runs of trio."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from pay88_adapters import Credentials, Token, TokenManager, TokenPolicy
from pay88_adapters.engine.runtime_trio import TrioEvent, TrioRuntime
from pay88_adapters.engine.runtimes import WOKEN_AT_ONCE, AsyncioEvent, AsyncioRuntime, LoopEnded
from pay88_adapters.httpx import attach
from pay88_adapters.testing import Emulator

_CROWD = 4 * WOKEN_AT_ONCE + 1
_LONG = 60.0  # seconds

Woken = list[int]
"""Number of tasks that continued between two turns of the event loop."""


def _on_asyncio(end_the_wait: Callable[[AsyncioEvent | TrioEvent], None]) -> Woken:
    async def main() -> Woken:
        event, woken = AsyncioRuntime(asyncio.get_running_loop()).event(), [0]

        async def waiter() -> None:
            await event.wait(_LONG)
            woken[-1] += 1

        crowd = [asyncio.create_task(waiter()) for _ in range(_CROWD)]
        await asyncio.sleep(0)
        end_the_wait(event)
        while not all(task.done() for task in crowd):
            await asyncio.sleep(0)
            woken.append(0)
        await event.wait(_LONG if event._is_set else 0.0)
        return woken

    return asyncio.run(main())


def _on_trio(end_the_wait: Callable[[AsyncioEvent | TrioEvent], None]) -> Woken:
    async def main() -> Woken:
        event, woken = TrioRuntime().event(), [0]

        async def waiter() -> None:
            await event.wait(_LONG)
            woken[-1] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(_CROWD):
                nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            end_the_wait(event)
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()
                woken.append(0)
        await event.wait(_LONG if event._is_set else 0.0)
        return woken

    return trio.run(main)


@pytest.mark.parametrize("run", [_on_asyncio, _on_trio])
@pytest.mark.parametrize(
    "end_the_wait", [lambda event: event.set(), lambda event: event.notify()], ids=["set", "notify"]
)
def test_rule_17_a_crowd_of_tasks_is_woken_in_batches(
    run: Callable[[Callable[[AsyncioEvent | TrioEvent], None]], Woken],
    end_the_wait: Callable[[AsyncioEvent | TrioEvent], None],
) -> None:
    """So that its sockets and timers get their turn."""
    woken = run(end_the_wait)
    assert sum(woken) == _CROWD
    assert max(woken) <= 2 * WOKEN_AT_ONCE  # two batches may fall between two looks


def test_rule_17_no_manager_waits_for_a_guest_run_whose_host_has_stopped(emulator: Emulator) -> None:
    """Trio is the guest of an event loop that stops during a fetch. Another manager shares the store."""
    credentials, policy = Credentials(emulator.api_key, emulator.merchant_id), TokenPolicy(max_wait=4)
    one, other = (TokenManager(credentials, base_url=emulator.url, policy=policy) for _ in range(2))
    loop = asyncio.new_event_loop()
    ended = loop.create_future()

    async def guest() -> int:
        async with attach(httpx.AsyncClient(verify=False), one) as client:
            return (await client.post(f"{emulator.url}/api/balance")).status_code

    async def host() -> None:
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        await asyncio.to_thread(held.wait_for, 1)

    with emulator.hold("token") as held:
        loop.run_until_complete(host())
    with ThreadPoolExecutor(2) as threads:
        for token in [threads.submit(each.get_token) for each in (other, one)]:
            assert isinstance(token.result(), Token)
    assert one.stats().failed_fetches == other.stats().failed_fetches == 0
    assert loop.run_until_complete(ended).unwrap() == 200  # it continues
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


class _One:
    """Something to await, and no coroutine: Python warns about those that nothing awaits."""

    def __await__(self) -> Generator[None, None, int]:
        return 1
        yield


async def _never() -> int:
    await trio.sleep_forever()
    return 1


def _outcome(runtime: AsyncioRuntime | TrioRuntime, work: Awaitable[int], seconds: float) -> Any:
    """Await *work* from another thread while this one waits for that; return the outcome."""
    outcomes: list[Any] = []

    def call() -> None:
        try:
            outcomes.append(runtime.run_from_thread(work, seconds))
        except Exception as exc:  # noqa: BLE001 - the test says which one it expects
            outcomes.append(exc)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    return outcomes[0] if outcomes else "it still waits"


def test_rule_17_a_thread_does_not_wait_longer_for_a_blocked_loop_than_it_may() -> None:
    """On asyncio and trio: real time bounds each fetch from outside."""

    async def on_asyncio() -> None:
        assert isinstance(_outcome(AsyncioRuntime(asyncio.get_running_loop()), _One(), 0.01), TimeoutError)

    async def on_trio() -> None:
        assert isinstance(_outcome(TrioRuntime(), _One(), 0.01), TimeoutError)

    asyncio.run(on_asyncio())
    trio.run(on_trio)


def test_rule_17_a_thread_gets_what_a_trio_run_awaits_for_it() -> None:
    """Results and exceptions; and what is too late is cancelled."""
    cancelled = False

    async def fails() -> int:
        raise LookupError("x")

    async def waits() -> int:
        nonlocal cancelled
        try:
            return await _never()
        except trio.Cancelled:
            cancelled = True
            raise

    async def outcome(work: Callable[[], Awaitable[int]]) -> Any:
        return await trio.to_thread.run_sync(_outcome, runtimes[0], work(), 30.0 if work is not waits else 0.01)

    async def main() -> None:
        runtimes.append(TrioRuntime())
        assert await outcome(_One) == 1
        assert isinstance(await outcome(fails), LookupError)
        assert isinstance(await outcome(waits), TimeoutError)
        await trio.testing.wait_all_tasks_blocked()
        assert cancelled

    runtimes: list[TrioRuntime] = []
    trio.run(main)
    assert isinstance(_outcome(runtimes[0], _One(), 30.0), LoopEnded)


def test_rule_17_a_thread_gets_a_timeout_although_the_cancelled_task_has_ended() -> None:
    """The task ends before the thread continues."""
    ended = threading.Event()

    async def waits() -> int:
        try:
            return await _never()
        finally:
            ended.set()

    class Token:
        """Returns from the second call, the cancellation, when the run has done all that follows from it."""

        def __init__(self, token: trio.lowlevel.TrioToken) -> None:
            self._token = token
            self._calls = 0

        def run_sync_soon(self, call: Callable[[], object]) -> None:
            self._token.run_sync_soon(call)
            self._calls += 1
            if self._calls == 2:
                ended.wait(10)
                after = threading.Event()
                self._token.run_sync_soon(after.set)
                after.wait(10)

    async def main() -> Any:
        runtime: Any = TrioRuntime()
        runtime.key = Token(runtime.key)
        return await trio.to_thread.run_sync(_outcome, runtime, waits(), 0.05)

    assert isinstance(trio.run(main), TimeoutError)


def test_rule_17_a_thread_notices_that_a_trio_run_ends() -> None:
    """It waits no longer."""
    outcomes: list[Any] = []
    with ThreadPoolExecutor(1) as threads:

        async def main() -> None:
            started = trio.Event()

            async def work() -> int:
                started.set()
                return await _never()

            outcomes.append(threads.submit(_outcome, TrioRuntime(), work(), 30.0))
            await started.wait()

        trio.run(main)
        assert isinstance(outcomes[0].result(), LoopEnded)


def test_rule_17_a_thread_does_not_wait_for_a_guest_run_longer_than_it_may() -> None:
    """Its host may have stopped for good."""
    callbacks: queue.Queue[Callable[[], object]] = queue.Queue()
    runtimes: list[TrioRuntime] = []
    over = trio.Event()

    async def guest() -> None:
        runtimes.append(TrioRuntime())
        await over.wait()

    ended: list[object] = []
    trio.lowlevel.start_guest_run(
        guest,
        run_sync_soon_threadsafe=callbacks.put,
        done_callback=ended.append,
        host_uses_signal_set_wakeup_fd=True,
    )
    while not runtimes:
        callbacks.get()()
    assert isinstance(_outcome(runtimes[0], _One(), 0.01), TimeoutError)
    runtimes[0].key.run_sync_soon(over.set)
    while not ended:
        callbacks.get()()
