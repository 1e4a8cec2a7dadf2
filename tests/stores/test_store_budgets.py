"""The budget in every kind of store."""

from __future__ import annotations

import math
import multiprocessing
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import RateLimitItemPerHour
from limits.strategies import MovingWindowRateLimiter

from pay88_adapters.core.history import Acquisition, Cooldown, Entry, StorageResult, Window, counted
from pay88_adapters.stores.base import Store, StoreError
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.testing import ManualClock
from support.sample import examples
from support.scenes import Scene
from support.stores import about, publish


@pytest.fixture
def shared(scene: Scene) -> Scene:
    """Only those that other processes can reach."""
    if not scene.shared:
        pytest.skip("it is one process's own")
    return scene


def ages_in(windows: Sequence[Window], result: StorageResult) -> dict[str, list[float]]:
    """Return the ages of the entries that count in each window, by its key."""
    return {window.key: list(counted(window, result.histories[window.key])) for window in windows}


def test_rule_05_all_windows_are_taken_or_none(scene: Scene) -> None:
    """A rejection costs nothing, names the longest wait and shows what counts; a grant shows itself, too."""
    budget, unit = scene.store.budget, scene.unit
    small, middle, large = Window("small", 5, 10 * unit), Window("middle", 1, 20 * unit), Window("large", 9, 90 * unit)
    acquired = budget.acquire_all([middle])
    assert acquired.wait == 0
    assert ages_in([middle], acquired) == {"middle": [about(scene, 0)]}
    scene.advance(unit)
    for order in ([small, middle, large], [large, middle, small], [middle, small, large]):
        acquired = budget.acquire_all(order)
        assert acquired.wait == about(scene, 19 * unit)
        assert ages_in(order, acquired) == {"small": [], "middle": [about(scene, unit)], "large": []}
    assert budget.acquire_all([small, large]).wait == 0
    assert [len(budget.ages(window)) for window in (small, middle, large)] == [1, 1, 1]


def test_rule_05_the_returned_wait_is_enough(scene: Scene) -> None:
    """Afterwards there is room, and not for one more than there should be."""
    budget, window = scene.store.budget, Window("key", 2, scene.unit)
    assert budget.acquire_all([window], 2).wait == 0
    wait = budget.acquire_all([window]).wait
    assert 0 < wait <= scene.unit + 0.002
    scene.advance(wait)
    assert budget.acquire_all([window], 2).wait == 0
    assert budget.acquire_all([window]).wait > 0


def test_rule_05_an_entry_still_counts_at_the_instant_it_leaves(exact: Scene) -> None:
    """The window is closed at both ends."""
    budget, window = exact.store.budget, Window("key", 1, 10.0)
    budget.acquire_all([window])
    exact.advance(10.0)
    assert list(budget.ages(window)) == [10.0]
    assert 0 < budget.acquire_all([window]).wait <= 0.001
    exact.advance(0.001)
    assert list(budget.ages(window)) == []
    assert budget.acquire_all([window]).wait == 0


def test_rule_05_several_entries_go_in_together_or_not_at_all(scene: Scene) -> None:
    """The wait is for so many to leave; more than the limit never fit."""
    budget, unit = scene.store.budget, scene.unit
    window = Window("key", 4, 10 * unit)
    assert len(budget.acquire_all([window], 2).histories["key"]) == 2
    scene.advance(unit)
    assert budget.acquire_all([window]).wait == 0
    assert budget.acquire_all([window], 2).wait == about(scene, 9 * unit)
    assert budget.acquire_all([window], 4).wait == about(scene, 10 * unit)
    assert budget.acquire_all([window], 5).wait == 10 * unit
    assert len(budget.ages(window)) == 3
    assert budget.acquire_all([window]).wait == 0


def test_rule_05_a_limit_of_nothing_grants_nothing(scene: Scene) -> None:
    """A rejected acquisition costs nothing."""
    budget, nothing, plenty = scene.store.budget, Window("nothing", 0, scene.unit), Window("plenty", 9, scene.unit)
    assert budget.acquire_all([plenty, nothing]).wait == scene.unit
    assert list(budget.ages(plenty)) == []


def test_rule_05_entries_made_elsewhere_count_whether_they_fit_or_not(scene: Scene) -> None:
    """In the order of their ages, among those that are there."""
    budget, unit = scene.store.budget, scene.unit
    window = Window("key", 2, 10 * unit)
    budget.acquire_all([window])
    scene.advance(unit)
    budget.add(window, [5 * unit, 3 * unit, 0.0])
    assert list(budget.ages(window)) == [about(scene, age * unit) for age in (5, 3, 1, 0)]
    assert budget.acquire_all([window]).wait == about(scene, 9 * unit)
    budget.add(window, [])
    assert len(budget.ages(window)) == 4


def test_rule_05_an_entry_made_elsewhere_is_as_old_as_it_is(exact: Scene) -> None:
    """One that is too old no longer counts; one at the end of its life does for that instant."""
    budget, window = exact.store.budget, Window("key", 5, 10.0)
    budget.add(window, [10.5, 10.0, 9.5])
    assert list(budget.ages(window)) == [10.0, 9.5]
    exact.advance(0.25)
    assert list(budget.ages(window)) == [9.75]


def test_rule_05_ages_are_counted_within_the_window_of_the_claim(exact: Scene) -> None:
    """A shorter one sees the younger entries only."""
    budget = exact.store.budget
    for _ in range(3):
        budget.acquire_all([Window("key", 9, 100.0)])
        exact.advance(10.0)
    assert list(budget.ages(Window("key", 9, 20.0))) == [20.0, 10.0]
    assert list(budget.ages(Window("key", 9, 100.0))) == [30.0, 20.0, 10.0]
    assert list(budget.ages(Window("other", 9, 100.0))) == []


def test_the_strategy_of_limits_works_on_every_storage(scene: Scene) -> None:
    """``hit``, ``test``, ``get_window_stats`` and ``clear``, with its own keys."""
    strategy, item = MovingWindowRateLimiter(scene.store.budget), RateLimitItemPerHour(3)
    assert strategy.test(item, "a")
    assert strategy.get_window_stats(item, "a").remaining == 3
    assert [strategy.hit(item, "a") for _ in range(2)] == [True, True]
    first = strategy.get_window_stats(item, "a")
    assert first.remaining == 1
    scene.advance(scene.unit)
    assert not strategy.hit(item, "a", cost=2)
    assert strategy.hit(item, "a")
    assert not strategy.hit(item, "a")
    assert not strategy.test(item, "a")
    last = strategy.get_window_stats(item, "a")
    assert last.remaining == 0
    assert last.reset_time == pytest.approx(first.reset_time, abs=0.001)
    assert strategy.test(item, "b", cost=3)
    strategy.clear(item, "a")
    assert strategy.get_window_stats(item, "a").remaining == 3


def test_the_rest_of_the_interface_of_limits(scene: Scene) -> None:
    """Counting, forgetting, and saying what cannot be done."""
    budget = scene.store.budget
    window = Window("key", 2, 60 * scene.unit)
    budget.acquire_all([window, Window("second", 9, 60 * scene.unit)])
    assert (budget.get("key"), budget.get("other")) == (1, 0)
    assert budget.acquire_entry("key", 2, 60)
    assert not budget.acquire_entry("key", 2, 60)
    budget.clear("key")
    budget.clear("never seen")
    assert list(budget.ages(window)) == []
    assert len(budget.ages(Window("second", 9, 60 * scene.unit))) == 1
    budget.acquire_all([window])
    assert budget.reset() == 2
    assert list(budget.ages(window)) == []
    assert budget.check()
    assert budget.base_exceptions == (StoreError,)
    with pytest.raises(NotImplementedError):
        budget.incr("key", 60)
    with pytest.raises(NotImplementedError):
        budget.get_expiry("key")


def test_forgetting_the_budget_leaves_the_records(scene: Scene) -> None:
    """And their leases."""
    version = publish(scene)
    scene.store.try_acquire_lease("key", owner="a", known_version=version, lease=10 * scene.unit)
    scene.store.budget.acquire_all([Window("key", 9, scene.unit)])
    scene.store.budget.clear("key")
    scene.store.budget.reset()
    assert scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=scene.unit).record is not None
    assert scene.store.try_acquire_lease("key", owner="b", known_version=version, lease=scene.unit).lease_remaining > 0


def test_old_entries_do_not_pile_up(exact: Scene) -> None:
    """A budget that is used for days holds no more than an hour of it; what is used no longer leaves with time."""
    budget, window = exact.store.budget, Window("key", 3, 100.0)
    for _ in range(200):
        budget.acquire_all([window])
        exact.advance(45.0)
    assert budget.get("key") <= 3660 / 45 + 1


def test_rule_05_windows_of_one_key_look_at_one_history(scene: Scene) -> None:
    """One entry a unit, whatever the limits are; the next one's limits count it, too, and an hour of it is kept."""
    budget, unit = scene.store.budget, scene.unit
    short, long = Window("key", 3, 2 * unit), Window("key", 5, 50 * unit)
    assert budget.acquire_all([short, long], 2).wait == 0
    assert (budget.get("key"), len(budget.ages(short)), len(budget.ages(long))) == (2, 2, 2)
    assert budget.acquire_all([short, long], 2).wait == about(scene, 2 * unit)
    scene.advance(2.1 * unit)
    assert budget.acquire_all([short, long], 3).wait == 0
    assert budget.acquire_all([short, long]).wait > 40 * unit
    assert budget.acquire_all([Window("key", 9, 50 * unit)], 4).wait == 0, "another limit"
    assert budget.acquire_all([Window("key", 8, 3000.0)]).wait > 0


def test_rule_05_entries_are_a_set(scene: Scene) -> None:
    """Added twice they count once, and what the acquisition knows counts before it is granted, in the same step."""
    budget = scene.store.budget
    known = [Entry(f"{number}-_#{number}", 10.0 + number) for number in range(4)]
    for _ in range(2):
        budget.merge("key", known[:2], 100.0)
    assert {entry.id for entry in budget.history("key")} == {entry.id for entry in known[:2]}
    acquisition = Acquisition([Window("key", 5, 3000.0)], ["mine"], {"key": known})
    for _ in range(2):
        response = budget.acquire(acquisition)
        assert (response.wait, len(response.histories["key"])) == (0, 5)
    assert [entry.id for entry in response.histories["key"]][-1] == "mine"
    assert response.histories["key"][0].age == pytest.approx(13.0, abs=0.5)
    assert budget.acquire(acquisition._replace(ids=["another"])).wait > 0
    rejected = budget.acquire(Acquisition([Window("other", 1, 3000.0)], ["b"], {"other": known}))
    assert rejected.wait > 0
    assert budget.get("other") == 4, "it knows them all the same"


def test_rule_10_a_bar_holds_for_a_history_and_what_is_claimed_beside_it(scene: Scene) -> None:
    """Until it ends, or earlier for an acquisition with a lower cap; the longer one stays; known entries are added."""
    budget, unit = scene.store.budget, scene.unit
    acquisition = Acquisition([Window("key", 9, 3000.0), Window("key/extra", 9, 3000.0)], ["a"])
    assert budget.cooldown("key") is None
    budget.start_cooldown("key", Cooldown(20 * unit, 0.0, 'wait\n"ñ"'))
    budget.start_cooldown("key", Cooldown(10 * unit, 0.0, "shorter"))
    response = budget.acquire(acquisition._replace(known={"key": [Entry("b", 1.0)]}))
    assert response.wait == about(scene, 20 * unit)
    assert response.cooldown is not None
    assert (response.cooldown.seconds, response.cooldown.reason) == (20 * unit, 'wait\n"ñ"')
    assert [len(history) for history in response.histories.values()] == [1, 0]
    assert budget.acquire(acquisition._replace(longest_cooldown=10 * unit)).wait == about(scene, 10 * unit)
    assert budget.acquire(Acquisition([Window("another", 9, 3000.0)], ["a"])).wait == 0
    scene.advance(1.1 * unit)
    assert budget.acquire(acquisition._replace(longest_cooldown=unit)).wait == 0
    there = budget.cooldown("key")
    assert there is not None
    assert there.age == about(scene, 1.1 * unit)
    budget.start_cooldown("key", Cooldown(30 * unit, 29.5 * unit, "nearly over"))
    assert budget.acquire(acquisition._replace(ids=["c"])).wait == about(scene, 18.9 * unit)
    budget.clear("key")
    assert budget.acquire(acquisition._replace(ids=["c"])).wait == 0


def test_rule_24_the_parts_of_all_members_are_no_more_than_the_whole(scene: Scene) -> None:
    """With any changes of members: at each moment, and in the end each active one has an equal part."""
    reported: dict[str, int] = {}
    for turn in range(4):
        for member in "abcdefgh"[: 8 if turn else 5]:
            result = scene.store.try_acquire_lease("key", owner=f"{member}/1", known_version=0, lease=100 * scene.unit)
            reported[member] = result.divisor
            assert sum(1 / divisor for divisor in reported.values() if divisor) <= 1.0001
            assert len(result.others) <= len(reported) - 1
    assert set(reported.values()) == {8}
    assert scene.store.try_acquire_lease("key", owner="no member", known_version=0, lease=1.0).divisor == 0


def test_rule_24_a_member_that_is_gone_leaves_its_part_to_the_others(exact: Scene) -> None:
    """By and by, and all of it after an hour; the only one has the whole, step by step."""
    acquire = partial(exact.store.try_acquire_lease, "key", known_version=0, lease=1.0)
    assert [acquire(owner="a/1").divisor, acquire(owner="a/2").divisor] == [4, 4]
    for divisor in (2, 1, 1):
        exact.advance(30.0)
        assert acquire(owner="a/1").divisor == divisor
    exact.advance(300.0)
    assert acquire(owner="b/1").divisor == 0, "it may be about to ask again"
    exact.advance(1_650.0)
    assert [acquire(owner="b/1").divisor, acquire(owner="b/1").divisor] == [4, 4], "half of it is free"
    exact.advance(1_651.0)
    assert acquire(owner="b/1").divisor == 2
    exact.advance(30.0)
    assert acquire(owner="b/1").divisor == 1
    exact.advance(3_601.0)
    assert [acquire(owner=f"{name}/1").divisor for name in "cdefg"] == [4, 4, 4, 4, 0]


def test_rule_24_the_part_of_a_removed_member_is_free_immediately(scene: Scene) -> None:
    """All of it, to any other member. What is no member changes nothing."""
    acquire = partial(scene.store.try_acquire_lease, "key", known_version=0, lease=1.0)
    scene.store.remove_member("a")
    assert [acquire(owner=f"{name}/1").divisor for name in "abcde"] == [4, 4, 4, 4, 0]
    for _ in range(2):
        scene.store.remove_member("a")
    found = acquire(owner="e/1")
    assert found.divisor == 4
    assert {each.name for each in found.others} == {*"bcd"}
    for name in "bcde":
        scene.store.remove_member(name)
    assert [acquire(owner=f"{name}/1").divisor for name in "aBCD"] == [4, 4, 4, 4]


def test_rule_24_a_lease_attempt_says_which_one_before_the_store_knows(scene: Scene) -> None:
    """Of the same member, if it had a part then."""
    acquire = partial(scene.store.try_acquire_lease, "key", known_version=0, lease=1.0)
    assert acquire(owner="a/1").last_attempt == math.inf
    scene.advance(4 * scene.unit)
    assert acquire(owner="a/2").last_attempt == about(scene, 4 * scene.unit)
    scene.store.remove_member("a")
    assert [acquire(owner=f"{name}/1").last_attempt for name in "abcde"] == [math.inf] * 5
    assert acquire(owner="e/1").last_attempt == math.inf, "it had none"
    assert scene.store.try_acquire_lease("key", owner="no member", known_version=0, lease=1.0).last_attempt == math.inf


def test_rule_24_too_many_members_have_no_part(scene: Scene) -> None:
    """Beyond a hundred."""
    for number in range(101):
        reported = scene.store.try_acquire_lease("key", owner=f"{number}/1", known_version=0, lease=1.0)
    assert reported.divisor == 0


KEYS = st.sampled_from(["a", "b"])


UNITS = st.integers(0, 8).map(float)


WINDOWS = st.lists(
    st.tuples(KEYS, st.integers(0, 4)).map(lambda each: Window(each[0], each[1], {"a": 3.0, "b": 7.0}[each[0]])),
    min_size=1,
    max_size=2,
    unique_by=lambda window: window.key,
)


STEPS = st.one_of(
    st.tuples(st.just("advance"), st.sampled_from([0.0, 0.001, 0.25, 1.0, 2.999, 3.0, 5.0])),
    st.tuples(st.just("acquire_all"), WINDOWS, st.integers(1, 3)),
    st.tuples(st.just("add"), WINDOWS, st.lists(UNITS, max_size=3)),
    st.tuples(st.just("ages"), WINDOWS),
    st.tuples(st.just("window"), WINDOWS),
    st.tuples(st.just("clear"), KEYS),
    st.tuples(st.just("lead"), KEYS, st.sampled_from("xyz"), st.integers(0, 6), UNITS),
    st.tuples(st.just("look"), KEYS),
    st.tuples(st.just("publish"), KEYS, st.integers(-1, 8), st.text(max_size=3), UNITS),
)


def act(store: Store, prefix: str, step: tuple[Any, ...]) -> object:
    """Do one step; return the response in a form that compares."""
    budget = store.budget
    match step:
        case "acquire_all", windows, amount:
            result = budget.acquire_all(named(prefix, windows), amount)
            return result.wait, ages_in(named(prefix, windows), result)
        case "add", windows, ages:
            for window in named(prefix, windows):
                budget.add(window, ages)
            return None
        case "ages", windows:
            return [list(budget.ages(window)) for window in named(prefix, windows)]
        case "window", windows:
            return [budget.get_moving_window(key, limit, int(expiry)) for key, limit, expiry in named(prefix, windows)]
        case "clear", key:
            budget.clear(prefix + key)
            return None
        case "lead", key, owner, known_version, lease:
            return store.try_acquire_lease(prefix + key, owner=owner, known_version=known_version, lease=lease)
        case "look", key:
            return store.peek(prefix + key)
        case "publish", key, fencing_token, content, ttl:
            return store.publish(prefix + key, fencing_token=fencing_token, content=content, ttl=ttl)
        case _:
            raise AssertionError(step)


def named(prefix: str, windows: Sequence[Window]) -> list[Window]:
    """Give the windows keys that no other example uses."""
    return [window._replace(key=prefix + window.key) for window in windows]


@given(steps=st.lists(STEPS, min_size=1, max_size=40))
@settings(deadline=None, max_examples=examples(80), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rule_04_every_store_returns_what_memory_does(exact: Scene, steps: list[tuple[Any, ...]]) -> None:
    """Side by side on one clock: the same steps, equal results."""
    clock = getattr(exact, "clock", None)
    assert isinstance(clock, ManualClock)
    memory, prefix = MemoryStore(clock.now), f"{uuid.uuid4()}/"
    for step in steps:
        if step[0] == "advance":
            exact.advance(step[1])
        else:
            assert act(exact.store, prefix, step) == act(memory, prefix, step)


THREADS = 16


PROCESSES = 8


LIMITS = [Window("short", 10, 600.0), Window("long", 25, 3_600.0)]


def race(store: Store, number: int) -> tuple[int, list[int]]:
    """Acquire all units, and the lease if it is free; return the units and the fences."""
    units = sum(store.budget.acquire_all(LIMITS).wait == 0 for _ in range(4))
    fencing_token = store.try_acquire_lease("key", owner=str(number), known_version=0, lease=3_600.0).fencing_token
    return units, [] if fencing_token is None else [fencing_token]


def race_in_process(opener: Callable[[], Store], barrier: Barrier, number: int, results: Any) -> None:
    """Race in a process of its own."""
    store = opener()
    barrier.wait()
    results.put(race(store, number))


def judge(store: Store, results: Sequence[tuple[int, list[int]]]) -> None:
    """No limit was exceeded, nothing was lost, one has the lease."""
    assert sum(units for units, _ in results) == 10
    assert [len(store.budget.ages(window)) for window in LIMITS] == [10, 10]
    fences = [fencing_token for _, fences in results for fencing_token in fences]
    assert len(fences) == 1
    assert store.publish("key", fencing_token=fences[0], content="a token", ttl=3_600.0)
    record = store.try_acquire_lease("key", owner="judge", known_version=0, lease=1.0).record
    assert record is not None
    assert record.version == fences[0]


def test_rule_05_threads_cannot_overdraw_nor_lead_together(scene: Scene) -> None:
    """Sixteen at a barrier: all units, no more, and one fence."""
    barrier = threading.Barrier(THREADS)

    def run(number: int) -> tuple[int, list[int]]:
        barrier.wait()
        return race(scene.store, number)

    with ThreadPoolExecutor(THREADS) as pool:
        judge(scene.store, list(pool.map(run, range(THREADS))))


@pytest.mark.deep
def test_rule_04_processes_cannot_overdraw_nor_lead_together(shared: Scene) -> None:
    """Real ones, at a barrier, on a store that none of them has opened before."""
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(PROCESSES), spawn.SimpleQueue()
    opener = shared.opener()
    workers = [spawn.Process(target=race_in_process, args=(opener, barrier, n, results)) for n in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    judge(opener(), [results.get() for _ in workers])
