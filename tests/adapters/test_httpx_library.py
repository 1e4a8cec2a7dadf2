"""What httpx and httpx2 have no public or no cheap way to, and the public way beside it."""

from __future__ import annotations

import asyncio
import copy
import sys
from itertools import count
from types import FrameType, SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest

from pay88_adapters import (
    ActivatedManager,
    Credentials,
    Token,
    TokenEndpointUnavailable,
    TokenManager,
    TokenPolicy,
    httpx_library,
)
from pay88_adapters import httpx as on_httpx
from pay88_adapters import httpx2 as on_httpx2
from pay88_adapters import httpx_family as family
from pay88_adapters.httpx_library import ClientLibrary
from pay88_adapters.stores.realtime import monotonic
from pay88_adapters.testing import ManualClock

_URLS = (
    "https://api.88pay.io",
    "http://user:word@[::1]:8080/a%2Fb/c?d=%20#e",
    "HTTPS://XN--E1AFMKFD.example:443/%61pi/auth/token",
    "https://пример.example/путь",
)
_TOKEN = Token("token", "session", 60.0, 0.0)


_LIBRARIES: tuple[tuple[Any, Any], ...] = ((httpx, on_httpx), (httpx2, on_httpx2))


@pytest.fixture(params=_LIBRARIES, ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> ClientLibrary:
    """Return the adapter's view of each library."""
    module, adapter = request.param
    found: ClientLibrary = adapter._library
    assert found.module is module
    return found


def test_every_supported_version_is_inside_what_the_short_ways_take_it_to_be(
    library: ClientLibrary,
) -> None:
    """Or else every request takes the longer ones."""
    assert library.examine is httpx_library._examine


@pytest.mark.parametrize("url", _URLS)
def test_rule_13_both_ways_find_the_same_origin_and_path(library: ClientLibrary, url: str) -> None:
    """Whatever the URL's spelling."""
    request = library.module.Request("POST", url)
    assert library.examine(request)[1:] == httpx_library._examine_publicly(request)[1:]


@pytest.mark.parametrize("name", ["AUTHORIZATION", "X-Session-Id", "Accept"])
def test_rule_14_a_header_that_a_token_replaces_is_found_by_any_spelling(library: ClientLibrary, name: str) -> None:
    """Others are not taken for one."""
    request = library.module.Request("POST", "https://api.88pay.io", headers={name: "1"})
    assert library.examine(request)[0] is (name != "Accept")


class _Url:
    scheme, raw_host, port, path = "https", b"api.88pay.io", None, "/"


class _Headers(dict[str, str]): ...


@pytest.mark.parametrize("different", [{"url": _Url()}, {"headers": _Headers()}], ids=["url", "headers"])
def test_the_public_way_takes_over_where_a_version_differs(library: ClientLibrary, different: dict[str, Any]) -> None:
    """It is found out when the adapter is imported."""

    class Request(library.module.Request):  # type: ignore[misc,name-defined]
        def __init__(self, *args: Any, **kw: Any) -> None:
            super().__init__(*args, **kw)
            self.__dict__.update(different)

    other = ClientLibrary(SimpleNamespace(**{**vars(library.module), "Request": Request}), library.adapter_errors)
    assert other.examine is httpx_library._examine_publicly
    target = other.examine(Request("POST", "https://api.88pay.io"))
    assert target == (True, "https", "api.88pay.io", None, "/")


@pytest.mark.parametrize("examine", [httpx_library._examine, httpx_library._examine_publicly])
def test_rule_21_the_copy_has_all_that_the_request_has(library: ClientLibrary, examine: Any) -> None:
    """Its headers in their order, and attributes that are not part of the library."""
    request: Any = library.module.Request(
        "POST", "https://api.88pay.io/a", headers=[("A", "1"), ("a", "2")], content=b"b"
    )
    request.noted = "by the caller"
    before = request.headers.raw
    copy = library.with_token(request, _TOKEN, examine(request)[0])
    assert request.headers.raw == before
    assert copy.headers.multi_items() == [*request.headers.multi_items(), *_lowered(_TOKEN)]
    assert {**vars(copy), "headers": None} == {**vars(request), "headers": None}


def _lowered(token: Token) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in token.attached.items()]


def test_rule_17_overlapping_token_requests_are_each_counted_once(library: ClientLibrary) -> None:
    """Whichever instruction another thread comes between, as threads do without the GIL."""
    adapter = {httpx: on_httpx, httpx2: on_httpx2}[library.module]
    step = 0
    while _second_at(step, adapter.Pay88Transport(ActivatedManager())):
        step += 1
    assert step > 10


def _second_at(step: int, transport: Any) -> bool:
    """Begin a second token request before instruction number *step* of the first one; return whether there is one."""
    second, steps = transport._carried(transport.opened), count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes = frame.f_code is family._Transport._carried.__wrapped__.__code__  # type: ignore[attr-defined]
        if event == "opcode" and next(steps) == step:
            second.__enter__()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with transport._carried(transport.opened):
            pass
    finally:
        sys.settrace(before)
    begun = next(steps) > step
    assert transport._is_held_open(monotonic()) is begun
    if begun:
        second.__exit__(None, None, None)
    assert not transport._is_held_open(monotonic())
    transport.close()
    return bool(begun)


def _answer(module: Any) -> Any:
    data = {"access_token": "t", "session_id": "s", "expires_in": 60}
    return module.MockTransport(lambda request: module.Response(200, json={"data": data}))


@pytest.mark.parametrize(("module", "adapter"), _LIBRARIES, ids=["httpx", "httpx2"])
def test_rule_21_a_transport_is_copied_with_the_configuration_that_contains_it(module: Any, adapter: Any) -> None:
    """Threads and tasks: the copy has the same manager, and the wrapped transport is copied, too."""
    manager = TokenManager(Credentials("sk_test_1", "MCH-COL-1"), base_url="https://api.example", clock=ManualClock())
    given = {
        "sync": adapter.Pay88Transport(manager, _answer(module)),
        "async": adapter.AsyncPay88Transport(manager, _answer(module)),
    }
    copied = copy.deepcopy(given)
    assert copied["sync"].wrapped is not given["sync"].wrapped
    with module.Client(transport=copied["sync"]) as client:
        assert client.post("https://api.example/api/balance").status_code == 200

    async def call() -> int:
        async with module.AsyncClient(transport=copied["async"]) as tasks:
            status: int = (await tasks.post("https://api.example/api/balance")).status_code
            return status

    assert asyncio.run(call()) == 200
    assert manager.stats().tokens == 1


@pytest.mark.parametrize(("module", "adapter"), _LIBRARIES, ids=["httpx", "httpx2"])
@pytest.mark.parametrize("is_async", [False, True], ids=["threads", "tasks"])
def test_rule_15_the_request_of_a_network_error_has_no_key(module: Any, adapter: Any, is_async: bool) -> None:
    """As test doubles and custom transports raise it: the libraries print all headers but ``Authorization``."""

    def fail(request: Any) -> Any:
        raise module.ConnectError("refused", request=request)

    url, key = "https://api.example", "sk_test_a_key_that_is_not_printed"
    policy = TokenPolicy(fetch_attempts=1)
    manager = TokenManager(Credentials(key, "MCH-COL-1"), base_url=url, clock=ManualClock(), policy=policy)

    def call() -> None:
        with module.Client(transport=adapter.Pay88Transport(manager, module.MockTransport(fail))) as client:
            client.post(f"{url}/api/balance")

    async def call_in_task() -> None:
        transport = adapter.AsyncPay88Transport(manager, module.MockTransport(fail))
        async with module.AsyncClient(transport=transport) as tasks:
            await tasks.post(f"{url}/api/balance")

    with pytest.raises(TokenEndpointUnavailable) as caught:
        asyncio.run(call_in_task()) if is_async else call()
    cause: Any = caught.value.__cause__
    assert cause.request.url == f"{url}/api/auth/token"
    assert key not in repr(cause.request.headers)
