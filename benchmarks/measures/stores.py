"""Operations of a shared store, in one process of several that do the same."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from pay88_adapters import TokenPolicy
from pay88_adapters.clock import Clock
from pay88_adapters.engine.budget import TokenBudget
from pay88_adapters.engine.pacing import Pacing
from pay88_adapters.stores import open_store
from pay88_adapters.stores.base import LeaseResult

OPERATIONS = ("lead", "publish", "acquire", "pace")
LEASE = 20.0  # seconds
_CONTENT = "x" * 1_500  # about what a record holds
_EACH = 9  # units of one merchant: so the budget is never exhausted


def operate(url: str, operation: str, times: int, start: float, pause: float) -> list[float]:
    """Return the seconds that each of *times* operations took, from the instant *start* on (wall clock).

    Between two of them are *pause* seconds on average.
    """
    prepare = _operation(url, operation)
    prepare()()  # what is made once
    time.sleep(max(start - time.time(), 0.0))
    taken = []
    for _ in range(times):
        act = prepare()
        time.sleep(random.uniform(0, 2 * pause))
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return taken


def _operation(url: str, operation: str) -> Callable[[], Callable[[], Any]]:
    """Return what prepares the next operation."""
    store = open_store(url, Clock())
    budget, pacing = TokenBudget(TokenPolicy(), store.budget, url), Pacing(store.budget, url)
    numbers, own = count(), f"{os.getpid()}"

    def lead(key: str) -> LeaseResult:
        return store.try_acquire_lease(key, owner=own, known_version=0, lease=LEASE)

    def prepare() -> Callable[[], Any]:
        number = next(numbers)
        key, merchant = f"{own}-{number}", f"{own}-{number // _EACH}"
        if operation == "lead":
            return partial(lead, key)
        if operation == "publish":
            return partial(store.publish, key, fencing_token=lead(key).fencing_token or 0, content=_CONTENT, ttl=60.0)
        if operation == "acquire":
            return partial(budget.acquire, merchant, from_reserve=False)
        return partial(pacing.acquire, "transactions", merchant)

    return prepare
