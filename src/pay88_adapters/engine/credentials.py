"""Who calls: the API key and the merchant id."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from pay88_adapters.core.errors import ConfigurationError
from pay88_adapters.core.secret import RedactedMapping, Secret, as_secret

# Checked once, here: what a stack does with a bad header value ranges from sending it to raising an
# exception that holds the whole key.
_PRINTABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True, init=False)
class Credentials:
    """The two values that buy a token.

    Args:
        api_key: ``sk_test_…`` for the sandbox, ``sk_live_…`` for production.
        merchant_id: ``MCH-{COUNTRY}-{ID}``.

    Raises:
        ConfigurationError: A value is not a string, is empty, or holds white space, control or
            non-ASCII characters.
    """

    api_key: str = field(repr=False)
    merchant_id: str

    def __init__(self, api_key: str, merchant_id: str) -> None:
        # First of all: a traceback with locals may follow, and either of them may be the key.
        api_key, merchant_id = as_secret(api_key), as_secret(merchant_id)
        object.__setattr__(self, "api_key", api_key)
        object.__setattr__(self, "merchant_id", merchant_id)
        _check("api_key", api_key)
        _check("merchant_id", merchant_id)
        if merchant_id.startswith("sk_"):
            raise ConfigurationError("merchant_id looks like an API key: are the two swapped?")
        object.__setattr__(self, "merchant_id", str(merchant_id))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Credentials:
        """Read ``PAY88_API_KEY`` and ``PAY88_MERCHANT_ID``, or the vendor's ``EIGHTY_EIGHT_PAY_*``.

        Raises:
            ConfigurationError: Neither name is set, or the value cannot be used.
        """
        environ = RedactedMapping(os.environ if environ is None else environ)
        return cls(_from_env(environ, "API_KEY"), _from_env(environ, "MERCHANT_ID"))

    @property
    def digest(self) -> str:
        """A name for these credentials that does not give them away."""
        return hashlib.sha256(f"{self.api_key!s}\n{self.merchant_id}".encode()).hexdigest()[:16]

    def __copy__(self) -> Credentials:
        return self

    def __deepcopy__(self, memo: object) -> Credentials:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials are secrets and are not pickled: use Credentials.from_env() in each process")


def _check(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a str, not {type(value).__name__}")
    if not value:
        raise ConfigurationError(f"{name} is empty: set it to the value from the 88Pay dashboard")
    if not _PRINTABLE.fullmatch(value):
        raise ConfigurationError(
            f"{name} holds white space, a control character or a non-ASCII character: copy it again,"
            " without spaces or a line break around it"
        )


def _from_env(environ: Mapping[str, str], suffix: str) -> str:
    names = (f"PAY88_{suffix}", f"EIGHTY_EIGHT_PAY_{suffix}")
    for name in names:
        if environ.get(name):
            return Secret(environ[name])
    raise ConfigurationError(f"set {names[0]} (or {names[1]}) in the environment")


CredentialsSource = Credentials | Callable[[], object]
"""Credentials, or a credentials provider: a sync or async callable that returns them."""
