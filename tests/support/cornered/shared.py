"""What the cases share: their registry, an emulator with a manager, and callers in threads and tasks."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import aiohttp
import anyio
import httpx
import trio

import pay88_adapters.aiohttp
import pay88_adapters.engine.manager
import pay88_adapters.httpx
from pay88_adapters import Credentials, TokenManager, TokenPolicy
from pay88_adapters.clock import Clock
from pay88_adapters.testing import Emulator, ManualClock
from support.stacks import STACKS, Aiohttp, HttpxTrio, Options, Outcome, PlainResponse, Stack, Urllib3

DEADLINE = 60.0
"""Real seconds that a case may take; then it prints the stack traces of all threads and exits."""

CASES: dict[str, tuple[str, ...]] = {}
"""The client libraries of each case."""

FUNCTIONS: dict[str, Callable[..., None]] = {}
"""The functions of all cases and exits."""

THREADS = ("urllib3", "requests", "httpx", "httpx2")
TASKS = ("httpx-asyncio", "httpx-trio", "aiohttp")
ALONE = "manager"  # the manager itself, without a client
OPTIONS = Options(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # one for all: they take long to make
KINDS = {kind.name: kind for kind in STACKS}

Case = Callable[[str], None]
Ask = Callable[..., Awaitable[object]]


def case(*stacks: str) -> Callable[[Case], Case]:
    """Say which client libraries a case is for."""

    def add(function: Case) -> Case:
        CASES[function.__name__] = stacks
        FUNCTIONS[function.__name__] = function
        return function

    return add


class Corner:
    """An emulator on a clock, and a manager with patience: real timeouts are none of the cases' business."""

    def __init__(self, emulator: Emulator, credentials: Any = None, **policy: Any) -> None:
        self.emulator, self.clock = emulator, emulator.clock
        self.journal = emulator.journal
        self.url = f"{emulator.url}/api/balance?id={emulator.merchant_id}"
        self.credentials = Credentials(emulator.api_key, emulator.merchant_id)
        self.policy = TokenPolicy(**{"fetch_timeout": 30, "max_wait": 45, **policy})
        self.manager = self.new_manager(credentials)

    def new_manager(self, credentials: Any = None) -> TokenManager:
        """Return another manager."""
        return TokenManager(
            credentials or self.credentials, base_url=self.emulator.url, policy=self.policy, clock=self.clock
        )

    @property
    def waiting(self) -> int:
        """How many have had to wait so far."""
        return self.manager.stats().waited

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(seconds)

    def used(self, tokens: int) -> None:
        """Check what the server has seen, and what the budget says."""
        assert self.journal.token_requests == tokens, self.journal
        assert self.manager.stats().budget_left["10 per 1 minute"] == 10 - tokens


@contextmanager
def corner(clock: Clock | None = None, credentials: Any = None, **policy: Any) -> Iterator[Corner]:
    """Set up a case."""
    with Emulator(clock=clock or Clock(), call_limits=()) as emulator:
        yield Corner(emulator, credentials, **policy)


def until(condition: Callable[[], bool], what: str = "it") -> None:
    """Wait for something that is about to happen."""
    deadline = time.monotonic() + DEADLINE / 2
    while not condition():
        assert time.monotonic() < deadline, f"{what} does not happen"
        time.sleep(0.001)


async def auntil(condition: Callable[[], bool]) -> None:
    """Wait for something that is about to happen, on any event loop."""
    with anyio.fail_after(DEADLINE / 2):
        while not condition():  # noqa: ASYNC110 - no event tells
            await anyio.sleep(0.001)


def served(outcomes: list[Outcome]) -> bool:
    """Whether all requests got a 200."""
    bad = [each for each in outcomes if not isinstance(each, PlainResponse) or each.status != 200]
    assert not bad, bad
    return True


class Crowd:
    """Clients of several libraries, in threads and on event loops of their own, with concurrent requests."""

    def __init__(self, corner: Corner, *kinds: type[Stack], each: int = 3) -> None:
        self._corner, self._kinds, self._each = corner, kinds or (Urllib3, Aiohttp, HttpxTrio), each
        self._jobs: list[Future[list[Outcome]]] = []

    def __enter__(self) -> Crowd:
        with ExitStack() as stack:
            self._clients = [stack.enter_context(kind(self._corner.manager, OPTIONS)) for kind in self._kinds]
            self._pool = stack.enter_context(ThreadPoolExecutor(len(self._kinds)))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._exit.__exit__(*exc)

    def __len__(self) -> int:
        return self._each * len(self._kinds)

    def start(self) -> None:
        """Start all requests."""
        barrier = threading.Barrier(len(self._clients))

        def go(client: Stack) -> list[Outcome]:
            barrier.wait(DEADLINE)
            return client.gather(self._each, "POST", self._corner.url)

        self._jobs = [self._pool.submit(go, client) for client in self._clients]

    def served(self) -> bool:
        """Wait for all requests, and check that all succeeded."""
        return all(served(job.result(DEADLINE)) for job in self._jobs)


@contextmanager
def caller(stack: str, corner: Corner) -> Iterator[Callable[..., object]]:
    """Return what makes a call from a thread, by a client of its own."""
    if stack == ALONE:
        yield lambda **_: corner.manager.get_token()
        return
    with KINDS[stack](corner.manager, OPTIONS) as client:
        yield lambda **kw: served([client.request("POST", corner.url, **kw)])


class Tasks:
    """A client on the running event loop, which :meth:`close` closes."""

    def __init__(self, stack: str, manager: TokenManager, url: str) -> None:
        self._stack, self._manager, self._url = stack, manager, url
        self.client: Any = None
        if stack == "aiohttp":
            self.client = pay88_adapters.aiohttp.attach(aiohttp.ClientSession(), manager)
        elif stack != ALONE:
            self.client = pay88_adapters.httpx.attach(
                httpx.AsyncClient(verify=OPTIONS.tls or True, trust_env=False, timeout=30), manager
            )

    async def __call__(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Make a call, with the library's own timeout for a request."""
        if self._stack == ALONE:
            return bool(await self._manager.aget_token())
        kw: dict[str, Any] = {}
        if timeout is not None:
            kw["timeout"] = aiohttp.ClientTimeout(total=timeout) if self._stack == "aiohttp" else timeout
        response = await self.client.post(self._url, **kw)
        if self._stack == "aiohttp":
            async with response:
                await response.read()
            assert response.status == 200
        else:
            assert response.status_code == 200
        return True

    async def close(self) -> None:
        """Close the client."""
        if self.client is not None:
            await (self.client.close() if self._stack == "aiohttp" else self.client.aclose())


@asynccontextmanager
async def tasks(stack: str, corner: Corner) -> AsyncIterator[Tasks]:
    """Return what makes a call from a task."""
    client = Tasks(stack, corner.manager, corner.url)
    try:
        yield client
    finally:
        await client.close()


def run(stack: str, main: Callable[[], Any]) -> Any:
    """Run *main* on the kind of event loop that the client needs."""
    return trio.run(main) if stack == "httpx-trio" else asyncio.run(main())


async def settled(here: Corner) -> None:
    """Wait for the end of the fetch, and for that of every other task on this loop."""
    await auntil(lambda: not here.manager.stats().fetching)
    with suppress(RuntimeError):  # trio does not end with tasks left over
        await auntil(lambda: asyncio.all_tasks() == {asyncio.current_task()})


EXITS: dict[str, tuple[str, ...]] = {}
"""The libraries of the cases that end with the process. The emulator runs in another one: functions take its URL."""

Exit = Callable[[str, TokenManager, ManualClock, str], None]


def last(*stacks: str) -> Callable[[Exit], Exit]:
    """Say which client libraries an exit is for."""

    def add(function: Exit) -> Exit:
        EXITS[function.__name__] = stacks
        FUNCTIONS[function.__name__] = function
        return function

    return add
