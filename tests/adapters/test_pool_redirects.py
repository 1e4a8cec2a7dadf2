"""Redirects: each hop is a request of its own, also where a pool of urllib3 follows them (rules 7, 20 and 23)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pytest
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import MaxRetryError, NewConnectionError, UnrewindableBodyError

import pay88_adapters.urllib3
from pay88_adapters import BreakerPolicy, CircuitOpen
from pay88_adapters.testing import Body, Redirect, RejectToken, ResetBeforeRead, Status, TooMany
from support.proxies import Proxy
from support.stacks import BYTES, STACKS, PlainResponse, Stack, Urllib3, generator
from support.worlds import World

# httpx leaves the iterator of a body that it cannot send to the end, and trio says so.
pytestmark = pytest.mark.filterwarnings(r"ignore:Async generator 'httpx:ResourceWarning")

OLD = tuple(map(int, version("urllib3").split(".")[:2])) < (2, 5)
CHARGES, STATUS = "/api/transactions/charges", "/api/echo"


class Urllib3Pool(Urllib3):
    """urllib3 without its pool manager: a pool follows redirects by itself."""

    name = "urllib3 pool"

    def request(self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any) -> PlainResponse:
        path = urllib3.util.parse_url(url).request_uri
        response = self.client.connection_from_url(url).request(method, path, headers=headers, **kw)
        return PlainResponse(response.status, response.headers, response.data, response)


pools = pytest.mark.parametrize("kind", [Urllib3Pool], ids=lambda kind: kind.name)
own_retries = pytest.mark.parametrize(
    "retries",
    [
        None,
        3,
        urllib3.Retry(3),
        urllib3.Retry(3, status_forcelist=[503], allowed_methods=None),
    ],
    ids=["default", "3", "Retry(3)", "Retry of a POST"],
)


def charge(world: World, client: Stack | None = None, **kw: Any) -> Any:
    """Try to charge a customer."""
    client = client or world.client()
    kw = kw or client.bodies["bytes"]()
    return world.as_time_passes(lambda: client.attempt("POST", f"{world.emulator.url}{CHARGES}", **kw))


def sent(world: World) -> list[tuple[str, str]]:
    """Return method and path of the API requests so far."""
    return [(call.method, call.path) for call in world.emulator.journal.select("call")]


@pytest.mark.parametrize("kind", [*STACKS, Urllib3Pool], ids=lambda kind: kind.name)
@pytest.mark.parametrize("fault", [RejectToken(), TooMany(1), Status(503), ResetBeforeRead()], ids=repr)
@pytest.mark.parametrize(("status", "method"), [(303, "GET"), (307, "POST")])
def test_rule_20_the_outcome_of_a_redirects_target_sends_no_payment_again(
    world: World, fault: Any, status: int, method: str
) -> None:
    """The payment was executed. Its target is retried alone, if it may be."""
    world.emulator.faults.add(Redirect(STATUS, status), on=CHARGES)
    world.emulator.faults.add(fault, on=STATUS)
    outcome = charge(world)
    retried = method == "GET" or isinstance(fault, (RejectToken, TooMany))
    if type(world.client()) is Urllib3 and OLD:  # its pool manager continues with retries of its own
        retried = len(sent(world)) > 2
    assert sent(world) == [("POST", CHARGES), *[(method, STATUS)] * (2 if retried else 1)]
    if retried:
        assert outcome.status == 200


@pools
@own_retries
@pytest.mark.parametrize("fault", [RejectToken(), TooMany(1), Status(503), ResetBeforeRead()], ids=repr)
def test_rule_20_nor_with_the_callers_own_retries(world: World, fault: Any, retries: Any) -> None:
    """They apply to the target, and a 401 of it is replayed alone."""
    world.emulator.faults.add(Redirect(STATUS, 303), on=CHARGES)
    world.emulator.faults.add(fault, on=STATUS)
    outcome = charge(world, body=BYTES, retries=retries)
    assert sent(world)[:2] == [("POST", CHARGES), ("GET", STATUS)]
    assert sent(world)[2:] in ([], [("GET", STATUS)])
    if isinstance(fault, RejectToken):
        assert outcome.status == 200
        assert [call.serial for call in world.emulator.journal.select("call")] == [1, 1, 2]


@pools
def test_rule_20_a_retry_of_urllib3_before_the_redirect_changes_nothing(world: World) -> None:
    """Each 401 belongs to the request that got it, whichever attempt of urllib3 that was."""
    for fault in (Status(503), RejectToken(), Redirect(STATUS, 303)):
        world.emulator.faults.add(fault, on=CHARGES)
    world.emulator.faults.add(Redirect("/api/balance", 302), on=STATUS)
    retries = urllib3.Retry(5, status_forcelist=[503], allowed_methods=None)
    outcome = charge(world, body=BYTES, retries=retries)
    assert sent(world) == [*[("POST", CHARGES)] * 3, ("GET", STATUS), ("GET", "/api/balance")]
    assert [each.status for each in outcome.raw.retries.history] == [503, 303, 302]


@pools
def test_rule_21_a_redirect_after_a_broken_body_is_followed(world: World) -> None:
    """urllib3 makes the request of the broken body again, and that is redirected."""
    world.emulator.faults.add(RejectToken(), on=STATUS, times=1)
    world.emulator.faults.add(Body(b"broken", status=401, headers={"Content-Length": "100"}), on=STATUS, times=1)
    world.emulator.faults.add(Redirect(f"{STATUS}?target", status=302), on=STATUS, times=1)
    client = world.client()
    options = {"retries": urllib3.Retry(5, read=3), "timeout": 3.0}  # real seconds that the broken body takes
    response = world.as_time_passes(lambda: client.attempt("GET", f"{world.emulator.url}{STATUS}", **options))
    assert isinstance(response, PlainResponse)
    assert response.status == 200
    assert len(sent(world)) == 4


@pools
@pytest.mark.parametrize("names", [["Authorization"], ["Authorization", "X-Session-Id"]], ids=repr)
@pytest.mark.parametrize("own", [urllib3.Retry, pay88_adapters.urllib3.Pay88Retry], ids=lambda own: own.__name__)
def test_rule_20_nor_where_urllib3_removes_our_headers(proxy: Proxy, world: World, own: Any, names: list[str]) -> None:
    """To the pool of a proxy, every redirect leads to another host."""
    client = world.client(proxy=proxy.url)
    assert isinstance(client, Urllib3Pool)
    pool = client.client.connection_from_url(world.url)
    world.emulator.faults.add(Redirect(world.echo, 303), on=CHARGES)
    world.emulator.faults.add(RejectToken(), on=STATUS, times=None)
    retries = own(total=3, remove_headers_on_redirect=names)
    url = f"{world.emulator.url}{CHARGES}"
    assert pool.urlopen("POST", url, body=BYTES, retries=retries, assert_same_host=False).status == 401
    assert sent(world) == [("POST", CHARGES), ("GET", STATUS), ("GET", STATUS)]


@pools
@pytest.mark.parametrize("retries", [None, 3, False], ids=repr)
def test_rule_20_a_target_without_a_connection_sends_no_payment_again(world: World, retries: Any) -> None:
    """The payment was sent, whatever the error of the next request says of that one."""
    refused: list[str] = []

    class Refusing(HTTPConnection):
        def request(self, method: str, url: str, *args: Any, **kw: Any) -> None:
            if url == STATUS and not refused:
                refused.append(url)
                raise NewConnectionError(self, "refused")
            super().request(method, url, *args, **kw)

    client = world.client()
    assert isinstance(client, Urllib3Pool)
    pool: Any = client.client.connection_from_url(world.url)
    pool.ConnectionCls = Refusing
    world.emulator.faults.add(Redirect(STATUS, 303), on=CHARGES)
    outcome = charge(world, client, body=BYTES, retries=retries)
    assert sent(world) == [("POST", CHARGES)] + ([] if retries is False else [("GET", STATUS)])
    assert outcome.status == (303 if retries is False else 200)


@pools
def test_rule_21_too_many_redirects_are_an_error_of_urllib3(world: World) -> None:
    """Counted over the whole chain; no redirect is followed with ``redirect=False``."""
    world.emulator.faults.add(Redirect(STATUS, 303), on=CHARGES, times=None)
    world.emulator.faults.add(Redirect("/api/balance", 303), on=STATUS)
    assert isinstance(charge(world, body=BYTES, retries=urllib3.Retry(redirect=1)), MaxRetryError)
    assert sent(world) == [("POST", CHARGES), ("GET", STATUS)]
    outcome = charge(world, body=BYTES, redirect=False)
    assert (outcome.status, outcome.headers["location"]) == (303, STATUS)
    assert sent(world)[2:] == [("POST", CHARGES)]


@pools
@pytest.mark.parametrize("retries", [None, 3], ids=repr)
@pytest.mark.parametrize("preload", [True, False])
def test_rule_21_a_redirected_body_is_sent_whole_or_not_at_all(world: World, retries: Any, preload: bool) -> None:
    """Over the only connection of the pool, which is free for the target, and afterwards."""
    client = world.client(connections=1)
    for body in (BYTES, io.BytesIO(BYTES), generator()):
        world.emulator.faults.add(Redirect(STATUS, 307), on=CHARGES)
        mark = world.emulator.journal.mark()
        kw = {"body": body, "retries": retries, "preload_content": preload, "pool_timeout": 5}
        outcome = charge(world, client, **kw)
        bodies = [call.body for call in world.emulator.journal.select("call", since=mark)]
        if isinstance(body, (bytes, io.BytesIO)):
            assert outcome.status == 200
            assert bodies == [BYTES, BYTES]
        else:
            assert isinstance(outcome, UnrewindableBodyError)
            assert bodies == [BYTES]


@pools
def test_rule_23_a_redirect_closes_the_circuit_for_its_target(world: World) -> None:
    """The trial request got its response before the request for the target starts."""
    manager = world.new_manager(breaker=BreakerPolicy(failure_threshold=1, open_for=30))
    client = world.client(manager)
    world.emulator.faults.add(Status(500), on=CHARGES)
    assert charge(world, client).status == 500
    assert isinstance(charge(world, client), CircuitOpen)
    world.clock.advance(31)
    world.emulator.faults.add(Redirect(f"{CHARGES}?status", 303), on=CHARGES)
    outcome = charge(world, client)
    assert isinstance(outcome, PlainResponse)
    assert not any(manager.stats().circuits_open.values())
    assert sent(world)[1:] == [("POST", CHARGES), ("GET", f"{CHARGES}?status")]
