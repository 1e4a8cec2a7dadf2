"""``pay88 check``: check the configuration."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from pay88_adapters.cli import options
from pay88_adapters.cli.app import Command, require
from pay88_adapters.cli.terminal import is_plain

if TYPE_CHECKING:
    from pay88_adapters.cli.checks import Finding

_COLOURS = {"ok": "green", "failed": "red", "skipped": "yellow"}
_EPILOG = """\b
Exit codes:
  0    no check failed
  1    a check failed
  2    usage error, or a missing library
"""


@click.command(cls=Command, short_help="Check the configuration.", epilog=_EPILOG)
@click.option("--fresh", is_flag=True, help="Send a token request even if the store has a token.")
@options.configured
@options.as_json
def command(fresh: bool, base_url: str | None, store: str | None, as_json: bool) -> int:
    """Check the configuration. Print a line for each check: ok, failed with a remedy, or skipped.

    The checks: environment variables, base URL, key, DNS, TCP, TLS, store, clock, token budget, refresh lease and
    token endpoint. At most one token request is sent, and none if the token budget is exhausted or the store has a
    token. With --fresh, the token endpoint is checked even if the store has a token.
    """
    require("urllib3", extra="cli")
    from pay88_adapters.cli.checks import findings

    found: list[Finding] = []
    plain = is_plain()
    for finding in findings(options.environment(base_url, store), fresh=fresh):
        found.append(finding)
        if not as_json:
            click.echo(finding.text if plain else click.style(finding.text, _COLOURS[finding.state]))
    good = all(finding.state != "failed" for finding in found)
    if as_json:
        click.echo(json.dumps({"ok": good, "checks": [asdict(finding) for finding in found]}))
    return 0 if good else 1
