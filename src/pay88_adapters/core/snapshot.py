"""What managers that share a store tell each other: the token, and why none may be requested.

A snapshot holds instants on one manager's clock; on its way through the store they are ages and
remaining seconds. What comes out of a store is checked like an answer of the service.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .credentials import ApiKey
from .errors import (
    CredentialsRejected,
    Failure,
    Pay88Error,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
)
from .secret import Secret, redact
from .token import Token
from .wire import is_header_value

_NEVER = float("-inf")
_LONGEST = 86_400.0  # seconds; nothing in a snapshot lasts longer
_OLDEST = 1e10  # seconds; nothing in a snapshot happened earlier, whatever the limits of the budget are
_FORMAT = 1
_KINDS: dict[str, type[Pay88Error]] = {
    kind.__name__: kind
    for kind in (
        CredentialsRejected,
        TokenBudgetExhausted,
        TokenRateLimited,
        TokenEndpointUnavailable,
        TokenResponseInvalid,
    )
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one manager knows.

    Attributes:
        token: The newest one.
        bar: Why no token may be requested before *barred_until*.
        failures: Fetches that failed in a row.
        ordinary_at: When the last ordinary token request was sent.
        spent: When each unit of the budget was acquired: of each history, by its key, the instants by their ids.
    """

    token: Token | None = None
    cooldown_reason: Failure | None = None
    cooldown_until: float = _NEVER
    failures: int = 0
    refreshed_at: float = _NEVER
    budget_entries: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])

    def dump(self, now: float) -> Secret:
        """Write it down for others."""
        token, cooldown_reason = self.token, self.cooldown_reason
        if token is not None and now >= token.requested_at + token.expires_in:
            token = None
        text = json.dumps(
            {
                "format": _FORMAT,
                "token": token
                and {
                    "access_token": str(token.access_token),
                    "session_id": str(token.session_id),
                    "expires_in": token.expires_in,
                    "age": now - token.requested_at,
                },
                "bar": cooldown_reason
                and now < self.cooldown_until
                and {**failure_to(cooldown_reason), "remaining": self.cooldown_until - now},
                "failures": self.failures,
                "ordinary_age": None if self.refreshed_at == _NEVER else now - self.refreshed_at,
                "spent": {},  # where versions that counted each limit for itself look
                "history": {
                    key: {name: round(now - at, 3) for name, at in entries.items()}
                    for key, entries in self.budget_entries.items()
                },
            },
            separators=(",", ":"),
        )
        return Secret(text)

    def ttl(self, now: float) -> float:
        """Return for how many seconds it is of any use to others."""
        ends = [self.cooldown_until]
        if self.token is not None:
            ends.append(self.token.requested_at + self.token.expires_in)
        return max(*ends, now) - now


def record_key(base_url: str, credentials: ApiKey) -> str:
    """Name the record that managers with these credentials share. It does not give them away."""
    return hashlib.sha256(f"{base_url}\n{credentials.digest}".encode()).hexdigest()[:32]


def load(content: str, age: float, asked_at: float, now: float, *, stored: float | None = None) -> Snapshot | None:
    """Read what somebody wrote down *age* seconds ago and stored *stored* seconds ago; ``None`` if it makes no sense.

    The question and the answer took from *asked_at* to *now*. What is in doubt is held to be against us:
    a token is older, and a bar or a unit of the budget younger, by as much.
    """
    try:
        return _load(json.loads(content), asked_at - age, now - (age if stored is None else min(age, stored)))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None  # not raised from it, which holds the whole content


def _load(document: Any, earliest: float, latest: float) -> Snapshot:
    if document["format"] != _FORMAT:
        raise ValueError
    token, cooldown_reason, ordinary_age = document["token"], document["bar"], document["ordinary_age"]
    return Snapshot(
        token=_token(token, earliest) if token else None,
        cooldown_reason=failure_from(cooldown_reason) if cooldown_reason else None,
        cooldown_until=latest + _seconds(cooldown_reason["remaining"]) if cooldown_reason else _NEVER,
        failures=int(_seconds(document["failures"])),
        refreshed_at=_NEVER if ordinary_age is None else latest - _seconds(ordinary_age, _OLDEST),
        budget_entries={
            str(key): {str(name): latest - _seconds(age, _OLDEST) for name, age in entries.items()}
            for key, entries in document.get("history", {}).items()
        },
    )


def _token(said: Any, written_at: float) -> Token:
    access_token, session_id = said["access_token"], said["session_id"]
    if not (is_header_value(access_token) and is_header_value(session_id)):
        raise ValueError
    return Token(access_token, session_id, _seconds(said["expires_in"]), written_at - _seconds(said["age"]))


def failure_to(failure: Failure) -> dict[str, Any]:
    """Write down what others need to know of a failure."""
    return {
        "kind": failure.kind.__name__,
        "message": failure.message,
        "status": failure.status,
        "server_message": failure.server_message,
        "retryable": failure.retryable,
    }


def failure_from(said: Any) -> Failure:
    """Read it.

    Raises:
        ValueError: It makes no sense; or :class:`TypeError`, or :class:`LookupError`.
    """
    status, server_message = said["status"], said["server_message"]
    if not isinstance(said["message"], str) or not isinstance(server_message, (str, type(None))):
        raise TypeError
    return Failure(
        _KINDS[said["kind"]],
        redact(said["message"]),
        status=None if status is None else int(_seconds(status)),
        server_message=server_message and redact(server_message),
        retryable=said["retryable"] is True,
    )


def _seconds(value: Any, most: float = _LONGEST) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise ValueError
    return float(value)
