"""Clients in the shape that generators of SDKs give them, in miniature."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import aiohttp
import httpx
import urllib3


class Configuration:
    """openapi-generator's: where a bearer token would be."""

    def __init__(self, host: str, access_token: str | None = None) -> None:
        self.host, self.access_token = host, access_token

    def auth_settings(self) -> dict[str, str]:
        """Return the headers of the security scheme."""
        return {} if self.access_token is None else {"Authorization": f"Bearer {self.access_token}"}


class Urllib3Rest:
    """rest.py of ``library=urllib3``."""

    def __init__(self) -> None:
        self.pool_manager = urllib3.PoolManager(num_pools=4)

    def request(self, method: str, url: str, headers: dict[str, str]) -> Any:
        """Send it."""
        return json.loads(self.pool_manager.request(method, url, headers=headers, preload_content=False).read())

    def close(self) -> None:
        """Close it."""
        self.pool_manager.clear()


class AsyncioRest:
    """rest.py of ``library=asyncio``: the session is made late."""

    def __init__(self) -> None:
        self.pool_manager: aiohttp.ClientSession | None = None

    async def request(self, method: str, url: str, headers: dict[str, str]) -> Any:
        """Send it."""
        if self.pool_manager is None:
            self.pool_manager = aiohttp.ClientSession(trust_env=True)
        async with self.pool_manager.request(method=method, url=url, headers=headers, timeout=300) as response:
            return json.loads(await response.read())

    async def close(self) -> None:
        """Close it."""
        if self.pool_manager:
            await self.pool_manager.close()


class HttpxRest:
    """rest.py of ``library=httpx``: the client is made late."""

    def __init__(self) -> None:
        self.pool_manager: httpx.AsyncClient | None = None

    async def request(self, method: str, url: str, headers: dict[str, str]) -> Any:
        """Send it."""
        if self.pool_manager is None:
            self.pool_manager = httpx.AsyncClient(trust_env=True)
        return (await self.pool_manager.request(method=method, url=url, headers=headers, timeout=300)).json()

    async def close(self) -> None:
        """Close it."""
        if self.pool_manager is not None:
            await self.pool_manager.aclose()


class BalanceApi:
    """An API whose specification says that the session id is a parameter."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def get_balance(self, x_session_id: str) -> Any:
        """Return the balance, or an awaitable of it."""
        configuration = self._client.configuration
        headers = {"Accept": "application/json", "x-session-id": x_session_id, **configuration.auth_settings()}
        return self._client.rest_client.request("POST", f"{configuration.host}/api/balance", headers)


def openapi_client(rest: Callable[[], Any]) -> ModuleType:
    """Return the package that openapi-generator makes, for one of its libraries."""

    class ApiClient:
        def __init__(self, configuration: Configuration) -> None:
            self.configuration, self.rest_client = configuration, rest()

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.rest_client.close()

        async def __aenter__(self) -> Any:
            return self

        async def __aexit__(self, *_: object) -> None:
            await self.rest_client.close()

    module: Any = ModuleType("openapi_client")
    module.Configuration, module.ApiClient, module.BalanceApi = Configuration, ApiClient, BalanceApi
    return module


class AuthenticatedClient:
    """openapi-python-client's: a token is required, and its header is set when the client is made, late."""

    def __init__(self, base_url: str, token: str, prefix: str = "Bearer", auth_header_name: str = "Authorization"):
        self._base_url, self._client = base_url, None
        self._headers = {auth_header_name: f"{prefix} {token}" if prefix else token}

    def set_httpx_client(self, client: Any) -> AuthenticatedClient:
        """Use another client."""
        self._client = client
        return self

    def get_httpx_client(self) -> Any:
        """Return the client."""
        if self._client is None:
            self._client = httpx.Client(base_url=self._base_url, headers=self._headers)
        return self._client


def shop_client() -> dict[str, ModuleType]:
    """Return the modules that openapi-python-client makes."""
    package: Any = ModuleType("shop_client")
    api: Any = ModuleType("shop_client.api")
    get_balance: Any = ModuleType("shop_client.api.get_balance")
    package.AuthenticatedClient = AuthenticatedClient
    package.api, api.get_balance = api, get_balance
    get_balance.sync = lambda client: client.get_httpx_client().request(method="post", url="/api/balance").json()
    return {module.__name__: module for module in (package, api, get_balance)}


def modules(sdk: str) -> dict[str, ModuleType]:
    """Return what a block of docs/tools/sdks.md may import that is generated."""
    rest = {"urllib3": Urllib3Rest, "aiohttp": AsyncioRest, "httpx": HttpxRest}.get(sdk.rpartition(" ")[2])
    assert "openapi_client" not in sys.modules
    return shop_client() | ({"openapi_client": openapi_client(rest)} if rest else {})
