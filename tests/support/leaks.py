"""Look for secrets wherever a caller might print something."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from pay88_adapters import Pay88Error
from support.stacks import PlainResponse

_PIECE = 16  # characters: a secret that was cut short is one all the same


class RootLogCapture(logging.Handler):
    """Keeps what every logger of the process says, at every level, while it is entered.

    Args:
        but: Names of threads to ignore: servers are no part of the client.
    """

    def __init__(self, *but: str) -> None:
        super().__init__(logging.NOTSET)
        self.records: list[logging.LogRecord] = []
        self.lines: list[str] = []
        self._but = but

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as it is now, with its traceback."""
        if record.threadName not in self._but:
            self.records.append(record)
            self.lines += [self.format(record), repr(record.args)]

    def __enter__(self) -> RootLogCapture:
        root = logging.getLogger()
        self._before = root.level
        root.setLevel(logging.DEBUG)
        root.addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        root = logging.getLogger()
        root.removeHandler(self)
        root.setLevel(self._before)


def shown(thing: object, depth: int = 2) -> Iterator[str]:
    """Yield what printing *thing*, or what it consists of, would show."""
    yield repr(thing)
    if isinstance(thing, (str, bytes)):
        return  # text is its own str(): an adapter has to send it
    yield str(thing)
    if depth:
        for part in _parts(thing):
            yield from shown(part, depth - 1)


def _parts(thing: object) -> Iterator[object]:
    yield from getattr(thing, "__dict__", {}).copy().values()  # other threads may be at it
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, name):
                yield getattr(thing, name)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and whatever it was raised from or in, suppressed or not."""
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is not None and each not in seen:
            seen.append(each)
            yield each
            todo += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


def error_texts(error: Exception) -> Iterator[str]:
    """Yield what an error shows: by itself, in a traceback with locals, pickled, and the same of its causes."""
    for each in chain(error):
        yield from (repr(each), str(each), repr(each.args), repr(vars(each)))
        yield from traceback.TracebackException.from_exception(each, capture_locals=True).format()
    if isinstance(error, Pay88Error):
        yield repr(pickle.dumps(error))


def outcome_texts(outcome: object) -> Iterator[str]:
    """Yield what the outcome of a call shows."""
    if isinstance(outcome, Exception):
        yield from error_texts(outcome)
        return
    assert isinstance(outcome, PlainResponse)
    response: Any = outcome.raw
    yield from shown(response)
    for name in ("headers", "history", "request_info", "url"):
        yield from shown(getattr(response, name, None))
    request = getattr(response, "_request", None)  # httpx raises if there is none
    yield from shown(request)
    yield from shown(getattr(request, "headers", None))
    yield from shown(getattr(getattr(response, "request_info", None), "headers", None))


def leaked(secrets: Iterable[str], texts: Iterable[str]) -> list[str]:
    """Return the texts that hold a secret, or a piece of one."""
    pieces = {secret[at : at + _PIECE] for secret in secrets for at in range(0, len(secret) - _PIECE + 1, _PIECE)}
    assert pieces
    return [text for text in texts if any(piece in text for piece in pieces)]
