"""Events with every client library; and that no listener can break a request."""

from __future__ import annotations

import logging
import pickle
import threading
from dataclasses import FrozenInstanceError
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import BreakerPolicy, ConfigurationError, Credentials, RetryPolicy, TokenManager, events
from pay88_adapters.errors import (
    CircuitOpen,
    RequestBudgetExhausted,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
)
from pay88_adapters.events import (
    BreakerClosed,
    BreakerOpened,
    BudgetExhausted,
    CallNotSent,
    CallReplayed,
    CallRetried,
    CallWaited,
    Event,
    RefreshFailed,
    SharedTokenUsed,
    StoreDegraded,
    StoreRestored,
    TokenFetched,
    TokenRejected,
    TokenRequestFailed,
)
from pay88_adapters.testing import RefuseToken, Status, TooMany
from support.stacks import AsyncStack, PlainResponse, Stack
from support.worlds import World

OF_FETCHES = (TokenFetched, SharedTokenUsed, TokenRequestFailed, RefreshFailed, BudgetExhausted)


def of_fetches(received: list[Event]) -> list[type[Event]]:
    """Return what happened to fetches, in order."""
    return [type(event) for event in received if isinstance(event, OF_FETCHES)]


def of_calls(received: list[Event]) -> list[type[Event]]:
    """Return what happened to calls, in order."""
    return [type(event) for event in received if not isinstance(event, OF_FETCHES)]


class EventRecorder:
    """A listener that stores each event with its thread."""

    def __init__(self) -> None:
        self.received: list[Event] = []
        self.threads: list[str] = []

    def __call__(self, event: Event) -> None:
        self.received.append(event)
        self.threads.append(threading.current_thread().name)

    def last(self, kind: type[Any]) -> Any:
        """Return the last event of this class."""
        return next(event for event in reversed(self.received) if isinstance(event, kind))


def test_every_event_is_emitted_where_it_happens(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One story with every class of event: frozen, without a secret, calls on their thread and fetches on theirs.

    At DEBUG each of them is a line in the log, also without a secret; the store client logs the store's problems.
    """
    caplog.set_level(logging.DEBUG, "pay88_adapters")
    recorder, emulator = EventRecorder(), world.emulator
    breaker = BreakerPolicy(failure_threshold=2, open_for=40)

    def make(retry: RetryPolicy | None = None, store: str = "memory://", **policy: Any) -> Stack:
        return world.client(
            world.new_manager(listeners=[recorder], retry=retry, pacing=True, breaker=breaker, store=store, **policy)
        )

    def call(client: Stack, method: str = "POST", url: str = world.url) -> Any:
        outcome = world.as_time_passes(lambda: client.attempt(method, url), step=1)
        world.settle(client.manager)
        return outcome.status if isinstance(outcome, PlainResponse) else outcome

    client = make()
    emulator.faults.add(Status(503), on="token")
    assert call(client) == 200
    failed = recorder.last(TokenRequestFailed)
    assert (failed.error, failed.status) == (TokenEndpointUnavailable, 503)
    assert recorder.last(TokenFetched).duration >= 0
    assert recorder.last(CallWaited).reason == "token"

    emulator.faults.add(RefuseToken(), on="call")
    emulator.faults.add(Status(503), on="call")
    assert call(client) == 200
    assert recorder.last(TokenRejected).replaced
    assert recorder.last(CallReplayed)
    assert recorder.last(CallRetried).status == 503

    once = make(RetryPolicy.none())
    assert call(once) == 200
    assert recorder.last(SharedTokenUsed).previous_failures == 0
    emulator.faults.add(Status(500), on="call", times=3)
    assert (call(once, url=world.echo), call(once, url=world.echo)) == (500, 500)
    assert recorder.last(BreakerOpened) == BreakerOpened(
        emulator.url, emulator.merchant_id, "other", 40, reopened=False
    )
    assert isinstance(call(once, url=world.echo), CircuitOpen)
    assert (recorder.last(CallNotSent).group, recorder.last(CallNotSent).error) == ("other", CircuitOpen)
    world.clock.advance(40)
    assert call(once, url=world.echo) == 500
    assert recorder.last(BreakerOpened).again
    world.clock.advance(40)
    assert call(once, url=world.echo) == 200
    assert recorder.last(BreakerClosed).group == "other"

    emulator.faults.add(TooMany(retry_after=10), on="call")
    assert (call(once), call(once)) == (429, 200)
    assert recorder.last(CallWaited).reason == "balance"
    assert recorder.last(CallWaited).seconds == pytest.approx(10, abs=1)
    emulator.faults.add(TooMany(retry_after=100), on="call")
    assert call(once) == 429
    assert isinstance(call(once), RequestBudgetExhausted)
    assert recorder.last(CallNotSent).error is RequestBudgetExhausted
    assert recorder.last(CallNotSent).retry_after == pytest.approx(100, abs=1)

    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    stored = make(store=f"sqlite:///{store}/tokens.db")
    assert call(stored) == 200
    store.rename(tmp_path / "elsewhere")
    world.clock.advance(60)
    assert call(stored) == 200
    assert recorder.last(StoreDegraded)
    (tmp_path / "elsewhere").rename(store)
    world.clock.advance(60)
    assert call(stored) == 200
    assert recorder.last(StoreRestored)

    frugal = make(limits=("1/minute",), max_wait=1)
    world.clock.advance(60)
    assert call(frugal) == 200
    world.clock.advance(59.5)
    assert isinstance(call(frugal), TokenBudgetExhausted)
    assert recorder.last(BudgetExhausted).retry_after > 0
    assert isinstance(recorder.last(RefreshFailed).error, TokenBudgetExhausted)

    every = {each for each in vars(events).values() if isinstance(each, type) and issubclass(each, Event)}
    assert {type(event) for event in recorder.received} == every - {Event}
    logged = [record for record in caplog.records if record.name in ("pay88_adapters.tokens", "pay88_adapters.calls")]
    assert len(logged) == sum(not isinstance(event, (StoreDegraded, StoreRestored)) for event in recorder.received)
    text = "".join(map(repr, recorder.received)) + repr(pickle.dumps(recorder.received)) + caplog.text
    assert not [secret for secret in emulator.service.secrets() if secret in text]
    for event, thread in zip(recorder.received, recorder.threads, strict=True):
        apart = isinstance(event, OF_FETCHES) and not isinstance(client, AsyncStack)
        # Of the store's failure, whichever thread decides next.
        assert (thread == "pay88-token-fetch") == apart or isinstance(event, (StoreDegraded, StoreRestored))
        with pytest.raises(FrozenInstanceError):
            event.base_url = ""  # type: ignore[misc]
        assert event.base_url == emulator.url


def test_listeners_receive_events_in_order(world: World) -> None:
    """A fetch, a rejection, the replay, a failed refresh: each once, with what is worth knowing, and no secret."""
    received: list[Event] = []
    client = world.client(world.new_manager(listeners=[received.append], fetch_attempts=1))
    world.emulator.faults.add(RefuseToken(), on="call")
    assert client.request("POST", world.url).status == 200
    world.settle(client.manager)
    assert of_fetches(received) == [TokenFetched, TokenFetched]
    assert of_calls(received) == [CallWaited, TokenRejected, CallWaited, CallReplayed]
    world.clock.advance(55)
    world.emulator.faults.add(Status(503), on="token")
    assert client.request("POST", world.url).status == 200
    world.settle(client.manager)
    request, failed = (event for event in received[-3:] if isinstance(event, OF_FETCHES))
    assert isinstance(request, TokenRequestFailed)
    assert (request.error, request.status) == (TokenEndpointUnavailable, 503)
    assert isinstance(failed, RefreshFailed)
    assert failed.consecutive_failures == 1
    assert (failed.base_url, failed.merchant_id) == (world.emulator.url, world.emulator.merchant_id)
    assert isinstance(failed.error, TokenEndpointUnavailable)
    assert (failed.error.status, failed.error.retry_after) == (503, 1.0)
    assert [event.expires_in for event in received if isinstance(event, TokenFetched)] == [60, 60]
    assert [event.replaced for event in received if isinstance(event, TokenRejected)] == [True]
    text = "".join(map(repr, received)) + repr(pickle.dumps(received))
    assert not [secret for secret in world.emulator.service.secrets() if secret in text]


def test_stats_count_the_emitted_events(world: World) -> None:
    """The counters equal the emitted events, and the remaining budget is reported."""
    received: list[Event] = []
    breaker = BreakerPolicy(failure_threshold=2)
    manager = world.new_manager(listeners=[received.append], fetch_attempts=1, breaker=breaker)
    client = world.client(manager)
    assert manager.stats().token_expires_in is None
    world.emulator.faults.add(Status(503), on="token")
    assert isinstance(client.attempt("POST", world.url), Exception)
    world.settle(manager)
    assert manager.stats().consecutive_failures == 1
    world.clock.advance(2)
    world.emulator.faults.add(RefuseToken(), on="call")
    assert client.request("POST", world.url).status == 200
    world.emulator.faults.add(Status(500), on="call", times=2)
    assert [client.request("POST", world.echo).status for _ in range(2)] == [500, 500]
    assert isinstance(client.attempt("POST", world.echo), CircuitOpen)
    world.settle(manager)
    stats = manager.stats()

    def count(*kinds: type[Event]) -> int:
        return sum(isinstance(event, kinds) for event in received)

    assert stats.token_requests == count(TokenFetched, TokenRequestFailed) == 3
    assert stats.tokens == count(TokenFetched) == 2
    assert stats.failed_fetches == count(RefreshFailed) == 1
    assert stats.unauthorized == count(TokenRejected) == 1
    assert stats.replayed == count(CallReplayed) == 1
    assert stats.waited == count(CallWaited) == 3
    assert stats.not_sent == count(CallNotSent) == 2
    assert (stats.consecutive_failures, stats.paced, stats.retried, stats.refreshes) == (0, 0, 0, 0)
    assert stats.budget_left == {"10 per 1 minute": 7, "100 per 1 hour": 97}
    assert stats.circuits_open == {"balance": False, "other": True}
    assert stats.token_expires_in == 60
    assert (stats.fetching, stats.store_degraded) == (False, False)


def test_a_listener_can_be_added(world: World) -> None:
    """To a manager that was created by another client; it receives the events from then on."""
    received: list[Event] = []
    manager = world.new_manager()
    client = world.client(manager)
    assert client.request("POST", world.url).status == 200
    world.settle(manager)
    manager.listen(received.append)
    world.emulator.faults.add(RefuseToken(), on="call")
    assert client.request("POST", world.url).status == 200
    world.settle(manager)
    assert of_fetches(received) == [TokenFetched]
    with pytest.raises(ConfigurationError):
        manager.listen("print")  # type: ignore[arg-type]


def test_a_rejection_that_is_handed_over_says_so(world: World) -> None:
    """Two 401s consecutively: the second is the caller's."""
    received: list[Event] = []
    client = world.client(world.new_manager(listeners=[received.append]))
    world.emulator.faults.add(RefuseToken(), on="call", times=2)
    assert client.request("POST", world.url).status == 401
    rejections = [event.replaced for event in received if isinstance(event, TokenRejected)]
    assert rejections == [True, False]


def test_a_fetch_without_budget_for_its_retry_has_one_error(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The caller, the event and the log name the failure of the attempt, which says more."""
    received: list[Event] = []
    manager = world.new_manager(listeners=[received.append], limits=("1/minute",), backoff_base=0, backoff_cap=0)
    world.emulator.faults.add(Status(503), on="token")
    error = world.client(manager).attempt("POST", world.url)
    assert isinstance(error, TokenEndpointUnavailable)
    world.settle(manager)
    assert of_fetches(received) == [TokenRequestFailed, BudgetExhausted, RefreshFailed]
    (failed,) = (event for event in received if isinstance(event, RefreshFailed))
    assert (type(failed.error), str(failed.error)) == (TokenEndpointUnavailable, str(error))
    assert "TokenEndpointUnavailable" in caplog.text
    assert "TokenBudgetExhausted" not in caplog.text


def test_an_exhausted_budget_is_reported(world: World) -> None:
    """With the time until there is a unit."""
    received: list[Event] = []
    manager = world.new_manager(listeners=[received.append], limits=("1/minute",), max_wait=1)
    client = world.client(manager)
    assert client.request("POST", world.url).status == 200
    world.clock.advance(59.5)
    assert isinstance(world.as_time_passes(lambda: client.attempt("POST", world.url)), Exception)
    world.settle(manager)
    assert of_fetches(received) == [TokenFetched, BudgetExhausted, RefreshFailed]
    (used,) = (event for event in received if isinstance(event, BudgetExhausted))
    assert 0 < used.retry_after <= 6  # the window is as much longer as a token request may take


@pytest.mark.filterwarnings("error")
def test_a_listener_that_raises_changes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Requests continue, the other listeners receive all events, and the log names the faulty listener."""
    received: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("a mistake in a listener")

    client = world.client(world.new_manager(listeners=[broken, received.append]))
    world.emulator.faults.add(RefuseToken(), on="call")
    assert client.request("POST", world.url).status == 200
    world.settle(client.manager)
    assert of_fetches(received) == [TokenFetched, TokenFetched]
    assert of_calls(received) == [CallWaited, TokenRejected, CallWaited, CallReplayed]
    records = [record for record in caplog.records if record.name == "pay88_adapters.events"]
    assert len(received) == 6
    assert len(records) == 3  # the first, the second and the fourth
    assert all(record.exc_info for record in records)


def test_rule_17_a_listener_may_call_the_manager(world: World) -> None:
    """No lock is held while it runs, and it finds the token of its event."""
    found: list[object] = []

    def ask(event: Event) -> None:
        if isinstance(event, TokenFetched):
            found.append(manager.get_token())
            manager.stats()

    manager = world.new_manager(listeners=[ask])
    client = world.client(manager)
    assert client.request("POST", world.url).status == 200
    world.settle()
    assert found == [manager.get_token()]
    assert world.emulator.journal.token_requests == 1


def test_rule_17_a_listener_that_blocks_delays_no_other_thread(world: World) -> None:
    """It receives the event of a token, and does not return: waiters on other threads get the token."""
    blocked, resume = threading.Event(), threading.Event()

    def block(event: Event) -> None:
        if isinstance(event, TokenFetched):
            blocked.set()
            assert resume.wait(30)

    manager = world.new_manager(listeners=[block])
    clients = [world.client(manager) for _ in range(3)]
    responses: list[Any] = []
    responded = threading.Semaphore(0)

    def call(client: Stack) -> None:
        responses.append(client.attempt("POST", world.url))
        responded.release()

    with world.emulator.hold("token") as held:
        waiting = [threading.Thread(target=call, args=(client,)) for client in clients]
        for thread in waiting:
            thread.start()
        held.wait_for(1)
    assert blocked.wait(10)
    try:
        manager.get_token()  # a thread that has nothing to do with it
        for _ in clients[1:]:  # all but the loop that it blocks, where there is one
            responded.acquire(timeout=10)
        assert len(responses) >= len(clients) - 1
    finally:
        resume.set()
    for thread in waiting:
        thread.join(10)
    assert [response.status for response in responses if isinstance(response, PlainResponse)] == [200] * len(clients)
    assert world.emulator.journal.token_requests == 1


def test_listeners_are_checked_immediately() -> None:
    """One that is not a list, or not callable, is found where it was written."""
    make = partial(TokenManager, Credentials("sk_test_listeners", "MCH-COL-1"))
    wrong: Any
    for wrong in (print, ["print"]):
        with pytest.raises(ConfigurationError):
            make(listeners=wrong)
