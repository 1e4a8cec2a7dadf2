"""``pay88 budget``: show the token budget, the lease holder and the token's age."""

from __future__ import annotations

import click

from pay88_adapters.cli import options
from pay88_adapters.cli.app import Command, require
from pay88_adapters.cli.terminal import is_plain

_EPILOG = """\b
Exit codes:
  0    success
  1    the store is unavailable
  2    usage or configuration error, or a missing library
  130  interrupted, which ends the live view
"""


@click.command(cls=Command, short_help="Show the remaining token budget in the shared store.", epilog=_EPILOG)
@click.option(
    "--once", is_flag=True, help="Print once and exit. Default with --json, or if standard output is not a terminal."
)
@click.option(
    "--interval",
    type=options.Number(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Refresh interval of the live view in seconds.",
)
@click.option("--pacing", is_flag=True, help="Also show the remaining API requests of managers with pacing=True.")
@options.configured
@options.as_json
def command(
    once: bool, interval: float, pacing: bool, base_url: str | None, store: str | None, as_json: bool
) -> int | None:
    """Show the remaining token requests of each limit, the lease holder and the age of the shared token.

    The command is read-only: it consumes no budget and acquires no lease. It requires a shared store and assumes the
    default limits of TokenPolicy.
    """
    from pay88_adapters.cli.store_view import StoreReader, lines, watch

    reader = StoreReader.find(options.environment(base_url, store))
    if once or as_json or is_plain():
        status = reader.peek(pacing=pacing)
        click.echo(status.json() if as_json else "\n".join(lines(status)))
        return None
    require("rich", extra="cli")
    watch(reader, pacing=pacing, interval=interval)
    return None
