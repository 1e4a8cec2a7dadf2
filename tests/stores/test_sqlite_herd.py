"""A SQLite store with many concurrent processes, or with one that is frozen or killed while it holds the lock."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pay88_adapters import Credentials, Pay88Error, TokenManager, TokenPolicy
from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Window
from pay88_adapters.engine.store_link import OPERATION_TIMEOUT
from pay88_adapters.stores.base import StoreError
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import Emulator
from support.servers import until

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(os.name != "posix", reason="no forks and signals here"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]

WINDOW = Window("key", 1000, 3600.0)


@pytest.fixture
def path() -> Iterator[Path]:
    """Where the file will be: in memory where that is possible, since a disk may be busy."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory, "store.db")


@contextmanager
def process(act: Callable[[], object]) -> Iterator[int]:
    """Do something in a process of its own, which is killed in the end."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


class Stopped(Clock):
    """Stops the process in the middle of a transaction, where the store looks at the time."""

    def __init__(self, how: signal.Signals) -> None:
        super().__init__()
        steady = self.now

        def now() -> float:
            os.kill(os.getpid(), how)
            return steady()

        self.now = now


def state_of(pid: int) -> str:
    """Return what a process does: T is stopped, Z dead."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_rule_24_a_process_that_is_frozen_in_a_transaction(path: Path) -> None:
    """The other processes fail in time, all of them; when it continues, its units count, and so do theirs."""
    store = SqliteStore(str(path), Clock())
    store.budget.acquire_all([WINDOW])
    with process(lambda: SqliteStore(str(path), Stopped(signal.SIGSTOP)).budget.acquire_all([WINDOW])) as frozen:
        until(lambda: state_of(frozen) == "T")
        failed: list[float] = []

        def fail() -> None:
            began = time.monotonic()
            with pytest.raises(StoreError, match=r"locked|busy"):
                store.budget.acquire_all([WINDOW])
            failed.append(time.monotonic() - began)

        threads = [threading.Thread(target=fail) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failed) == 4
        assert max(failed) < OPERATION_TIMEOUT
        os.kill(frozen, signal.SIGCONT)
        until(lambda: state_of(frozen) == "Z")
    assert store.budget.acquire_all([WINDOW]).wait == 0
    assert len(store.budget.ages(WINDOW)) == 3


def test_rule_24_a_process_that_is_killed_in_a_transaction(path: Path) -> None:
    """The other processes do not wait for it, and nothing of its transaction remains."""
    store = SqliteStore(str(path), Clock())
    store.budget.acquire_all([WINDOW])
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                SqliteStore(str(path), Stopped(signal.SIGKILL)).budget.acquire_all([WINDOW])
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        began = time.monotonic()
        assert store.budget.acquire_all([WINDOW]).wait == 0
        assert time.monotonic() - began < OPERATION_TIMEOUT / 2
    assert len(store.budget.ages(WINDOW)) == 4


def test_rule_17_a_child_does_not_keep_its_parents_place(path: Path) -> None:
    """It was forked inside of a transaction, as by a signal handler, and lives on."""

    class Forking(Clock):
        """Forks where the store looks at the time."""

        def __init__(self) -> None:
            super().__init__()
            self.children: list[int] = []
            steady = self.now

            def now() -> float:
                if not self.children:
                    child = os.fork()
                    if child == 0:
                        signal.pause()
                    self.children.append(child)
                return steady()

            self.now = now

    clock = Forking()
    SqliteStore(str(path), clock).budget.acquire_all([WINDOW])
    try:
        assert SqliteStore(str(path), Clock()).budget.acquire_all([WINDOW]).wait == 0
    finally:
        for child in clock.children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.mark.timeout(300)
def test_rule_04_200_processes_start_concurrently(path: Path) -> None:
    """One token request in all, no failure, and no process in degraded mode."""
    policy = TokenPolicy(fetch_timeout=30, max_wait=100)
    said_from, say = os.pipe()
    wait_for_start, starts = os.pipe()
    wait_for_end, ends = os.pipe()
    where = path.with_name("emulator")

    def act() -> None:
        os.close(starts)
        os.close(ends)
        os.write(say, b"r")  # ready
        os.read(wait_for_start, 1)
        url, key, merchant_id = where.read_text(encoding="ascii").split()
        store = f"sqlite:///{path}"
        manager = TokenManager(Credentials(key, merchant_id), base_url=url, store=store, policy=policy)
        try:
            manager.get_token()
        except Pay88Error:
            os.write(say, b"e")
        else:
            os.write(say, b"d" if manager.stats().store_degraded else b"t")
        os.read(wait_for_end, 1)  # the process that fetched has yet to publish

    def responses() -> str:
        said = ""
        while len(said) < 200:
            said += os.read(said_from, 200).decode()
        return said

    with ExitStack() as stack:
        for each in (said_from, say, wait_for_start, wait_for_end, ends):
            stack.callback(os.close, each)
        for _ in range(200):  # before there is any thread
            stack.enter_context(process(act))
        assert responses() == "r" * 200
        emulator = stack.enter_context(Emulator(call_limits=()))
        where.write_text(f"{emulator.url} {emulator.api_key} {emulator.merchant_id}", encoding="ascii")
        os.close(starts)
        assert responses() == "t" * 200
        assert emulator.journal.token_requests == 1
