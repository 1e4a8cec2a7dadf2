"""The request journal of the emulator, in the order of arrival."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import overload

from pay88_adapters.stores.realtime import monotonic

from .messages import Event, Kind, Request
from .windows import largest_window


@dataclass(frozen=True, slots=True)
class Entry:
    """One request and its outcome. Its repr shows no header and no body; ``str()`` is one short line."""

    at: float
    """When it arrived, in seconds of the emulator's clock."""
    method: str
    path: str
    """The request target with its query."""
    headers: Mapping[str, str] = field(repr=False)
    """By lower-case name."""
    body: bytes = field(repr=False)
    kind: Kind
    peer: tuple[str, int]
    status: int | None = None
    """Status code; ``None`` before the response, or if the connection was reset."""
    executed: bool = False
    """Whether the service acted on it, even if the client got another response."""
    event: Event | None = None
    """What the service did, or why it did not act."""
    serial: int | None = None
    """The token that was issued, or that the request carried; counted from 1."""
    age: float | None = None
    """Age of its token in seconds when the request arrived."""
    fault: str | None = None
    """The names of the injected faults, joined by ``+``."""
    took: float | None = None
    """Seconds of the emulator's clock from its arrival to the decision."""
    finished: bool = False
    """Whether it was decided. After that, the entry does not change."""

    def __str__(self) -> str:
        path = self.path.encode("ascii", "backslashreplace").decode()
        status = self.status or ("no response" if self.finished else "in progress")
        token = "" if self.serial is None else f"token {self.serial}"
        details = ", ".join(filter(None, [self.event, token, self.fault and f"fault {self.fault}"]))
        return f"{self.at:9.3f} s  {self.method:4} {path}  {status}  {details}".rstrip()


class Journal:
    """The request journal: one entry per request, one line each when printed. Thread-safe.

    A request is in the journal as soon as its headers have arrived. Its outcome is in the journal before the first byte
    of its response is sent: a client that has a response finds it there.
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return f"<Journal entries={len(self)} token_requests={self.token_requests} calls={self.calls}>"

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the entries that are there now."""
        return iter(self.select())

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        with self._changed:
            return self._entries[index]

    # Counting

    @property
    def token_requests(self) -> int:
        """Number of token requests, whatever their outcome."""
        return self.count("token")

    @property
    def calls(self) -> int:
        """Number of API requests, whatever their outcome."""
        return self.count("call")

    @property
    def charged(self) -> int:
        """Number of executed charges, including those whose response was lost or replaced.

        What they were is in ``emulator.service.charges``.
        """
        return sum(entry.event == "charged" for entry in self)

    @property
    def issued(self) -> int:
        """Number of issued tokens, including those whose response was lost."""
        return sum(entry.event == "issued" for entry in self)

    @property
    def oldest_token_age(self) -> float | None:
        """The age in seconds of the oldest known token that a call carried; ``None`` without one."""
        return max((entry.age for entry in self.select("call") if entry.age is not None), default=None)

    def count(self, kind: Kind | None = None, *, path: str | None = None, since: int = 0) -> int:
        """Return the number of entries that :meth:`select` would return."""
        return len(self.select(kind, path=path, since=since))

    def select(self, kind: Kind | None = None, *, path: str | None = None, since: int = 0) -> list[Entry]:
        """Return the entries of a kind, whose path starts with *path*, that arrived since a mark."""
        with self._changed:
            entries = self._entries[since:]
        return [
            entry
            for entry in entries
            if (kind is None or entry.kind == kind) and (path is None or entry.path.startswith(path))
        ]

    def mark(self) -> int:
        """Return a mark: pass it as ``since=`` to select only later requests."""
        return len(self._entries)

    def max_in_window(self, seconds: float, kind: Kind | None = "token") -> int:
        """Return the largest number of requests of a kind that arrived within *seconds*.

        Every request that reached the server counts, including rejected and reset ones. Two that
        are exactly *seconds* apart do not share a window.
        """
        return largest_window([entry.at for entry in self.select(kind)], seconds)

    def wait_for(self, count: int, kind: Kind | None = None, *, since: int = 0, timeout: float = 10) -> None:
        """Block until *count* requests of a kind have arrived.

        Raises:
            TimeoutError: They had not after *timeout* real seconds.
        """
        deadline = monotonic() + timeout
        seen, looked_at = 0, since
        with self._changed:
            while True:
                new = self._entries[looked_at:]
                looked_at = max(looked_at, len(self._entries))
                seen += sum(kind is None or entry.kind == kind for entry in new)
                if seen >= count:
                    return
                if not self._changed.wait(deadline - monotonic()) and monotonic() >= deadline:
                    raise TimeoutError(f"{seen} of {count} {kind or ''} requests arrived in {timeout} s")

    # Methods for the emulator

    def arrived(self, received: Request, at: float, serial: int | None, age: float | None) -> int:
        """Add a request; return the ticket that :meth:`finished` takes."""
        entry = Entry(
            at, received.method, received.path, received.headers, received.body,
            received.kind, received.peer, serial=serial, age=age,
        )  # fmt: skip
        with self._changed:
            self._entries.append(entry)
            self._changed.notify_all()
            return len(self._entries) - 1

    def finished(
        self,
        ticket: int,
        *,
        body: bytes,
        status: int | None,
        executed: bool,
        event: Event | None,
        serial: int | None,
        fault: str | None,
        took: float | None = None,
    ) -> None:
        """Record the outcome of a request."""
        with self._changed:
            entry = self._entries[ticket]
            self._entries[ticket] = replace(
                entry,
                body=body,
                status=status,
                executed=executed,
                event=event,
                serial=entry.serial if serial is None else serial,
                fault=fault,
                took=took,
                finished=True,
            )
