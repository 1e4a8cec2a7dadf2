"""The package's own threads, and what happens where none can be started."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio

from pay88_adapters import Credentials, TokenManager

_RUNS: list[Callable[[Callable[[], Coroutine[Any, Any, None]]], None]] = [lambda main: asyncio.run(main()), trio.run]


def _no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def manager(tmp_path: Path) -> TokenManager:
    """A manager with a store that may block."""
    tmp_path.chmod(0o700)
    return TokenManager(Credentials("sk_test_1", "MCH-1"), store=f"sqlite:///{tmp_path}/store.db")


@pytest.mark.parametrize("run", _RUNS, ids=["asyncio", "trio"])
def test_a_store_operation_that_raises_runs_once(
    run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None], manager: TokenManager
) -> None:
    """On a thread of its own: a second time, it would block the event loop."""
    threads: list[threading.Thread] = []

    def operation() -> None:
        threads.append(threading.current_thread())
        raise RuntimeError("a bug")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="a bug"):
            await manager.async_runner.run_store_operation(operation)

    run(main)
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


@pytest.mark.parametrize("run", _RUNS, ids=["asyncio", "trio"])
def test_a_store_operation_runs_where_no_thread_can_be_started(
    run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
    manager: TokenManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It finds out by itself that it must not block."""

    async def main() -> None:
        monkeypatch.setattr(threading.Thread, "start", _no_thread)
        assert await manager.async_runner.run_store_operation(threading.current_thread) is threading.current_thread()

    run(main)
