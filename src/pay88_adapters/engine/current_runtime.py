"""Which event loop this code runs on."""

from __future__ import annotations

import asyncio
import sys

from .runtimes import AsyncioRuntime, AsyncRuntime


def current_runtime() -> AsyncRuntime:
    """Return the event loop this code runs on.

    Raises:
        RuntimeError: None does.
    """
    # trio first: as a guest it runs inside the callbacks of another loop. It is not imported where it cannot run.
    if "trio" in sys.modules:
        from . import runtime_trio

        if runtime_trio.is_current():
            return runtime_trio.TrioRuntime()
    return AsyncioRuntime(asyncio.get_running_loop())


def current_run() -> object:
    """Return what stands for the current run of the current event loop, however often that loop is run.

    Each run of a loop, on asyncio and trio, installs hooks for asynchronous generators that are objects of its own:
    nothing else is there from its beginning to its end, and only so long.
    """
    return sys.get_asyncgen_hooks().finalizer
