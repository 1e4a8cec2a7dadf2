"""The emulator, from its start to a signal, and its log on standard output."""

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

_LOOK = 0.05  # real seconds between two looks at the journal


class CannotServe(Pay88Error):
    """The emulator cannot be started."""


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return what serves HTTPS with a certificate.

    Raises:
        ConfigurationError: The files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigurationError(f"{cert} and {key} are no certificate with its key: {error}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def serve(emulator: Emulator, *, as_json: bool) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        CannotServe: The port cannot be used.
    """
    with _signals() as ended:
        try:
            emulator.start()
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise CannotServe(f"{emulator.host} cannot be served on that port: {why}") from None
        try:
            _opening(emulator, as_json=as_json)
            tail = Tail(emulator.journal)
            show = _document if as_json else _line
            while not ended.wait(_LOOK):
                _log(tail, emulator, show)
            _log(tail, emulator, show)
        finally:
            emulator.stop()


class Tail:
    """The requests that have been answered since the last look, in the order in which that is seen."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._looked_at = 0
        self._pending: list[int] = []

    def fresh(self) -> list[Entry]:
        """Return what has been answered since the last look."""
        count = len(self._journal)
        self._pending += range(self._looked_at, count)
        self._looked_at = count
        entries = [(number, self._journal[number]) for number in self._pending]
        self._pending = [number for number, entry in entries if not entry.finished]
        return [entry for _, entry in entries if entry.finished]


@contextmanager
def _signals() -> Generator[threading.Event, None, None]:
    """Give what SIGINT and SIGTERM set."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {each: signal.signal(each, end) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _opening(emulator: Emulator, *, as_json: bool) -> None:
    variables = {
        "PAY88_API_KEY": emulator.api_key,
        "PAY88_MERCHANT_ID": emulator.merchant_id,
        "PAY88_BASE_URL": emulator.url,
    }
    if as_json:
        click.echo(
            json.dumps({"event": "started", "url": emulator.url, "page": emulator.page_url, "environment": variables})
        )
        return
    click.echo(f"# 88Pay's emulator is at {emulator.url}; Ctrl-C ends it")
    click.echo(f"# watch it, and switch its faults, at {emulator.page_url}")
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _log(tail: Tail, emulator: Emulator, show: Callable[[Entry, str], str]) -> None:
    for entry in tail.fresh():
        click.echo(show(entry, redact(entry.path, emulator.api_key)))


def _line(entry: Entry, path: str) -> str:
    said = [f"{entry.method} {path}", str(entry.status or "no answer"), entry.event or "not decided"]
    if entry.serial is not None:
        said.append(f"token {entry.serial}")
    if entry.age is not None:
        said.append(f"{entry.age:.1f} s old")
    if entry.fault is not None:
        said.append(f"fault: {entry.fault}")
    return "  ".join(said)


def _document(entry: Entry, path: str) -> str:
    names = ("at", "method", "kind", "status", "executed", "serial", "age", "fault")
    said = {name: getattr(entry, name) for name in names}
    return json.dumps({"event": "request", "path": path, **said, "outcome": entry.event})
