"""What managers share does not grow with how many there have been, and forgets nothing that still counts (rule 5)."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import pay88_adapters.engine.manager
from pay88_adapters import ConfigurationError, Credentials, TokenManager, TokenPolicy
from pay88_adapters.core.history import Window
from pay88_adapters.engine.default_clock import default_clock
from pay88_adapters.engine.forks import living
from pay88_adapters.engine.local_copy import LocalCopy
from pay88_adapters.engine.registry import KEPT
from pay88_adapters.engine.stand_ins import pickle_key
from pay88_adapters.engine.store_link import Link
from pay88_adapters.engine.store_share import Share
from pay88_adapters.events import Event
from pay88_adapters.stores.memory import MemoryStorage, MemoryStore
from pay88_adapters.testing import Emulator, ManualClock
from support.servers import until
from support.stacks import STACKS, Options, Stack

URL = "https://api.example"


def credentials(number: int) -> Credentials:
    """Return those of one merchant of many."""
    return Credentials(f"sk_test_{number}", f"MCH-COL-{number}")


def registered() -> dict[str, int]:
    """Return how much of each kind the process knows."""
    process: Any = pay88_adapters.engine.manager.PROCESS
    fleets = list(vars(process.clock)["_pay88_stores"]._clients.values())
    return {
        "shared": len(process.managers),
        "recent": len(process.managers._recent),
        "pickled": len(process._pickled),
        "fleets": len(fleets),
        "budgets": sum(len(fleet._budgets) for fleet in fleets),
        "entries": sum(len(fleet.token_entries._histories) for fleet in fleets),
    }


def alive(kind: type) -> int:
    """Return how many objects of a class there are."""
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


def rotating(number: int) -> Callable[[], Credentials]:
    """Return a credentials provider that only its manager refers to."""
    return lambda: credentials(number)


MAKERS: dict[str, Callable[[int], TokenManager]] = {
    "merchants": lambda number: TokenManager(credentials(number)),
    "providers": lambda number: TokenManager(rotating(number)),
    "base URLs": lambda number: TokenManager(credentials(0), base_url=f"https://api{number}.example"),
    "policies": lambda number: TokenManager(credentials(0), policy=TokenPolicy(reuse_for=1 + number / 1000)),
    "shares": lambda number: TokenManager(credentials(0), policy=TokenPolicy(fallback_share=1 / (number + 1))),
    "listeners": lambda number: TokenManager(credentials(0), listeners=[lambda event: None]),
    "pacing": lambda number: TokenManager(credentials(number), pacing=True),
    "clocks": lambda number: TokenManager(credentials(0), clock=ManualClock()),
    "shared merchants": lambda number: TokenManager.shared(credentials(number)),
    "shared providers": lambda number: TokenManager.shared(rotating(number)),
    "shared base URLs": lambda number: TokenManager.shared(credentials(0), base_url=f"https://api{number}.example"),
}


def make_and_drop(make: Callable[[int], TokenManager], numbers: range) -> None:
    """Make managers that use what they share, and keep none."""
    for number in numbers:
        manager = make(number)
        manager.stats()
        pickle_key(manager)


@pytest.mark.parametrize("maker", MAKERS)
def test_managers_that_are_gone_are_forgotten(maker: str) -> None:
    """Of three hundred of each kind no more is left than of a few."""
    elsewhere = len(living(TokenManager))  # of other tests; they start empty in the block, too
    with default_clock(ManualClock()):
        make_and_drop(MAKERS[maker], range(300))
        gc.collect()
        make_and_drop(MAKERS["shares"], range(40))  # whatever makes the next one
        left = registered()
        assert left.pop("shared") <= max(KEPT, 16) * 2
        assert left.pop("recent") <= KEPT
        assert all(count <= KEPT + elsewhere for count in left.values()), left
    clocks = alive(ManualClock)
    make_and_drop(MAKERS["clocks"], range(50))
    assert alive(ManualClock) <= clocks


@pytest.mark.deep
@pytest.mark.parametrize("maker", MAKERS)
def test_thousands_of_managers_leave_the_memory_where_it_was(maker: str) -> None:
    """A hundred bytes of each would show."""
    tracemalloc.start()
    try:
        make_and_drop(MAKERS[maker], range(500))
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        make_and_drop(MAKERS[maker], range(500, 2_500))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200_000


def respond(request: httpx.Request) -> httpx.Response:
    """Return a token of the merchant, as long as those of the service."""
    merchant = request.headers["x-merchant-id"]
    data = {"access_token": merchant.ljust(200, "x"), "session_id": merchant.ljust(36, "x"), "expires_in": 60}
    return httpx.Response(200, json={"data": data})


def test_a_manager_with_its_token_takes_little_memory_and_no_thread() -> None:
    """A process may have one for each of thousands of merchants."""

    def make(number: int) -> TokenManager:
        manager = TokenManager(credentials(number), base_url=URL, client=client)
        assert manager.get_token().access_token.startswith(f"MCH-COL-{number}")
        return manager

    with httpx.Client(transport=httpx.MockTransport(respond)) as client, default_clock(ManualClock()):
        managers = [make(number) for number in range(20)]  # and what they share
        threads = threading.active_count()
        gc.collect()
        tracemalloc.start()
        try:
            managers += [make(number) for number in range(1_000, 1_200)]
            until(lambda: threading.active_count() <= threads)  # a fetch has a thread, and it wakes its caller first
            gc.collect()
            used, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert used / 200 < 4_100


def test_rule_05_a_store_in_memory_keeps_the_units_and_the_token_once() -> None:
    """A merchant may have a hundred units: no copies of them, as of a store that processes share."""
    with httpx.Client(transport=httpx.MockTransport(respond)) as client, default_clock(ManualClock()):
        manager: Any = TokenManager(credentials(0), base_url=URL, client=client)
        token = manager.get_token()
        store_client = manager._state.settings.store_client
        until(lambda: not manager.stats().fetching)
        (slot,) = store_client.store._slots.values()
    assert store_client.token_entries is store_client.store.budget
    assert slot.content.token is token
    assert not slot.content.budget_entries


@pytest.mark.parametrize("kind", STACKS, ids=lambda kind: kind.name)
def test_managers_are_freed_with_their_clients(emulator: Emulator, kind: type[Stack]) -> None:
    """Nothing of a client that was closed refers to its manager, such as a class made for it."""
    managers = []
    for _ in range(3):
        manager = TokenManager(Credentials(emulator.api_key, emulator.merchant_id), base_url=emulator.url)
        managers.append(weakref.ref(manager))
        with kind(manager, Options()) as client:
            assert client.request("GET", f"{emulator.url}/api/echo").status == 200
        del manager, client
    gc.collect()
    assert [reference() for reference in managers] == [None] * 3


def test_rule_05_used_units_count_after_the_last_manager_is_gone() -> None:
    """For an hour; however many other stores are used meanwhile."""
    clock = ManualClock()
    with Emulator(clock=clock) as emulator:

        def manager() -> TokenManager:
            return TokenManager(Credentials(emulator.api_key, emulator.merchant_id), base_url=emulator.url, clock=clock)

        first = manager()
        token = first.get_token()
        del first
        gc.collect()
        for number in range(100):
            TokenManager(credentials(0), policy=TokenPolicy(fallback_share=1 / (number + 2)), clock=clock)
        gc.collect()
        assert manager().get_token() == token
        for seconds, left in ((0, [9, 99]), (66, [10, 99]), (3_600, [10, 100])):
            clock.advance(seconds)
            assert list(manager().stats().budget_left.values()) == left


def test_shared_managers_are_the_same_while_anything_refers_to_them() -> None:
    """And so are the last ones that were used; all others can be made again."""
    with default_clock(ManualClock()):
        held = TokenManager.shared(credentials(0))
        first = id(TokenManager.shared(credentials(1)))
        assert id(TokenManager.shared(credentials(1))) == first, "kept, though nothing refers to it"
        gone = weakref.ref(TokenManager.shared(credentials(1)))
        for number in range(2, 2 * KEPT):
            TokenManager.shared(credentials(number))
        gc.collect()
        assert gone() is None
        assert TokenManager.shared(credentials(0)) is held
        assert TokenManager.shared(credentials(1)) is TokenManager.shared(credentials(1))


def test_a_shared_manager_is_forgotten_though_what_it_was_made_of_refers_to_it() -> None:
    """For example, a service whose method reads the credentials or receives events."""

    class Service:
        def __init__(self) -> None:
            self.manager = TokenManager.shared(self.read, listeners=[self.receive])

        def read(self) -> Credentials:
            return credentials(0)

        def receive(self, event: Event) -> None:
            pass

    with default_clock(ManualClock()):
        services = [weakref.ref(Service()) for _ in range(KEPT + 10)]
        gc.collect()
        assert sum(ref() is not None for ref in services) <= KEPT


def test_shared_arguments_that_cannot_be_compared() -> None:
    """They are rejected, and not with an error about hashes."""

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> Credentials:
            return credentials(0)

    with pytest.raises(ConfigurationError, match="Unhashable"):
        TokenManager.shared(Unhashable())


def test_a_clock_is_collected_with_what_runs_on_it() -> None:
    """Its stores refer to it, and nothing else of the process does."""
    clock = ManualClock()
    ref, manager = weakref.ref(clock), TokenManager(credentials(0), clock=clock)
    del clock, manager
    gc.collect()
    assert ref() is None


def test_rule_05_a_memory_storage_forgets_keys_whose_entries_are_gone() -> None:
    """Not before the hour is over, whatever their limit was."""
    clock = ManualClock()
    storage: Any = MemoryStorage(clock.now)
    for number in range(100):
        storage.acquire_all([Window(f"key{number}", 10, 60)])
    assert len(storage._histories) == 100
    assert storage.holds_entries()
    clock.advance(3_599)
    storage.acquire_all([Window("other", 10, 7_200)])
    assert len(storage._histories) == 101
    clock.advance(601)
    assert storage.holds_entries()
    storage.add(Window("another", 10, 60), [0.0])
    assert set(storage._histories) == {"other", "another"}
    clock.advance(7_200)
    assert not storage.holds_entries()


def test_the_copy_of_a_shared_budget_forgets_merchants_whose_entries_are_gone() -> None:
    """And their limits, but not those of a merchant that has entries."""
    clock = ManualClock()
    store = MemoryStore(clock.now)
    budget: Any = LocalCopy(Link(store, clock), None, Share(clock, None), clock)

    def use(name: str) -> None:
        budget.acquire_all([Window(f"token/{name}", 10, 60.0)])

    for number in range(50):
        use(str(number))
    clock.advance(4_000)
    for number in range(2):
        use(str(number))
    kept = {"token/0", "token/1"}
    assert budget._limits.keys() == budget._complete_until.keys() == budget._histories.keys() == kept
    assert len(budget._known_limits) == 1


def test_rule_04_a_memory_store_forgets_records_that_have_expired() -> None:
    """And never gives a fence out twice."""
    clock = ManualClock()
    store: Any = MemoryStore(clock.now)
    fences = []
    for number in range(100):
        fencing_token = store.try_acquire_lease(f"key{number}", owner="me", known_version=0, lease=20).fencing_token
        fences.append(fencing_token)
        assert store.publish(f"key{number}", fencing_token=fencing_token, content="a token", ttl=60)
    kept = store.try_acquire_lease("long", owner="me", known_version=0, lease=5_000).fencing_token
    clock.advance(601)
    again = store.try_acquire_lease("key0", owner="you", known_version=0, lease=20).fencing_token
    assert again > fences[0]
    assert set(store._slots) == {"long", "key0"}
    assert store.publish("long", fencing_token=kept, content="a token", ttl=60)
    assert not store.publish("key0", fencing_token=fences[0], content="an old one", ttl=60)
    assert store.publish("key0", fencing_token=again, content="a new one", ttl=60)
