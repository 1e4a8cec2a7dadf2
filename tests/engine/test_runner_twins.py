"""The sync runner and the async one: where both have a method, they differ by ``await`` alone."""

from __future__ import annotations

import inspect
import re

import pytest

from pay88_adapters.engine.async_runner import AsyncRunner
from pay88_adapters.engine.sync_runner import SyncRunner

TWINS = ("call", "resume", "recover", "_run_request", "_run", "_do")


def without_await(method: object) -> str:
    """Return the source of a method as it would be without an event loop."""
    source = re.sub(r"\b(async|await) ", "", inspect.getsource(method))  # type: ignore[arg-type]
    return source.replace("AsyncCall", "Call").replace("self._spawn", "self.start")


@pytest.mark.parametrize("name", TWINS)
def test_the_runners_differ_by_await_alone(name: str) -> None:
    """A rule that one of them had to itself would be a rule for half of the clients."""
    assert without_await(getattr(AsyncRunner, name)) == without_await(getattr(SyncRunner, name))
