"""Options and environment variables that several commands use."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from pay88_adapters import TokenManager, TokenPolicy
from pay88_adapters.core.secret import RedactedMapping

F = TypeVar("F", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A number in a range. click takes NaN for one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        return self.fail(f"{value!r} is not a number", param, ctx) if number != number else number


def _store_url(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value and re.match(r"[^:/]+://[^/]*@", value):
        raise click.BadParameter(
            "a password on the command line is visible in the process list: set PAY88_STORE instead"
        )
    return value


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
base_url = click.option("--base-url", metavar="URL", help="Base URL; overrides PAY88_BASE_URL and PAY88_ENVIRONMENT.")
store = click.option(
    "--store", metavar="URL", callback=_store_url, help="URL of the shared store; overrides PAY88_STORE."
)


def configured(command: F) -> F:
    """Add the configuration options to *command*."""
    return base_url(store(command))


def environment(base_url: str | None, store: str | None) -> Mapping[str, str]:
    """Return the environment variables, with the values of the options."""
    given = {"PAY88_BASE_URL": base_url, "PAY88_STORE": store}
    return RedactedMapping({**os.environ, **{name: value for name, value in given.items() if value is not None}})


@contextmanager
def open_manager(environ: Mapping[str, str]) -> Generator[TokenManager, None, None]:
    """Yield a manager, and wait for its pending fetch at the end. Print a warning if the store is unavailable."""
    with TokenManager.from_env(environ) as manager, wait_for_pending_fetch(manager):
        try:
            yield manager
        finally:
            if manager.stats().store_degraded:
                click.echo("pay88: warning: the store is unavailable (run `pay88 check` for the cause)", err=True)


@contextmanager
def wait_for_pending_fetch(manager: TokenManager) -> Generator[None, None, None]:
    """Wait for the pending fetch of *manager* at the end of the block.

    A fetch that ended with this process would leave its lease held: all workers would wait for its expiry.
    """
    try:
        yield
    finally:
        until = time.monotonic() + TokenPolicy().longest_fetch
        while manager.stats().fetching and time.monotonic() < until:
            time.sleep(0.01)
