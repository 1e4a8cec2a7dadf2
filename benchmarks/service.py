"""Where the calls of a measurement go, and how a token is fetched without any library."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Grant:
    """The response of the token endpoint."""

    access_token: str
    session_id: str
    expires_in: float

    @classmethod
    def parse(cls, body: bytes | str) -> Grant:
        """Read the body of a 200."""
        data: dict[str, Any] = json.loads(body)["data"]
        return cls(data["access_token"], data["session_id"], float(data["expires_in"]))

    def headers(self) -> dict[str, str]:
        """Return the two header fields of a call."""
        return {"Authorization": f"Bearer {self.access_token}", "x-session-id": self.session_id}


@dataclass(frozen=True, slots=True)
class Service:
    """The emulator, as a process that measures sees it.

    Attributes:
        lifetime: Lifetime of a token in seconds.
        in_memory: Whether calls go to a stub in place of the network. Tokens come from the emulator all the same.
        new_ids: Whether each call has an id of its own in its URL, so that nothing can be cached by URL.
    """

    url: str
    api_key: str
    merchant_id: str
    lifetime: float = 60.0
    in_memory: bool = False
    new_ids: bool = False

    @property
    def call_url(self) -> str:
        """Return what calls are POSTed to."""
        return f"{self.url}/api/balance?id={self.merchant_id}"

    def call_urls(self) -> Iterator[str]:
        """Yield what every contestant POSTs to, call by call."""
        url = self.call_url
        return map(f"{url}-{{:08}}".format, count()) if self.new_ids else repeat(url)

    @property
    def token_url(self) -> str:
        """Return the token endpoint."""
        return f"{self.url}/api/auth/token"

    @property
    def keys(self) -> dict[str, str]:
        """Return the header fields of a token request."""
        return {"x-api-key": self.api_key, "x-merchant-id": self.merchant_id}

    @property
    def margin(self) -> float:
        """Return how long before its expiry a token is replaced: what 10 s are to the 60 s of 88Pay."""
        return self.lifetime / 6

    def ask(self) -> Grant:
        """Fetch a token, on a connection of its own."""
        target = urlsplit(self.token_url)
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=10)
        try:
            connection.request("POST", target.path, headers=self.keys)
            response = connection.getresponse()
            body = response.read()
            if response.status != http.client.OK:
                raise OSError(f"the token endpoint answered {response.status}")
            return Grant.parse(body)
        finally:
            connection.close()
