"""Processes that are forked during a fetch."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pay88_adapters.aiohttp
import pay88_adapters.engine.manager
import pay88_adapters.httpx
from pay88_adapters import TokenManager

from .shared import ALONE, DEADLINE, TASKS, THREADS, Crowd, caller, case, corner, until


def fork(child: Callable[[], object]) -> int:
    """Fork; the child leaves with 0 if *child* says that all is well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads is the point
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        faulthandler.register(signal.SIGALRM, chain=True)  # the watchdog thread is not here, and cannot be had again
        signal.alarm(int(DEADLINE / 2))
        code = 0 if child() else 2
    except BaseException:  # noqa: BLE001 - nothing of the parent's goes on here
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> bool:
    """Wait for a child, and say whether all was well there."""
    return os.waitpid(child, 0)[1] == 0


@case(*THREADS, *TASKS, ALONE)
def a_process_is_forked_under_the_fetch(stack: str) -> None:
    """From the main thread and from another one, while callers wait: all continue, each child by itself."""
    with corner() as here, Crowd(here) as crowd, here.emulator.hold("token") as held, ThreadPoolExecutor(2) as pool:
        with caller(stack, here) as call:

            def child() -> object:
                with caller(stack, here) as own:  # the parent's loops do not run here
                    return own()

            leader = pool.submit(call)
            until(lambda: held.held == 1 and here.waiting == 1)
            crowd.start()
            until(lambda: here.waiting == 1 + len(crowd))
            children = [fork(child), pool.submit(fork, child).result()]
            held.wait_for(3, timeout=DEADLINE / 2)
            held.release()
            assert all(ended(each) for each in children)
            assert leader.result(DEADLINE)
            assert crowd.served()
        assert here.journal.token_requests == 3


@case(ALONE)
def a_process_is_forked_while_every_lock_is_held(stack: str) -> None:
    """By the thread that forks, and by another one that is in the middle of a decision."""
    with corner() as here:
        token = here.manager.get_token()
        until(lambda: not here.manager.stats().fetching, "the token in the store")
        state: Any = here.manager
        state = state._state
        shared = partial(TokenManager.shared, here.credentials, base_url=here.emulator.url)
        process: Any = pay88_adapters.engine.manager.PROCESS
        store = state.settings.store_client.store

        def child() -> object:
            kept = here.manager.get_token(min_validity=1) == token
            return kept and here.new_manager().get_token() == token and shared().get_token() != token

        with state._lock, store._lock, store.budget._lock, process.lock:
            held = fork(child)
        assert ended(held)
        assert here.journal.token_requests == 2

        inside, leave = threading.Event(), threading.Event()

        def decide() -> None:
            with state._lock:
                inside.set()
                leave.wait(DEADLINE)

        decider = threading.Thread(target=decide)
        decider.start()
        inside.wait(DEADLINE)
        assert ended(fork(child))
        leave.set()
        decider.join()
        assert here.manager.get_token(min_validity=1) == token
        assert shared() is shared()


@case(ALONE)
def a_forked_child_has_connections_of_its_own(stack: str) -> None:
    """Two processes that read from one connection would get each other's tokens."""
    with corner() as here:

        def another() -> object:
            here.manager.invalidate(here.manager.get_token())
            return here.manager.get_token()

        here.manager.get_token()
        assert ended(fork(another))
        assert another()
        first, childs, second = (entry.peer for entry in here.journal.select("token"))
        assert first == second != childs
