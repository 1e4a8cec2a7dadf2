"""Isolated tests share no token, failures or used budget, wherever and whenever their managers were created."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import ConfigurationError, Credentials, TokenEndpointUnavailable, TokenManager
from pay88_adapters.events import CallWaited, Event
from pay88_adapters.testing import Emulator, ManualClock, Status, isolated
from pay88_adapters.urllib3 import Pay88PoolManager


class Service:
    """Code that creates its manager once, and an emulator with some failures of it."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.received: list[Event] = []
        self.manager = self.made(listeners=[self.received.append])
        self.http = Pay88PoolManager(self.manager)

    def made(self, **options: object) -> TokenManager:
        """Return a manager."""
        make: Callable[..., TokenManager] = TokenManager
        credentials = Credentials(self.emulator.api_key, self.emulator.merchant_id)
        return make(credentials, base_url=self.emulator.url, **options)

    def call(self) -> int:
        """Make a call with the manager that has been there all the time."""
        return self.http.request("GET", f"{self.emulator.url}/api/echo").status


@pytest.fixture
def service() -> Iterator[Callable[[], Service]]:
    """A service with a token, and with a budget of which three units are used."""

    def make(emulator: Emulator) -> Service:
        service = Service(emulator)
        emulator.faults.add(Status(503), on="token", times=2)
        assert service.call() == 200
        return service

    with Emulator(token_limits=()) as emulator:
        yield lambda: make(emulator)


def requests_in(service: Service, act: Callable[[], object]) -> int:
    """Return how many token requests *act* leads to."""
    before = service.emulator.journal.token_requests
    act()
    return service.emulator.journal.token_requests - before


def test_every_manager_starts_without_state(service: Callable[[], Service]) -> None:
    """Those that were made before and those that are made in the block; they share what they get there."""
    seen = service()
    with isolated():
        assert requests_in(seen, lambda: [seen.call(), seen.made().get_token(), seen.call()]) == 1
        assert seen.manager.stats().budget_left["10 per 1 minute"] == 9
        assert seen.manager.stats().token_requests == 1
    with isolated():
        assert requests_in(seen, seen.call) == 1


def test_afterwards_each_manager_is_as_it_was(service: Callable[[], Service]) -> None:
    """Its token, its counters and its budget."""
    seen = service()
    before = seen.manager.stats()
    with isolated():
        seen.call()
    after = seen.manager.stats()
    assert (after.token_requests, after.budget_left) == (before.token_requests, before.budget_left)
    assert requests_in(seen, seen.call) == 0


def test_failures_do_not_count_in_the_next_block(service: Callable[[], Service]) -> None:
    """An outage neither starts a cooldown there nor exhausts the budget."""
    seen = service()

    def fail() -> None:
        with pytest.raises(TokenEndpointUnavailable):
            seen.call()

    for _ in range(4):
        clock = ManualClock(skips_pauses=True)
        with isolated(clock), seen.emulator.faults.add(Status(503), on="token", times=None):
            assert requests_in(seen, fail) == 3
    with isolated():
        assert seen.call() == 200


def test_listeners_stay(service: Callable[[], Service]) -> None:
    """Those given at first, and those added later."""
    seen = service()
    added: list[Event] = []
    seen.manager.listen(added.append)
    seen.received.clear()
    with isolated():
        seen.call()
    for received in (seen.received, added):
        assert CallWaited in {type(event) for event in received}


def test_blocks_within_blocks(service: Callable[[], Service]) -> None:
    """Each starts empty, and leaves the outer one unchanged."""
    seen = service()
    with isolated():
        seen.call()
        with isolated():
            assert requests_in(seen, seen.call) == 1
        assert requests_in(seen, seen.call) == 0


def test_a_clock_of_ones_own(service: Callable[[], Service]) -> None:
    """Managers run on the clock that is given, and go back to their own."""
    seen, clock = service(), ManualClock()
    with isolated(clock):
        seen.call()
        clock.advance(60)
        assert requests_in(seen, seen.call) == 1
    assert requests_in(seen, seen.call) == 0


def test_what_is_not_isolated(service: Callable[[], Service], tmp_path: Path) -> None:
    """A manager with a clock of its own, a closed one, and what a file holds."""
    seen = service()
    clocked, closed = seen.made(clock=ManualClock()), seen.made()
    filed = seen.made(store=f"sqlite:///{tmp_path}/pay88.db")
    clocked.get_token()
    token = filed.get_token()
    closed.close()
    with isolated():
        assert requests_in(seen, clocked.get_token) == 0
        assert filed.get_token() == token
        with pytest.raises(ConfigurationError, match="closed"):
            closed.get_token()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_rule_17_a_fork_in_the_block_replaces_the_locks_from_before_it(service: Callable[[], Service]) -> None:
    """Another thread may hold them: the manager is afterwards as it was, in the child, too."""
    manager: Any = service().manager
    state = manager._state

    def is_free() -> bool:
        with ThreadPoolExecutor(1) as other:
            return bool(other.submit(state._lock.acquire, timeout=0.5).result())

    with isolated(), state._lock:
        assert manager._state is not state
        child = os.fork()
        if not child:
            os._exit(int(is_free()))
        assert not is_free()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1


def test_shared_managers(service: Callable[[], Service]) -> None:
    """shared() makes others in the block."""
    seen = service()
    credentials = Credentials(seen.emulator.api_key, seen.emulator.merchant_id)
    outside = TokenManager.shared(credentials, base_url=seen.emulator.url)
    with isolated():
        inside = TokenManager.shared(credentials, base_url=seen.emulator.url)
        assert inside is not outside
    assert TokenManager.shared(credentials, base_url=seen.emulator.url) is outside


def test_functions_are_decorated(service: Callable[[], Service]) -> None:
    """Plain ones and coroutine functions, each time they run."""
    seen = service()

    @isolated()
    def call(number: int) -> int:
        return requests_in(seen, seen.call) + number

    @isolated()
    async def acall(number: int) -> int:
        return await asyncio.to_thread(requests_in, seen, seen.call) + number

    assert [call(1), call(number=2)] == [2, 3]
    assert [asyncio.run(acall(1)), asyncio.run(acall(number=2))] == [2, 3]
    assert requests_in(seen, seen.call) == 0


def test_generators_are_not_decorated() -> None:
    """Their body runs after the call: pytest's fixtures, for one, which yield."""

    def fixture() -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigurationError, match=r"isolated\(\) cannot decorate the generator .*fixture"):
        isolated()(fixture)
    with pytest.raises(ConfigurationError, match=r"isolated\(\) can decorate functions, not "):
        isolated()(Service)
