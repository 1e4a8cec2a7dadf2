"""What a forked child must not inherit: locks that another thread held, and fetches that died with it."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
_log = logging.getLogger("pay88_adapters.tokens")


class Forkable(Protocol):
    """Something with a lock."""

    def after_fork(self) -> None:
        """Start over in the child, where no other thread exists."""
        ...


# A plain dict: a WeakSet cannot be copied safely while other threads add to it. The references are the keys: what
# they refer to compares equal to itself alone.
_forkable: dict[weakref.ref[Any], Callable[[Any], None]] = {}


def survive_forks(thing: Forkable) -> None:
    """Call ``thing.after_fork()`` in every child that is forked while it exists."""
    at_fork(thing, _start_over)


def at_fork(thing: T, act: Callable[[T], None]) -> None:
    """Call ``act(thing)`` in every child that is forked while *thing* exists."""
    _forkable[weakref.ref(thing, _forget)] = act


def _start_over(thing: Forkable) -> None:
    thing.after_fork()


def _forget(gone: weakref.ref[Any]) -> None:
    _forkable.pop(gone, None)


def living(kind: type[T]) -> list[T]:
    """Return the objects of *kind* that :func:`at_fork` knows and that still exist. Any thread may call this."""
    return [thing for reference in list(_forkable) if isinstance(thing := reference(), kind)]


_ids = [os.urandom(16).hex()]


def fork_id() -> str:
    """Name this process, as no other one and no fork of it is named."""
    return _ids[-1]


def _after_fork() -> None:
    _ids[:] = [os.urandom(16).hex()]
    for reference, act in list(_forkable.items()):
        thing = reference()
        try:
            if thing is not None:
                act(thing)
        except Exception:  # noqa: BLE001 - a failure must not prevent the rest
            _log.exception("%s.after_fork() failed", type(thing).__name__)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)  # once for all: hooks cannot be removed
