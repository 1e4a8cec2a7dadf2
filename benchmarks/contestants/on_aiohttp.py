"""aiohttp."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from benchmarks import stubs
from benchmarks.byhand import AsyncManager
from benchmarks.service import Grant, Service

from . import BARE, BY_HAND, CONTROL, OURS, STATIC, Call, Contestant


def _session(service: Service, **options: Any) -> aiohttp.ClientSession:
    connector = stubs.aiohttp_connector() if service.in_memory else aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, **options)


def _calling(session: Any, service: Service) -> Call:
    urls = service.call_urls()

    async def call() -> int:
        async with session.post(next(urls)) as response:
            await response.read()
            status: int = response.status
            return status

    return call


def _fetching(service: Service) -> Callable[[], Awaitable[Grant]]:
    async def ask() -> Grant:
        async with aiohttp.ClientSession() as session, session.post(service.token_url, headers=service.keys) as reply:
            return Grant.parse(await reply.read())

    return ask


def _bare(service: Service) -> Call:
    return _calling(_session(service), service)


def _static(service: Service) -> Call:
    return _calling(_session(service, headers=service.ask().headers()), service)


def _by_hand(service: Service) -> Call:
    session, manager = _session(service), AsyncManager(_fetching(service), service.margin)
    urls = service.call_urls()

    async def send(url: str, headers: dict[str, str]) -> int:
        async with session.post(url, headers=headers) as response:
            await response.read()
            return response.status

    async def call() -> int:
        headers, url = await manager.headers(), next(urls)
        status = await send(url, headers)
        if status == 401:
            manager.invalidate(headers)
            status = await send(url, await manager.headers())
        return status

    return call


def _recipe(service: Service) -> Call:
    """The cookbook's token refresh middleware, with both header fields."""
    manager = AsyncManager(_fetching(service), service.margin)

    async def middleware(request: Any, handler: Any) -> Any:
        for attempt in range(2):
            headers = await manager.headers()
            request.headers.update(headers)
            response = await handler(request)
            if response.status != 401 or attempt:
                break
            manager.invalidate(headers)
        return response

    return _calling(_session(service, middlewares=(middleware,)), service)


def _ours(service: Service) -> Call:
    from pay88_adapters.aiohttp import attach

    from .ours import manager

    return _calling(attach(_session(service), manager(service)), service)


def _google(service: Service) -> Call:
    from google.auth.aio.transport.aiohttp import Request
    from google.auth.aio.transport.sessions import AsyncAuthorizedSession

    from benchmarks.peers import google_credentials

    session = AsyncAuthorizedSession(google_credentials(service), auth_request=Request(_session(service)))
    urls = service.call_urls()

    async def call() -> int:
        response = await session.post(next(urls))
        await response.read()
        status: int = response.status_code
        return status

    return call


def _azure(service: Service) -> Call:
    from azure.core import AsyncPipelineClient
    from azure.core.pipeline.transport import AioHttpTransport
    from azure.core.rest import HttpRequest

    from benchmarks.peers import azure_async_policy

    transport = AioHttpTransport(session=_session(service), session_owner=False)
    policy = azure_async_policy(service, _fetching(service))
    client: Any = AsyncPipelineClient(service.url, policies=[policy], transport=transport)
    urls = service.call_urls()

    async def call() -> int:
        response = await client.send_request(HttpRequest("POST", next(urls)), enforce_https=False)
        await response.read()
        status: int = response.status_code
        return status

    return call


_ALL = (
    Contestant(BARE, _bare, both=False, survives=False),
    Contestant(CONTROL, _bare, both=False, survives=False),
    Contestant(STATIC, _static, survives=False),
    Contestant(BY_HAND, _by_hand),
    Contestant(OURS, _ours),
    Contestant("recipe", _recipe),
    Contestant("google-auth", _google),
    Contestant("azure-core", _azure, survives=False),
)


def contestant(name: str, library: str, tasks: bool) -> Contestant:
    """Return one row."""
    return next(each for each in _ALL if each.name == name)
