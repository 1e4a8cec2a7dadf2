"""What ``attach`` and the constructors reject, in words that name what they were given and what to pass."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock, create_autospec

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3

import pay88_adapters.aiohttp
import pay88_adapters.httpx
import pay88_adapters.httpx2
import pay88_adapters.requests
import pay88_adapters.urllib3
from pay88_adapters import ActivatedManager, ConfigurationError, Credentials, TokenManager
from pay88_adapters.events import Event
from support.stacks import STACKS, PlainResponse, Stack
from support.worlds import World

CREDENTIALS = Credentials("sk_test_1", "MCH-COL-1")
MANAGER = TokenManager(CREDENTIALS)

# The modules, each with the classes that its attach() takes.
MODULES: dict[Any, list[type]] = {
    pay88_adapters.urllib3: [urllib3.PoolManager],
    pay88_adapters.requests: [requests.Session],
    pay88_adapters.httpx: [httpx.Client, httpx.AsyncClient],
    pay88_adapters.httpx2: [httpx2.Client, httpx2.AsyncClient],
    pay88_adapters.aiohttp: [aiohttp.ClientSession],
}
CLASSES = [(module, kind) for module, kinds in MODULES.items() for kind in kinds]


def look_alike(module: str, name: str) -> object:
    """Return an instance of a class by that name, from a library that is not installed here."""
    return type(name, (), {"__module__": module, "__qualname__": name})()


@pytest.mark.parametrize("module", MODULES, ids=lambda each: each.__name__)
@pytest.mark.parametrize(
    ("client", "says"),
    [
        (None, "not None: create the client first"),
        (5, "not int: "),
        ("https://api.88pay.io", "not str: "),
        (Mock(), "not unittest.mock.Mock: "),
        (
            look_alike("niquests.sessions", "Session"),
            "not niquests.sessions.Session: other libraries",
        ),
        (MANAGER, "TokenManager: the client comes first"),
        (httpx.Client, "not the class httpx.Client: create the client first"),
        (urllib3.HTTPConnectionPool("localhost"), "not urllib3.connectionpool.HTTPConnectionPool: "),
    ],
    ids=lambda each: ascii(each) if isinstance(each, str) else type(each).__name__,
)
def test_attach_takes_a_client_of_its_library(module: Any, client: Any, says: str) -> None:
    """Nothing, a wrong object, a double, another library's; the two in the wrong order."""
    with pytest.raises(ConfigurationError) as caught:
        module.attach(client, CREDENTIALS if client is MANAGER else MANAGER)
    assert says in str(caught.value)
    assert module.__name__ in str(caught.value)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize("module", MODULES, ids=lambda each: each.__name__)
def test_attach_names_the_module_that_takes_the_client(module: Any) -> None:
    """Of another library that is supported."""
    clients: dict[Any, Any] = {
        pay88_adapters.urllib3: pay88_adapters.urllib3.Pay88PoolManager(MANAGER),
        pay88_adapters.requests: requests.Session(),
        pay88_adapters.httpx: httpx.Client(),
        pay88_adapters.httpx2: httpx2.Client(),
    }
    for right, client in clients.items():
        if right is not module:
            with pytest.raises(ConfigurationError, match=rf"use {right.__name__}\.attach\(\)"):
                module.attach(client, MANAGER)


@pytest.mark.parametrize(("module", "kind"), CLASSES, ids=lambda each: each.__name__)
def test_attach_to_a_double_of_the_class(module: Any, kind: type) -> None:
    """It has none of what a constructor makes."""
    double = create_autospec(kind, instance=True)
    with pytest.raises(ConfigurationError, match="Mock"):
        module.attach(double, MANAGER)


WRONG = [None, CREDENTIALS, TokenManager, Mock(), requests.Session()]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(
    "make",
    [
        pay88_adapters.urllib3.Pay88PoolManager,
        pay88_adapters.requests.Pay88Adapter,
        pay88_adapters.httpx.Pay88Transport,
        pay88_adapters.httpx.AsyncPay88Transport,
        pay88_adapters.httpx2.Pay88Transport,
        pay88_adapters.httpx2.AsyncPay88Transport,
        pay88_adapters.aiohttp.Pay88Middleware,
        lambda manager: pay88_adapters.urllib3.attach(urllib3.PoolManager(), manager),
        lambda manager: pay88_adapters.requests.attach(requests.Session(), manager),
        lambda manager: pay88_adapters.httpx.attach(httpx.Client(), manager),
        lambda manager: pay88_adapters.httpx.attach(httpx.AsyncClient(), manager),
        lambda manager: pay88_adapters.httpx2.attach(httpx2.Client(), manager),
        lambda manager: pay88_adapters.aiohttp.attach(create_autospec(aiohttp.ClientSession, _middlewares=()), manager),
    ],
)
def test_a_manager_is_wanted(make: Any, wrong: object) -> None:
    """When the adapter is created, and not with the first request."""
    with pytest.raises(
        ConfigurationError, match="manager must be a TokenManager or an ActivatedManager, not "
    ) as caught:
        make(wrong)
    name = "None" if wrong is None else getattr(wrong, "__name__", type(wrong).__name__)
    assert name in str(caught.value)
    assert len(str(caught.value)) <= 200


def test_attach_leaves_a_client_unchanged_where_it_raises() -> None:
    """Half of it would be managed otherwise."""
    for client, module in ((httpx.Client(), pay88_adapters.httpx), (urllib3.PoolManager(), pay88_adapters.urllib3)):
        before = dict(vars(client))
        with pytest.raises(ConfigurationError):
            module.attach(client, None)
        assert vars(client) == before


def test_a_session_without_an_adapter_for_the_base_url() -> None:
    """The error names the class of the mounted adapter with its module: other libraries have a class of that name."""
    session = requests.Session()
    session.mount("https://", look_alike("niquests.adapters", "HTTPAdapter"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"is niquests\.adapters\.HTTPAdapter, not a requests\.adapters\.HTTP"):
        pay88_adapters.requests.attach(session, MANAGER)
    session.adapters.clear()
    with pytest.raises(ConfigurationError, match="is None, not a requests"):
        pay88_adapters.requests.attach(session, MANAGER)


LIBRARIES: list[tuple[Any, Any]] = [(httpx, pay88_adapters.httpx), (httpx2, pay88_adapters.httpx2)]
TRANSPORTS = ["Pay88Transport", "AsyncPay88Transport"]


@pytest.mark.parametrize(("library", "module"), LIBRARIES, ids=["httpx", "httpx2"])
@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_timeout_is_a_number_of_seconds_or_the_librarys_own(library: Any, module: Any, name: str) -> None:
    """Or nothing at all; the rest is rejected, whatever the library itself would make of it."""
    make = getattr(module, name)
    assert make(MANAGER).timeout is None
    for given in (5, 0.5, library.Timeout(5), library.Timeout(None)):
        assert make(MANAGER, timeout=given).timeout == (
            given if isinstance(given, library.Timeout) else library.Timeout(given)
        )
    other = (httpx2 if library is httpx else httpx).Timeout(5)
    for wrong in ("5", "five", (5, 5), True, 0, -1, float("nan"), float("inf"), object(), other):
        with pytest.raises(ConfigurationError, match=r"timeout must be a httpx2?\.Timeout, a pos"):
            make(MANAGER, timeout=wrong)


@pytest.mark.parametrize(("library", "module"), LIBRARIES, ids=["httpx", "httpx2"])
def test_a_transport_is_of_the_kind_that_it_is_wrapped_in(library: Any, module: Any) -> None:
    """Any object will do that can send a request; an async one in a sync one cannot."""
    right = {"Pay88Transport": library.HTTPTransport, "AsyncPay88Transport": library.AsyncHTTPTransport}
    for name, kind in right.items():
        [other] = [each for each in right.values() if each is not kind]
        transport = kind()
        assert getattr(module, name)(MANAGER, transport).wrapped is transport
        double = library.MockTransport(lambda request: library.Response(200))
        assert getattr(module, name)(MANAGER, double).wrapped is double
        for wrong in (other(), kind, "https://proxy", 5):
            with pytest.raises(ConfigurationError, match=f"transport must be like {library.__name__}.{kind.__name__}"):
                getattr(module, name)(MANAGER, wrong)


@pytest.mark.parametrize("kind", STACKS, ids=lambda kind: kind.name)
def test_errors_are_classes_that_can_be_imported(kind: type[Stack]) -> None:
    """By the module and the name that a traceback prints, each with its base of the core's and of the library's."""
    module = kind.adapter
    for name in ("ConfigurationError", "CredentialsRejected", "TokenEndpointUnavailable", "TokenResponseInvalid"):
        error = getattr(module, name)
        assert (error.__module__, error.__qualname__) == (module.__name__, name)
        assert issubclass(error, (getattr(pay88_adapters, name), kind.base_error))
        assert error.__doc__ == getattr(pay88_adapters, name).__doc__
    assert issubclass(module.TokenResponseInvalid, module.TokenEndpointUnavailable)


def test_a_client_without_a_merchant_of_its_own(world: World) -> None:
    """It sends no request without an activated manager; and what it raises is also its library's error."""
    events: list[Event] = []
    manager = world.new_manager(listeners=[events.append])
    client = world.client(ActivatedManager(world.emulator.url))  # type: ignore[arg-type]
    outcome = client.attempt("POST", world.url)
    assert isinstance(outcome, ConfigurationError)
    assert isinstance(outcome, client.base_error)
    assert "no manager is activated" in str(outcome)
    assert len(world.emulator.journal) == 0
    with manager.activated():
        response = client.attempt("POST", world.url)
    assert isinstance(response, PlainResponse)
    assert response.status == 200
    assert isinstance(client.attempt("POST", world.url), ConfigurationError)
    assert world.emulator.journal.calls == 1
