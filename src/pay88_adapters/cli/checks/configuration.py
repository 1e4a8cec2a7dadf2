"""Checks of the environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from pay88_adapters import ConfigurationError, Credentials
from pay88_adapters.core.endpoint import Endpoint, environment_of, url_from_env
from pay88_adapters.core.secret import as_secret
from pay88_adapters.stores import MEMORY

from .finding import Finding, failed, invalid, ok, skipped

_VENDORS = {"PAY88_API_KEY": "EIGHTY_EIGHT_PAY_API_KEY", "PAY88_MERCHANT_ID": "EIGHTY_EIGHT_PAY_MERCHANT_ID"}
_OPTIONS = {"PAY88_BASE_URL": "--base-url", "PAY88_STORE": "--store"}


class Configuration:
    """The configuration in environment variables.

    Args:
        environ: The variables, with the values of the options.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.store: str = as_secret(environ.get("PAY88_STORE") or MEMORY)
        self.fallback_store: str | None = environ.get("PAY88_FALLBACK_STORE") or None
        self.credentials: Credentials | None = None
        self.endpoint: Endpoint | None = None
        self.fits = False
        """Whether the key belongs to the environment of the base URL."""

    @property
    def missing(self) -> str:
        """What is not valid: the base URL, or the key and the merchant id."""
        return "no valid base URL" if self.endpoint is None else "no valid key and merchant id"

    def check(self) -> Iterator[Finding]:
        """Check the variables, the base URL, and that the key belongs to it."""
        yield self._check_environment()
        yield self._check_url()
        yield self._check_key()

    def _check_environment(self) -> Finding:
        try:
            self.credentials = Credentials.from_env(self._environ)
        except ConfigurationError as error:
            return invalid("environment", error, "copy the values from the 88Pay dashboard")
        return ok("environment", f"read {', '.join(self._read())}")

    def _read(self) -> Iterator[str]:
        for name, vendors in _VENDORS.items():
            yield name if self._environ.get(name) else vendors
        if not self._environ.get("PAY88_BASE_URL") and self._environ.get("PAY88_ENVIRONMENT"):
            yield "PAY88_ENVIRONMENT"
        yield from filter(None, map(self._source, _OPTIONS))
        if self.fallback_store is not None:
            yield "PAY88_FALLBACK_STORE"

    def _source(self, name: str) -> str:
        """Return the variable *name*, or the option that overrides it; "" if neither is set."""
        if not self._environ.get(name):
            return ""
        return name if self._environ[name] == os.environ.get(name) else _OPTIONS[name]

    def _check_url(self) -> Finding:
        try:
            self.endpoint = Endpoint.parse(url_from_env(self._environ))
        except ConfigurationError as error:
            remedy = "correct PAY88_BASE_URL, or unset it and set PAY88_ENVIRONMENT to sandbox or production"
            return invalid("base URL", error, remedy)
        given = self._source("PAY88_BASE_URL")
        ignored = given and self._environ.get("PAY88_ENVIRONMENT")
        why = f" (PAY88_ENVIRONMENT is ignored, because {given} is set)" if ignored else ""
        return ok("base URL", self.endpoint.base_url + why)

    def _check_key(self) -> Finding:
        if self.endpoint is None or self.credentials is None:
            return skipped("key", self.missing)
        try:
            self.endpoint.check_key(self.credentials)
        except ConfigurationError as error:
            what, _, remedy = str(error).partition(": ")
            unset = "unset PAY88_BASE_URL and " if self._environ.get("PAY88_BASE_URL") else ""
            return failed("key", what, unset + remedy)
        self.fits = True
        if not self.endpoint.environment:
            return skipped("key", "the base URL is neither the sandbox nor production")
        if not environment_of(self.credentials):
            return skipped("key", "it starts with neither sk_test_ nor sk_live_")
        return ok("key", "matches the environment")
