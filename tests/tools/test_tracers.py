"""What tracers record of requests: the table of docs/tools/tracing.md, and no secret."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest
from recipes import DOCS, blocks, text_of, unmarked, until
from toolkit import BY_LIBRARY

from pay88_adapters.requests import CredentialsRejected
from pay88_adapters.testing import Emulator, RefuseToken, Status

PAGE = "tools/tracing"
HERE = Path(__file__).parent
TRACERS = {
    "OpenTelemetry": "opentelemetry",
    "Sentry": "sentry",
    "Datadog": "datadog",
    "Elastic APM": "elastic",
    "New Relic": "newrelic",
}
MODULES = {
    "opentelemetry": "opentelemetry.sdk",
    "own_span": "opentelemetry.sdk",
    "sentry": "sentry_sdk",
    "datadog": "ddtrace",
    "elastic": "elasticapm",
    "newrelic": "newrelic",
}
LIBRARIES = ("urllib3", "requests", "httpx", "aiohttp")

Check = Callable[[str | Path], None]
Trace = Callable[[str, str], list[tuple[str, bool]]]


def table() -> dict[tuple[str, str], str]:
    """Return the cells of the page, by tracer and library."""
    rows = re.findall(r"^\| (.*) \|$", text_of(PAGE).partition("<!-- end of table -->")[0], re.MULTILINE)
    cells = [row.split(" | ") for row in rows]
    return {(name, library): cell for name, *row in cells[1:] for library, cell in zip(LIBRARIES, row, strict=True)}


@pytest.fixture
def traced(emulator: Emulator, tmp_path: Path, no_secret: Check) -> Trace:
    """Return what sends three requests, the first rejected with 401, and gives the spans."""

    def run(tracer: str, library: str) -> list[tuple[str, bool]]:
        pytest.importorskip(MODULES[tracer])
        emulator.faults.add(RefuseToken(), on="call")
        [settings] = re.findall(r"^```ini\n(.*?)^```$", text_of(PAGE), re.DOTALL | re.MULTILINE)
        config = tmp_path / "newrelic.ini"
        config.write_text("[newrelic]\napp_name = shop\nlicense_key = made-up\ndeveloper_mode = true\n")
        environment = {
            **os.environ,
            **emulator.environ,
            **dict(line.split("=", 1) for line in settings.splitlines()),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
            "NEW_RELIC_CONFIG_FILE": str(config),
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
            "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        }
        command = [sys.executable, str(HERE / "traced.py"), tracer, library]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout, done.stderr
        no_secret(done.stdout)
        found = json.loads(done.stdout)
        assert found["recorded"]
        return [(path, failed) for path, failed in found["spans"]]

    return run


@pytest.mark.parametrize(
    ("tracer", "library"), [pytest.param(*cell, marks=pytest.mark.tool(*cell)) for cell in table()]
)
def test_a_tracer(tracer: str, library: str, traced: Trace) -> None:
    """Either each request has a span, or each attempt; and token requests have some, or none."""
    spans = traced(TRACERS[tracer], library)
    tokens = [path for path, _ in spans if path == "/api/auth/token"]
    seen = {3: "requests", 4: "attempts"}[len(spans) - len(tokens)]
    assert table()[tracer, library] == f"{seen}, token requests" if tokens else seen


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_span_per_request(library: str, traced: Trace) -> None:
    """And no error where the caller gets a response."""
    spans = traced("own_span", library)
    assert [failed for path, failed in spans if path == "/api/balance"] == [False] * 3


def test_captured_headers_are_seen_without_the_setting(emulator: Emulator, tmp_path: Path) -> None:
    """So the setting of the page is what redacts them."""
    environment = {
        **os.environ,
        **emulator.environ,
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST": ".*",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(HERE / "traced.py"), "opentelemetry", "httpx"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert [secret for secret in emulator.service.secrets() if secret in done.stdout]


def test_the_metrics_of_the_page(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, no_secret: Check, pay88_isolated: None
) -> None:
    """All that the alerts name is exposed."""
    for name, value in emulator.environ.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    [block] = blocks(PAGE, "prometheus")
    exec(block.text, names)
    manager = names["manager"]
    emulator.faults.add(RefuseToken(), on="call")
    with BY_LIBRARY["requests"](manager) as client:
        assert client.request("POST", f"{emulator.url}/api/balance").status == 200
        manager.invalidate(manager.get_token())
        emulator.faults.add(Status(401), on="token", times=None)
        with pytest.raises(CredentialsRejected):
            client.request("POST", f"{emulator.url}/api/balance")
    failures = 'pay88_token_fetch_failures_total{error_type="CredentialsRejected"} 1.0'
    until(lambda: failures in generate_latest(REGISTRY).decode(), "no failure")  # a fetch emits events after its end
    exposed = generate_latest(REGISTRY).decode()
    no_secret(exposed)
    assert 'pay88_token_rejections_total{pay88_token_replaced="true"} 1.0' in exposed
    assert 'pay88_call_not_sent_total{error_type="CredentialsRejected",pay88_call_group="balance"} 1.0' in exposed
    assert 'pay88_token_budget_remaining{pay88_token_budget_limit="100 per 1 hour"}' in exposed
    expressions = [
        expression
        for name in ("pay88-alerts.json", "pay88.json")
        for expression in re.findall(r'"expr": "(.*)"', (DOCS / "dashboards" / name).read_text(encoding="utf-8"))
    ]
    named = set(re.findall(r"pay88_\w+(?=[\[{)])", " ".join(expressions)))
    assert len(named) > 9
    assert [name for name in named if name not in exposed] == []


def test_no_block_is_left_out() -> None:
    """Each is run."""
    assert unmarked(PAGE) == 0
