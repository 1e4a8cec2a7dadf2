"""Many merchants on one client, and requests that bypass the manager, with every client library."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import pickle
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import requests

from pay88_adapters import ActivatedManager, ConfigurationError, Credentials, TokenManager, unmanaged
from pay88_adapters.engine.overrides import current_manager
from pay88_adapters.requests import attach
from pay88_adapters.testing import Entry, Status
from support.stacks import AsyncStack, Outcome, PlainResponse, Stack
from support.worlds import World


class Shop:
    """One client of a merchant of its own, and managers for two others."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.client: Stack = world.client()
        self.merchants: dict[str, TokenManager] = {"own": world.manager}
        for name in "ab":
            credentials = Credentials(f"sk_test_{name}", f"MCH-COL-{name}")
            world.emulator.service.accept_credentials(credentials.api_key, credentials.merchant_id)
            self.merchants[name] = world.new_manager(credentials)

    def active(self, name: str) -> AbstractContextManager[None]:
        """Choose a merchant."""
        return unmanaged() if name == "none" else self.merchants[name].activated()

    def call(self, tag: str) -> Outcome:
        """Send a request that *tag* identifies in the journal."""
        return self.client.attempt("GET", f"{self.world.echo}?tag={tag}")

    def whose(self, tag: str) -> list[str]:
        """Return whose token each sending of a call carried."""
        journal = self.world.emulator.journal
        owner = {each.serial: each.headers["x-merchant-id"] for each in journal.select("token") if each.serial}
        names = {self.world.emulator.merchant_id: "own", "MCH-COL-a": "a", "MCH-COL-b": "b"}

        def name(call: Entry) -> str:
            return names[owner[call.serial]] if call.serial else "none"

        return [name(call) for call in journal.select("call") if call.path.endswith(f"tag={tag}")]


@pytest.fixture
def shop(world: World) -> Shop:
    """Three merchants."""
    return Shop(world)


def fail(shop: Shop) -> None:
    """Raise inside of a block."""
    with shop.active("own"):
        shop.call("4")
        raise ValueError("mine")


def test_each_call_carries_the_token_of_the_merchant_that_is_active(shop: Shop) -> None:
    """Nested, one after another, and none again after an exception."""
    with shop.active("a"):
        shop.call("1")
        with shop.active("b"):
            shop.call("2")
            with shop.active("none"):
                shop.call("3")
            with pytest.raises(ValueError, match="mine"):
                fail(shop)
            shop.call("5")
        shop.call("6")
    shop.call("7")
    assert [shop.whose(tag) for tag in "1234567"] == [[each] for each in ("a", "b", "none", "own", "b", "a", "own")]


def test_a_crowd_of_two_merchants_never_mixes_them_up(shop: Shop) -> None:
    """Many concurrent requests on one client, some rejected or failing: each carries its own merchant's tokens."""
    world, tags = shop.world, [f"{name}{number}" for number in range(20) for name in ("a", "b", "own", "none")]
    world.emulator.service.refuse_where = lambda received, now: world.emulator.journal.count("call") < 40
    world.emulator.faults.add(Status(503), times=15, after=20)
    client = shop.client

    def one(tag: str) -> Outcome:
        with shop.active(tag.rstrip("0123456789")):
            return shop.call(tag)

    async def aone(tag: str) -> Outcome:
        assert isinstance(client, AsyncStack)
        with shop.active(tag.rstrip("0123456789")):
            return await client.asend("GET", f"{world.echo}?tag={tag}")

    def crowd() -> list[Outcome]:
        if isinstance(client, AsyncStack):
            return client.run(lambda: client.all([partial(aone, tag) for tag in tags]))
        with ThreadPoolExecutor(len(tags)) as pool:
            return list(pool.map(one, tags))

    outcomes = world.as_time_passes(crowd)
    assert all(isinstance(outcome, PlainResponse) for outcome in outcomes)
    for tag in tags:
        carried = shop.whose(tag)
        assert set(carried) == {tag.rstrip("0123456789")}, tag
        assert len(carried) == 1 or not tag.startswith("none"), "never sent again"
    assert sum(len(shop.whose(tag)) for tag in tags) > len(tags), "some were sent again"


def test_a_replay_and_a_retry_are_the_same_merchants(shop: Shop) -> None:
    """A token that is rejected, and a service that fails, with a pause in between."""
    world = shop.world
    with shop.active("a"):
        assert isinstance(shop.call("0"), PlainResponse)
        world.emulator.service.refuse_current_tokens()
        world.emulator.faults.add(Status(503), on="call", after=1)
        context = contextvars.copy_context()
    outcome = world.as_time_passes(lambda: context.run(shop.call, "1"))
    assert isinstance(outcome, PlainResponse)
    assert outcome.status == 200
    assert shop.whose("1") == ["a", "a", "a"]


def test_a_refresh_that_outlives_its_caller_is_its_merchants(shop: Shop) -> None:
    """The fetch runs on after the block has ended, and in the meantime others are active."""
    world = shop.world
    with shop.active("a"):
        shop.call("1")
        world.clock.advance(46)
        with world.emulator.hold("token") as held:
            shop.call("2")
            held.wait_for(1)
            with shop.active("b"), ThreadPoolExecutor(1) as pool:
                other = pool.submit(contextvars.copy_context().run, shop.call, "3")
                held.wait_for(2)
                held.release()
                other.result(30)
    world.settle(shop.merchants["a"])
    with shop.active("a"):
        shop.call("4")
    assert [shop.whose(tag) for tag in "1234"] == [["a"], ["a"], ["b"], ["a"]]
    requested = [entry.headers["x-merchant-id"] for entry in world.emulator.journal.select("token")]
    assert requested == ["MCH-COL-a", "MCH-COL-a", "MCH-COL-b"]


def test_unmanaged_calls_go_out_as_they_were_made(shop: Shop) -> None:
    """Nothing is added, a 401 is not replayed, and a failure not tried again."""
    with unmanaged():
        outcomes = [shop.call("1")]
        shop.world.emulator.faults.add(Status(503), on="call")
        outcomes.append(shop.call("2"))
    assert [outcome.status for outcome in outcomes if isinstance(outcome, PlainResponse)] == [401, 503]
    assert [entry.kind for entry in shop.world.emulator.journal] == ["call", "call"]
    assert not [entry for entry in shop.world.emulator.journal if "x-session-id" in entry.headers]


def test_an_active_manager_of_another_origin_leaves_calls_alone(shop: Shop) -> None:
    """It is not its call, and no longer the client's own manager's."""
    other = TokenManager(Credentials("sk_test_other", "MCH-COL-OTHER"), base_url="http://127.0.0.1:1")
    with other.activated():
        shop.call("1")
    assert shop.whose("1") == ["none"]
    assert shop.world.emulator.journal.token_requests == 0


# Contexts themselves


A: TokenManager
B: TokenManager
A, B = (TokenManager(Credentials(f"sk_test_{name}", f"MCH-COL-{name}")) for name in "ab")


def current() -> object:
    """Return what is chosen here."""
    return current_manager("own")


def test_a_thread_starts_without_unless_the_context_is_taken_along() -> None:
    """As context variables do."""
    with A.activated(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(current).result() == "own"
        assert pool.submit(contextvars.copy_context().run, current).result() is A
    assert current() == "own"


def active(manager: TokenManager) -> Iterator[object]:
    """Yield inside of the block."""
    with manager.activated():
        yield current()


async def aactive(manager: TokenManager) -> AsyncIterator[object]:
    """Yield inside of the block."""
    with manager.activated():
        yield current()


def test_generators_that_end_in_any_order_leave_nothing_behind() -> None:
    """What is chosen last, of those that are still open, counts; and at the end nothing does."""
    one, other = active(A), active(B)
    assert [next(one), next(other)] == [A, B]
    assert next(one, None) is None
    assert current() is B
    assert next(other, None) is None
    assert current() == "own"


def test_a_generator_may_end_in_another_context() -> None:
    """As that of a fixture, or of a dependency that is given up elsewhere."""
    one = active(A)
    contextvars.copy_context().run(next, one)
    assert current() == "own"
    assert next(one, None) is None
    assert current() == "own"


def test_an_async_generator_that_its_loop_closes_ends_without_an_error() -> None:
    """The loop closes it in a task of its own."""
    found: list[object] = []

    async def main() -> None:
        async for each in aactive(A):
            found.append(each)
            break
        await asyncio.get_running_loop().shutdown_asyncgens()

    asyncio.run(main())
    assert found == [A]
    assert current() == "own"


def test_a_task_keeps_what_was_chosen_where_it_was_started() -> None:
    """Also after the block there has ended; and what it chooses itself stays with it."""

    async def job(resume: asyncio.Event) -> list[object]:
        found = [current()]
        await resume.wait()
        found.append(current())
        with B.activated():
            await asyncio.sleep(0)
            found.append(current())
        return [*found, current()]

    async def main() -> list[object]:
        resume = asyncio.Event()
        with A.activated():
            task = asyncio.create_task(job(resume))
            await asyncio.sleep(0)
        resume.set()
        assert current() == "own"
        return await task

    assert asyncio.run(main()) == [A, A, B, A]


# A client without a merchant of its own


REQUIRED = ActivatedManager("https://api.example")


def managing(url_host: str = "api.example", authorization: str | None = None) -> object:
    """Return the manager for a request of that client."""
    return REQUIRED.for_request("https", url_host, 443, "/api/balance", authorization)


OF_EXAMPLE = TokenManager(Credentials("sk_test_c", "MCH-COL-c"), base_url="https://api.example")


def test_a_client_without_a_merchant_sends_no_call_without_one() -> None:
    """Not outside of a block, not in a thread that was started without the context, not for another base URL."""
    with pytest.raises(ConfigurationError, match="no manager is activated"):
        managing()
    with OF_EXAMPLE.activated(), ThreadPoolExecutor(1) as pool:
        assert managing() is OF_EXAMPLE
        with pytest.raises(ConfigurationError, match="no manager is activated"):
            pool.submit(managing).result()
    with A.activated(), pytest.raises(ConfigurationError, match=f"the activated manager for {A.base_url}"):
        managing()


def test_a_client_without_a_merchant_leaves_alone_what_any_other_does() -> None:
    """Other origins, the caller's own Bearer, and what is unmanaged."""
    assert managing("other.example") is None
    assert managing(authorization="Bearer mine") is None
    with unmanaged():
        assert managing() is None
    with OF_EXAMPLE.activated():
        assert managing("other.example") is None
        assert managing(authorization="Bearer mine") is None


def test_a_dependency_that_is_entered_in_another_context_raises() -> None:
    """Frameworks run the two halves of a generator in threads, each in a copy of the context."""
    dependency = active(OF_EXAMPLE)
    contextvars.copy_context().run(next, dependency)
    with pytest.raises(ConfigurationError, match="no manager is activated"):
        managing()
    assert contextvars.copy_context().run(next, dependency, None) is None


def test_a_session_without_a_merchant_is_pickled() -> None:
    """There is no secret in it; nor is it another one in another process."""
    session = pickle.loads(pickle.dumps(attach(requests.Session(), REQUIRED)))
    with pytest.raises(ConfigurationError, match="no manager is activated") as caught:
        session.get("https://api.example/api/balance")
    assert isinstance(caught.value, requests.RequestException)
    assert repr(copy.deepcopy(REQUIRED)) == repr(REQUIRED) == "<ActivatedManager https://api.example>"


# Decorators


@A.activated()
def decorated(value: str) -> tuple[str, object]:
    """Say what is chosen here."""
    return value, current()


@A.activated()
async def in_task(value: str) -> tuple[str, object]:
    """Say what is chosen here, after others had their turn."""
    await asyncio.sleep(0)
    return value, current()


class Service:
    """Has methods, and is called itself."""

    @A.activated()
    def method(self) -> object:
        """Say what is chosen here."""
        return current()

    @A.activated()
    async def amethod(self) -> object:
        """Say what is chosen here."""
        await asyncio.sleep(0)
        return current()

    async def __call__(self) -> object:
        await asyncio.sleep(0)
        return current()


def test_a_decorated_function_runs_with_the_manager() -> None:
    """And what is called after it does not."""
    assert decorated("x") == ("x", A)
    assert (decorated.__name__, decorated.__doc__) == ("decorated", "Say what is chosen here.")
    assert Service().method() is A
    assert unmanaged()(current)() is None
    with B.activated():
        assert decorated("x") == ("x", A)
        assert current() is B
    assert current() == "own"


def test_a_decorated_coroutine_function_runs_with_the_manager_until_it_returns() -> None:
    """Also several concurrently; the code that awaits it continues without."""

    async def main() -> list[object]:
        assert inspect.iscoroutinefunction(in_task)
        other = B.activated()(in_task.__wrapped__)  # type: ignore[attr-defined]
        found: list[object] = [*await asyncio.gather(in_task("x"), other("y"), in_task("z"))]
        found.append(await Service().amethod())
        found.append(await A.activated()(Service())())
        found.append(await A.activated()(partial(in_task, "p"))())
        found.append(await A.activated()(current_later)())
        return [*found, current()]

    expected = [("x", A), ("y", B), ("z", A), A, A, ("p", A), A, "own"]
    assert asyncio.run(main()) == expected


def current_later() -> Awaitable[object]:
    """Return a coroutine, though this is no coroutine function."""

    async def later() -> object:
        await asyncio.sleep(0)
        return current()

    return later()


def test_a_generator_is_not_decorated() -> None:
    """Its body runs after the call, so that it would silently have another merchant, or none."""
    generators: list[Any] = [active, aactive, partial(active, A)]
    for wrong in generators:
        with pytest.raises(ConfigurationError, match="use a with block"):
            A.activated()(wrong)
    for hidden in (lambda: active(A), lambda: aactive(A)):
        with pytest.raises(ConfigurationError, match="use a with block"):
            A.activated()(hidden)()
    others: list[Any] = [Service, staticmethod, 5]
    for wrong in others:
        with pytest.raises(ConfigurationError, match="decorate functions"):
            A.activated()(wrong)


def test_a_block_may_be_entered_again() -> None:
    """Also within itself; each way out undoes one way in."""
    block = A.activated()
    with block:
        with B.activated(), block:
            assert current() is A
        assert current() is A
    assert current() == "own"
    with block:
        assert current() is A
