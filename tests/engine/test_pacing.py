"""Pacing (rule 22): counted by independent code, with any limits reported by the service."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pay88_adapters.core.history import StorageResult
from pay88_adapters.engine.pacing import Denied, Pacing, RateLimitPermit
from pay88_adapters.stores.memory import MemoryStorage
from pay88_adapters.testing import ManualClock
from pay88_adapters.testing.windows import largest_window
from support.sample import examples

MERCHANT = "MCH-COL-PACED"
WALL = 1_700_000_000
DATE = formatdate(WALL, usegmt=True)


def says(remaining: Any, reset_in: Any = None, **more: str) -> dict[str, str]:
    """Return the fields of a response; *reset_in* seconds after its date."""
    fields = {"Date": DATE, "X-RateLimit-Limit": "60", "X-RateLimit-Remaining": str(remaining)}
    if reset_in is not None:
        fields["X-RateLimit-Reset"] = str(WALL + reset_in)
    return {**fields, **{name.replace("_", "-"): value for name, value in more.items()}}


class Scene:
    """Pacing on a clock that only the test moves."""

    def __init__(self, storage: MemoryStorage | None = None, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.storage = storage or MemoryStorage(self.clock.now)
        self.pacing = Pacing(self.storage, "https://api-sandbox.88pay.io")

    def ask(self, group: str = "balance", merchant: str = MERCHANT) -> float:
        """Acquire a unit as a request does: return 0 if it may be sent, or the seconds until then."""
        permit = self.pacing.reserve(group, self.clock.now())
        if not isinstance(permit, RateLimitPermit):
            return permit.wait
        result = self.pacing.acquire(group, merchant)
        self.pacing.record_result(permit, result, self.clock.now())
        if not result.wait:
            self.pacing.end_attempt(permit, self.clock.now())
        return result.wait

    def received(self, fields: Mapping[str, str], status: int = 200, group: str = "balance") -> None:
        """Let a response arrive."""
        self.pacing.record_response(group, status, fields, self.clock.now(), self.clock.wall())

    def free(self, most: int = 100, group: str = "balance") -> int:
        """Return how many requests may be sent now."""
        return next((count for count in range(most) if self.ask(group)), most)


# What is counted here


def test_rule_22_what_is_left_can_be_looked_at() -> None:
    """Of each group by itself, in each limit; looking takes nothing."""
    scene = Scene()
    assert [scene.ask(), scene.ask(), scene.ask("transactions")] == [0, 0, 0]
    for _ in range(2):
        assert scene.pacing.left("balance", MERCHANT) == {"60 per 1 minute": 58, "1000 per 1 hour": 998}
    assert scene.pacing.left("transactions", MERCHANT) == {"60 per 1 minute": 59, "1000 per 1 hour": 999}
    assert scene.pacing.left("balance", "MCH-OTHER")["60 per 1 minute"] == 60
    scene.clock.advance(62.0)
    assert scene.pacing.left("balance", MERCHANT) == {"60 per 1 minute": 60, "1000 per 1 hour": 998}


def test_rule_22_sixty_a_minute_and_not_one_more() -> None:
    """The sixty-first gets the seconds until a unit is available, and a unit at that time."""
    scene = Scene()
    assert scene.free() == 60
    scene.clock.advance(40)
    wait = scene.ask()
    assert 20 <= wait < 22
    scene.clock.advance(wait - 0.01)
    assert scene.ask() > 0
    scene.clock.advance(0.02)
    assert scene.free() == 60


def test_rule_22_a_thousand_an_hour() -> None:
    """Fifty a minute is too many for an hour."""
    scene, sent = Scene(), 0
    while not (wait := scene.ask()):
        sent += 1
        scene.clock.advance(1.2)
    assert sent == 1000
    assert wait == pytest.approx(3600 - 1200, abs=2)


@settings(max_examples=examples(10), deadline=None)
@given(st.integers(0, 2**32))
def test_rule_22_no_window_ever_holds_more(seed: int) -> None:
    """Bursts, floods and pauses for two hours, by two who share a storage: counted plainly, the limits hold."""
    rng, one = random.Random(seed), Scene()
    scenes = [one, Scene(one.storage, one.clock)]
    end, sent = one.clock.now() + 7200, list[float]()
    while one.clock.now() < end:
        scene = rng.choice(scenes)
        for _ in range(rng.choice([1, 1, 1, 5, 80])):
            if not scene.ask():
                sent.append(one.clock.now())
        one.clock.advance(rng.choice([0.0, 0.3, 2.0, 30.0]))
    assert 55 < largest_window(sent, 60) <= 60
    assert 900 < largest_window(sent, 3600) <= 1000


def depart(scene: Scene, group: str = "balance") -> RateLimitPermit | None:
    """Take a unit for an attempt that is in progress from now on."""
    permit = scene.pacing.reserve(group, scene.clock.now())
    if not isinstance(permit, RateLimitPermit):
        return None
    result = scene.pacing.acquire(group, MERCHANT)
    scene.pacing.record_result(permit, result, scene.clock.now())
    return None if result.wait else permit


def test_rule_22_attempts_under_way_may_be_sent_at_any_moment() -> None:
    """However long ago their units were taken: they count until a minute after their end, and no longer."""
    scene = Scene()
    in_progress = [depart(scene) for _ in range(60)]
    assert None not in in_progress
    scene.clock.advance(300)
    assert scene.ask() == pytest.approx(61)
    for permit in in_progress[:10]:
        assert permit is not None
        scene.pacing.end_attempt(permit, scene.clock.now())
    scene.clock.advance(60.9)
    assert scene.ask() == pytest.approx(0.1)
    scene.clock.advance(0.2)
    assert scene.free() == 10


def test_rule_22_an_attempt_whose_end_is_never_recorded_stops_counting() -> None:
    """Ten minutes; a forked child starts without the attempts of its parent's threads."""
    scene = Scene()
    for _ in range(60):
        assert depart(scene)
    scene.clock.advance(599)
    assert scene.ask() > 0
    scene.clock.advance(1)
    assert scene.free() == 60
    scene.clock.advance(62)
    for _ in range(60):
        assert depart(scene)
    scene.pacing.after_fork()
    scene.clock.advance(62)
    assert scene.free() == 60


@settings(max_examples=examples(10), deadline=None)
@given(st.integers(0, 2**32))
def test_rule_22_whenever_attempts_are_sent_the_limits_hold(seed: int) -> None:
    """Each some time after its unit was taken, up to ten minutes: counted as they arrive, no window holds more."""
    rng, scene = random.Random(seed), Scene()
    in_progress, arrived = list[RateLimitPermit](), list[float]()
    for _ in range(4_000):
        if rng.random() < 0.02:
            rng.shuffle(in_progress)
            for _ in range(rng.randrange(len(in_progress) + 1)):
                arrived.append(scene.clock.now())
                scene.pacing.end_attempt(in_progress.pop(), scene.clock.now())
        departed = depart(scene)
        if departed is not None and rng.random() < 0.5:
            arrived.append(scene.clock.now())
            scene.pacing.end_attempt(departed, scene.clock.now())
        elif departed is not None:
            in_progress.append(departed)
        scene.clock.advance(rng.choice([0.0, 0.5, 2.0, 10.0]) if len(in_progress) < 50 else rng.choice([0.5, 2.0]))
        in_progress = [permit for permit in in_progress if scene.clock.now() < permit.lost_at]
    assert 50 < largest_window(arrived, 60) <= 60
    assert largest_window(arrived, 3600) <= 1000


def test_rule_22_groups_and_merchants_are_counted_apart() -> None:
    """The units that one uses do not count for the other."""
    scene = Scene()
    assert scene.free(group="balance") == 60
    assert scene.free(group="transactions") == 60
    assert Scene(scene.storage, scene.clock).ask() > 0
    assert Scene(scene.storage, scene.clock).ask(merchant="MCH-COL-OTHER") == 0


def test_rule_22_base_urls_are_counted_apart() -> None:
    """Sandbox and production have limits of their own, also in one storage."""
    scene = Scene()
    production = Pacing(scene.storage, "https://api.88pay.io")
    assert scene.free() == 60
    assert production.acquire("balance", MERCHANT).wait == 0


def test_rule_22_a_cancelled_permit_blocks_no_other_request() -> None:
    """A caller that ends during its store operation releases its permit."""
    clock = ManualClock()
    pacing = Pacing(MemoryStorage(clock.now), "https://api-sandbox.88pay.io", max_concurrent=1)
    permit = pacing.reserve("balance", clock.now())
    assert isinstance(permit, RateLimitPermit)
    assert not isinstance(pacing.reserve("balance", clock.now()), RateLimitPermit)
    pacing.cancel(permit)
    assert isinstance(pacing.reserve("balance", clock.now()), RateLimitPermit)


def test_rule_22_a_limit_that_is_known_to_be_full_causes_no_store_operation() -> None:
    """Concurrent waiters do not query the storage one after another."""

    class Counting(MemoryStorage):
        requested = 0

        def acquire_all(self, *args: Any) -> Any:
            self.requested += 1
            return super().acquire_all(*args)

    clock = ManualClock()
    storage = Counting(clock.now)
    scene = Scene(storage, clock)
    assert scene.free() == 60
    assert all(scene.ask() for _ in range(1_000))
    assert storage.requested == 60
    clock.advance(62)
    assert scene.free() == 60


def test_rule_22_a_rejection_by_the_store_holds_for_all_who_wait() -> None:
    """Until its end none of them queries the store; the rejected one is no longer in progress."""
    pacing = Pacing(MemoryStorage(lambda: 0.0), "https://api-sandbox.88pay.io", max_concurrent=1)
    permit = pacing.reserve("balance", 100.0)
    assert isinstance(permit, RateLimitPermit)
    pacing.record_result(permit, StorageResult(30.0, {}, reason="why"), 100.0)
    assert [pacing.reserve("balance", now) for now in (100.0, 129.5)] == [Denied(30.0, "why"), Denied(0.5, "why")]
    assert isinstance(pacing.reserve("transactions", 100.0), RateLimitPermit)
    assert isinstance(pacing.reserve("balance", 130.0), RateLimitPermit)


@pytest.mark.parametrize("retry_after", [0.5, 1, 30])
def test_rule_22_the_shortest_wait_of_a_429_counts(retry_after: float) -> None:
    """To the fraction of a second."""
    scene = Scene()
    scene.received({"Retry-After": str(retry_after), "Date": DATE}, 429)
    assert scene.ask() == pytest.approx(retry_after)
    scene.clock.advance(retry_after)
    assert scene.ask() == 0.0


def test_rule_22_store_operations_are_limited_in_number() -> None:
    """Waiters queue in the process, not at the store; a caller that never returns does not block the rest."""
    scene = Scene()
    pacing = Pacing(scene.storage, "https://api-sandbox.88pay.io", max_concurrent=3)
    permits = [pacing.reserve("balance", 0.0) for _ in range(3)]
    assert all(isinstance(permit, RateLimitPermit) for permit in permits)
    later = pacing.reserve("balance", 0.0)
    assert isinstance(later, Denied)
    assert 0 < later.wait < 1
    assert "3" in later.reason
    assert isinstance(permits[0], RateLimitPermit)
    pacing.record_result(permits[0], StorageResult(0.0, {}), 0.0)
    assert isinstance(pacing.reserve("balance", 0.0), RateLimitPermit)
    assert isinstance(pacing.reserve("balance", 0.0), Denied)
    assert isinstance(pacing.reserve("transactions", 0.0), RateLimitPermit)
    assert isinstance(pacing.reserve("balance", 60.0), RateLimitPermit)


# What the service says


def test_rule_22_what_the_service_says_is_left_is_all_there_is() -> None:
    """It may count other clients; the limit applies until the reset time."""
    scene = Scene()
    scene.received(says(3, 25))
    assert scene.free() == 3
    assert scene.ask() == pytest.approx(25)
    scene.clock.advance(25)
    assert scene.free() == 57


def test_rule_22_nothing_left_means_none() -> None:
    """And for the other group it means nothing."""
    scene = Scene()
    scene.received(says(0, 25))
    assert scene.ask() == pytest.approx(25)
    assert scene.ask("transactions") == 0


def test_rule_22_calls_that_nothing_limits_teach_nothing() -> None:
    """Whatever the service announces about them."""
    scene = Scene()
    scene.received(says(0, 25), group="other")
    assert scene.ask("balance") == scene.ask("transactions") == scene.ask("other") == 0


def test_rule_22_a_429_says_for_how_long() -> None:
    """In seconds, or by a date on the service's own clock; any other status does not."""
    for requested in ("40", formatdate(WALL + 40, usegmt=True)):
        scene = Scene()
        scene.received({"date": DATE, "RETRY-AFTER": requested}, status=503)
        assert scene.ask() == 0
        scene.received({"date": DATE, "RETRY-AFTER": requested}, status=429)
        assert scene.ask() == pytest.approx(40)
        scene.clock.advance(40)
        assert scene.ask() == 0


def test_rule_22_a_429_counts_also_where_nothing_was_left_anyway() -> None:
    """The longer cooldown applies, in any order of the responses."""
    for order in ((1, 2), (2, 1)):
        scene = Scene()
        for number in order:
            scene.received(*((says(0, 2), 200) if number == 1 else (says(0, 2, Retry_After="50"), 429)))
        assert scene.ask() == pytest.approx(50)


def test_rule_22_responses_arrive_out_of_order() -> None:
    """Of one window, the least that was said counts, in whatever order it arrives."""
    left = list(range(10))
    random.Random(0).shuffle(left)
    scene = Scene()
    for remaining in [each + 5 for each in left]:
        scene.received(says(remaining, 30))
    assert scene.free() == 5
    scene.received(says(50, 30))  # a straggler
    assert scene.ask() > 0


def test_rule_22_what_the_storage_rejects_costs_nothing_of_what_was_announced() -> None:
    """A rejected acquisition consumes nothing."""
    scene = Scene()
    assert Scene(scene.storage, scene.clock).free() == 60
    scene.received(says(10, 100))
    assert all(scene.ask() for _ in range(50))
    scene.clock.advance(62)
    assert scene.free() == 10


NONSENSE: list[Mapping[str, str]] = [
    {},
    says("many", 30),
    says(-1, 30),
    says("", 30),
    says("nan", 30),
    says(0),
    says(0, -30),
    says(0, 0),
    {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "soon"},
    {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "30"},  # no Unix time
    {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1e99"},
    {"X-RateLimit-Reset": str(WALL + 30), "Date": DATE},
    {"Retry-After": "-5"},
    {"Retry-After": "soon"},
    {"Retry-After": "0"},
    {"Retry-After": "Fri, 31 Feb 2023 25:61:61 GMT"},
    {"Retry-After": formatdate(WALL - 500, usegmt=True), "Date": DATE},
]


@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize("fields", NONSENSE, ids=repr)
def test_rule_22_nonsense_is_ignored(fields: Mapping[str, str], status: int) -> None:
    """It neither delays a request nor replaces an earlier limit."""
    scene = Scene()
    scene.received(fields, status)
    assert scene.ask() == 0
    scene.received(says(2, 30))
    scene.received(fields, status)
    assert scene.free() == 2


def test_rule_22_a_429_without_a_usable_retry_after_still_has_the_other_fields() -> None:
    """What makes no sense hides nothing."""
    scene = Scene()
    scene.received(says(0, 30, Retry_After="soon"), status=429)
    assert scene.ask() == pytest.approx(30)


_VALUES = st.one_of(
    st.text(string.printable, max_size=20),
    st.text(max_size=20),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.integers(-(10**5), 10**5).map(lambda seconds: str(WALL + seconds)),
    st.integers(-(10**5), 10**5).map(lambda seconds: formatdate(WALL + seconds, usegmt=True)),
)
_NAMES = st.sampled_from(["X-RateLimit-Limit", "X-RateLimit-Remaining", "x-ratelimit-reset", "Retry-After", "Date"])


@settings(max_examples=examples(300), deadline=None)
@example([({"Retry-After": "999999999999"}, 429)])
@example([({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "999999999999"}, 200)])
@given(st.lists(st.tuples(st.dictionaries(_NAMES, _VALUES), st.sampled_from([200, 401, 429, 503])), max_size=4))
def test_rule_22_whatever_the_service_reports_it_delays_no_request_for_longer_than_an_hour(
    responses: list[tuple[dict[str, str], int]],
) -> None:
    """Nothing raises, and an hour later it is as if nothing had been said."""
    scene = Scene()
    for fields, status in responses:
        scene.received(fields, status)
        assert 0 <= scene.ask() <= 3600
    scene.clock.advance(3600 + 2)
    assert scene.free() == 60
