"""requests."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter

from benchmarks import stubs
from benchmarks.byhand import Manager
from benchmarks.service import Service

from . import BARE, BY_HAND, CONTROL, OURS, STATIC, Call, Contestant


class _StubAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        stubs.install(self.poolmanager)


def _prepared(session: Any, service: Service) -> Any:
    kind = _StubAdapter if service.in_memory else HTTPAdapter
    session.mount("http://", kind(pool_maxsize=64))
    return session


def _calling(session: Any, service: Service) -> Call:
    urls = service.call_urls()
    return lambda: session.post(next(urls)).status_code


def _bare(service: Service) -> Call:
    return _calling(_prepared(requests.Session(), service), service)


def _static(service: Service) -> Call:
    session = _prepared(requests.Session(), service)
    session.headers.update(service.ask().headers())
    return _calling(session, service)


def _by_hand(service: Service) -> Call:
    session, manager = _prepared(requests.Session(), service), Manager(service.ask, service.margin)
    urls = service.call_urls()

    def call() -> int:
        headers, url = manager.headers(), next(urls)
        response = session.post(url, headers=headers)
        if response.status_code == 401:
            manager.invalidate(headers)
            response = session.post(url, headers=manager.headers())
        status: int = response.status_code
        return status

    return call


def _ours(service: Service) -> Call:
    from pay88_adapters.requests import attach

    from .ours import manager

    return _calling(attach(_prepared(requests.Session(), service), manager(service)), service)


def _google(service: Service) -> Call:
    from google.auth.transport.requests import AuthorizedSession

    from benchmarks.peers import google_credentials

    return _calling(_prepared(AuthorizedSession(google_credentials(service)), service), service)


def _authlib(service: Service) -> Call:
    from authlib.integrations.requests_client import OAuth2Session

    from benchmarks.peers import authlib_options, hook_authlib

    session = _prepared(OAuth2Session(**authlib_options(service)), service)
    return _calling(hook_authlib(session, service), service)


def _azure(service: Service) -> Call:
    from azure.core import PipelineClient
    from azure.core.pipeline.transport import RequestsTransport
    from azure.core.rest import HttpRequest

    from benchmarks.peers import azure_policy

    session, urls = _prepared(requests.Session(), service), service.call_urls()
    transport = RequestsTransport(session=session, session_owner=False)
    client: Any = PipelineClient(service.url, policies=[azure_policy(service)], transport=transport)

    def call() -> int:
        status: int = client.send_request(HttpRequest("POST", next(urls)), enforce_https=False).status_code
        return status

    return call


_ALL = (
    Contestant(BARE, _bare, both=False, survives=False),
    Contestant(CONTROL, _bare, both=False, survives=False),
    Contestant(STATIC, _static, survives=False),
    Contestant(BY_HAND, _by_hand),
    Contestant(OURS, _ours),
    Contestant("google-auth", _google),
    Contestant("authlib", _authlib, survives=False),
    Contestant("azure-core", _azure, survives=False),
)


def contestant(name: str, library: str, tasks: bool) -> Contestant:
    """Return one row."""
    return next(each for each in _ALL if each.name == name)
