"""Reading a token that is there."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.byhand import AsyncManager, Floor, Manager
from benchmarks.service import Grant, Service

from . import atimed, on_a_loop, timed

FLOOR = "clock + attribute"
CONTROL = "clock + attribute again"
ROWS = {
    "sync": (
        FLOOR,
        CONTROL,
        "by hand",
        "pay88-adapters",
        "google-auth",
        "authlib",
        "httpx-auth",
        "botocore",
        "azure-core",
    ),
    "awaited": (FLOOR, CONTROL, "by hand", "pay88-adapters", "authlib", "azure-core"),
}


def read(row: str, times: int, threads: int, service: dict[str, Any]) -> dict[str, float]:
    """Return what one read takes, in one thread or in several that share a manager."""
    get = reader(row, Service(**service))
    get()

    def loop() -> None:
        for _ in range(times):
            get()

    if threads == 1:
        return timed(loop, times)
    workers = [threading.Thread(target=loop) for _ in range(threads)]

    def run() -> None:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return timed(run, times * threads)


def aread(row: str, times: int, service: dict[str, Any]) -> dict[str, float]:
    """Return what one awaited read takes."""

    async def main() -> dict[str, float]:
        get = _areader(row, Service(**service))
        await get()

        async def run() -> None:
            for _ in range(times):
                await get()

        return await atimed(run, times)

    result: dict[str, float] = on_a_loop(main)
    return result


def reader(row: str, service: Service) -> Callable[[], object]:
    """Return what reads the token of a row."""
    if row in (FLOOR, CONTROL):
        return Floor(service.ask()).headers
    if row == "by hand":
        return Manager(service.ask, service.margin).headers
    if row == "pay88-adapters":
        from benchmarks.contestants.ours import manager

        return manager(service).get_token
    from benchmarks import peers

    if row == "google-auth":
        google, headers = peers.google_credentials(service), dict[str, str]()
        return lambda: google.before_request(None, "POST", service.call_url, headers)
    if row == "authlib":
        from authlib.integrations.requests_client import OAuth2Session

        session = peers.hook_authlib(OAuth2Session(**peers.authlib_options(service)), service)
        ensure: Callable[[], object] = session.ensure_active_token
        return ensure
    if row == "httpx-auth":
        return peers.httpx_auth_reader(service)
    if row == "botocore":
        frozen: Callable[[], object] = peers.botocore_credentials(service).get_frozen_credentials
        return frozen
    return peers.azure_reader(service)


def _areader(row: str, service: Service) -> Callable[[], Awaitable[object]]:
    async def ask() -> Grant:
        return service.ask()

    if row in (FLOOR, CONTROL):
        return Floor(service.ask()).aheaders
    if row == "by hand":
        return AsyncManager(ask, service.margin).headers
    if row == "pay88-adapters":
        from benchmarks.contestants.ours import manager

        return manager(service).aget_token
    from benchmarks import peers

    if row == "authlib":
        kind = peers.authlib_httpx_client("httpx2", tasks=True)
        client = peers.hook_authlib(kind(**peers.authlib_options(service)), service)
        return lambda: client.ensure_active_token(client.token)
    return peers.azure_areader(service, ask)
