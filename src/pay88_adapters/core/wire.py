"""The token endpoint's protocol: the request, and what each response means.

Every response is treated as hostile. Nothing here raises while a secret is in a local variable, where a traceback with
locals would print it: failures are returned as values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
from math import inf
from typing import Any, TypeGuard, cast

from .arguments import is_number
from .credentials import ApiKey
from .endpoint import Endpoint
from .errors import (
    ConfigurationError,
    CredentialsRejected,
    Failure,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
    fitted,
    shorten,
)
from .policy import LIFETIME
from .secret import redact, without_secrets
from .token import Token

MAX_BODY = 64 * 1024
"""Bytes of a token response that are read; a longer one is invalid."""

MAX_DRAINED = 64 * 1024
"""Bytes of a rejected response that are read to keep its connection; the connection of a longer one is closed."""

MAX_DRAIN_SECONDS = 1.0
"""Real seconds for which a rejected response is read to keep its connection; then the connection is closed."""

OK = 200
"""Status code of a token response. Any other one means what it does without the body (rules 9 to 11)."""

_MAX_VALUE = 8 * 1024  # bytes; servers commonly reject longer headers
_MAX_LIFETIME = 86_400.0  # seconds
_DEFAULT_RETRY_AFTER = 60.0  # seconds; the shorter window of 88Pay's documented token limits
_SHOWN = 24  # characters of a host or a merchant id in a message of at most 200
_PRINTABLE = re.compile(r"[!-~]+")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_LONGEST_WAIT = 1e12  # seconds; a service may name more than arithmetic can use
# Between the values of a repeated header, and not in an HTTP date, which has a comma after the weekday.
_BETWEEN_VALUES = re.compile(r"(?<!Mon|Tue|Wed|Thu|Fri|Sat|Sun|day), ", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One token request, for an adapter to send over its caller's own pool."""

    url: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    timeout: float
    """Real seconds for the whole exchange."""
    method: str = "POST"

    @property
    def pool_timeout(self) -> float:
        """For how many real seconds to wait for a free connection.

        Fewer than *timeout*, so that a full pool is not taken for a slow service.
        """
        return self.timeout * 0.9

    def body_timeout(self, status: int) -> float:
        """Return for how many real seconds the body of a response is read: that of an error may be missing."""
        return self.timeout if status == OK else min(self.timeout / 4, MAX_DRAIN_SECONDS)


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """Response of the token endpoint: status code, headers (any case), and at most ``MAX_BODY`` + 1 bytes of body."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def token_request(endpoint: Endpoint, credentials: ApiKey, timeout: float) -> TokenRequest:
    """Build the token request: the two credential headers, and nothing from the caller's client."""
    headers = {
        "x-api-key": credentials.api_key,
        "x-merchant-id": credentials.merchant_id,
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # a compressed response is invalid and never inflated
        "Content-Length": "0",
    }
    return TokenRequest(endpoint.token_url, endpoint.token_path, headers, timeout)


def parse_token_response(
    response: TokenResponse, requested_at: float, credentials: ApiKey, wall: float, *, base_url: str = ""
) -> Token | Failure:
    """Turn a response into a token or a failure (rules 9 to 12).

    Args:
        response: The response of the token endpoint.
        requested_at: When its request was sent, in seconds of the manager's clock.
        credentials: The credentials of the request.
        wall: The wall clock, in seconds since the epoch: used for a ``Retry-After`` date without a ``Date`` header.
        base_url: Named in the failure's message.
    """
    if response.status == OK:
        return _read_token(response.body, requested_at)
    document = _object(_decode(response.body))
    server_text = document.get("message")
    message = redact(server_text, credentials.api_key) if isinstance(server_text, str) and server_text else None
    kind, what, retryable = _classify_status(response.status)
    retry_in = retry_after(response.headers, document, wall) if kind is TokenRateLimited else None
    return Failure(
        kind,
        _describe(response.status, base_url, credentials.merchant_id, message or "", what),
        status=response.status,
        server_message=message,
        retry_after=retry_in,
        retryable=retryable,
    )


def _describe(status: int, base_url: str, merchant_id: str, message: str, what: str) -> str:
    where = f" ({shorten(base_url.partition('://')[2], _SHOWN)})" if base_url else ""
    whose = f" for {shorten(merchant_id, _SHOWN)}"
    return fitted(f"token endpoint{where} returned {status}{whose}{': ' if message else ''}", message, f"; {what}")


def network_failure(cause: BaseException, *secrets: str, base_url: str = "") -> Failure:
    """Return the failure of a token request without a response. The message names *base_url*."""
    name = type(cause).__name__
    # Its text may be a part of a body that was parsed as a status line.
    cause = without_secrets(cause, *secrets, kind=ConnectionError)
    where = f" to {shorten(base_url, 2 * _SHOWN)}" if base_url else ""
    return Failure(
        TokenEndpointUnavailable,
        f"token request{where} failed without a response ({shorten(name, 60)}); request not sent",
        retryable=True,
        cause=cause,
    )


def unexpected_failure(error: BaseException, *secrets: str) -> Failure:
    """Return the failure of a token request whose client raised what is not a network error (rule 18)."""
    text = redact(str(error), *secrets)
    if isinstance(error, ConfigurationError):  # of this package's own
        return Failure(ConfigurationError, text, is_bug=True)
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    return Failure(
        TokenEndpointUnavailable,
        fitted(f"the HTTP client raised {shorten(name, 70)}, which is not a network error; request not sent: ", text),
        cause=without_secrets(error, *secrets),
        is_bug=True,
    )


def retry_after(headers: Mapping[str, str], document: Mapping[str, object], wall: float) -> float:
    """Return the seconds to wait after a 429: ``Retry-After``, else ``retry_after`` of the body, else 60."""
    for wait in (parse_retry_after(headers, wall), _wait(document.get("retry_after"))):
        if wait is not None:
            return max(wait, 1.0)  # zero would send the next request immediately, and be rejected again
    return _DEFAULT_RETRY_AFTER


def parse_retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Return the seconds of ``Retry-After``, in either of its forms; ``None`` if it is missing or invalid.

    Of several values, the longest wait counts: no request is sent earlier than the service said.
    """
    fields = _lower(headers)
    waits: list[float | None] = []
    for value in _BETWEEN_VALUES.split(fields.get("retry-after", "")):
        wait = _wait(value)
        waits.append(_until(_timestamp(value), fields, wall) if wait is None else wait)
    return max((wait for wait in waits if wait is not None), default=None)


def parse_rate_limit(headers: Mapping[str, str], wall: float) -> tuple[int, float] | None:
    """Return the remaining requests and the seconds until reset from the ``X-RateLimit-*`` headers, if present."""
    fields = _lower(headers)
    remaining = _seconds(fields.get("x-ratelimit-remaining"))
    reset_in = _until(_seconds(fields.get("x-ratelimit-reset")), fields, wall)
    return None if remaining is None or reset_in is None else (int(remaining), reset_in)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in headers.items():  # a repeated header is there twice, or joined already
        name = name.lower()  # noqa: PLW2901
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _classify_status(status: int) -> tuple[type[Any], str, bool]:
    if status == 401:
        return CredentialsRejected, "check the API key, the merchant id and the base URL", False
    if status == 403:
        return CredentialsRejected, "ask 88Pay whether the merchant is suspended or this IP address blocked", False
    if status == 429:
        return TokenRateLimited, "another client uses this merchant's token budget", True
    if status >= 500:
        return TokenEndpointUnavailable, "request not sent", True
    return TokenEndpointUnavailable, "probably not from 88Pay: check base_url and proxies", False


def _read_token(body: bytes, requested_at: float) -> Token | Failure:
    if len(body) > MAX_BODY:
        return _invalid(f"is longer than {MAX_BODY // 1024} KiB")
    data = _object(_object(_decode(body)).get("data"))
    if not data:
        return _invalid("is not a JSON object with a 'data' object")
    access_token, session_id = data.get("access_token"), data.get("session_id")
    if not is_header_value(access_token):
        return _invalid("has no valid 'access_token'")
    if not is_header_value(session_id):
        return _invalid("has no valid 'session_id'")
    lifetime = _seconds(data.get("expires_in"))
    if lifetime is None or not 0 < lifetime <= _MAX_LIFETIME:
        return _invalid(f"has no valid 'expires_in' (88Pay documents {LIFETIME:.0f} s)")
    if lifetime == LIFETIME:
        lifetime = LIFETIME  # one object for nearly all tokens of a process
    return Token(access_token, session_id, lifetime, requested_at)


def _invalid(what: str) -> Failure:
    return Failure(
        TokenResponseInvalid,
        f"the token endpoint returned 200, but the body {what}; request not sent",
        status=200,
        retryable=True,
    )


def is_header_value(value: object) -> TypeGuard[str]:
    """Whether *value* can be sent as a header value unchanged."""
    return isinstance(value, str) and len(value) <= _MAX_VALUE and bool(_PRINTABLE.fullmatch(value))


def _decode(body: bytes) -> object:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError):  # the ValueError would contain the whole document
        return None


def _object(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def _wait(value: object) -> float | None:
    """Parse seconds to wait, of any number of digits; ``None`` if they are invalid."""
    number = _number(value)
    return float(min(number, _LONGEST_WAIT)) if number is not None and 0 <= number < inf else None


def _seconds(value: object) -> float | None:
    """Parse a number that arithmetic can use; anything else is ``None``."""
    number = _number(value)
    if number is None or not -_MAX_LIFETIME * 1e6 < number < _MAX_LIFETIME * 1e6:  # also NaN
        return None
    return float(number)


def _number(value: object) -> float | None:
    """Return a number, or the one that a string contains; anything else is ``None``."""
    if isinstance(value, str):
        text = value.strip()
        return min(float(text), _LONGEST_WAIT) if _NUMBER.fullmatch(text) else None
    return value if is_number(value) else None


def _until(moment: float | None, fields: Mapping[str, str], wall: float) -> float | None:
    """Return the seconds until a Unix time, by the response's own ``Date`` header where it has one."""
    if moment is None:
        return None
    sent = _timestamp(fields.get("date"))
    return moment - (wall if sent is None else sent)


def _timestamp(value: str | None) -> float | None:
    if not value or len(value) > 64:
        return None
    try:
        moment = parsedate_to_datetime(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
