"""The store of one process, where it has no counterpart elsewhere: its members, interruptions, and what it forgets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pay88_adapters.core.history import MIN_TTL, Acquisition, Cooldown, Entry, Window
from pay88_adapters.stores.base import LeaseResult, Member
from pay88_adapters.stores.members import HORIZON
from pay88_adapters.stores.memory import MemoryStore

WINDOW = Window("key", 9, 60.0)


class Time:
    """A clock that the test sets. The next reading of it can be interrupted, as by a signal handler."""

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self.interruption: Callable[[], None] | None = None

    def __call__(self) -> float:
        interruption, self.interruption = self.interruption, None
        if interruption is not None:
            interruption()
        return self.seconds


class Scene:
    """A store on a clock that the test sets."""

    def __init__(self) -> None:
        self.now = Time()
        self.store = MemoryStore(self.now)

    def lead(self, owner: str, key: str = "key") -> LeaseResult:
        """Attempt to acquire the lease of *key*."""
        return self.store.try_acquire_lease(key, owner=owner, known_version=0, lease=1.0)

    def kept(self) -> tuple[int, int, int, int]:
        """Return how many records, members, histories and cooldowns are in memory."""
        budget = self.store.budget
        return len(self.store._slots), len(self.store._members), len(budget._histories), len(budget._cooldowns)


@pytest.fixture
def scene() -> Scene:
    """Return a store that is empty."""
    return Scene()


def test_rule_24_a_lease_attempt_names_the_other_members(scene: Scene) -> None:
    """With their divisors, and the seconds since their last attempt; none after an hour, nor for what is no member."""
    assert scene.lead("a/1").others == ()
    scene.now.seconds += 30.0
    assert scene.lead("b/1").others == (Member("a", 30.0, 4),)
    assert scene.lead("no member").others == ()
    scene.now.seconds += HORIZON - 30.5
    assert scene.lead("b/2").others == (Member("a", HORIZON - 0.5, 4),)
    scene.now.seconds += 0.5
    assert scene.lead("b/3").others == ()


def test_rule_24_too_many_members_are_not_named(scene: Scene) -> None:
    """Ninety-nine others are; with a hundred none has any part."""
    results = [scene.lead(f"{number}/1") for number in range(101)]
    assert [len(result.others) for result in results[98:]] == [98, 99, 0]


def test_rule_24_a_member_that_was_away_for_an_hour_is_a_new_one(scene: Scene) -> None:
    """It starts with a quarter again: its part may have been given to others."""
    scene.lead("a/1")
    scene.now.seconds += HORIZON - 1.0
    scene.lead("b/1")
    scene.now.seconds += 1.0
    assert scene.lead("a/1").divisor == 4
    scene.now.seconds += 30.0
    assert scene.lead("a/1").divisor == 2


def test_rule_04_a_record_says_when_it_was_written_and_when_it_was_stored(scene: Scene) -> None:
    """Its publication may have taken a while. A lease that has just ended has no holder."""
    fencing_token = scene.store.try_acquire_lease("key", owner="a/1", known_version=0, lease=10.0).fencing_token
    assert fencing_token is not None
    scene.now.seconds += 3.0
    assert scene.store.peek("key").owner == "a/1"
    assert scene.store.publish("key", fencing_token=fencing_token, content="a token", ttl=60.0, write_delay=1.0)
    scene.now.seconds += 5.0
    record = scene.store.peek("key").record
    assert record is not None
    assert (record.age, record.stored) == (7.0, 5.0)
    scene.store.try_acquire_lease("key", owner="b/1", known_version=fencing_token, lease=10.0)
    scene.now.seconds += 10.0
    assert scene.store.peek("key").owner == ""


def test_rule_17_what_interrupts_a_claim_sees_the_entries_and_takes_none(scene: Scene) -> None:
    """It may try again in a moment."""
    budget = scene.store.budget
    acquisition = Acquisition([WINDOW], ["a"])
    assert budget.acquire(acquisition).wait == 0.0
    interrupted = []
    scene.now.interruption = lambda: interrupted.append(budget.acquire(acquisition._replace(ids=["b"])))
    assert budget.acquire(acquisition._replace(ids=["c"])).wait == 0.0
    (result,) = interrupted
    assert 0.0 < result.wait < 1.0
    assert [entry.id for entry in result.histories["key"]] == ["a"]
    assert [entry.id for entry in budget.history("key")] == ["a", "c"]


def test_rule_17_what_interrupts_a_lease_attempt_publishes_nothing(scene: Scene) -> None:
    """The record is as it was, and what was interrupted acquires the lease."""
    store = scene.store
    fencing_token = scene.lead("a/1").fencing_token
    assert fencing_token is not None
    interrupted = []
    scene.now.interruption = lambda: interrupted.append(
        store.publish("key", fencing_token=fencing_token, content="a token", ttl=60.0)
    )
    assert scene.lead("a/1").fencing_token == fencing_token + 1
    assert interrupted == [False]
    assert store.peek("key").record is None


def test_rule_05_an_entry_is_kept_including_the_instant_at_which_it_leaves(scene: Scene) -> None:
    """For an hour and a minute at least, whatever window it was acquired in."""
    budget = scene.store.budget
    assert not budget.holds_entries()
    budget.merge("key", [Entry("1", MIN_TTL + 0.01)], 60.0)
    assert not budget.holds_entries()
    budget.merge("key", [Entry("2", MIN_TTL), Entry("3", 60.0)], 60.0)
    assert [entry.id for entry in budget.history("key")] == ["2", "3"]
    assert budget.get_moving_window("key", 9, 60) == (scene.now.seconds - 60.0, 1)
    assert budget.get_moving_window("key", 9, 59) == (scene.now.seconds, 0)
    scene.now.seconds += 0.01
    assert [entry.id for entry in budget.history("key")] == ["3"]
    assert budget.holds_entries()
    scene.now.seconds += MIN_TTL
    assert not budget.holds_entries()


def test_rule_10_a_cooldown_is_as_old_as_it_was(scene: Scene) -> None:
    """Of two that end together the first stays; at its end it has ended."""
    budget = scene.store.budget
    budget.start_cooldown("key", Cooldown(60.0, 20.0, "first"))
    budget.start_cooldown("key", Cooldown(40.0, 0.0, "second"))
    assert budget.cooldown("key") == Cooldown(60.0, 20.0, "first")
    scene.now.seconds += 39.5
    assert budget.cooldown("key") == Cooldown(60.0, 59.5, "first")
    scene.now.seconds += 0.5
    assert budget.cooldown("key") is None


def test_what_is_over_leaves_the_memory_every_ten_minutes(scene: Scene) -> None:
    """Records, members, histories and cooldowns of merchants that are gone. A lease that runs is not over."""
    scene.lead("a/1", "gone")
    scene.store.try_acquire_lease("leased", owner="b/1", known_version=0, lease=100_000.0)
    scene.store.budget.acquire(Acquisition([WINDOW._replace(key="gone")], ["a"]))
    scene.store.budget.start_cooldown("gone", Cooldown(60.0, 0.0, ""))
    scene.store.budget.start_cooldown("barred", Cooldown(100_000.0, 0.0, ""))
    assert scene.kept() == (2, 2, 1, 2)

    def use() -> None:
        scene.lead("c/1")
        scene.store.budget.acquire(Acquisition([WINDOW], [str(scene.now.seconds)]))

    scene.now.seconds += 599.9
    use()
    assert scene.kept() == (3, 3, 2, 2), "not at every operation"
    scene.now.seconds += 0.1
    use()
    assert scene.kept() == (2, 3, 2, 1)
    for _ in range(6):
        scene.now.seconds += 600.0
        use()
    assert scene.kept() == (2, 1, 1, 1)
