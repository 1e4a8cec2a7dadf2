"""Where 88Pay is, and what counts as a call to it."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from .credentials import ApiKey
from .errors import ConfigurationError
from .secret import redact

SANDBOX_URL = "https://api-sandbox.88pay.io"
PRODUCTION_URL = "https://api.88pay.io"

TOKEN_PATH = "/api/auth/token"

_ENVIRONMENTS = {"sandbox": SANDBOX_URL, "production": PRODUCTION_URL}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"[a-z0-9_.-]+")
_ZONE = re.compile(r"[\w.~-]+", re.ASCII)
_LETTERS_MARKS_NUMBERS = "LMN"  # the Unicode categories of what host names are written with


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A checked base URL, in its one canonical spelling.

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
        """Check *base_url* and take it apart. The managers of one base URL share the result.

        Raises:
            ConfigurationError: The URL cannot be used.
        """
        if not isinstance(base_url, str):
            raise ConfigurationError(f"base_url must be a str, not {type(base_url).__name__}")
        if not base_url.isprintable() or " " in base_url:
            raise ConfigurationError("base_url contains a space or a control character: remove it")
        return cls._parse(base_url)

    @classmethod
    @lru_cache(maxsize=64)
    def _parse(cls, base_url: str) -> Endpoint:
        try:
            parts = urlsplit(base_url)
            name, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigurationError(f"base_url is not a URL: it must look like {SANDBOX_URL}") from None
        if parts.scheme not in _DEFAULT_PORTS or not name or port == 0:
            raise ConfigurationError(f"base_url must look like {SANDBOX_URL}: give an https:// URL with a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigurationError("base_url must not contain a user name, a query or a fragment: remove it")
        if not parts.path.isascii():
            raise ConfigurationError("the path of base_url contains a non-ASCII character: percent-encode it")
        host = canonical_host(name)
        if host is None:
            raise ConfigurationError(
                "the host of base_url is not a host name or an IP address: write an international name as xn--…"
            )
        if parts.scheme == "http" and not _is_loopback(host):
            raise ConfigurationError(f"base_url would send the API key in clear text to {host}: use https://")
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
        """Say whether a request is 88Pay's and ours to manage (rules 13 and 14).

        Only the exact origin counts. A request that brings its own ``Bearer`` is the caller's, and so
        is one to the token endpoint itself, where a token means nothing.
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
        """Return what follows the base URL in *path*, without its query; empty where that does not begin it."""
        prefix = self.token_path[: -len(TOKEN_PATH)]
        path = path.partition("?")[0]
        return path[len(prefix) :] if path.startswith(prefix) else ""

    def check_key(self, credentials: ApiKey) -> None:
        """Refuse a key that belongs to the other environment.

        Raises:
            ConfigurationError: A sandbox key with the production URL, or the reverse.
        """
        for prefix, url, other in (
            ("sk_live_", SANDBOX_URL, "PRODUCTION_URL"),
            ("sk_test_", PRODUCTION_URL, "SANDBOX_URL"),
        ):
            if credentials.api_key.startswith(prefix) and self.host.rstrip(".") == urlsplit(url).hostname:
                raise ConfigurationError(
                    f"a {prefix}… key does not work with {self.base_url}: use base_url={other}, or the other key"
                )


def group_of(route: str) -> str:
    """Return which of the service's documented limits a call falls under, if any."""
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
        raise ConfigurationError(f"PAY88_ENVIRONMENT is {redact(name)!r}: set it to 'sandbox' or 'production'")
    return _ENVIRONMENTS[name]


@lru_cache(maxsize=256)
def canonical_host(host: str) -> str | None:
    """Return the one spelling of *host* that stands for all, without brackets; ``None`` for what is no host.

    HTTP client libraries spell the same host in different ways: IPv6 addresses as the caller did or compressed, zone
    identifiers with a percent sign or with its escape, international names in Unicode or in punycode. A dot at the
    end makes another name.
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
    zone = zone.removeprefix("25")  # which escapes the percent sign; zones tell upper case from lower
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    if percent and not _ZONE.fullmatch(zone):
        return None
    mapped = address.ipv4_mapped  # whose text differs from one Python to another
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
