"""The code of docs/emulator, run as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import urllib3

from pay88_adapters.testing import Emulator, Fault

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "emulator.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^<!-- run: (\S+) -->\n```(?:python|sh)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))

Run = Callable[[str], str]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """The service."""
    with Emulator() as running:
        yield running


@pytest.fixture
def run(emulator: Emulator) -> Run:
    """Return what runs commands of the page, and returns what they print."""
    if not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("the page's commands need curl and bash")
    help_text = subprocess.run(["curl", "--help", "all"], capture_output=True, text=True, check=True).stdout
    if "--json" not in help_text:
        pytest.skip("the page's commands need curl 7.82 or newer")

    def run(name: str) -> str:
        environment = {**os.environ, "PAGE": emulator.page_url.rstrip("/"), "no_proxy": "*"}
        command = ["bash", "-euo", "pipefail", "-c", BLOCKS[name]]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30).stdout

    return run


def test_python() -> None:
    """The failed token request is survived."""
    exec(BLOCKS["python"], {})


def test_a_fault(run: Run, emulator: Emulator) -> None:
    """It is planned, and listed with every kind there is; the next two requests fail."""
    printed = run("fault")
    assert all(f'"{kind.__name__}"' in printed for part in get_args(Fault) for kind in (get_args(part) or (part,)))
    http = urllib3.PoolManager(retries=False)
    statuses = [http.request("GET", f"{emulator.url}/api/echo").status for _ in range(3)]
    http.clear()
    assert statuses == [503, 503, 401]


def test_an_outage(run: Run, emulator: Emulator) -> None:
    """It is over in the end, and was the right one."""
    run("outage")
    assert list(emulator.faults) == []
    assert next(emulator.faults.numbers) == 2


def test_a_401_storm(run: Run, emulator: Emulator) -> None:
    """The current token is rejected, and nothing is held at the end."""
    http = urllib3.PoolManager(retries=False)
    keys = {"x-api-key": emulator.api_key, "x-merchant-id": emulator.merchant_id}
    http.request("POST", f"{emulator.url}/api/auth/token", headers=keys)
    run("storm")
    http.clear()
    assert list(emulator.faults) == []
    assert [token.rejected for token in emulator.service.current_tokens(emulator.clock.now())] == [True]


def test_actions(run: Run) -> None:
    """Each is done."""
    done = re.findall(r'"done": "(\w+)"', run("actions"))
    assert done == ["revoke_tokens", "rotate_key", "suspend", "reinstate", "reset_rate_limits", "drop_connections"]


def test_looking(run: Run) -> None:
    """The state, and the same as the first event."""
    printed = run("look")
    assert printed.startswith('{"now": ')
    assert '\nevent: state\ndata: {"now": ' in printed


def test_every_block_is_run_and_every_image_is_there() -> None:
    """No code on the page but what these tests run, and the command's own, which has tests of its own."""
    blocks = re.findall(r"^```(?:python|sh)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert [block for block in blocks if block not in BLOCKS.values()] == ["pay88 emulator --port 8088\n"]
    assert len(BLOCKS) == 6
    images = re.findall(r"images/[\w-]+\.png", PAGE)
    assert len(images) == 2
    assert all(0 < (DOCS / image).stat().st_size < 300_000 for image in images)
