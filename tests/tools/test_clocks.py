"""Frozen and moved clocks change nothing, and no printer of local variables shows a secret."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import freezegun
import pytest
import time_machine
from toolkit import Open

from pay88_adapters import TokenManager
from pay88_adapters.testing import Emulator

FREEZE: dict[str, Callable[[str], Any]] = {
    "freezegun": freezegun.freeze_time,
    "time-machine": lambda instant: time_machine.travel(instant, tick=False),
}


@pytest.mark.parametrize("tool", [pytest.param(tool, marks=pytest.mark.tool(tool)) for tool in FREEZE])
def test_a_token_is_as_old_as_it_is(tool: str, client: Open, emulator: Emulator, manager: TokenManager) -> None:
    """Before, in and after a frozen block, years from now or ago."""
    opened = client()
    url = f"{emulator.url}/api/balance"
    assert opened.request("POST", url).status == 200
    for instant in ("2020-01-01", "2050-01-01"):
        with FREEZE[tool](instant):
            assert opened.request("POST", url).status == 200
    assert opened.request("POST", url).status == 200
    assert manager.stats().token_requests == emulator.journal.token_requests == 1


@pytest.mark.parametrize("tool", FREEZE)
def test_a_token_from_a_frozen_block(tool: str, client: Open, emulator: Emulator) -> None:
    """It is valid afterwards, and it ages."""
    opened = client()
    url = f"{emulator.url}/api/balance"
    with FREEZE[tool]("2020-01-01"):
        assert opened.request("POST", url).status == 200
    assert opened.request("POST", url).status == 200
    assert emulator.journal.token_requests == 1


def fail(manager: TokenManager) -> None:
    """Fail with secrets in local variables."""
    token = manager.get_token()
    headers, access_token = token.headers(), token.access_token
    raise ValueError(f"a bug of the caller's, with {len(headers)} headers and {len(access_token)} characters")


def printed_by_rich(manager: TokenManager) -> str:
    """Return a traceback with local variables."""
    console = import_module("rich.console").Console(file=io.StringIO(), width=400)
    try:
        fail(manager)
    except ValueError:
        console.print(import_module("rich.traceback").Traceback(show_locals=True, locals_max_length=None))
    return str(console.file.getvalue())


def printed_by_structlog(manager: TokenManager) -> str:
    """Return a JSON document of a traceback with local variables."""
    structlog = import_module("structlog")
    tracer = structlog.tracebacks.ExceptionDictTransformer(show_locals=True)
    try:
        fail(manager)
    except ValueError:
        return json.dumps(tracer(sys.exc_info()))
    raise AssertionError


def printed_by_loguru(manager: TokenManager) -> str:
    """Return a traceback with values."""
    loguru, out = import_module("loguru").logger, io.StringIO()
    sink = loguru.add(out, diagnose=True, backtrace=True)
    try:
        fail(manager)
    except ValueError:
        loguru.opt(exception=True).error("it failed with {}", manager.get_token())
    loguru.remove(sink)
    return out.getvalue()


def printed_by_sentry(manager: TokenManager) -> str:
    """Return an event with local variables and breadcrumbs."""
    sentry_sdk = import_module("sentry_sdk")
    events: list[Any] = []
    sentry_sdk.init(
        dsn="https://key@sentry.invalid/1",
        before_send=lambda event, hint: events.append(event),
        include_local_variables=True,
        traces_sample_rate=0,
    )
    try:
        logging.getLogger("shop").warning("about to fail with %r", manager.get_token())
        fail(manager)
    except ValueError as error:
        sentry_sdk.capture_exception(error)
    sentry_sdk.init(dsn="")
    assert events
    return json.dumps(events, default=str)


@pytest.mark.parametrize("printed", [printed_by_rich, printed_by_structlog, printed_by_loguru, printed_by_sentry])
def test_local_variables_show_no_secret(
    printed: Callable[[TokenManager], str], manager: TokenManager, no_secret: Callable[[str | Path], None]
) -> None:
    """Not the beginning of one either."""
    text = printed(manager)
    assert "ValueError" in text
    no_secret(text)
    assert "eyJ" not in text
