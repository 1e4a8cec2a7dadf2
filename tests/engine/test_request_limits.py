"""Client-side rate limiting and the circuit breaker (rules 22 and 23), with every client library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import (
    BreakerPolicy,
    CircuitOpen,
    Pay88Error,
    RequestBudgetExhausted,
    RetryPolicy,
    TokenManager,
)
from pay88_adapters.events import BreakerClosed, BreakerOpened, Event
from pay88_adapters.testing import Headers, RefuseToken, ResetAfterRead, Status, TooMany
from support.servers import Valkey
from support.stacks import AsyncStack, Outcome, PlainResponse, Stack
from support.worlds import World

LIMITS = ((60, 60), (1000, 3600))
BREAKER = BreakerPolicy(failure_threshold=3, window=30, open_for=30)
ONCE = RetryPolicy.none()


@pytest.fixture
def limited(make_world: Callable[..., World]) -> World:
    """An emulator with the documented limits of calls."""
    return make_world(call_limits=LIMITS)


def statuses(outcomes: list[Outcome]) -> list[int]:
    """Return the statuses of those that got a response."""
    return sorted(outcome.status for outcome in outcomes if isinstance(outcome, PlainResponse))


def kinds(outcomes: list[Outcome]) -> set[type]:
    """Return the classes of the errors that all client libraries share."""
    bases = (RequestBudgetExhausted, CircuitOpen, Exception)
    return {
        next(base for base in bases if isinstance(each, base))
        for each in outcomes
        if not isinstance(each, PlainResponse)
    }


# Pacing


def test_rule_22_concurrent_requests_stay_within_the_limits(limited: World) -> None:
    """Seventy concurrent requests: sixty are sent, the rest a minute later, and the service never returns 429."""
    client = limited.client(limited.new_manager(pacing=True, max_wait=100))
    outcomes = limited.as_time_passes(lambda: client.gather(70, "POST", limited.url), step=10)
    assert statuses(outcomes) == [200] * 70
    assert limited.emulator.journal.max_in_window(60, "call") == 60
    assert {entry.status for entry in limited.emulator.journal} == {200}


def test_rule_22_a_call_waits_for_the_rate_limit_and_at_most_max_wait(limited: World) -> None:
    """Up to ``max_wait`` seconds it waits; beyond that it fails fast, with the seconds until a unit is available."""
    client = limited.client(limited.new_manager(pacing=True))
    assert statuses(client.gather(60, "POST", limited.url)) == [200] * 60
    limited.clock.advance(30)
    error = client.attempt("POST", limited.url)  # the clock has not moved: it cannot have waited
    assert isinstance(error, RequestBudgetExhausted)
    assert isinstance(error, client.base_error)
    assert error.retry_after == pytest.approx(31, abs=1.5)
    assert error.retryable
    assert limited.emulator.journal.calls == 60
    limited.clock.advance(15)
    response = limited.as_time_passes(lambda: client.attempt("POST", limited.url), step=1)
    assert statuses([response]) == [200]
    assert 60 <= limited.clock.now() - 1000 < 75


def test_rule_22_calls_count_when_they_are_sent(make_world: Callable[..., World]) -> None:
    """Behind a pool of one connection that stalls: what waits there goes out whenever it may, and all of it counts.

    Sixty wait for the connection of a request without a response, for longer than a minute. They are sent within an
    instant. Requests that came in the meantime are not sent, nor any for another minute. No wait is without end.
    """
    limited = make_world(call_limits=LIMITS, lifetime=3600)
    # A token request would have to wait for the connection as well.
    manager = limited.new_manager(pacing=True, max_wait=1, retry=ONCE, reuse_for=3000)
    client = limited.client(manager, connections=1, timeout=60)
    manager.get_token()
    with ThreadPoolExecutor(2) as pool, limited.emulator.hold("call") as held:
        stalled = pool.submit(client.gather, 60, "POST", limited.url)
        held.wait_for(1)
        permits = manager._state.settings.request_limits.pacing._permits  # type: ignore[union-attr]
        limited.until(lambda: sum(permit.taken for permit in permits.copy()) == 60)
        limited.clock.advance(62)
        late = pool.submit(client.gather, 60, "POST", limited.url).result(60)
        assert kinds(late) == {RequestBudgetExhausted}
        assert {round(each.retry_after) for each in late} == {61}  # type: ignore[union-attr]
        held.release()
        assert statuses(stalled.result(60)) == [200] * 60
    limited.clock.advance(58)
    assert kinds([client.attempt("POST", limited.url)]) == {RequestBudgetExhausted}
    limited.clock.advance(4)
    assert statuses(client.gather(60, "POST", limited.url)) == [200] * 60
    assert limited.emulator.journal.max_in_window(60, "call") == 60
    assert 429 not in {entry.status for entry in limited.emulator.journal}


def full(world: World, seconds: int, **more: str) -> dict[str, str]:
    """Return the headers that report no remaining request for so many seconds from now."""
    reset = str(int(world.clock.wall()) + seconds)
    return {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset, **more}


def test_rule_22_a_request_waits_at_most_max_wait_over_all_its_attempts(world: World) -> None:
    """Fifteen seconds for the first attempt; the retry would have to wait as long, so the caller gets the response."""
    client = world.client(world.new_manager(pacing=True, max_wait=20))
    world.emulator.faults.add(Headers(full(world, 15)), on="call", times=1)
    assert statuses([client.attempt("POST", world.url)]) == [200]
    world.emulator.faults.add(Status(503, headers=full(world, 30)), on="call", times=1)
    before = world.clock.now()
    assert statuses([world.as_time_passes(lambda: client.attempt("POST", world.url))]) == [503]
    assert world.clock.now() - before <= 20
    assert world.emulator.journal.calls == 2


def test_rule_20_a_retry_that_the_rate_limit_delays_beyond_the_total_timeout_is_not_made(world: World) -> None:
    """The caller gets the response immediately; with enough time there is a retry."""
    for total_timeout, expected in ((3, 503), (30, 200)):
        client = world.client(world.new_manager(pacing=True, retry=RetryPolicy(total_timeout=total_timeout)))
        world.emulator.faults.add(Status(503, headers=full(world, 10)), on="call", times=1)
        before = world.clock.now()
        assert statuses([world.as_time_passes(lambda client=client: client.attempt("POST", world.url))]) == [expected]  # type: ignore[misc]
        assert (world.clock.now() == before) is (expected == 503)


def test_rule_22_each_group_has_limits_of_its_own_and_other_calls_have_none(limited: World) -> None:
    """Balance requests do not consume the units of charges, and other requests have no limit."""
    client = limited.client(limited.new_manager(pacing=True, max_wait=1))
    assert statuses(client.gather(61, "POST", limited.url)) == [200] * 60
    assert statuses(client.gather(61, "POST", limited.echo)) == [200] * 61
    charges = client.gather(61, "POST", f"{limited.emulator.url}/api/transactions/charges")
    assert len(statuses(charges)) == 60
    assert kinds(charges) == {RequestBudgetExhausted}
    assert 429 not in {entry.status for entry in limited.emulator.journal}


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of each kind of store."""
    with ExitStack() as stack:
        if request.param == "redis":
            yield stack.enter_context(Valkey(tmp_path)).url
        else:
            yield "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/store.db"


def test_rule_22_managers_that_share_a_store_share_the_limits(limited: World, store: str) -> None:
    """Two of them send what one may; one that shares no store would have sent more."""
    for share in (0.25, 0.5):  # which keeps their views of the store apart, as those of two processes are
        client = limited.client(limited.new_manager(pacing=True, max_wait=1, store=store, fallback_share=share))
        outcomes = limited.as_time_passes(lambda client=client: client.gather(40, "POST", limited.url), step=1)  # type: ignore[misc]
        assert kinds(outcomes) <= {RequestBudgetExhausted}
    assert limited.emulator.journal.calls == 60
    assert 429 not in {entry.status for entry in limited.emulator.journal}


def test_rule_22_the_remaining_requests_that_the_service_reports_count(limited: World) -> None:
    """A client without pacing shares the same limits: the service reports its usage, which is honoured."""
    other = limited.client()
    assert statuses(other.gather(57, "POST", limited.url)) == [200] * 57
    limited.clock.advance(30)
    client = limited.client(limited.new_manager(pacing=True))
    outcomes = [client.attempt("POST", limited.url) for _ in range(5)]
    assert statuses(outcomes) == [200] * 3
    assert kinds(outcomes) == {RequestBudgetExhausted}
    assert [outcome.retry_after for outcome in outcomes[3:]] == [pytest.approx(30, abs=2)] * 2  # type: ignore[union-attr]
    assert 429 not in {entry.status for entry in limited.emulator.journal}
    limited.clock.advance(31)
    assert statuses([client.attempt("POST", limited.url)]) == [200]


def test_rule_22_a_429_is_obeyed(world: World) -> None:
    """No request is sent before ``Retry-After``, whatever our own count is; the other group continues."""
    client = world.client(world.new_manager(pacing=True, retry=ONCE))
    world.emulator.faults.add(TooMany(retry_after=300), on="call")
    assert statuses([client.attempt("POST", world.url)]) == [429]
    error = client.attempt("POST", world.url)
    assert isinstance(error, RequestBudgetExhausted)
    assert error.retry_after == pytest.approx(300, abs=1)
    assert statuses([client.attempt("POST", f"{world.emulator.url}/api/transactions/charges")]) == [400]
    world.clock.advance(300)
    assert statuses([client.attempt("POST", world.url)]) == [200]


def test_rule_22_and_24_without_its_store_a_manager_sends_a_share(limited: World, tmp_path: Path) -> None:
    """No call fails because of the store, and four processes without it send what one may."""
    gone = tmp_path / "gone"
    gone.mkdir()
    client = limited.client(limited.new_manager(pacing=True, max_wait=1, store=f"sqlite:///{gone}/store.db"))
    gone.rmdir()
    outcomes = limited.as_time_passes(lambda: client.gather(20, "POST", limited.url))
    assert statuses(outcomes) == [200] * 15
    assert kinds(outcomes) == {RequestBudgetExhausted}


def test_rule_22_and_24_a_store_that_fails_delays_no_payment(limited: World, tmp_path: Path) -> None:
    """Also of a process that has sent none before; the error after its share is about the store."""
    directory = tmp_path / "store"
    directory.mkdir()
    store = f"sqlite:///{directory}/store.db"
    client = limited.client(limited.new_manager(pacing=True, max_wait=1, store=store, fallback_share=0.25))
    assert statuses([client.attempt("POST", limited.echo)]) == [200]
    directory.rename(tmp_path / "away")
    assert statuses([client.attempt("POST", limited.url) for _ in range(15)]) == [200] * 15
    error = limited.as_time_passes(lambda: client.attempt("POST", limited.url))
    assert isinstance(error, RequestBudgetExhausted)
    assert "the shared store is unavailable" in str(error)


def test_rule_22_calls_that_cannot_be_sent_consume_no_unit(world: World) -> None:
    """While no token can be fetched, requests fail and consume no units."""
    client = world.client(world.new_manager(pacing=True, max_wait=1))
    rule = world.emulator.faults.add(Status(404), on="token", times=None)
    assert not any(isinstance(client.attempt("POST", world.url), RequestBudgetExhausted) for _ in range(70))
    rule.remove()
    world.clock.advance(10)
    assert statuses(client.gather(60, "POST", world.url)) == [200] * 60


# The circuit breaker


def broken_manager(world: World, **more: Any) -> TokenManager:
    """Return a manager with a breaker."""
    return world.new_manager(**{"breaker": BREAKER, "retry": ONCE, **more})


def open_circuit(world: World, client: Stack, fault: Any = None) -> None:
    """Let three calls fail."""
    world.emulator.faults.add(fault or Status(500), on="/api/balance", times=3)
    outcomes = [client.attempt("POST", world.url) for _ in range(3)]
    assert CircuitOpen not in kinds(outcomes)
    assert 200 not in statuses(outcomes)


@pytest.mark.parametrize("fault", [Status(503), ResetAfterRead()], ids=repr)
def test_rule_23_calls_fail_fast_while_the_service_fails(world: World, fault: Any) -> None:
    """After three failures nothing is sent, not even a token request, for as long as the error says."""
    client = world.client(broken_manager(world, breaker=BreakerPolicy(3, window=30, open_for=300)))
    open_circuit(world, client, fault)
    sent = len(world.emulator.journal)
    assert kinds(client.gather(20, "POST", world.url)) == {CircuitOpen}
    world.clock.advance(100)  # the token has expired
    error = client.attempt("POST", world.url)
    assert isinstance(error, CircuitOpen)
    assert isinstance(error, client.base_error)
    assert error.retry_after == pytest.approx(200)
    assert error.retryable
    assert len(world.emulator.journal) == sent
    world.clock.advance(200)
    assert statuses([client.attempt("POST", world.url)]) == [200]


def test_rule_23_a_service_that_hangs_fails_too(world: World) -> None:
    """Whatever timeout the caller has given its client."""
    manager = broken_manager(world, breaker=BreakerPolicy(2, window=30, open_for=300))
    manager.get_token()
    client = world.client(manager, timeout=0.2)
    with world.emulator.hold("call"):
        outcomes = [client.attempt("POST", world.url) for _ in range(3)]
    assert [isinstance(each, CircuitOpen) for each in outcomes] == [False, False, True]
    assert world.emulator.journal.calls == 2


def test_rule_23_two_failures_are_not_enough(world: World) -> None:
    """Nor are three that are spread over more than the window."""
    client = world.client(broken_manager(world))
    for _ in range(4):
        world.emulator.faults.add(Status(500), on="call", times=2)
        assert statuses([client.attempt("POST", world.url) for _ in range(3)]) == [200, 500, 500]
        world.clock.advance(31)


@pytest.mark.parametrize("works", [True, False])
def test_rule_23_one_probe_decides(world: World, works: bool) -> None:
    """During the trial request all other requests fail fast; its caller gets its response."""
    received: list[Event] = []
    client = world.client(broken_manager(world, listeners=[received.append]))
    open_circuit(world, client)
    world.clock.advance(30)
    if not works:
        world.emulator.faults.add(Status(502), on="call")
    with world.emulator.hold("call") as held, ThreadPoolExecutor(1) as pool:
        probe = pool.submit(client.attempt, "POST", world.url)
        held.wait_for(1)
        assert kinds(client.gather(20, "POST", world.url)) == {CircuitOpen}
        held.release()
        assert statuses([probe.result(30)]) == [200 if works else 502]
    outcomes = client.gather(20, "POST", world.url)
    assert kinds(outcomes) == (set() if works else {CircuitOpen})
    changes = [event for event in received if isinstance(event, (BreakerOpened, BreakerClosed))]
    where = (world.emulator.url, world.emulator.merchant_id, "balance")
    again = BreakerClosed(*where) if works else BreakerOpened(*where, 30, reopened=True)
    assert changes == [BreakerOpened(*where, 30, reopened=False), again]


@pytest.mark.parametrize("fault", [Status(422), TooMany(), RefuseToken()], ids=repr)
def test_rule_23_the_callers_mistakes_do_not_open_it(world: World, fault: Any) -> None:
    """However many there are: a 4xx is no service failure."""
    client = world.client(broken_manager(world, max_forced_refreshes=1))
    rule = world.emulator.faults.add(fault, on="call", times=None)
    assert CircuitOpen not in kinds([client.attempt("POST", world.url) for _ in range(8)])
    rule.remove()
    world.clock.advance(61)
    assert statuses([client.attempt("POST", world.url)]) == [200]


def test_rule_23_each_group_has_a_circuit_of_its_own(world: World) -> None:
    """Failing balance requests do not prevent payments."""
    client = world.client(broken_manager(world))
    open_circuit(world, client)
    charges = client.attempt("POST", f"{world.emulator.url}/api/transactions/charges")
    assert statuses([charges, client.attempt("POST", world.echo)]) == [200, 400]
    assert kinds([client.attempt("POST", world.url)]) == {CircuitOpen}


@pytest.mark.parametrize("fault", [Status(503), ResetAfterRead()], ids=repr)
def test_rule_23_the_call_that_opens_it_gets_its_own_last_outcome(world: World, fault: Any) -> None:
    """It would be sent a third time, but not through an open circuit."""
    client = world.client(broken_manager(world, breaker=BreakerPolicy(2), retry=RetryPolicy(attempts=3)))
    world.emulator.faults.add(fault, on="call", times=None)
    outcome = world.as_time_passes(lambda: client.attempt("POST", world.url))
    if isinstance(fault, Status):
        assert statuses([outcome]) == [503]
    else:
        assert not isinstance(outcome, Pay88Error)
        assert isinstance(outcome, client.base_error)
    assert world.emulator.journal.calls == 2
    assert kinds([client.attempt("POST", world.url)]) == {CircuitOpen}


@pytest.mark.parametrize("where", ["call", "token"])
def test_rule_23_a_cancelled_probe_lets_another_one_pass(
    world: World, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was, and although a caller keeps the exception with all it refers to."""
    client = world.client(broken_manager(world))
    if not isinstance(client, AsyncStack):
        pytest.skip("no tasks on this stack")
    kept: list[BaseException] = []
    send = client.asend

    async def keeping(*args: Any, **kw: Any) -> PlainResponse:
        try:
            return await send(*args, **kw)
        except BaseException as exc:
            kept.append(exc)
            raise

    open_circuit(world, client)
    world.clock.advance(70)  # the token has expired, too
    monkeypatch.setattr(client, "asend", keeping)
    with world.emulator.hold(where) as held:
        cancel = client.start("POST", world.url)
        assert cancel is not None
        held.wait_for(1)
        assert kinds([client.attempt("POST", world.url)]) == {CircuitOpen}
        cancel()
        while len(kept) < 2:
            client.run(_turn)
    assert statuses([client.attempt("POST", world.url)]) == [200]


async def _turn() -> None:
    """Give the loop a turn."""


def test_rule_23_a_probe_without_a_token_lets_another_one_pass(world: World) -> None:
    """Its call was not sent: that says nothing of the calls."""
    client = world.client(broken_manager(world))
    open_circuit(world, client)
    world.clock.advance(70)
    world.emulator.faults.add(Status(404), on="token")
    error = client.attempt("POST", world.url)
    assert isinstance(error, Pay88Error)
    assert not isinstance(error, CircuitOpen)
    world.clock.advance(2)
    assert statuses([client.attempt("POST", world.url)]) == [200]


def failing() -> Iterator[bytes]:
    """Yield a body that its caller cannot finish."""
    yield b"x"
    raise ValueError("a mistake in the caller's generator")


def test_rule_23_a_probe_whose_body_fails_lets_another_one_pass(world: World) -> None:
    """The mistake is the caller's."""
    client = world.client(broken_manager(world))
    body = next((name for name in ("generator", "async generator") if name in client.bodies), None)
    assert body is not None
    name = next(iter(client.bodies[body]()))
    open_circuit(world, client)
    world.clock.advance(30)

    async def afailing() -> Any:
        for piece in failing():
            yield piece

    made: Any = failing() if body == "generator" else afailing()
    assert not isinstance(client.attempt("POST", world.url, **{name: made}), (PlainResponse, CircuitOpen))
    assert statuses([client.attempt("POST", world.url)]) == [200]


def test_rule_22_and_23_a_paced_request_finds_the_circuit_open(world: World) -> None:
    """Calls that pass the breaker, and then wait, do not go out to a service that fails by now."""
    client = world.client(broken_manager(world, pacing=True, breaker=BreakerPolicy(1, window=60, open_for=60)))
    assert statuses(client.gather(59, "POST", world.url)) == [200] * 59
    world.clock.advance(45)
    with world.emulator.hold("call") as held, ThreadPoolExecutor(2) as pool:
        last = pool.submit(client.attempt, "POST", world.url)
        held.wait_for(1)
        waiting = pool.submit(world.as_time_passes, lambda: client.attempt("POST", world.url), step=0.5)
        began_at = time.monotonic()
        while world.clock.now() < 1046 and time.monotonic() < began_at + 10:
            time.sleep(0.002)
        world.emulator.faults.add(Status(500), on="call")
        held.release()
        assert statuses([last.result(30)]) == [500]
        assert kinds([waiting.result(30)]) == {CircuitOpen}
    assert world.emulator.journal.calls == 60
