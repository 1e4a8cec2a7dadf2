"""Every client library behind one interface, so that one scenario runs on all of them, over real sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, ClassVar, TypeVar

import aiohttp
import httpx
import httpx2
import requests
import trio
import urllib3
from requests.adapters import HTTPAdapter

import pay88_adapters.aiohttp
import pay88_adapters.httpx
import pay88_adapters.httpx2
import pay88_adapters.requests
import pay88_adapters.urllib3
from pay88_adapters import TokenManager

T = TypeVar("T")

PAYLOAD = {"amount": 10, "note": "añ" * 500}
BYTES = json.dumps(PAYLOAD).encode()


@dataclass(frozen=True)
class PlainResponse:
    """The response to a request."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    raw: Any = field(repr=False)


Outcome = PlainResponse | Exception


@dataclass(frozen=True)
class Options:
    """How the client is set up."""

    connections: int = 100
    proxy: str | None = None
    tls: ssl.SSLContext | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 30.0
    http2: bool = False
    """Of httpx and httpx2 only."""


class Stack(ABC):
    """A client of one HTTP library, with a token manager attached to it, or without one."""

    name: ClassVar[str]
    base_error: ClassVar[type[Exception]]
    network_error: ClassVar[type[Exception] | None] = None
    """What it comes from when the network fails, where that is another client's."""
    bodies: ClassVar[Mapping[str, Callable[[], dict[str, Any]]]]
    """Request bodies by kind, as arguments in the library's own terms."""

    adapter: ClassVar[Any]
    """The module whose ``attach`` is meant."""

    def __init__(self, manager: TokenManager | None, options: Options | None = None) -> None:
        self._manager = manager
        self.options = options or Options()

    @property
    def manager(self) -> TokenManager:
        """The one attached."""
        assert self._manager is not None
        return self._manager

    def attached(self, client: T) -> T:
        """Return *client*, one of the library's own, with the manager attached if there is one."""
        if self._manager is not None:
            self.adapter.attach(client, self._manager)
        return client

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def request(self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any) -> PlainResponse:
        """Send one request; *kw* are the library's own."""

    @abstractmethod
    def gather(self, count: int, method: str, url: str) -> list[Outcome]:
        """Send *count* concurrent requests."""

    @abstractmethod
    def close(self) -> None:
        """Close the client."""

    def start(self, method: str, url: str) -> Callable[[], None] | None:
        """Start a call in a task; return what cancels it, or ``None`` where there are no tasks."""
        return None

    def attempt(self, method: str, url: str, **kw: Any) -> Outcome:
        """Send one request; return what it raises."""
        return outcome(partial(self.request, method, url, **kw))


def outcome(act: Callable[[], PlainResponse]) -> Outcome:
    """Return what *act* returns or raises."""
    try:
        return act()
    except Exception as exc:  # noqa: BLE001 - the scenario says which ones it expects
        return exc


def generator() -> Iterator[bytes]:
    """Yield the payload in two pieces, once."""
    yield BYTES[:100]
    yield BYTES[100:]


async def async_generator() -> AsyncIterator[bytes]:
    """Yield the payload in two pieces, once."""
    for piece in generator():
        yield piece


_files: list[IO[bytes]] = []


def file() -> IO[bytes]:
    """Return a real file that holds the payload; :func:`close_files` closes it."""
    handle = tempfile.TemporaryFile()  # noqa: SIM115 - the client that sends it reads it later
    handle.write(BYTES)
    handle.seek(0)
    _files.append(handle)
    return handle


def last_file_position() -> int | None:
    """Return the position of the last :func:`file`; ``None`` if it was closed, perhaps in this instant."""
    try:
        return _files[-1].tell()
    except (OSError, ValueError):
        return None


def close_files() -> None:
    """Close what :func:`file` opened."""
    while _files:
        with suppress(OSError, ValueError):  # a thread of aiohttp closes it in this instant
            _files.pop().close()


FORM = {"a": "1", "b": "añ"}


class SyncStack(Stack):
    """A client library that threads use."""

    crowd_headers: ClassVar[Mapping[str, str] | None] = None
    """What each call of a crowd sends along."""

    def gather(self, count: int, method: str, url: str) -> list[Outcome]:
        barrier = threading.Barrier(count)

        def one(_: int) -> Outcome:
            barrier.wait(600)
            return self.attempt(method, url, headers=self.crowd_headers)

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, range(count)))


class Urllib3(SyncStack):
    """urllib3's PoolManager, or ProxyManager."""

    name = "urllib3"
    adapter: ClassVar[Any] = pay88_adapters.urllib3
    base_error = urllib3.exceptions.HTTPError
    bodies: ClassVar = {
        "none": dict,
        "bytes": lambda: {"body": BYTES},
        "str": lambda: {"body": BYTES.decode("ascii")},
        "json": lambda: {"json": PAYLOAD},
        "form": lambda: {"fields": FORM, "encode_multipart": False},
        "multipart": lambda: {"fields": {**FORM, "file": ("a.txt", BYTES)}},
        "file": lambda: {"body": file()},
        "generator": lambda: {"body": generator()},
    }

    def __init__(self, manager: TokenManager | None, options: Options | None = None) -> None:
        super().__init__(manager, options)
        kw: dict[str, Any] = {
            "maxsize": self.options.connections,
            "block": True,
            "timeout": self.options.timeout,
            "headers": self.options.headers,
        }
        if self.options.tls is not None:
            kw["ssl_context"] = self.options.tls
        if self.options.proxy:
            self.client: urllib3.PoolManager = urllib3.ProxyManager(self.options.proxy, **kw)
        else:
            self.client = urllib3.PoolManager(**kw)
        self.attached(self.client)

    def request(self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any) -> PlainResponse:
        response = self.client.request(method, url, headers=headers, **kw)
        return PlainResponse(response.status, response.headers, response.data, response)

    def close(self) -> None:
        self.client.clear()


class Requests(SyncStack):
    """requests' Session."""

    name = "requests"
    adapter: ClassVar[Any] = pay88_adapters.requests
    base_error = requests.RequestException
    network_error = urllib3.exceptions.HTTPError
    bodies: ClassVar = {
        "none": dict,
        "bytes": lambda: {"data": BYTES},
        "str": lambda: {"data": BYTES.decode()},
        "json": lambda: {"json": PAYLOAD},
        "form": lambda: {"data": FORM},
        "multipart": lambda: {"data": FORM, "files": {"file": ("a.txt", BYTES)}},
        "file": lambda: {"data": file()},
        "generator": lambda: {"data": generator()},
    }

    def __init__(self, manager: TokenManager | None, options: Options | None = None) -> None:
        super().__init__(manager, options)
        self.client = requests.Session()
        self.client.trust_env = False
        self.client.headers.update(self.options.headers)
        if self.options.proxy:
            self.client.proxies = {"http": self.options.proxy, "https": self.options.proxy}
        adapter = _TlsAdapter(self.options)
        for prefix in ("http://", "https://"):
            self.client.mount(prefix, adapter)
        self.attached(self.client)

    def request(self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any) -> PlainResponse:
        response = self.client.request(method, url, headers=headers, timeout=self.options.timeout, **kw)
        return PlainResponse(response.status_code, response.headers, response.content, response)

    def close(self) -> None:
        self.client.close()


class _TlsAdapter(HTTPAdapter):
    """An adapter with options of its own, as users write them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        super().__init__(pool_maxsize=options.connections, pool_block=True)

    def init_poolmanager(self, *args: Any, **kw: Any) -> None:
        super().init_poolmanager(*args, **{**kw, **self._tls()})

    def proxy_manager_for(self, proxy: str, **kw: Any) -> Any:
        return super().proxy_manager_for(proxy, **kw, **self._tls())

    def _tls(self) -> dict[str, Any]:
        return {} if self._options.tls is None else {"ssl_context": self._options.tls}


_HTTPX_BODIES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "none": dict,
    "bytes": lambda: {"content": BYTES},
    "str": lambda: {"content": BYTES.decode()},
    "json": lambda: {"json": PAYLOAD},
    "form": lambda: {"data": FORM},
    "multipart": lambda: {"data": FORM, "files": {"file": ("a.txt", BYTES)}},
    "multipart file": lambda: {"data": FORM, "files": {"file": file()}},
}


# httpx and httpx2 load all root certificates for each client, which takes longer than most tests.
_TLS = ssl.create_default_context()


def _httpx_client(library: Any, kind: str, options: Options) -> Any:
    limits = library.Limits(max_connections=options.connections, max_keepalive_connections=options.connections)
    return getattr(library, kind)(
        proxy=options.proxy,
        verify=options.tls or _TLS,
        http2=options.http2,
        limits=limits,
        timeout=options.timeout,
        headers=options.headers,
        follow_redirects=True,
        trust_env=False,
    )


def _httpx_response(response: Any) -> PlainResponse:
    return PlainResponse(response.status_code, response.headers, response.content, response)


class Httpx(SyncStack):
    """httpx's Client."""

    name = "httpx"
    library: ClassVar[Any] = httpx
    adapter: ClassVar[Any] = pay88_adapters.httpx
    # With a crowd of threads, httpcore now and then takes a connection that it has just handed to one of
    # them for an idle one that the server closed, and closes it: "Bad file descriptor", also without any
    # adapter. Connections that are not kept are never idle.
    crowd_headers: ClassVar = {"Connection": "close"}
    base_error = httpx.TransportError
    bodies: ClassVar = {
        **_HTTPX_BODIES,
        "file": lambda: {"content": file()},
        "generator": lambda: {"content": generator()},
    }

    def __init__(self, manager: TokenManager | None, options: Options | None = None) -> None:
        super().__init__(manager, options)
        self.client = self.attached(_httpx_client(self.library, "Client", self.options))

    def request(self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any) -> PlainResponse:
        return _httpx_response(self.client.request(method, url, headers=headers, **kw))

    def close(self) -> None:
        self.client.close()


class Httpx2(Httpx):
    """httpx2's Client."""

    name = "httpx2"
    library: ClassVar[Any] = httpx2
    adapter: ClassVar[Any] = pay88_adapters.httpx2
    base_error: ClassVar[Any] = httpx2.TransportError


class AsyncStack(Stack):
    """A client library that tasks use: on an event loop in a thread of its own, which lives as long as the client."""

    @abstractmethod
    def run(self, job: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run *job* on the loop."""

    @abstractmethod
    async def all(self, jobs: list[Callable[[], Awaitable[Outcome]]]) -> list[Outcome]:
        """Run *jobs* concurrently."""

    @abstractmethod
    async def asend(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any
    ) -> PlainResponse:
        """Send one request."""

    def request(self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any) -> PlainResponse:
        return self.run(partial(self.asend, method, url, headers=headers, **kw))

    def gather(self, count: int, method: str, url: str) -> list[Outcome]:
        async def one() -> Outcome:
            try:
                return await self.asend(method, url)
            except Exception as exc:  # noqa: BLE001 - the scenario says which ones it expects
                return exc

        return self.run(lambda: self.all([one] * count))


class AsyncioStack(AsyncStack):
    """On asyncio."""

    def __init__(self, manager: TokenManager | None, options: Options | None = None) -> None:
        super().__init__(manager, options)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, job: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(job(), self.loop).result(300)

    async def all(self, jobs: list[Callable[[], Awaitable[Outcome]]]) -> list[Outcome]:
        return await asyncio.gather(*(job() for job in jobs))

    def start(self, method: str, url: str) -> Callable[[], None]:
        future = asyncio.run_coroutine_threadsafe(self.asend(method, url), self.loop)

        def cancel() -> None:
            assert future.cancel()
            self.run(partial(asyncio.sleep, 0))

        return cancel

    @abstractmethod
    async def aclose(self) -> None:
        """Close the client, on its loop."""

    def close(self) -> None:
        self.run(self.aclose)
        self.run(self._finish)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    async def _finish(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Connections, above all those with TLS, take a few turns of the loop to say goodbye.
        watched: Any = self.loop
        for _ in range(100):
            if len(watched._selector.get_map()) <= 1:  # the loop's own
                return
            await asyncio.sleep(0.005)


class HttpxAsyncio(AsyncioStack):
    """httpx's AsyncClient on asyncio."""

    name = "httpx-asyncio"
    library: ClassVar[Any] = httpx
    adapter: ClassVar[Any] = pay88_adapters.httpx
    base_error = httpx.TransportError
    bodies: ClassVar = {**_HTTPX_BODIES, "async generator": lambda: {"content": async_generator()}}

    def __init__(self, manager: TokenManager | None, options: Options | None = None) -> None:
        super().__init__(manager, options)
        self.client = self.attached(_httpx_client(self.library, "AsyncClient", self.options))

    async def asend(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any
    ) -> PlainResponse:
        return _httpx_response(await self.client.request(method, url, headers=headers, **kw))

    async def aclose(self) -> None:
        await self.client.aclose()


class HttpxTrio(AsyncStack):
    """httpx's AsyncClient on trio."""

    name = "httpx-trio"
    library: ClassVar[Any] = httpx
    adapter: ClassVar[Any] = pay88_adapters.httpx
    base_error = httpx.TransportError
    bodies = HttpxAsyncio.bodies

    def __init__(self, manager: TokenManager | None, options: Options | None = None) -> None:
        super().__init__(manager, options)
        self.client = self.attached(_httpx_client(self.library, "AsyncClient", self.options))
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)
        self._thread.start()
        self._ready.wait(10)

    async def _main(self) -> None:
        self._trio = trio.lowlevel.current_trio_token()
        self._over = trio.Event()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await self._over.wait()
        await self.client.aclose()

    def start(self, method: str, url: str) -> Callable[[], None]:
        scope = trio.CancelScope()

        async def job() -> None:
            with scope:
                await self.asend(method, url)

        trio.from_thread.run_sync(self._nursery.start_soon, job, trio_token=self._trio)
        return lambda: trio.from_thread.run_sync(scope.cancel, trio_token=self._trio)

    def run(self, job: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return trio.from_thread.run(job, trio_token=self._trio)

    async def all(self, jobs: list[Callable[[], Awaitable[Outcome]]]) -> list[Outcome]:
        outcomes: list[Outcome] = []

        async def one(job: Callable[[], Awaitable[Outcome]]) -> None:
            outcomes.append(await job())

        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(one, job)
        return outcomes

    async def asend(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any
    ) -> PlainResponse:
        return _httpx_response(await self.client.request(method, url, headers=headers, **kw))

    def close(self) -> None:
        trio.from_thread.run_sync(self._over.set, trio_token=self._trio)
        self._thread.join(10)


class Httpx2Asyncio(HttpxAsyncio):
    """httpx2's AsyncClient on asyncio."""

    name = "httpx2-asyncio"
    library: ClassVar[Any] = httpx2
    adapter: ClassVar[Any] = pay88_adapters.httpx2
    base_error: ClassVar[Any] = httpx2.TransportError


class Httpx2Trio(HttpxTrio):
    """httpx2's AsyncClient on trio."""

    name = "httpx2-trio"
    library: ClassVar[Any] = httpx2
    adapter: ClassVar[Any] = pay88_adapters.httpx2
    base_error: ClassVar[Any] = httpx2.TransportError


def _multipart(*parts: tuple[str, Any]) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for name, value in parts:
        form.add_field(name, value, filename="a.txt" if name == "file" else None)
    return form


class Aiohttp(AsyncioStack):
    """aiohttp's ClientSession."""

    name = "aiohttp"
    adapter: ClassVar[Any] = pay88_adapters.aiohttp
    base_error = aiohttp.ClientError
    bodies: ClassVar = {
        "none": dict,
        "bytes": lambda: {"data": BYTES},
        "str": lambda: {"data": BYTES.decode()},
        "json": lambda: {"json": PAYLOAD},
        "form": lambda: {"data": FORM},
        "multipart": lambda: {"data": _multipart(*FORM.items(), ("file", BYTES))},
        "multipart file": lambda: {"data": _multipart(*FORM.items(), ("file", file()))},
        "file": lambda: {"data": file()},
        "async generator": lambda: {"data": async_generator()},
    }

    def __init__(self, manager: TokenManager | None, options: Options | None = None) -> None:
        super().__init__(manager, options)
        self.client = self.run(self._open)
        self.attached(self.client)

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.options.connections, ssl=self.options.tls or True),
            timeout=aiohttp.ClientTimeout(total=self.options.timeout),
            headers=self.options.headers,
        )

    async def asend(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any
    ) -> PlainResponse:
        kw.setdefault("proxy", self.options.proxy)
        async with self.client.request(method, url, headers=headers, **kw) as response:
            return PlainResponse(response.status, response.headers, await response.read(), response)

    async def aclose(self) -> None:
        await self.client.close()


STACKS: tuple[type[Stack], ...] = (Urllib3, Requests, Httpx, HttpxAsyncio, HttpxTrio, Httpx2, Aiohttp)
