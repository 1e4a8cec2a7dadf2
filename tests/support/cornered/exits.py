"""The end of the interpreter, with a fetch or a wait in progress."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial

import anyio

from pay88_adapters import TokenManager
from pay88_adapters.testing import ManualClock

from .forks import ended
from .shared import ALONE, DEADLINE, KINDS, OPTIONS, TASKS, THREADS, Tasks, last, run, served, until


def ready() -> None:
    """Say that what has to happen here has happened; wait until the test says that it has at the server, too."""
    print("ready", flush=True)  # noqa: T201 - to the test
    assert sys.stdin.readline() == "go on\n"


@last(*THREADS, *TASKS, ALONE)
def exit_during_a_refresh(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    """The background refresh gets no response."""
    if stack in TASKS:
        run(stack, partial(_refresh, stack, manager, clock, url))
        return
    call = open_caller(stack, manager, url)
    call()
    clock.advance(46)
    call()
    ready()


async def _refresh(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    client = Tasks(stack, manager, url)
    await client()
    clock.advance(46)
    await client()
    await anyio.to_thread.run_sync(ready)
    await client.close()


@last("urllib3")
def exit_while_daemons_wait(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    """Threads that the interpreter does not wait for wait for a token that never comes."""
    call = open_caller(stack, manager, url)
    for _ in range(5):
        threading.Thread(target=call, daemon=True).start()
    until(lambda: manager.stats().waited == 5)
    ready()
    sys.exit(0)


@last("urllib3")
def exit_while_threads_wait(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    """Threads that the interpreter does wait for are served, though the main thread has gone."""
    call = open_caller(stack, manager, url)
    for _ in range(5):
        threading.Thread(target=call).start()
    until(lambda: manager.stats().waited == 5)
    ready()
    sys.exit(0)


@last("urllib3", "httpx-asyncio", ALONE)
def exit_with_a_last_call(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    """A handler at exit makes a call; no thread may be started by then on newer Pythons."""
    if stack in TASKS:

        async def call() -> None:
            client = Tasks(stack, manager, url)
            assert await client()
            await client.close()

        atexit.register(run, stack, call)
    else:
        atexit.register(open_caller(stack, manager, url))
    ready()


@last(ALONE)
def exit_of_a_child_and_its_parent(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    """Both come to their end with a refresh under way that only one of them carries."""
    call = open_caller(stack, manager, url)
    call()
    clock.advance(46)
    call()
    ready()
    faulthandler.cancel_dump_traceback_later()  # at its end, the child would wait for the watchdog thread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        assert ended(child)
    else:
        signal.alarm(int(DEADLINE / 2))


def open_caller(stack: str, manager: TokenManager, url: str) -> Callable[[], object]:
    """Return what makes a call, by a client that is closed when all is over."""
    if stack == ALONE:
        return manager.get_token
    client = KINDS[stack](manager, OPTIONS)
    atexit.register(client.close)
    return lambda: served([client.request("POST", url)])
