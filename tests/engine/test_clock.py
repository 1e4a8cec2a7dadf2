"""A fake clock wakes the waiters whose time has come, immediately, and no others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import anyio
import pytest

from pay88_adapters.engine.current_runtime import current_runtime
from pay88_adapters.engine.runtimes import ThreadEvent
from pay88_adapters.testing import ManualClock


class Waiters:
    """Waiters on one clock, in threads or in tasks; *went_on* lists when each of them continued.

    Args:
        where: "threads", or the event loop's name.
        pausing: Whether only time ends the wait, or a gate as well.
        seconds: For how long each of them waits.
        settled: Whether to continue only when all of them wait.
    """

    def __init__(
        self, where: str, clock: ManualClock, seconds: list[float], *, pausing: bool, settled: bool = True
    ) -> None:
        self._clock, self._pausing = clock, pausing
        self.went_on: list[Future[float]] = [Future() for _ in seconds]
        self.event: Any = None
        each = list(zip(seconds, self.went_on, strict=True))
        if where == "threads":
            self.event = ThreadEvent()
            jobs: list[Callable[[], object]] = [partial(self._wait, *one) for one in each]
        else:
            jobs = [partial(anyio.run, self._main, each, backend=where)]
        for job in jobs:
            threading.Thread(target=job, daemon=True).start()
        if settled:
            until(lambda: clock.waiting == len(seconds))

    def _wait(self, seconds: float, result: Future[float]) -> None:
        self._clock.pause(seconds) if self._pausing else self._clock.wait(self.event, seconds)
        result.set_result(self._clock.now())

    async def _main(self, each: list[tuple[float, Future[float]]]) -> None:
        self.event = current_runtime().event()
        async with anyio.create_task_group() as group:
            for one in each:
                group.start_soon(self._await, *one)

    async def _await(self, seconds: float, result: Future[float]) -> None:
        if self._pausing:
            await self._clock.sleep(seconds, current_runtime())
        else:
            await self._clock.wait_in_task(self.event, seconds)
        result.set_result(self._clock.now())


def until(condition: Callable[[], bool]) -> None:
    """Wait for what is about to happen."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.001)


@pytest.fixture(params=["threads", "asyncio", "trio"])
def waiters(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Waiters]:
    """Create managers on a clock whose waiters only wake up when they are notified."""
    monkeypatch.setattr("pay88_adapters.testing.clock._CHECK_INTERVAL", 60.0)
    return partial(Waiters, request.param)


def test_pauses_end_when_their_time_has_come(waiters: Callable[..., Waiters]) -> None:
    """One after the other, as the clock is moved; the last ones are in the same instant."""
    clock = ManualClock(0.0)
    pauses = waiters(clock, [1.0, 2.0, 3.0, 3.0], pausing=True)
    for now, left in ((1.0, 3), (2.0, 2), (3.0, 0)):
        clock.advance(1.0)
        until(lambda left=left: clock.waiting == left)  # type: ignore[misc]
        assert [each.result(10) for each in pauses.went_on if each.done()][-1] == now
    assert [each.result(10) for each in pauses.went_on] == [1.0, 2.0, 3.0, 3.0]


def test_a_gate_ends_all_waits_and_the_clock_need_not_move(waiters: Callable[..., Waiters]) -> None:
    """Whatever time is left."""
    clock = ManualClock(0.0)
    waits = waiters(clock, [5.0, 50.0], pausing=False)
    waits.event.set()
    assert [each.result(10) for each in waits.went_on] == [0.0, 0.0]
    assert clock.waiting == 0


def test_a_wait_at_a_gate_ends_in_time(waiters: Callable[..., Waiters]) -> None:
    """Who has time left may be woken with the others, and looks again; who has none left is."""
    clock = ManualClock(0.0)
    waits = waiters(clock, [5.0, 50.0], pausing=False)
    clock.advance(5.0)
    assert waits.went_on[0].result(10) == 5.0
    waits.event.set()
    assert waits.went_on[1].result(10) == 5.0


def test_no_move_is_missed(waiters: Callable[..., Waiters]) -> None:
    """One that comes when a caller has read the time, and does not wait yet, counts."""
    clock = ManualClock(0.0)
    read = clock.now

    def read_and_move() -> float:
        now = read()
        clock.now = read
        clock.advance(5.0)
        return now

    clock.now = read_and_move
    waits = waiters(clock, [5.0], pausing=False, settled=False)
    assert waits.went_on[0].result(10) == 5.0
