"""Regressions of managers that share a store: old keys, lost leases, unstable and hanging stores."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pay88_adapters import (
    CredentialsRejected,
    Pay88Error,
    Token,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
    TokenManager,
    TokenPolicy,
    TokenRateLimited,
)
from pay88_adapters.clock import Clock
from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.wire import TokenResponse
from pay88_adapters.engine.async_runner import AsyncRunner
from pay88_adapters.engine.fetches import Fetches
from pay88_adapters.engine.settings import Settings
from pay88_adapters.engine.state import ManagerState
from pay88_adapters.engine.store_client import StoreClient
from pay88_adapters.engine.store_link import RETRY_INTERVAL
from pay88_adapters.engine.sync_runner import SyncRunner
from pay88_adapters.events import CallNotSent, CallWaited, Event
from pay88_adapters.stores.base import LeaseResult
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.testing import ManualClock
from pay88_adapters.testing.windows import largest_window
from support.plain_calls import AsyncCall, Call, at_once, await_threads
from support.processes import ELSEWHERE, NEW, OLD, URL, Endpoint88, PlainResponse, Process, WorkerGroup, respond


@pytest.fixture
def fleet() -> WorkerGroup:
    """A store that works, in simulated time."""
    return WorkerGroup()


def fetch(manager: TokenManager, call: Call) -> Token:
    """Make a call; return once what it fetched is in the store."""
    threads = set(threading.enumerate())
    token: Token = manager.sync_runner.call(call)
    await_threads(threads)
    return token


# Keys


@pytest.mark.parametrize(
    "result", [respond(503), respond(429, retry_after="60"), respond(401)], ids=["503", "429", "401"]
)
def test_rule_04_a_rotated_key_does_not_publish_what_the_old_one_bought(
    fleet: WorkerGroup, result: PlainResponse
) -> None:
    """Its first fetch fails while the old token is cached: a manager with the new key does not get that token."""
    one, other = fleet.process(OLD), fleet.process(ELSEWHERE)
    assert isinstance(one.call(), Token)
    one.credentials = ELSEWHERE
    fleet.clock.advance(46)
    fleet.endpoint.always = result
    assert isinstance(one.call(), Token), "it goes on with the one it has"
    reported = other.call()
    assert not isinstance(reported, Token), f"a token of another merchant: {reported!r}"
    assert other.state.cached() is None


def test_rule_04_the_version_of_one_record_says_nothing_about_another(fleet: WorkerGroup) -> None:
    """Two keys' records are made at the same instant: a reader of one of them still gets the other."""
    one, other = fleet.process(OLD), fleet.process(NEW)
    first, second = one.call(), other.call()
    assert isinstance(first, Token)
    one.credentials = NEW
    one.state.drop(first)
    assert one.call() == second
    assert len(fleet.endpoint.sent) == 2


# Leases


def memory_or_file(kind: str, directory: Path) -> str:
    """Return the URL of a store."""
    directory.chmod(0o700)
    return "memory://" if kind == "memory" else f"sqlite:///{directory}/tokens.db"


STORES = pytest.mark.parametrize("kind", ["memory", "sqlite"])


@STORES
def test_rule_16_a_fetch_that_ends_with_its_loop_gives_its_lease_back(kind: str, tmp_path: Path) -> None:
    """Another manager of the same store fetches immediately."""
    clock, store = ManualClock(), memory_or_file(kind, tmp_path)
    one, other = (TokenManager(OLD, store=store, clock=clock) for _ in range(2))
    threads = set(threading.enumerate())

    async def main() -> None:
        call = AsyncCall()
        task = asyncio.ensure_future(one.async_runner.call(call))
        await call.requested.wait()
        del task

    asyncio.run(main())
    await_threads(threads)
    with at_once(clock):
        assert isinstance(other.sync_runner.call(Call()), Token)


def test_rule_16_a_lease_that_comes_too_late_is_given_back(tmp_path: Path) -> None:
    """The event loop ends while a thread still acquires the lease."""
    clock, store = ManualClock(), memory_or_file("sqlite", tmp_path)
    one, other = (TokenManager(OLD, store=store, clock=clock) for _ in range(2))
    fetch(other, Call())  # makes the file
    clock.advance(61)
    threads = set(threading.enumerate())

    async def main() -> None:
        task = asyncio.ensure_future(one.async_runner.call(AsyncCall()))
        while set(threading.enumerate()) <= threads:  # noqa: ASYNC110 - nothing tells of a thread
            await asyncio.sleep(0)
        del task

    with closing(sqlite3.connect(tmp_path / "tokens.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        asyncio.run(main())
        db.execute("ROLLBACK")
    await_threads(threads)
    with at_once(clock):
        assert isinstance(other.sync_runner.call(Call()), Token)


@STORES
def test_rule_17_a_fetch_that_dies_gives_its_lease_back(kind: str, tmp_path: Path) -> None:
    """Its client raises an unexpected exception: the error names it, and others fetch with a working client."""
    clock, store = ManualClock(), memory_or_file(kind, tmp_path)
    one, other = (TokenManager(OLD, store=store, clock=clock) for _ in range(2))
    threads = set(threading.enumerate())
    endpoint = Endpoint88()

    def burst() -> TokenResponse:
        raise AssertionError("a bug of the stack")

    endpoint.always = burst
    with pytest.raises(TokenEndpointUnavailable, match=r"builtins\.AssertionError") as caught:
        one.sync_runner.call(Call(endpoint))
    assert caught.value.retryable is False
    assert isinstance(caught.value.__cause__, AssertionError)
    await_threads(threads)
    with at_once(clock):  # there is no cooldown
        assert isinstance(other.sync_runner.call(Call()), Token)


def _bursts() -> TokenResponse:
    raise AssertionError("a bug of the stack")


@STORES
@pytest.mark.parametrize("result", [None, respond(401), _bursts], ids=["token", "401", "dies"])
def test_rule_17_a_listener_that_blocks_keeps_no_other_manager(
    kind: str, result: PlainResponse | None, tmp_path: Path
) -> None:
    """The result of the fetch is in the store, and its lease released, before any listener receives an event."""
    clock, store = ManualClock(), memory_or_file(kind, tmp_path)
    blocked, resume = threading.Event(), threading.Event()

    def block(event: Event) -> None:
        if not isinstance(event, (CallWaited, CallNotSent)):  # which are events of the caller, and not of the fetch
            blocked.set()
            assert resume.wait(30)

    one = TokenManager(OLD, store=store, clock=clock, listeners=[block])
    other = TokenManager(OLD, store=store, clock=clock)
    threads = set(threading.enumerate())
    endpoint = Endpoint88()
    endpoint.always = result
    try:
        with suppress(Pay88Error):
            one.sync_runner.call(Call(endpoint))
        assert blocked.wait(10)
        await_threads(threads | {each for each in threading.enumerate() if each.name == "pay88-token-fetch"})
        clock.advance(2)  # after which an outage would show
        with at_once(clock):
            if result and result is not _bursts:
                with pytest.raises(CredentialsRejected):
                    other.sync_runner.call(Call())
            else:
                assert isinstance(other.sync_runner.call(Call()), Token)
    finally:
        resume.set()
        await_threads(threads)
    assert len(endpoint.sent) == 1


def test_rule_24_no_listener_is_called_while_others_wait_for_the_lease(fleet: WorkerGroup) -> None:
    """The recovery is known as soon as the lease is acquired, and emitted after its release."""
    happened: list[str] = []
    process = fleet.process(listeners=[lambda event: happened.append(type(event).__name__)])
    fleet.store.broken = True
    assert isinstance(process.call(), Token)
    fleet.store.broken = False
    fleet.clock.advance(60)
    fleet.store.before = happened.append
    assert isinstance(process.call(), Token)
    assert happened[:2] == ["StoreDegraded", "TokenFetched"]
    assert happened.index("StoreRestored") > happened.index("publish") > happened.index("lead")


# The store fails


def test_rule_24_an_exhausted_share_delays_no_process_once_the_store_has_recovered(fleet: WorkerGroup) -> None:
    """Three quarters of the budget are left in it: the next token comes within seconds."""
    process = fleet.process()
    fleet.store.broken = True
    for _ in range(1_700):
        reported = process.call()
        fleet.clock.advance(1)
    assert isinstance(reported, TokenBudgetExhausted)
    fleet.store.broken = False
    assert fleet.until_token(process, within=60) <= 10


@pytest.mark.parametrize(
    ("policy", "most"),
    [
        ({"fallback_share": 0.05}, 5),
        ({"fallback_share": 1e-6}, 1),
        ({"limits": ("3/minute", "100/hour")}, 25),
        ({"limits": ("1/minute",)}, 56),
    ],
    ids=["a twentieth", "next to nothing", "3 a minute", "1 a minute"],
)
def test_rule_24_a_process_alone_has_one_unit_at_least(fleet: WorkerGroup, policy: dict[str, Any], most: int) -> None:
    """However small its share of a window is."""
    process = fleet.process(**policy)
    fleet.store.broken = True
    assert isinstance(process.call(), Token)
    for _ in range(2 * 360):
        process.call()
        fleet.clock.advance(10)
    assert len(fleet.endpoint.sent) > 1
    assert largest_window(fleet.endpoint.sent, 3_600) <= most


@pytest.mark.parametrize(("fetch_timeout", "seconds"), [(5, 3.9), (5, 2.6), (2, 1.5), (2, 3.9), (1, 0.9), (0.001, 0.9)])
def test_rule_24_a_slow_store_costs_no_unit(fleet: WorkerGroup, fetch_timeout: float, seconds: float) -> None:
    """A unit that it grants late is used all the same."""
    process = fleet.process(fetch_timeout=fetch_timeout)
    fleet.take_time("acquire", itertools.repeat(seconds))
    assert isinstance(process.call(), Token)
    assert len(fleet.endpoint.sent) == process.state.counters.token_requests == 1


@pytest.mark.parametrize("seconds", [0.9, 1.5, 2.5, 3.9])
@pytest.mark.parametrize(
    ("fetch_timeout", "fetch_attempts"), [(0.2, 3), (1, 1), (1, 3), (2, 3), (5, 1), (5, 3), (10, 1)]
)
def test_rules_04_and_05_a_lease_outlives_the_token_request_with_a_slow_store(
    fleet: WorkerGroup, fetch_timeout: float, fetch_attempts: int, seconds: float
) -> None:
    """No unit is lost, and a lease that is too short is replaced once, by one that is long enough."""
    process = fleet.process(fetch_timeout=fetch_timeout, fetch_attempts=fetch_attempts)
    operations: list[str] = []

    def take_time(operation: str) -> None:
        operations.append(operation)
        assert len(operations) < 10
        fleet.clock.advance(seconds)

    fleet.store.before = take_time
    assert isinstance(process.call(), Token)
    assert operations[-2:] == ["acquire", "publish"]
    assert operations[:-2] in (["lead"], ["lead"] * 2)
    assert len(fleet.endpoint.sent) == process.state.counters.token_requests == 1


def test_rule_24_a_store_that_fails_after_a_lease_was_too_short(fleet: WorkerGroup) -> None:
    """The process was stopped meanwhile. Its fetch continues without a lease."""
    process = fleet.process()
    operations: list[str] = []

    def fail_later(operation: str) -> None:
        operations.append(operation)
        fleet.clock.advance(30)
        fleet.store.broken = True

    fleet.store.before = fail_later
    assert isinstance(process.call(), TokenBudgetExhausted), "it has not observed the budget while it was stopped"
    assert operations == ["lead"]
    assert process.store_client.degraded
    fleet.store.broken, fleet.store.before = False, lambda _: None
    fleet.clock.advance(RETRY_INTERVAL)
    assert isinstance(process.call(), Token)


@pytest.mark.parametrize("seconds", [4.5, 30.0])
def test_rules_04_and_05_nothing_is_sent_with_a_unit_or_lease_that_came_too_late(
    fleet: WorkerGroup, seconds: float
) -> None:
    """The process was stopped. It tries again."""
    process = fleet.process(fetch_attempts=1, fetch_timeout=1)
    fleet.take_time("acquire", iter([seconds]))
    began_at = fleet.clock.now()
    assert isinstance(process.call(), Token)
    assert fleet.endpoint.sent == [began_at + seconds]
    known = process.state.settings.budget.left(OLD.merchant_id)
    assert known["100 per 1 hour"] == 98


def test_rule_24_a_process_alone_has_one_extra_unit_at_least(fleet: WorkerGroup) -> None:
    """A small reserve still pays for a retry."""
    process = fleet.process(forced_reserve=2)
    fleet.store.broken = True
    fleet.endpoint.responses = [respond(503)]
    assert isinstance(process.call(), Token)


@pytest.mark.parametrize(("period", "up"), [(60, 2), (60, 6), (90, 6), (120, 6), (200, 12), (300, 50)])
def test_rule_05_a_store_that_comes_and_goes_adds_nothing_to_the_budget(
    fleet: WorkerGroup, period: int, up: int
) -> None:
    """Four processes, an hour and a half: alone and together they take what one budget has."""
    processes = [fleet.process() for _ in range(4)]
    for second in range(5_400):
        fleet.store.broken = second % period >= up
        for each in processes:
            each.call()
        fleet.clock.advance(1)
    sent = fleet.endpoint.sent
    assert largest_window(sent, 3_600) <= 100
    assert largest_window(sent, 60) <= 10
    assert largest_window(sent, 3_600) >= 50, "and they are not starved"


class StuckStore(MemoryStore):
    """A store that hangs until it is released."""

    blocking: ClassVar[bool] = True

    def __init__(self, clock: Clock, release: threading.Event) -> None:
        super().__init__(clock.now)
        self._release = release

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        self._release.wait()
        return super().try_acquire_lease(key, owner=owner, known_version=known_version, lease=lease)


@pytest.mark.deep
def test_rule_24_a_store_that_does_not_respond_fails_no_call() -> None:
    """It has no timeout: sync and async requests continue after a few seconds, and the next ones immediately."""
    clock, release = Clock(), threading.Event()
    waited: list[float] = []

    def new_fetches() -> Fetches:
        policy = TokenPolicy()
        fleet = StoreClient(StuckStore(clock, release), clock, policy.fallback_share)
        return Fetches(ManagerState(Settings(Endpoint.parse(URL), policy, clock, fleet, rotating=False)), OLD)

    def sync_call() -> None:
        driver = SyncRunner(new_fetches())
        call, since = Call(), time.monotonic()
        call.token_timeout = 15
        assert isinstance(driver.call(call), Token)
        waited.append(time.monotonic() - since)

    async def async_call() -> None:
        state, call, since = new_fetches(), AsyncCall(), time.monotonic()
        call.token_timeout = 15
        call.responded.set()
        assert isinstance(await AsyncRunner(state).call(call), Token)
        waited.append(time.monotonic() - since)

    threads = set(threading.enumerate())
    thread = threading.Thread(target=sync_call)
    thread.start()
    try:
        asyncio.run(async_call())
        thread.join()
    finally:
        release.set()
        await_threads(threads)
    assert len(waited) == 2
    assert max(waited) < 9


def test_rule_24_a_file_with_numbers_beyond_all_bounds_takes_no_call_down(tmp_path: Path) -> None:
    """Python counts further than SQLite does: what it makes of that is no error of SQLite's."""
    clock, url = ManualClock(), memory_or_file("sqlite", tmp_path)
    first = TokenManager(OLD, store=url, clock=clock)
    fetch(first, Call())
    with closing(sqlite3.connect(tmp_path / "tokens.db", isolation_level=None)) as db:
        db.execute("UPDATE records SET fences = ?", (2**63 - 1,))
    process = TokenManager(OLD, store=url, clock=clock)
    for _ in range(2):
        clock.advance(61)
        with at_once(clock):
            assert isinstance(fetch(process, Call()), Token)


# Bars


def test_rule_10_a_bar_does_not_end_earlier_for_others_because_the_store_is_slow(fleet: WorkerGroup) -> None:
    """Each operation takes most of a second: no manager's cooldown ends before ``Retry-After``."""
    one, other = fleet.process(), fleet.process()

    def take_time(operation: str) -> None:
        if operation in ("lead", "publish"):
            fleet.clock.advance(0.9)

    fleet.store.before = take_time
    fleet.endpoint.responses = [respond(429, retry_after="3")]
    assert isinstance(one.call(), TokenRateLimited)
    reported = other.call()
    assert isinstance(reported, TokenRateLimited)
    assert reported.retry_after is not None
    assert fleet.clock.now() + reported.retry_after >= fleet.endpoint.sent[0] + 3


def test_rule_10_a_429_applies_to_others_for_as_long_as_their_own_would(fleet: WorkerGroup) -> None:
    """Their own ``max_retry_after`` holds for what another process has met."""
    one, other = fleet.process(), fleet.process(max_retry_after=60)
    fleet.endpoint.responses = [respond(429, retry_after="3000")]
    reported = one.call()
    assert isinstance(reported, TokenRateLimited)
    assert reported.retry_after == pytest.approx(3_000)
    reported = other.call()
    assert isinstance(reported, TokenRateLimited)
    assert reported.retry_after is not None
    assert 59 <= reported.retry_after <= 60
    fleet.clock.advance(60.01)
    assert isinstance(other.call(), Token)


def test_rule_10_a_429_applies_to_others_after_days_without_requests_too(fleet: WorkerGroup) -> None:
    """The process that meets it still holds what was a token the day before yesterday."""
    one, other = fleet.process(), fleet.process()
    assert isinstance(one.call(), Token)
    fleet.clock.advance(2 * 86_400)
    fleet.endpoint.responses = [respond(429, retry_after="100")]
    assert isinstance(one.call(), TokenRateLimited)
    assert isinstance(other.call(), TokenRateLimited)
    assert len(fleet.endpoint.sent) == 2


@pytest.mark.parametrize("limit", ["1000/day", "2000/2 days", "9000/month"])
def test_rule_04_what_long_limits_have_counted_keeps_no_token_from_others(fleet: WorkerGroup, limit: str) -> None:
    """Units that were acquired more than a day ago are reported like all others."""
    one, other = (fleet.process(limits=("10/minute", limit)) for _ in range(2))
    assert isinstance(one.call(), Token)
    fleet.clock.advance(86_402)
    token = one.call()
    assert isinstance(token, Token)
    assert other.call() == token
    assert len(fleet.endpoint.sent) == 2


def test_rule_05_a_process_with_a_smaller_budget_stops_no_other(fleet: WorkerGroup) -> None:
    """Its own budget is exhausted; the others have theirs, and send the token request."""
    small, other = fleet.process(limits=("1/minute", "100/hour")), fleet.process()
    assert isinstance(small.call(), Token)
    fleet.clock.advance(60)
    assert isinstance(small.call(), TokenBudgetExhausted)
    assert isinstance(other.call(), Token)
    assert len(fleet.endpoint.sent) == 2


# Secrets


def test_rule_15_nothing_on_the_way_into_a_store_shows_a_token(fleet: WorkerGroup) -> None:
    """No local variable of those who carry it there, as a debugger or a crash report prints them."""
    seen: list[str] = []

    def look(operation: str) -> None:
        frame = sys._getframe()
        while frame.f_back is not None and frame.f_code is not Process.call.__code__:
            where = f"{operation}, {frame.f_code.co_name}"
            seen.extend(f"{where}: {name}={value!r}" for name, value in frame.f_locals.items() if name != "seen")
            frame = frame.f_back

    one, other = fleet.process(), fleet.process()
    fleet.store.before = look
    token = one.call()
    assert isinstance(token, Token)
    assert isinstance(other.call(), Token)
    assert any("publish" in line for line in seen)
    secrets = (str(token.access_token), str(token.session_id), str(OLD.api_key))
    assert [line for line in seen if any(secret in line for secret in secrets)] == []
