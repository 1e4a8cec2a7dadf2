"""A client library with and without the adapter: what is compared, and how."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import httpx
import httpx2
import requests
import urllib3

from pay88_adapters import Credentials, RetryPolicy, TokenManager
from support.origins import OURS, Origin, Seen
from support.proxies import Proxy
from support.stacks import (
    STACKS,
    Httpx,
    Httpx2,
    HttpxAsyncio,
    HttpxTrio,
    Options,
    PlainResponse,
    Stack,
)

HTTPX: tuple[type[Stack], ...] = (Httpx, HttpxAsyncio, HttpxTrio, Httpx2)
TLS = ssl.create_default_context()  # one for all clients: making it takes longer than most scenarios
REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Setting:
    """What a scenario plays with."""

    client: Any
    """The harness around the library's client."""
    here: Origin
    there: Origin
    """A second one, which is never 88Pay's."""
    proxy: Proxy

    def attached(self, client: Any) -> Any:
        """Return another client with the same manager attached, if there is one."""
        return self.client.attached(client)

    def does(self, method: str, url: str, **kw: Any) -> object:
        """Send a request; return what the caller gets to see of the outcome."""
        outcome = self.client.attempt(method, url, **kw)
        if url.endswith("/silent"):
            assert self.here.silences.acquire(timeout=10)
        return shown(outcome)


Play = Callable[[Setting], object]


@dataclass(frozen=True)
class Scenario:
    """Something to do, and who can."""

    play: Play
    kinds: tuple[type[Stack], ...]
    ours: bool
    """Whether 88Pay's own calls do the same."""


SCENARIOS: list[Scenario] = []


def scenario(*kinds: type[Stack], ours: bool = True) -> Callable[[Play], Play]:
    """Let a scenario run with clients of these kinds, or of all."""

    def add(play: Play) -> Play:
        SCENARIOS.append(Scenario(play, kinds or STACKS, ours))
        return play

    return add


# --- what is compared ---------------------------------------------------------------------------------


def shown(outcome: object) -> object:
    """Return all that a caller sees of a response or an error, in comparable form."""
    if isinstance(outcome, Exception):
        return type(outcome), re.sub(r"0x[0-9a-f]+", "0x…", str(outcome))
    raw: Any = outcome.raw if isinstance(outcome, PlainResponse) else outcome
    body = outcome.body if isinstance(outcome, PlainResponse) else None
    if isinstance(raw, requests.Response):
        jar = [(each.name, each.value, each.domain, each.path) for each in raw.cookies]
        seen = raw.status_code, raw.reason, [*raw.headers.items()], raw.url, raw.encoding, raw.is_redirect, jar
        history = [
            (each.status_code, each.url, [*each.headers.items()], requested(each.request)) for each in raw.history
        ]
        return name(raw), body, seen, requested(raw.request), history  # of which, in older versions, each holds itself
    if isinstance(raw, (httpx.Response, httpx2.Response)):
        more = {name: value for name, value in raw.extensions.items() if isinstance(value, (bytes, str))}
        start = raw.status_code, raw.reason_phrase, raw.http_version, raw.headers.multi_items(), str(raw.url), more
        return (
            name(raw),
            body,
            start,
            [*raw.cookies.items()],
            requested(raw.request),
            [shown(each) for each in raw.history],
        )
    if isinstance(raw, aiohttp.ClientResponse):
        fields, cookies = raw.raw_headers, [str(each) for each in raw.cookies.values()]
        return name(raw), body, raw.status, raw.reason, raw.version, fields, str(raw.url), cookies, raw.method, (
            requested(raw.request_info),
            [(each.status, str(each.url), each.raw_headers) for each in raw.history],  # it may hold itself
        )  # fmt: skip
    if isinstance(raw, urllib3.BaseHTTPResponse):
        steps = [replaced(each) for each in (raw.retries.history if raw.retries else ())]
        return name(raw), body, raw.status, raw.reason, raw.version, [*raw.headers.items()], raw.geturl(), steps
    return raw


def name(thing: object) -> str:
    """Return the name of a class, which a scenario may create repeatedly."""
    return type(thing).__qualname__


def replaced(step: Any) -> object:
    """Return a step of urllib3's history; errors have no equality."""
    return step._replace(error=type(step.error))


def requested(request: Any) -> object:
    """Return what a response shows of its request."""
    fields = getattr(request.headers, "multi_items", request.headers.items)()
    body = getattr(request, "body", None)
    return request.method, str(request.url), [*fields], body if isinstance(body, (str, bytes)) else type(body)


def plain(seen: Seen) -> Seen:
    """Return what was seen with one name for what is drawn by lot."""
    found = re.search(r"boundary=(\S+)", " ".join(seen.field("content-type")))
    boundary = found[1] if found else "\0"
    fields = tuple((name, value.replace(boundary, "BOUNDARY")) for name, value in seen.fields)
    pieces = tuple(piece.replace(boundary.encode(), b"BOUNDARY") for piece in seen.pieces)
    return replace(seen, fields=fields, pieces=pieces)


def without_ours(seen: Seen) -> Seen:
    """Return what was seen without the two fields, each of which must be there once."""
    assert [len(seen.field(name)) for name in OURS] == [1, 1]
    assert seen.field("authorization")[0].startswith("Bearer ")
    return replace(seen, fields=tuple(each for each in seen.fields if each[0].lower() not in OURS))


# --- the comparison -----------------------------------------------------------------------------------


def manager_of(origin: Origin | None, retry: RetryPolicy | None = None) -> TokenManager:
    """Return a manager for *origin*, or for one without a server."""
    if origin is None:
        return TokenManager(Credentials("sk_test_1", "MCH-1"), base_url="http://127.0.0.1:1")
    service = origin.service
    return TokenManager(
        Credentials(service.api_key, service.merchant_id), base_url=origin.base, retry=retry, clock=origin.clock
    )


def played(
    kind: type[Stack], play: Play, manager: TokenManager | None, origins: tuple[Origin, Origin, Proxy]
) -> tuple[object, list[Seen], list[Seen], list[str]]:
    """Play a scenario with a new client; return what came of it, and what both servers and the proxy saw."""
    here, there, proxy = origins
    with kind(manager, Options(timeout=10, tls=TLS)) as client:
        assert isinstance(client.attempt("POST", here.url("/warm-up")), PlainResponse)
        here.take()
        there.take()
        proxy.requested.clear()
        result = play(Setting(client, here, there, proxy))
        return result, [*map(plain, here.take())], [*map(plain, there.take())], [*proxy.requested]
