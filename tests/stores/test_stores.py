"""The contract of every store, with the same results in all of them."""

from __future__ import annotations

import threading

import pytest

from pay88_adapters.stores.base import LeaseResult, Record, StoreView
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.stores.record_slot import RecordSlot
from support.scenes import Scene
from support.stores import about, publish

DAY = 86_400.0


def test_rule_04_an_empty_store_grants_the_lease(scene: Scene) -> None:
    """A fence and nothing else, whatever version is thought to be there."""
    for known_version in (0, 7):
        result = scene.store.try_acquire_lease(
            f"key {known_version}", owner="a", known_version=known_version, lease=scene.unit
        )
        assert result.fencing_token is not None
        assert result == LeaseResult(fencing_token=result.fencing_token)
        assert result.fencing_token > 0


def test_rule_04_all_others_get_the_remaining_seconds_of_the_lease(scene: Scene) -> None:
    """And not given another."""
    scene.store.try_acquire_lease("key", owner="a", known_version=0, lease=10 * scene.unit)
    scene.advance(scene.unit)
    result = scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=99 * scene.unit)
    assert result == LeaseResult(lease_remaining=about(scene, 9 * scene.unit))
    assert result.lease_remaining > 0
    again = scene.store.try_acquire_lease("key", owner="c", known_version=0, lease=scene.unit)
    assert again == LeaseResult(lease_remaining=about(scene, 9 * scene.unit))


def test_rule_04_the_owner_gets_its_lease_again_under_a_new_fence(scene: Scene) -> None:
    """For the new duration; the old fencing token may still publish first."""
    first = scene.store.try_acquire_lease("key", owner="a", known_version=0, lease=2 * scene.unit).fencing_token
    second = scene.store.try_acquire_lease("key", owner="a", known_version=0, lease=20 * scene.unit).fencing_token
    assert first is not None
    assert second is not None
    assert second > first
    other = scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=scene.unit)
    assert other == LeaseResult(lease_remaining=about(scene, 20 * scene.unit))


def test_rule_04_a_lease_that_ran_out_goes_to_the_next(scene: Scene) -> None:
    """Under a newer fencing token, while its old owner has to wait."""
    first = scene.store.try_acquire_lease("key", owner="a", known_version=0, lease=scene.unit).fencing_token
    scene.advance(1.1 * scene.unit)
    second = scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=10 * scene.unit).fencing_token
    assert first is not None
    assert second is not None
    assert second > first
    assert scene.store.try_acquire_lease("key", owner="a", known_version=0, lease=scene.unit).lease_remaining > 0


def test_rule_04_a_lease_ends_at_the_instant_it_was_given_for(exact: Scene) -> None:
    """Not before."""
    exact.store.try_acquire_lease("key", owner="a", known_version=0, lease=1.0)
    exact.advance(0.5)
    assert exact.store.try_acquire_lease("key", owner="b", known_version=0, lease=1.0) == LeaseResult(
        lease_remaining=0.5
    )
    exact.advance(0.5)
    assert exact.store.try_acquire_lease("key", owner="b", known_version=0, lease=1.0).fencing_token is not None


def test_rule_04_keys_have_leases_and_records_of_their_own(scene: Scene) -> None:
    """What happens to one does nothing to another."""
    publish(scene, "one")
    scene.store.try_acquire_lease("two", owner="a", known_version=0, lease=scene.unit)
    assert (
        scene.store.try_acquire_lease("three", owner="b", known_version=0, lease=scene.unit).fencing_token is not None
    )
    assert scene.store.try_acquire_lease("one", owner="b", known_version=0, lease=scene.unit).record is not None


def test_looking_shows_the_record_and_the_lease(scene: Scene) -> None:
    """Who has it and for how long, the record that is there in the meantime, and nothing where there is nothing."""
    assert scene.store.peek("key") == StoreView()
    version = publish(scene, content="a token")
    assert scene.store.peek("key") == StoreView(Record(version, "a token", about(scene, 0.0)))
    scene.store.try_acquire_lease("key", owner="a", known_version=version, lease=10 * scene.unit)
    scene.advance(scene.unit)
    look = scene.store.peek("key")
    assert look.record == Record(version, "a token", about(scene, scene.unit))
    assert (look.owner, look.lease_remaining) == ("a", about(scene, 9 * scene.unit))
    assert scene.store.peek("another") == StoreView()


def test_looking_takes_nothing(scene: Scene) -> None:
    """Any number of reads changes nothing: the next lease attempt succeeds, and the budget is the same."""
    for _ in range(3):
        assert scene.store.peek("key") == StoreView()
    fencing_token = scene.store.try_acquire_lease(
        "key", owner="a", known_version=0, lease=10 * scene.unit
    ).fencing_token
    assert scene.store.peek("key").owner == "a"
    assert fencing_token is not None
    assert scene.store.publish("key", fencing_token=fencing_token, content="a token", ttl=100 * scene.unit)
    again = scene.store.try_acquire_lease(
        "key", owner="b", known_version=fencing_token, lease=10 * scene.unit
    ).fencing_token
    assert again is not None
    assert again > fencing_token


def test_looking_shows_nothing_that_ran_out(exact: Scene) -> None:
    """Neither a lease at its end, nor a record after its ttl."""
    publish(exact, ttl=2)
    exact.store.try_acquire_lease("key", owner="a", known_version=-1, lease=exact.unit)
    exact.advance(exact.unit)
    assert (exact.store.peek("key").record is None, exact.store.peek("key").owner) == (False, "")
    exact.advance(exact.unit)
    assert exact.store.peek("key") == StoreView()


@pytest.mark.parametrize("known_version", [0, 999])
def test_rule_04_a_record_that_is_not_the_known_one_is_the_response(scene: Scene, known_version: int) -> None:
    """With its age; the lease is not granted then."""
    version = publish(scene, content="a token")
    scene.advance(2 * scene.unit)
    result = scene.store.try_acquire_lease("key", owner="b", known_version=known_version, lease=scene.unit)
    assert result == LeaseResult(record=Record(version, "a token", about(scene, 2 * scene.unit)))
    assert result.record is not None
    assert result.record.age >= 0


def test_rule_04_it_is_the_response_during_a_lease_too(scene: Scene) -> None:
    """A manager with an older version gets the record without waiting for the next one."""
    version = publish(scene)
    assert (
        scene.store.try_acquire_lease("key", owner="a", known_version=version, lease=10 * scene.unit).fencing_token
        is not None
    )
    record = scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=scene.unit).record
    assert record is not None
    assert record.version == version
    assert scene.store.try_acquire_lease("key", owner="b", known_version=version, lease=scene.unit).lease_remaining > 0


def test_rule_04_who_knows_the_record_may_replace_it(scene: Scene) -> None:
    """Every version is greater than the one before."""
    first = publish(scene, content="first")
    second = publish(scene, known_version=first, content="second")
    assert second > first
    record = scene.store.try_acquire_lease("key", owner="b", known_version=first, lease=scene.unit).record
    assert record is not None
    assert (record.version, record.content) == (second, "second")


def test_rule_04_publishing_ends_the_lease(scene: Scene) -> None:
    """The next replacement need not wait for it to run out."""
    version = publish(scene)
    assert (
        scene.store.try_acquire_lease("key", owner="b", known_version=version, lease=scene.unit).fencing_token
        is not None
    )


def test_rule_04_a_record_is_forgotten_but_never_its_fence(scene: Scene) -> None:
    """After ``keep`` the lease is granted again, with a newer fencing token."""
    version = publish(scene, ttl=1)
    scene.advance(1.1 * scene.unit)
    result = scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=10 * scene.unit)
    assert result.record is None
    assert result.fencing_token is not None
    assert result.fencing_token > version


def test_rule_04_the_count_of_fences_outlives_the_record_by_a_day(exact: Scene) -> None:
    """While other keys are in use; a lease alone is remembered as long."""
    version = publish(exact, ttl=1)
    leased = exact.store.try_acquire_lease("leased", owner="a", known_version=0, lease=exact.unit).fencing_token
    exact.advance(exact.unit + DAY)
    publish(exact, "another")
    assert publish(exact) > version
    assert publish(exact, "leased") > (leased or 0)


def test_rule_04_a_late_publication_changes_nothing(scene: Scene) -> None:
    """Its lease ran out, and another one leads: its age is unknown, and that lease continues."""
    late = scene.store.try_acquire_lease("key", owner="a", known_version=0, lease=scene.unit).fencing_token
    scene.advance(1.1 * scene.unit)
    fencing_token = scene.store.try_acquire_lease(
        "key", owner="b", known_version=0, lease=10 * scene.unit
    ).fencing_token
    assert late is not None
    assert fencing_token is not None
    assert not scene.store.publish("key", fencing_token=late, content="late", ttl=100 * scene.unit)
    assert scene.store.try_acquire_lease("key", owner="c", known_version=0, lease=scene.unit).lease_remaining > 0
    assert scene.store.publish("key", fencing_token=fencing_token, content="newer", ttl=100 * scene.unit)
    assert (
        scene.store.try_acquire_lease("key", owner="c", known_version=fencing_token, lease=scene.unit).fencing_token
        is not None
    )


def test_rule_04_a_record_is_as_old_as_what_is_in_it(scene: Scene) -> None:
    """However long its publication took: its age counts from when it was written, and never ahead of now."""
    for write_delay, age in ((0.0, 2.0), (1.0, 1.0), (2.0, 0.0), (5.0, 0.0)):
        fencing_token = scene.store.try_acquire_lease("key", owner="a", known_version=-1, lease=10 * scene.unit)
        while fencing_token.record is not None:
            fencing_token = scene.store.try_acquire_lease(
                "key", owner="a", known_version=fencing_token.record.version, lease=10 * scene.unit
            )
        assert fencing_token.fencing_token is not None
        scene.advance(2 * scene.unit)
        assert scene.store.publish(
            "key",
            fencing_token=fencing_token.fencing_token,
            content="a token",
            ttl=100 * scene.unit,
            write_delay=write_delay * scene.unit,
        )
        record = scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=1).record
        assert record is not None
        assert record.age == pytest.approx(age * scene.unit, abs=0.01 if scene.exact else 0.4)


def test_rule_04_without_a_word_it_was_written_when_the_lease_was_given(scene: Scene) -> None:
    """What is in doubt is held to be older."""
    fencing_token = scene.store.try_acquire_lease(
        "key", owner="a", known_version=0, lease=10 * scene.unit
    ).fencing_token
    assert fencing_token is not None
    scene.advance(2 * scene.unit)
    assert scene.store.publish("key", fencing_token=fencing_token, content="a token", ttl=100 * scene.unit)
    record = scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=scene.unit).record
    assert record is not None
    assert record.age == about(scene, 2 * scene.unit)


def test_rule_04_a_record_is_forgotten_at_the_instant_it_was_kept_for(exact: Scene) -> None:
    """Not before."""
    version = publish(exact, ttl=1)
    exact.advance(exact.unit - 0.5)
    assert exact.store.try_acquire_lease("key", owner="b", known_version=0, lease=1.0).record is not None
    exact.advance(0.5)
    assert (exact.store.try_acquire_lease("key", owner="b", known_version=0, lease=1.0).fencing_token or 0) > version


def test_rule_04_no_fence_is_given_out_again_after_all_was_lost() -> None:
    """However soon afterwards, and though a thousand a millisecond were given out before."""
    before, after = RecordSlot(), RecordSlot()
    fences = [
        before.try_acquire_lease(1_000.0, owner="a", known_version=0, lease=1.0).fencing_token or 0 for _ in range(999)
    ]
    assert fences == list(range(fences[0], fences[0] + 999))
    fencing_token = after.try_acquire_lease(1_000.001, owner="a", known_version=0, lease=1.0).fencing_token
    assert (fencing_token or 0) > fences[-1]
    assert not after.publish(1_000.001, fencing_token=fences[-1], content="late", ttl=60.0, write_delay=0.0)


def test_rule_04_a_clock_may_have_only_just_begun() -> None:
    """A lease that has ended has ended, also a moment after zero."""
    slot = RecordSlot()
    version = slot.try_acquire_lease(0.25, owner="a", known_version=0, lease=9.0).fencing_token or 0
    assert slot.publish(0.5, fencing_token=version, content="a token", ttl=60.0, write_delay=0.0)
    assert slot.try_acquire_lease(0.5, owner="b", known_version=version, lease=9.0).fencing_token == version + 1


def test_rule_17_a_forked_child_waits_for_no_lock_nor_lease_of_its_parent() -> None:
    """Another thread was in the middle of it, and led; here it stays there."""
    inside, leave = threading.Event(), threading.Event()

    def now() -> float:
        if threading.current_thread() is holder:
            inside.set()
            leave.wait()
        return 0.5

    store = MemoryStore(now)

    def acquire(owner: str) -> LeaseResult:
        return store.try_acquire_lease("key", owner=owner, known_version=0, lease=60.0)

    holder = threading.Thread(target=acquire, args=("thread",))
    assert acquire("parent").fencing_token is not None
    assert acquire("child").lease_remaining == 60.0
    holder.start()
    try:
        inside.wait()
        store.after_fork()
        assert acquire("child").fencing_token is not None
    finally:
        leave.set()
        holder.join()


def test_rule_04_a_fence_that_was_overtaken_publishes_nothing(scene: Scene) -> None:
    """Neither does one for the second time: the record stays as it is."""
    old = scene.store.try_acquire_lease("key", owner="a", known_version=0, lease=10 * scene.unit).fencing_token
    new = publish_as(scene, owner="a", content="new")
    assert old is not None
    for fencing_token in (old, new):
        assert not scene.store.publish("key", fencing_token=fencing_token, content="old", ttl=100 * scene.unit)
    record = scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=scene.unit).record
    assert record is not None
    assert (record.version, record.content) == (new, "new")


def publish_as(scene: Scene, *, owner: str, content: str) -> int:
    """Lead again as *owner* and publish."""
    fencing_token = scene.store.try_acquire_lease(
        "key", owner=owner, known_version=0, lease=10 * scene.unit
    ).fencing_token
    assert fencing_token is not None
    assert scene.store.publish("key", fencing_token=fencing_token, content=content, ttl=100 * scene.unit)
    return fencing_token


@pytest.mark.parametrize("fencing_token", [0, -1, 1, 2, 1_000])
def test_rule_04_a_fence_that_was_never_given_out_publishes_nothing(scene: Scene, fencing_token: int) -> None:
    """An emptied store has no fencing token from before; leases stay unchanged."""
    assert not scene.store.publish("unseen", fencing_token=fencing_token, content="a token", ttl=100 * scene.unit)
    given = scene.store.try_acquire_lease("key", owner="a", known_version=0, lease=10 * scene.unit).fencing_token
    assert given is not None
    if fencing_token != given:
        assert not scene.store.publish("key", fencing_token=fencing_token, content="a token", ttl=100 * scene.unit)
        assert scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=scene.unit).lease_remaining > 0


@pytest.mark.parametrize(
    "content",
    ["", '{"token": "x"}', "ñ → 🙂", "it's; DROP TABLE\r\n%s", "x" * 100_000],
    ids=["empty", "json", "beyond ascii", "quotes", "long"],
)
def test_a_record_is_read_as_it_was_published(scene: Scene, content: str) -> None:
    """Character by character, under any key and owner."""
    version = publish(scene, content + "key", content=content)
    record = scene.store.try_acquire_lease(content + "key", owner=content, known_version=0, lease=scene.unit).record
    assert record is not None
    assert (record.version, record.content) == (version, content)


def test_rule_15_a_record_does_not_show_its_content(scene: Scene) -> None:
    """It is a token."""
    publish(scene, content="a-secret-token")
    assert "a-secret-token" not in repr(
        scene.store.try_acquire_lease("key", owner="b", known_version=0, lease=scene.unit)
    )
