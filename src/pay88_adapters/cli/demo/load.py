"""The callers: threads for each sync client, an event loop with tasks for each async client."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from types import MappingProxyType, TracebackType

import aiohttp
import httpx

from pay88_adapters import TokenManager
from pay88_adapters.aiohttp import Pay88Middleware
from pay88_adapters.httpx import attach
from pay88_adapters.urllib3 import Pay88PoolManager

from .record import Job, Ledger, Outcome

WORKERS = 3  # of each client
_PAUSE = 0.11  # real seconds between the requests of a worker: about a hundred requests per second in all
_TIMEOUT = 30.0  # real seconds of one request
_TO_END = 10.0  # real seconds for all callers to finish
_JSON = MappingProxyType({"Content-Type": "application/json"})

Send = Callable[[Job], int]
AsyncSend = Callable[[Job], Awaitable[int]]


@contextmanager
def _urllib3(manager: TokenManager) -> Generator[Send, None, None]:
    with Pay88PoolManager(manager, maxsize=WORKERS + 1, timeout=_TIMEOUT) as pool:
        yield (lambda job: pool.request("POST", manager.base_url + job.target, body=job.body, headers=_JSON).status)


@contextmanager
def _httpx(manager: TokenManager) -> Generator[Send, None, None]:
    with attach(httpx.Client(base_url=manager.base_url, headers=_JSON, timeout=_TIMEOUT), manager) as client:
        yield lambda job: client.post(job.target, content=job.body).status_code


@asynccontextmanager
async def _httpx_async(manager: TokenManager) -> AsyncGenerator[AsyncSend, None]:
    client = httpx.AsyncClient(base_url=manager.base_url, headers=_JSON, timeout=_TIMEOUT)
    async with attach(client, manager):

        async def send(job: Job) -> int:
            return (await client.post(job.target, content=job.body)).status_code

        yield send


@asynccontextmanager
async def _aiohttp(manager: TokenManager) -> AsyncGenerator[AsyncSend, None]:
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    middlewares = (Pay88Middleware(manager),)
    async with aiohttp.ClientSession(headers=_JSON, timeout=timeout, middlewares=middlewares) as session:

        async def send(job: Job) -> int:
            async with session.post(manager.base_url + job.target, data=job.body) as response:
                await response.read()
                return response.status

        yield send


SYNC: Mapping[str, Callable[[TokenManager], AbstractContextManager[Send]]] = MappingProxyType(
    {"urllib3": _urllib3, "httpx": _httpx}
)
ASYNC: Mapping[str, Callable[[TokenManager], AbstractAsyncContextManager[AsyncSend]]] = MappingProxyType(
    {"httpx async": _httpx_async, "aiohttp": _aiohttp}
)
STACKS = (*SYNC, *ASYNC)
CALLERS = WORKERS * len(STACKS)


class Load:
    """The callers of all clients. They start together, and each finishes its current request at the end."""

    def __init__(self, manager: TokenManager, ledger: Ledger) -> None:
        self._manager = manager
        self._ledger = ledger
        self._merchant_id = ""
        self._stopped = threading.Event()
        self._ready = threading.Barrier(len(STACKS))
        self._threads = [
            *(self._thread(self._sync, name) for name in SYNC),
            *(self._thread(self._async, name) for name in ASYNC),
        ]
        self.crash: BaseException | None = None
        """An exception that ended the callers of a client: a bug of the demo."""

    def start(self, merchant_id: str) -> None:
        """Start the callers, with requests of this merchant."""
        self._merchant_id = merchant_id
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._ready.abort()
        until = time.monotonic() + _TO_END
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(until - time.monotonic(), 0))

    def _thread(self, work: Callable[[str], None], stack: str) -> threading.Thread:
        return threading.Thread(target=self._guarded, args=(work, stack), name=f"pay88-demo-{stack}", daemon=True)

    def _guarded(self, work: Callable[[str], None], stack: str) -> None:
        try:
            work(stack)
        except threading.BrokenBarrierError:
            pass
        except Exception as exc:  # noqa: BLE001 - raised again where the script runs
            self.crash = exc

    # Threads

    def _sync(self, stack: str) -> None:
        with SYNC[stack](self._manager) as send:
            workers = [
                threading.Thread(target=self._calls, args=(stack, number, send), daemon=True)
                for number in range(WORKERS)
            ]
            self._ready.wait()
            for thread in workers:
                thread.start()
            for thread in workers:
                thread.join()

    def _calls(self, stack: str, number: int, send: Send) -> None:
        while not self._stopped.is_set():
            job, note = self._next(stack, number)
            try:
                note(send(job), None)
            except Exception as exc:  # noqa: BLE001 - judged at the end
                note(None, exc)
            self._stopped.wait(_PAUSE)

    # Tasks

    def _async(self, stack: str) -> None:
        asyncio.run(self._tasks(stack))

    async def _tasks(self, stack: str) -> None:
        async with ASYNC[stack](self._manager) as send:
            self._ready.wait()  # blocks a loop without other tasks
            await asyncio.gather(*(self._acalls(stack, number, send) for number in range(WORKERS)))

    async def _acalls(self, stack: str, number: int, send: AsyncSend) -> None:
        while not self._stopped.is_set():
            job, note = self._next(stack, number)
            try:
                note(await send(job), None)
            except Exception as exc:  # noqa: BLE001 - judged at the end
                note(None, exc)
            await asyncio.sleep(_PAUSE)

    # Both

    def _next(self, stack: str, number: int) -> tuple[Job, Callable[[int | None, Exception | None], None]]:
        ledger = self._ledger
        job = ledger.job(stack, self._merchant_id)
        began_at, began = ledger.clock.now(), time.perf_counter()

        def note(status: int | None, error: Exception | None) -> None:
            seconds = time.perf_counter() - began
            ledger.add(f"{stack} {number}", Outcome(job.call_id, stack, began_at, seconds, status, error))

        return job, note
