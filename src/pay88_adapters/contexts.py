"""Which manager the calls of a context use: their client's, another one, or none."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .manager import TokenManager

M = TypeVar("M")


class _Choice:
    __slots__ = ("manager",)

    def __init__(self, manager: TokenManager | None) -> None:
        self.manager = manager


CHOICES: ContextVar[tuple[_Choice, ...]] = ContextVar("pay88_managers", default=())  # those still open, innermost last


def chosen(own: M) -> TokenManager | M | None:
    """Return the manager for a call of a client whose own one is *own*; ``None`` leaves the call alone."""
    choices = CHOICES.get()
    return choices[-1].manager if choices else own


@contextmanager
def choose(manager: TokenManager | None) -> Generator[None, None, None]:
    """Let the calls of this context use *manager*, or none."""
    mine = _Choice(manager)
    CHOICES.set((*CHOICES.get(), mine))
    try:
        yield
    finally:
        # No reset(): generators that share a context end in any order, or in another context.
        CHOICES.set(tuple(each for each in CHOICES.get() if each is not mine))


@contextmanager
def unmanaged() -> Generator[None, None, None]:
    """Leave the calls of a context alone: ``with unmanaged(): …``. They go out as the caller made them.

    It holds for this thread or task, and for the tasks that are started in it. A new thread starts
    without; ``contextvars.copy_context().run`` takes it along. A generator that yields inside of the block
    shares its context with whoever iterates over it: they see it as well, until the block ends.
    """
    with choose(None):
        yield
