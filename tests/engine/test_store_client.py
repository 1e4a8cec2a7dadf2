"""Managers that share a store, with every client library; and their degraded mode."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import (
    Credentials,
    CredentialsRejected,
    TokenEndpointUnavailable,
    TokenManager,
    TokenRateLimited,
)
from pay88_adapters.events import Event, StoreDegraded, StoreRestored
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import Status, TooMany
from support.stacks import PlainResponse, Stack
from support.worlds import World


class Host:
    """Managers that share a file as processes do: each knows it by a name of its own, and so shares nothing else."""

    def __init__(self, world: World, directory: Path) -> None:
        self.directory = directory / "store"
        self.directory.mkdir(mode=0o700)
        self._world = world
        self._names = count(1)

    def process(self, credentials: Any = None, listeners: Any = (), **policy: Any) -> tuple[TokenManager, Stack]:
        """Return the manager and the client of one more process."""
        url = f"sqlite:///{self.directory}{'/.' * next(self._names)}/tokens.db"
        manager = self._world.new_manager(credentials, listeners, url, **policy)
        return manager, self._world.client(manager)

    def break_store(self) -> None:
        """Take the store away."""
        self.directory.rename(self.directory.with_name("elsewhere"))

    def mend_store(self) -> None:
        """Put it back as it was."""
        self.directory.with_name("elsewhere").rename(self.directory)


@pytest.fixture
def host(world: World, tmp_path: Path) -> Iterator[Host]:
    """A host with a store: in memory where that can be, since a busy disk may be a store that fails."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        yield Host(world, Path(directory))


def ok(world: World, client: Stack) -> bool:
    """Send a request; return whether it got a 200."""
    status = client.request("POST", world.url).status
    world.settle(client.manager)  # what it fetched is in the store
    return status == 200


def failure(world: World, client: Stack) -> Any:
    """Make a call that fails; return the error."""
    outcome = client.attempt("POST", world.url)
    assert isinstance(outcome, Exception)
    world.settle(client.manager)
    return outcome


def test_rule_04_processes_share_the_token_and_its_refreshes(world: World, host: Host) -> None:
    """Three of them, ten lifetimes: the first one fetches, and the others use its token."""
    clients = [host.process()[1] for _ in range(3)]
    for turn in range(10):
        assert all(ok(world, client) for client in clients[turn % 3 :] + clients[: turn % 3])
        assert world.emulator.journal.token_requests == turn + 1
        world.clock.advance(51)
    assert world.emulator.journal.oldest_token_age == 0


def test_rule_04_a_token_is_as_old_for_those_who_share_it(world: World, host: Host) -> None:
    """What is taken over at second 30 is refreshed at second 45, not at 75."""
    (_, one), (_, other) = host.process(), host.process()
    assert ok(world, one)
    world.clock.advance(30)
    assert ok(world, other)
    world.clock.advance(21)
    assert ok(world, other)
    assert world.emulator.journal.token_requests == 2


def test_rule_04_the_second_process_waits_for_the_first(world: World, host: Host) -> None:
    """The lease is taken: no second request, and the token serves both."""
    (_, one), (second, other) = host.process(), host.process()
    responses: list[Any] = []
    with world.emulator.hold("token") as held:
        first = threading.Thread(target=lambda: responses.append(one.attempt("POST", world.url)))
        first.start()
        held.wait_for(1)
        waiting = threading.Thread(target=lambda: responses.append(other.attempt("POST", world.url)))
        waiting.start()
        while not second.stats().fetching:
            waiting.join(0.001)
        held.release()
        first.join(10)
    world.as_time_passes(waiting.join)
    assert [response.status for response in responses] == [200, 200]
    assert world.emulator.journal.token_requests == 1


def test_rule_07_a_token_that_another_process_replaced_is_taken_over(world: World, host: Host) -> None:
    """One process meets the 401 and pays for the new token; the other meets it, too, and pays nothing."""
    (_, one), (_, other) = host.process(), host.process()
    assert ok(world, one)
    assert ok(world, other)
    world.emulator.service.refuse_current_tokens()
    assert ok(world, one)
    assert ok(world, other)
    assert world.emulator.journal.token_requests == 2


def test_rule_10_a_429_holds_for_all(world: World, host: Host) -> None:
    """No manager with the store sends a token request before ``Retry-After``."""
    (_, one), (_, other) = host.process(), host.process()
    world.emulator.faults.add(TooMany(retry_after=300), on="token")
    for client in (one, other):
        error = failure(world, client)
        assert isinstance(error, TokenRateLimited)
        assert error.retry_after == pytest.approx(300, abs=1)
    assert world.emulator.journal.token_requests == 1
    world.clock.advance(301)
    assert ok(world, other)


def test_rule_11_an_outage_is_probed_by_one_of_all(world: World, host: Host) -> None:
    """The cooldown is shared, and it grows with each trial request, in any process."""
    clients = [host.process(fetch_attempts=1)[1] for _ in range(3)]
    world.emulator.faults.add(Status(503), on="token", times=None)
    probes = []
    for turn in range(4):
        errors = [failure(world, client) for client in clients[turn % 3 :] + clients[: turn % 3]]
        assert all(isinstance(error, TokenEndpointUnavailable) and error.status == 503 for error in errors)
        probes.append(world.emulator.journal.token_requests)
        assert errors[2].retry_after == pytest.approx(2**turn, abs=0.1)
        world.clock.advance(errors[0].retry_after + 0.01)
    assert probes == [1, 2, 3, 4]


def test_rule_09_rejected_credentials_are_rejected_for_all_who_have_them(world: World, host: Host) -> None:
    """One request in all; a key that was not rejected is not affected."""
    world.emulator.service.reject_credentials(world.emulator.api_key)
    world.emulator.service.accept_credentials("sk_test_new")
    (_, one), (_, other) = host.process(), host.process()
    for client in (one, other):
        assert isinstance(failure(world, client), CredentialsRejected)
    assert world.emulator.journal.token_requests == 1
    _, fresh = host.process(Credentials("sk_test_new", world.emulator.merchant_id))
    assert ok(world, fresh)


def test_rule_05_processes_share_the_budget(world: World, host: Host) -> None:
    """Ten a minute in all, whatever keys they use; and nothing in the file names the merchant or a key."""
    for number in range(12):
        key = f"sk_test_number_{number}"
        world.emulator.service.accept_credentials(key)
        manager, client = host.process(Credentials(key, world.emulator.merchant_id))
        assert isinstance(client.attempt("POST", world.url), PlainResponse) == (number < 10)
        world.settle(manager)
    assert world.emulator.journal.token_requests == 10
    content = b"".join(path.read_bytes() for path in host.directory.iterdir())
    assert world.emulator.merchant_id.encode() not in content
    assert b"sk_test" not in content


# The store fails


def test_rule_24_a_store_that_fails_takes_no_call_down(
    world: World, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """Unavailable for four lifetimes: requests continue. One warning, one event, and one of each after recovery."""
    received: list[Event] = []
    (manager, one), (_, other) = host.process(listeners=[received.append]), host.process()
    assert ok(world, one)
    host.break_store()
    for _ in range(16):
        world.clock.advance(13)
        assert ok(world, one)
        assert ok(world, other)
    host.mend_store()
    world.clock.advance(60)
    assert ok(world, one)
    assert ok(world, other)
    world.settle()
    assert [type(event) for event in received if isinstance(event, (StoreDegraded, StoreRestored))] == [
        StoreDegraded,
        StoreRestored,
    ]
    warnings = [record for record in caplog.records if record.name == "pay88_adapters.store"]
    assert [record.levelno for record in warnings] == [logging.WARNING] * 4  # two processes, lost and found
    requests = world.emulator.journal.token_requests
    world.clock.advance(51)
    assert ok(world, one)
    assert ok(world, other)
    assert world.emulator.journal.token_requests == requests + 1, "they share again"
    world.clock.advance(61)  # the other manager gets the failure or the token through the store
    assert ok(world, other)
    assert ok(world, one)
    assert manager.stats().budget_left["100 per 1 hour"] == 100 - world.emulator.journal.token_requests


def test_rule_24_a_process_alone_spends_its_share_and_no_more(world: World, host: Host) -> None:
    """A quarter of what was left: with the hour's budget known from the store, four together never pass it."""
    processes = [host.process(fallback_share=0.25, max_wait=1e-6) for _ in range(4)]
    for _ in range(60):
        assert ok(world, processes[0][1])
        world.clock.advance(51)
    for _, client in processes:
        assert ok(world, client)
    before = world.emulator.journal.token_requests
    assert before >= 60
    host.break_store()
    for _ in range(10):
        world.clock.advance(61)
        for manager, client in processes:
            client.attempt("POST", world.url)
            world.settle(manager)
    used = world.emulator.journal.token_requests - before
    assert 4 * 9 <= used <= 40
    assert world.emulator.journal.max_in_window(3600) <= 100
    host.mend_store()
    for _ in range(2):  # in the first round they report their units, in the second they get those of the others
        world.clock.advance(61)
        for manager, client in processes:
            client.attempt("POST", world.url)
            world.settle(manager)
    left = [manager.stats().budget_left["100 per 1 hour"] for manager, _ in processes]
    window = 3600 + 5  # as the budget counts
    requests = [entry.at for entry in world.emulator.journal.select("token") if entry.at >= world.clock.now() - window]
    assert left == [100 - len(requests)] * 4
    assert world.emulator.journal.max_in_window(3600) <= 100


def test_rule_24_a_record_that_makes_no_sense_is_replaced(world: World, host: Host) -> None:
    """Never a wrong token: the first reader fetches a new one for all."""
    (manager, one), (_, other) = host.process(), host.process()
    assert ok(world, one)
    state: Any = manager
    state = state._state
    key = state.record_key(world.credentials)
    store: Any = SqliteStore(str(host.directory / "tokens.db"), world.clock)
    for content in (
        "",
        "nonsense",
        "[]",
        '{"format": 99}',
        json.dumps({"format": 1, "token": {"access_token": "x\r\ny"}}),
    ):
        world.clock.advance(51)
        fencing_token = store.try_acquire_lease(
            key,
            owner="a vandal",
            known_version=store.try_acquire_lease(key, owner="", known_version=-1, lease=1).record.version,
            lease=1,
        )
        assert store.publish(key, fencing_token=fencing_token.fencing_token, content=content, ttl=1000)
        requests = world.emulator.journal.token_requests
        assert ok(world, other)
        assert ok(world, one)
        assert world.emulator.journal.token_requests == requests + 1


def test_rule_13_another_base_url_shares_nothing(world: World, host: Host, make_world: Callable[..., World]) -> None:
    """A token never crosses over to another origin, though the store is the same."""
    _, one = host.process()
    assert ok(world, one)
    elsewhere = make_world()
    manager = elsewhere.new_manager(None, (), f"sqlite:///{host.directory}/tokens.db")
    assert ok(elsewhere, elsewhere.client(manager))
    assert elsewhere.emulator.journal.token_requests == 1
