"""Run the emulator until a signal, and print its requests."""

from __future__ import annotations

import json
import shlex
import signal
import ssl
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from pay88_adapters import ConfigurationError, Pay88Error
from pay88_adapters.core.secret import redact
from pay88_adapters.testing import Emulator, Entry, Journal

_POLL_INTERVAL = 0.05  # real seconds between two reads of the journal


class CannotServe(Pay88Error):
    """The emulator cannot start."""


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS context of a certificate and its key.

    Raises:
        ConfigurationError: The files are invalid.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigurationError(f"{cert} and {key} are not a certificate with its key: {error}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def serve(emulator: Emulator, *, as_json: bool) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        CannotServe: The port is not available.
    """
    with _signals() as ended:
        try:
            emulator.start()
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise CannotServe(f"cannot listen on {emulator.host}: {why}; use another --host or --port") from None
        try:
            _print_start(emulator, as_json=as_json)
            tail = Tail(emulator.journal)
            show = _document if as_json else _line
            while not ended.wait(_POLL_INTERVAL):
                _log(tail, emulator, show)
            _log(tail, emulator, show)
        finally:
            emulator.stop()


class Tail:
    """The new finished requests of a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._next = 0
        self._pending: list[int] = []

    def fresh(self) -> list[Entry]:
        """Return the requests that have finished since the last call."""
        count = len(self._journal)
        self._pending += range(self._next, count)
        self._next = count
        entries = [(number, self._journal[number]) for number in self._pending]
        self._pending = [number for number, entry in entries if not entry.finished]
        return [entry for _, entry in entries if entry.finished]


@contextmanager
def _signals() -> Generator[threading.Event, None, None]:
    """Yield an event that SIGINT and SIGTERM set."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {each: signal.signal(each, end) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _print_start(emulator: Emulator, *, as_json: bool) -> None:
    if as_json:
        click.echo(
            json.dumps(
                {"event": "started", "url": emulator.url, "page": emulator.page_url, "environment": emulator.environ}
            )
        )
        return
    click.echo(f"# Emulator running at {emulator.url} (press Ctrl-C to stop)")
    click.echo(f"# Requests and faults: {emulator.page_url}")
    for name, value in emulator.environ.items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _log(tail: Tail, emulator: Emulator, show: Callable[[Entry, str], str]) -> None:
    for entry in tail.fresh():
        click.echo(show(entry, redact(entry.path, emulator.api_key)))


def _line(entry: Entry, path: str) -> str:
    columns = [f"{entry.method} {path}", str(entry.status or "no response"), entry.event or "undecided"]
    if entry.serial is not None:
        columns.append(f"token {entry.serial}")
    if entry.age is not None:
        columns.append(f"{entry.age:.1f} s old")
    if entry.fault is not None:
        columns.append(f"fault: {entry.fault}")
    return "  ".join(columns)


def _document(entry: Entry, path: str) -> str:
    names = ("at", "method", "kind", "status", "executed", "serial", "age", "fault")
    fields = {name: getattr(entry, name) for name in names}
    return json.dumps({"event": "request", "path": path, **fields, "outcome": entry.event})
