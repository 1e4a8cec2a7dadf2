"""What standard output can show."""

from __future__ import annotations

import os
import sys


def is_plain() -> bool:
    """Return whether standard output wants no colours and no control codes."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"):
        return True
    return not sys.stdout.isatty()


def printable(text: str) -> str:
    """Return *text* from elsewhere, so that it cannot control a terminal: tabs and line ends are all that is left."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text.replace("\r\n", "\n"))
