"""The base URL of 88Pay: parsing, comparison, and which requests belong to it."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from .credentials import ApiKey
from .errors import ConfigurationError, shorten
from .secret import redact

SANDBOX_URL = "https://api-sandbox.88pay.io"
PRODUCTION_URL = "https://api.88pay.io"

TOKEN_PATH = "/api/auth/token"

_NAMED = "base_url (PAY88_BASE_URL)"
_ENVIRONMENTS = {"sandbox": SANDBOX_URL, "production": PRODUCTION_URL}
_PREFIXES = {"sandbox": "sk_test_", "production": "sk_live_"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"[a-z0-9_.-]+")
_DOT_SEGMENT = re.compile(r"/(\.|%2e){1,2}(/|$)", re.IGNORECASE)  # some HTTP client libraries resolve them
_ZONE = re.compile(r"[\w.~-]+", re.ASCII)
_LETTERS_MARKS_NUMBERS = "LMN"  # the Unicode categories of characters in host names


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A checked base URL in its canonical form.

    Attributes:
        base_url: ``https://host[:port][/prefix]``; ``http`` for loopback hosts only. Lower case, without the
            default port, IPv6 addresses compressed, international names in punycode.
        scheme: ``https`` or ``http``.
        host: As in *base_url*, without brackets.
        port: The port, also where *base_url* does not name it.
        token_path: The path of the token endpoint.
    """

    base_url: str
    scheme: str
    host: str
    port: int
    token_path: str

    @classmethod
    def parse(cls, base_url: str) -> Endpoint:
        """Check *base_url* and split it. The managers of one base URL share the result.

        Raises:
            ConfigurationError: The URL is invalid.
        """
        if not isinstance(base_url, str):
            raise ConfigurationError(
                f"base_url must be a str, not {shorten(type(base_url).__name__, 60)}: pass {SANDBOX_URL}"
            )
        if not base_url.isprintable() or " " in base_url:
            raise ConfigurationError(f"{_NAMED} contains a space or a control character: remove it")
        return cls._parse(base_url)

    @classmethod
    @lru_cache(maxsize=64)
    def _parse(cls, base_url: str) -> Endpoint:
        try:
            parts = urlsplit(base_url)
            name, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigurationError(f"{_NAMED} is not a URL: it must look like {SANDBOX_URL}") from None
        if parts.scheme not in _DEFAULT_PORTS or not name or port == 0:
            raise ConfigurationError(f"{_NAMED} must be an https:// URL with a host, such as {SANDBOX_URL}")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigurationError(f"{_NAMED} must not contain a user name, a query or a fragment: remove it")
        if not parts.path.isascii():
            raise ConfigurationError(f"the path of {_NAMED} contains a non-ASCII character: percent-encode it")
        if _DOT_SEGMENT.search(parts.path):
            raise ConfigurationError(f"the path of {_NAMED} contains a . or .. segment: write the path without it")
        host = canonical_host(name)
        if host is None:
            raise ConfigurationError(
                f"the host of {_NAMED} is neither a host name nor an IP address: write an international name as xn--…"
            )
        if parts.scheme == "http" and not _is_loopback(host):
            raise ConfigurationError(
                f"base_url would send the API key in clear text to {shorten(host, 60)}: use https:// (PAY88_BASE_URL)"
            )
        prefix = parts.path.rstrip("/")
        default = _DEFAULT_PORTS[parts.scheme]
        netloc = f"[{host}]" if ":" in host else host
        if port not in (None, default):
            netloc = f"{netloc}:{port}"
        return cls(
            base_url=f"{parts.scheme}://{netloc}{prefix}",
            scheme=parts.scheme,
            host=host,
            port=port or default,
            token_path=prefix + TOKEN_PATH,
        )

    @property
    def token_url(self) -> str:
        """The absolute URL of the token endpoint."""
        return self.base_url + TOKEN_PATH

    def covers(self, scheme: str, host: str, port: int | None, path: str, authorization: str | None) -> bool:
        """Whether the manager attaches a token to a request (rules 13 and 14).

        Only the same origin counts. A request with its own ``Bearer`` bypasses the manager, and so does one to the
        token endpoint itself, where a token means nothing.
        """
        if host != self.host and canonical_host(host) != self.host:
            return False
        if scheme != self.scheme and scheme.lower() != self.scheme:
            return False
        if port != self.port and (port is not None or _DEFAULT_PORTS[self.scheme] != self.port):
            return False
        if authorization is not None and authorization[:7].lower() == "bearer ":
            return False
        return self.token_path not in path or path.partition("?")[0] != self.token_path

    def route(self, path: str) -> str:
        """Return the part of *path* after the base URL's, without the query; empty if *path* does not start with it."""
        prefix = self.token_path[: -len(TOKEN_PATH)]
        path = path.partition("?")[0]
        return path[len(prefix) :] if path.startswith(prefix) else ""

    @property
    def environment(self) -> str:
        """``sandbox`` or ``production``; empty for any other host."""
        host = self.host.rstrip(".")
        return next((name for name, url in _ENVIRONMENTS.items() if urlsplit(url).hostname == host), "")

    def check_key(self, credentials: ApiKey) -> None:
        """Check that the key belongs to the environment of this URL.

        Raises:
            ConfigurationError: A sandbox key with the production URL, or the reverse.
        """
        right = environment_of(credentials)
        if self.environment and right and right != self.environment:
            raise ConfigurationError(
                f"a key that starts with {_PREFIXES[right]} does not work with {shorten(self.base_url, 50)}: set"
                f" PAY88_ENVIRONMENT={right} (base_url={right.upper()}_URL) or use the other key"
            )


def environment_of(credentials: ApiKey) -> str:
    """Return ``sandbox`` or ``production``, by the prefix of the API key; empty for any other prefix."""
    return next((name for name, prefix in _PREFIXES.items() if credentials.api_key.startswith(prefix)), "")


RATE_LIMITED_GROUPS = ("transactions", "balance")
"""The groups of API requests that have limits."""


def group_of(route: str) -> str:
    """Return the group of the documented rate limit that applies to an API request: "other" for none."""
    if route.startswith("/api/transactions/"):
        return "transactions"
    return "balance" if route == "/api/balance" else "other"


def url_from_env(environ: Mapping[str, str]) -> str:
    """Read ``PAY88_BASE_URL``, or else ``PAY88_ENVIRONMENT`` (``sandbox`` unless set).

    Raises:
        ConfigurationError: ``PAY88_ENVIRONMENT`` is neither ``sandbox`` nor ``production``.
    """
    if environ.get("PAY88_BASE_URL"):
        return environ["PAY88_BASE_URL"]
    name = environ.get("PAY88_ENVIRONMENT") or "sandbox"
    if name not in _ENVIRONMENTS:
        raise ConfigurationError(
            f"PAY88_ENVIRONMENT is {shorten(redact(name), 60)!r}: set it to 'sandbox' or 'production'"
        )
    return _ENVIRONMENTS[name]


@lru_cache(maxsize=256)
def canonical_host(host: str) -> str | None:
    """Return the canonical form of *host*, without brackets; ``None`` if it is not a valid host.

    HTTP client libraries spell the same host in different ways: IPv6 addresses as the caller did or compressed, zone
    identifiers with a percent sign or with its escape. International names are in Unicode or in punycode. A trailing
    dot makes another name.
    """
    host = host.removeprefix("[").removesuffix("]")
    if ":" in host:
        return _canonical_address(host)
    host = host.lower()
    if not host.isascii():
        return _punycode(host)
    return host if _HOST_NAME.fullmatch(host) else None


def _canonical_address(host: str) -> str | None:
    text, percent, zone = host.partition("%")
    zone = zone.removeprefix("25")  # the escaped percent sign; zones are case-sensitive
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    if percent and not _ZONE.fullmatch(zone):
        return None
    mapped = address.ipv4_mapped  # its text differs between Python versions
    compressed = f"::ffff:{mapped}" if mapped else address.compressed
    return f"{compressed}%{zone}" if percent else compressed


def _punycode(host: str) -> str | None:
    """Encode the labels of *host*, without the mappings on which the standards for such names differ."""
    if unicodedata.normalize("NFKC", host) != host:
        return None
    if not all(each in "-_." or unicodedata.category(each)[0] in _LETTERS_MARKS_NUMBERS for each in host):
        return None
    return ".".join(
        each if each.isascii() else f"xn--{each.encode('punycode').decode('ascii')}" for each in host.split(".")
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
