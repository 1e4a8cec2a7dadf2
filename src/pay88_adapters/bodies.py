"""Whether a request body can be sent a second time, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Bookmark:
    """Where a body stood before it was sent the first time.

    Stacks send a consumed generator, or a file that cannot seek, again as an *empty* body, and the
    server answers 200: so this is decided before the first send.

    Attributes:
        replayable: Whether the same bytes can be sent again.
        position: Where a file stood; ``None`` for everything else.
    """

    __slots__ = ("_body", "position", "replayable")

    def __init__(self, body: Any) -> None:
        self._body = body
        self.position: int | None = None
        if hasattr(body, "__aiter__"):
            self.replayable = not (hasattr(body, "__anext__") or hasattr(body, "read") or hasattr(body, "aread"))
        elif hasattr(body, "read"):
            self.position = _position(body)
            self.replayable = self.position is not None
        else:
            self.replayable = not isinstance(body, Iterator)

    def rewind(self) -> None:
        """Put a file back to where it stood."""
        if self.position is not None:
            self._body.seek(self.position)


_WHOLE = Bookmark(b"")
_PLAIN = (type(None), bytes, str)


def bookmark(body: Any) -> Bookmark:
    """Return the bookmark of *body*, which has not been sent yet."""
    return _WHOLE if type(body) in _PLAIN else Bookmark(body)


def _position(file: Any) -> int | None:
    try:
        if hasattr(file, "seekable") and not file.seekable():
            return None
        position = file.tell()
    except Exception:  # noqa: BLE001 - whatever a file-like object of the caller's may raise
        return None
    return position if isinstance(position, int) and hasattr(file, "seek") else None
