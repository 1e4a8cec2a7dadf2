"""What the managers of one process share, and each its own part of it."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from pay88_adapters import Credentials, TokenManager
from pay88_adapters.engine.fetches import FetchRun
from pay88_adapters.engine.state import ManagerState


def manager() -> Any:
    """Return a manager that has sent nothing."""
    return TokenManager(Credentials("sk_test_sharing", "MCH-COL-SHARING"))


def test_the_counters_of_one_manager_are_not_those_of_another() -> None:
    """As long as nothing was counted, all have the same."""
    counting, idle = manager(), manager()
    assert counting._state.request_counters is idle._state.request_counters
    for count in (1, 2):
        counting._state.record_bypass()
        assert (counting.stats().bypassed, idle.stats().bypassed) == (count, 0)


def test_rule_17_a_fetch_that_begins_while_another_one_does_is_kept() -> None:
    """As in a signal handler, which interrupts the first one after any call."""
    fetches = manager().sync_runner.fetches
    first, second = FetchRun(1), FetchRun(2)
    interrupted: list[FetchRun] = []

    def begin(runs: tuple[FetchRun, ...]) -> tuple[FetchRun, ...]:
        assert not fetches.state.is_held_here  # the handler may wait for another thread, which needs the lock
        if not interrupted:
            interrupted.append(second)
            fetches.begin(second)
        return (*runs, first)

    try:
        fetches._replace_runs(begin)
        assert fetches._runs == (second, first)
    finally:
        for run in (first, second):
            fetches.end(run)
    assert fetches._runs == ()


def test_rule_17_a_bypass_is_counted_without_a_call_while_the_lock_is_held() -> None:
    """A signal handler that strikes in a call may wait for another thread, which needs the lock."""
    counting, held = manager(), []

    def trace(frame: FrameType, *_: object) -> None:
        if frame.f_code is ManagerState.own_request_counters.__code__:
            held.append(frame.f_locals["self"].is_held_here)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        counting._state.record_bypass()
    finally:
        sys.settrace(before)
    assert held == [False]
