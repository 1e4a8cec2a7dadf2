"""Tests beside the tools that users have: ``tox run -e tools``. They make the table of docs/tools/index.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toolkit import BY_LIBRARY, LIBRARIES, SHOWN, Open

from pay88_adapters import Credentials, TokenManager
from pay88_adapters.testing import Emulator
from support.stacks import Stack

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the table."""
    parser.addoption("--save-table", action="store_true", help="write the table of docs/tools/index.md anew")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers",
        "tool(name, *libraries, setting='', reason=''): whether a tool works beside HTTP clients, as the test shows",
    )
    config.stash[SHOWN] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Gather the table from the marks, and let the test that compares it with the page come last."""
    for item in items:
        for mark in item.iter_markers("tool"):
            name, *libraries = mark.args
            reason, setting = mark.kwargs.get("reason"), mark.kwargs.get("setting")
            cell = f"no: {reason}" if reason else f"with {setting}" if setting else "yes"
            for library in libraries or LIBRARIES:
                config.stash[SHOWN].setdefault(name, {})[library] = cell
    items.sort(key=lambda item: item.name.startswith("test_the_table_"))


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """88Pay on a loopback port."""
    with Emulator(call_limits=()) as emulator:
        yield emulator


@pytest.fixture
def manager(emulator: Emulator, pay88_isolated: None) -> TokenManager:
    """A manager for it, on a real clock."""
    return TokenManager(Credentials(emulator.api_key, emulator.merchant_id), base_url=emulator.url)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    """Every HTTP client in turn."""
    return str(request.param)


@pytest.fixture
def client(library: str, manager: TokenManager) -> Iterator[Open]:
    """Return what opens a client of the library, with the manager attached."""
    opened: list[Stack] = []

    def open_client() -> Stack:
        opened.append(BY_LIBRARY[library](manager))
        return opened[-1]

    yield open_client
    for each in opened:
        each.close()


@pytest.fixture
def no_secret(emulator: Emulator) -> Callable[[str | Path], None]:
    """Return what looks for every secret that the emulator knows, in a text or in all files of a folder."""

    def check(where: str | Path) -> None:
        if isinstance(where, Path):
            where = "\n".join(path.read_text(errors="replace") for path in where.rglob("*") if path.is_file())
        assert where
        assert [secret[:8] for secret in emulator.service.secrets() if secret in where] == []

    return check
