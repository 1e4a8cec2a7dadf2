"""Requests and responses of the emulated service, and its own state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from .windows import Limits

TOKEN_PATH = "/api/auth/token"
ECHO_PATH = "/api/echo"
CHARGES_PATH = "/api/transactions/charges"
BALANCE_PATH = "/api/balance"

TOKEN_LIMITS: Limits = ((10, 60), (100, 3600))
CALL_LIMITS: Limits = ((60, 60), (1000, 3600))

Kind = Literal["token", "call", "other"]
Event = Literal[
    "issued", "reissued", "charged", "balance", "echo",  # the service acted
    "limited", "unauthorized", "forbidden", "invalid", "unknown", "failed",  # it did not
]  # fmt: skip

MESSAGES: Mapping[int, str] = MappingProxyType(
    {
        307: "Moved",
        400: "Bad request",
        401: "Invalid or expired token",
        403: "Access denied",
        404: "Not found",
        422: "Validation failed",
        429: "Rate limit exceeded. Please try again later.",
        500: "Internal server error",
        502: "Bad gateway",
        503: "Service unavailable",
        504: "Gateway timeout",
    }
)
"""The service's message for a status code, unless the case has a more specific one."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came over the wire."""

    method: str
    path: str
    """The request target with its query, exactly as it was sent."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """By lower-case name. A header that was sent more than once is joined by commas."""
    body: bytes = field(default=b"", repr=False)
    peer: tuple[str, int] = ("", 0)

    @property
    def route(self) -> str:
        """The path without its query."""
        return urlsplit(self.path).path

    @property
    def query(self) -> dict[str, list[str]]:
        """The parameters of the query."""
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    @property
    def kind(self) -> Kind:
        """Whether this is a token request, an API request, or neither."""
        route = self.route
        if route == TOKEN_PATH:
            return "token"
        return "call" if route.startswith("/api/") else "other"


@dataclass(frozen=True, slots=True)
class Response:
    """Response of the service, and what it did."""

    status: int
    body: bytes = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    event: Event = "failed"
    serial: int | None = None
    """The number of the token that was issued or used, counted from 1."""
    executed: bool = False
    """Whether the service acted on the request, as by issuing a token or booking a charge."""


Received = Request
"""Deprecated name of :class:`Request`."""

Answer = Response
"""Deprecated name of :class:`Response`."""


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge that was booked."""

    reference: str
    at: float
    body: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Used part of a limit."""

    group: str
    """The counted requests: ``token``, ``transactions`` or ``balance``."""
    merchant_id: str
    limit: int
    seconds: float
    used: int
    frees_at: float | None
    """When the next unit is available."""


@dataclass(frozen=True, slots=True)
class Current:
    """A token that has not expired yet, without its value."""

    serial: int
    issued_at: float
    expires_at: float
    merchant_id: str
    rejected: bool
