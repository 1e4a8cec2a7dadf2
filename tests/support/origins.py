"""A server of no particular make, which remembers every request exactly as it came over the wire."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from pay88_adapters.testing import ManualClock, Request, Service
from pay88_adapters.testing.messages import TOKEN_PATH

OURS = ("authorization", "x-session-id")
_REASONS = {200: "OK", 201: "Made", 204: "No Content", 302: "Found", 303: "See Other", 404: "Not Found"}


@dataclass(frozen=True)
class Seen:
    """One request: every field in its order and spelling, every chunk of the body."""

    connection: int
    """Counted from the last :meth:`Origin.take`, in the order of first use."""
    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    pieces: tuple[bytes, ...]

    def field(self, name: str) -> list[str]:
        """Return the values of one field."""
        return [value for each, value in self.fields if each.lower() == name]


class Origin:
    """Serves responses on a loopback port as the URL says (see :meth:`url`), and also 88Pay's tokens."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.clock = ManualClock()
        self.service = Service(token_limits=(), call_limits=())
        self.token_requests = 0
        self.began = threading.Event()
        """Set when the first piece of a body has arrived."""
        self.silences = threading.Semaphore(0)
        """How many calls of ``/silent`` have arrived: their clients may be gone before."""
        self.resume = threading.Event()
        """Lets ``/drip`` send the rest."""
        self._connections: dict[int, int] = {}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.base = f"http://localhost:{self.port}"

    def __enter__(self) -> Origin:
        self._spawn(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self.resume.set()
        with contextlib.suppress(OSError):  # it may be over already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def url(self, path: str = "/echo", **query: object) -> str:
        """Return where to get a response.

        Args:
            path: ``/echo`` repeats the body, ``/stream`` returns ``size`` bytes in chunks, ``/drip`` in two
                chunks with a pause, ``/gzip`` compressed, ``/silent`` nothing, ``/reset`` hangs up, ``/garbage``
                is not HTTP; everything else returns ``status``, each ``field`` (``Name: value``) and ``body``.
            query: Parameters of the response.
        """
        return self.base + path + ("?" + urlencode(query, doseq=True) if query else "")

    def take(self) -> list[Seen]:
        """Return the recorded requests, and clear the record."""
        seen, self.seen, self._connections = self.seen, [], {}
        self.began.clear()
        self.resume.clear()
        return seen

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="origin", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._sockets.add(sock)
                self._spawn(self._serve, sock, len(self._threads))

    def _serve(self, sock: socket.socket, serial: int) -> None:
        with sock, contextlib.suppress(OSError, EOFError), sock.makefile("rb") as stream:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._one(sock, serial, stream):
                pass
        self._sockets.discard(sock)

    def _one(self, sock: socket.socket, serial: int, stream: IO[bytes]) -> bool:
        head = _head(stream)
        if not head:
            return False
        method, target, _ = head[0].split(" ", 2)
        fields = tuple((name, value) for name, _, value in (line.partition(": ") for line in head[1:]))
        if any(name.lower() == "expect" for name, _ in fields):
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        pieces: list[bytes] = []
        for piece in _pieces(stream, {name.lower(): value for name, value in fields}):
            pieces.append(piece)
            self.began.set()
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        if parts.path == TOKEN_PATH:
            self.token_requests += 1
            headers = {name.lower(): value for name, value in fields}
            response = self.service.handle(Request(method, target, headers), self.clock.now(), time.time())
            sock.sendall(_message(response.status, [*response.headers], response.body))
            return True
        with self._lock:
            number = self._connections.setdefault(serial, len(self._connections))
            self.seen.append(Seen(number, method, target, fields, tuple(pieces)))
        last = ("connection", "close") in [(name.lower(), value) for name, value in fields]
        if last:
            query.setdefault("field", []).append("Connection: close")
        return self._respond(sock, method, parts.path, query, b"".join(pieces)) and not last

    def _respond(self, sock: socket.socket, method: str, path: str, query: dict[str, list[str]], body: bytes) -> bool:
        fields = [(name, value) for name, _, value in (each.partition(": ") for each in query.get("field", []))]
        status = int(query.get("status", ["200"])[0])
        match path:
            case "/silent":
                self.silences.release()
                self._over.wait(60)
                return False
            case "/reset":
                return False
            case "/garbage":
                sock.sendall(b"this is no HTTP\r\n\r\n")
                return False
            case "/stream" | "/drip":
                sock.sendall(_message(200, [("Transfer-Encoding", "chunked"), *fields]))
                size = int(query.get("size", ["20"])[0])
                for at in range(0, size, 10_000):
                    piece = b"x" * min(10_000, size - at)
                    sock.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                    if path == "/drip":
                        self.resume.wait(10)
                sock.sendall(b"0\r\n\r\n")
                return True
            case "/gzip":
                body, fields = gzip.compress(b"plain text", mtime=0), [("Content-Encoding", "gzip"), *fields]
            case "/echo":
                pass
            case _:
                body = query.get("body", [""])[0].encode()
        message = _message(status, fields, b"" if status == 204 else body)
        sock.sendall(message.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else message)
        return True


def _message(status: int, fields: list[tuple[str, str]], body: bytes | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Whatever')}", "X-Origin: some", "X-Twice: 1", "X-Twice: 2"]
    lines += [f"{name}: {value}" for name, value in fields if name.lower() != "content-length"]
    if body is not None and status not in (204, 304):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def _head(stream: IO[bytes]) -> list[str]:
    lines: list[str] = []
    while True:
        line: bytes = stream.readline()
        if not line:
            return []
        if line == b"\r\n":
            return lines
        lines.append(line.decode("latin-1").rstrip("\r\n"))


def _pieces(stream: IO[bytes], fields: dict[str, str]) -> Iterator[bytes]:
    read = stream.read
    if "chunked" in fields.get("transfer-encoding", ""):
        while size := int(stream.readline().split(b";")[0], 16):
            piece = read(size)
            if len(piece) < size:
                raise EOFError
            stream.readline()
            yield piece
        stream.readline()
    elif length := int(fields.get("content-length", "0")):
        piece = read(length)
        if len(piece) < length:
            raise EOFError
        yield piece
