"""The store, what is left of the budget, and a token."""

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
)
from pay88_adapters.cli.options import finishing
from pay88_adapters.cli.standing import Shared, Standing
from pay88_adapters.engine.clock import Clock
from pay88_adapters.engine.store_link import run_with_timeout
from pay88_adapters.stores import MEMORY, open_fallback, open_store
from pay88_adapters.stores.base import Store, StoreError

from .configuration import Configuration
from .finding import Finding, failed, ok, skipped

_LEASE = 5.0  # seconds, of the trial
_OWN_CLOCK = ("sqlite", "memory")  # stores without a clock of their own
_REMEDIES: dict[type[Pay88Error], str] = {
    CredentialsRejected: "set PAY88_API_KEY and PAY88_MERCHANT_ID to the values from the 88Pay dashboard",
    TokenBudgetExhausted: "wait, and let all that use this merchant share one PAY88_STORE",
    TokenRateLimited: "wait, and let all that use this merchant share one PAY88_STORE",
    ConfigurationError: "correct the configuration",
}


class Fleet:
    """What is shared with others.

    Args:
        configuration: What was checked before.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._store: Store | None = None
        self._store_url = MEMORY
        self._standing: Standing | None = None
        self.ahead: float | None = None
        """Seconds by which the store's clock is ahead of this host's."""

    def check_store(self) -> Iterator[Finding]:
        """Check that the store takes a lease and a record, beside those of the fleet."""
        url, spare_url = self._configuration.store, self._configuration.fallback_store
        spare: Store | None = None
        if spare_url is not None:
            finding, spare = _check_fallback(spare_url, url)
            yield finding
        if url == MEMORY:
            yield skipped("store", "memory:// is for one process: set PAY88_STORE where there are several")
            return
        try:
            store = open_store(url, Clock())
            took = run_with_timeout(lambda: _try(store))
            if url.partition(":")[0] not in _OWN_CLOCK:
                self.ahead = run_with_timeout(lambda: store.budget.get_moving_window("", 1, 1)[0]) - time.time()
        except ConfigurationError as error:
            yield failed("store", str(error), "correct PAY88_STORE, or install what its driver needs")
        except StoreError as error:
            meanwhile = "each process goes on alone"
            if spare is not None and spare_url is not None:
                self._store, self._store_url = spare, spare_url
                meanwhile = "the processes of this host share PAY88_FALLBACK_STORE, which is checked below"
            yield failed("store", str(error), f"start it, or correct PAY88_STORE; meanwhile {meanwhile}")
        else:
            self._store, self._store_url = store, url
            yield ok("store", f"a lease and a record in {took * 1000:.0f} ms")

    def check_shared(self) -> Iterator[Finding]:
        """Look at the budget and at the lease, and take nothing."""
        endpoint, credentials, store = self._configuration.endpoint, self._configuration.credentials, self._store
        if endpoint is None or credentials is None or store is None:
            why = "there is no store to look into" if store is None else "there is no key and URL to look for"
            yield from (skipped(name, why) for name in ("budget", "lease"))
            return
        try:
            standing = self._standing = run_with_timeout(Shared(store, endpoint.base_url, credentials).peek)
        except (Pay88Error, StoreError) as error:
            yield failed("budget", str(error), "start the store, or correct PAY88_STORE")
            yield skipped("lease", "the store failed")
            return
        left = ", ".join(f"{left} of {limit}" for limit, left in standing.tokens.items())
        if standing.free_in:
            remedy = f"wait {standing.free_in:.0f} s, and let all that use this merchant share one PAY88_STORE"
            yield failed("budget", f"it is spent ({left} left)", remedy)
        else:
            yield ok("budget", f"{left} left" + (", reserved for regular refreshes" if not standing.forced else ""))
        lease = standing.lease
        yield ok("lease", f"{lease.owner} fetches a token, for {lease.remaining:.1f} s at most" if lease else "free")

    def token(self, *, reached: bool) -> Finding:
        """Get a token, unless the fleet has one, or none may be requested."""
        standing = self._standing
        if standing is not None and standing.token is not None:
            return ok("token", f"not asked for: the fleet has one, {standing.token.age:.0f} s old")
        if standing is not None and standing.barred is not None:
            remaining, why = standing.barred.remaining, standing.barred.why
            return failed("token", f"not asked for, for {remaining:.0f} s more: {why}", f"wait {remaining:.0f} s")
        if standing is not None and standing.free_in:
            return skipped("token", "no token request may be sent")
        if not self._configuration.fits:
            return skipped("token", "there is no key for this URL")
        if not reached:
            return skipped("token", "the service cannot be reached")
        try:
            return self._ask()
        except Pay88Error as error:
            return failed("token", str(error), _remedy(error))

    def _ask(self) -> Finding:
        endpoint, credentials = self._configuration.endpoint, self._configuration.credentials
        assert endpoint is not None
        assert credentials is not None
        policy = TokenPolicy(fetch_attempts=1)
        with TokenManager(credentials, base_url=endpoint.base_url, store=self._store_url, policy=policy) as manager:
            with finishing(manager):
                began_at = time.monotonic()
                token = manager.get_token()
            return ok("token", f"good for {token.expires_in:g} s, in {time.monotonic() - began_at:.2f} s")


def _remedy(error: Pay88Error) -> str:
    for kind, remedy in _REMEDIES.items():
        if isinstance(error, kind):
            return remedy
    return "check the base URL and proxies, and try again"


def _check_fallback(url: str, store: str) -> tuple[Finding, Store | None]:
    """Check that the file that this host's processes share meanwhile takes a lease and a record; return it, too."""
    name, remedy = "fallback", "correct PAY88_FALLBACK_STORE: a file of this host, beside the PAY88_STORE of all"
    if store in (MEMORY, url):
        return failed(name, "there is no other store that it could stand in for", remedy), None
    try:
        spare, _ = open_fallback(url, Clock())
        took = run_with_timeout(lambda: _try(spare))
    except (ConfigurationError, StoreError) as error:
        return failed(name, str(error), remedy), None
    return ok(name, f"a lease and a record in {took * 1000:.0f} ms"), spare


def _try(store: Store) -> float:
    """Take a lease and write a record that is forgotten at once; return for how many seconds that took."""
    began_at = time.monotonic()
    lead = store.try_acquire_lease("check", owner=uuid4().hex, known=-1, lease=_LEASE)
    if lead.fencing_token is not None:  # or else another check is at it
        store.publish("check", fencing_token=lead.fencing_token, content="", keep=0.0)
    return time.monotonic() - began_at
