"""What a manager is made of: fixed for its life, and shared by all that act for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.policy import TokenPolicy
from pay88_adapters.core.retry import DEFAULT, RetryPolicy

from .budget import TokenBudget
from .clock import Clock
from .request_limits import RequestLimits
from .store_client import StoreClient


@dataclass(slots=True)
class Settings:
    """The parts of one manager.

    Attributes:
        rotating: Whether a credentials provider takes the place of fixed credentials.
        request_limits: Circuit breakers and rate limits of API requests, if the manager has any.
        random: Returns a random number in [0, 1), for jitter.
        budget: The token budget in the store.
    """

    endpoint: Endpoint
    policy: TokenPolicy
    clock: Clock
    store_client: StoreClient
    rotating: bool
    retry: RetryPolicy = DEFAULT
    request_limits: RequestLimits | None = None
    random: Callable[[], float] = random.random
    budget: TokenBudget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = self.store_client.token_budget(self.policy, self.endpoint.base_url)
