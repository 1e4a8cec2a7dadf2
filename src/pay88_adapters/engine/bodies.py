"""Rewindable request bodies: whether a body can be sent a second time, byte for byte."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from typing import Any

PLAIN = frozenset((type(None), bytes, str))
"""Types of bodies that are the same whenever they are sent."""

_COPIES: dict[object, Callable[[Any], object]] = {bytearray: bytes, memoryview: bytes, list: tuple}
_FILES = frozenset((io.BytesIO, io.FileIO, io.BufferedReader, io.BufferedRandom))


class BodyPosition:
    """State of a request body before it is sent for the first time.

    Clients resend a consumed generator, or a file that is not rewindable, as an *empty* body, and the server
    returns 200. So only bodies that are known to yield the same bytes twice are rewindable. Exact types decide,
    since a subclass or an object with ``__iter__`` or ``read`` can do anything:

    - ``None``, bytes and text;
    - ``bytearray``, ``memoryview``, and lists and tuples of bytes and text, unless they were changed in the meantime;
    - ``io.BytesIO`` and regular files in binary mode, if they return to their position.

    Args:
        parts: Everything that the body is made of; more than one for a form.
        position: Offset in bytes from which a file is sent; the current position of the file unless given.

    Attributes:
        steady: Whether any layer can send the body again from the start position, without a comparison with its first
            content.
        has_file: Whether a part has a file position: no earlier attempt may still read it.
    """

    __slots__ = ("_checks", "has_file", "steady")

    def __init__(self, *parts: Any, position: Any = None) -> None:
        self._checks: list[Callable[[], bool]] = []
        self.steady, self.has_file = True, False
        for part in parts:
            if type(part) in PLAIN or _is_plain_tuple(part):
                continue
            check = _position(part, position) if type(part) in _FILES else None
            if check is None:
                self.steady = False
                check = _content(part) or _never
            else:
                self.has_file = True
            self._checks.append(check)

    def rewind(self) -> bool:
        """Return files to their position; return whether the body was rewound."""
        try:
            return all(check() for check in self._checks)
        except (OSError, ValueError):  # a file was closed, a memoryview released
            return False


WHOLE = BodyPosition()
"""The state of every body of a plain type."""


def _position(file: Any, position: Any) -> Callable[[], bool] | None:
    try:
        if type(file) is not io.BytesIO:
            raw = file if type(file) is io.FileIO else file.raw
            if type(raw) is not io.FileIO or not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
                return None
        start: int = position if type(position) is int else file.tell()
    except (OSError, ValueError):
        return None
    return lambda: file.seek(start) == start and file.tell() == start


def _content(part: object) -> Callable[[], bool] | None:
    copy = _COPIES.get(type(part))
    if copy is None or (copy is tuple and not _all_plain(part)):
        return None
    try:
        before = copy(part)
    except ValueError:  # a memoryview that was released
        return None
    return lambda: copy(part) == before


def _is_plain_tuple(part: Any) -> bool:
    return type(part) is tuple and _all_plain(part)


def _all_plain(pieces: Any) -> bool:
    return all(type(piece) is bytes or type(piece) is str for piece in pieces)


def _never() -> bool:
    return False
