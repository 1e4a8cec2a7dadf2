"""Read-only view of the shared store."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import NoReturn

from pay88_adapters import ConfigurationError, Credentials, Pay88Error, TokenPolicy
from pay88_adapters.core.endpoint import RATE_LIMITED_GROUPS, Endpoint, url_from_env
from pay88_adapters.core.history import wait_for
from pay88_adapters.core.secret import as_secret
from pay88_adapters.core.snapshot import Snapshot, load, record_key
from pay88_adapters.core.token import token_age
from pay88_adapters.engine.budget import TokenBudget
from pay88_adapters.engine.clock import Clock
from pay88_adapters.engine.pacing import Pacing
from pay88_adapters.stores import MEMORY, open_fallback, open_store
from pay88_adapters.stores.base import Store, StoreError


class StoreUnusable(Pay88Error):
    """The store is unavailable."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The refresh lease: an opaque id of its holder, and its remaining seconds."""

    holder: str
    remaining: float


@dataclass(frozen=True, slots=True)
class TokenAge:
    """Age and lifetime of the token in seconds, without the token."""

    age: float
    expires_in: float


@dataclass(frozen=True, slots=True)
class Cooldown:
    """The cooldown: its reason and its remaining seconds."""

    reason: str
    remaining: float


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """State of one merchant in the store."""

    tokens: dict[str, int]
    """Remaining token requests, by limit."""
    free_in: float
    """Seconds until the next unit of the budget is available; 0 if one is."""
    calls: dict[str, dict[str, int]] | None
    """Remaining API requests, by group and limit."""
    lease: Lease | None
    token: TokenAge | None
    cooldown: Cooldown | None
    forced: int
    """Remaining token requests for forced refreshes and retries; the rest is reserved for regular refreshes."""
    store_error: str | None = None
    """Why the shared store is unavailable, if this is the state of the fallback store."""

    def json(self) -> str:
        """Return it as a JSON document."""
        return json.dumps(asdict(self))


class StoreReader:
    """The state of one merchant in a store.

    Args:
        store: The store.
        base_url: The checked base URL.
        credentials: Credentials of the merchant.
        fallback: The state in the fallback store, for when the store is unavailable.
    """

    def __init__(
        self, store: Store, base_url: str, credentials: Credentials, fallback: StoreReader | None = None
    ) -> None:
        self._store = store
        self._fallback = fallback
        self._clock = Clock()
        self._merchant_id = credentials.merchant_id
        self._key = record_key(base_url, credentials)
        self._budget = TokenBudget(TokenPolicy(), store.budget, base_url)
        self._pacing = Pacing(store.budget, base_url)

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> StoreReader:
        """Open the store that *environ* configures.

        Raises:
            ConfigurationError: The configuration is invalid, or its store is private to each process.
        """
        credentials = Credentials.from_env(environ)
        endpoint = Endpoint.parse(url_from_env(environ))
        url = as_secret(environ.get("PAY88_STORE") or MEMORY)
        if url == MEMORY:
            raise ConfigurationError("memory:// is private to each process: set PAY88_STORE to the shared store")
        store, fallback = open_store(url, Clock()), None
        fallback_url = environ.get("PAY88_FALLBACK_STORE") or url
        if fallback_url != url:
            fallback = cls(open_fallback(fallback_url, Clock())[0], endpoint.base_url, credentials)
        return cls(store, endpoint.base_url, credentials, fallback)

    def peek(self, *, pacing: bool = False) -> StoreStatus:
        """Read the state, from the fallback store if the shared one is unavailable.

        Raises:
            StoreUnusable: Both are unavailable.
        """
        try:
            return self._read(pacing)
        except StoreError as error:
            if self._fallback is not None:
                with suppress(StoreUnusable):
                    return replace(self._fallback.peek(pacing=pacing), store_error=str(error))
            raise StoreUnusable(f"{error}: {error.remedy}", retryable=True) from None

    def _read(self, pacing: bool) -> StoreStatus:
        read_at = self._clock.now()
        view = self._store.peek(self._key)
        now = self._clock.now()
        record = view.record
        found = load(record.content, record.age, read_at, now, stored=record.stored) if record else None
        token, cooldown = _token_and_cooldown(found or Snapshot(), now)
        limited = self._budget.cooldown(self._merchant_id)
        if limited is not None and (cooldown is None or cooldown.remaining < limited[1]):
            cooldown = Cooldown(limited[0].message, limited[1])
        return StoreStatus(
            self._budget.left(self._merchant_id),
            self._free_in(),
            {group: self._pacing.left(group, self._merchant_id) for group in RATE_LIMITED_GROUPS} if pacing else None,
            Lease(view.owner.rpartition("/")[2][:8], view.lease_remaining) if view.owner else None,
            token,
            cooldown,
            self._budget.left_for_forced(self._merchant_id),
        )

    def _free_in(self) -> float:
        windows = self._budget.windows(self._merchant_id, from_reserve=False)
        return max(wait_for(window, self._store.budget.ages(window), 1) for window in windows)


def _token_and_cooldown(found: Snapshot, now: float) -> tuple[TokenAge | None, Cooldown | None]:
    token, cooldown_reason = found.token, found.cooldown_reason
    age = token_age(token, now) if token else 0.0
    return (
        TokenAge(age, token.expires_in) if token and age < token.expires_in else None,
        Cooldown(cooldown_reason.message, found.cooldown_until - now)
        if cooldown_reason and now < found.cooldown_until
        else None,
    )


def lines(status: StoreStatus) -> list[str]:
    """Return the text output, line by line."""
    groups = {"token requests left": status.tokens}
    groups |= {f"{group} requests left": left for group, left in (status.calls or {}).items()}
    shown = [
        f"{name if number == 0 else '':<26}{left:>5} of {limit}"
        for name, limits in groups.items()
        for number, (limit, left) in enumerate(limits.items())
    ]
    shown.insert(len(status.tokens), f"{'forced refreshes left':<26}{status.forced:>5}")
    if status.store_error:
        shown.insert(0, f"{'degraded mode':<26}{status.store_error}; state of this host's fallback store:")
    if status.free_in:
        shown.append(f"{'next token request':<26}in {status.free_in:.1f} s")
    lease, token, cooldown = status.lease, status.token, status.cooldown
    shown.append(f"{'lease holder':<26}{f'{lease.holder}, expires in {lease.remaining:.1f} s' if lease else 'none'}")
    shown.append(f"{'token age':<26}{f'{token.age:.1f} of {token.expires_in:g} s' if token else 'none'}")
    if cooldown:
        shown.append(f"{'cooldown':<26}{cooldown.remaining:.1f} s: {cooldown.reason}")
    return shown


def watch(reader: StoreReader, *, pacing: bool, interval: float) -> NoReturn:
    """Show the state every *interval* seconds until an interrupt."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            try:
                shown = Text("\n".join(lines(reader.peek(pacing=pacing))))
            except StoreUnusable as error:  # it may recover
                shown = Text(str(error), "red")
            live.update(shown, refresh=True)
            time.sleep(interval)
