"""The token endpoint on the wire: what is sent, and what an answer means.

Every answer is treated as hostile. Nothing here raises while a secret is in a local variable, where a
traceback with locals would print it: failures are returned as values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeGuard, cast

from .credentials import ApiKey
from .endpoint import Endpoint
from .errors import (
    ConfigurationError,
    CredentialsRejected,
    Failure,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
)
from .policy import LIFETIME
from .secret import clear_traceback_locals, contains_secret, redact
from .token import Token

MAX_BODY = 64 * 1024
"""Bytes of a token response that are read; a longer one is invalid."""

MAX_DRAINED = 64 * 1024
"""Bytes of a refused response that are read to keep its connection; one with more is closed."""

MAX_DRAIN_SECONDS = 1.0
"""Real seconds for which a refused response is read to keep its connection; one that takes longer is closed."""

_MAX_VALUE = 8 * 1024  # bytes; servers commonly refuse longer header fields
_MAX_LIFETIME = 86_400.0  # seconds
_DEFAULT_RETRY_AFTER = 60.0  # seconds; the length of 88Pay's shorter window
_PRINTABLE = re.compile(r"[!-~]+")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One token request, for an adapter to send over its caller's own pool."""

    url: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    timeout: float
    """Real seconds for the whole exchange."""
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """What came back: status, header fields (any case), and at most ``MAX_BODY`` + 1 bytes of body."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def token_request(endpoint: Endpoint, credentials: ApiKey, timeout: float) -> TokenRequest:
    """Build the request. It carries the two key fields and nothing of the caller's."""
    headers = {
        "x-api-key": credentials.api_key,
        "x-merchant-id": credentials.merchant_id,
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # a compressed answer is refused, not inflated
        "Content-Length": "0",
    }
    return TokenRequest(endpoint.token_url, endpoint.token_path, headers, timeout)


def parse_token_response(
    reply: TokenResponse, requested_at: float, credentials: ApiKey, wall: float
) -> Token | Failure:
    """Turn an answer into a token, or into the failure it stands for (rules 9 to 12).

    Args:
        reply: The answer.
        requested_at: When its request was sent, in seconds of the manager's clock.
        credentials: Those it was sent with.
        wall: The wall clock, in seconds since the epoch, for an answer with a date that does not say its own.
    """
    if reply.status == 200:
        return _read_token(reply.body, requested_at)
    document = _object(_decode(reply.body))
    said = document.get("message")
    message = redact(said, credentials.api_key) if isinstance(said, str) and said else None
    kind, what, retryable = _classify_status(reply.status)
    asked = retry_after(reply.headers, document, wall) if kind is TokenRateLimited else None
    return Failure(
        kind,
        f"the token endpoint answered {reply.status}{': ' + message if message else ''}; {what}",
        status=reply.status,
        server_message=message,
        retry_after=asked,
        retryable=retryable,
    )


def network_failure(cause: BaseException, *secrets: str) -> Failure:
    """Return the failure of a token request that got no answer."""
    name = type(cause).__name__
    clear_traceback_locals(cause)  # they may hold what had arrived of a token
    if contains_secret(cause, *secrets):  # such as the part of an answer that was taken for a status line
        cause = ConnectionError(f"{name}; its text held a secret and was dropped")
    return Failure(
        TokenEndpointUnavailable,
        f"the token request got no answer ({name}); the call was not sent: try again later",
        retryable=True,
        cause=cause,
    )


def unexpected_failure(error: Exception, *secrets: str) -> Failure:
    """Return the failure of a token request whose client raised what is no network error (rule 18)."""
    if isinstance(error, ConfigurationError):  # of this package's own
        return Failure(ConfigurationError, str(error), is_bug=True)
    kind = type(error)
    clear_traceback_locals(error)
    name = f"{kind.__module__}.{kind.__qualname__}"
    text = redact(str(error), *secrets)
    cause: BaseException = error
    if contains_secret(error, *secrets):
        cause = RuntimeError(f"{name}; its text held a secret and was dropped")
    return Failure(
        TokenEndpointUnavailable,
        redact(f"the HTTP client raised {name} for the token request, which is no network error: {text}"),
        cause=cause,
        is_bug=True,
    )


def retry_after(headers: Mapping[str, str], document: Mapping[str, object], wall: float) -> float:
    """Return how many seconds a 429 asks to wait: ``Retry-After``, else the body's field, else 60."""
    for wait in (parse_retry_after(headers, wall), _seconds(document.get("retry_after"))):
        if wait is not None:
            return max(wait, 1.0)  # zero would ask again at once and be refused again
    return _DEFAULT_RETRY_AFTER


def parse_retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Return how many seconds ``Retry-After`` asks to wait, in either of its forms; ``None`` if it makes no sense."""
    fields = _lower(headers)
    wait = _seconds(fields.get("retry-after"))
    return _until(_timestamp(fields.get("retry-after")), fields, wall) if wait is None else wait


def parse_rate_limit(headers: Mapping[str, str], wall: float) -> tuple[int, float] | None:
    """Return how many calls the service says are left, and for how many seconds that holds, if it says so."""
    fields = _lower(headers)
    remaining = _seconds(fields.get("x-ratelimit-remaining"))
    reset_in = _until(_seconds(fields.get("x-ratelimit-reset")), fields, wall)
    return None if remaining is None or reset_in is None else (int(remaining), reset_in)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _classify_status(status: int) -> tuple[type[Any], str, bool]:
    if status == 401:
        return CredentialsRejected, "check the API key, the merchant id, and that both fit the base URL", False
    if status == 403:
        return CredentialsRejected, "ask 88Pay whether the account is suspended or this address not allowed", False
    if status == 429:
        return TokenRateLimited, "something else uses this merchant's budget of token requests", True
    if status >= 500:
        return TokenEndpointUnavailable, "the call was not sent: try again later", True
    return TokenEndpointUnavailable, "this is not an answer of 88Pay's: check base_url and proxies", False


def _read_token(body: bytes, requested_at: float) -> Token | Failure:
    if len(body) > MAX_BODY:
        return _invalid(f"is longer than {MAX_BODY} bytes")
    data = _object(_object(_decode(body)).get("data"))
    if not data:
        return _invalid("is not a JSON object with a 'data' object")
    access_token, session_id = data.get("access_token"), data.get("session_id")
    if not is_header_value(access_token):
        return _invalid("has no usable 'access_token'")
    if not is_header_value(session_id):
        return _invalid("has no usable 'session_id'")
    lifetime = _seconds(data.get("expires_in"))
    if lifetime is None or not 0 < lifetime <= _MAX_LIFETIME:
        return _invalid(f"has no usable 'expires_in' (documented as {LIFETIME:.0f})")
    return Token(access_token, session_id, lifetime, requested_at)


def _invalid(what: str) -> Failure:
    return Failure(
        TokenResponseInvalid,
        f"the token endpoint answered 200, but the body {what}; the call was not sent",
        status=200,
        retryable=True,
    )


def is_header_value(value: object) -> TypeGuard[str]:
    """Whether *value* can go into a header field as it is."""
    return isinstance(value, str) and len(value) <= _MAX_VALUE and bool(_PRINTABLE.fullmatch(value))


def _decode(body: bytes) -> object:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError):  # the ValueError would hold the whole document
        return None


def _object(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def _seconds(value: object) -> float | None:
    """Read a number, or a string that holds one; anything else is ``None``."""
    if isinstance(value, str):
        text = value.strip()
        return float(text) if _NUMBER.fullmatch(text) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not -_MAX_LIFETIME * 1e6 < value < _MAX_LIFETIME * 1e6:  # also NaN, and what float() cannot hold
        return None
    return float(value)


def _until(moment: float | None, fields: Mapping[str, str], wall: float) -> float | None:
    """Return the seconds until a Unix time, by the answer's own ``Date`` where it has one."""
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
