"""What listeners hear, on every stack; and that none of them can break a call."""

from __future__ import annotations

import pickle
import threading
from functools import partial
from typing import Any

import pytest

from conftest import World
from pay88_adapters import ConfigurationError, Credentials, TokenManager
from pay88_adapters.errors import TokenEndpointUnavailable
from pay88_adapters.events import (
    BudgetExhausted,
    CallReplayed,
    Event,
    RefreshFailed,
    TokenFetched,
    TokenRefused,
)
from pay88_adapters.testing import RefuseToken, Status
from stacks import Reply, Stack


def kinds(heard: list[Event]) -> list[type[Event]]:
    """Return what happened, in order."""
    return [type(event) for event in heard]


def test_listeners_hear_what_happens_in_order(world: World) -> None:
    """A fetch, a refusal, the replay, a failed refresh: each once, with what is worth knowing, and no secret."""
    heard: list[Event] = []
    client = world.client(world.new_manager(listeners=[heard.append], fetch_attempts=1))
    world.emulator.faults.add(RefuseToken(), on="call")
    assert client.request("POST", world.url).status == 200
    assert kinds(heard) == [TokenFetched, TokenRefused, TokenFetched, CallReplayed]
    world.clock.advance(55)
    world.emulator.faults.add(Status(503), on="token")
    assert client.request("POST", world.url).status == 200
    failed = heard[-1]
    assert isinstance(failed, RefreshFailed)
    assert (failed.base_url, failed.merchant_id) == (world.emulator.url, world.emulator.merchant_id)
    assert isinstance(failed.error, TokenEndpointUnavailable)
    assert (failed.error.status, failed.error.retry_after) == (503, 1.0)
    assert isinstance(heard[0], TokenFetched)
    assert heard[0].expires_in == 60
    assert isinstance(heard[1], TokenRefused)
    assert heard[1].replaced
    text = "".join(map(repr, heard)) + repr(pickle.dumps(heard))
    assert not [secret for secret in world.emulator.service.secrets() if secret in text]


def test_a_refusal_that_is_handed_over_says_so(world: World) -> None:
    """Two 401s in a row: the second is the caller's."""
    heard: list[Event] = []
    client = world.client(world.new_manager(listeners=[heard.append]))
    world.emulator.faults.add(RefuseToken(), on="call", times=2)
    assert client.request("POST", world.url).status == 401
    refusals = [event.replaced for event in heard if isinstance(event, TokenRefused)]
    assert refusals == [True, False]


def test_a_spent_budget_is_told(world: World) -> None:
    """With the time until there is a unit."""
    heard: list[Event] = []
    manager = world.new_manager(listeners=[heard.append], limits=("1/minute",), max_wait=1)
    client = world.client(manager)
    assert client.request("POST", world.url).status == 200
    world.clock.advance(59.5)
    assert isinstance(world.as_time_passes(lambda: client.attempt("POST", world.url)), Exception)
    spent = heard[-1]
    assert isinstance(spent, BudgetExhausted)
    assert 0 < spent.retry_after <= 6  # the window is as much longer as a token request may take


@pytest.mark.filterwarnings("error")
def test_a_listener_that_raises_changes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Calls go on, the other listeners hear everything, and the log says whose mistake it was."""
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("a mistake in a listener")

    client = world.client(world.new_manager(listeners=[broken, heard.append]))
    world.emulator.faults.add(RefuseToken(), on="call")
    assert client.request("POST", world.url).status == 200
    assert kinds(heard) == [TokenFetched, TokenRefused, TokenFetched, CallReplayed]
    records = [record for record in caplog.records if record.name == "pay88_adapters.events"]
    assert len(records) == 4
    assert all(record.exc_info for record in records)


def test_rule_17_a_listener_may_call_the_manager(world: World) -> None:
    """No lock is held while it runs, and it finds the token that it hears of."""
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


def test_rule_17_a_listener_that_blocks_keeps_nobody_else(world: World) -> None:
    """It hears of a token, and does not return: whoever waited for that token has it, on any other thread."""
    blocked, go_on = threading.Event(), threading.Event()

    def block(event: Event) -> None:
        if isinstance(event, TokenFetched):
            blocked.set()
            assert go_on.wait(30)

    manager = world.new_manager(listeners=[block])
    clients = [world.client(manager) for _ in range(3)]
    replies: list[Any] = []
    answered = threading.Semaphore(0)

    def call(client: Stack) -> None:
        replies.append(client.attempt("POST", world.url))
        answered.release()

    with world.emulator.hold("token") as held:
        waiting = [threading.Thread(target=call, args=(client,)) for client in clients]
        for thread in waiting:
            thread.start()
        held.wait_for(1)
    assert blocked.wait(10)
    try:
        manager.get_token()  # a thread that has nothing to do with it
        for _ in clients[1:]:  # all but the loop that it blocks, where there is one
            answered.acquire(timeout=10)
        assert len(replies) >= len(clients) - 1
    finally:
        go_on.set()
    for thread in waiting:
        thread.join(10)
    assert [reply.status for reply in replies if isinstance(reply, Reply)] == [200] * len(clients)
    assert world.emulator.journal.token_requests == 1


def test_listeners_are_checked_at_once() -> None:
    """One that is not a list, or not callable, is found where it was written."""
    make = partial(TokenManager, Credentials("sk_test_listeners", "MCH-COL-1"))
    wrong: Any
    for wrong in (print, ["print"]):
        with pytest.raises(ConfigurationError):
            make(listeners=wrong)
