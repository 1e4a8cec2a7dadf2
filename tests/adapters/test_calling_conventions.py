"""Wrappers around the clients' own functions see what the clients themselves pass (rule 21)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import urllib3
from urllib3.connectionpool import HTTPConnectionPool

import pay88_adapters.urllib3
from pay88_adapters.testing import RefuseToken, ResetAfterRead
from support.stacks import Httpx, PlainResponse, Requests, Stack, Urllib3
from support.worlds import World

original = HTTPConnectionPool.urlopen
SIGNATURE = inspect.signature(original)

Wrapper = Callable[..., Any]


def headers_by_name(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
    """As instrumentations that add a header do."""
    kwargs["headers"] = {**(kwargs.get("headers") or {}), "traceparent": "00-0-0-00"}
    return original(self, method, url, *args, **kwargs)


def four_names(self: Any, method: str, url: str, body: Any = None, headers: Any = None, **kw: Any) -> Any:
    """As test doubles do."""
    return original(self, method, url, body=body, headers=headers, **kw)


def all_names(
    self: Any,
    method: str,
    url: str,
    body: Any = None,
    headers: Any = None,
    retries: Any = None,
    redirect: bool = True,
    assert_same_host: bool = True,
    timeout: Any = urllib3.Timeout.DEFAULT_TIMEOUT,
    pool_timeout: Any = None,
    release_conn: Any = None,
    chunked: bool = False,
    body_pos: Any = None,
    **kw: Any,
) -> Any:
    """As subclasses do; also with what the older versions have."""
    return original(
        self,
        method,
        url,
        body,
        headers,
        retries,
        redirect,
        assert_same_host,
        timeout,
        pool_timeout,
        release_conn,
        chunked,
        body_pos,
        **kw,
    )


def bound(self: Any, *args: Any, **kwargs: Any) -> Any:
    """As instrumentations that look at every argument do."""
    arguments = SIGNATURE.bind(self, *args, **kwargs)
    arguments.apply_defaults()
    return original(*arguments.args, **arguments.kwargs)


WRAPPERS = [headers_by_name, four_names, all_names, bound]

urllib3s = pytest.mark.parametrize("kind", [Urllib3, Requests], ids=lambda kind: kind.name)


@urllib3s
@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("where", ["library", "subclass", "pool"])
def test_rule_21_wrappers_of_urlopen_work(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: type[Stack], wrapper: Wrapper, where: str
) -> None:
    """Whichever layer added them; around token requests, and around a call that is replayed."""
    client: Any = world.client()
    calls: list[str] = []

    def counted(self: Any, *args: Any, **kw: Any) -> Any:
        calls.append(kw["method"] if "method" in kw else args[0])
        return wrapper(self, *args, **kw)

    pools = client.client if kind is Urllib3 else client.client.get_adapter(world.url).poolmanager
    if where == "library":
        monkeypatch.setattr(HTTPConnectionPool, "urlopen", counted)
    elif where == "subclass":
        own = type("Own", (HTTPConnectionPool,), {"urlopen": counted})
        pools.pool_classes_by_scheme = {"http": own, "https": own}
        pay88_adapters.urllib3.attach(pools, world.manager)
    else:
        if kind is Requests:
            pytest.skip("it looks pools up by more than the URL")
        pool = pools.connection_from_url(world.url)
        managed = pool.urlopen

        def outside(*args: Any, **kw: Any) -> Any:
            calls.append("outside")
            arguments = SIGNATURE.bind(pool, *args, **kw)
            if wrapper is bound:
                arguments.apply_defaults()
            return managed(*arguments.args[1:], **arguments.kwargs)

        monkeypatch.setattr(pool, "urlopen", outside)
    assert client.request("POST", world.url).status == 200
    world.emulator.faults.add(RefuseToken())
    assert client.request("POST", world.url).status == 200
    assert client.request("GET", world.echo).status == 200
    assert len(calls) == (3 if where == "pool" else 6)  # two of them token requests, and one a replay


@urllib3s
def test_rule_21_a_wrapper_sees_what_the_library_passes(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: type[Stack]
) -> None:
    """By position what came by position, by name what came by name, and little that was left out."""
    seen: list[tuple[int, set[str]]] = []

    def recording(self: Any, *args: Any, **kw: Any) -> Any:
        seen.append((len(args), set(kw)))
        return original(self, *args, **kw)

    world.manager.get_token()
    monkeypatch.setattr(HTTPConnectionPool, "urlopen", recording)
    with kind(None) as plain:
        plain.attempt("POST", world.url)
    world.client().attempt("POST", world.url)
    (by_position, names), (also_by_position, more) = seen
    assert by_position == also_by_position
    assert names <= more <= names | {"headers", "retries", "preload_content"}


@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 7, 13])
def test_rule_21_arguments_are_passed_on_unchanged(world: World, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """However many of them are given by position."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def recording(self: Any, *args: Any, **kw: Any) -> Any:
        seen.append((args, kw))
        return original(self, *args, **kw)

    world.manager.get_token()
    monkeypatch.setattr(HTTPConnectionPool, "urlopen", recording)
    client: Any = world.client()
    pool = client.client.connection_from_url(world.url)
    every: dict[str, Any] = {
        "method": "POST",
        "url": "/api/echo",
        "body": b"body",
        "headers": {"X-Mine": "1"},
        "retries": None,
        "redirect": False,
        "assert_same_host": False,
        "timeout": 30.0,
        "pool_timeout": None,
        "release_conn": None,
        "chunked": False,
        "body_pos": None,
        "preload_content": True,
    }
    response = pool.urlopen(*[*every.values()][:count], **dict([*every.items()][count:]))
    assert response.status == 200
    assert response.data
    [(args, kw)] = seen
    assert len(args) == count
    given = {**dict(zip(every, args, strict=False)), **kw}
    headers = given.pop("headers")
    assert headers["X-Mine"] == "1"
    assert isinstance(given.pop("retries"), pay88_adapters.urllib3.Pay88Retry)
    assert given.pop("preload_content") is False
    assert given.items() <= every.items()
    [call] = world.emulator.journal.select("call")
    assert call.body == b"body"


@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
def test_rule_21_wrong_arguments_are_the_librarys_error(world: World) -> None:
    """As it says it itself."""
    client: Any = world.client()
    pool = client.client.connection_from_url(world.url)
    for args, kw in (((), {}), (("POST",), {}), (("GET", "/", b""), {"body": b""}), (("GET", "/", *[None] * 20), {})):
        with pytest.raises(TypeError):
            pool.urlopen(*args, **kw)
    assert world.emulator.journal.calls == 0


@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
def test_rule_21_urllib3s_own_recursion_continues_as_it_comes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By position after a connection error, with a file that goes back."""
    seen: list[int] = []

    def recording(self: Any, *args: Any, **kw: Any) -> Any:
        seen.append(len(args))
        return original(self, *args, **kw)

    world.manager.get_token()
    monkeypatch.setattr(HTTPConnectionPool, "urlopen", recording)
    client = world.client()
    world.emulator.faults.add(ResetAfterRead())
    assert client.request("GET", world.echo, retries=urllib3.Retry(2), **client.bodies["file"]()).status == 200
    assert seen == [2, 7]
    first, second = world.emulator.journal.select("call")
    assert first.body == second.body != b""


@pytest.mark.parametrize("kind", [Httpx], ids=lambda kind: kind.name)
def test_rule_21_a_wrapped_transport_gets_the_request_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As httpx itself calls it."""
    inner, calls = httpx.HTTPTransport.handle_request, []

    @functools.wraps(inner)
    def handle_request(self: Any, request: httpx.Request) -> httpx.Response:
        calls.append(request.url.path)
        return inner(self, request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle_request)
    assert isinstance(reply := world.client().attempt("POST", world.url), PlainResponse)
    assert (reply.status, len(calls)) == (200, 2)
