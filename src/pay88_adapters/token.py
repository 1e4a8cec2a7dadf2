"""The access token and the session id that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from .secret import Attached, Secret

AUTHORIZATION = "Authorization"
SESSION_ID = "x-session-id"
MANAGED_FIELDS = frozenset({"authorization", "x-session-id"})


@dataclass(frozen=True, slots=True)
class Token:
    """An access token with its session id: the two always travel together.

    Attributes:
        access_token: Goes out as ``Authorization: Bearer …``.
        session_id: Goes out as ``x-session-id``.
        expires_in: Seconds the service granted, counted from *requested_at*.
        requested_at: When its token request was sent, on the manager's clock (seconds).
    """

    access_token: str = field(repr=False)
    session_id: str = field(repr=False)
    expires_in: float
    requested_at: float = field(compare=False)
    attached: dict[str, str] = field(init=False, repr=False, compare=False)
    """The header fields as an adapter attaches them; shared, so never changed."""

    def __post_init__(self) -> None:
        put = object.__setattr__  # frozen for everyone else
        put(self, "access_token", Secret(self.access_token))
        put(self, "session_id", Secret(self.session_id))
        bearer = f"Bearer {self.access_token!s}"
        put(self, "attached", {AUTHORIZATION: Attached(bearer), SESSION_ID: Attached(self.session_id)})

    def headers(self) -> dict[str, str]:
        """Return the two header fields of a managed call, as a new dict."""
        return {name: Secret(value) for name, value in self.attached.items()}

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token is a secret and is not pickled: let each process ask its own TokenManager")
