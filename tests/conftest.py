"""What the scenarios share."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, Phase, settings

from support.sample import NUMBER, SIZE, examples
from support.stacks import STACKS, Stack, close_files
from support.worlds import Report, World

pytest_plugins = [
    "support.emulators",
    "support.redis_stores",
    "support.security",
    "support.sqlite_stores",
    "support.stores",
]  # fixtures that several files use

_REPORTED = pytest.StashKey[list[str]]()

# The same run again is the same run. New examples: --hypothesis-profile=default.
settings.register_profile("steady", derandomize=True, deadline=None, max_examples=examples(100))
settings.load_profile("steady")
# What breaks is not to be made small, only to be seen.
settings.register_profile(
    "mutation",
    derandomize=True,
    max_examples=20,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the command-line options of these tests."""
    parser.addoption("--save-images", action="store_true", help="put the images of docs/images there anew")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the sample."""
    left_out = {item for item in items if zlib.crc32(item.nodeid.encode()) % SIZE != NUMBER}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Return what takes a text for the end of the run: what the test has found out, or what it cost."""
    texts = request.config.stash.setdefault(_REPORTED, [])
    return lambda text: texts.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was reported; the list of what failed comes after it, and last."""
    texts = terminalreporter.config.stash.get(_REPORTED, [])
    if texts:
        terminalreporter.section("reported")
    for text in texts:
        terminalreporter.write_line(text)


@pytest.fixture(params=STACKS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[Stack]:
    """Each client library in turn."""
    result: type[Stack] = request.param
    return result


@pytest.fixture
def make_world(kind: type[Stack]) -> Iterator[Callable[..., World]]:
    """Make worlds with emulators set up in other ways."""
    with ExitStack() as stack:
        stack.callback(close_files)
        yield lambda **emulator: World(kind, stack, **emulator)


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """An emulator and a manager as they come."""
    return make_world()


@pytest.fixture
def one_world() -> Iterator[World]:
    """One with a single client library, for behaviour that all of them share."""
    with ExitStack() as stack:
        yield World(STACKS[0], stack)
