"""``pay88 demo``: what the command line says about it. The demonstration itself needs the extras."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

SHORTEST, LONGEST = 12, 600

_DESCRIPTION = """\
Start an emulator of 88Pay on a free port of this machine and let urllib3, httpx (sync and async) and
aiohttp call it through one TokenManager, ten times as fast as real life: through a cold start, refreshes,
a storm of 401s and an outage of the token endpoint. Afterwards compare what the server saw with what the
package promises. Nothing leaves this machine.
"""
_EPILOG = "The exit code is 0 if every promise was kept, 1 if one was broken, 2 if an extra is missing."


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo", help="watch four HTTP stacks share one token", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=20.0,
        metavar="N",
        help=f"how long it takes, about; at least {SHORTEST} (default: 20)",
    )
    parser.set_defaults(run=_run, needs=("rich", "urllib3", "httpx", "aiohttp"))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None
    if not SHORTEST <= seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"must be between {SHORTEST} and {LONGEST}")
    return seconds


def _run(arguments: argparse.Namespace) -> int:
    from .demo import run  # late: it imports every stack

    return run(arguments.seconds)
