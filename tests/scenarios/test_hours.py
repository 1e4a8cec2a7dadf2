"""Whole hours with every client library, over real sockets, on a clock that is moved."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pay88_adapters import Pay88Error
from pay88_adapters.testing import (
    Fault,
    Garbage,
    Latency,
    RefuseToken,
    Request,
    ResetAfterRead,
    ResetBeforeRead,
    Status,
    TooMany,
    Truncated,
)
from support.stacks import PlainResponse
from support.worlds import World

pytestmark = pytest.mark.deep

HOUR = 3600


def budget_held(world: World) -> bool:
    """Whether the server saw no more token requests than it allows, in any window."""
    journal = world.emulator.journal
    return journal.max_in_window(60) <= 10 and journal.max_in_window(HOUR) <= 100


def test_rule_02_an_hour_of_steady_load(world: World) -> None:
    """A call every few seconds for an hour: at most 80 token requests, and only the first call waits."""
    client = world.client()
    while world.clock.now() < 1000 + HOUR:
        assert client.request("POST", world.url).status == 200
        world.settle()
        world.clock.advance(3)
    assert world.emulator.journal.token_requests <= 80
    assert world.manager.stats().waited == 1


def test_rule_08_an_hour_with_one_bad_node_of_two(world: World) -> None:
    """Every other call meets a node that rejects all tokens: the good node's calls succeed, and the budget holds."""
    count = 0

    def rejected(received: Request, now: float) -> bool:
        nonlocal count
        count += 1
        return count % 2 == 0

    client = world.client()
    world.emulator.service.refuse_where = rejected
    statuses = []
    for _ in range(HOUR):
        statuses.append(client.request("POST", world.url).status)
        world.clock.advance(1)
    assert set(statuses) <= {200, 401}
    assert statuses.count(200) >= HOUR / 2
    assert budget_held(world)
    assert all(entry.status == 200 for entry in world.emulator.journal.select("token"))
    good = [entry for entry in world.emulator.journal.select("call") if entry.event != "unauthorized"]
    assert len(good) == statuses.count(200)  # requests to the good node had a good token


TOKEN_FAULTS: list[Fault] = [
    Status(500),
    Status(503),
    TooMany(retry_after=30),
    TooMany(retry_after=200),
    ResetBeforeRead(),
    ResetAfterRead(),
    Truncated(),
    Garbage(),
    Latency(3),
    Latency(8),
    Status(403),
]
CALL_FAULTS: list[Fault] = [RefuseToken(), RefuseToken(), Status(500), TooMany(5), Latency(2), ResetAfterRead()]


def random_hour(world: World, seed: int) -> None:
    """Simulate an hour with random faults, and check the requests at the server."""
    rng = random.Random(seed)
    client = world.client()
    world.emulator.faults.random(rng.randrange(2**32), rng.choice([0.0, 0.1, 0.5]), TOKEN_FAULTS, on="token")
    world.emulator.faults.random(rng.randrange(2**32), rng.choice([0.0, 0.05, 0.2]), CALL_FAULTS, on="call")
    outage_at = rng.uniform(0, HOUR)
    while world.clock.now() < 1000 + HOUR:
        if outage_at is not None and world.clock.now() - 1000 > outage_at:
            world.emulator.faults.add(Status(502), on="token", times=rng.randrange(40))
            outage_at += rng.uniform(60, HOUR)
        if rng.random() < 0.02:
            world.emulator.service.refuse_current_tokens()
        outcome = world.as_time_passes(lambda: client.attempt("POST", world.url), step=0.5)
        assert isinstance(outcome, (PlainResponse, Pay88Error, client.base_error, OSError)), (seed, outcome)
        assert not isinstance(outcome, Pay88Error) or str(outcome), seed
        world.clock.advance(rng.choice([0.1, 1, 5, 5, 20]))
    assert budget_held(world), f"seed {seed}"
    tokens = world.emulator.journal.select("token")
    assert not [each for each in tokens if each.event == "limited" and each.fault is None], f"seed {seed}"
    oldest = world.emulator.journal.oldest_token_age
    assert oldest is None or oldest <= 60, f"seed {seed}"


def test_rule_05_a_random_hour(make_world: Callable[..., World]) -> None:
    """With any faults, the budget holds by the server's count, and every failed request has a reason."""
    random_hour(make_world(), seed=5)


@pytest.mark.figures
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(12))
def test_rule_05_many_random_hours(make_world: Callable[..., World], seed: int) -> None:
    """The same, for seeds that stay the same."""
    random_hour(make_world(), seed)
