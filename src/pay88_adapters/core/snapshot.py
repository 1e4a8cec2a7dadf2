"""The record that managers share through a store: the token, the cooldown and the budget entries.

A snapshot contains instants of one manager's clock. The store contains ages and remaining seconds instead. What is read
from a store is validated like a response of the service. A store in the process' own memory keeps the snapshot itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .arguments import is_number
from .constants import NEVER
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
from .token import Token, expires_at, token_age
from .wire import is_header_value

NO_ENTRIES: Mapping[str, Mapping[str, float]] = MappingProxyType({})
"""No budget entries: one object for all snapshots."""

_LONGEST = 86_400.0  # seconds; nothing in a snapshot lasts longer
_OLDEST = 1e10  # seconds; nothing in a snapshot is older, whatever the limits of the budget are
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
    """State of a merchant's token, as one manager knows it.

    Attributes:
        token: The newest token.
        cooldown_reason: Why no token request is sent before *cooldown_until*.
        cooldown_until: End of the cooldown.
        failures: Consecutive failed fetches.
        refreshed_at: When the last regular token request was sent.
        budget_entries: When each unit of the budget was acquired: the instants by id, for each history by key.
    """

    token: Token | None = None
    cooldown_reason: Failure | None = None
    cooldown_until: float = NEVER
    failures: int = 0
    refreshed_at: float = NEVER
    budget_entries: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: NO_ENTRIES)

    def dump(self, now: float) -> Secret:
        """Serialize it for the store."""
        token, cooldown_reason = self.token, self.cooldown_reason
        if token is not None and now >= expires_at(token):
            token = None
        text = json.dumps(
            {
                "format": _FORMAT,
                "token": token
                and {
                    "access_token": str(token.access_token),
                    "session_id": str(token.session_id),
                    "expires_in": token.expires_in,
                    "age": token_age(token, now),
                },
                "bar": cooldown_reason
                and now < self.cooldown_until
                and {**failure_to(cooldown_reason), "remaining": self.cooldown_until - now},
                "failures": self.failures,
                "ordinary_age": None if self.refreshed_at == NEVER else now - self.refreshed_at,
                "spent": {},  # read by versions that counted each limit separately
                "history": {
                    key: {name: round(now - at, 3) for name, at in entries.items()}
                    for key, entries in self.budget_entries.items()
                },
            },
            separators=(",", ":"),
        )
        return Secret(text)

    def for_this_process(self, now: float) -> Snapshot | None:
        """Return what another manager of this process may know: the same as of a store elsewhere, with the same token.

        A failure loses its cause, and one that other managers do not have loses everything.
        """
        return self if self.cooldown_reason is None else load(self.dump(now), 0.0, now, now)

    def ttl(self, now: float) -> float:
        """Return the seconds for which it is useful to other managers."""
        ends = [self.cooldown_until]
        if self.token is not None:
            ends.append(expires_at(self.token))
        return max(*ends, now) - now


def record_key(base_url: str, credentials: ApiKey) -> str:
    """Return the key of the record that managers with these credentials share. It does not reveal them."""
    return hashlib.sha256(f"{base_url}\n{credentials.digest}".encode()).hexdigest()[:32]


def load(content: object, age: float, asked_at: float, now: float, *, stored: float | None = None) -> Snapshot | None:
    """Deserialize a snapshot that was written *age* and stored *stored* seconds ago; ``None`` if it is invalid.

    The store operation took from *asked_at* to *now*. Its duration is counted on the safe side: the token is older by
    as much, and the cooldown and the units of the budget are younger. A snapshot of this process is returned as it is.
    """
    if isinstance(content, Snapshot):
        return content
    if not isinstance(content, str):
        return None
    try:
        return _load(json.loads(content), asked_at - age, now - (age if stored is None else min(age, stored)))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None  # the exception contains the whole content


def _load(document: Any, earliest: float, latest: float) -> Snapshot:
    if document["format"] != _FORMAT:
        raise ValueError
    token, cooldown_reason, ordinary_age = document["token"], document["bar"], document["ordinary_age"]
    return Snapshot(
        token=_token(token, earliest) if token else None,
        cooldown_reason=failure_from(cooldown_reason) if cooldown_reason else None,
        cooldown_until=latest + _seconds(cooldown_reason["remaining"]) if cooldown_reason else NEVER,
        failures=int(_seconds(document["failures"])),
        refreshed_at=NEVER if ordinary_age is None else latest - _seconds(ordinary_age, _OLDEST),
        budget_entries={
            str(key): {str(name): latest - _seconds(age, _OLDEST) for name, age in entries.items()}
            for key, entries in document.get("history", {}).items()
        },
    )


def _token(document: Any, written_at: float) -> Token:
    access_token, session_id = document["access_token"], document["session_id"]
    if not (is_header_value(access_token) and is_header_value(session_id)):
        raise ValueError
    return Token(access_token, session_id, _seconds(document["expires_in"]), written_at - _seconds(document["age"]))


def failure_to(failure: Failure) -> dict[str, Any]:
    """Serialize a failure for the store."""
    return {
        "kind": failure.kind.__name__,
        "message": failure.message,
        "status": failure.status,
        "server_message": failure.server_message,
        "retryable": failure.retryable,
    }


def failure_from(document: Any) -> Failure:
    """Deserialize a failure.

    Raises:
        ValueError: It is invalid; or :class:`TypeError`, or :class:`LookupError`.
    """
    status, server_message = document["status"], document["server_message"]
    if not isinstance(document["message"], str) or not isinstance(server_message, (str, type(None))):
        raise TypeError
    return Failure(
        _KINDS[document["kind"]],
        redact(document["message"]),
        status=None if status is None else int(_seconds(status)),
        server_message=server_message and redact(server_message),
        retryable=document["retryable"] is True,
    )


def _seconds(value: Any, most: float = _LONGEST) -> float:
    if not is_number(value) or not 0 <= value <= most:
        raise ValueError
    return float(value)
