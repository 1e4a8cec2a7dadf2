"""``pay88 demo``. The demonstration itself needs the extras."""

from __future__ import annotations

import click

from pay88_adapters.cli import options
from pay88_adapters.cli.app import Command, require

SHORTEST, LONGEST = 12, 600


@click.command(
    cls=Command,
    short_help="Watch four HTTP stacks share one token.",
    epilog="The exit code is 0 if every promise was kept, 1 if one was broken, 2 if a library is missing.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(SHORTEST, LONGEST),
    default=20.0,
    metavar="N",
    help=f"How long it takes, about; at least {SHORTEST}. Default: 20.",
)
@options.as_json
def command(seconds: float, as_json: bool) -> int:
    """Watch four HTTP stacks share one token.

    Start an emulator of 88Pay on a free port of this machine and let urllib3, httpx (sync and async) and
    aiohttp call it through one TokenManager, ten times as fast as real life: through a cold start, refreshes,
    a storm of 401s and an outage of the token endpoint. Afterwards compare what the server saw with what the
    package promises. Nothing leaves this machine.
    """
    require("rich", "urllib3", "httpx", "aiohttp", extra="all")
    from pay88_adapters.cli.demo import run  # late: it imports every stack

    return run(seconds, as_json=as_json)
