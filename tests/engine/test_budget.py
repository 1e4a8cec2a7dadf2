"""The budget, its storage behind the interface of ``limits``, and its clock."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.strategies import MovingWindowRateLimiter

from pay88_adapters import CredentialsRejected, TokenBudgetExhausted, TokenPolicy, TokenRateLimited
from pay88_adapters.core.budget import AcquireResult
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.history import Acquisition, Cooldown, Entry, StorageResult, Window
from pay88_adapters.core.snapshot import failure_to
from pay88_adapters.engine.budget import AtomicMovingWindow, TokenBudget, spread
from pay88_adapters.stores.base import StoreError
from pay88_adapters.stores.memory import MemoryStorage, MemoryStore
from pay88_adapters.testing.windows import largest_window
from support.sample import examples

GUARD = 5.0  # seconds: the policy's fetch_timeout
EPSILON = 0.01


class Scene:
    """A budget on a clock that the test sets."""

    def __init__(self, base_url: str = "https://api.example", **policy: object) -> None:
        self.now = 1_000.0
        self.storage = MemoryStorage(lambda: self.now)
        self.budget = TokenBudget(TokenPolicy(**policy), self.storage, base_url)  # type: ignore[arg-type]

    def take(self, count: int = 1, *, from_reserve: bool = False, who: str = "M") -> list[bool]:
        """Acquire *count* times; return how many units were granted."""
        return [self.budget.acquire(who, from_reserve=from_reserve).granted for _ in range(count)]

    def left(self, who: str = "M") -> list[int]:
        """Return the units left in the minute and in the hour."""
        return list(self.budget.left(who).values())


# The windows


def test_rule_05_ten_a_minute_and_not_one_more() -> None:
    """The eleventh is rejected, with the exact seconds until a unit is available."""
    scene = Scene()
    assert scene.take(10) == [True] * 10
    scene.now += 20.0
    rejected = scene.budget.acquire("M", from_reserve=False)
    assert not rejected.granted
    assert rejected.retry_in == pytest.approx(60 + GUARD - 20, abs=EPSILON)

    scene.now += rejected.retry_in - 2 * EPSILON
    assert scene.budget.acquire("M", from_reserve=False).retry_in == pytest.approx(2 * EPSILON, abs=EPSILON)
    scene.now += 2 * EPSILON
    assert scene.take() == [True]


def test_rule_05_the_window_is_as_much_longer_as_a_request_may_be_under_way() -> None:
    """Two requests a minute apart here may be ``fetch_timeout`` closer over there."""
    scene = Scene(fetch_timeout=5)
    scene.take(10)
    scene.now += 60.0 + 5.0
    assert scene.take() == [False], "closed at its end: the first ones still count at that instant"
    scene.now += EPSILON
    assert scene.take(11) == [True] * 10 + [False]


def test_rule_05_a_hundred_an_hour() -> None:
    """Spread out so that no minute is full, the hundred-and-first is rejected for the rest of the hour."""
    scene = Scene()
    for _ in range(100):
        assert scene.take() == [True]
        scene.now += 10.0
    rejected = scene.budget.acquire("M", from_reserve=False)
    assert not rejected.granted
    assert rejected.retry_in == pytest.approx(3_600 + GUARD - 1_000, abs=EPSILON)
    scene.now += rejected.retry_in
    assert scene.take(2) == [True, False]


def test_rule_05_what_is_rejected_costs_nothing() -> None:
    """A full minute and a thousand acquisitions: the hour has lost ten units, not a thousand and ten."""
    scene = Scene()
    scene.take(10)
    assert not any(scene.take(1_000))
    assert scene.left() == [0, 90]
    scene.now += 66.0
    assert scene.left() == [10, 90]


def test_rule_05_all_limits_are_taken_or_none() -> None:
    """Whichever of several is full, the others lose nothing; the wait is the longest of all."""
    now = 0.0
    storage = MemoryStorage(lambda: now)
    strategy = AtomicMovingWindow(storage, guard=0.0)
    small, middle, large = RateLimitItemPerMinute(5), RateLimitItemPerMinute(1, 2), RateLimitItemPerHour(9)
    assert strategy.acquire_all([(middle, ("a",))]).wait == 0
    now = 30.0
    for order in ([small, middle, large], [large, middle, small], [middle, small, large]):
        assert strategy.acquire_all([(item, ("a",)) for item in order]).wait == pytest.approx(90.0, abs=EPSILON)
    assert [strategy.left(item, "a") for item in (small, middle, large)] == [4, 0, 8], "they look at one history"
    now = 121.0
    assert strategy.acquire_all([(item, ("a",)) for item in (small, middle, large)]).wait == 0
    assert [strategy.left(item, "a") for item in (small, middle, large)] == [4, 0, 7]


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), min_size=1, max_size=400))
@settings(deadline=None, max_examples=examples(60))
def test_rule_05_no_window_ever_holds_more(gaps: list[tuple[float, bool]]) -> None:
    """Whatever the gaps: counted independently, the limits hold, extras among them."""
    scene = Scene()
    granted: list[float] = []
    extras: list[float] = []
    for gap, extra in gaps:
        scene.now += gap
        if scene.budget.acquire("M", from_reserve=extra).granted:
            granted.append(scene.now)
            if extra:
                extras.append(scene.now)
    assert largest_window(granted, 60.0) <= 10
    assert largest_window(granted, 3_600.0) <= 100
    assert largest_window(extras, 60.0) <= 8
    assert largest_window(extras, 3_600.0) <= 20


@given(st.lists(st.floats(0, 200), min_size=1, max_size=150))
@settings(deadline=None, max_examples=examples(60))
def test_rule_05_the_returned_wait_is_the_wait_that_is_needed(gaps: list[float]) -> None:
    """A moment before it the response is still no, after it yes."""
    scene = Scene()
    for gap in gaps:
        scene.now += gap
        grant = scene.budget.acquire("M", from_reserve=False)
        assert (grant.retry_in == 0.0) == grant.granted
        if not grant.granted:
            scene.now += grant.retry_in - 0.005
            assert scene.take() == [False]
            scene.now += 0.006
            assert scene.take() == [True]


# Who shares what


def test_rule_04_merchants_and_base_urls_have_budgets_of_their_own() -> None:
    """The 401 storm of one merchant costs other merchants no unit; two budgets on one storage share theirs."""
    scene = Scene()
    assert scene.take(11) == [True] * 10 + [False]
    assert scene.take(who="another") == [True]
    assert TokenBudget(TokenPolicy(), scene.storage, "https://other.example").acquire("M", from_reserve=False).granted
    assert not TokenBudget(TokenPolicy(), scene.storage, "https://api.example").acquire("M", from_reserve=False).granted


def test_rule_04_what_the_entries_are_kept_under_stays_as_it_is() -> None:
    """Processes with different versions of the package share a store while one replaces the other."""
    digest = hashlib.sha256(b"https://api.example\nM").hexdigest()[:32]
    keys = [f"token/{digest}"] * 2 + [f"token/{digest}/extra"] * 2
    assert [window.key for window in Scene().budget.windows("M")] == keys


def test_rule_05_other_limits_look_at_the_same_history() -> None:
    """A deploy that changes them, or two services that differ: what one has taken is gone for the other."""
    scene = Scene()
    assert scene.take(6) == [True] * 6
    other = TokenBudget(
        TokenPolicy(limits=("9/minute", "15/hour"), fetch_timeout=30), scene.storage, "https://api.example"
    )
    assert list(other.left("M").values()) == [3, 9]
    assert [other.acquire("M", from_reserve=False).granted for _ in range(4)] == [True] * 3 + [False]
    assert scene.left() == [1, 91]
    scene.now += 3_500.0
    longer = TokenBudget(TokenPolicy(limits=("12/hour",)), scene.storage, "https://api.example")
    assert list(longer.left("M").values()) == [3], "of an hour ago, too"


def test_rule_05_entries_are_kept_for_the_longest_limit_of_all() -> None:
    """A client with a daily limit finds the day's entries, although another one has a limit per minute.
    meantime.
    """
    scene = Scene(limits=("500/day",))
    assert scene.take(3) == [True] * 3
    other = TokenBudget(TokenPolicy(limits=("10/minute",)), scene.storage, "https://api.example")
    for _ in range(20):
        scene.now += 4_000.0
        assert other.acquire("M", from_reserve=False).granted
    assert list(scene.budget.left("M").values()) == [500 - 23]


def test_rule_04_the_windows_are_those_that_a_request_counts_in() -> None:
    """An extra one in all of them, and in no other merchant's."""
    scene = Scene()
    assert scene.take(from_reserve=True) == [True]
    windows = scene.budget.windows("M")
    assert [(limit, expiry) for _, limit, expiry in windows] == [(10, 65), (100, 3_605), (20, 3_605), (8, 65)]
    assert [list(scene.storage.ages(window)) for window in windows] == [[0.0]] * 4
    assert not any(scene.storage.ages(window) for window in scene.budget.windows("another"))


def test_rule_04_the_keys_of_a_merchant_name_its_longest_windows() -> None:
    """One history for all requests, and one for those from the reserve, whatever the order of the limits."""
    digest = hashlib.sha256(b"https://api.example\nM").hexdigest()[:32]
    for limits in (("10/minute", "100/hour"), ("100/hour", "10/minute")):
        assert Scene(limits=limits).budget.keys("M") == {f"token/{digest}": 3_605.0, f"token/{digest}/extra": 3_605.0}
    assert Scene(limits=("1000/day",)).budget.keys("M")[f"token/{digest}"] == 86_405.0


def test_rule_05_a_unit_is_claimed_to_outlive_a_failover_of_the_store() -> None:
    """Each in an acquisition of its own: no two have the same id."""
    acquisitions: list[Acquisition] = []

    class Noting(MemoryStorage):
        def acquire(self, acquisition: Acquisition) -> StorageResult:
            acquisitions.append(acquisition)
            return super().acquire(acquisition)

    budget = TokenBudget(TokenPolicy(max_retry_after=60), Noting(lambda: 0.0), "https://api.example")
    assert budget.acquire("M", from_reserve=False).granted
    assert budget.acquire("M", from_reserve=True).granted
    assert [(acquisition.durable, acquisition.longest_cooldown) for acquisition in acquisitions] == [(True, 60.0)] * 2
    assert [len(acquisition.windows) for acquisition in acquisitions] == [2, 4]
    assert len({each for acquisition in acquisitions for each in acquisition.ids}) == 2


# The reserve


def test_rule_08_extras_stop_at_the_reserve_and_leave_ordinary_ones_alone() -> None:
    """Twenty an hour; the next one waits an hour, while regular requests are granted."""
    scene = Scene()
    for _ in range(20):
        assert scene.take(from_reserve=True) == [True]
        scene.now += 30.0
    rejected = scene.budget.acquire("M", from_reserve=True)
    assert not rejected.granted
    assert rejected.retry_in == pytest.approx(3_600 + GUARD - 600, abs=EPSILON)
    assert scene.left() == [8, 80], "a refused extra costs the shared limits nothing"
    assert scene.take() == [True]


def test_rule_08_extras_leave_room_for_two_ordinary_requests_in_a_minute() -> None:
    """However many reserve requests come concurrently, the regular refresh finds a unit."""
    scene = Scene()
    assert scene.take(20, from_reserve=True) == [True] * 8 + [False] * 12
    assert scene.take(3) == [True, True, False]


@pytest.mark.parametrize(
    ("limits", "extras", "ordinary"),
    [
        (("2/minute",), 0, 2),
        (("3/minute",), 1, 2),
        (("10/2minutes",), 7, 3),
        (("62/hour",), 0, 20),
        (("64/hour",), 1, 20),
        (("70/hour",), 4, 20),
        (("80/hour",), 9, 20),
        (("99/hour",), 19, 20),
        (("2000/day",), 20, 20),
        # Too few for a token after the other, so that calls fail at times.
        (("61/hour",), 12, 20),
        (("15/hour",), 3, 12),
        (("2/hour",), 1, 1),
    ],
)
def test_rule_08_the_room_is_for_a_request_at_the_end_of_each_token(
    limits: tuple[str, ...], extras: int, ordinary: int
) -> None:
    """Whatever the window: of a limit that sustains ordinary requests, extra ones take none that these need."""
    scene = Scene(limits=limits)
    assert sum(scene.take(20, from_reserve=True)) == extras
    assert sum(scene.take(20)) == ordinary


@pytest.mark.parametrize(
    ("limits", "reserve"),
    [
        (("1000/minute",), 20),
        (("1000/90minutes",), 20),
        (("1000/2hours",), 40),
        (("10000/day",), 480),
    ],
)
def test_rule_08_the_reserve_of_a_limit_is_that_of_the_hours_in_its_window(
    limits: tuple[str, ...], reserve: int
) -> None:
    """At least that of one hour; of a part of an hour there is none."""
    assert Scene(limits=limits).budget.windows("M")[-1].limit == reserve


def test_rule_08_what_is_left_for_forced_refreshes_is_the_least_of_all_limits() -> None:
    """Eight of ten in a minute at first, which regular requests may take too; twenty in an hour."""
    scene = Scene()
    assert scene.budget.left_for_forced("M") == 8
    scene.take(3, from_reserve=True)
    assert (scene.budget.left_for_forced("M"), scene.budget.left_for_forced("another")) == (5, 8)
    scene.take(6)
    assert scene.budget.left_for_forced("M") == 1
    scene.now += 66.0
    scene.take(8, from_reserve=True)
    scene.now += 66.0
    assert scene.budget.left_for_forced("M") == 8
    scene.take(8, from_reserve=True)
    scene.now += 66.0
    assert scene.budget.left_for_forced("M") == 1, "of twenty in the hour"


def test_rule_08_the_room_is_kept_for_the_whole_of_a_window() -> None:
    """Of ten in two minutes, seven are for extras in two minutes, not in each."""
    scene = Scene(limits=("10/2minutes",))
    assert sum(scene.take(20, from_reserve=True)) == 7
    scene.now += 100.0
    assert not any(scene.take(20, from_reserve=True))
    scene.now += 20.0 + GUARD + EPSILON
    assert sum(scene.take(20, from_reserve=True)) == 7


def test_rule_08_without_a_reserve_there_are_no_extras() -> None:
    """None, whenever; and ordinary ones are as before, though all of nothing is used."""
    scene = Scene(forced_reserve=0)
    assert scene.take(2, from_reserve=True) == [False, False]
    assert scene.budget.acquire("M", from_reserve=False) == AcquireResult(True, 0.0, 1.0)


def test_rule_05_what_is_rejected_as_extra_says_when_there_is_room_for_an_ordinary_one() -> None:
    """Immediately if only the reserve is exhausted; not earlier if the limit itself is."""
    scene = Scene(limits=("10/minute", "100/hour"))
    assert sum(scene.take(9, from_reserve=True)) == 8
    rejected = scene.budget.acquire("M", from_reserve=True)
    assert (rejected.granted, rejected.refresh_allowed_in) == (False, 0.0)
    assert rejected.retry_in == pytest.approx(60.0 + GUARD, abs=EPSILON)
    scene = Scene(limits=("1/hour",))
    assert scene.take() == [True]
    scene.now += 10.0
    rejected = scene.budget.acquire("M", from_reserve=True)
    assert not rejected.granted
    assert rejected.refresh_allowed_in == pytest.approx(3_590.0 + GUARD, abs=EPSILON)


def test_rule_08_pressure_is_the_part_of_the_reserve_that_is_used() -> None:
    """Nothing, then a twentieth with each extra request, whatever ordinary ones use; an hour later nothing again."""
    scene, pressures = Scene(), [Scene().budget.reserve_used("M")]
    for _ in range(20):
        assert scene.take() == [True]
        scene.now += 15.0
        pressures.append(scene.budget.acquire("M", from_reserve=True).reserve_used)
        scene.now += 15.0
    assert pressures == pytest.approx([each / 20 for each in range(21)])
    assert scene.budget.acquire("M", from_reserve=True).reserve_used == 1.0
    scene.now += 3_605.1
    assert scene.budget.reserve_used("M") == 0.0


def test_rule_08_pressure_is_that_of_the_smallest_reserve() -> None:
    """Of eighty an hour nine are for extras, and of 1,500 a day eighteen."""
    scene = Scene(limits=("80/hour",))
    assert scene.budget.acquire("M", from_reserve=True).reserve_used == pytest.approx(1 / 9)
    scene = Scene(limits=("100/hour", "1500/day"))
    assert scene.budget.acquire("M", from_reserve=True).reserve_used == pytest.approx(1 / 18)


# The pace


@pytest.mark.parametrize(
    ("limits", "pace"),
    [
        (("10/minute", "100/hour"), 0.0),
        (("1000/minute",), 0.0),
        (("62/hour",), 3_605 / 62),  # the window and its guard
        (("64/hour",), 3_600 / 63),  # one of them may be an extra request
        (("80/hour",), 3_600 / 71),
        (("10/minute", "50/hour"), 3_600 / 40),
        (("5/5minutes", "62/hour"), 305 / 5),
        (("61/hour", "62/hour"), 3_605 / 61),  # the smallest reserve is that of both: none
        (("1500/day",), 86_400 / 1_482),
    ],
)
def test_rule_02_the_pace_is_what_the_limits_sustain(limits: tuple[str, ...], pace: float) -> None:
    """From the first request on, whatever is left; nothing where the usual pace is slow enough."""
    grant = Scene(limits=limits).budget.acquire("M", from_reserve=False)
    assert grant.pace == pytest.approx(pace, abs=EPSILON)


def test_rule_02_the_pace_slows_down_as_the_budget_goes() -> None:
    """Early use is compensated later: the pace is never faster than the next available unit."""
    scene, paces = Scene(limits=("10/minute", "100/hour")), list[float]()
    for _ in range(100):
        paces.append(scene.budget.acquire("M", from_reserve=False).pace)
        scene.now += 30.0
    assert paces[0] == 0.0
    assert 45.0 < paces[1] < 46.0
    assert paces == sorted(paces)
    assert paces[-1] == pytest.approx(3_600 - 79 * 30, abs=EPSILON), "the next one but twenty, which are the reserve"


@given(
    before=st.lists(st.tuples(st.floats(0, 200), st.booleans()), max_size=120),
    limits=st.sampled_from(
        [("10/minute", "100/hour"), ("62/hour",), ("4/2minutes", "70/hour"), ("3/minute", "9/hour")]
    ),
)
@settings(deadline=None, max_examples=examples(60))
def test_rule_02_at_its_pace_no_ordinary_request_is_ever_denied(
    before: list[tuple[float, bool]], limits: tuple[str, ...]
) -> None:
    """Whatever was used before: two hours at the pace that each grant names, or as usual."""
    scene = Scene(limits=limits)
    for gap, extra in before:
        scene.now += gap
        scene.take(from_reserve=extra)
    pace, until = scene.budget.pace("M"), scene.now + 7_200.0
    while scene.now < until:
        scene.now += max(pace, 45.0)
        grant = scene.budget.acquire("M", from_reserve=False)
        assert grant.granted
        pace = grant.pace


def test_rule_02_the_reserve_keeps_only_what_it_has_not_used() -> None:
    """Of 80 in an hour it has nine: used, they are among those that are gone, and not kept as well."""
    scene = Scene(limits=("80/hour",))
    assert scene.take(9, from_reserve=True) == [True] * 9
    assert scene.budget.pace("M") == pytest.approx(3_605 / 72, abs=EPSILON)


@pytest.mark.parametrize(
    ("limit", "ages", "distance"),
    [
        (10, [], 0.0),
        (10, [0.0], 6.0),  # nine are left, and the tenth may come when the first one leaves
        (2, [60.0, 30.0], 15.0),
        (2, [61.0, 30.0], 15.0),  # one that has left does not count
        (2, [50.0, 0.0], 30.0),
        (2, [10.0, 5.0], 50.0),
        (1, [50.0, 0.0], 60.0),  # more than the limit: the newest of them must leave first
        (0, [], 0.0),
    ],
)
def test_rule_02_entries_are_spread_so_that_each_fits(limit: int, ages: list[float], distance: float) -> None:
    """Evenly, and never sooner than the oldest that it needs to replace has left a window of a minute."""
    assert spread(limit, 60.0, ages) == distance


# The clock


@pytest.mark.parametrize("step", [1e9, 3_700.0, 66.0])
def test_rule_05_a_machine_that_was_suspended_has_its_units_back(step: float) -> None:
    """The clock counts suspended time: afterwards there are as many as it says, and not one more."""
    scene = Scene()
    scene.take(10)
    scene.now += step
    assert scene.take(11) == [True] * 10 + [False]


@pytest.mark.parametrize("step", [0.001, 59.0, 5_000.0])
def test_rule_05_a_clock_that_is_set_back_grants_nothing(step: float) -> None:
    """The core's clock cannot be set; if one could, it would only lose time, never gain units."""
    scene = Scene()
    scene.take(10)
    scene.now -= step
    assert scene.take(5) == [False] * 5
    scene.now += step + 60 + GUARD + EPSILON
    assert scene.take(11) == [True] * 10 + [False]


# Threads


class Hesitant(MemoryStorage):
    """Lets all other threads run between looking and taking."""

    def _kept(self, key: str) -> Any:
        kept = super()._kept(key)
        time.sleep(0.0002)
        return kept


def test_rule_05_threads_cannot_overdraw() -> None:
    """Sixteen threads at a barrier, five times: ten units each time, no more and no fewer."""
    scene = Scene()
    scene.budget = TokenBudget(TokenPolicy(), Hesitant(lambda: scene.now), "https://api.example")
    barrier = threading.Barrier(16)

    def race() -> int:
        barrier.wait()
        return sum(scene.take(3))

    with ThreadPoolExecutor(16) as pool:
        for done in range(1, 6):
            assert sum(each.result() for each in [pool.submit(race) for _ in range(16)]) == 10
            assert scene.left() == [0, 100 - 10 * done]
            scene.now += 66.0


def test_rule_17_a_lock_of_a_lost_thread_is_replaced_in_a_forked_child() -> None:
    """Another thread was in the middle of it when the process forked; here it stays there."""
    inside, leave = threading.Event(), threading.Event()

    def now() -> float:
        if threading.current_thread() is holder:
            inside.set()
            leave.wait()
        return 0.0

    storage = MemoryStorage(now)
    window = Window("key", 1, 60.0)
    holder = threading.Thread(target=storage.ages, args=(window,))
    holder.start()
    try:
        inside.wait()
        storage.after_fork()
        assert storage.acquire_all([window]).wait == 0
        assert len(storage.ages(window)) == 1
    finally:
        leave.set()
        holder.join()


def test_the_storage_starts_no_thread() -> None:
    """Unlike the library's own, which prunes on a timer."""
    before = threading.enumerate()
    scene = Scene()
    scene.take(10)
    assert scene.storage.acquire_entry("key", 1, 60)
    assert threading.enumerate() == before


# The interface of limits


def test_the_strategy_of_limits_works_on_the_storage() -> None:
    """``hit``, ``test``, ``get_window_stats`` and ``clear``, on our clock."""
    now = 500.0
    storage = MemoryStorage(lambda: now)
    strategy, item = MovingWindowRateLimiter(storage), RateLimitItemPerMinute(3)
    assert strategy.test(item, "a")
    assert strategy.get_window_stats(item, "a") == (560.0, 3)
    assert [strategy.hit(item, "a") for _ in range(4)] == [True, True, True, False]
    now = 510.0
    assert not strategy.test(item, "a")
    assert strategy.test(item, "b")
    assert [strategy.hit(item, "b"), strategy.get_window_stats(item, "b")] == [True, (570.0, 2)]
    now = 520.0
    assert [strategy.hit(item, "b"), strategy.get_window_stats(item, "b")] == [True, (570.0, 1)]
    assert strategy.get_window_stats(item, "a") == (560.0, 0)
    now = 561.0
    assert strategy.hit(item, "a", cost=2)
    assert not strategy.hit(item, "a", cost=2)
    assert strategy.get_window_stats(item, "a") == (621.0, 1)
    strategy.clear(item, "a")
    assert strategy.get_window_stats(item, "a").remaining == 3


def test_the_strategy_of_limits_counts_the_units_of_the_budget() -> None:
    """They count the same entries."""
    scene = Scene()
    scene.take(4)
    assert scene.storage.get_moving_window(scene.budget.key("M"), 10, 60) == (scene.now, 4)
    assert AtomicMovingWindow(scene.storage, guard=0.0).left(RateLimitItemPerMinute(10), *scene.budget.names("M")) == 6


def test_the_storage_counts_forgets_and_says_what_it_cannot_do() -> None:
    """The rest of the interface."""
    storage = MemoryStorage(lambda: 0.0)
    window = Window("key", 2, 60.0)
    assert storage.acquire_all([window]).wait == 0
    assert (storage.get("key"), storage.get("other"), len(storage.ages(window))) == (1, 0, 1)
    storage.clear("key")
    storage.clear("never seen")
    assert not storage.ages(window)
    storage.acquire_all([window, Window("second", 1, 60.0)])
    assert storage.reset() == 2
    assert not storage.ages(window)
    assert storage.check()
    assert storage.base_exceptions == (StoreError,)
    with pytest.raises(NotImplementedError):
        storage.incr("key", 60)
    with pytest.raises(NotImplementedError):
        storage.get_expiry("key")


def test_what_is_merged_counts_once() -> None:
    """With the ages it is given, those that are there stay as old as they are; other keys keep theirs."""
    now = 100.0
    storage = MemoryStorage(lambda: now)
    window, other = Window("key", 9, 60.0), Window("other", 9, 60.0)
    storage.acquire_all([other])
    for _ in range(2):
        storage.merge("key", [Entry("a", 5.0), Entry("b", 3.0)], 60.0)
    assert (list(storage.ages(window)), list(storage.ages(other))) == ([5.0, 3.0], [0.0])
    now = 156.0
    storage.merge("key", [Entry("b", 0.0), Entry("c", 1.0)], 60.0)
    assert list(storage.ages(window)) == [59.0, 1.0]


def test_rule_05_a_claim_that_is_made_again_is_granted_once() -> None:
    """The response was lost: the same ids cost nothing more, also where nothing else would fit."""
    storage = MemoryStorage(lambda: 0.0)
    acquisition = Acquisition([Window("key", 1, 60.0), Window("key", 5, 3_600.0)], ["a"])
    assert [storage.acquire(acquisition).wait for _ in range(3)] == [0.0] * 3
    assert storage.get("key") == 1
    assert storage.acquire(acquisition._replace(ids=["b"])).wait > 0


def test_rule_05_what_is_known_counts_before_anything_is_granted() -> None:
    """A storage that was emptied is given back what its members know, in the same step."""
    storage = MemoryStorage(lambda: 0.0)
    known = [Entry(str(number), 10.0) for number in range(10)]
    acquisition = Acquisition([Window("key", 10, 60.0)], ["new"], {"key": known})
    assert storage.acquire(acquisition).wait > 0
    assert storage.get("key") == 10
    assert storage.acquire(acquisition._replace(known={"key": known[:5]})).wait > 0


@pytest.mark.parametrize("again", ["acquire", "lead"])
def test_rule_17_what_interrupts_a_claim_takes_nothing_and_waits_for_nothing(again: str) -> None:
    """A signal handler or a finalizer in the middle of it, on the same thread: at any reading of the clock."""
    inside: list[float] = []
    holds: Any = None

    def now() -> float:
        if holds is not None and not inside:
            inside.append(1.0)
            if again == "acquire":
                inside.append(store.budget.acquire_all([Window("key", 1, 60.0)]).wait)
                assert store.budget.ages(Window("key", 1, 60.0)) == []
            else:
                inside.append(store.try_acquire_lease("key", owner="b", known_version=0, lease=5.0).lease_remaining)
        return 0.0

    store = MemoryStore(now)
    holds = True
    if again == "acquire":
        assert store.budget.acquire_all([Window("key", 1, 60.0)]).wait == 0
    else:
        assert store.try_acquire_lease("key", owner="a", known_version=0, lease=5.0).fencing_token is not None
    assert inside[1] > 0


# Cooldowns after a 429

LIMITED = Failure(TokenRateLimited, "429", status=429, server_message="slow down", retry_after=300.0, retryable=True)


def test_rule_10_a_429_bars_the_merchant_for_all_who_share_the_storage() -> None:
    """No unit is granted, from the reserve or not, until the cooldown ends; other merchants are not affected."""
    scene = Scene()
    scene.budget.rate_limited("M", LIMITED)
    scene.now += 100.0
    for extra in (False, True):
        grant = scene.budget.acquire("M", from_reserve=extra)
        assert (grant.granted, grant.retry_in, grant.refresh_allowed_in) == (False, 200.0, 200.0)
        assert grant.failure == replace(LIMITED, retry_after=None)
    assert scene.take(who="another") == [True]
    assert scene.left() == [10, 100]
    scene.now += 200.0
    assert scene.take() == [True]


def test_rule_10_each_one_has_a_limit_of_its_own_to_what_it_waits() -> None:
    """A manager with a maximum of a minute shortens no other wait, in any order; a longer demand wins."""
    for first in (0, 1):
        scene = Scene()
        short = TokenBudget(TokenPolicy(max_retry_after=60), scene.storage, "https://api.example")
        (short, scene.budget)[first].rate_limited("M", LIMITED)
        scene.budget.rate_limited("M", replace(LIMITED, retry_after=30.0))
        assert short.acquire("M", from_reserve=False).retry_in == 60.0
        assert scene.budget.acquire("M", from_reserve=False).retry_in == 300.0
        scene.now += 60.0
        assert short.acquire("M", from_reserve=False).granted
        assert scene.budget.acquire("M", from_reserve=False).retry_in == 240.0


def test_rule_10_the_cooldown_is_the_merchants_and_has_a_reason_and_an_end() -> None:
    """None without a 429 or when it has ended; one that demanded nothing starts none; the longest lasts a day."""
    scene = Scene(max_retry_after=86_400)
    scene.budget.rate_limited("M", replace(LIMITED, retry_after=None))
    assert scene.budget.cooldown("M") is None
    scene.budget.rate_limited("M", LIMITED)
    scene.now += 299.5
    assert scene.budget.cooldown("M") == (replace(LIMITED, retry_after=None), 0.5)
    assert scene.budget.cooldown("another") is None
    short = TokenBudget(TokenPolicy(max_retry_after=60), scene.storage, "https://api.example")
    assert short.cooldown("M") is None, "for a manager that waits at most a minute"
    grant = scene.budget.acquire("M", from_reserve=False)
    assert grant.failure is not None
    assert (grant.failure.kind, grant.retry_in) == (TokenRateLimited, 0.5)
    scene.now += 0.5
    assert scene.budget.cooldown("M") is None
    scene.budget.rate_limited("M", replace(LIMITED, retry_after=1e9))
    cooldown = scene.storage.cooldown(scene.budget.key("M"))
    assert cooldown is not None
    assert cooldown.seconds == 86_400.0


def test_rule_10_a_cooldown_that_has_ended_is_not_the_reason() -> None:
    """A manager that waits a minute at most names the budget after that, although the 429 demanded five."""
    scene = Scene(max_retry_after=60)
    scene.take(10)
    scene.budget.rate_limited("M", LIMITED)
    for passed, kind in ((0.0, TokenRateLimited), (60.0, TokenBudgetExhausted)):
        scene.now += passed
        failure = scene.budget.acquire("M", from_reserve=False).failure
        assert failure is not None
        assert failure.kind is kind


@pytest.mark.parametrize("denied_by", ["429", "limit"])
def test_rule_08_a_rejection_says_as_much_of_the_budget_as_a_grant(denied_by: str) -> None:
    """The used part of the reserve, and the pace that the limits sustain."""
    scene = Scene(limits=("80/hour",))
    scene.take(3, from_reserve=True)
    if denied_by == "429":
        scene.budget.rate_limited("M", LIMITED)
    else:
        scene.take(77)
    grant = scene.budget.acquire("M", from_reserve=False)
    assert (grant.granted, grant.pace) == (False, scene.budget.pace("M"))
    assert grant.reserve_used == pytest.approx(3 / 9)
    assert grant.pace > 45.0


@pytest.mark.parametrize(
    "reason",
    [
        "",
        "no json",
        "[]",
        "{}",
        "null",
        "[" * 100_000,
        json.dumps(failure_to(Failure(CredentialsRejected, "401", 401))),
    ],
    ids=["nothing", "no JSON", "array", "object", "null", "deep", "another failure"],
)
def test_rule_10_a_cooldown_whose_reason_cannot_be_read_is_that_of_a_429(reason: str) -> None:
    """A process with another version of the package may have written it, or the store is damaged."""
    scene = Scene()
    scene.storage.start_cooldown(scene.budget.key("M"), Cooldown(300.0, 0.0, reason))
    failure = scene.budget.acquire("M", from_reserve=False).failure
    assert failure is not None
    assert failure == Failure(TokenRateLimited, failure.message, 429, retryable=True)
    assert scene.budget.cooldown("M") == (failure, 300.0)


# What a rejection says


def test_rule_24_a_rejection_names_the_reason_that_the_storage_gives() -> None:
    """Whether or not units are left."""

    class Unavailable(MemoryStorage):
        def acquire(self, acquisition: Acquisition) -> StorageResult:
            return super().acquire(acquisition)._replace(wait=5.0, reason="no replica confirmed the unit")

    grant = TokenBudget(TokenPolicy(), Unavailable(lambda: 0.0), "https://api.example").acquire("M", from_reserve=True)
    assert (grant.granted, grant.retry_in) == (False, 5.0)
    assert grant.failure is not None
    assert grant.failure.message.startswith("no replica confirmed the unit")


def test_rule_08_a_rejection_says_what_is_reserved() -> None:
    """Units are left, but not for this one; or none are."""
    scene = Scene()
    scene.take(20, from_reserve=True)
    failure = scene.budget.acquire("M", from_reserve=True).failure
    assert failure is not None
    assert "2 of 10 per 1 minute" in failure.message
    assert "reserved" in failure.message
    scene.take(1)
    failure = scene.budget.acquire("M", from_reserve=True).failure
    assert failure is not None
    assert "1 of 10 per 1 minute" in failure.message
    scene.take(1)
    failure = scene.budget.acquire("M", from_reserve=True).failure
    assert failure is not None
    assert "exhausted (10 per 1 minute)" in failure.message
    assert re.search(r"retry in 13 s$", str(failure.error(12.5)))


def test_old_entries_do_not_pile_up() -> None:
    """A budget that is used for weeks holds no more than its limits allow."""
    scene = Scene()
    for _ in range(3_000):
        scene.take()
        scene.now += 45.0
    assert scene.storage.get(scene.budget.key("M")) <= 100
    scene.now += 86_400.0
    scene.take(who="another")
    assert len(scene.storage._histories) == 1, "nor do merchants that are gone"
