"""Credentials, as far as the core needs them."""

from __future__ import annotations

from typing import Protocol


class ApiKey(Protocol):
    """An API key and its merchant: :class:`~pay88_adapters.Credentials`."""

    @property
    def api_key(self) -> str:
        """The API key, a secret."""
        ...

    @property
    def merchant_id(self) -> str:
        """The merchant's id, ``MCH-{COUNTRY}-{ID}``."""
        ...

    @property
    def digest(self) -> str:
        """A digest of both, which does not reveal them."""
        ...
