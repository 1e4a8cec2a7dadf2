"""The dashboard and the alerts name metrics and labels that there are, and the page has the same alerts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.metrics import Meter, MeterProvider, NoOpMeter, NoOpMeterProvider

from pay88_adapters import Credentials, TokenManager
from pay88_adapters.otel import instrument

DOCS = Path(__file__).parents[2] / "docs"
METRICS = (DOCS / "observability.md").read_text(encoding="utf-8")
PAGE = (DOCS / "dashboards" / "index.md").read_text(encoding="utf-8")
RUNBOOK = (DOCS / "runbook.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((DOCS / "dashboards" / "pay88.json").read_text(encoding="utf-8"))
ALERTS = json.loads((DOCS / "dashboards" / "pay88-alerts.json").read_text(encoding="utf-8"))
EXPRESSIONS = [
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
    *(rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]),
]


class Names(NoOpMeter):
    """Notes what is created, under the names that Prometheus gives it."""

    found: set[str]

    def _note(self, name: str, unit: str, *suffixes: str) -> None:
        base = name.replace(".", "_") + ("_seconds" if unit == "s" else "")
        self.found |= {base + suffix for suffix in suffixes}

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        """Note a counter."""
        self._note(name, unit, "_total")
        return super().create_counter(name, unit, description)

    def create_histogram(self, name: str, unit: str = "", description: str = "", **options: Any) -> Any:
        """Note a histogram."""
        self._note(name, unit, "_bucket", "_count", "_sum")
        return super().create_histogram(name, unit, description, **options)

    def create_observable_gauge(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> Any:
        """Note a gauge."""
        self._note(name, unit, "")
        return super().create_observable_gauge(name, callbacks, unit, description)


class Provider(NoOpMeterProvider):
    """Of one meter."""

    def __init__(self) -> None:
        self.meter = Names("names")
        self.meter.found = set()

    def get_meter(self, *args: Any, **kw: Any) -> Meter:
        """Return it."""
        return self.meter


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    """The names of all metrics, as Prometheus has them."""
    provider = Provider()
    assert isinstance(provider, MeterProvider)
    instrument(TokenManager(Credentials("sk_test_1", "MCH-COL-1")), meter_provider=provider)
    return provider.meter.found


def test_every_expression_names_metrics_that_there_are(metrics: set[str]) -> None:
    """And each metric has its place in a panel, but for a few that say the same in another way."""
    without_labels = [re.sub(r"by \([^)]*\)|\{[^}]*\}", "", each) for each in EXPRESSIONS]
    named = {name for each in without_labels for name in re.findall(r"pay88_\w+", each)}
    assert named - metrics == set()
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in metrics}
    unseen = families - {re.sub(r"_(bucket|count|sum)$", "", name) for name in named}
    assert unseen == {"pay88_token_shared_total", "pay88_token_budget_exhausted_total", "pay88_breaker_openings_total"}


def test_labels_are_attributes_of_the_metrics() -> None:
    """As the table on the page lists them."""
    labels = {name for each in EXPRESSIONS for text in re.findall(r"by \(([^)]*)\)", each) for name in text.split(", ")}
    labels |= {name for each in EXPRESSIONS for name in re.findall(r"[{,](\w+)=", each)}
    attributes = {name.replace(".", "_") for name in re.findall(r"`((?:pay88|http|error)\.[a-z_.]+)", METRICS)}
    assert labels - {"le"} - attributes == set()


def test_the_page_has_the_same_alerts() -> None:
    """Expression by expression."""
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert f"`{rule['expr']}`" in PAGE.replace("\\|", "|"), rule["alert"]


def test_every_alert_has_an_entry_in_the_runbook() -> None:
    """The alert links to it, and so does the page; there is no other entry."""
    alerts = [rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]]
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["runbook_url"].endswith(f"/runbook.html#{rule['alert'].lower()}")
            assert f"[{rule['alert']}](../runbook.md#{rule['alert'].lower()})" in PAGE
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == alerts


def test_the_dashboard_can_be_imported() -> None:
    """Each panel has an id, a place and a data source of its own choice."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids) == 10
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in DASHBOARD["panels"])
