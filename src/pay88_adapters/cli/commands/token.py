"""``pay88 token``: a token for whatever is not Python."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable

import click

from pay88_adapters import Pay88Error, Token, TokenManager, TokenPolicy
from pay88_adapters.cli import options
from pay88_adapters.cli.app import Command
from pay88_adapters.clock import Clock
from pay88_adapters.core.policy import LIFETIME

_EPILOG = """\b
Examples:
  curl -H @<(pay88 token) -X POST "$PAY88_BASE_URL/api/balance"
  eval "$(pay88 token --format env)"

\b
Exit codes:
  0    here it is
  1    there is none that is valid for long enough, and none can be fetched
  2    wrong usage or configuration
"""


class TokenTooOld(Pay88Error):
    """No token lives as long as it should."""


def _remaining(token: Token) -> float:
    """Return for how many seconds *token* is valid."""
    return max(math.floor(10 * (token.expires_in - (Clock().now() - token.requested_at))) / 10, 0.0)


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
    help="Two header lines; JSON; arguments for curl, quoted for a shell; or assignments, quoted for a shell.",
)
@click.option(
    "--min-validity",
    type=click.FloatRange(0, LIFETIME - TokenPolicy().expiry_skew),
    default=0.0,
    metavar="SECONDS",
    help="For which it should stay usable.",
)
@options.configured
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def command(form: str, min_validity: float, base_url: str | None, store: str | None, as_json: bool) -> None:
    """Print a token: this is the one command that shows a secret.

    With PAY88_STORE it is the one that the fleet uses, and costs a token request only where the fleet would have
    needed one. With memory://, which is what there is without PAY88_STORE, it costs one each time.
    """
    with TokenManager.from_env(options.environment(base_url, store)) as manager, options.finishing(manager):
        token = manager.get_token(min_validity=min_validity)
        remaining = _remaining(token)
        if remaining < min_validity:
            raise TokenTooOld(
                f"the token expires in {remaining:.1f} s, before --min-validity {min_validity:g} s, and no newer one"
                " can be fetched; try again later, or lower it",
                retryable=True,
            )
        click.echo(_FORMATS["json" if as_json else form](token))
