"""Responds to requests over real connections, and injects faults."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from aiohttp import StreamReader, web

from pay88_adapters.engine.clock import Clock
from pay88_adapters.engine.current_runtime import current_runtime

from . import faults as fault_types
from .faults import FaultPlan, Fields, Outcome
from .holds import Hold
from .journal import Journal
from .messages import Request, Response
from .service import Service

_PIECE = 64 * 1024


class Responder:
    """The request handler of the emulator's HTTP server."""

    def __init__(
        self,
        service: Callable[[], Service],
        journal: Journal,
        faults: FaultPlan,
        clock: Clock,
        wall: Callable[[], float],
    ) -> None:
        self._service = service
        self._journal = journal
        self._faults = faults
        self._clock = clock
        self._wall = wall

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        received = _received(request)
        now = self.now()
        ticket = self._journal.arrived(received, now, *self._service().trace(received, now))
        exchange = _Exchange(self, request, received, now, partial(self._journal.finished, ticket))
        if (unread := self._faults.unread(received)) is not None:
            return exchange.reset(unread)
        try:
            received = exchange.received = replace(received, body=await _read(request))
        except Exception:  # noqa: BLE001 - whatever aiohttp makes of a client that went away midway
            return exchange.abandoned()
        delays, seen = self._faults.delays(received)
        for delay in delays:
            exchange.injected.append(type(delay).__name__)
            if isinstance(delay, Hold):
                await delay.passed()
            else:
                await self.until(self.now() + delay.seconds)
        return await exchange.respond(self._faults.outcome(received, seen))

    def now(self) -> float:
        """Return what the emulator's clock shows."""
        return self._clock.now()

    async def until(self, instant: float) -> None:
        """Wait until the emulator's clock shows *instant*."""
        await self._clock.sleep(instant - self._clock.now(), current_runtime())

    def handle(self, received: Request) -> Response:
        """Let the service act on a request, now."""
        return self._service().handle(received, self.now(), self._wall())

    def error(self, status: int, received: Request, **more: object) -> Response:
        """Return an error in the documented form, for a fault."""
        return self._service().error(status, received, self.now(), self._wall(), **more)  # type: ignore[arg-type]

    def count(self, received: Request) -> None:
        """Count a request that gets the response of a fault."""
        self._service().count(received, self.now())


class _Exchange:
    """One request and what is sent back."""

    def __init__(
        self,
        owner: Responder,
        request: web.BaseRequest,
        received: Request,
        at: float,
        finished: Callable[..., None],
    ) -> None:
        self._owner = owner
        self._request = request
        self._at = at
        self._finished = finished
        self.received = received
        self.injected: list[str] = []
        """The names of the faults injected so far."""

    async def respond(self, fault: Outcome | None) -> web.StreamResponse:
        """Respond to the request, or inject the fault."""
        if fault is not None:
            self.injected.append(type(fault).__name__)
        match fault:
            case fault_types.ResetBeforeRead():
                return self._hang_up(None, reset=True)
            case fault_types.ResetAfterRead():
                return self._hang_up(self._owner.handle(self.received), reset=True)
            case fault_types.Garbage(data):
                return self._hang_up(None, data)
            case fault_types.Truncated(missing):
                return self._truncated(missing)
            case fault_types.Drip(seconds):
                return await self._drip(seconds)
            case fault_types.HugeBody(size, chunked):
                return await self._huge(size, chunked)
            case _:
                response = self._plain(fault)
                self._record(response, response.status)
                return web.Response(status=response.status, body=response.body, headers=response.headers)

    def reset(self, fault: fault_types.ResetBeforeRead) -> web.StreamResponse:
        """Reset the connection with the body still unread."""
        self.injected.append(type(fault).__name__)
        return self._hang_up(None, reset=True)

    def abandoned(self) -> web.StreamResponse:
        """Record a client that went away before its request was complete."""
        return self._hang_up(None)

    # Responses that differ in their content

    def _plain(self, fault: Outcome | None) -> Response:
        received = self.received
        match fault:
            case fault_types.Status(status, headers, body):
                if status != 429:
                    self._owner.count(received)
                response = self._owner.error(status, received)
                if body is not None:
                    response = replace(response, body=body)
            case fault_types.TooMany():
                response, headers = self._too_many(fault)
            case fault_types.RejectToken():
                message = "Invalid API key or merchant ID" if received.kind == "token" else None
                response, headers = self._owner.error(401, received, message=message), ()
            case fault_types.Redirect(to, status):
                response, headers = self._owner.error(status, received), (("Location", to),)
            case fault_types.Body(body, status, headers):
                response = replace(self._owner.handle(received), status=status, body=body)
            case fault_types.Headers(headers):
                response = self._owner.handle(received)
            case _:
                response, headers = self._owner.handle(received), ()
        return replace(response, headers=_merged(response.headers, headers))

    def _too_many(self, fault: fault_types.TooMany) -> tuple[Response, Fields]:
        header, in_body = fault.retry_after, fault.body_retry_after
        if in_body == "same":
            in_body = None if isinstance(header, str) else header
        more = {} if in_body is None else {"retry_after": in_body}
        headers = () if header is None else (("Retry-After", str(header)),)
        return self._owner.error(429, self.received, event="limited", **more), headers

    # Responses that differ in their transmission

    def _truncated(self, missing: int) -> web.StreamResponse:
        response = self._owner.handle(self.received)
        lines = [f"HTTP/1.1 {response.status} {'OK' if response.status == 200 else 'Error'}"]
        headers = _merged(response.headers, (("Content-Length", str(len(response.body))),))
        lines += [f"{name}: {value}" for name, value in headers]
        head = "\r\n".join([*lines, "", ""]).encode()
        sent = response.body[: max(0, len(response.body) - missing)]
        return self._hang_up(response, head + sent, status=response.status)

    async def _drip(self, seconds: float) -> web.StreamResponse:
        response, body = self._streamed()
        response.content_length = len(body)
        with suppress(ConnectionError):  # the client has disconnected
            await response.prepare(self._request)
            next_at = self._owner.now()
            for byte in body:
                await response.write(bytes([byte]))
                next_at += seconds
                await self._owner.until(next_at)
        return response

    async def _huge(self, size: int, chunked: bool) -> web.StreamResponse:
        response, body = self._streamed()
        response.content_length = None if chunked else max(size, len(body))
        with suppress(ConnectionError):
            await response.prepare(self._request)
            await response.write(body)
            for start in range(len(body), size, _PIECE):
                await response.write(b" " * min(_PIECE, size - start))
        return response

    def _streamed(self) -> tuple[web.StreamResponse, bytes]:
        response = self._owner.handle(self.received)
        self._record(response, response.status)
        headers = _merged(response.headers, ())
        return web.StreamResponse(status=response.status, headers=headers), response.body

    def _hang_up(
        self, response: Response | None, data: bytes = b"", *, status: int | None = None, reset: bool = False
    ) -> web.StreamResponse:
        """Record the request's end, send *data* as it is, and end the connection."""
        self._record(response, status)
        transport = self._request.transport
        if transport is not None and reset:
            _reset(transport)
        elif transport is not None:
            transport.write(data)
            transport.close()
        return web.Response()  # which aiohttp cannot send any more, and drops without an error

    def _record(self, response: Response | None, status: int | None) -> None:
        self._finished(
            body=self.received.body,
            status=status,
            executed=response is not None and response.executed,
            event=None if response is None else response.event,
            serial=None if response is None else response.serial,
            fault="+".join(self.injected) or None,
            took=self._owner.now() - self._at,
        )


def _received(request: web.BaseRequest) -> Request:
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    peername = None if request.transport is None else request.transport.get_extra_info("peername")
    peer = (str(peername[0]), int(peername[1])) if peername else ("", 0)
    return Request(request.method, request.raw_path, headers, peer=peer)


async def _read(request: web.BaseRequest) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body: StreamReader = request.content  # request.read() would reject more than 1 MiB
    return await body.read()


def _reset(transport: asyncio.Transport) -> None:
    """Close a connection so that its peer sees RST and not FIN."""
    sock: socket.socket = transport.get_extra_info("socket")
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


def _merged(ours: Fields, theirs: Fields) -> tuple[tuple[str, str], ...]:
    """Return the headers of a response; those of a fault replace those of the service."""
    replacing = _pairs(theirs)
    names = {name.lower() for name, _ in replacing}
    basis = (("Content-Type", "application/json"), *_pairs(ours))
    return (*(pair for pair in basis if pair[0].lower() not in names), *replacing)


def _pairs(headers: Fields) -> tuple[tuple[str, str], ...]:
    return tuple(headers.items()) if isinstance(headers, Mapping) else tuple(headers)
