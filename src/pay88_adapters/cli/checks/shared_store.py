"""Checks of the shared store, the token budget, the refresh lease and the token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

from pay88_adapters import (
    ConfigurationError,
    CredentialsRejected,
    Pay88Error,
    TokenBudgetExhausted,
    TokenManager,
    TokenPolicy,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.cli.options import wait_for_pending_fetch
from pay88_adapters.cli.store_view import StoreReader, StoreStatus
from pay88_adapters.core.errors import Failure, in_seconds, shorten
from pay88_adapters.engine.budget import TokenBudget
from pay88_adapters.engine.clock import Clock
from pay88_adapters.engine.store_link import run_with_timeout
from pay88_adapters.stores import MEMORY, open_fallback, open_store
from pay88_adapters.stores.base import REMEDY, Store, StoreError

from .configuration import Configuration
from .finding import Finding, failed, invalid, ok, skipped

_LEASE = 5.0  # seconds, of the lease that the check acquires
_AFTER_429 = "token endpoint returned 429; another client uses this merchant's token budget"
_OWN_CLOCK = ("sqlite", "memory")  # stores without a clock of their own
_REMEDIES: dict[type[Pay88Error], str] = {
    CredentialsRejected: (
        "set PAY88_API_KEY and PAY88_MERCHANT_ID to the values from the 88Pay dashboard, and check the base URL"
    ),
    TokenBudgetExhausted: "wait, and set one PAY88_STORE for all clients of this merchant",
    TokenRateLimited: "wait, and set one PAY88_STORE for all clients of this merchant",
    ConfigurationError: "correct the configuration",
}


class SharedStore:
    """The shared store, and the merchant's state in it.

    Args:
        configuration: The checked variables.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._store: Store | None = None
        self._store_url = MEMORY
        self._status: StoreStatus | None = None
        self.ahead: float | None = None
        """Seconds by which the store's clock is ahead of this host's."""

    def check_store(self) -> Iterator[Finding]:
        """Check that a lease can be acquired and a record written, under a key of their own."""
        url, fallback_url = self._configuration.store, self._configuration.fallback_store
        fallback: Store | None = None
        if fallback_url is not None:
            finding, fallback = _check_fallback(fallback_url, url)
            yield finding
        if url == MEMORY:
            yield skipped(
                "store", "memory:// is private to each process: set PAY88_STORE if there are several processes"
            )
            return
        try:
            store = open_store(url, Clock())
            took = run_with_timeout(lambda: _probe(store))
            if url.partition(":")[0] not in _OWN_CLOCK:
                self.ahead = run_with_timeout(lambda: store.budget.get_moving_window("", 1, 1)[0]) - time.time()
        except ConfigurationError as error:
            yield invalid("store", error, "correct PAY88_STORE")
        except StoreError as error:
            degraded = "until then, each process uses its share of the token budget"
            if fallback is not None and fallback_url is not None:
                self._store, self._store_url = fallback, fallback_url
                degraded = "until then, the processes of this host share PAY88_FALLBACK_STORE, which is checked below"
            yield failed("store", str(error), f"{error.remedy}; {degraded}")
        else:
            self._store, self._store_url = store, url
            yield ok("store", f"lease and record written in {took * 1000:.0f} ms")

    def check_shared(self) -> Iterator[Finding]:
        """Check the token budget and the lease. Read-only."""
        endpoint, credentials, store = self._configuration.endpoint, self._configuration.credentials, self._store
        if endpoint is None or credentials is None or store is None:
            unusable = "no shared store" if self._configuration.store == MEMORY else "the store is unavailable"
            why = unusable if store is None else self._configuration.missing
            yield from (skipped(name, why) for name in ("budget", "lease"))
            return
        try:
            status = self._status = run_with_timeout(StoreReader(store, endpoint.base_url, credentials).peek)
        except (Pay88Error, StoreError) as error:
            yield failed("budget", str(error), getattr(error, "remedy", REMEDY))
            yield skipped("lease", "the store failed")
            return
        left = ", ".join(f"{left} of {limit}" for limit, left in status.tokens.items())
        if status.free_in:
            remedy = f"wait {in_seconds(status.free_in)}, and set one PAY88_STORE for all clients of this merchant"
            yield failed("budget", f"exhausted ({left} left)", remedy)
        else:
            yield ok("budget", f"{left} left" + (", reserved for regular refreshes" if not status.forced else ""))
        lease = status.lease
        yield ok("lease", f"held by {lease.holder}, expires in {lease.remaining:.1f} s" if lease else "free")

    def token(self, *, reached: bool, fresh: bool) -> Finding:
        """Fetch a token, unless the store has one (and not *fresh*) or no token request may be sent."""
        status = self._status
        if status is not None and status.token is not None and not fresh:
            return ok("token", f"not requested: the store has one, {status.token.age:.0f} s old (--fresh requests one)")
        if status is not None and status.cooldown is not None:
            remaining, reason = status.cooldown.remaining, status.cooldown.reason
            return failed(
                "token",
                f"not requested, cooldown of {in_seconds(remaining)}: {reason}",
                f"wait {in_seconds(remaining)}",
            )
        if status is not None and status.free_in:
            return skipped("token", "not requested: the token budget is exhausted")
        if not self._configuration.fits:
            return skipped("token", "no valid key for this base URL")
        if not reached:
            return skipped("token", "the service is unreachable")
        try:
            if self._store is not None and status is not None and status.token is not None:
                return self._fetch_unshared(self._store)
            return self._fetch(self._store_url)
        except (Pay88Error, StoreError) as error:
            return failed("token", self._detail(error), _remedy(error))

    def _fetch(self, url: str) -> Finding:
        endpoint, credentials = self._configuration.endpoint, self._configuration.credentials
        assert endpoint is not None
        assert credentials is not None
        policy = TokenPolicy(fetch_attempts=1)
        with TokenManager(credentials, base_url=endpoint.base_url, store=url, policy=policy) as manager:
            with wait_for_pending_fetch(manager):
                began_at = time.monotonic()
                token = manager.get_token()
            return ok("token", f"valid for {token.expires_in:g} s, fetched in {time.monotonic() - began_at:.2f} s")

    def _detail(self, error: Pay88Error | StoreError) -> str:
        """Return what failed, without the advice in the error's message: the remedy says what to do."""
        credentials = self._configuration.credentials
        if credentials is None or isinstance(error, (StoreError, TokenResponseInvalid)) or error.status is None:
            return str(error)
        what = f"token endpoint returned {error.status} for {shorten(credentials.merchant_id, 40)}"
        if error.server_message:
            what += f": {error.server_message.rstrip('. ')}"
        return f"{what} (no further token request for {in_seconds(error.retry_after)})" if error.retry_after else what

    def _fetch_unshared(self, store: Store) -> Finding:
        """Fetch a token that *store* does not get: its workers keep theirs, whatever the result is (rules 5 and 10)."""
        endpoint, credentials = self._configuration.endpoint, self._configuration.credentials
        assert endpoint is not None
        assert credentials is not None
        budget = TokenBudget(TokenPolicy(), store.budget, endpoint.base_url)
        grant = budget.acquire(credentials.merchant_id, from_reserve=True)
        if not grant.granted:
            return skipped("token", f"not requested: no reserved token request for {in_seconds(grant.retry_in)}")
        try:
            return self._fetch(MEMORY)
        except TokenRateLimited as error:
            failure = Failure(TokenRateLimited, _AFTER_429, 429, None, error.retry_after, retryable=True)
            budget.rate_limited(credentials.merchant_id, failure)
            raise


def _remedy(error: Pay88Error | StoreError) -> str:
    if isinstance(error, StoreError):
        return error.remedy
    if error.status == 403:
        return "ask 88Pay to end the suspension or to allow this IP address"
    for kind, remedy in _REMEDIES.items():
        if isinstance(error, kind):
            return remedy
    return "check the base URL and proxies, then retry"


def _check_fallback(url: str, store: str) -> tuple[Finding, Store | None]:
    """Check the fallback store, and return it."""
    name, remedy = "fallback", "set PAY88_FALLBACK_STORE to a file of this host, and PAY88_STORE to another store"
    if store in (MEMORY, url):
        return failed(name, "it needs another PAY88_STORE to replace while that is unavailable", remedy), None
    try:
        fallback, _ = open_fallback(url, Clock())
        took = run_with_timeout(lambda: _probe(fallback))
    except ConfigurationError as error:
        return invalid(name, error, remedy), None
    except StoreError as error:
        return failed(name, str(error), remedy), None
    return ok(name, f"lease and record written in {took * 1000:.0f} ms"), fallback


def _probe(store: Store) -> float:
    """Acquire a lease and write a record that expires immediately; return the duration in seconds."""
    began_at = time.monotonic()
    result = store.try_acquire_lease("check", owner=uuid4().hex, known_version=-1, lease=_LEASE)
    if result.fencing_token is not None:  # if not, another check holds it
        store.publish("check", fencing_token=result.fencing_token, content="", ttl=0.0)
    return time.monotonic() - began_at
