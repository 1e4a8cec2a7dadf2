"""The ``pay88`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: What follows ``pay88``; those of this process unless given.

    Raises:
        SystemExit: Always, with the exit code.
    """
    try:
        from .app import pay88  # late: `import pay88_adapters.cli` needs no library
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print("pay88: click is not installed: pip install 'pay88-adapters[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    pay88(arguments, prog_name="pay88")
