"""The form of error messages: what failed; why, with its numbers; what to do."""

from __future__ import annotations

import re

MOST = 200
"""Characters of a message."""


def faults_of(message: str, retry_after: float | None = None) -> list[str]:
    """Return what is wrong with the form of *message*, whose error has *retry_after* (seconds)."""
    faults = []
    if len(message) > MOST:
        faults.append(f"{len(message)} characters")
    if message.endswith(".") or not message.isprintable():
        faults.append("a full stop at the end, or a line break")
    if re.match(r"[A-Z][a-z]", message):
        faults.append("upper case")
    seconds = [float(number) for number in re.findall(r"(?<![\w.])(\d+(?:\.\d+)?) s\b", message)]
    if retry_after and not any(abs(number - retry_after) <= 1 for number in seconds):
        faults.append(f"no {retry_after:.1f} s")
    return faults
