"""Processes that share a store: each has a manager of its own, clients of all libraries, and runs commands.

A zygote imports everything once and is forked for each of them, before it has any thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import uuid4

from pay88_adapters import Credentials, Pay88Error, TokenManager, TokenPolicy
from pay88_adapters.clock import Clock
from support.stacks import STACKS, AsyncioStack, Outcome, PlainResponse, Stack

THREADS_AND_TASKS = ("urllib3", "httpx", "httpx-asyncio", "aiohttp")
"""The client libraries of one process, all in use concurrently."""
BEAT = 0.005  # real seconds
_kept: list[Connection] = []  # of a process that ends normally


@dataclass(frozen=True)
class Plan:
    """What a worker is made of."""

    store: str
    base_url: str
    api_key: str = field(repr=False)
    merchant_id: str
    speed: float
    policy: TokenPolicy
    name: str = ""
    stacks: Sequence[str] = THREADS_AND_TASKS
    wall_offset: float = 0.0
    """Seconds that its wall clock is off."""


@dataclass
class Load:
    """What became of steady calls."""

    responses: Counter[str] = field(default_factory=Counter)
    """By status or error."""
    slowest: float = 0.0
    """Real seconds."""


def _said(outcome: Outcome) -> str:
    return str(outcome.status) if isinstance(outcome, PlainResponse) else f"{type(outcome).__name__}: {outcome}"


class Site:
    """The commands of a worker: each method is one."""

    def __init__(self, plan: Plan) -> None:
        if plan.wall_offset:
            wall = time.time
            time.time = lambda: wall() + plan.wall_offset
        self._plan = plan
        self._clock = Clock(plan.speed)
        self._log: list[str] = []
        self._events: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self._log.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("pay88_adapters.store").addHandler(handler)
        self.manager = TokenManager(
            Credentials(plan.api_key, plan.merchant_id),
            base_url=plan.base_url,
            store=plan.store,
            policy=plan.policy,
            clock=self._clock,
            listeners=[lambda event: self._events.append(type(event).__name__)],
        )
        kinds = {kind.name: kind for kind in STACKS}
        self._clients: dict[str, Stack] = {name: kinds[name](self.manager) for name in plan.stacks}
        self._loads: dict[str, Load] = {}
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self._beats = 0
        self._gaps: list[int] = []

    def call(self, stack: str = "") -> str:
        """Make one call."""
        client = self._clients[stack or self._plan.stacks[0]]
        url = f"{self._plan.base_url}/api/balance?id={self._plan.merchant_id}"
        return _said(client.attempt("POST", url, headers={"x-worker": self._plan.name}))

    def spend(self, count: int) -> Counter[str]:
        """Send token requests with invalid keys, each of which costs a unit; return their outcomes."""
        ended: Counter[str] = Counter()
        plan = self._plan
        for _ in range(count):
            credentials = Credentials(f"sk_test_{uuid4().hex}", plan.merchant_id)
            options: dict[str, Any] = {"store": plan.store, "policy": plan.policy, "clock": self._clock}
            with TokenManager(credentials, base_url=plan.base_url, **options) as manager:
                try:
                    manager.get_token()
                except Pay88Error as error:
                    ended[type(error).__name__] += 1
        return ended

    def reach_store(self) -> bool:
        """Return whether the store works, and this process uses it."""
        client: Any = self.manager._state.settings.store_client
        return bool(client.link.attempt(lambda store: store.budget.check()))

    def start(self, pause: float) -> None:
        """Call again and again with every client library, with *pause* real seconds in between."""
        self._over.clear()
        for name in self._clients:
            self._loads[name] = Load()
            self._threads.append(threading.Thread(target=self._steadily, args=(name, self._loads[name], pause)))
        self._threads.append(threading.Thread(target=self._beat))
        for client in self._clients.values():
            if isinstance(client, AsyncioStack):
                asyncio.run_coroutine_threadsafe(self._tick(), client.loop)
        for thread in self._threads:
            thread.start()

    def stop(self) -> dict[str, Load]:
        """End that; return what became of it, by client library."""
        self._over.set()
        while self._threads:
            self._threads.pop().join()
        return self._loads

    def gap(self) -> int:
        """Return the largest number of beats for which any event loop did nothing else, since the last call.

        Beats come from a thread that does nothing but sleep: a busy machine holds up both, and what blocks a loop, one.
        """
        gaps, self._gaps = self._gaps, []
        return max(gaps)

    def stats(self) -> dict[str, Any]:
        """Return the manager's."""
        stats = self.manager.stats()
        return {name: getattr(stats, name) for name in stats.__slots__}

    def events(self) -> Counter[str]:
        """Return the events of the listeners, by kind."""
        return Counter(self._events)

    def warnings(self) -> list[str]:
        """Return what the store's logger said."""
        return self._log

    def settle(self) -> None:
        """Wait until the threads of all fetches have ended, with all they do after the token is there."""
        for thread in threading.enumerate():
            if thread.name == "pay88-token-fetch":
                thread.join()

    def share(self) -> int:
        """Return one part in how many this process may use of the budget while the store fails."""
        client: Any = self.manager._state.settings.store_client
        return int(client.share.divisor(self._clock.now()))

    def renew(self) -> str:
        """Make one call with a new token."""
        self.manager.invalidate(self.manager.get_token())
        return self.call()

    def end(self, how: str) -> None:
        """Close the manager on a thread or in a task, or end the process normally."""
        if how == "close":
            self.manager.close()
        elif how == "aclose":
            asyncio.run(self.manager.aclose())
        else:
            sys.exit()

    def fill_disk(self, size: int) -> None:
        """Let no file grow beyond *size*, or any file if that is -1."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def _steadily(self, name: str, load: Load, pause: float) -> None:
        while not self._over.is_set():
            started = time.monotonic()
            load.responses[self.call(name)] += 1
            load.slowest = max(load.slowest, time.monotonic() - started)
            self._over.wait(pause)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self._beats += 1

    async def _tick(self) -> None:
        while not self._over.is_set():
            started = self._beats
            await asyncio.sleep(BEAT)
            self._gaps.append(self._beats - started)


def serve(connection: Connection) -> None:
    """Run as a worker until standard input is closed."""
    site = Site(connection.recv())
    connection.send((True, os.getpid()))
    with suppress(EOFError):
        while True:
            command, *args = connection.recv()
            try:
                respond = True, getattr(site, command)(*args)
            except SystemExit:
                _kept.append(connection)  # until the process has ended
                return
            except Exception:  # noqa: BLE001 - the test says what it expects
                respond = False, traceback.format_exc()
            connection.send(respond)


def zygote(*handles: int) -> None:
    """Fork a worker for each of these ends of pipes; stay until the test has ended, so that no id is used again."""
    for handle in handles:
        if os.fork() == 0:
            for other in handles:
                if other != handle:
                    os.close(other)
            try:
                serve(Connection(handle))
            finally:
                if not _kept:
                    os._exit(0)
            sys.exit()
    for handle in handles:
        os.close(handle)
    sys.stdin.read()


class Worker:
    """A worker, as the test sees it."""

    def __init__(self, connection: Connection, plan: Plan) -> None:
        self._connection = connection
        self.name = plan.name
        connection.send(plan)
        self.pid = 0

    def tell(self, command: str, *args: Any) -> None:
        """Send it a command; :meth:`respond` returns the result later."""
        self._connection.send((command, *args))

    def respond(self, timeout: float = 60.0) -> Any:
        """Return what came of it."""
        assert self._connection.poll(timeout), f"worker {self.name} hangs"
        fine, respond = self._connection.recv()
        assert fine, respond
        return respond

    def do(self, command: str, *args: Any) -> Any:
        """Let it do something; return what came of it."""
        self.tell(command, *args)
        return self.respond()

    def signal(self, what: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, what)

    def wait_for_end(self, timeout: float = 60.0) -> None:
        """Wait until it has ended, without a response."""
        assert self._connection.poll(timeout), f"worker {self.name} does not end"
        with suppress(EOFError):
            raise AssertionError(self._connection.recv())

    def close(self) -> None:
        """Be done with it."""
        self._connection.close()


class Team(list[Worker]):
    """Workers that get the same commands."""

    def tell(self, command: str, *args: Any) -> None:
        """Let all do something."""
        for worker in self:
            worker.tell(command, *args)

    def responses(self) -> list[Any]:
        """Return what came of it, by worker."""
        return [worker.respond() for worker in self]

    def do(self, command: str, *args: Any) -> list[Any]:
        """Run a command on all workers concurrently; return the results, by worker."""
        self.tell(command, *args)
        return self.responses()


@contextmanager
def team(plans: Sequence[Plan]) -> Iterator[Team]:
    """Start a worker for each plan."""
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(here), *(str(Path(each).resolve()) for each in sys.path if each)])
    pipes = [Pipe() for _ in plans]
    handles = [theirs.fileno() for _, theirs in pipes]
    script = f"from support import fleet_worker; fleet_worker.zygote(*{handles})"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        pass_fds=handles,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        workers = Team()
        try:
            for (ours, theirs), plan in zip(pipes, plans, strict=True):
                theirs.close()
                workers.append(Worker(ours, plan))
            for worker in workers:
                worker.pid = worker.respond()
            yield workers
        finally:
            for worker in workers:
                if worker.pid:
                    worker.signal(signal.SIGKILL)
                worker.close()
            assert process.stdin is not None
            process.stdin.close()
