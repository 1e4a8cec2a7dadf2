"""httpx and httpx2, sync and async."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks import stubs
from benchmarks.byhand import AsyncManager, Manager
from benchmarks.service import Grant, Service

from . import BARE, BY_HAND, CONTROL, OURS, STATIC, Call, Contestant


class _Side:
    """One library, sync or async."""

    def __init__(self, name: str, tasks: bool) -> None:
        self.name, self.tasks = name, tasks
        self.library: Any = import_module(name)

    def options(self, service: Service) -> dict[str, Any]:
        """Return a client's options."""
        if service.in_memory:
            return {"transport": stubs.httpx_transport(self.library, is_async=self.tasks)}
        return {"limits": self.library.Limits(max_connections=None, max_keepalive_connections=64), "timeout": 30}

    def client(self, service: Service, **options: Any) -> Any:
        """Return a client."""
        kind = self.library.AsyncClient if self.tasks else self.library.Client
        return kind(**self.options(service), **options)

    def calling(self, client: Any, service: Service) -> Call:
        """Return what makes one call."""
        urls = service.call_urls()
        if not self.tasks:
            return lambda: client.post(next(urls)).status_code

        async def call() -> int:
            status: int = (await client.post(next(urls))).status_code
            return status

        return call

    def fetching(self, service: Service) -> Callable[[], Awaitable[Grant]]:
        """Return a function that fetches a token on the event loop."""

        async def ask() -> Grant:
            async with self.library.AsyncClient() as client:
                return Grant.parse((await client.post(service.token_url, headers=service.keys)).content)

        return ask


def _bare(side: _Side, service: Service) -> Call:
    return side.calling(side.client(service), service)


def _static(side: _Side, service: Service) -> Call:
    return side.calling(side.client(service, headers=service.ask().headers()), service)


def _by_hand(side: _Side, service: Service) -> Call:
    client, urls = side.client(service), service.call_urls()
    if side.tasks:
        tasks = AsyncManager(side.fetching(service), service.margin)

        async def acall() -> int:
            headers, url = await tasks.headers(), next(urls)
            response = await client.post(url, headers=headers)
            if response.status_code == 401:
                tasks.invalidate(headers)
                response = await client.post(url, headers=await tasks.headers())
            status: int = response.status_code
            return status

        return acall
    threads = Manager(service.ask, service.margin)

    def call() -> int:
        headers, url = threads.headers(), next(urls)
        response = client.post(url, headers=headers)
        if response.status_code == 401:
            threads.invalidate(headers)
            response = client.post(url, headers=threads.headers())
        status: int = response.status_code
        return status

    return call


def _recipe(side: _Side, service: Service) -> Call:
    """The documented custom authentication: a generator that attaches, looks at a 401, and yields once more."""
    threads, tasks = Manager(service.ask, service.margin), AsyncManager(side.fetching(service), service.margin)

    class Auth(side.library.Auth):  # type: ignore[misc,name-defined]
        def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            headers = threads.headers()
            request.headers.update(headers)
            response = yield request
            if response.status_code == 401:
                threads.invalidate(headers)
                request.headers.update(threads.headers())
                yield request

        async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
            headers = await tasks.headers()
            request.headers.update(headers)
            response = yield request
            if response.status_code == 401:
                tasks.invalidate(headers)
                request.headers.update(await tasks.headers())
                yield request

    return side.calling(side.client(service, auth=Auth()), service)


def _ours(side: _Side, service: Service) -> Call:
    from .ours import manager

    attach = import_module(f"pay88_adapters.{side.name}").attach
    return side.calling(attach(side.client(service), manager(service)), service)


def _authlib(side: _Side, service: Service) -> Call:
    from benchmarks.peers import authlib_httpx_client, authlib_options, hook_authlib

    kind = authlib_httpx_client(side.name, side.tasks)
    client = kind(**authlib_options(service), **side.options(service))
    return side.calling(hook_authlib(client, service), service)


def _httpx_auth(side: _Side, service: Service) -> Call:
    from benchmarks.peers import httpx_auth

    return side.calling(side.client(service, auth=httpx_auth(service)), service)


_ALL: dict[str, tuple[Callable[[_Side, Service], Call], bool, bool]] = {
    BARE: (_bare, False, False),
    CONTROL: (_bare, False, False),
    STATIC: (_static, True, False),
    BY_HAND: (_by_hand, True, True),
    OURS: (_ours, True, True),
    "recipe": (_recipe, True, True),
    "authlib": (_authlib, True, False),
    "httpx-auth": (_httpx_auth, True, False),
}


def contestant(name: str, library: str, tasks: bool) -> Contestant:
    """Return one row."""
    make, both, survives = _ALL[name]
    if name == "authlib":
        from benchmarks.peers import choose_authlib

        choose_authlib(library)
    return Contestant(name, partial(make, _Side(library, tasks)), both, survives)
