"""Which manager the calls of a context use: their client's, another one, or none."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .manager import TokenManager

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class _Choice:
    manager: TokenManager | None


_choice: ContextVar[_Choice | None] = ContextVar("pay88_manager", default=None)


def chosen(own: M) -> TokenManager | M | None:
    """Return the manager for a call of a client whose own one is *own*; ``None`` leaves the call alone."""
    choice = _choice.get()
    return own if choice is None else choice.manager


@contextmanager
def choose(manager: TokenManager | None) -> Generator[None, None, None]:
    """Let the calls of this context use *manager*, or none."""
    before = _choice.set(_Choice(manager))
    try:
        yield
    finally:
        _choice.reset(before)


@contextmanager
def unmanaged() -> Generator[None, None, None]:
    """Leave the calls of a context alone: ``with unmanaged(): …``. They go out as the caller made them.

    It holds for this thread or task, and for the tasks that are started in it. A new thread starts
    without; ``contextvars.copy_context().run`` takes it along.
    """
    with choose(None):
        yield
