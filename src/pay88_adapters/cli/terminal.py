"""Output to a terminal, a pipe or a file."""

from __future__ import annotations

import os
import sys


def is_plain() -> bool:
    """Return whether output must have no colours and no control codes."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"):
        return True
    return not sys.stdout.isatty()


def printable(text: str) -> str:
    """Return *text* from another source without control characters, except tabs and line feeds."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text.replace("\r\n", "\n"))
