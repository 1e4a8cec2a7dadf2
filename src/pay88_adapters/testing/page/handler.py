"""Responds to requests for the page, its files and its API."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from aiohttp import web

from .controls import Controls
from .emulated import Emulated
from .forms import Form, catalogue
from .guards import HEADERS, RejectedRequest, check_host, check_origin
from .stream import Stream
from .view import View

PREFIX = "/_emulator"

_FILES = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_MAX_STREAMS = 16
_MAX_FORM = 64 * 1024  # bytes

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Page:
    """The page of one emulator. It is passive until the first request."""

    def __init__(self, emulator: Emulated) -> None:
        self._emulator = emulator
        self._view = View(emulator)
        self._controls = Controls(emulator)
        self.streams = 0
        """Number of connected readers."""
        self.connections: set[web.RequestHandler] = set()
        """The connections of the page, as opposed to those of clients."""
        self._routes: dict[tuple[str, str], Handler] = {
            ("GET", "state"): self._state,
            ("GET", "events"): self._events,
            ("GET", "faults"): self._faults,
            ("POST", "faults"): self._add_fault,
            ("DELETE", "faults"): self._clear_faults,
            ("POST", "actions"): self._act,
        }

    def owns(self, request: web.BaseRequest) -> bool:
        """Return whether a request is for the page."""
        return request.path == PREFIX or request.path.startswith(f"{PREFIX}/")

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Respond to a request, and close its connection: the emulator counts and drops connections of clients only."""
        self.connections = {each for each in self.connections if each.transport is not None} | {request.protocol}
        try:
            response = await self._respond(request)
        except RejectedRequest as exc:
            response = _json({"error": self._emulator.service.masked(str(exc))}, exc.status)
        response.force_close()
        return response

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        check_host(request.headers, self._emulator.host)
        if request.path == PREFIX:
            return web.Response(status=308, headers={**HEADERS, "Location": f"{PREFIX}/"})
        name = request.path.removeprefix(f"{PREFIX}/")
        if name:
            check_origin(request.headers, request.scheme)
        if request.method in ("GET", "HEAD") and name in _FILES:
            return _file(name)
        if request.method == "DELETE" and name.startswith("faults/"):
            return self._remove_fault(name.removeprefix("faults/"))
        handler = self._routes.get((request.method, name))
        if handler is None:
            raise RejectedRequest(404, f"unknown request: {request.method} {request.path}")
        return await handler(request)

    async def _state(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(Stream(self._view, self._emulator.journal).snapshot())

    async def _events(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.streams >= _MAX_STREAMS:
            raise RejectedRequest(503, f"{self.streams} event streams are open: close one")
        self.streams += 1
        try:
            return await Stream(self._view, self._emulator.journal).serve(request)
        finally:
            self.streams -= 1

    async def _faults(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json({"faults": self._view.faults(), "kinds": catalogue()})

    async def _add_fault(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(self._view.rule(self._controls.add_fault(await _form(request))), 201)

    async def _clear_faults(self, request: web.BaseRequest) -> web.StreamResponse:
        self._emulator.faults.clear()
        return web.Response(status=204, headers=HEADERS)

    def _remove_fault(self, number: str) -> web.StreamResponse:
        if not (number.isascii() and number.isdigit()):
            raise RejectedRequest(404, "the id of a fault must be a number")
        self._controls.remove_fault(int(number[:9]))
        return web.Response(status=204, headers=HEADERS)

    async def _act(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json({"done": await self._controls.act(await _form(request))})


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, text=json.dumps(data), headers={**HEADERS, "Content-Type": "application/json"})


def _file(name: str) -> web.Response:
    path, kind = _FILES[name]
    text = resources.files("pay88_adapters.testing.page").joinpath("static").joinpath(path).read_text(encoding="utf-8")
    return web.Response(text=text, headers={**HEADERS, "Content-Type": f"{kind}; charset=utf-8"})


async def _form(request: web.BaseRequest) -> Form:
    """Read the JSON body of a request: a form of another website cannot send that content type without a preflight."""
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise RejectedRequest(415, "Content-Type must be application/json")
    body = b""
    try:
        while len(body) <= _MAX_FORM and (piece := await request.content.readany()):
            body += piece
    except Exception:  # noqa: BLE001 - whatever aiohttp makes of a client that went away midway
        raise RejectedRequest(400, "the body did not arrive in time") from None
    if len(body) > _MAX_FORM:
        raise RejectedRequest(413, f"the body must have at most {_MAX_FORM} bytes")
    try:
        return Form(json.loads(body))
    except (ValueError, RecursionError):
        raise RejectedRequest(400, "the body is not valid JSON") from None
