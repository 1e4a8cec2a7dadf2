"""What the tests of emulator and their neighbours share."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from pay88_adapters.testing import (
    Emulator,
)

TOKEN, ECHO = "/api/auth/token", "/api/echo"


CHARGES = "/api/transactions/charges"


class Client:
    """A merchant with urllib3, no retries, and whatever token it got last."""

    def __init__(self, emulator: Emulator, **pool: Any) -> None:
        self.emulator = emulator
        self.http = urllib3.PoolManager(retries=False, timeout=10, **pool)
        self.headers: dict[str, str] = {}

    def ask(self) -> urllib3.BaseHTTPResponse:
        """Request a token, and keep it."""
        keys = {"x-api-key": self.emulator.api_key, "x-merchant-id": self.emulator.merchant_id}
        response = self.http.request("POST", self.emulator.url + TOKEN, headers=keys, redirect=False)
        if response.status == 200:
            granted = response.json()["data"]
            self.headers = {
                "Authorization": f"Bearer {granted['access_token']}",
                "x-session-id": granted["session_id"],
            }
        return response

    def call(self, path: str = ECHO, method: str = "POST", **how: Any) -> urllib3.BaseHTTPResponse:
        """Make a call with the token."""
        headers = {**self.headers, **how.pop("headers", {})}
        return self.http.request(method, self.emulator.url + path, headers=headers, redirect=False, **how)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An emulator without limits on calls."""
    with Emulator(call_limits=()) as running:
        yield running


@pytest.fixture
def client(emulator: Emulator) -> Iterator[Client]:
    """A client of it that has a token."""
    merchant = Client(emulator, maxsize=4)
    merchant.ask()
    yield merchant
    merchant.http.clear()


def _connected(emulator: Emulator) -> socket.socket:
    return socket.create_connection(("127.0.0.1", emulator.port), timeout=10)


def _request(method: str, path: str, fields: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()
