"""``pay88 request``: send one API request."""

from __future__ import annotations

import click

from pay88_adapters.cli import options
from pay88_adapters.cli.app import Command, require

_EPILOG = """\b
Examples:
  pay88 request POST /api/balance --query id="$PAY88_MERCHANT_ID"
  pay88 request POST /api/transactions/charges --data @charge.json

\b
Exit codes:
  0    status code below 400
  1    status code of 400 or more, or no response
  2    usage or configuration error, or a missing library
"""


@click.command(cls=Command, short_help="Send one request and print the response.", epilog=_EPILOG)
@click.argument("method")
@click.argument("target", metavar="PATH")
@click.option("--data", metavar="TEXT", help="Request body: TEXT, @FILE, or @- for standard input.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Request header. Repeatable.")
@click.option("--query", "fields", multiple=True, metavar="NAME=VALUE", help="Query parameter. Repeatable.")
@click.option(
    "--timeout",
    type=options.Number(0, 600, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Connect and read timeout in seconds.",
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
    """Send one request to 88Pay, with a token, and print the response with secrets redacted.

    PATH starts with a slash and is appended to the base URL; a full URL must have the same origin. The body is
    application/json unless a header says otherwise. Idempotent requests are retried. Others, such as a payment, are
    retried only after a 429, or if no connection was made. Redirects are printed, not followed.
    """
    require("urllib3", extra="cli")
    from pay88_adapters.cli.sending import Call, show

    call = Call.parse(options.environment(base_url, store), method, target, data, headers, fields)
    response = call.send(timeout)
    show(response, as_json=as_json)
    return 0 if response.status < 400 else 1
