"""Processes that share a store send the token requests of one, whatever happens to them and to the store.

Every worker is a process of its own; what counts is what the server saw. Lifetimes pass on a clock that is
faster than the real one; the timeouts of the stores are real.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pay88_adapters import Credentials, TokenManager, TokenPolicy
from pay88_adapters.clock import Clock
from pay88_adapters.testing import Emulator
from support.fleet_worker import BEAT, Plan, Team, team
from support.servers import Valkey
from support.worlds import Report

pytestmark = [pytest.mark.deep, pytest.mark.skipif(os.name != "posix", reason="no forks and signals here")]

HOUR = 3600
FAST = 40.0
# On a fast clock the default timeouts would be fractions of a second, and the machine may be busy.
PATIENT = TokenPolicy(fetch_timeout=20, max_wait=100, refresh_ahead=10)
EAGER = TokenPolicy(fetch_timeout=20, max_wait=100, reuse_for=20, refresh_ahead=5)
"""For tests that need no more than many refreshes."""
EVERY = PATIENT.reuse_for - PATIENT.refresh_ahead
"""Seconds from one ordinary token request to the next."""


class Shared(ABC):
    """A store that processes share, and how it fails."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory, self.stack = directory, stack

    @property
    @abstractmethod
    def url(self) -> str:
        """Names it."""

    @abstractmethod
    def other(self) -> str:
        """Return the name of another store of the kind."""

    @abstractmethod
    def down(self) -> Any:
        """Make it fail immediately, while the context lasts."""

    @abstractmethod
    def slow(self) -> Any:
        """Make it hang, while the context lasts."""


class SqliteFile(Shared):
    """A file: in memory where that is possible, since a disk may be busy for longer than the store waits."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        memory = Path("/dev/shm")
        if memory.is_dir():
            directory = Path(stack.enter_context(TemporaryDirectory(dir=memory)))
        super().__init__(directory, stack)
        self.path = directory / "store" / "store.db"
        self.path.parent.mkdir()

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def other(self) -> str:
        return f"sqlite:///{self.directory / 'other.db'}"

    @contextmanager
    def down(self) -> Iterator[None]:
        away = self.path.parent.rename(self.directory / "away")
        yield
        away.rename(self.path.parent)

    @contextmanager
    def slow(self) -> Iterator[None]:
        with closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            yield


class RedisServer(Shared):
    """A server."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory, stack)
        self.server = stack.enter_context(Valkey(directory))

    @property
    def url(self) -> str:
        return self.server.url

    def other(self) -> str:
        return f"{self.url}?prefix=other:"

    @contextmanager
    def down(self) -> Iterator[None]:
        self.server.stop()
        yield
        self.server.start()

    @contextmanager
    def slow(self) -> Iterator[None]:
        with self.server.paused():
            yield


class Stage:
    """An emulator here, and workers that share a store."""

    def __init__(self, shared: Shared, stack: ExitStack, speed: float) -> None:
        self.shared, self._stack = shared, stack
        self.clock = Clock(speed)
        self.emulator = self.new_emulator()
        self.journal = self.emulator.journal

    def new_emulator(self) -> Emulator:
        """Start an emulator on the same clock."""
        return self._stack.enter_context(Emulator(clock=self.clock, call_limits=()))

    def plan(self, policy: TokenPolicy = PATIENT, **options: Any) -> Plan:
        """Return what a worker is made of."""
        emulator = self.emulator
        return Plan(
            self.shared.url, emulator.url, emulator.api_key, emulator.merchant_id, self.clock.speed, policy, **options
        )

    def workers(self, count: int, policy: TokenPolicy = PATIENT, **options: Any) -> Team:
        """Start workers."""
        return self.team([self.plan(policy, name=str(n), **options) for n in range(count)])

    def team(self, plans: Sequence[Plan]) -> Team:
        """Start a worker for each plan."""
        return self._stack.enter_context(team(plans))

    def budget_held(self) -> bool:
        """Whether the server saw no more token requests than it allows, in any window."""
        return self.journal.max_in_window(60) <= 10 and self.journal.max_in_window(HOUR) <= 100

    def serials(self) -> dict[str, int]:
        """Return the token that each worker used last."""
        return {call.headers["x-worker"]: call.serial or 0 for call in self.journal.select("call")}

    def users(self, token: int | None) -> set[str]:
        """Return the workers that have used this token."""
        return {call.headers["x-worker"] for call in self.journal.select("call") if call.serial == token}

    def settled(self, workers: Team) -> bool:
        """Whether all use the same token, and not the first: the store is not used until the next refresh is due."""
        used = self.serials()
        tokens = {used.get(worker.name, 0) for worker in workers}
        return len(tokens) == 1 and min(tokens) > 1

    def seen_by_store(self) -> int:
        """Return how many token requests the store says were sent within the hour."""
        emulator = self.emulator
        credentials = Credentials(emulator.api_key, emulator.merchant_id)
        manager = TokenManager(
            credentials, base_url=emulator.url, store=self.shared.url, policy=PATIENT, clock=self.clock
        )
        budget = manager._state.settings.budget
        hour = budget.windows(credentials.merchant_id, from_reserve=False)[-1]
        return len(manager._state.settings.store_client.store.budget.ages(hour))


def until(true: Callable[[], bool], timeout: float = 30.0) -> None:
    """Wait until *true* says so."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it never comes true"
        time.sleep(0.01)


def stop(workers: Team) -> None:
    """End the load of all; check that every call got 200."""
    for loads in workers.do("stop"):
        for name, load in loads.items():
            assert set(load.responses) == {"200"}, (name, load)


@pytest.fixture(params=[SqliteFile, RedisServer], ids=["sqlite", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shared]:
    """Every kind of store that processes can share."""
    tmp_path.chmod(0o700)
    with ExitStack() as stack:
        yield request.param(tmp_path, stack)


@pytest.fixture
def stage(shared: Shared) -> Iterator[Callable[[float], Stage]]:
    """Make a stage on a clock of a speed."""
    with ExitStack() as stack:
        yield lambda speed: Stage(shared, stack, speed)


def undisturbed(workers: Team) -> bool:
    """Whether the store never failed them: a disk may be busy for longer than the store waits."""
    return not any(workers.do("warnings"))


def cold_start(stage: Stage, count: int) -> None:
    """Let all send their first request concurrently, and hold the one token request until all of them wait for it."""
    workers = stage.workers(count, TokenPolicy(fetch_timeout=30, max_wait=60), stacks=["urllib3"])
    with stage.emulator.hold("token") as held:
        workers.tell("start", 60)
        assert workers.responses() == [None] * count
        until(lambda: all(each["waited"] for each in workers.do("stats")))
        held.wait_for(1)
        time.sleep(1)  # in which the others look after it, again and again
        assert held.held == 1
    stop(workers)
    assert undisturbed(workers)
    assert stage.journal.count("call") == count
    assert stage.journal.token_requests == 1


def test_rule_04_a_cold_start_of_many_processes(stage: Callable[[float], Stage]) -> None:
    """All make their first call while the first one's token request is held: there is no other."""
    cold_start(stage(1.0), 8)


@pytest.mark.figures
def test_rule_04_a_cold_start_of_32_processes(stage: Callable[[float], Stage]) -> None:
    """The same, at full scale."""
    cold_start(stage(1.0), 32)


def steady_load(stage: Stage, count: int, lifetimes: float) -> tuple[int, int]:
    """Let many processes work, and one alone at another server; return how often each server got a token request."""
    alone = stage.new_emulator()
    # Half of the workers have wall clocks that are minutes off, each one otherwise.
    plans = [stage.plan(name=str(n), wall_offset=(n - count // 2) * 180.0 * (n % 2)) for n in range(count)]
    one = replace(stage.plan(name="alone"), store=stage.shared.other(), base_url=alone.url)
    workers = stage.team([*plans, one])
    for worker in workers:  # the first call of each waits
        assert worker.do("call") == "200"
    started = stage.clock.now()
    workers.do("start", 0.2)
    while stage.clock.now() < started + lifetimes * 60:
        time.sleep(0.1)
    ended = stage.clock.now()
    stop(workers)
    for worker in workers:
        assert worker.do("stats")["waited"] <= 1, worker.name
    assert undisturbed(workers)
    assert {call.status for call in stage.journal.select("call")} == {200}
    assert stage.budget_held()
    requested = [
        len([each for each in emulator.journal.select("token") if each.at <= ended])
        for emulator in (stage.emulator, alone)
    ]
    return requested[0], requested[1]


def test_rule_04_many_processes_fetch_what_one_would(stage: Callable[[float], Stage]) -> None:
    """Four libraries in each of eight processes, half of them with a wrong wall clock: one token for all, no wait."""
    many, one = steady_load(stage(5.0), 8, lifetimes=2)
    assert abs(many - one) <= 1
    assert many <= 60 * 2 / EVERY + 1


@pytest.mark.figures
@pytest.mark.timeout(600)
def test_rule_04_many_processes_over_20_lifetimes(stage: Callable[[float], Stage], report: Report) -> None:
    """The same, for longer."""
    many, one = steady_load(stage(20.0), 8, lifetimes=20)
    report(f"{many} token requests by 8 processes, {one} by one")
    assert abs(many - one) <= 1


ONE_SHOT = TokenPolicy(fetch_attempts=1, max_wait=100)
LEASE = ONE_SHOT.longest_fetch + 2
UNHURRIED = 2.5  # so that half a lease is more than any machine takes to notice that it is over


def test_rule_04_a_leader_that_is_killed(stage: Callable[[float], Stage]) -> None:
    """Its lease expires; no token request is sent before, then one, and all others get its token."""
    scene = stage(UNHURRIED)
    workers = scene.workers(8, ONE_SHOT, stacks=["urllib3"])
    leader, others = workers[0], Team(workers[1:])
    before = scene.clock.now()
    with scene.emulator.hold("token") as held:
        leader.tell("call")
        held.wait_for(1)
        leased = scene.clock.now()
        others.tell("call")
        leader.signal(signal.SIGKILL)
        held.release()
    assert others.responses() == ["200"] * 7
    assert undisturbed(others)
    assert scene.journal.token_requests == 2
    second = scene.journal.select("token")[1]
    assert before + LEASE <= second.at < leased + 2 * LEASE
    assert scene.seen_by_store() == 2
    assert {call.serial for call in scene.journal.select("call")} == {2}


def test_rule_04_a_leader_that_comes_late(stage: Callable[[float], Stage]) -> None:
    """It is stopped until its lease has run out and another has fetched: its late token replaces none."""
    scene = stage(UNHURRIED)
    workers = scene.workers(5, ONE_SHOT, stacks=["urllib3"])
    leader, others, newcomer = workers[0], Team(workers[1:4]), workers[4]
    with scene.emulator.hold("token") as held:
        leader.tell("call")
        held.wait_for(1)
        leader.signal(signal.SIGSTOP)
    assert others.do("call") == ["200"] * 3
    leader.signal(signal.SIGCONT)
    leader.respond()  # its own request may have run out of time in the meantime
    leader.do("settle")
    assert newcomer.do("call") == "200"
    assert others.do("call") == ["200"] * 3
    assert undisturbed(workers)
    used = scene.serials()
    assert [used[worker.name] for worker in [*others, newcomer]] == [2] * 4
    assert scene.journal.token_requests == 2
    assert scene.budget_held()


def outage(scene: Stage, fail: Callable[[], Any], lifetimes: float) -> None:
    """Let the store fail for so long under steady load, and check what calls, server and store saw of it."""
    workers = scene.workers(4)
    assert workers.do("call") == ["200"] * 4
    workers.do("start", 0.1)
    scene.journal.wait_for(2, "token", timeout=60)
    with fail():
        failed = scene.journal.mark()
        until(lambda: all(each["StoreDegraded"] for each in workers.do("events")))
        ends = scene.clock.now() + lifetimes * 60
        while scene.clock.now() < ends:
            time.sleep(0.1)
    until(lambda: all(each["StoreRestored"] for each in workers.do("events")), timeout=60)
    alone = scene.journal.count("token", since=failed)
    together = scene.journal.mark()
    scene.journal.wait_for(3, "token", since=together, timeout=60)
    stop(workers)
    requested = scene.journal.select("token", since=together)
    # When a request arrives, and not when it was sent, is a matter of the machine, too.
    assert all(later.at - earlier.at >= EVERY / 2 for earlier, later in pairwise(requested)), requested
    assert scene.users(requested[1].serial) == {worker.name for worker in workers}
    assert alone >= 4 * lifetimes, "each fetched for itself"
    assert scene.budget_held()
    for worker in workers:
        events, warnings = worker.do("events"), worker.do("warnings")
        assert (events["StoreDegraded"], events["StoreRestored"], len(warnings)) == (1, 1, 2), (events, warnings)
    # The units of degraded mode have been added to the shared ones; a server forgets the rest when it stops.
    kept = scene.journal.count("token", since=failed if isinstance(scene.shared, RedisServer) else 0)
    assert kept - 1 <= scene.seen_by_store() <= scene.journal.token_requests + 1


def test_rule_24_the_store_is_down_for_three_lifetimes(stage: Callable[[float], Stage]) -> None:
    """Each process continues with its share; no request fails; afterwards they share again, and used units count."""
    scene = stage(FAST)
    outage(scene, scene.shared.down, 3)


@pytest.mark.figures
def test_rule_24_the_store_hangs_for_three_lifetimes(stage: Callable[[float], Stage]) -> None:
    """The same for a store that hangs: its timeouts are real ones, so the clock is slower."""
    scene = stage(8.0)
    outage(scene, scene.shared.slow, 3)


def end(workers: Team, how: str) -> None:
    """Let all of them end in this way."""
    workers.tell("end", how)
    for worker in workers:
        worker.wait_for_end() if how == "exit" else worker.respond()


@pytest.mark.parametrize("how", ["close", "aclose", "exit"])
def test_rule_24_after_a_restart_of_all_workers_each_has_its_share(stage: Callable[[float], Stage], how: str) -> None:
    """The store fails immediately afterwards, and each of the four new ones can fetch a token."""
    scene = stage(1.0)
    old = scene.workers(4, stacks=["urllib3"])
    assert old.do("call") == ["200"] * 4
    assert old.do("share") == [4] * 4
    end(old, how)
    new = scene.workers(4, stacks=["urllib3"])
    assert new.do("call") == ["200"] * 4
    assert new.do("share") == [4] * 4
    with scene.shared.down():
        assert new.do("renew") == ["200"] * 4
        assert all(each["store_degraded"] for each in new.do("stats"))
    assert scene.budget_held()


@pytest.mark.parametrize("how", ["close", "exit"])
def test_rule_24_a_store_that_hangs_does_not_keep_a_process_from_ending(
    stage: Callable[[float], Stage], how: str
) -> None:
    """It accepts the operation and does not respond."""
    scene = stage(1.0)
    workers = scene.workers(1, stacks=["urllib3"])
    assert workers.do("call") == ["200"]
    workers.do("settle")
    with scene.shared.slow():
        end(workers, how)
    if how == "close":
        assert workers.do("share") == [0]
        assert undisturbed(workers)


@pytest.mark.parametrize("shared", [RedisServer], indirect=True, ids=["redis"])
@pytest.mark.parametrize("uses", [True, False], ids=["used", "unused"])
def test_rule_24_a_process_that_ends_opens_no_connection(
    stage: Callable[[float], Stage], shared: RedisServer, *, uses: bool
) -> None:
    """Whether it has used the store or not."""

    def connections() -> int:
        return int(shared.server.info("stats")["total_connections_received"])

    workers = stage(1.0).workers(1, stacks=["urllib3"])
    if uses:
        assert workers.do("call") == ["200"]
        workers.do("settle")
    before = connections()
    end(workers, "exit")
    assert connections() == before + 1, "this one"


@pytest.mark.parametrize("shared", [SqliteFile], indirect=True, ids=["sqlite"])
def test_rule_05_shares_add_up_to_the_budget(stage: Callable[[float], Stage], shared: SqliteFile) -> None:
    """Without their store four processes meet a node that rejects every token: in sum the budget holds all the same."""
    scene = stage(FAST)
    workers = scene.workers(4)
    assert workers.do("call") == ["200"] * 4
    with shared.down():
        scene.emulator.service.refuse_where = lambda received, now: True
        workers.do("start", 0.02)
        ends = scene.clock.now() + 120
        while scene.clock.now() < ends:
            time.sleep(0.1)
        workers.do("stop")
    assert scene.journal.token_requests >= 8, "they tried"
    assert scene.budget_held()


def test_rule_24_no_event_loop_waits_for_the_store(stage: Callable[[float], Stage], report: Report) -> None:
    """The store hangs when tokens are refreshed, and the loops continue: far less than its timeout is between ticks."""
    scene = stage(10.0)
    workers = scene.workers(2, EAGER, stacks=["httpx-asyncio", "aiohttp"])
    assert workers.do("call") == ["200"] * 2
    workers.do("start", 0.05)
    scene.journal.wait_for(2, "token")
    usual = max(workers.do("gap"))
    with scene.shared.slow():
        until(lambda: all(each["StoreDegraded"] for each in workers.do("events")))
    slow = max(workers.do("gap"))
    until(lambda: all(each["StoreRestored"] for each in workers.do("events")))
    stop(workers)
    report(f"the longest gap was {usual} beats, with a store that hangs {slow}")
    assert slow * BEAT < 0.25


def deleted(path: Path) -> Iterator[bool]:
    """Delete it."""
    path.unlink()
    yield False


def truncated(path: Path) -> Iterator[bool]:
    """Empty it."""
    os.truncate(path, 0)
    yield False


def garbage(path: Path) -> Iterator[bool]:
    """Fill it with garbage, and remove it in the end."""
    path.write_bytes(os.urandom(path.stat().st_size))
    yield True
    path.unlink()


def a_directory(path: Path) -> Iterator[bool]:
    """Replace it with something else."""
    path.unlink()
    path.mkdir()
    yield True
    path.rmdir()


@pytest.mark.parametrize("shared", [SqliteFile], indirect=True, ids=["sqlite"])
@pytest.mark.parametrize("damage", [deleted, truncated, garbage, a_directory], ids=lambda each: each.__name__)
def test_rule_24_a_file_that_breaks_under_load(
    stage: Callable[[float], Stage], shared: SqliteFile, damage: Callable[[Path], Iterator[bool]]
) -> None:
    """No request fails, every token was issued by the service, and the processes share again after the recovery."""
    scene = stage(FAST)
    workers = scene.workers(2, EAGER)
    assert workers.do("call") == ["200"] * 2
    workers.do("start", 0.05)
    until(lambda: scene.settled(workers))
    mark = scene.journal.mark()
    for fails in damage(shared.path):
        if fails:
            until(lambda: all(each["StoreDegraded"] for each in workers.do("events")))
        scene.journal.wait_for(3, "token", since=mark)
    until(lambda: all(each["StoreRestored"] == each["StoreDegraded"] for each in workers.do("events")))
    together = scene.journal.mark()
    scene.journal.wait_for(3, "token", since=together)
    stop(workers)
    first, second, third, *_ = scene.journal.select("token", since=together)
    assert scene.users(second.serial) == {worker.name for worker in workers}
    assert third.at - first.at > 15, "each fetched for itself"
    assert scene.budget_held()
    assert {(call.status, call.serial is None) for call in scene.journal.select("call")} == {(200, False)}


@pytest.mark.parametrize("shared", [SqliteFile], indirect=True, ids=["sqlite"])
def test_rule_24_no_room_on_the_disk_under_load(stage: Callable[[float], Stage], shared: SqliteFile) -> None:
    """Workers that cannot write continue alone; when there is room again, they share again."""
    scene = stage(FAST)
    workers = scene.workers(2, EAGER)
    assert workers.do("call") == ["200"] * 2
    workers.do("start", 0.05)
    until(lambda: scene.settled(workers))
    workers.do("fill_disk", 0)
    until(lambda: all(each["StoreDegraded"] for each in workers.do("events")))
    workers.do("fill_disk", -1)
    until(lambda: all(each["StoreRestored"] for each in workers.do("events")))
    stop(workers)
    assert scene.budget_held()
