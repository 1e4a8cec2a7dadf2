"""The tokens that the service has issued."""

from __future__ import annotations

import base64
import json
import math
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token and its session id."""

    serial: int
    access_token: str = field(repr=False)
    session_id: str = field(repr=False)
    at: float
    merchant_id: str


class IssuedTokens:
    """All tokens issued so far, in order. The caller holds the lock.

    Args:
        rng: Source of the secrets.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._tokens: list[IssuedToken] = []
        self._by_value: dict[str, IssuedToken] = {}
        self._rejected_up_to = 0  # tokens with this serial and older ones are rejected

    def __len__(self) -> int:
        return len(self._tokens)

    def issue(self, merchant_id: str, lifetime: float, now: float, wall: float) -> IssuedToken:
        """Make another token, a JWT like the service's."""
        issued_at = int(wall)
        claims = {
            "sub": merchant_id,
            "iat": issued_at,
            "exp": issued_at + math.ceil(lifetime),
            "jti": random_uuid(self._rng),
        }
        signature = self._rng.getrandbits(512).to_bytes(64, "big")
        parts = [_compact({"alg": "ES256", "typ": "JWT"}), _compact(claims), signature]
        access_token = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
        token = IssuedToken(len(self._tokens) + 1, access_token, f"sess_{random_uuid(self._rng)}", now, merchant_id)
        self._tokens.append(token)
        self._by_value[access_token] = token
        return token

    def find(self, access_token: str) -> IssuedToken | None:
        """Return the token with this value."""
        return self._by_value.get(access_token)

    def newest(self, at_most: int) -> Iterator[IssuedToken]:
        """Return the newest tokens, the newest first."""
        return reversed(self._tokens[-at_most:])

    def reject_all(self) -> None:
        """Reject every token issued until now."""
        self._rejected_up_to = len(self._tokens)

    def is_rejected(self, token: IssuedToken) -> bool:
        """Whether a token was issued before the last :meth:`reject_all`."""
        return token.serial <= self._rejected_up_to

    def secrets(self) -> list[str]:
        """Return every token and session id."""
        return [value for token in self._tokens for value in (token.access_token, token.session_id)]


def random_uuid(rng: random.Random) -> str:
    """Return a version 4 UUID."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
