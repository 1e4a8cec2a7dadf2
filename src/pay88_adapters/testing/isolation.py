"""Tests that share no token, failures and budget."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from pay88_adapters.clock import Clock
from pay88_adapters.engine.default_clock import default_clock
from pay88_adapters.engine.overrides import Enclosing


class Isolation(Enclosing):
    """A context manager, and a decorator of functions and coroutine functions, in which all managers start empty."""

    names = "isolated()"

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        entered = default_clock(self._clock or Clock())
        entered.__enter__()
        self._entered.append(entered)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered.pop().__exit__(None, None, None)


def isolated(clock: Clock | None = None) -> Isolation:
    """Isolate a test: in the block, no manager has a token, failures or a used budget from outside of it.

    Managers of one process with the same credentials share all three. In the block, earlier managers start empty as
    well, with the same listeners; afterwards each has its former state. Stores other than ``memory://`` keep their
    content: use a separate file for each test. Managers with their own *clock* are not affected.

    ``@isolated()`` does the same for a function or a coroutine function. The effect is on the whole process, and not on
    the current thread alone.

    Args:
        clock: The clock of the managers in the block: real time unless given.
    """
    return Isolation(clock)
