"""What an import takes."""

from __future__ import annotations

from importlib import import_module

from . import timed


def imported(module: str) -> dict[str, float]:
    """Return what the import of *module* takes in a process that has imported next to nothing."""
    return timed((lambda: import_module(module)) if module else (lambda: None), 1)


def counted(module: str, times: int) -> dict[str, float]:
    """Import *module* if *times* is 1; the difference to 0 is what that costs."""
    return imported(module if times else "")
