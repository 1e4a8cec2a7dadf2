"""``pay88 request``: one managed call."""

from __future__ import annotations

import click

from pay88_adapters.cli import options
from pay88_adapters.cli.app import Command, require

_EPILOG = """\b
Examples:
  pay88 request POST /api/balance
  pay88 request POST /api/transactions/charges --data @charge.json

\b
Exit codes:
  0    a status below 400
  1    a status of 400 or more, or no answer
  2    wrong usage or configuration, or a library is missing
"""


@click.command(cls=Command, short_help="Make one call, and show the answer.", epilog=_EPILOG)
@click.argument("method")
@click.argument("target", metavar="PATH")
@click.option("--data", metavar="TEXT", help="The body: as it is, or from a file (@file), or from standard input (@-).")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="May be given more than once.")
@click.option("--query", "fields", multiple=True, metavar="NAME=VALUE", help="May be given more than once.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, 600, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="To connect, and again between two pieces of the answer.",
)
@options.configured
@options.as_json
def command(
    method: str,
    target: str,
    data: str | None,
    headers: tuple[str, ...],
    fields: tuple[str, ...],
    timeout: float,
    base_url: str | None,
    store: str | None,
    as_json: bool,
) -> int:
    """Make one call to 88Pay, with a token, and show its answer without secrets.

    PATH follows the base URL; a full URL must be of its origin. A body is application/json unless a header says
    otherwise. What may execute twice is sent once, as the package does in any client; redirects are shown, not
    followed.
    """
    require("urllib3", extra="cli")
    from pay88_adapters.cli.calling import Call, show

    call = Call.parse(options.environment(base_url, store), method, target, data, headers, fields)
    answer = call.make(timeout)
    show(answer, as_json=as_json)
    return 0 if answer.status < 400 else 1
