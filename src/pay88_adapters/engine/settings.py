"""The parts of a manager: fixed for its lifetime, and shared by all that act for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from pay88_adapters.core.arguments import check_type
from pay88_adapters.core.breaker import BreakerPolicy
from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.errors import ConfigurationError
from pay88_adapters.core.policy import TokenPolicy
from pay88_adapters.core.retry import DEFAULT, RetryPolicy

from .budget import TokenBudget
from .clock import Clock, shared_on
from .credentials import Credentials, CredentialsSource
from .lifetimes import Lifetimes, lifetimes_on
from .pacing import Pacing
from .request_limits import RequestLimits
from .store_client import StoreAccess

_MAX_CONCURRENT = 32  # concurrent store operations for permits, per group


@dataclass
class Settings:
    """The parts of one manager, or of many: see :func:`shared_settings`.

    Attributes:
        rotating: Whether there is a credentials provider instead of fixed credentials.
        request_limits: Circuit breakers and rate limits of API requests, if the manager has any.
        random: Returns a random number in [0, 1), for jitter.
        budget: The token budget in the store.
        lifetimes: How long the clients and event loops have existed, of all managers on the clock.
    """

    endpoint: Endpoint
    policy: TokenPolicy
    clock: Clock
    store_client: StoreAccess
    rotating: bool
    retry: RetryPolicy = DEFAULT
    request_limits: RequestLimits | None = None
    random: Callable[[], float] = random.random
    budget: TokenBudget = field(init=False)
    lifetimes: Lifetimes = field(init=False)

    def __post_init__(self) -> None:
        self.budget = self.store_client.token_budget(self.policy, self.endpoint.base_url)
        self.lifetimes = lifetimes_on(self.clock)

    def on(self, clock: Clock, store_client: StoreAccess) -> Settings:
        """Return the same settings on another clock and its store, with empty counters."""
        limits = self.request_limits
        if limits is not None:
            limits = request_limits_for(store_client, self.endpoint, limits.pacing is not None, limits.policy)
        return shared_settings(self.endpoint, self.policy, clock, store_client, self.rotating, self.retry, limits)

    def longest_wait(self, token_timeout: float | None) -> float:
        """Return for how many seconds of the clock a request may wait. *token_timeout* is in real seconds."""
        longest = self.policy.max_wait
        return longest if token_timeout is None else min(token_timeout * self.clock.speed, longest)


def shared_settings(
    endpoint: Endpoint,
    policy: TokenPolicy,
    clock: Clock,
    store_client: StoreAccess,
    rotating: bool,
    retry: RetryPolicy,
    request_limits: RequestLimits | None,
) -> Settings:
    """Return the settings: the same object for all managers that differ in none of them."""
    known = shared_on(clock, "_pay88_settings", WeakValueDictionary[tuple[object, ...], Settings])
    key = (endpoint, policy, store_client, rotating, retry, request_limits)
    settings = known.get(key)
    if settings is None:
        settings = known[key] = Settings(endpoint, policy, clock, store_client, rotating, retry, request_limits)
    return settings


def checked_endpoint(store: object, base_url: str, credentials: CredentialsSource) -> Endpoint:
    """Return the endpoint at *base_url*; raise :class:`ConfigurationError` if the URL or the environment is invalid."""
    if not isinstance(store, str):
        raise ConfigurationError(f"store must be a str, not {type(store).__name__}")
    endpoint = Endpoint.parse(base_url)
    if isinstance(credentials, Credentials):
        endpoint.check_key(credentials)
    elif not callable(credentials):
        raise ConfigurationError("credentials must be Credentials(...) or a callable that returns them")
    return endpoint


def request_limits_for(
    store_client: StoreAccess, endpoint: Endpoint, pacing: object, breaker: BreakerPolicy | None
) -> RequestLimits | None:
    """Return the circuit breakers and rate limits, if any; raise :class:`ConfigurationError` for wrong types."""
    check_type("breaker", breaker, BreakerPolicy)
    if not isinstance(pacing, bool):
        raise ConfigurationError(f"pacing must be True or False, not {type(pacing).__name__}")
    if not pacing:
        return None if breaker is None else RequestLimits(None, breaker)
    at_once = _MAX_CONCURRENT if store_client.blocking else None
    return RequestLimits(Pacing(store_client.call_entries, endpoint.base_url, max_concurrent=at_once), breaker)
