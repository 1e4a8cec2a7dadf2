"""The ``pay88`` command: ``app`` is the group, ``commands`` has one module for each command.

May import: everything. Imported by: nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: The arguments after ``pay88``; by default those of this process.

    Raises:
        SystemExit: Always, with the exit code.
    """
    try:
        from .app import pay88  # not at the top: `import pay88_adapters.cli` needs no library
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print("pay88: click is not installed: pip install 'pay88-adapters[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    _open_missing_streams()
    try:
        pay88(arguments, prog_name="pay88")
    except OSError as error:  # such as a write to a full disk or to a closed output
        print(f"pay88: {error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        raise SystemExit(1) from None


def _open_missing_streams() -> None:
    """Open closed standard streams (a shell's ``>&-``) before a socket gets their file descriptor.

    Writing to such a stream fails, as for any other command.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY), "r", encoding="utf-8", closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8", closefd=False)
