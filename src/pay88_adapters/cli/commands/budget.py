"""``pay88 budget``: what is left, and who is about to fetch."""

from __future__ import annotations

import click

from pay88_adapters.cli import options
from pay88_adapters.cli.app import Command, require
from pay88_adapters.cli.terminal import is_plain

_EPILOG = """\b
Exit codes:
  0    shown
  1    the store cannot be used
  2    wrong usage or configuration, or a library is missing
  130  interrupted, which is how the live view ends
"""


@click.command(cls=Command, short_help="Show what is left of the budget, and the fleet's token.", epilog=_EPILOG)
@click.option("--once", is_flag=True, help="Show it once; so does whatever is not a terminal, and --json.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks of the live view.",
)
@click.option("--pacing", is_flag=True, help="Also the calls left, which managers with pacing=True count.")
@options.configured
@options.as_json
def command(
    once: bool, interval: float, pacing: bool, base_url: str | None, store: str | None, as_json: bool
) -> int | None:
    """Show the token requests left in each window, who fetches a token just now, and how old the token is.

    It only looks: it takes no token, no lease and no unit of the budget. It needs a store that processes share, and
    the default limits of TokenPolicy.
    """
    from pay88_adapters.cli.standing import Shared, lines, watch

    shared = Shared.find(options.environment(base_url, store))
    if once or as_json or is_plain():
        standing = shared.peek(pacing=pacing)
        click.echo(standing.json() if as_json else "\n".join(lines(standing)))
        return None
    require("rich", extra="cli")
    watch(shared, pacing=pacing, interval=interval)
    return None
