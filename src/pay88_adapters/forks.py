"""What a forked child must not inherit: locks that another thread held, and fetches that died with it."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something with a lock."""

    def after_fork(self) -> None:
        """Start over in the child, where no other thread exists."""
        ...


_forkable: WeakSet[Forkable] = WeakSet()


def survive_forks(thing: Forkable) -> None:
    """Call ``thing.after_fork()`` in every child that is forked while it lives."""
    _forkable.add(thing)


_ids = [os.urandom(16).hex()]


def fork_id() -> str:
    """Name this process, as no other one and no fork of it is named."""
    return _ids[-1]


def _after_fork() -> None:
    _ids[:] = [os.urandom(16).hex()]
    for thing in list(_forkable):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)  # once for all: hooks cannot be taken back
