"""The ``pay88`` command."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from pay88_adapters import __version__

from . import _demo

UNUSABLE, INTERRUPTED, CUT_OFF = 2, 130, 141  # the last two as shells count signals

_COMMANDS = (_demo,)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code; 2 stands for wrong usage or a missing library."""
    arguments = _parser().parse_args(argv)
    try:
        missing = [name for name in arguments.needs if not _is_installed(name)]
        if missing:
            return _unusable(missing)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("pay88: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return CUT_OFF
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pay88", description="Tools for 88Pay access tokens.")
    parser.add_argument("--version", action="version", version=f"pay88-adapters {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_to(commands)
    return parser


def _unusable(missing: Sequence[str]) -> int:
    needed = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
    print(f"pay88: {needed}: pip install 'pay88-adapters[all]'", file=sys.stderr)
    return UNUSABLE


def _is_installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
