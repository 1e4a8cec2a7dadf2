"""Cases that corner the runners, each in its own process: ``python -X dev -W error -m support.cornered CASE STACK``.

A case ends without an error, leaves nothing behind, and prints nothing. It waits for its preconditions: requests are
held at the server, and requests that wait for a token are counted.
"""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import gc
import logging
import os
import signal
import ssl
import sys
import sysconfig
import threading
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import httpx
import trio

import pay88_adapters.aiohttp
import pay88_adapters.engine.manager
import pay88_adapters.httpx
from pay88_adapters import (
    Credentials,
    Pay88Error,
    Token,
    TokenEndpointUnavailable,
    TokenManager,
    TokenPolicy,
)
from pay88_adapters.clock import Clock
from pay88_adapters.events import TokenFetched
from pay88_adapters.testing import Emulator, Hold, ManualClock, ResetAfterRead
from support.stacks import (
    STACKS,
    Aiohttp,
    AsyncioStack,
    HttpxAsyncio,
    HttpxTrio,
    Options,
    Outcome,
    Reply,
    Stack,
    SyncStack,
    Urllib3,
)

DEADLINE = 60.0
"""Real seconds that a case may take; then it prints the stack traces of all threads and exits."""

CASES: dict[str, tuple[str, ...]] = {}
"""The stacks of each case."""

THREADS = ("urllib3", "requests", "httpx", "httpx2")
TASKS = ("httpx-asyncio", "httpx-trio", "aiohttp")
ALONE = "manager"  # the manager itself, without a client
OPTIONS = Options(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # one for all: they take long to make
KINDS = {kind.name: kind for kind in STACKS}

Case = Callable[[str], None]
Ask = Callable[..., Awaitable[object]]


def case(*stacks: str) -> Callable[[Case], Case]:
    """Say which stacks a case is for."""

    def add(function: Case) -> Case:
        CASES[function.__name__] = stacks
        return function

    return add


# --- what the cases share -----------------------------------------------------------------------


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

    def spent(self, tokens: int) -> None:
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
        while not condition():  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.001)


def served(outcomes: list[Outcome]) -> bool:
    """Whether all requests got a 200."""
    bad = [each for each in outcomes if not isinstance(each, Reply) or each.status != 200]
    assert not bad, bad
    return True


class Crowd:
    """Clients of several stacks, in threads and on event loops of their own, with concurrent requests."""

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
    """Run *main* on the stack's kind of event loop."""
    return trio.run(main) if stack == "httpx-trio" else asyncio.run(main())


async def settled(here: Corner) -> None:
    """Wait for the end of the fetch, and for that of every other task on this loop."""
    await auntil(lambda: not here.manager.stats().fetching)
    with suppress(RuntimeError):  # trio does not end with tasks left over
        await auntil(lambda: asyncio.all_tasks() == {asyncio.current_task()})


# --- 1: the leader leaves -----------------------------------------------------------------------

Leave = Callable[[Tasks, Callable[[], Awaitable[None]]], Awaitable[None]]
SHORT = 0.1  # real seconds; whether the fetch is under way when they are over makes no difference


async def _task_cancelled(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.create_task(call())
    await ready()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def _wait_for(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    with raised(asyncio.TimeoutError):
        await asyncio.wait_for(call(), SHORT)
    await ready()


async def _timeout(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    timeout: Any = asyncio.timeout  # type: ignore[attr-defined, unused-ignore]
    with raised(TimeoutError):
        async with timeout(SHORT):
            await call()
    await ready()


async def _own_timeout(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    with raised(asyncio.TimeoutError):
        await call(timeout=SHORT)
    await ready()


async def _scope_cancelled(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await ready()
        group.cancel_scope.cancel()


async def _moved_on(call: Tasks, ready: Callable[[], Awaitable[None]]) -> None:
    with anyio.move_on_after(SHORT) as scope:
        await call()
    assert scope.cancelled_caught
    await ready()


@contextmanager
def raised(*kinds: type[BaseException]) -> Iterator[None]:
    """Expect one of these exceptions."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"no {kinds} was raised")


def _ways(stack: str) -> list[Leave]:
    ways: list[Leave] = [_scope_cancelled, _moved_on]
    if stack != "httpx-trio":
        ways += [_task_cancelled, _wait_for]
        if sys.version_info >= (3, 11):
            ways.append(_timeout)
    if stack == "aiohttp":
        ways.append(_own_timeout)
    return ways


@case(*TASKS, ALONE)
def the_leader_is_cancelled(stack: str) -> None:
    """It goes while its token request is held; followers on its loop, on others and in threads are served."""
    with corner() as here, Crowd(here) as crowd:
        for count, leave in enumerate(_ways(stack), 1):
            with here.emulator.hold("token") as held:
                run(stack, partial(_leader_leaves, stack, leave, here, crowd, held))
            assert crowd.served()
            here.spent(count)
            assert here.journal.calls == count * (len(crowd) + (0 if stack == ALONE else 3))
            here.manager.invalidate(here.manager.get_token())


async def _leader_leaves(stack: str, leave: Leave, here: Corner, crowd: Crowd, held: Hold) -> None:
    before = here.waiting

    async def followers_wait() -> None:
        await auntil(lambda: held.held == 1 and here.waiting == before + 1)
        crowd.start()
        for _ in range(3):
            group.start_soon(call)
        await auntil(lambda: here.waiting == before + 1 + 3 + len(crowd))

    async with tasks(stack, here) as call, anyio.create_task_group() as group:
        await leave(call, followers_wait)
        held.release()
    await settled(here)


@case(*THREADS, ALONE)
def the_leader_is_interrupted(stack: str) -> None:
    """Ctrl-C reaches the main thread while it waits for the fetch that it started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started all this in the background
    with corner() as here, Crowd(here) as crowd, here.emulator.hold("token") as held, caller(stack, here) as call:

        def interrupt() -> None:
            until(lambda: held.held == 1 and here.waiting == 1)
            crowd.start()
            until(lambda: here.waiting == 1 + len(crowd))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        interrupter = threading.Thread(target=interrupt)
        with raised(KeyboardInterrupt):
            interrupter.start()
            call()
        interrupter.join()
        held.release()
        assert crowd.served()
        here.spent(1)
        assert call()
        here.spent(1)


@case("urllib3", "httpx", "httpx-asyncio")
def the_leaders_own_timeout_is_short(stack: str) -> None:
    """A timeout of one request bounds neither the fetch nor anybody else; the urllib3 caller gives up in time."""
    with corner() as here, Crowd(here) as crowd, here.emulator.hold("token") as held, caller(stack, here) as call:
        with ThreadPoolExecutor(1) as pool:
            leader = pool.submit(call, timeout=SHORT)
            until(lambda: held.held == 1)
            crowd.start()
            until(lambda: here.waiting == 1 + len(crowd))
            if stack == "urllib3":
                assert isinstance(leader.exception(DEADLINE), TokenEndpointUnavailable)
            else:
                time.sleep(2 * SHORT)  # a timeout that did bound the fetch would have come by now
                assert not leader.done()
            held.release()
            if stack != "urllib3":
                assert leader.result(DEADLINE)
        assert crowd.served()
        here.spent(1)


# --- 2: all callers concurrently ----------------------------------------------------------------


@case("all")
def every_kind_of_caller_at_once(stack: str) -> None:
    """Two event loops of each kind and threads share one fetch: cold, past the reuse window, and after 401s."""
    kinds: tuple[type[Stack], ...] = (*STACKS, HttpxAsyncio, HttpxTrio, Aiohttp)
    with corner(ManualClock()) as here, Crowd(here, *kinds, each=5) as crowd:
        with here.emulator.hold("token") as held:
            crowd.start()
            until(lambda: held.held == 1 and here.waiting == len(crowd))
        assert crowd.served()
        here.spent(1)

        here.advance(46)  # background refresh
        with here.emulator.hold("token") as held:
            crowd.start()
            held.wait_for(1, timeout=DEADLINE / 2)
            assert crowd.served()
        until(lambda: not here.manager.stats().fetching)
        here.spent(2)

        here.advance(51)  # past the reuse window: all wait
        with here.emulator.hold("token") as held:
            waited = here.waiting
            crowd.start()
            until(lambda: held.held == 1 and here.waiting == waited + len(crowd))
        assert crowd.served()
        assert here.journal.token_requests == 3

        with here.emulator.hold("call") as held:
            crowd.start()
            held.wait_for(len(crowd), timeout=DEADLINE)
            here.emulator.service.refuse_current_tokens()
        assert crowd.served()
        assert here.journal.token_requests == 4
        assert here.manager.stats().replayed == len(crowd)


# --- 3: a sync call where the loop should be running -----------------------------------------------


@case(*TASKS, ALONE)
def a_sync_call_blocks_the_loop_that_fetches(stack: str) -> None:
    """It cannot wait for the fetch that it blocks, and sends its own."""
    sends = 1 if stack == ALONE else 2  # without a client, a thread fetches
    for other in (*THREADS, ALONE):
        with corner() as here, Crowd(here) as crowd:
            with here.emulator.hold("token") as held, caller(other, here) as sync:
                run(stack, partial(_sync_on_the_loop, stack, sync, here, crowd, held, sends))
            assert crowd.served()
            here.spent(sends)


async def _sync_on_the_loop(
    stack: str, sync: Callable[[], object], here: Corner, crowd: Crowd, held: Hold, sends: int
) -> None:
    before = here.waiting

    def let_go() -> None:
        until(lambda: held.held == sends and here.waiting == before + 2 + len(crowd))
        held.release()

    async with tasks(stack, here) as call, anyio.create_task_group() as group:
        group.start_soon(call)
        await auntil(lambda: held.held == 1)
        crowd.start()
        await auntil(lambda: here.waiting == before + 1 + len(crowd))
        releaser = threading.Thread(target=let_go)
        releaser.start()
        assert sync()
        releaser.join()
    await settled(here)


# --- 4: what carries the fetch is closed under it --------------------------------------------------


@case(*TASKS, ALONE)
def the_run_ends_under_the_fetch(stack: str) -> None:
    """The event loop is done while it fetches for others: one of them takes over."""
    with corner() as here, Crowd(here) as crowd, here.emulator.hold("token") as held:
        clients: list[Tasks] = []

        async def main() -> None:
            clients.append(Tasks(stack, here.manager, here.url))
            async with _leading(stack, clients[0]):
                await auntil(lambda: held.held == 1)
                crowd.start()
                await auntil(lambda: here.waiting == 1 + len(crowd))

        run(stack, main)
        sends = 1 if stack == ALONE else 2
        until(lambda: held.held == sends)
        held.release()
        assert crowd.served()
        here.spent(sends)
        run(stack, clients[0].close)


@asynccontextmanager
async def _leading(stack: str, call: Tasks) -> AsyncIterator[None]:
    if stack == "httpx-trio":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            yield
            nursery.cancel_scope.cancel()
    else:
        leader = asyncio.create_task(call())
        yield
        del leader  # left to the end of the run


@case("httpx-asyncio", "aiohttp")
def the_loop_is_stopped_under_the_fetch(stack: str) -> None:
    """Sync code on its thread continues immediately, with a fetch of its own; later the event loop does, too."""
    with corner() as here, here.emulator.hold("token") as held:
        loop = asyncio.new_event_loop()
        clients: list[Tasks] = []
        calls: list[asyncio.Task[bool]] = []

        async def lead() -> None:
            clients.append(Tasks(stack, here.manager, here.url))
            calls.append(asyncio.create_task(clients[0]()))
            await auntil(lambda: held.held == 1)

        loop.run_until_complete(lead())

        def release() -> None:
            until(lambda: held.held == 2)
            held.release()

        releasing = threading.Thread(target=release)
        releasing.start()
        here.manager.get_token()  # long before that fetch is overdue
        releasing.join()
        loop.run_until_complete(calls[0])
        loop.run_until_complete(clients[0].close())
        loop.close()
        here.spent(2)
        assert here.manager.stats().failed_fetches == 0


@case(ALONE)
def a_token_is_asked_for_in_the_middle_of_its_own_fetch(stack: str) -> None:
    """For example by a finalizer on the thread that fetches: it gets an error immediately."""
    heard: list[object] = []

    def ask() -> Credentials:
        try:
            heard.append(here.manager.get_token())
        except Pay88Error as error:
            heard.append(error)
        return here.credentials

    with corner(ManualClock(), ask) as here:
        here.manager.get_token()
        assert [type(each) for each in heard] == [TokenEndpointUnavailable]
        until(lambda: not here.manager.stats().fetching)
        here.spent(1)
        assert here.manager.stats().failed_fetches == 0


class Stalls(httpx.AsyncBaseTransport):
    """A network that swallows everything, and has no socket of its own to complain about."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody answers")


class StallingConnector(aiohttp.TCPConnector):
    """The same for aiohttp."""

    async def _create_connection(self, *args: Any, **kw: Any) -> Any:
        await asyncio.get_running_loop().create_future()


# Without the GIL, aiohttp's session is finalized before the coroutine that closes it, and complains.
@case("httpx-asyncio", *(() if sysconfig.get_config_var("Py_GIL_DISABLED") else ("aiohttp",)))
def the_loop_is_closed_under_the_fetch(stack: str) -> None:
    """Nothing was cancelled or notified: other requests fetch when the fetch is overdue."""
    with corner(ManualClock()) as here, Crowd(here) as crowd, here.emulator.hold("token") as held:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(_stall(stack, here, crowd))
        loop.close()
        here.advance(here.policy.fetch_timeout + 1.1)
        held.wait_for(1, timeout=DEADLINE / 2)
        held.release()
        assert crowd.served()
        assert here.journal.token_requests == 1  # the other one was never sent
        del loop
        gc.collect()
        here.advance(51)
        with corner() as again:  # another fetch on another loop clears away what the dead one left
            run(stack, partial(_once, stack, again))
        gc.collect()
        here.manager.get_token()


async def _once(stack: str, here: Corner) -> None:
    async with tasks(stack, here) as call:
        await call()
    await settled(here)


async def _stall(stack: str, here: Corner, crowd: Crowd) -> None:
    client = Tasks(stack, here.manager, here.url)
    if stack == "aiohttp":
        await client.close()
        connector = StallingConnector()
        client.client = pay88_adapters.aiohttp.attach(aiohttp.ClientSession(connector=connector), here.manager)
    else:
        await client.close()
        client.client = pay88_adapters.httpx.attach(httpx.AsyncClient(transport=Stalls()), here.manager)
    leader = asyncio.create_task(client())
    await auntil(lambda: here.manager.stats().token_requests == 1)
    crowd.start()
    await auntil(lambda: here.waiting == 1 + len(crowd))
    leader.cancel()
    with suppress(asyncio.CancelledError):
        await leader
    if stack == "aiohttp":
        client.client.detach()  # closing it would end the fetch


@case(*THREADS, *TASKS)
def the_client_is_closed_under_the_fetch(stack: str) -> None:
    """Closing the one client does not fail the others: they get its last response or one of theirs."""
    closers = {"aiohttp": ["session", "connector"]}.get(stack, ["client"])
    for closer in closers:
        with corner() as here, Crowd(here) as crowd, here.emulator.hold("token") as held, ThreadPoolExecutor(1) as pool:
            leader: Any = KINDS[stack](here.manager, OPTIONS)
            leading = pool.submit(leader.attempt, "POST", here.url)
            until(lambda: held.held == 1 and here.waiting == 1)
            crowd.start()
            until(lambda: here.waiting == 1 + len(crowd))
            if isinstance(leader, SyncStack):
                leader.close()
            elif closer == "connector":
                leader.run(leader.client.connector.close)
            else:
                leader.run(leader.client.close if stack == "aiohttp" else leader.client.aclose)
            held.release()
            assert crowd.served()
            assert isinstance(leading.result(DEADLINE), (Reply, Exception))
            assert here.journal.token_requests <= 2
            leader.close()


@case(*TASKS)
def a_task_dies_before_its_first_step(stack: str) -> None:
    """Fire and forget: the run ends as the fetch has been started and not begun. Nothing is left behind."""
    with corner() as here:

        async def forgets() -> None:
            client = Tasks(stack, here.manager, here.url)
            if stack == "httpx-trio":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client)
                    nursery.cancel_scope.cancel()
            else:
                call = asyncio.create_task(client())
                await asyncio.sleep(0)
                call.cancel()
                with suppress(asyncio.CancelledError):
                    await call
            await client.close()

        for _ in range(3):
            run(stack, forgets)
            assert not here.manager.stats().fetching
        run(stack, partial(_once, stack, here))
        assert here.journal.token_requests == 1  # a unit that was granted just before the end is not given back
        assert here.manager.stats().failed_fetches == 0


@case("httpx-asyncio", "aiohttp")
def the_loop_is_closed_and_others_share_the_store(stack: str) -> None:
    """The lease of a fetch that has died with its loop is given back: the other manager does not wait for it."""
    with corner(ManualClock()) as here, here.emulator.hold("token") as held:
        other = here.new_manager()
        loop = asyncio.new_event_loop()
        clients: list[Tasks] = []
        leaders: list[asyncio.Task[bool]] = []

        async def lead() -> None:
            clients.append(Tasks(stack, here.manager, here.url))
            leaders.append(asyncio.create_task(clients[0]()))
            await auntil(lambda: held.held == 1)

        async def end() -> None:
            leaders[0].cancel()
            with suppress(asyncio.CancelledError):
                await leaders[0]
            await clients[0].close()

        loop.run_until_complete(lead())  # and it is stopped from now on
        with ThreadPoolExecutor(1) as pool:
            another = pool.submit(other.get_token)
            until(lambda: here.clock.waiting > 0 or held.held == 2)  # type: ignore[attr-defined]
            until(partial(_moved, here, lambda: held.held == 2))
            held.release()
            another.result(DEADLINE)
        assert here.manager.stats().failed_fetches == other.stats().failed_fetches == 0
        loop.run_until_complete(end())
        loop.close()


def _moved(here: Corner, condition: Callable[[], bool]) -> bool:
    if not condition() and here.clock.now() < 1_010:  # a lease would last longer
        here.advance(0.1)
    return condition()


@case(*THREADS, *TASKS, ALONE)
def a_listener_raises_anything(stack: str) -> None:
    """What a listener raises, no matter what, makes no failure of a fetch that succeeded."""
    raised_: list[object] = []

    def listener(event: object) -> None:
        if isinstance(event, TokenFetched) and len(raised_) < len(kinds):
            raised_.append(event)
            raise kinds[len(raised_) - 1]

    kinds: list[type[BaseException]] = [SoftTimeLimit, SystemExit, KeyboardInterrupt, GeneratorExit, ValueError]
    logging.getLogger("pay88_adapters").setLevel(logging.CRITICAL + 1)
    with corner() as here:
        here.manager.listen(listener)
        for count in range(1, len(kinds) + 1):
            if stack in TASKS:
                run(stack, partial(_once, stack, here))
            else:
                with caller(stack, here) as call:
                    assert call()
            until(lambda: not here.manager.stats().fetching)
            here.spent(count)
            here.manager.invalidate(here.manager.get_token())
        assert len(raised_) == len(kinds)
        stats = here.manager.stats()
        assert stats.failed_fetches == stats.consecutive_failures == 0


# --- 5: forks --------------------------------------------------------------------------------------


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
        link, known = state.settings.store_client.link, state.settings.store_client.budget
        store = link.store

        def child() -> object:
            kept = here.manager.get_token(min_validity=1) == token
            return kept and here.new_manager().get_token() == token and shared().get_token() != token

        with (
            state._lock,
            store._lock,
            store.budget._lock,
            known._lock,
            link._lock,
            process.lock,
        ):
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


# --- 6: the end of the interpreter ----------------------------------------------------------------

EXITS: dict[str, tuple[str, ...]] = {}
"""The stacks of the cases that end with the process; the emulator is in another one. Their functions take its URL."""

Exit = Callable[[str, TokenManager, ManualClock, str], None]


def last(*stacks: str) -> Callable[[Exit], Exit]:
    """Say which stacks an exit is for."""

    def add(function: Exit) -> Exit:
        EXITS[function.__name__] = stacks
        return function

    return add


def told() -> None:
    """Say that what has to happen here has happened; wait until the test says that it has at the server, too."""
    print("ready", flush=True)  # noqa: T201 - to the test
    assert sys.stdin.readline() == "go on\n"


@last(*THREADS, *TASKS, ALONE)
def exit_beside_a_refresh(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    """The background refresh gets no response."""
    if stack in TASKS:
        run(stack, partial(_refresh, stack, manager, clock, url))
        return
    call = open_caller(stack, manager, url)
    call()
    clock.advance(46)
    call()
    told()


async def _refresh(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    client = Tasks(stack, manager, url)
    await client()
    clock.advance(46)
    await client()
    await anyio.to_thread.run_sync(told)
    await client.close()


@last("urllib3")
def exit_while_daemons_wait(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    """Threads that the interpreter does not wait for wait for a token that never comes."""
    call = open_caller(stack, manager, url)
    for _ in range(5):
        threading.Thread(target=call, daemon=True).start()
    until(lambda: manager.stats().waited == 5)
    told()
    sys.exit(0)


@last("urllib3")
def exit_while_threads_wait(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    """Threads that the interpreter does wait for are served, though the main thread has gone."""
    call = open_caller(stack, manager, url)
    for _ in range(5):
        threading.Thread(target=call).start()
    until(lambda: manager.stats().waited == 5)
    told()
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
    told()


@last(ALONE)
def exit_of_a_child_and_its_parent(stack: str, manager: TokenManager, clock: ManualClock, url: str) -> None:
    """Both come to their end with a refresh under way that only one of them carries."""
    call = open_caller(stack, manager, url)
    call()
    clock.advance(46)
    call()
    told()
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


# --- 7: thousands -------------------------------------------------------------------------------------


@case(*THREADS, *TASKS, ALONE)
def thousands_wait_for_a_fetch_that_fails(stack: str) -> None:
    """A thousand callers, or ten thousand without a client, each get an error of their own with the cause."""
    count = 10_000 if stack == ALONE else 1_000
    with corner(ManualClock(), fetch_attempts=1) as here, ExitStack() as clients, ThreadPoolExecutor(1) as pool:
        if stack == ALONE:
            base: type[Exception] = TokenEndpointUnavailable
            gather = partial(asyncio.run, _askers(here.manager, count), debug=False)
            attempt: Callable[[], object] = here.manager.get_token
        else:
            client: Any = clients.enter_context(KINDS[stack](here.manager, OPTIONS))
            if isinstance(client, AsyncioStack):
                client.loop.set_debug(False)  # which would note where each of ten thousand tasks came from
            base, gather = client.base_error, partial(client.gather, count, "POST", here.url)
            attempt = lambda: served([client.request("POST", here.url)])  # noqa: E731
        with here.emulator.hold("token") as held:
            broken = here.emulator.faults.add(ResetAfterRead(), on="token", times=None)
            crowd = pool.submit(gather)
            until(lambda: held.held == 1 and here.waiting == count)
        outcomes = crowd.result(DEADLINE)
        assert len({id(each) for each in outcomes}) == count
        for each in outcomes:
            assert isinstance(each, TokenEndpointUnavailable)
            assert isinstance(each, base)
            assert each.__cause__ is not None
        here.spent(1)
        broken.remove()
        with raised(TokenEndpointUnavailable):
            attempt()
        here.advance(1.1)
        assert attempt()
        here.spent(2)


async def _askers(manager: TokenManager, count: int) -> list[Token | BaseException]:
    return await asyncio.gather(*(manager.aget_token() for _ in range(count)), return_exceptions=True)


# --- 8: credentials that misbehave --------------------------------------------------------------------


class Vault:
    """A credentials provider under the control of the test."""

    def __init__(self) -> None:
        self.behave: Callable[[], Any] = self.good
        self.good_ones: Callable[[], Credentials]

    def good(self) -> Any:
        """Return the credentials."""
        return self.good_ones()

    def __call__(self) -> Any:
        return self.behave()


@contextmanager
def guarded(clock: Clock | None = None, **policy: Any) -> Iterator[tuple[Corner, Vault]]:
    """Set up a case about credentials."""
    vault = Vault()
    with corner(clock, vault, **policy) as here:
        vault.good_ones = lambda: here.credentials
        yield here, vault


@case("urllib3", ALONE)
def the_credentials_block(stack: str) -> None:
    """A request with a usable token continues. One without waits for `max_wait` and gets the reason; then all work."""
    with (
        guarded(ManualClock(), max_wait=20, fetch_timeout=5) as (here, vault),
        caller(stack, here) as call,
        ThreadPoolExecutor(9) as pool,
    ):
        opened, asked = threading.Event(), threading.Semaphore(0)

        def block() -> Any:
            asked.release()
            assert opened.wait(DEADLINE)
            return vault.good()

        assert call()
        vault.behave = block
        here.advance(46)
        assert call()  # starts the refresh
        assert asked.acquire(timeout=DEADLINE)
        assert all(pool.map(lambda _: call(), range(20)))
        here.advance(14)  # there is no usable token any more
        before = here.waiting
        callers = [pool.submit(call) for _ in range(8)]
        until(lambda: here.waiting == before + 8)
        here.advance(7.5)  # the refresh has been pending for too long: another request fetches
        asked_again: list[bool] = []

        def moved() -> bool:
            here.advance(0.1)
            asked_again.extend([True] * asked.acquire(timeout=0.05))
            return bool(asked_again)

        until(moved)
        here.advance(12.6)
        for each in callers:
            error = each.exception(DEADLINE)
            assert isinstance(error, TokenEndpointUnavailable)
            assert "credentials" in str(error)
        assert here.journal.token_requests == 1
        opened.set()
        assert call()
        until(lambda: not here.manager.stats().fetching)
        assert here.journal.token_requests == 2
        vault.behave = vault.good


@case("urllib3", "httpx-asyncio", "httpx-trio", ALONE)
def the_credentials_misbehave(stack: str) -> None:
    """They never come, are cancelled, call the manager, or are invalid: an error comes soon; then all succeed."""

    async def never() -> Any:
        await anyio.sleep_forever()

    async def cancelled() -> Any:
        raise asyncio.CancelledError

    async def reenter_async() -> Any:
        await here.manager.aget_token()
        return here.credentials

    async def rubbish() -> Any:
        return 7

    def reenter() -> Any:
        here.manager.get_token()
        return here.credentials

    kinds: list[Callable[[], Any]] = [never, reenter_async, reenter, rubbish, lambda: None, lambda: object]
    if stack != "httpx-trio":
        kinds.append(cancelled)
    with guarded(Clock(speed=20), max_wait=10) as (here, vault), caller(stack, here) as call:
        for kind in kinds:
            vault.behave = kind
            began = here.clock.now()
            with raised(Pay88Error):
                call()
            waited = here.clock.now() - began
            assert waited < here.policy.fetch_timeout, (kind, waited)
            vault.behave = vault.good
            until(lambda: can(call))
            here.manager.invalidate(here.manager.get_token())
        assert here.journal.token_requests <= len(kinds) + 1


def can(call: Callable[[], object]) -> bool:
    """Whether a call succeeds."""
    try:
        call()
    except Pay88Error:
        return False
    return True


# --- 9: exceptions and calls that strike anywhere ---------------------------------------------------


class SoftTimeLimit(BaseException):
    """What a signal handler raises."""


class Strike:
    """Does something at the n-th point at which a signal handler can run: where a function is called or returns.

    Args:
        count: Which point, counted from one.
        act: What to do there.
    """

    def __init__(self, count: int, act: Callable[[], object]) -> None:
        self._left, self._act = count, act
        self.point: tuple[str, int, str] | None = None

    def _profile(self, frame: Any, event: str, arg: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "c_call" or "pay88_adapters" not in path.parts or "testing" in path.parts:
            return
        self._left -= 1
        if not self._left:
            sys.setprofile(None)
            self.point = path.name, frame.f_lineno, event
            self._act()

    def __enter__(self) -> Strike:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)


def limit() -> None:
    """Let the job know that its time is over."""
    raise SoftTimeLimit


def strikes(emulator: Emulator, act: Callable[[TokenManager], Callable[[], object]], *, what: str, age: float) -> int:
    """Strike at every point of *what* in turn, each with a manager of its own; return how many there are."""
    key = Credentials(emulator.api_key, emulator.merchant_id)
    for count in range(1, 10_000):
        clock = ManualClock()
        manager = TokenManager(key, base_url=emulator.url, clock=clock)
        token = None if what == "first" else manager.get_token()
        until(partial(_all_ended, manager, clock), "the end of the first fetch")
        clock.advance(age)
        jobs: dict[str, Callable[[], object]] = {
            "first": manager.get_token,
            "get_token": manager.get_token,
            "stats": manager.stats,
            "invalidate": partial(manager.invalidate, token or Token("", "", 60, 0)),
        }
        strike = Strike(count, act(manager))
        with suppress(SoftTimeLimit), strike:
            jobs[what]()
        if strike.point is None:
            until(partial(_all_ended, manager, clock), "the end of the fetch that was not struck")
            return count - 1
        state: Any = manager
        state = state._state
        with ThreadPoolExecutor(1) as another:
            free = another.submit(state._lock.acquire, timeout=DEADLINE / 4)
            assert free.result(), f"the lock is held, after {strike.point}"
            another.submit(state._lock.release).result()
            clock.advance(1)  # what has not begun by then never will
            another.submit(manager.get_token).result(DEADLINE / 4)
        until(partial(_all_ended, manager, clock), f"the end of the fetch struck at {strike.point}")
        assert manager.stats().failed_fetches == 0, strike.point
    raise AssertionError("there is no end to it")


def _all_ended(manager: TokenManager, clock: ManualClock) -> bool:
    if clock.waiting:  # for the lease of another one
        clock.advance(0.5)
    return not manager.stats().fetching and not any(each.name == "pay88-token-fetch" for each in threading.enumerate())


JOBS: dict[str, tuple[str, float]] = {
    "a first token": ("first", 0),
    "a cached token": ("get_token", 0),
    "a refresh": ("get_token", 46),
    "stats": ("stats", 0),
    "invalidate": ("invalidate", 0),
}


@case(*JOBS)
def a_soft_time_limit_strikes_anywhere(job: str) -> None:
    """Wherever the exception of a signal handler strikes, no lock stays held, and the next request is served."""
    what, age = JOBS[job]
    with Emulator(token_limits=(), call_limits=()) as emulator:
        assert strikes(emulator, lambda manager: limit, what=what, age=age)


@case(*JOBS)
def a_signal_handler_uses_the_manager_anywhere(job: str) -> None:
    """It calls `stats()`, `invalidate()` and, if there is a token, `get_token()`, wherever it interrupts the thread."""
    what, age = JOBS[job]
    with Emulator(token_limits=(), call_limits=()) as emulator:

        def handler(manager: TokenManager) -> Callable[[], None]:
            def handle() -> None:
                manager.stats()
                if what == "first":  # without one it waits until it is seen that what it interrupts starts no fetch
                    return
                try:
                    manager.invalidate(manager.get_token())
                except Pay88Error as error:
                    assert error.retryable  # noqa: PT017 - it interrupts what would fetch

            return handle

        assert strikes(emulator, handler, what=what, age=age)


# --- the frame ------------------------------------------------------------------------------------


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
        globals()[name](stack, manager, clock, f"{url}/api/balance?id={key.merchant_id}")
        return
    threads, files = set(threading.enumerate()), open_files()
    globals()[name](stack)
    gc.collect()
    until(lambda: set(threading.enumerate()) <= threads, "the end of all threads")
    gc.collect()
    assert open_files() <= files, "files were left open"
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(*sys.argv[1:])
