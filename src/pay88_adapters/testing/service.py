"""88Pay's API as a state machine: it takes requests and the time, and returns responses.

No socket, no clock and no HTTP library in this file, and no code of the client that it checks. Durations are in
seconds; ``now`` is an instant on any monotonic clock. ``wall`` is Unix time, used only for the dates of the service.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from pay88_adapters.core.arguments import check_number
from pay88_adapters.engine.credentials import Credentials

from .issued import IssuedToken, IssuedTokens, random_uuid
from .messages import (
    BALANCE_PATH,
    CALL_LIMITS,
    CHARGES_PATH,
    ECHO_PATH,
    MESSAGES,
    TOKEN_LIMITS,
    TOKEN_PATH,
    Charge,
    Current,
    Event,
    Request,
    Response,
    Usage,
)
from .windows import Limits, MovingWindows, check_limits

_SECRET_SHAPES = r"eyJ[\w-]{8,}(?:\.[\w-]*)*|sess_[\w-]{8,}|sk_(?:test|live)_[\w-]+"
_BAD_CREDENTIALS = "Invalid API key or merchant ID"


class Service:
    """The service: credentials, tokens, rate limits and a few API requests. Thread-safe.

    Args:
        api_key: The key that is accepted, for ``merchant_id``.
        merchant_id: The merchant it belongs to.
        lifetime: How many seconds a token is accepted; at exactly that age it is rejected.
        expires_in: The value that the token endpoint announces as ``expires_in``, if it differs from *lifetime*: any
            JSON value.
        token_limits: Rate limits of the token endpoint, per merchant, as ``(count, seconds)`` pairs over moving
            windows. Every request counts, also one with a wrong key, except those that get a 429.
        call_limits: Rate limits of ``/api/transactions/…`` and, counted separately, of ``/api/balance``, per merchant.
            Only authenticated requests count. An empty sequence disables them.
        reissue: Respond to token requests with the current token until it expires, even if it has been rejected since,
            and announce its remaining lifetime.
        rng: Source of the secrets. Use a seeded one for the same tokens in every run.

    Raises:
        ConfigurationError: An argument has the wrong type or is out of range.
    """

    reject_if: Callable[[Request, float], bool] | None = None
    """Rejects the valid token of a request if this returns true for the request and the current time, as one of two
    servers of 88Pay may do. Called with the service's lock held."""

    def __init__(
        self,
        *,
        api_key: str = "sk_test_emulator",
        merchant_id: str = "MCH-COL-TEST-EMULATOR",
        lifetime: float = 60.0,
        expires_in: Any = None,
        token_limits: Limits = TOKEN_LIMITS,
        call_limits: Limits = CALL_LIMITS,
        reissue: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        Credentials(api_key, merchant_id)  # which no client could have otherwise
        check_number("lifetime", lifetime)
        for name, limits in (("token_limits", token_limits), ("call_limits", call_limits)):
            check_limits(name, limits)
        self.api_key = api_key
        self.merchant_id = merchant_id
        self.lifetime = lifetime
        self.expires_in = expires_in
        self.reissue = reissue
        self._limits = {"token": token_limits, "transactions": call_limits, "balance": call_limits}
        self._rng = rng if rng is not None else random.SystemRandom()
        self._lock = threading.RLock()
        self._credentials = {(api_key, merchant_id)}
        self._known_secrets = {api_key}
        self._suspended: set[str] = set()
        self._tokens = IssuedTokens(self._rng)
        self._charges: list[Charge] = []
        self._windows: dict[tuple[str, str], MovingWindows] = {}

    def __repr__(self) -> str:
        return f"<Service merchant={self.merchant_id!r} issued={self.issued} charges={len(self.charges)}>"

    # For tests

    @property
    def refuse_where(self) -> Callable[[Request, float], bool] | None:
        """Deprecated name of :attr:`reject_if`."""
        return self.reject_if

    @refuse_where.setter
    def refuse_where(self, condition: Callable[[Request, float], bool] | None) -> None:
        self.reject_if = condition

    @property
    def issued(self) -> int:
        """Number of issued tokens; also the serial of the newest one."""
        return len(self._tokens)

    @property
    def charges(self) -> tuple[Charge, ...]:
        """The executed charges, in order."""
        with self._lock:
            return tuple(self._charges)

    def secrets(self) -> frozenset[str]:
        """Return every key, token and session id so far, for tests that look for leaks."""
        with self._lock:
            return frozenset([*self._known_secrets, *self._tokens.secrets()])

    def masked(self, text: str) -> str:
        """Return *text* with its keys redacted, and everything that looks like a key or a token."""
        with self._lock:
            keys = {form for key in self._known_secrets for form in (key, quote(key, safe=""))}
        exact = sorted(map(re.escape, keys), key=len, reverse=True)
        return re.sub("|".join([_SECRET_SHAPES, *exact]), "•••", text)

    def usage(self, now: float) -> list[Usage]:
        """Return the used units of each limit, of the initial merchant and of all others that sent requests."""
        with self._lock:
            owners = [*((group, self.merchant_id) for group in self._limits), *self._windows]
            return [
                Usage(group, owner, *state)
                for group, owner in dict.fromkeys(owners)
                for state in self._window_of(group, owner).usage(now)
            ]

    def current_tokens(self, now: float, at_most: int = 20) -> list[Current]:
        """Return the tokens that have not expired, newest first, without their values."""
        with self._lock:
            return [
                Current(
                    each.serial, each.at, each.at + self.lifetime, each.merchant_id,
                    self._tokens.is_rejected(each),
                )
                for each in self._tokens.newest(at_most)
                if now - each.at < self.lifetime
            ]  # fmt: skip

    @property
    def suspended(self) -> frozenset[str]:
        """The merchants that are suspended."""
        with self._lock:
            return frozenset(self._suspended)

    def reset_rate_limits(self) -> None:
        """Reset the rate limits: all units are available again."""
        with self._lock:
            self._windows.clear()

    def forget_usage(self) -> None:
        """Deprecated name of :meth:`reset_rate_limits`."""
        self.reset_rate_limits()

    def rotate_credentials(self, api_key: str) -> None:
        """Accept only this key of the merchant. Tokens stay valid, as with :meth:`reject_credentials`."""
        with self._lock:
            others = {pair for pair in self._credentials if pair[1] != self.merchant_id}
            self._credentials = {*others, (api_key, self.merchant_id)}
            self._known_secrets.add(api_key)

    def revoke_current_tokens(self) -> None:
        """Reject every token issued until now."""
        with self._lock:
            self._tokens.reject_all()

    def refuse_current_tokens(self) -> None:
        """Deprecated name of :meth:`revoke_current_tokens`."""
        self.revoke_current_tokens()

    def accept_credentials(self, api_key: str, merchant_id: str | None = None) -> None:
        """Accept another key, of this merchant or of another one; the other keys stay valid."""
        with self._lock:
            self._credentials.add((api_key, merchant_id or self.merchant_id))
            self._known_secrets.add(api_key)

    def reject_credentials(self, api_key: str) -> None:
        """Reject a key. Tokens that were issued for it stay valid until they expire."""
        with self._lock:
            self._credentials = {pair for pair in self._credentials if pair[0] != api_key}

    def suspend(self, merchant_id: str | None = None) -> None:
        """Respond to a merchant's token requests and API requests with 403."""
        with self._lock:
            self._suspended.add(merchant_id or self.merchant_id)

    def reinstate(self, merchant_id: str | None = None) -> None:
        """Undo :meth:`suspend`."""
        with self._lock:
            self._suspended.discard(merchant_id or self.merchant_id)

    # For the server

    def handle(self, received: Request, now: float, wall: float) -> Response:
        """Execute a request and return the response."""
        with self._lock:
            kind = received.kind
            if kind == "token" and received.method == "POST":
                return self._token_request(received, now, wall)
            if kind == "call":
                return self._call(received, now, wall)
            return self.error(404, received, now, wall, event="unknown")

    def trace(self, received: Request, now: float) -> tuple[int | None, float | None]:
        """Return the serial and the age of the token that a request carries; ``None`` if unknown."""
        with self._lock:
            token = self._tokens.find(_bearer(received))
            return (None, None) if token is None else (token.serial, now - token.at)

    def count(self, received: Request, now: float) -> None:
        """Count a request that gets the response of a fault, if a unit is left."""
        with self._lock:
            window = self._window(received)
            if not window.wait(now):
                window.hit(now)

    def error(
        self,
        status: int,
        received: Request,
        now: float,
        wall: float,
        *,
        message: str | None = None,
        event: Event = "failed",
        serial: int | None = None,
        **more: Any,
    ) -> Response:
        """Return an error in the documented form; *more* is added to the body."""
        if message is None:
            message = MESSAGES.get(status, "Error")
        body = {"status": "Error", "code": status, "message": message, **more}
        response = Response(status, json.dumps(body).encode(), event=event, serial=serial)
        return self._announced(response, received, now, wall)

    # Tokens

    def _token_request(self, received: Request, now: float, wall: float) -> Response:
        window = self._window(received)
        if wait := window.wait(now):
            return self._limited(wait, received, now, wall)
        window.hit(now)
        merchant_id = received.headers.get("x-merchant-id", "")
        if (received.headers.get("x-api-key", ""), merchant_id) not in self._credentials:
            return self.error(401, received, now, wall, message=_BAD_CREDENTIALS, event="unauthorized")
        if merchant_id in self._suspended:
            return self.error(403, received, now, wall, message="Account suspended", event="forbidden")
        current = next(iter(self._tokens.newest(1)), None) if self.reissue else None
        if current is not None and current.merchant_id == merchant_id and now - current.at < self.lifetime:
            left = self.lifetime - (now - current.at)
            return self._granted(current, left, "reissued", received, now, wall)
        token = self._tokens.issue(merchant_id, self.lifetime, now, wall)
        return self._granted(token, self.lifetime, "issued", received, now, wall)

    def _granted(
        self, token: IssuedToken, left: float, event: Event, received: Request, now: float, wall: float
    ) -> Response:
        expires_in = self.expires_in
        if expires_in is None:
            expires_in = int(left) if left == int(left) else left
        data = {
            "access_token": token.access_token,
            "expires_in": expires_in,
            "session_id": token.session_id,
        }
        response = _success("Token generated successfully", data, event, token.serial)
        return self._announced(response, received, now, wall)

    # API requests

    def _call(self, received: Request, now: float, wall: float) -> Response:
        token = self._tokens.find(_bearer(received))
        serial = None if token is None else token.serial
        if token is None or not self._accepts(token, received, now):
            return self.error(401, received, now, wall, event="unauthorized", serial=serial)
        if token.merchant_id in self._suspended:
            return self.error(403, received, now, wall, event="forbidden", serial=serial)
        window = self._window(received)
        if wait := window.wait(now):
            return self._limited(wait, received, now, wall, serial)
        window.hit(now)
        response = self._act(received, token, now)
        if isinstance(response, int):
            event: Event = "unknown" if response == 404 else "forbidden" if response == 403 else "invalid"
            return self.error(response, received, now, wall, event=event, serial=serial)
        return self._announced(response, received, now, wall)

    def _accepts(self, token: IssuedToken, received: Request, now: float) -> bool:
        if received.headers.get("x-session-id") != token.session_id:
            return False  # missing, or of another token: the two are a pair
        if self._tokens.is_rejected(token) or now - token.at >= self.lifetime:
            return False
        return self.reject_if is None or not self.reject_if(received, now)

    def _act(self, received: Request, token: IssuedToken, now: float) -> Response | int:
        """Execute an authenticated API request; return the status code of the error if it fails."""
        if received.route == ECHO_PATH:
            return self._echo(received, token)
        if received.method == "POST" and received.route == BALANCE_PATH:
            return self._balance(received, token)
        if received.method == "POST" and received.route == CHARGES_PATH:
            return self._charge(received, token, now)
        return 404

    def _echo(self, received: Request, token: IssuedToken) -> Response:
        digest = hashlib.sha256(received.body).hexdigest()
        data = {"method": received.method, "length": len(received.body), "sha256": digest}
        return _success("Echo", data, "echo", token.serial)

    def _balance(self, received: Request, token: IssuedToken) -> Response | int:
        merchants = received.query.get("id", [token.merchant_id])
        if merchants != [token.merchant_id]:
            return 403
        data = {"id": token.merchant_id, "balance": 100_000, "currency": "COP"}
        return _success("Balance retrieved successfully", data, "balance", token.serial)

    def _charge(self, received: Request, token: IssuedToken, now: float) -> Response | int:
        media_type = received.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            return 400
        try:
            body = json.loads(received.body)
        except ValueError:
            return 400
        if not isinstance(body, dict):
            return 422
        reference = random_uuid(self._rng)
        self._charges.append(Charge(reference, now, body))
        data = {"reference": reference, "urlCheckout": f"https://checkout.88pay.example/{reference}"}
        return _success("Charge created successfully", data, "charged", token.serial)

    # Limits

    def _window(self, received: Request) -> MovingWindows:
        return self._window_of(*self._group(received))

    def _window_of(self, group: str, owner: str) -> MovingWindows:
        if (group, owner) not in self._windows:
            self._windows[group, owner] = MovingWindows(self._limits.get(group, ()))
        return self._windows[group, owner]

    def _group(self, received: Request) -> tuple[str, str]:
        """Return the limits that apply to a request, and the merchant."""
        route = received.route
        if route == TOKEN_PATH:
            return "token", received.headers.get("x-merchant-id", "")
        token = self._tokens.find(_bearer(received))
        owner = "" if token is None else token.merchant_id
        if route.startswith("/api/transactions/"):
            return "transactions", owner
        return "balance" if route == BALANCE_PATH else "other", owner

    def _limited(self, wait: float, received: Request, now: float, wall: float, serial: int | None = None) -> Response:
        seconds = max(1, math.ceil(wait))
        response = self.error(429, received, now, wall, event="limited", serial=serial, retry_after=seconds)
        return replace(response, headers=(*response.headers, ("Retry-After", str(seconds))))

    def _announced(self, response: Response, received: Request, now: float, wall: float) -> Response:
        """Add the date and the ``X-RateLimit-*`` headers of every response."""
        with self._lock:
            state = self._window(received).state(now)
        # A response without a limit has the headers too, with at least one remaining request.
        limit, remaining, back_in = state or (1000, 1000, 0.0)
        return replace(
            response,
            headers=(
                *response.headers,
                ("Date", formatdate(wall, usegmt=True)),
                ("X-RateLimit-Limit", str(limit)),
                ("X-RateLimit-Remaining", str(remaining)),
                ("X-RateLimit-Reset", str(math.ceil(wall + back_in))),
            ),
        )


def _bearer(received: Request) -> str:
    scheme, _, value = received.headers.get("authorization", "").partition(" ")
    return value if scheme == "Bearer" else ""


def _success(message: str, data: dict[str, Any], event: Event, serial: int) -> Response:
    body = {"status": "Success", "code": 200, "message": message, "data": data}
    return Response(200, json.dumps(body).encode(), event=event, serial=serial, executed=True)
