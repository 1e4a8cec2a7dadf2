"""Protection of the page: it rejects requests that another website made a browser send."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every response."""


class RejectedRequest(Exception):
    """A rejected request. The text says why, and is shown to the client."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def check_host(headers: Mapping[str, str], own: str) -> None:
    """Reject host names that a foreign DNS server may resolve to this host (DNS rebinding)."""
    host = _name(headers.get("Host", ""))
    if not (host == "localhost" or host.endswith(".localhost") or host == own.lower() or _is_address(host)):
        raise RejectedRequest(421, "the host must be an IP address or localhost")


def check_origin(headers: Mapping[str, str], scheme: str) -> None:
    """Reject requests of a page of another origin; clients other than browsers send neither header."""
    origin = headers.get("Origin")
    if origin is not None and origin.lower() != f"{scheme}://{headers.get('Host', '')}".lower():
        raise RejectedRequest(403, "only the emulator's own page may send this request")
    if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        raise RejectedRequest(403, "only the emulator's own page may send this request")


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
