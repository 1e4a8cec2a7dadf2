"""How things stand in a store: for whoever only looks."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import NoReturn

from pay88_adapters import ConfigurationError, Credentials, Pay88Error, TokenPolicy
from pay88_adapters.core.endpoint import Endpoint, url_from_env
from pay88_adapters.core.history import wait_for
from pay88_adapters.core.secret import as_secret
from pay88_adapters.core.snapshot import Snapshot, load, record_key
from pay88_adapters.engine.budget import TokenBudget
from pay88_adapters.engine.clock import Clock
from pay88_adapters.engine.pacing import RATE_LIMITED_GROUPS, Pacing
from pay88_adapters.stores import MEMORY, open_fallback, open_store
from pay88_adapters.stores.base import Store, StoreError


class StoreUnusable(Pay88Error):
    """The store cannot be used at present."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who fetches a token just now."""

    owner: str
    remaining: float


@dataclass(frozen=True, slots=True)
class TokenAge:
    """How old the token is, in seconds; never the token."""

    age: float
    expires_in: float


@dataclass(frozen=True, slots=True)
class Bar:
    """Why no token may be requested."""

    why: str
    remaining: float


@dataclass(frozen=True, slots=True)
class Standing:
    """One look."""

    tokens: dict[str, int]
    """Token requests left, by limit."""
    free_in: float
    """Seconds until there is room for one; 0 where there is."""
    calls: dict[str, dict[str, int]] | None
    """Calls left, by group and limit."""
    lease: Lease | None
    token: TokenAge | None
    barred: Bar | None
    forced: int
    """Token requests left for forced refreshes and retries: the others are reserved for regular refreshes."""
    store_error: str | None = None
    """Why the shared store cannot be used, where this is what the fallback store of this host holds."""

    def json(self) -> str:
        """Return it as a document."""
        return json.dumps(asdict(self))


class Shared:
    """One merchant's part of a store.

    Args:
        store: The store.
        base_url: The checked one.
        credentials: Name the merchant, and the record of the token.
        fallback: What to look at while the store cannot be used.
    """

    def __init__(self, store: Store, base_url: str, credentials: Credentials, fallback: Shared | None = None) -> None:
        self._store = store
        self._fallback = fallback
        self._clock = Clock()
        self._merchant_id = credentials.merchant_id
        self._key = record_key(base_url, credentials)
        self._budget = TokenBudget(TokenPolicy(), store.budget, base_url)
        self._pacing = Pacing(store.budget, base_url)

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> Shared:
        """Return what *environ* configures.

        Raises:
            ConfigurationError: It cannot be looked at.
        """
        credentials = Credentials.from_env(environ)
        endpoint = Endpoint.parse(url_from_env(environ))
        url = as_secret(environ.get("PAY88_STORE") or MEMORY)
        if url == MEMORY:
            raise ConfigurationError(
                "memory:// is each process's own, and shows nothing to others: set PAY88_STORE to the fleet's store"
            )
        store, spare_url = open_store(url, Clock()), environ.get("PAY88_FALLBACK_STORE") or url
        spare = None if spare_url == url else open_fallback(spare_url, Clock())[0]
        fallback = None if spare is None else cls(spare, endpoint.base_url, credentials)
        return cls(store, endpoint.base_url, credentials, fallback)

    def peek(self, *, pacing: bool = False) -> Standing:
        """Look once; into the fallback store if the other cannot be used.

        Raises:
            StoreUnusable: Neither can be used.
        """
        try:
            return self._look(pacing)
        except StoreError as error:
            if self._fallback is not None:
                with suppress(StoreUnusable):
                    return replace(self._fallback.peek(pacing=pacing), store_error=str(error))
            raise StoreUnusable(f"{error}: start it, or correct PAY88_STORE", retryable=True) from None

    def _look(self, pacing: bool) -> Standing:
        asked_at = self._clock.now()
        look = self._store.peek(self._key)
        now = self._clock.now()
        record = look.record
        found = load(record.content, record.age, asked_at, now, stored=record.stored) if record else None
        token, barred = _told(found or Snapshot(), now)
        limited = self._budget.cooldown(self._merchant_id)
        if limited is not None and (barred is None or barred.remaining < limited[1]):
            barred = Bar(limited[0].message, limited[1])
        return Standing(
            self._budget.left(self._merchant_id),
            self._free_in(),
            {group: self._pacing.left(group, self._merchant_id) for group in RATE_LIMITED_GROUPS} if pacing else None,
            Lease(look.owner.rpartition("/")[2][:8], look.lease_remaining) if look.owner else None,
            token,
            barred,
            self._budget.left_for_forced(self._merchant_id),
        )

    def _free_in(self) -> float:
        windows = self._budget.windows(self._merchant_id, from_reserve=False)
        return max(wait_for(window, self._store.budget.ages(window), 1) for window in windows)


def _told(found: Snapshot, now: float) -> tuple[TokenAge | None, Bar | None]:
    token, cooldown_reason = found.token, found.cooldown_reason
    age = now - token.requested_at if token else 0.0
    return (
        TokenAge(age, token.expires_in) if token and age < token.expires_in else None,
        Bar(cooldown_reason.message, found.cooldown_until - now)
        if cooldown_reason and now < found.cooldown_until
        else None,
    )


def lines(standing: Standing) -> list[str]:
    """Return what is shown, line by line."""
    groups = {"token requests left": standing.tokens}
    groups |= {f"{group} calls left": left for group, left in (standing.calls or {}).items()}
    shown = [
        f"{name if number == 0 else '':<26}{left:>5} of {limit}"
        for name, limits in groups.items()
        for number, (limit, left) in enumerate(limits.items())
    ]
    shown.insert(len(standing.tokens), f"{'forced refreshes left':<26}{standing.forced:>5}")
    if standing.store_error:
        shown.insert(0, f"{'degraded mode':<26}{standing.store_error}; this host's fallback store holds:")
    if standing.free_in:
        shown.append(f"{'the next one':<26}in {standing.free_in:.1f} s")
    lease, token, barred = standing.lease, standing.token, standing.barred
    shown.append(
        f"{'fetching a token':<26}{f'{lease.owner}, for {lease.remaining:.1f} s at most' if lease else 'nobody'}"
    )
    shown.append(f"{'token':<26}{f'{token.age:.1f} of {token.expires_in:g} s old' if token else 'none'}")
    if barred:
        shown.append(f"{'no token request':<26}for {barred.remaining:.1f} s: {barred.why}")
    return shown


def watch(shared: Shared, *, pacing: bool, interval: float) -> NoReturn:
    """Show how things stand, again and again, until an interrupt."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            try:
                shown = Text("\n".join(lines(shared.peek(pacing=pacing))))
            except StoreUnusable as error:  # it may come back
                shown = Text(str(error), "red")
            live.update(shown, refresh=True)
            time.sleep(interval)
