"""The current event loop."""

from __future__ import annotations

import asyncio
import sys

from .runtimes import AsyncioRuntime, AsyncRuntime


def current_runtime() -> AsyncRuntime:
    """Return the runtime of the current event loop.

    Raises:
        RuntimeError: No event loop runs.
    """
    # trio first: as a guest it runs inside the callbacks of another event loop. It is not imported where it cannot run.
    if "trio" in sys.modules:
        from . import runtime_trio

        if runtime_trio.is_current():
            return runtime_trio.TrioRuntime()
    return AsyncioRuntime(asyncio.get_running_loop())


def current_run() -> object:
    """Return an object that stands for the current run of the current event loop. A loop may run several times.

    Each run of a loop, on asyncio and trio, installs its own hook objects for asynchronous generators. No other object
    exists exactly as long as the run.
    """
    return sys.get_asyncgen_hooks().finalizer
