"""Credentials from the point of view of what decides."""

from __future__ import annotations

from typing import Protocol


class ApiKey(Protocol):
    """An API key and its merchant: :class:`~pay88_adapters.Credentials`."""

    @property
    def api_key(self) -> str:
        """A secret."""
        ...

    @property
    def merchant_id(self) -> str:
        """The merchant's id, ``MCH-{COUNTRY}-{ID}``."""
        ...

    @property
    def digest(self) -> str:
        """A name for both that does not give them away."""
        ...
