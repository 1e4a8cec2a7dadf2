"""Where managers meet: in this process, on this host, or in a fleet of hosts."""

from __future__ import annotations

from pay88_adapters.core.errors import ConfigurationError

from .base import Store, StoreClock
from .memory import MemoryStore

MEMORY = "memory://"

_REDIS = ("redis", "rediss", "unix")


def open_store(url: str, clock: StoreClock) -> Store:
    """Return the store that *url* names.

    Raises:
        ConfigurationError: It names none, or one whose driver is not installed.
    """
    if url == MEMORY:
        return MemoryStore(clock.now)
    scheme = url.partition(":")[0].lower()
    # Imported where they are needed: neither driver is for everybody.
    if scheme == "sqlite":
        from .sqlite import sqlite_store

        return sqlite_store(url, clock)
    if scheme.partition("+")[0] in _REDIS:
        from .redis import redis_store

        return redis_store(url, clock)
    raise ConfigurationError("store must be memory://, sqlite:////absolute/path or redis://host:port")


def open_fallback(url: str, clock: StoreClock) -> tuple[Store, str]:
    """Return the store in a file that *url* names, and a name for all that share it.

    Raises:
        ConfigurationError: It names none.
    """
    if not url.startswith("sqlite:"):
        raise ConfigurationError("fallback_store must be a file of this host, such as sqlite:////absolute/path")
    from .sqlite import sqlite_store

    store = sqlite_store(url, clock)
    return store, store.host


def checked_fallback(store: str, fallback: object) -> str | None:
    """Return the URL of a fallback store; raise :class:`ConfigurationError` if it cannot be one."""
    if fallback is None:
        return None
    if not isinstance(fallback, str):
        raise ConfigurationError(f"fallback_store must be a str, not {type(fallback).__name__}")
    if store == MEMORY:
        raise ConfigurationError("fallback_store is for a store that processes share: set store, too")
    if store == fallback:
        raise ConfigurationError("fallback_store is the same as store: name another file")
    return fallback
