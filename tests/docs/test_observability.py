"""The code of docs/observability, run as it stands there; and its tables, held against the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from pay88_adapters import Stats, events
from pay88_adapters.events import Event
from pay88_adapters.testing import Emulator, Status

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^<!-- run: (\S+) -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
SOURCE = ROOT / "src" / "pay88_adapters"
PACKAGE = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}


def section(title: str) -> str:
    """Return what the page says under a heading."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_column(title: str) -> list[str]:
    """Return the names that the tables of a section begin their rows with."""
    cells = re.findall(r"^\| (`.*?) \|", section(title), re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


USE = """
import time
import urllib3
import pay88_adapters.urllib3

with pay88_adapters.urllib3.Pay88PoolManager(manager) as http:
    try:
        http.request("POST", manager.base_url + "/api/transactions/charges")
    except pay88_adapters.TokenEndpointUnavailable:
        pass
while manager.stats().fetching:  # until who fetched has told
    time.sleep(0.01)
print(manager.stats())
metrics.get_meter_provider().shutdown()
"""


def test_the_page_runs() -> None:
    """All of its code in one process, and a failing request: each of the four ways reports it, without a secret."""
    assert len(re.findall(r"^```python$", PAGE, re.MULTILINE)) == len(BLOCKS) == 5
    code = "".join([*BLOCKS.values(), USE])
    with Emulator() as emulator:
        emulator.faults.add(Status(400), on="token")
        variables = {
            "PAY88_API_KEY": emulator.api_key,
            "PAY88_MERCHANT_ID": emulator.merchant_id,
            "PAY88_BASE_URL": emulator.url,
        }
        command = [sys.executable, "-W", "error", "-c", code]
        ran = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, check=False, timeout=60, text=True
        )
        secrets = emulator.service.secrets()
    assert ran.returncode == 0, ran.stderr
    assert "a payment was not sent: TokenEndpointUnavailable" in ran.stdout
    assert "consecutive_failures=1" in ran.stdout
    assert "pay88.token.fetch.failures" in ran.stdout
    assert "WARNING pay88_adapters.tokens" in ran.stderr
    assert "DEBUG pay88_adapters.calls" in ran.stderr
    assert not [secret for secret in secrets if secret in ran.stdout + ran.stderr]


def test_the_tables_name_all_there_is() -> None:
    """Every event with its fields, every logger, every field of stats(), and every value for OpenTelemetry."""
    classes = {each for each in vars(events).values() if isinstance(each, type) and issubclass(each, Event)} - {Event}
    assert sorted(first_column("Events")) == sorted(each.__name__ for each in classes)
    for each in classes:
        (row,) = re.findall(rf"^\| `{each.__name__}` .*$", PAGE, re.MULTILINE)
        assert all(f"`{field.name}`" in row for field in fields(each) if field not in fields(Event))
    loggers = {name for text in PACKAGE.values() for name in re.findall(r'getLogger\("(pay88_adapters\.\w+)"\)', text)}
    assert set(first_column("Logs")) == loggers
    assert first_column("stats()") == [field.name for field in fields(Stats)]
    reported = set(re.findall(r'"(pay88\.[a-z_.]+)"', PACKAGE["otel.py"]))
    assert set(re.findall(r"`(pay88\.[a-z_.]+)`", PAGE)) == reported
