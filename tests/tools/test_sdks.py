"""The code of docs/tools/sdks.md, with real SDKs and with generated ones in miniature."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import Any

import pytest
from generated import AuthenticatedClient, modules
from recipes import blocks, unmarked

from pay88_adapters import TokenManager
from pay88_adapters.httpx import attach
from pay88_adapters.testing import Emulator

PAGE = "tools/sdks"
START, *REST = blocks(PAGE, "sdk")
SDKS = {about: [block.text for block in found] for about, found in groupby(REST, key=lambda block: block.about)}


@pytest.mark.parametrize("sdk", [pytest.param(sdk, marks=pytest.mark.tool(*sdk.split())) for sdk in SDKS])
def test_an_sdk(sdk: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, pay88_isolated: None) -> None:
    """Each request has a token, and the SDK's own is not sent."""
    for name, value in emulator.environ.items():
        monkeypatch.setenv(name, value)
    for name, module in modules(sdk).items():
        monkeypatch.setitem(sys.modules, name, module)
    names: dict[str, Any] = {"__name__": "docs"}
    for text in (START.text, *SDKS[sdk]):
        exec(compile(text, PAGE, "exec"), names)
    assert emulator.journal.calls == len(SDKS[sdk])
    assert emulator.journal.token_requests == 1
    assert names["manager"].stats().bypassed == 0


def test_a_required_token_that_is_sent_bypasses_the_manager(emulator: Emulator, manager: TokenManager) -> None:
    """As the page says: it is counted."""
    client = AuthenticatedClient(base_url=emulator.url, token="unused")
    with attach(client.get_httpx_client(), manager) as payments:
        assert payments.post("/api/balance").status_code == 401
    assert manager.stats().bypassed == 1


def test_no_block_is_left_out() -> None:
    """Each is run."""
    assert START.about == "start"
    assert unmarked(PAGE) == 0
