"""``pay88 check``: whether the configuration is good."""

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
  0    nothing failed
  1    something did
  2    wrong usage, or a library is missing
"""


@click.command(cls=Command, short_help="Say whether the configuration is good.", epilog=_EPILOG)
@options.configured
@options.as_json
def command(base_url: str | None, store: str | None, as_json: bool) -> int:
    """Say whether the configuration is good, one line a check: ok, failed and what to do, or skipped.

    The variables, the key and the URL, DNS, TCP and TLS, the store, this host's clock, the budget, who fetches, and
    the token endpoint. It sends one token request at most, and none where the fleet has a token or the budget is
    spent.
    """
    require("urllib3", extra="cli")
    from pay88_adapters.cli.checks import findings

    found: list[Finding] = []
    plain = is_plain()
    for finding in findings(options.environment(base_url, store)):
        found.append(finding)
        if not as_json:
            click.echo(finding.text if plain else click.style(finding.text, _COLOURS[finding.state]))
    good = all(finding.state != "failed" for finding in found)
    if as_json:
        click.echo(json.dumps({"ok": good, "checks": [asdict(finding) for finding in found]}))
    return 0 if good else 1
