"""Exceptions and calls that come between any two instructions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pay88_adapters import Credentials, Pay88Error, Token, TokenManager
from pay88_adapters.testing import Emulator, ManualClock

from .shared import DEADLINE, case, until


class SoftTimeLimit(BaseException):
    """What a signal handler raises."""


class Strike:
    """Does something at the n-th point at which a signal handler can run: where a function is called or returns.

    Args:
        count: Which point, counted from one.
        act: What to do there.
    """

    def __init__(self, count: int, act: Callable[[], object]) -> None:
        self._left, self._act = count, act
        self.point: tuple[str, int, str] | None = None

    def _profile(self, frame: Any, event: str, arg: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "c_call" or "pay88_adapters" not in path.parts or "testing" in path.parts:
            return
        self._left -= 1
        if not self._left:
            sys.setprofile(None)
            self.point = path.name, frame.f_lineno, event
            self._act()

    def __enter__(self) -> Strike:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)


def limit() -> None:
    """Let the job know that its time is over."""
    raise SoftTimeLimit


def strikes(emulator: Emulator, act: Callable[[TokenManager], Callable[[], object]], *, what: str, age: float) -> int:
    """Strike at every point of *what* in turn, each with a manager of its own; return how many there are."""
    key = Credentials(emulator.api_key, emulator.merchant_id)
    for count in range(1, 10_000):
        clock = ManualClock()
        manager = TokenManager(key, base_url=emulator.url, clock=clock)
        token = None if what == "first" else manager.get_token()
        until(partial(_all_ended, manager, clock), "the end of the first fetch")
        clock.advance(age)
        jobs: dict[str, Callable[[], object]] = {
            "first": manager.get_token,
            "get_token": manager.get_token,
            "stats": manager.stats,
            "invalidate": partial(manager.invalidate, token or Token("", "", 60, 0)),
        }
        strike = Strike(count, act(manager))
        with suppress(SoftTimeLimit), strike:
            jobs[what]()
        if strike.point is None:
            until(partial(_all_ended, manager, clock), "the end of the fetch that was not struck")
            return count - 1
        state: Any = manager
        state = state._state
        with ThreadPoolExecutor(1) as another:
            free = another.submit(state._lock.acquire, timeout=DEADLINE / 4)
            assert free.result(), f"the lock is held, after {strike.point}"
            another.submit(state._lock.release).result()
            clock.advance(1)  # what has not begun by then never will
            another.submit(manager.get_token).result(DEADLINE / 4)
        until(partial(_all_ended, manager, clock), f"the end of the fetch struck at {strike.point}")
        assert manager.stats().failed_fetches == 0, strike.point
    raise AssertionError("there is no end to it")


def _all_ended(manager: TokenManager, clock: ManualClock) -> bool:
    if clock.waiting:  # for the lease of another one
        clock.advance(0.5)
    return not manager.stats().fetching and not any(each.name == "pay88-token-fetch" for each in threading.enumerate())


JOBS: dict[str, tuple[str, float]] = {
    "a first token": ("first", 0),
    "a cached token": ("get_token", 0),
    "a refresh": ("get_token", 46),
    "stats": ("stats", 0),
    "invalidate": ("invalidate", 0),
}


@case(*JOBS)
def a_soft_time_limit_strikes_anywhere(job: str) -> None:
    """Wherever the exception of a signal handler strikes, no lock stays held, and the next request is served."""
    what, age = JOBS[job]
    with Emulator(token_limits=(), call_limits=()) as emulator:
        assert strikes(emulator, lambda manager: limit, what=what, age=age)


@case(*JOBS)
def a_signal_handler_uses_the_manager_anywhere(job: str) -> None:
    """It calls `stats()`, `invalidate()` and, if there is a token, `get_token()`, wherever it interrupts the thread."""
    what, age = JOBS[job]
    with Emulator(token_limits=(), call_limits=()) as emulator:

        def handler(manager: TokenManager) -> Callable[[], None]:
            def handle() -> None:
                manager.stats()
                if what == "first":  # without one it waits until it is seen that what it interrupts starts no fetch
                    return
                try:
                    manager.invalidate(manager.get_token())
                except Pay88Error as error:
                    assert error.retryable  # noqa: PT017 - it interrupts what would fetch

            return handle

        assert strikes(emulator, handler, what=what, age=age)
