"""urllib3."""

from __future__ import annotations

from typing import Any

import urllib3

from benchmarks import stubs
from benchmarks.byhand import Manager
from benchmarks.service import Service

from . import BARE, BY_HAND, CONTROL, OURS, STATIC, Call, Contestant


def _pool(service: Service, **options: Any) -> urllib3.PoolManager:
    pool = urllib3.PoolManager(maxsize=64, **options)
    if service.in_memory:
        stubs.install(pool)
    return pool


def _calling(pool: Any, service: Service) -> Call:
    urls = service.call_urls()
    return lambda: pool.request("POST", next(urls)).status


def _bare(service: Service) -> Call:
    return _calling(_pool(service), service)


def _static(service: Service) -> Call:
    return _calling(_pool(service, headers=service.ask().headers()), service)


def _by_hand(service: Service) -> Call:
    pool, manager, urls = _pool(service), Manager(service.ask, service.margin), service.call_urls()

    def call() -> int:
        headers, url = manager.headers(), next(urls)
        response = pool.request("POST", url, headers=headers)
        if response.status == 401:
            manager.invalidate(headers)
            response = pool.request("POST", url, headers=manager.headers())
        return response.status

    return call


def _ours(service: Service) -> Call:
    from pay88_adapters.urllib3 import attach

    from .ours import manager

    return _calling(attach(_pool(service), manager(service)), service)


def _google(service: Service) -> Call:
    from google.auth.transport.urllib3 import AuthorizedHttp

    from benchmarks.peers import google_credentials

    return _calling(AuthorizedHttp(google_credentials(service), http=_pool(service)), service)


def _botocore(service: Service) -> Call:
    from benchmarks.peers import botocore_credentials

    pool, credentials, urls = _pool(service), botocore_credentials(service), service.call_urls()

    def call() -> int:
        frozen = credentials.get_frozen_credentials()
        headers = {"Authorization": f"Bearer {frozen.access_key}", "x-session-id": frozen.token}
        return pool.request("POST", next(urls), headers=headers).status

    return call


_ALL = (
    Contestant(BARE, _bare, both=False, survives=False),
    Contestant(CONTROL, _bare, both=False, survives=False),
    Contestant(STATIC, _static, survives=False),
    Contestant(BY_HAND, _by_hand),
    Contestant(OURS, _ours),
    Contestant("google-auth", _google),
    Contestant("botocore", _botocore, survives=False),
)


def contestant(name: str, library: str, tasks: bool) -> Contestant:
    """Return one row."""
    return next(each for each in _ALL if each.name == name)
