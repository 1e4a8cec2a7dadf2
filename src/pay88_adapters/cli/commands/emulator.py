"""``pay88 emulator``: run the emulator, for clients in any language."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pay88_adapters.cli import options
from pay88_adapters.cli.app import Command, require

if TYPE_CHECKING:
    from pay88_adapters.cli.faults import Planned
    from pay88_adapters.testing.windows import Limits

_EPILOG = """\b
Faults, as WHERE:WHAT[=SECONDS][xTIMES][+AFTER], for one request by default:
  token:500            the next token request returns 500
  call:401x3           the next three API requests return 401
  call:503xall         all API requests return 503
  call:429+2           the third API request returns 429
  any:latency=0.5xall  every request takes half a second longer

WHERE is token, call, any or the start of a path. WHAT is a status code, latency=SECONDS, drip=SECONDS (for each
byte), reset (not executed), lost (executed, but without a response), truncated, garbage or huge.

\b
Exit codes:
  0    stopped with Ctrl-C or SIGTERM
  1    start failed, for example because the port is in use
  2    usage error, or a missing library
"""


def _limits(ctx: click.Context, param: click.Parameter, value: str) -> Limits:
    if value == "off":
        return ()
    from limits import parse_many

    try:
        return tuple((item.amount, float(item.get_expiry())) for item in parse_many(value))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a limit: write 'off', or limits such as 10/minute,100/hour"
        ) from None


def _faults(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[Planned]:
    if not values:
        return []
    from pay88_adapters.cli.faults import parse

    try:
        return [parse(value) for value in values]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _made_up(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value.startswith("sk_live_"):
        raise click.BadParameter("it is a live key: use a made-up key, such as sk_test_emulator")
    return value


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=Command, short_help="Run a server that behaves like 88Pay.", epilog=_EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--port", type=click.IntRange(0, 65535), default=8088, show_default=True, help="Port; 0 for a free one.")
@click.option(
    "--api-key",
    default="sk_test_emulator",
    show_default=True,
    callback=_made_up,
    help="API key to accept; use a made-up one.",
)
@click.option(
    "--merchant-id",
    default="MCH-COL-TEST-EMULATOR",
    show_default=True,
    help="Merchant id to accept; use a made-up one.",
)
@click.option(
    "--lifetime",
    type=options.Number(0, 86400, min_open=True),
    default=60.0,
    show_default=True,
    help="Lifetime of a token in seconds.",
)
@click.option(
    "--speed",
    type=options.Number(0, 1000, min_open=True),
    default=1.0,
    show_default=True,
    help="Clock speed-up factor.",
)
@click.option(
    "--token-limits",
    callback=_limits,
    default="10/minute,100/hour",
    show_default=True,
    metavar="LIMITS",
    help="Rate limits of token requests, or 'off'.",
)
@click.option(
    "--call-limits",
    callback=_limits,
    default="60/minute,1000/hour",
    show_default=True,
    metavar="LIMITS",
    help="Rate limits of transactions and of balance each, or 'off'.",
)
@click.option(
    "--fault",
    "faults",
    callback=_faults,
    multiple=True,
    metavar="WHERE:WHAT",
    help="Fault to inject, see below. Repeatable.",
)
@click.option("--tls", type=(_FILE, _FILE), metavar="CERT KEY", help="Certificate and key (PEM files) for HTTPS.")
@click.option("--json", "as_json", is_flag=True, help="Print each line as a JSON document.")
def command(
    host: str,
    port: int,
    api_key: str,
    merchant_id: str,
    lifetime: float,
    speed: float,
    token_limits: Limits,
    call_limits: Limits,
    faults: list[Planned],
    tls: tuple[Path, Path] | None,
    as_json: bool,
) -> None:
    """Run a server that behaves like 88Pay: expiring tokens, rate limits, error responses and fault injection.

    For clients in any language. It prints the environment variables to export, and a line for each request. It
    accepts made-up credentials and moves no money.
    """
    require("aiohttp", extra="testing")
    from pay88_adapters.cli.serving import serve, tls_context
    from pay88_adapters.engine.clock import Clock
    from pay88_adapters.testing import Emulator

    emulator = Emulator(
        api_key=api_key,
        merchant_id=merchant_id,
        lifetime=lifetime,
        token_limits=token_limits,
        call_limits=call_limits,
        clock=Clock(speed),
        ssl_context=None if tls is None else tls_context(*tls),
        host=host,
        port=port,
    )
    for planned in faults:
        emulator.faults.add(planned.fault, on=planned.on, times=planned.times, after=planned.after)
    serve(emulator, as_json=as_json)
