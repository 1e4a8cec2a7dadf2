"""What the managers of one process share, and each its own part of it."""

from __future__ import annotations

from typing import Any

from pay88_adapters import Credentials, TokenManager
from pay88_adapters.engine.fetches import FetchRun
from pay88_adapters.engine.locks import SharedLocks


def manager() -> Any:
    """Return a manager that has sent nothing."""
    return TokenManager(Credentials("sk_test_sharing", "MCH-COL-SHARING"))


def test_rule_17_owners_get_the_shared_locks_in_turn_and_others_after_a_fork() -> None:
    """So those that were created one after another never wait for each other."""
    locks = SharedLocks()
    turn = [locks.next() for _ in range(64)]
    assert len(set(map(id, turn))) == 64
    assert [locks.next() for _ in range(64)] == turn
    locks.after_fork()
    assert not set(map(id, turn)) & {id(locks.next()) for _ in range(64)}


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
