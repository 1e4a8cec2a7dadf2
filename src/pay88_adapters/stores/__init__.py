"""Shared stores: of this process (``memory``), of one host (``sqlite``) or of several hosts (``redis``).

``base`` is the interface: a record with its lease, and the history of the token budget. The caller passes the duration
of a lease and the content of a record. The share of each process in degraded mode is computed in ``members``.

May import: ``core``. Imported by: ``engine``, the adapters, ``testing`` and ``cli``.
"""

from __future__ import annotations

from pay88_adapters.core.errors import ConfigurationError, shorten

from .base import Store, StoreClock
from .memory import MemoryStore

MEMORY = "memory://"

_REDIS = ("redis", "rediss", "unix")


def open_store(url: str, clock: StoreClock) -> Store:
    """Return the store that *url* names.

    Raises:
        ConfigurationError: The URL is invalid, or its driver is not installed.
    """
    if url == MEMORY:
        return MemoryStore(clock.now)
    scheme = url.partition(":")[0].lower()
    # Imported here, because not every process needs both drivers.
    if scheme == "sqlite":
        from .sqlite import sqlite_store

        return sqlite_store(url, clock)
    if scheme.partition("+")[0] in _REDIS:
        from .redis import redis_store

        return redis_store(url, clock)
    raise ConfigurationError("store (PAY88_STORE) must be memory://, sqlite:////absolute/path or redis://host:port")


def open_fallback(url: str, clock: StoreClock) -> tuple[Store, str]:
    """Return the fallback store at *url*, and a name of the host that shares it.

    Raises:
        ConfigurationError: The URL is invalid.
    """
    if not url.startswith("sqlite:"):
        raise ConfigurationError(
            "fallback_store (PAY88_FALLBACK_STORE) must be sqlite:////absolute/path, a file of this host"
        )
    from .sqlite import sqlite_store

    store = sqlite_store(url, clock)
    return store, store.host


def checked_fallback(store: str, fallback: object) -> str | None:
    """Return the URL of a fallback store; raise :class:`ConfigurationError` if it cannot be one."""
    if fallback is None:
        return None
    if not isinstance(fallback, str):
        raise ConfigurationError(
            f"fallback_store must be a str, not {shorten(type(fallback).__name__, 60)}: pass a sqlite: URL"
        )
    if store == MEMORY:
        raise ConfigurationError(
            "fallback_store needs a shared store: set store (PAY88_STORE) to redis://host:port, too"
        )
    if store == fallback:
        raise ConfigurationError("fallback_store is the same as store: use another file")
    return fallback
