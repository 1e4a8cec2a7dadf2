"""``pay88 token``: print a token, for programs that are not written in Python."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable

import click

from pay88_adapters import Pay88Error, Token, TokenPolicy
from pay88_adapters.cli import options
from pay88_adapters.cli.app import Command
from pay88_adapters.clock import Clock
from pay88_adapters.core.policy import LIFETIME
from pay88_adapters.core.token import token_age

_EPILOG = """\b
Examples:
  curl -H @<(pay88 token) -X POST "https://api-sandbox.88pay.io/api/balance?id=$PAY88_MERCHANT_ID"
  eval "$(pay88 token --format env)"

\b
Exit codes:
  0    token printed
  1    no token available, or none that is valid for --min-validity seconds
  2    usage or configuration error
"""


class TokenTooOld(Pay88Error):
    """The token expires before ``--min-validity``."""


def _age(token: Token) -> float:
    """Return the seconds since the token request, rounded up: to 0.1 s."""
    return math.ceil(10 * token_age(token, Clock().now())) / 10


def _remaining(token: Token) -> float:
    """Return the remaining lifetime in seconds, rounded down to 0.1 s."""
    return max(math.floor(10 * (token.expires_in - token_age(token, Clock().now()))) / 10, 0.0)


def _headers(token: Token) -> str:
    return "\n".join(f"{name}: {value}" for name, value in token.headers().items())


def _curl(token: Token) -> str:
    return " ".join(f"-H {shlex.quote(f'{name}: {value}')}" for name, value in token.headers().items())


def _env(token: Token) -> str:
    values = {"PAY88_ACCESS_TOKEN": token.access_token, "PAY88_SESSION_ID": token.session_id}
    return "\n".join(f"{name}={shlex.quote(str(value))}" for name, value in values.items())


def _json(token: Token) -> str:
    return json.dumps(
        {
            "access_token": token.access_token,
            "session_id": token.session_id,
            "age": _age(token),
            "expires_in": _remaining(token),
            "headers": token.headers(),
        }
    )


_FORMATS: dict[str, Callable[[Token], str]] = {"headers": _headers, "json": _json, "curl": _curl, "env": _env}


@click.command(cls=Command, short_help="Print a token, from the store or a new one.", epilog=_EPILOG)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(_FORMATS)),
    default="headers",
    show_default=True,
    help="Output format: HTTP header lines, a JSON object, arguments for curl, or assignments for a shell.",
)
@click.option(
    "--min-validity",
    type=options.Number(0, LIFETIME - TokenPolicy().expiry_skew),
    default=0.0,
    metavar="SECONDS",
    help="Minimum remaining lifetime in seconds.",
)
@options.configured
@click.option("--json", "as_json", is_flag=True, help="Same as --format json.")
def command(form: str, min_validity: float, base_url: str | None, store: str | None, as_json: bool) -> None:
    """Print a token. This is the only command that prints a secret.

    With PAY88_STORE, it is the shared token, which is fetched only if the store has no valid one. Without PAY88_STORE
    (memory://), each run sends a token request.
    """
    with options.open_manager(options.environment(base_url, store)) as manager:
        token = manager.get_token(min_validity=min_validity)
        remaining = _remaining(token)
        if remaining < min_validity:
            raise TokenTooOld(
                f"the token expires in {remaining:.1f} s, before --min-validity {min_validity:g} s, and no newer one"
                " can be fetched now: retry later or lower --min-validity",
                retryable=True,
            )
        click.echo(_FORMATS["json" if as_json else form](token))
