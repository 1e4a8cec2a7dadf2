"""The record and the budget entries that managers exchange through a shared store."""

from __future__ import annotations

from collections.abc import Mapping

from pay88_adapters.core.history import Entry
from pay88_adapters.core.snapshot import NO_ENTRIES

from .credentials import Credentials
from .settings import Settings


def export_budget(settings: Settings, credentials: Credentials) -> Mapping[str, Mapping[str, float]]:
    """Return when each unit of the budget was acquired, as far as this process has recorded for other processes."""
    now, copy = settings.clock.now(), settings.store_client.local_copy
    if copy is None:
        return NO_ENTRIES
    return {
        key: {entry.id: now - entry.age for entry in copy.known(key)}
        for key in settings.budget.keys(credentials.merchant_id)
    }


def import_budget(
    settings: Settings, credentials: Credentials, entries: Mapping[str, Mapping[str, float]], now: float, seen: float
) -> tuple[float, float]:
    """Add the entries that another manager had at the instant *seen*; return the used reserve and the pace."""
    copy, budget = settings.store_client.local_copy, settings.budget
    for key, ttl in budget.keys(credentials.merchant_id).items():
        if copy is not None and key in entries:
            copy.import_history(key, [Entry(name, max(now - at, 0.0)) for name, at in entries[key].items()], ttl, seen)
            copy.mark_missing(key, entries[key])
    return budget.reserve_used(credentials.merchant_id), budget.pace(credentials.merchant_id)
