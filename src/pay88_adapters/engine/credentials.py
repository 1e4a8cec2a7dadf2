"""Credentials: the API key and the merchant id."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from pay88_adapters.core.arguments import checked_environ
from pay88_adapters.core.errors import ConfigurationError, shorten
from pay88_adapters.core.secret import Secret, as_secret

# Checked once, here: with a bad header value, some libraries send it, and some raise an exception that contains
# the whole key.
_VENDORS = "EIGHTY_EIGHT_PAY_"  # of the variables in 88Pay's documentation
_PRINTABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True, init=False)
class Credentials:
    """API key and merchant id, with which tokens are fetched.

    Args:
        api_key: ``sk_test_…`` for the sandbox, ``sk_live_…`` for production.
        merchant_id: ``MCH-{COUNTRY}-{ID}``.

    Raises:
        ConfigurationError: A value is not a string, is empty, or contains white space, control or non-ASCII
            characters.
    """

    api_key: str = field(repr=False)
    merchant_id: str

    def __init__(self, api_key: str, merchant_id: str) -> None:
        # First: a traceback with locals may follow, and each of the two may be the key.
        api_key, merchant_id = as_secret(api_key), as_secret(merchant_id)
        object.__setattr__(self, "api_key", api_key)
        object.__setattr__(self, "merchant_id", merchant_id)
        _check("api_key", api_key)
        _check("merchant_id", merchant_id)
        if merchant_id.startswith("sk_"):
            raise ConfigurationError(
                "merchant_id looks like an API key: check whether api_key and merchant_id are swapped"
            )
        object.__setattr__(self, "merchant_id", str(merchant_id))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Credentials:
        """Read ``PAY88_API_KEY`` and ``PAY88_MERCHANT_ID``, or the vendor's ``EIGHTY_EIGHT_PAY_*``.

        Raises:
            ConfigurationError: A value is not set or invalid. If both are missing, the error names both.
        """
        environ = checked_environ(os.environ if environ is None else environ)
        names = {suffix: _first_set(environ, suffix) for suffix in ("API_KEY", "MERCHANT_ID")}
        missing = [suffix for suffix, name in names.items() if name is None]
        if missing:
            ours, vendors = (" and ".join(prefix + each for each in missing) for prefix in ("PAY88_", _VENDORS))
            raise ConfigurationError(f"set {ours} (or {vendors}) in the environment")
        return cls(*(Secret(environ[name]) for name in names.values() if name is not None))

    @property
    def digest(self) -> str:
        """A digest of the credentials that does not reveal them."""
        return hashlib.sha256(f"{self.api_key!s}\n{self.merchant_id}".encode()).hexdigest()[:16]

    def __copy__(self) -> Credentials:
        return self

    def __deepcopy__(self, memo: object) -> Credentials:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "credentials cannot be pickled, because they are secrets: use Credentials.from_env() in each process"
        )


def _check(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigurationError(
            f"{name} must be a str, not {shorten(type(value).__name__, 60)}: pass the value from the 88Pay dashboard"
        )
    if not value:
        raise ConfigurationError(f"{name} is empty: set it to the value from the 88Pay dashboard")
    if not _PRINTABLE.fullmatch(value):
        raise ConfigurationError(
            f"{name} contains white space, a control character or a non-ASCII character: copy it again,"
            " without spaces or line breaks"
        )


def _first_set(environ: Mapping[str, str], suffix: str) -> str | None:
    return next((name for name in (f"PAY88_{suffix}", f"{_VENDORS}{suffix}") if environ.get(name)), None)


CredentialsSource = Credentials | Callable[[], object]
"""Credentials, or a credentials provider: a sync or async callable that returns them."""
