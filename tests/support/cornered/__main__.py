"""Runs one case, and checks what it left behind."""

from __future__ import annotations

import faulthandler
import gc
import logging
import sys
import threading
from pathlib import Path

from pay88_adapters import Credentials, TokenManager, TokenPolicy
from pay88_adapters.testing import ManualClock

from . import DEADLINE, EXITS, FUNCTIONS
from .shared import until


def open_files() -> int:
    """Number of file descriptors that this process has open, where the system reports it."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def main(name: str, stack: str, url: str = "") -> None:
    """Run one case, and look for what it left."""
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    # In debug mode asyncio logs slow steps, such as those of a busy machine.
    logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))
    if name in EXITS:
        clock = ManualClock()
        key = Credentials("sk_test_emulator", "MCH-COL-TEST-EMULATOR")
        policy = TokenPolicy(fetch_timeout=30, max_wait=45)
        manager = TokenManager(key, base_url=url, policy=policy, clock=clock)
        FUNCTIONS[name](stack, manager, clock, f"{url}/api/balance?id={key.merchant_id}")
        return
    threads, files = set(threading.enumerate()), open_files()
    FUNCTIONS[name](stack)
    gc.collect()
    until(lambda: set(threading.enumerate()) <= threads, "the end of all threads")
    gc.collect()
    assert open_files() <= files, "files were left open"
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(*sys.argv[1:])
