"""Managers that share a store, on every stack; and what they do when it fails."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pay88_adapters import (
    Credentials,
    CredentialsRejected,
    Token,
    TokenEndpointUnavailable,
    TokenManager,
    TokenRateLimited,
)
from pay88_adapters.clock import Clock
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.snapshot import Snapshot, load
from pay88_adapters.engine.sharing import shared_key
from pay88_adapters.events import Event, StoreDegraded, StoreRestored
from pay88_adapters.stores.base import Store
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.stores.sqlite import SqliteStore
from pay88_adapters.testing import ManualClock, Status, TooMany
from pay88_adapters.testing.windows import largest_window
from support.fleets import Simulation
from support.stacks import Reply, Stack
from support.worlds import Report, World


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
    """Make a call; return whether it was answered 200."""
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
    """Three of them, ten lifetimes: whoever comes first fetches, and the others take what it got."""
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


def test_rule_04_whoever_comes_second_waits_for_the_first(world: World, host: Host) -> None:
    """The lease is taken: no second request, and the token serves both."""
    (_, one), (second, other) = host.process(), host.process()
    replies: list[Any] = []
    with world.emulator.hold("token") as held:
        first = threading.Thread(target=lambda: replies.append(one.attempt("POST", world.url)))
        first.start()
        held.wait_for(1)
        waiting = threading.Thread(target=lambda: replies.append(other.attempt("POST", world.url)))
        waiting.start()
        while not second.stats().fetching:
            waiting.join(0.001)
        held.release()
        first.join(10)
    world.as_time_passes(waiting.join)
    assert [reply.status for reply in replies] == [200, 200]
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
    """Nobody who shares the store asks again before ``Retry-After``."""
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
    """The cool-down is shared, and it grows with each probe, whoever makes it."""
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
    """One request in all; and a key that nobody rejected is not concerned."""
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
        assert isinstance(client.attempt("POST", world.url), Reply) == (number < 10)
        world.settle(manager)
    assert world.emulator.journal.token_requests == 10
    content = b"".join(path.read_bytes() for path in host.directory.iterdir())
    assert world.emulator.merchant_id.encode() not in content
    assert b"sk_test" not in content


# The store fails


def test_rule_24_a_store_that_fails_takes_no_call_down(
    world: World, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """Gone for four lifetimes: calls go on; one warning, one event, and one of each when it is back."""
    heard: list[Event] = []
    (manager, one), (_, other) = host.process(listeners=[heard.append]), host.process()
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
    assert [type(event) for event in heard if isinstance(event, (StoreDegraded, StoreRestored))] == [
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
    world.clock.advance(61)  # whichever of them asked, the other one hears of it with the next token
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
    spent = world.emulator.journal.token_requests - before
    assert 4 * 9 <= spent <= 40
    assert world.emulator.journal.max_in_window(3600) <= 100
    host.mend_store()
    for _ in range(2):  # in the first round they tell what they took, in the second they hear of it
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
    """Never a wrong token: whoever finds it fetches a new one for all."""
    (manager, one), (_, other) = host.process(), host.process()
    assert ok(world, one)
    state: Any = manager
    state = state._state
    key = shared_key(state.settings, world.credentials)
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
            known=store.try_acquire_lease(key, owner="", known=-1, lease=1).record.version,
            lease=1,
        )
        assert store.publish(key, fencing_token=fencing_token.fencing_token, content=content, keep=1000)
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


# What they tell each other

TOKEN = Token("eyJ.a.b", "sess_1", 60.0, 1_000.0)
REJECTED = Failure(CredentialsRejected, "no", status=401, server_message="no", retryable=False)


def test_rule_04_a_snapshot_travels_as_ages() -> None:
    """Whatever the reader's clock shows: the token is as old, the bar as far from its end."""
    told = Snapshot(TOKEN, REJECTED, 1_020.0, 3, 998.0, {"window": {"a": 900.0, "b": 1_000.0}})
    found = load(told.dump(1_010.0), 5.0, 76.0, 77.0)
    assert found == Snapshot(TOKEN, REJECTED, 82.0, 3, 60.0, {"window": {"a": -38.0, "b": 62.0}})
    assert found is not None
    assert found.token is not None
    assert found.token.requested_at == 61.0, "as old as it may be, for all that is known"
    assert told.ttl(1_010.0) == 50.0
    assert load(Snapshot().dump(5.0), 1.0, 9.0, 9.0) == Snapshot()
    assert load(Snapshot(cooldown_reason=REJECTED, cooldown_until=5.0).dump(5.0), 0.0, 9.0, 9.0) == Snapshot(), (
        "it has ended"
    )


def test_rule_04_a_snapshot_is_written_as_every_version_reads_it() -> None:
    """Processes with different versions of the package share a store while one replaces the other."""
    broken = Failure(TokenEndpointUnavailable, "503", status=503, retryable=True)
    told = Snapshot(TOKEN, broken, 1_020.0, 3, 998.0, {"window": {"a": 900.0, "b": 999.75, "c": 1_000.0004}})
    document = json.loads(told.dump(1_010.0))
    assert document == {
        "format": 1,
        "token": {"access_token": "eyJ.a.b", "session_id": "sess_1", "expires_in": 60.0, "age": 10.0},
        "bar": {
            "kind": "TokenEndpointUnavailable",
            "message": "503",
            "status": 503,
            "server_message": None,
            "retryable": True,
            "remaining": 10.0,
        },
        "failures": 3,
        "ordinary_age": 12.0,
        "spent": {},
        "history": {"window": {"a": 110.0, "b": 10.25, "c": 10.0}},
    }
    found = load(json.dumps(document), 0.0, 50.0, 50.0)
    assert found is not None
    assert (found.cooldown_reason, found.budget_entries) == (broken, {"window": {"a": -60.0, "b": 39.75, "c": 40.0}})
    del document["history"]  # as versions wrote it that counted each limit for itself
    document["spent"] = {"window": [110.0, 10.25]}
    found = load(json.dumps(document), 0.0, 50.0, 50.0)
    assert found is not None
    assert (found.token, found.budget_entries) == (Token("eyJ.a.b", "sess_1", 60.0, 40.0), {})
    document["bar"].update(message="5\r\n3", server_message="a\nb", status=None)
    found = load(json.dumps(document), 0.0, 50.0, 50.0)
    assert found is not None
    assert found.cooldown_reason == Failure(TokenEndpointUnavailable, "5  3", server_message="a b", retryable=True)


def test_rule_10_a_bar_counts_from_when_the_record_was_stored() -> None:
    """However old the store thinks that its content is: a token is as old as that, a bar as young as it may be."""
    told = Snapshot(TOKEN, REJECTED, 1_020.0, budget_entries={"window": {"a": 1_000.0}}).dump(1_010.0)
    found = load(told, 5.0, 76.0, 77.0, stored=2.0)
    assert found is not None
    assert found.token is not None
    assert (found.token.requested_at, found.cooldown_until, found.budget_entries) == (
        61.0,
        85.0,
        {"window": {"a": 65.0}},
    )


def test_rule_04_a_bar_that_ends_now_is_not_told() -> None:
    """And a snapshot lasts as long as the longer of token and bar."""
    barred = Snapshot(cooldown_reason=REJECTED, cooldown_until=1_100.0)
    assert json.loads(barred.dump(1_099.0))["bar"]["remaining"] == 1.0
    assert not json.loads(barred.dump(1_100.0))["bar"]
    assert barred.ttl(1_000.0) == 100.0
    assert Snapshot(TOKEN).ttl(1_010.0) == 50.0
    assert Snapshot(TOKEN, REJECTED, 1_100.0).ttl(1_010.0) == 90.0
    assert Snapshot(TOKEN, REJECTED, 1_100.0).ttl(2_000.0) == 0.0
    assert Snapshot().ttl(5.0) == 0.0


def test_rule_04_a_token_that_has_expired_is_not_told() -> None:
    """Nor does the rest of a snapshot get lost with it, or with what happened days ago."""
    assert json.loads(Snapshot(TOKEN).dump(1_059.9))["token"]
    assert json.loads(Snapshot(TOKEN).dump(1_060.0))["token"] is None
    later = 1_000.0 + 3 * 86_400
    told = Snapshot(TOKEN, REJECTED, later + 20.0, 3, 998.0, {"window": {"a": 998.0}})
    assert load(told.dump(later), 0.0, later, later) == replace(told, token=None)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], 2),
        (["token", "access_token"], "x\r\ny"),
        (["token", "session_id"], "x\r\ny"),
        (["token", "access_token"], 7),
        (["token", "expires_in"], 86_401),
        (["token", "expires_in"], True),
        (["token", "expires_in"], "60"),
        (["token", "age"], -0.001),
        (["token"], {}),
        (["token"], [7]),
        (["bar", "kind"], "Exception"),
        (["bar", "message"], 7),
        (["bar", "message"], None),
        (["bar", "server_message"], 7),
        (["bar", "server_message"], 0),
        (["bar", "status"], "401"),
        (["bar", "remaining"], None),
        (["failures"], -1),
        (["ordinary_age"], "12"),
        (["ordinary_age"], 1e11),
        (["history"], []),
        (["history", "window"], 7),
        (["history", "window", "a"], -1),
        (["history", "window", "a"], "1"),
        (["history", "window", "a"], 10**400),
    ],
)
def test_rule_12_one_wrong_field_spoils_the_snapshot(path: list[str], value: Any) -> None:
    """Nothing of it is taken, except that an empty token is none."""
    document = json.loads(Snapshot(TOKEN, REJECTED, 1_020.0, 3, 998.0, {"window": {"a": 900.0}}).dump(1_010.0))
    assert load(json.dumps(document), 0.0, 1_000.0, 1_000.0) is not None
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    found = load(json.dumps(document), 0.0, 1_000.0, 1_000.0)
    assert found is None or (value == {} and found.token is None)


@pytest.mark.parametrize("content", ["", "[]", "7", "null", "{}", "[" * 100_000], ids=len)
def test_rule_12_what_is_no_snapshot_is_nothing(content: str) -> None:
    """Nor does it raise."""
    assert load(content, 0.0, 1_000.0, 1_000.0) is None


@pytest.mark.parametrize("seconds", [0, 86_400])
def test_rule_12_times_may_be_nothing_or_a_day(seconds: int) -> None:
    """Both ends are still times."""
    document = json.loads(Snapshot(TOKEN).dump(1_010.0))
    document["token"].update(expires_in=seconds, age=seconds)
    found = load(json.dumps(document), 0.0, 1_000.0, 1_000.0)
    assert found is not None
    assert found.token == Token("eyJ.a.b", "sess_1", seconds, 1_000.0 - seconds)


def test_rule_15_a_snapshot_shows_nothing() -> None:
    """Not in its repr."""
    assert "eyJ" not in repr(Snapshot(TOKEN))
    assert "sess_1" not in repr(Snapshot(TOKEN))


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(max_size=50) | ANYTHING.map(json.dumps), st.floats(0, 1e6))
def test_rule_12_what_a_store_holds_is_never_believed(content: str, age: float) -> None:
    """Anything that is no snapshot is nothing."""
    assert load(content, age, 1_000.0, 1_000.0) is None


@given(st.sampled_from(["format", "token", "bar", "failures", "ordinary_age", "history"]), ANYTHING)
def test_rule_12_a_field_of_any_kind_gives_a_good_snapshot_or_none(name: str, value: Any) -> None:
    """No bad value reaches a header, an instant or a count."""
    document = json.loads(Snapshot(TOKEN, REJECTED, 1_020.0, 3, 998.0).dump(1_010.0))
    found = load(json.dumps({**document, name: value}), 0.0, 1_000.0, 1_000.0)
    if found is not None:
        assert found.token in (TOKEN, None)
        assert found.cooldown_reason in (REJECTED, None)
        assert 0 <= found.failures <= 86_400
        assert found.refreshed_at <= 1_000.0


@given(st.sampled_from(["access_token", "session_id", "expires_in", "age"]), ANYTHING)
def test_rule_12_a_token_from_a_store_is_checked_like_any_other(name: str, value: Any) -> None:
    """Printable, and with times that are times."""
    document = json.loads(Snapshot(TOKEN).dump(1_010.0))
    document["token"][name] = value
    found = load(json.dumps(document), 0.0, 1_000.0, 1_000.0)
    if found is not None and found.token is not None:
        assert all(str(each).isascii() and str(each).isprintable() for each in found.token.headers().values())
        assert 0 <= found.token.expires_in <= 86_400
        assert found.token.requested_at <= 1_000.0


# Thousands


def memory(clock: Clock) -> Store:
    """The store's code without a file."""
    return MemoryStore(clock.now)


def fleet(make_store: Callable[[ManualClock], Store], workers: int, seconds: float, report: Report) -> None:
    """Let a fleet work, and say what it cost."""
    simulation = Simulation(make_store, workers, seed=4, gap=2.0).run(seconds)
    requests, operations = len(simulation.sent), simulation.store.operations
    report(
        f"{workers:,} workers, {seconds:g} s: {requests} token requests, {operations:,} store operations, "
        f"{operations / workers / requests:.2f} a worker and refresh; the longest wait was {simulation.waited:.2f} s"
    )
    assert not simulation.failed
    assert largest_window(simulation.sent, 3600) <= 80
    assert largest_window(simulation.sent, 60) <= 2
    assert operations <= 2 * workers * requests + 2 * requests


@pytest.mark.deep
def test_rule_04_hundreds_of_workers_ask_for_what_one_would(report: Report) -> None:
    """An hour of calls: at most 80 token requests, and less than two operations of the store a worker and refresh."""
    fleet(memory, 200, 3_600, report)


@pytest.mark.deep
def test_rule_04_workers_that_share_a_file(tmp_path: Path, report: Report) -> None:
    """The same, with the code that processes really use."""
    tmp_path.chmod(0o700)
    fleet(lambda clock: SqliteStore(str(tmp_path / "tokens.db"), clock), 20, 600, report)


@pytest.mark.figures
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("workers", [1_000, 10_000])
def test_rule_04_a_fleet_of_thousands(workers: int, report: Report) -> None:
    """An hour of ten thousand."""
    fleet(memory, workers, 3_600, report)


@pytest.mark.figures
@pytest.mark.timeout(1_200)
def test_rule_04_a_thousand_workers_that_share_a_file(tmp_path: Path, report: Report) -> None:
    """On the file, for a quarter of an hour."""
    tmp_path.chmod(0o700)
    fleet(lambda clock: SqliteStore(str(tmp_path / "tokens.db"), clock), 1_000, 900, report)
