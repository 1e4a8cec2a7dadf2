"""Rule 18: the exceptions of adapters."""

from __future__ import annotations

import copy
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import pay88_adapters.requests
import pay88_adapters.urllib3
from pay88_adapters import (
    CircuitOpen,
    ConfigurationError,
    CredentialsRejected,
    Pay88Error,
    RetryPolicy,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.testing import (
    Body,
    Garbage,
    ResetAfterRead,
    ResetBeforeRead,
    Status,
    TooMany,
    Truncated,
)
from support.messages import faults_of
from support.security import (
    Scene,
    _budget_exhausted,
    _closed,
    _connection_refused,
    _token_request_times_out,
    _wrong_key,
)
from support.stacks import Stack
from support.worlds import World


@dataclass(frozen=True)
class Expected:
    """Expected attributes of an error."""

    kind: type[Pay88Error]
    status: int | None = None
    server_message: str | None = None
    retry_after: float | None = None
    retryable: bool = False
    network: bool = False
    """Whether its cause is a network error."""


def _token_fault(fault: Any) -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        scene.world.emulator.faults.add(fault, on="token", times=None)
        scene.call()

    return play


UNAVAILABLE = Expected(TokenEndpointUnavailable, retry_after=1, retryable=True, network=True)


ERRORS: dict[str, tuple[Callable[[Scene], None], Expected]] = {
    "bad key": (_wrong_key, Expected(CredentialsRejected, 401, "Invalid API key or merchant ID", 30)),
    "suspended": (_token_fault(Status(403)), Expected(CredentialsRejected, 403, "Access denied", 30)),
    "rate limited": (
        _token_fault(TooMany(120)),
        Expected(TokenRateLimited, 429, "Rate limit exceeded. Please try again later.", 120, retryable=True),
    ),
    "down": (
        _token_fault(Status(500)),
        Expected(TokenEndpointUnavailable, 500, "Internal server error", 1, retryable=True),
    ),
    "not 88Pay": (_token_fault(Status(404)), Expected(TokenEndpointUnavailable, 404, "Not found", 1)),
    "invalid": (_token_fault(Body(b"{}")), Expected(TokenResponseInvalid, 200, None, 1, retryable=True)),
    "reset": (_token_fault(ResetAfterRead()), UNAVAILABLE),
    "garbage": (_token_fault(Garbage()), UNAVAILABLE),
    "truncated": (_token_fault(Truncated()), UNAVAILABLE),
    "connection rejected": (_connection_refused, UNAVAILABLE),
    "timeout": (_token_request_times_out, UNAVAILABLE),
    "budget": (_budget_exhausted, Expected(TokenBudgetExhausted, retry_after=3545, retryable=True)),
    "closed": (_closed, Expected(ConfigurationError)),
}


@pytest.mark.parametrize("case", ERRORS)
def test_rule_18_errors_are_data_and_the_client_librarys_own(world: World, case: str) -> None:
    """Existing ``except`` clauses catch them, their text has the form and the seconds, and they pickle."""
    play, expected = ERRORS[case]
    scene = Scene(world, world.client())
    play(scene)
    error = scene.outcomes[-1]
    assert isinstance(error, Pay88Error)
    assert isinstance(error, expected.kind)
    assert isinstance(error, scene.client.base_error)
    assert (error.status, error.server_message, error.retryable) == (
        expected.status, expected.server_message, expected.retryable,
    )  # fmt: skip
    assert error.retry_after == (None if expected.retry_after is None else pytest.approx(expected.retry_after, abs=20))
    assert faults_of(str(error), error.retry_after) == []
    if expected.network:
        network_error = scene.client.network_error or scene.client.base_error
        assert isinstance(error.__cause__, (network_error, OSError, TimeoutError))
    for returned in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(returned) is type(error)
        assert (str(returned), returned.args) == (str(error), error.args)
        for name in ("status", "server_message", "retry_after", "retryable"):
            assert getattr(returned, name) == getattr(error, name)


def test_rule_18_every_caller_gets_an_error_of_its_own(world: World) -> None:
    """One object raised by many would collect all their tracebacks."""
    world.emulator.service.reject_credentials(world.emulator.api_key)
    client = world.client()
    errors = client.gather(10, "POST", world.url)
    assert all(isinstance(error, CredentialsRejected) and isinstance(error, client.base_error) for error in errors)
    assert len({id(error) for error in errors}) == 10


class OwnError(Pay88Error):
    """An error that a caller's own code raises, such as a test double."""


FOREIGN: dict[str, tuple[Callable[[], Pay88Error], type[Pay88Error]]] = {
    "of requests": (lambda: pay88_adapters.requests.CircuitOpen("x", retry_after=3.0), CircuitOpen),
    "of urllib3": (lambda: pay88_adapters.urllib3.CircuitOpen("x", retry_after=3.0), CircuitOpen),
    "of the core": (lambda: CircuitOpen("x", retry_after=3.0), CircuitOpen),
    "of no known kind": (lambda: Pay88Error("x", retry_after=3.0), Pay88Error),
    "of a class of the caller's": (lambda: OwnError("x", retry_after=3.0), Pay88Error),
}


def _traced(error: Pay88Error) -> Pay88Error:
    """Return *error* with what tools and callers add to exceptions."""
    vars(error).update(trace_id="t1", __notes__=["payment 17"])  # as add_note() does, since Python 3.11
    return error


@pytest.mark.parametrize("case", FOREIGN)
def test_rule_18_an_error_from_elsewhere_becomes_one_of_the_client(kind: type[Stack], case: str) -> None:
    """Whatever it carries besides."""
    make, expected = FOREIGN[case]
    error = _traced(make())
    returned = kind.adapter._errors.convert(error)
    assert isinstance(returned, expected)
    assert isinstance(returned, kind.base_error)
    assert (str(returned), returned.retry_after, vars(returned)["__notes__"]) == ("x", 3.0, ["payment 17"])
    assert returned is error or returned.__cause__ is (error if expected is Pay88Error else None)
    assert type(pickle.loads(pickle.dumps(returned))) is type(returned)


@pytest.mark.parametrize("case", FOREIGN)
def test_rule_18_an_error_of_the_callers_own_code(world: World, case: str) -> None:
    """For example, its body is the response to another managed request, which failed."""
    make, expected = FOREIGN[case]
    client = world.client()
    kind_of_body = "generator" if "generator" in client.bodies else "async generator"
    (name,) = client.bodies[kind_of_body]()

    def body() -> Iterator[bytes]:
        yield b"a"
        raise _traced(make())

    async def async_body() -> AsyncIterator[bytes]:
        yield b"a"
        raise _traced(make())

    content = body() if kind_of_body == "generator" else async_body()
    error = client.attempt("POST", world.echo, **{name: content})
    assert isinstance(error, client.base_error)
    assert isinstance(error, expected) or not isinstance(error, Pay88Error)  # aiohttp raises its own for any


@pytest.mark.parametrize("fault", [ResetBeforeRead(), Garbage(), Truncated()], ids=lambda fault: type(fault).__name__)
def test_rule_18_a_failed_request_raises_the_error_of_the_client(world: World, fault: Any) -> None:
    """A request that was sent and failed raises what it raises without the adapter."""
    client = world.client(world.new_manager(retry=RetryPolicy.none()))
    world.emulator.faults.add(fault, on="call", times=None)
    error = client.attempt("POST", world.url)
    assert isinstance(error, (client.base_error, OSError))
    assert not isinstance(error, Pay88Error)
    assert world.emulator.journal.calls == 1
