"""urllib3's own retries, as the caller says: what counts for the circuit breaker, and what is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests
import urllib3
from urllib3.exceptions import MaxRetryError

import pay88_adapters.requests
from pay88_adapters import BreakerPolicy, CircuitOpen, RetryPolicy
from pay88_adapters.events import BreakerOpened, Event
from pay88_adapters.testing import Redirect, RejectToken, ResetAfterRead, Status, Truncated
from support.stacks import BYTES, PlainResponse, Requests, Urllib3
from support.worlds import World

urllib3s = pytest.mark.parametrize("kind", [Urllib3, Requests], ids=lambda kind: kind.name)
only_urllib3 = pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)

ON_STATUS: dict[str, Any] = {"status_forcelist": [503], "allowed_methods": None}
OWN: dict[str, Callable[[], Any]] = {
    "1": lambda: 1,
    "Retry(1)": lambda: urllib3.Retry(1, allowed_methods=None),
    "Retry(1, [503])": lambda: urllib3.Retry(1, **ON_STATUS),
    "Retry(4, [503])": lambda: urllib3.Retry(4, **ON_STATUS),
    "Retry(0, [503])": lambda: urllib3.Retry(0, **ON_STATUS),
}
THRESHOLD = 3


class Limited:
    """A client with a circuit breaker, whose caller has retries of its own."""

    def __init__(self, world: World, retries: Any) -> None:
        self.events: list[Event] = []
        policy = BreakerPolicy(failure_threshold=THRESHOLD, open_for=30)
        self.world = world
        self.manager = world.new_manager(breaker=policy, listeners=[self.events.append])
        self.client = world.client(self.manager)
        self._kw: dict[str, Any] = {}
        if isinstance(self.client, Requests):
            adapter = pay88_adapters.requests.Pay88Adapter(self.manager, max_retries=retries)
            self.client.client.mount(world.emulator.url, adapter)
        else:
            self._kw["retries"] = retries

    def call(self, method: str = "GET", **kw: Any) -> Any:
        """Return the outcome of a request."""
        return self.client.attempt(method, self.world.echo, **self._kw, **kw)

    @property
    def calls(self) -> int:
        """Number of API requests so far."""
        return self.world.emulator.journal.calls

    def open(self) -> list[Any]:
        """Send requests until the circuit opens; return their outcomes."""
        outcomes: list[Any] = []
        while not any(self.manager.stats().circuits_open.values()):
            assert len(outcomes) < THRESHOLD
            outcomes.append(self.call())
        return outcomes


def is_exhausted(outcome: object) -> bool:
    """Whether a request ended as urllib3 ends when it has no retry left."""
    return isinstance(outcome, (MaxRetryError, requests.ConnectionError, requests.exceptions.RetryError))


@urllib3s
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("fault", [ResetAfterRead(), Status(503)], ids=repr)
def test_rule_23_each_attempt_of_urllib3_counts(world: World, own: str, fault: Any) -> None:
    """The circuit opens after as many attempts as without them; no retry follows then, and the error is urllib3's."""
    limited = Limited(world, OWN[own]())
    world.emulator.faults.add(fault, on="call", times=None)
    outcomes = limited.open()
    assert limited.calls == THRESHOLD
    if own not in ("1", "Retry(1)") or not isinstance(fault, Status):  # those get the 503 itself
        assert all(map(is_exhausted, outcomes))
    assert isinstance(limited.call(), CircuitOpen)
    assert limited.calls == THRESHOLD
    assert sum(isinstance(event, BreakerOpened) for event in limited.events) == 1


@urllib3s
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("fault", [ResetAfterRead(), Status(503)], ids=repr)
def test_rule_23_a_trial_request_that_urllib3_gives_up_opens_the_circuit_again(
    world: World, own: str, fault: Any
) -> None:
    """Without a verdict, another trial request would follow immediately; after a success, the circuit is closed."""
    limited = Limited(world, OWN[own]())
    rule = world.emulator.faults.add(fault, on="call", times=None)
    limited.open()
    world.clock.advance(31)
    before = limited.calls
    assert not isinstance(limited.call(), CircuitOpen)
    assert isinstance(limited.call(), CircuitOpen)
    assert limited.calls == before + 1
    rule.remove()
    world.clock.advance(31)
    for _ in range(2):
        assert limited.call().status == 200
    assert not any(limited.manager.stats().circuits_open.values())


@urllib3s
def test_rule_23_a_retry_of_urllib3_that_succeeds_opens_nothing(world: World) -> None:
    """Failed attempts count, and fewer than the threshold do nothing."""
    limited = Limited(world, urllib3.Retry(2, **ON_STATUS))
    world.emulator.faults.add(Status(503), on="call", times=THRESHOLD - 1)
    assert limited.call("POST").status == 200
    assert limited.calls == THRESHOLD
    assert limited.call("POST").status == 200


@only_urllib3
def test_rule_23_too_many_redirects_are_no_failure_of_the_service(world: World) -> None:
    """And the trial request that ends so has succeeded."""
    limited = Limited(world, urllib3.Retry(redirect=0, status=0, total=None, status_forcelist=[503]))
    pool: Any = limited.client
    pool = pool.client.connection_from_url(world.url)
    world.emulator.faults.add(Redirect("/api/echo"), on="call", times=None)
    for _ in range(2 * THRESHOLD):
        with pytest.raises(MaxRetryError):
            pool.request("GET", "/api/echo", retries=urllib3.Retry(redirect=0))
    assert not any(limited.manager.stats().circuits_open.values())
    world.emulator.faults.clear()
    rule = world.emulator.faults.add(Status(503), on="call", times=None)
    limited.open()
    world.clock.advance(31)
    rule.remove()
    world.emulator.faults.add(Redirect("/api/echo"), on="call", times=None)
    with pytest.raises(MaxRetryError):
        pool.request("GET", "/api/echo", retries=urllib3.Retry(redirect=0))
    assert not any(limited.manager.stats().circuits_open.values())


@only_urllib3
def test_rule_07_a_401_that_urllib3_has_retried_drops_its_token(world: World) -> None:
    """The error is urllib3's; the next request has a new token."""
    own = urllib3.Retry(1, status_forcelist=[401])
    client = world.client()
    world.emulator.faults.add(RejectToken(), on="call", times=2)
    assert isinstance(client.attempt("GET", world.echo, retries=own), MaxRetryError)
    assert isinstance(response := client.attempt("GET", world.echo, retries=own), PlainResponse)
    assert response.status == 200
    assert [call.serial for call in world.emulator.journal.select("call")] == [1, 1, 2]


@only_urllib3
def test_rule_20_a_new_default_of_urllib3_is_no_value_of_the_caller(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that was made before still retries as the manager says."""
    client = world.client(world.new_manager(retry=RetryPolicy(attempts=2, backoff_base=0)))
    client.attempt("GET", world.echo)
    monkeypatch.setattr(urllib3.Retry, "DEFAULT", urllib3.Retry(0))
    world.emulator.faults.add(Status(503), on="call")
    assert isinstance(response := client.attempt("GET", world.echo), PlainResponse)
    assert response.status == 200


# --- what is read -------------------------------------------------------------------------------


@only_urllib3
@pytest.mark.parametrize(
    "retries", [False, 0, 2, urllib3.Retry(2, read=0), urllib3.Retry(2, read=False), urllib3.Retry(read=1)], ids=repr
)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("times", [1, None])
def test_rule_21_a_broken_body_is_retried_as_without_us(
    world: World, retries: Any, method: str, times: int | None
) -> None:
    """The same result after the same number of requests, whatever the caller's own retries are."""
    outcomes = []
    with Urllib3(None) as plain:
        for client, headers in ((world.client(), {}), (plain, world.manager.get_token().headers())):
            rule = world.emulator.faults.add(Truncated(), on="/api/echo", times=times)
            mark = world.emulator.journal.mark()
            outcome = client.attempt(method, world.echo, body=BYTES, retries=retries, headers=headers)
            reason = getattr(outcome, "reason", None)
            calls = world.emulator.journal.count(path="/api/echo", since=mark)
            outcomes.append((type(outcome), type(reason), getattr(outcome, "status", None), calls))
            rule.remove()
    assert outcomes[0] == outcomes[1]


LONG_BODY = b"x" * 1_000_000


@only_urllib3
@pytest.mark.parametrize("retries", [None, 2, urllib3.Retry(2, **ON_STATUS)], ids=repr)
def test_rule_21_a_response_is_read_completely(world: World, retries: Any) -> None:
    """Also a 401 that goes to the caller; and the pool has its connection again."""
    client = world.client(world.new_manager(retry=RetryPolicy(replay_refused=False)), connections=1)
    for status in (401, 200):
        world.emulator.faults.add(Status(status, body=LONG_BODY), on="call")
        response: Any = client.attempt("POST", world.echo, retries=retries, pool_timeout=5)
        assert (response.status, response.raw.closed) == (status, True)
        assert response.body == LONG_BODY
