"""88Pay on a loopback port: a real HTTP server around :class:`.Service`."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

try:
    from aiohttp import web
except ModuleNotFoundError as exc:
    raise ImportError("aiohttp is not installed: pip install 'pay88-adapters[testing]'") from exc

from pay88_adapters.core.arguments import check_callable, check_count, check_type
from pay88_adapters.core.errors import ConfigurationError
from pay88_adapters.engine.clock import Clock

from ._responder import Responder
from .faults import FaultPlan, On
from .holds import Hold
from .journal import Journal
from .messages import CALL_LIMITS, TOKEN_LIMITS
from .page import PREFIX, Page
from .service import Service
from .windows import Limits

_BACKLOG = 4096  # a thousand concurrent connects wait in the kernel, and none is rejected
_TIMEOUT = 10.0  # real seconds to start, to stop, and to act on the event loop

T = TypeVar("T")

_running: weakref.WeakSet[Emulator] = weakref.WeakSet()


def _forked() -> None:
    """Close, in a forked child, every socket of the emulators that run in its parent.

    A connection only ends once every process has closed it. A child that lived on would keep clients of the parent's
    emulator waiting for the end of connections that the parent has closed.
    """
    for emulator in list(_running):
        emulator.release_sockets()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _check_address(host: object, port: object) -> None:
    check_type("host", host, str, required=True)
    if not host:
        raise ConfigurationError("host is empty: use 127.0.0.1, or 0.0.0.0 for all addresses of this machine")
    check_count("port", port, most=65_535)


class Emulator:
    """A server that behaves like 88Pay, with fault injection and a request journal.

    It runs in a thread of its own, on a free port of the loopback interface::

        with Emulator(lifetime=60) as emulator:
            manager = TokenManager(Credentials(emulator.api_key, emulator.merchant_id), base_url=emulator.url)
            ...
            assert emulator.journal.token_requests == 1

    You can start it again after you have stopped it: it keeps its port and its state. A forked child process can send
    requests to it, but cannot start, stop or control it.

    Args:
        api_key, merchant_id, lifetime, token_limits, call_limits: See :class:`.Service`.
        clock: Measures lifetimes, limits and latencies; share it with the client.
        ssl_context: Serve HTTPS with it.
        host: Address to bind; a name is resolved to one address.
        port: The port, or 0 for a free one.
        service: A :class:`.Service` with other settings; the first five arguments are then ignored.
        wall: Unix time, for ``Date``, ``X-RateLimit-Reset`` and the dates in tokens.

    Raises:
        ConfigurationError: An argument has the wrong type or is out of range.
    """

    def __init__(
        self,
        *,
        api_key: str = "sk_test_emulator",
        merchant_id: str = "MCH-COL-TEST-EMULATOR",
        lifetime: float = 60.0,
        token_limits: Limits = TOKEN_LIMITS,
        call_limits: Limits = CALL_LIMITS,
        clock: Clock | None = None,
        ssl_context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        service: Service | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        check_type("clock", clock, Clock)
        check_type("ssl_context", ssl_context, ssl.SSLContext)
        check_type("service", service, Service)
        _check_address(host, port)
        check_callable("wall", wall)
        self.service = service or Service(
            api_key=api_key,
            merchant_id=merchant_id,
            lifetime=lifetime,
            token_limits=token_limits,
            call_limits=call_limits,
        )
        self.clock = clock or Clock()
        self.journal = Journal()
        self.faults = FaultPlan()
        self.host = host
        self._port = port
        self._ssl_context = ssl_context
        self._page = Page(self)
        self._responder = Responder(lambda: self.service, self.journal, self.faults, self.clock, wall)
        self._connections = 0
        self._pid: int | None = None  # of the process that runs it
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._listener: asyncio.Server | None = None
        self._server: web.Server | None = None

    def __repr__(self) -> str:
        state = f"at {self.url}" if self.running else "stopped"
        return f"<Emulator {state}, {self.connections} connections, {self.journal!r}>"

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # Properties

    @property
    def running(self) -> bool:
        """Whether it is started."""
        return self._thread is not None

    @property
    def port(self) -> int:
        """The port it listens on; once it was started, it keeps it."""
        if not self._port:
            raise RuntimeError("the emulator has no port before it is started: call start() first")
        return self._port

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        scheme = "http" if self._ssl_context is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @property
    def page_url(self) -> str:
        """URL of the page that shows the requests and injects faults, for a browser."""
        return f"{self.url}{PREFIX}/"

    @property
    def api_key(self) -> str:
        """The API key that it accepts from the start."""
        return self.service.api_key

    @property
    def merchant_id(self) -> str:
        """The merchant that the key belongs to."""
        return self.service.merchant_id

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables for :meth:`.TokenManager.from_env`, so that the manager uses this emulator."""
        return {"PAY88_API_KEY": self.api_key, "PAY88_MERCHANT_ID": self.merchant_id, "PAY88_BASE_URL": self.url}

    @property
    def connections(self) -> int:
        """Number of connections opened so far, including those of the page."""
        return self._connections

    @property
    def open_connections(self) -> int:
        """Number of open connections, without those of the page."""
        return len(self._client_connections())

    # Actions of a test

    def hold(self, on: On = "call") -> Hold:
        """Keep matching requests waiting at the server until they are released.

        ``on`` selects them, as in :meth:`.FaultPlan.add`. The service decides on a held request when it is released. To
        simulate a 401 storm, hold the API requests, wait until all are there, reject the token, release.
        """
        hold = Hold()
        hold.on_release = self.faults.add(hold, on=on, times=None).remove
        return hold

    def drop_connections(self) -> None:
        """Close every open connection except the page's, idle or not, as a server that restarts does."""
        self._run_on_loop(self.close_connections())

    # Starting and stopping

    def start(self) -> Emulator:
        """Start serving, and return the emulator itself.

        Raises:
            RuntimeError: It is already running, or was started in the parent of this process.
            OSError: The port is taken.
        """
        if self._thread is not None:
            self._check_process()
            raise RuntimeError(f"this emulator is already running at {self.url}")
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        sock = socket.create_server((self.host, self._port), family=family, backlog=_BACKLOG)
        self._port = int(sock.getsockname()[1])
        self._socket = sock
        self._pid = os.getpid()
        _running.add(self)
        # A selector loop whatever the policy says: resets need the socket under the transport.
        loop = self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="pay88-emulator", daemon=True)
        self._thread.start()
        try:
            self._run_on_loop(self._serve(sock))
        except BaseException:
            sock.close()
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Close the port and every connection, and end the thread. Stopping twice is allowed."""
        if self._thread is None or self._loop is None:
            return
        self._check_process()
        try:
            self._run_on_loop(self._shut_down())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_TIMEOUT)
            self._thread = self._loop = self._socket = None
            _running.discard(self)

    def release_sockets(self) -> None:
        """Close this process's copies of the sockets, in a child that was forked off."""
        transports = [connection.transport for connection in self._all_connections()]
        sockets: list[Any] = [each.get_extra_info("socket") for each in transports if each is not None]
        sockets.append(self._socket)
        null = os.open(os.devnull, os.O_RDWR)
        for sock in sockets:
            # The socket object still uses its number: give the number to another file.
            if sock is not None and sock.fileno() >= 0:
                os.dup2(null, sock.fileno(), inheritable=False)
        os.close(null)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"this emulator runs in process {self._pid}, the parent of this process:"
                " start another emulator here, or send requests to its URL"
            )

    def _run_on_loop(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop, and wait for it."""
        if self._loop is None:
            coro.close()
            raise RuntimeError("this emulator is not running: call start() first")
        if self._pid != os.getpid():
            coro.close()
            self._check_process()
        return asyncio.run_coroutine_threadsafe(coro, self._loop).result(_TIMEOUT)

    # On the server's thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            loop.close()

    async def _serve(self, sock: socket.socket) -> None:
        # Bodies are not unpacked: the journal keeps what was sent.
        server = self._server = web.Server(self._respond, access_log=None, auto_decompress=False)

        def connected() -> asyncio.Protocol:
            self._connections += 1
            return server()

        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(connected, sock=sock, backlog=_BACKLOG, ssl=self._ssl_context)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        if PREFIX in request.raw_path and self._page.owns(request):
            return await self._page.respond(request)
        return await self._responder(request)

    async def _shut_down(self) -> None:
        # What has just been accepted is taken over in the next turn, and would stay open if that were too late.
        await asyncio.sleep(0)
        if self._listener is not None:
            self._listener.close()
        me = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not me]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.close_connections(abort=True)
        self._server = self._listener = None

    def _all_connections(self) -> list[web.RequestHandler]:
        return [] if self._server is None else self._server.connections

    def _client_connections(self) -> list[web.RequestHandler]:
        return [each for each in self._all_connections() if each not in self._page.connections]

    async def close_connections(self, *, abort: bool = False) -> None:
        """Do the same as :meth:`drop_connections`, on the server's own event loop."""
        for connection in self._all_connections() if abort else self._client_connections():
            transport = connection.transport
            if abort and transport is not None:
                transport.abort()  # a TLS transport that is closed would wait for its peer
            connection.force_close()
        for _ in range(3):  # the loop closes sockets a turn or two later
            await asyncio.sleep(0)
