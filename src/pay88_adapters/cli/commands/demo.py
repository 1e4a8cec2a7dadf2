"""``pay88 demo``: run the demo, which needs the extras."""

from __future__ import annotations

import click

from pay88_adapters.cli import options
from pay88_adapters.cli.app import Command, require

SHORTEST, LONGEST = 12, 600
_EPILOG = """\b
Exit codes:
  0    all guarantees kept
  1    a guarantee broken
  2    usage error, or a missing library
  130  interrupted
"""


@click.command(
    cls=Command,
    short_help="Run four HTTP clients that share one token.",
    epilog=_EPILOG,
)
@click.option(
    "--seconds",
    type=options.Number(SHORTEST, LONGEST),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="Approximate duration in seconds.",
)
@options.as_json
def command(seconds: float, as_json: bool) -> int:
    """Run four HTTP clients that share one token.

    The demo starts an emulator of 88Pay on a free port of this machine. urllib3, httpx (sync and async) and aiohttp
    send requests through one TokenManager, ten times as fast as real time. The run has a cold start, background
    refreshes, a 401 storm and an outage of the token endpoint. Then it compares the server's journal with the package's
    guarantees. It sends nothing to other machines.
    """
    require("rich", "urllib3", "httpx", "aiohttp", extra="all")
    from pay88_adapters.cli.demo import run  # not at the top: it imports every client library

    return run(seconds, as_json=as_json)
