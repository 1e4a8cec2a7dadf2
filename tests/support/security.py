"""What the tests of origin and their neighbours share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from pay88_adapters import (
    ConfigurationError,
    CredentialsRejected,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
)
from pay88_adapters.testing import (
    Emulator,
)
from support.proxies import Proxy
from support.stacks import (
    Outcome,
    PlainResponse,
    Stack,
)
from support.worlds import World


def ok(outcome: Outcome) -> bool:
    """Whether a call got 200."""
    return isinstance(outcome, PlainResponse) and outcome.status == 200


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy. Request it before the world: it must outlive the clients."""
    with Proxy() as proxy:
        yield proxy


@pytest.fixture
def other(world: World) -> Iterator[Emulator]:
    """Another client's server, on another port."""
    with Emulator(clock=world.clock) as emulator:
        yield emulator


@dataclass
class Scene:
    """What a situation is played with, and what came of it."""

    world: World
    client: Stack
    outcomes: list[Outcome] = field(default_factory=list)
    things: list[object] = field(default_factory=list)

    def call(self, count: int = 1, url: str | None = None, **kw: Any) -> None:
        """Make calls."""
        for _ in range(count):
            self.outcomes.append(
                self.world.as_time_passes(lambda: self.client.attempt("POST", url or self.world.url, **kw))
            )

    @property
    def key(self) -> str:
        """The API key."""
        return self.world.emulator.api_key

    def echo(self) -> bytes:
        """Return an error's body that repeats every secret there is."""
        message = " ".join(["refused:", *self.world.emulator.service.secrets()])
        return json.dumps({"status": "Error", "code": 0, "message": message, "data": message}).encode()


def _wrong_key(scene: Scene) -> None:
    scene.world.emulator.service.reject_credentials(scene.key)
    scene.call(2)
    assert isinstance(scene.outcomes[-1], CredentialsRejected)


def _connection_refused(scene: Scene) -> None:
    scene.world.emulator.stop()
    scene.call(2)
    assert isinstance(scene.outcomes[-1], TokenEndpointUnavailable)


def _token_request_times_out(scene: Scene) -> None:
    with scene.world.emulator.hold("token"):
        scene.client = scene.world.client(scene.world.new_manager(fetch_timeout=0.15, fetch_attempts=1))
        scene.outcomes.append(scene.client.attempt("POST", scene.world.url))
    assert isinstance(scene.outcomes[-1], TokenEndpointUnavailable)


def _closed(scene: Scene) -> None:
    scene.call()
    scene.world.manager.close()
    scene.call()
    assert isinstance(scene.outcomes[-1], ConfigurationError)


def _budget_exhausted(scene: Scene) -> None:
    scene.client = scene.world.client(scene.world.new_manager(limits=("1/hour",)))
    scene.call()
    scene.world.clock.advance(60)
    scene.call()
    assert isinstance(scene.outcomes[-1], TokenBudgetExhausted)
