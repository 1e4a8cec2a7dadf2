"""A server that rejects the first token, in the way that a test selects."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import IO

from pay88_adapters import Credentials, TokenManager
from pay88_adapters.clock import Clock
from pay88_adapters.testing.messages import TOKEN_PATH

Responder = Callable[[Callable[[bytes], None], threading.Event], bool]
"""Sends a response; returns whether the connection can continue. The event is set when the server stops."""


def rejected(send: Callable[[bytes], None], over: threading.Event) -> bool:
    """Send a 401 as 88Pay does."""
    send(message(401, b'{"code": 401}'))
    return True


def message(status: int, body: bytes) -> bytes:
    """Return a whole response."""
    return b"HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


class Rejections:
    """Hands out tokens, returns 200 for all but the first one, and remembers bodies.

    Args:
        when: How much of a body is read before the rejection is sent: ``before``, ``during`` or ``after``.
        answer: Sends the rejection.
        token_response: Sends the response to token requests, if not a token.
    """

    def __init__(
        self, when: str = "after", response: Responder = rejected, token_response: Responder | None = None
    ) -> None:
        self.bodies: list[bytes] = []
        """Of each API request, as far as it came."""
        self.tokens: list[str] = []
        self.connections = 0
        self.responding = threading.Event()
        """Set when a rejection is sent."""
        self._when, self._respond, self._token_response = when, self._responding(response), token_response
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _responding(self, response: Responder) -> Responder:
        def responded(send: Callable[[bytes], None], over: threading.Event) -> bool:
            def sent(data: bytes) -> None:
                send(data)
                self.responding.set()

            return response(sent, over)

        return responded

    def manager(self) -> TokenManager:
        """Return a manager that has the first token."""
        manager = TokenManager(Credentials("sk_test_1", "MCH-COL-1"), base_url=self.url, clock=Clock())
        manager.get_token()
        return manager

    def __enter__(self) -> Rejections:
        self._spawn(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="rejections", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                self._sockets.append(sock)
                self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError, EOFError), sock.makefile("rb") as stream:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._one(sock, stream):
                pass

    def _one(self, sock: socket.socket, stream: IO[bytes]) -> bool:
        line = stream.readline()
        if not line:
            return False
        headers: dict[str, str] = {}
        while (header := stream.readline().strip()) != b"":
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if line.split()[1].decode().partition("?")[0] == TOKEN_PATH:
            if self._token_response is not None:
                return self._token_response(sock.sendall, self._over)
            self.tokens.append(f"eyJ.token{len(self.tokens)}.end")
            data = {"access_token": self.tokens[-1], "session_id": "sess_1", "expires_in": 60}
            sock.sendall(message(200, json.dumps({"data": data}).encode()))
            return True
        at = len(self.bodies)
        self.bodies.append(b"")
        rejects = headers["authorization"] == f"Bearer {self.tokens[0]}"
        continues = True
        if not rejects and headers.get("expect") == "100-continue":
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if rejects and self._when == "before":
            continues = self._respond(sock.sendall, self._over)
        for number, piece in enumerate(_pieces(stream, headers)):
            self.bodies[at] += piece
            if rejects and self._when == "during" and number == 0:
                continues = self._respond(sock.sendall, self._over)
        if not rejects:
            sock.sendall(message(200, b"fine"))
        elif self._when == "after" or (self._when == "during" and not self.bodies[at]):
            continues = self._respond(sock.sendall, self._over)
        return continues


def _pieces(stream: IO[bytes], headers: dict[str, str]) -> list[bytes] | _Pieces:
    if "chunked" in headers.get("transfer-encoding", ""):
        return _Pieces(stream, None)
    length = int(headers.get("content-length", "0"))
    return _Pieces(stream, length) if length else []


class _Pieces:
    """A body as it comes: chunk by chunk, or in quarters."""

    def __init__(self, stream: IO[bytes], length: int | None) -> None:
        self._stream, self._left = stream, length
        self._step = 0 if length is None else -(-length // 4)

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> bytes:
        if self._left is None:
            size = int(self._stream.readline().split(b";")[0] or b"0", 16)
            piece = self._stream.read(size)
            self._stream.readline()
            if not size:
                raise StopIteration
            return piece
        if not self._left:
            raise StopIteration
        piece = self._stream.read(min(self._step, self._left))
        if not piece:
            raise EOFError
        self._left -= len(piece)
        return piece
