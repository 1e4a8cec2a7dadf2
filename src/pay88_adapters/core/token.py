"""The access token and the session id that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from .secret import InjectedHeader, Secret

AUTHORIZATION = "Authorization"
SESSION_ID = "x-session-id"
MANAGED_FIELDS = frozenset({"authorization", "x-session-id"})


_BEARER = "Bearer "


class RawFields(list[tuple[bytes, bytes, bytes]]):
    """Headers in bytes: name, name in lower case, value. The repr shows none of them.

    A list, as it is added to lists; it does not change.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} headers>"


class _OnDemand:
    """Values that a token makes at first use. No dataclass: ``asdict()`` would show the bytes."""

    __slots__ = ("_headers", "raw")
    _headers: dict[str, str] | None
    raw: RawFields | None
    """The result of :meth:`Token.encoded`, if it was called."""


@dataclass(frozen=True, slots=True, init=False)
class Token(_OnDemand):
    """An access token with its session id. The two are always sent together.

    Args:
        access_token: Sent as ``Authorization: Bearer …``.
        session_id: Sent as ``x-session-id``.
        expires_in: Lifetime that the service granted, in seconds from *requested_at*.
        requested_at: When its token request was sent, on the manager's clock (seconds).
    """

    expires_in: float
    requested_at: float = field(compare=False)
    authorization: InjectedHeader = field(repr=False)
    """The value of ``Authorization`` as an adapter adds it."""
    session: InjectedHeader = field(repr=False)
    """The value of ``x-session-id`` as an adapter adds it."""

    def __init__(self, access_token: str, session_id: str, expires_in: float, requested_at: float) -> None:
        put = object.__setattr__  # frozen for all other code
        put(self, "expires_in", expires_in)
        put(self, "requested_at", requested_at)
        # The only copy of each: a process may hold tokens of many merchants.
        put(self, "authorization", InjectedHeader(f"{_BEARER}{access_token!s}"))
        put(self, "session", InjectedHeader(session_id))
        put(self, "_headers", None)
        put(self, "raw", None)

    @property
    def access_token(self) -> str:
        """Sent as ``Authorization: Bearer …``."""
        return self.authorization[len(_BEARER) :]  # as redacted as the whole value

    @property
    def session_id(self) -> str:
        """Sent as ``x-session-id``."""
        return Secret(self.session)

    @property
    def attached(self) -> dict[str, str]:
        """The headers as an adapter adds them, in a new dict."""
        return {AUTHORIZATION: self.authorization, SESSION_ID: self.session}

    def headers(self) -> dict[str, str]:
        """Return the two headers of a managed request, as a new dict."""
        headers: dict[str, str] | None = self._headers
        if headers is None:
            headers = {name: Secret(value) for name, value in self.attached.items()}
            object.__setattr__(self, "_headers", headers)
        return headers.copy()

    def encoded(self) -> RawFields:
        """Return the two headers in the representation of httpx and httpx2."""
        fields = self.attached.items()
        raw = RawFields((name.encode(), name.lower().encode(), value.encode()) for name, value in fields)
        object.__setattr__(self, "raw", raw)
        return raw

    def __copy__(self) -> Token:
        return self

    def __deepcopy__(self, memo: object) -> Token:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("tokens cannot be pickled, because they are secrets: use a TokenManager in each process")


def expires_at(token: Token) -> float:
    """Return when *token* expires, in seconds of the manager's clock."""
    return token.requested_at + token.expires_in


def token_age(token: Token, now: float) -> float:
    """Return the seconds since *token* was requested."""
    return now - token.requested_at
