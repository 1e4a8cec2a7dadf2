"""What stands between a client and a server on loopback: a forward proxy, and a relay that can be cut."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Generator
from types import TracebackType
from urllib.parse import urlsplit

_NO_CONNECTION = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_NO_CREDENTIALS = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)
_CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_FOR_THE_PROXY = ("proxy-authorization", "proxy-connection", "connection")


class Proxy:
    """Forwards plain requests, one per connection, and tunnels after a CONNECT.

    Args:
        credentials: The ``user:password`` that it insists on, if it does.
    """

    def __init__(self, credentials: str | None = None) -> None:
        self.requested: list[str] = []
        """Method and target of every request that it let through."""
        self.rejected = 0
        """How many requests came without its credentials."""
        self.expected = None if credentials is None else f"Basic {base64.b64encode(credentials.encode()).decode()}"
        self.sockets: set[socket.socket] = set()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="proxy")

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        for sock in list(self.sockets):  # open tunnels would keep their threads
            _hang_up(sock)
        self._server.server_close()

    @property
    def address(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """Its URL, without credentials."""
        return f"http://{self.address}"


class _Server(socketserver.ThreadingTCPServer):
    request_queue_size = 128

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Connection)


class _Connection(socketserver.BaseRequestHandler):
    server: _Server
    request: socket.socket

    def handle(self) -> None:
        """Serve one connection."""
        proxy, client = self.server.proxy, self.request
        proxy.sockets.add(client)
        try:
            self._serve(proxy, client)
        except OSError:
            pass  # one of the two has hung up
        finally:
            proxy.sockets.discard(client)

    def _serve(self, proxy: Proxy, client: socket.socket) -> None:
        head, rest = _read_head(client)
        if not head:
            return
        (method, target, version), fields = head[0].split(" "), head[1:]
        given = [value for name, _, value in (each.partition(": ") for each in fields) if _is(name, _FOR_THE_PROXY[:1])]
        if proxy.expected is not None and given != [proxy.expected]:
            proxy.rejected += 1
            client.sendall(_NO_CREDENTIALS)
            return
        proxy.requested.append(f"{method} {target}")
        tunnel = method == "CONNECT"
        url = urlsplit(f"//{target}" if tunnel else target)
        try:
            origin = socket.create_connection((url.hostname or "", url.port or 80))
        except OSError:
            client.sendall(_NO_CONNECTION)
            return
        with origin:
            proxy.sockets.add(origin)
            try:
                if tunnel:
                    client.sendall(_CONNECTED)
                else:
                    path = url._replace(scheme="", netloc="").geturl()
                    kept = [each for each in fields if not _is(each.partition(":")[0], _FOR_THE_PROXY)]
                    lines = [f"{method} {path} {version}", *kept, "Connection: close", "", ""]
                    rest = "\r\n".join(lines).encode("latin-1") + rest
                origin.sendall(rest)
                _relay(client, origin)
            finally:
                proxy.sockets.discard(origin)


def _is(name: str, names: tuple[str, ...]) -> bool:
    return name.lower() in names


def _read_head(sock: socket.socket) -> tuple[list[str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65_536)
        if not piece:
            return [], b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n"), rest


def _relay(one: socket.socket, other: socket.socket) -> None:
    while True:
        for sock in select.select([one, other], [], [])[0]:
            data = sock.recv(65_536)
            if not data:
                return
            (other if sock is one else one).sendall(data)


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class Relay:
    """Relays bytes to a port, in both directions, and can delay them.

    Args:
        target: The port; connections that come later go where it points to then.
        context: Takes TLS off what comes.
        delay: Seconds for which it keeps each piece.
    """

    def __init__(self, target: int, context: ssl.SSLContext | None = None, delay: float = 0.0) -> None:
        self.target, self._delay = target, delay
        self._context = context
        self._flows = threading.Event()
        self._flows.set()
        self.connections = 0
        """How many have been accepted."""
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    @contextlib.contextmanager
    def partition(self) -> Generator[None]:
        """Delay all bytes, as a network with packet loss does: no connection is closed, and they arrive late."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    def cut(self) -> None:
        """Close all connections; what was delayed is lost."""
        for sock in self._sockets:
            _hang_up(sock)

    def __enter__(self) -> Relay:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._flows.set()
        _hang_up(self._listener)
        self._threads[0].join(10)  # it starts the others
        for sock in self._sockets:
            _hang_up(sock)
        for thread in self._threads[1:]:
            thread.join(10)
        for sock in [self._listener, *self._sockets]:
            sock.close()

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=target, args=args, name="relay")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                self._sockets.append(client)
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
                self._sockets.append(client)
            server = socket.create_connection(("127.0.0.1", self.target))
            self._sockets.append(server)
            self._start(self._pump, server, client)
            self._pump(client, server)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                time.sleep(self._delay)
                self._flows.wait()
                sink.sendall(data)
        for sock in (source, sink):
            _hang_up(sock)
