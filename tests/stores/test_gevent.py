"""Stores in programs that gevent patches: before the manager is made, after it, and after it was used."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pay88_adapters.engine.store_link import OPERATION_TIMEOUT
from pay88_adapters.testing import Emulator
from support.servers import Valkey

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="no gevent here"),
]

PROGRAM = """
import sys, time
when, url, key, merchant_id, store = sys.argv[1:]

def patch():
    from gevent import monkey
    monkey.patch_all()

if when == "before":
    patch()
from pay88_adapters import Credentials, TokenManager
manager = TokenManager(Credentials(key, merchant_id), base_url=url, store=store)
if when == "after use":
    manager.invalidate(manager.get_token())
if when.startswith("after"):
    patch()
import gevent

began, ticks = time.monotonic(), []

def tick():
    while True:
        ticks.append(time.monotonic())
        gevent.sleep(0.01)

ticking = gevent.spawn(tick)
jobs = [gevent.spawn(manager.get_token) for _ in range(20)]
gevent.joinall(jobs, raise_error=True)
took = time.monotonic() - began
ticking.kill()
assert len({id(job.value) for job in jobs}) == 1
assert not manager.stats().store_degraded
print(took, max([later - earlier for earlier, later in zip(ticks, ticks[1:])], default=took))
"""


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Name a store."""
    if request.param == "sqlite":
        tmp_path.chmod(0o700)
        yield f"sqlite:///{tmp_path}/store.db"
        return
    with Valkey(tmp_path) as server:
        yield server.url


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("when", ["before", "after", "after use"])
def test_rule_17_greenlets_wait_no_longer_than_the_store_takes(when: str, store: str) -> None:
    """One token request for all, in a fraction of the timeout of a hanging store; the hub continues."""
    with Emulator() as emulator:
        command = [sys.executable, "-c", PROGRAM, when, emulator.url, emulator.api_key, emulator.merchant_id, store]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        took, gap = map(float, done.stdout.split())
        assert took < OPERATION_TIMEOUT / 2
        assert gap < OPERATION_TIMEOUT / 2
        assert emulator.journal.token_requests == 1 + (when == "after use")
