"""Server-sent events: the changes, as fast as the client reads."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import suppress
from typing import Any

from aiohttp import web

from pay88_adapters.testing.journal import Journal

from .guards import HEADERS
from .view import TIMELINE, View

_POLL_INTERVAL = 0.2  # real seconds, like the next two
_KEEPALIVE_INTERVAL = 10.0  # for the time in it, and to notice a disconnected reader
_WRITE_TIMEOUT = 30.0  # for a reader that does not read


class Stream:
    """The events that one client has received, and the new ones.

    Nothing is queued: a slow client gets one message with all changes since the last one.
    """

    def __init__(self, view: View, journal: Journal) -> None:
        self._view = view
        self._journal = journal
        self._sent_state: dict[str, Any] = {}
        self._now = math.inf
        self._next = 0  # the first entry of the journal that was not sent
        self._open = set[int]()  # entries that were sent before they had ended

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Send events until the client disconnects or stops reading."""
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        response.force_close()
        with suppress(ConnectionError, asyncio.TimeoutError):
            await response.prepare(request)
            await response.write(b"retry: 1000\n\n")  # milliseconds until a browser reconnects
            await self._write(response, "state", self.snapshot())
            unchanged_for = 0.0
            while request.transport is not None:
                await asyncio.sleep(_POLL_INTERVAL)
                unchanged_for += _POLL_INTERVAL
                if (change := self.change()) is None and unchanged_for < _KEEPALIVE_INTERVAL:
                    continue
                await self._write(response, "change", change or {"now": self._view.now()})
                unchanged_for = 0.0
        return response

    async def _write(self, response: web.StreamResponse, event: str, data: dict[str, Any]) -> None:
        message = f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
        await asyncio.wait_for(response.write(message), _WRITE_TIMEOUT)

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state, with the latest requests."""
        self._sent_state, self._now = self._view.state(), self._view.now()
        return {"now": self._now, **self._sent_state, "timeline": self._timeline()}

    def change(self) -> dict[str, Any] | None:
        """Return the changed parts and the changed lines of the timeline; ``None`` if nothing changed."""
        state, now = self._view.state(), self._view.now()
        parts = {name: part for name, part in state.items() if part != self._sent_state.get(name)}
        timeline = self._timeline()
        moved = state["emulator"]["movable"] and now != self._now
        self._sent_state, self._now = state, now
        if not (parts or timeline or moved):
            return None
        return {"now": now, **parts, "timeline": timeline}

    def _timeline(self) -> list[dict[str, Any]]:
        end = self._journal.mark()
        first = max(self._next, end - TIMELINE)
        waited_for = sorted(each for each in self._open if end - TIMELINE <= each < first)
        entries = [(number, self._journal[number]) for number in (*waited_for, *range(first, end))]
        self._next, self._open = end, {number for number, entry in entries if not entry.finished}
        return [self._view.entry(number + 1, entry) for number, entry in entries if number >= first or entry.finished]
