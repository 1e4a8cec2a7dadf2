"""Another clock for all managers of this process, and a fresh start on it; for tests."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from .clock import Clock
from .forks import living
from .manager import PROCESS, TokenManager
from .registry import SharedManagers


@contextmanager
def default_clock(clock: Clock) -> Generator[None, None, None]:
    """Let all managers run on *clock*, from a fresh start, but for those that were given one; for tests.

    State inside the block is separate: :meth:`TokenManager.shared` makes other managers in it, and one that was made
    before is afterwards as it was.
    """
    with PROCESS.lock:
        kept = PROCESS.clock, PROCESS.managers
        PROCESS.clock, PROCESS.managers = clock, SharedManagers()
        before = [(each, each._start_anew(clock)) for each in _on_default_clock()]  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        with PROCESS.lock:
            PROCESS.clock, PROCESS.managers = kept
            for manager, parts in before:
                manager._resume(*parts)  # pyright: ignore[reportPrivateUsage]


def _on_default_clock() -> list[TokenManager]:
    managers = living(TokenManager)
    return [manager for manager in managers if not manager._has_own_clock]  # pyright: ignore[reportPrivateUsage]
