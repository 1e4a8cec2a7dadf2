"""How long one request waits for its permits (rules 20 and 22), step by step."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pay88_adapters import RequestBudgetExhausted
from pay88_adapters.core.history import StorageResult
from pay88_adapters.engine.effects import Sleep, StoreOperation
from pay88_adapters.engine.pacing import CALL_LIMITS, Pacing, RateLimitPermit
from pay88_adapters.engine.permit_flow import acquire_rate_permit
from pay88_adapters.engine.token_flow import WaitBudget
from pay88_adapters.stores.memory import MemoryStorage
from support.processes import OLD, URL, Process, WorkerGroup


class Scene:
    """A process with a token, whose rate limit is reached until *free_in* seconds from now."""

    def __init__(self, free_in: float) -> None:
        fleet = WorkerGroup()
        self.clock = fleet.clock
        self.process: Process = fleet.process()
        self.process.call()
        self.storage = MemoryStorage(self.clock.now)
        self.pacing = Pacing(self.storage, URL)
        for _ in range(CALL_LIMITS[0].amount):
            assert not self.pacing.acquire("balance", OLD.merchant_id).wait
        self.clock.advance(61 - free_in)
        self.process.call()

    def flow(self, budget: WaitBudget) -> Generator[Any, Any, RateLimitPermit | None]:
        """Return the flow that gets a permit within *budget*."""

        def no_token() -> Any:
            raise AssertionError("there is a token")

        return acquire_rate_permit(self.process.state, self.pacing, "balance", no_token, budget)

    def acquire(self, budget: WaitBudget) -> RateLimitPermit | None:
        """Wait for a permit."""
        flow = self.flow(budget)
        result: object = None
        try:
            while True:
                effect = flow.send(result)
                if isinstance(effect, StoreOperation):
                    result = effect.operation()
                else:
                    assert isinstance(effect, Sleep)
                    self.clock.advance(effect.seconds)
        except StopIteration as stop:
            permit: RateLimitPermit | None = stop.value
            return permit


def test_rule_22_the_waits_of_one_request_share_what_it_may_wait() -> None:
    """The wait for one attempt's permit leaves less for the next one."""
    scene, budget = Scene(free_in=15), WaitBudget(20)
    before = scene.clock.now()
    assert scene.acquire(budget)
    assert budget.left == pytest.approx(20 - (scene.clock.now() - before))
    for _ in range(CALL_LIMITS[0].amount):
        scene.pacing.acquire("balance", OLD.merchant_id)
    scene.clock.advance(61 - 10)
    scene.process.call()
    before = scene.clock.now()
    with pytest.raises(RequestBudgetExhausted):
        scene.acquire(budget)
    assert scene.clock.now() == before


def test_rule_20_a_retry_does_not_wait_for_its_permit_beyond_the_total_timeout() -> None:
    """Although its other waits leave enough."""
    scene, budget = Scene(free_in=15), WaitBudget(20)
    budget.until = scene.clock.now() + 3
    before = scene.clock.now()
    with pytest.raises(RequestBudgetExhausted) as caught:
        scene.acquire(budget)
    assert scene.clock.now() == before
    assert caught.value.retry_after == pytest.approx(15, abs=1)


class Interrupting(Pacing):
    """A signal handler raises when the result has just been recorded."""

    def record_result(self, permit: RateLimitPermit, result: StorageResult, now: float) -> None:
        super().record_result(permit, result, now)
        raise KeyboardInterrupt


def test_rule_17_an_interrupt_leaves_no_permit_behind() -> None:
    """It would count as an attempt in progress for ten minutes."""
    scene = Scene(free_in=0)
    scene.clock.advance(2)
    scene.process.call()
    scene.pacing = pacing = Interrupting(scene.storage, URL)
    with pytest.raises(KeyboardInterrupt):
        scene.acquire(WaitBudget(20))
    assert not pacing._permits
