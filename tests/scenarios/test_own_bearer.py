"""Rule 14: a request with the caller's own Authorization header."""

from __future__ import annotations

import logging
from typing import Any

import multidict
import pytest
import urllib3

from pay88_adapters import (
    unmanaged,
)
from pay88_adapters.testing import (
    Emulator,
)
from support.leaks import leaked, outcome_texts
from support.security import (
    ok,
)
from support.stacks import (
    Aiohttp,
    Httpx,
    PlainResponse,
    Requests,
    Urllib3,
)
from support.worlds import World

ANY_CASE = ("Authorization", "authorization", "AUTHORIZATION")


OTHER_SCHEMES = ("Basic bWluZQ==", "Digest a=1", "Bearers mine", "Token mine", "mine")


def test_rule_14_the_callers_own_bearer_is_left_as_it_is(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Such a request is not managed: no token is fetched, nothing is added, and its 401 is the caller's.

    It is counted, and logged: the first one so that it shows.
    """
    caplog.set_level(logging.DEBUG, "pay88_adapters")
    client = world.client()
    spellings = [(name, f"{scheme} mine") for name in ANY_CASE for scheme in ("Bearer", "bearer", "BEARER")]
    for name, value in spellings:
        outcome = client.attempt("POST", world.url, headers={name: value, "X-Session-Id": "mine"})
        assert isinstance(outcome, PlainResponse)
        assert outcome.status == 401
    sent = [(entry.headers["authorization"], entry.headers["x-session-id"]) for entry in world.emulator.journal]
    assert sent == [(value, "mine") for _, value in spellings]
    assert world.manager.stats().bypassed == len(spellings)
    lines = [record for record in caplog.records if record.name == "pay88_adapters.calls"]
    assert [line.levelno for line in lines] == [logging.WARNING, *[logging.DEBUG] * (len(spellings) - 1)]
    assert not any(" mine" in line.getMessage() for line in lines)


def test_rule_14_what_is_not_ours_is_not_counted(world: World, other: Emulator) -> None:
    """Another origin's Bearer, the token endpoint, another scheme, and what is unmanaged."""
    client, mine = world.client(), {"Authorization": "Bearer mine"}
    client.attempt("POST", f"{other.url}/api/echo", headers=mine)
    client.attempt("POST", f"{world.emulator.url}/api/auth/token", headers=mine)
    client.attempt("POST", world.url, headers={"Authorization": "Basic bWluZQ=="})
    with unmanaged():
        client.attempt("POST", world.url, headers=mine)
    assert world.manager.stats().bypassed == 0


def test_rule_14_a_bearer_of_the_clients_is_left_as_it_is(world: World) -> None:
    """It makes no difference whether it was set for the call or for the client."""
    assert isinstance(world.client(headers={"authorization": "Bearer mine"}).attempt("POST", world.url), PlainResponse)
    [entry] = world.emulator.journal
    assert entry.headers["authorization"] == "Bearer mine"
    assert "x-session-id" not in entry.headers


@pytest.mark.parametrize("place", ["call", "client"])
def test_rule_14_any_other_scheme_is_replaced(world: World, place: str) -> None:
    """Each of the two fields is sent once, and it is ours, whatever the case; after a rejection, too."""
    for name, scheme in [
        *((name, OTHER_SCHEMES[0]) for name in ANY_CASE),
        *(("Authorization", s) for s in OTHER_SCHEMES),
    ]:
        headers = {name: scheme, "X-SESSION-ID" if name.isupper() else "x-session-id": "mine"}
        client = world.client(headers=headers if place == "client" else {})
        assert ok(client.attempt("POST", world.url, headers=headers if place == "call" else None))
    world.emulator.service.refuse_current_tokens()
    assert ok(client.attempt("POST", world.url, headers=headers if place == "call" else None))
    calls = world.emulator.journal.select("call")
    assert [(call.status, call.serial) for call in calls] == [*[(200, 1)] * 8, (401, 1), (200, 2)]
    assert not any("mine" in call.headers["x-session-id"] for call in calls)


def test_rule_14_fields_that_occur_twice_are_replaced_by_one(world: World) -> None:
    """However often the caller has them, the two fields are sent once; the other fields as often as they were."""
    pairs = [("Authorization", "Basic a"), ("X-Tag", "1"), ("x-session-id", "a"), ("X-Session-ID", "b"), ("X-Tag", "2")]
    client = world.client()
    headers: Any = pairs
    if isinstance(client, Urllib3):
        headers = urllib3.HTTPHeaderDict(pairs)
    elif isinstance(client, Aiohttp):
        headers = multidict.CIMultiDict(pairs)
    elif isinstance(client, Requests):
        headers = dict(reversed(pairs)) | {"X-Tag": "1, 2"}  # a mapping is all it takes
    outcome = client.attempt("POST", world.url, headers=headers)
    assert ok(outcome)
    [call] = world.emulator.journal.select("call")
    assert call.headers["x-tag"] == "1, 2"
    assert "," not in call.headers["authorization"] + call.headers["x-session-id"]
    assert not leaked(world.emulator.service.secrets(), outcome_texts(outcome))


@pytest.mark.parametrize("kind", [Urllib3, Httpx], ids=lambda kind: kind.name)  # the others reject bytes
@pytest.mark.parametrize("convert", [bytes, str])
@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_rule_14_fields_may_be_bytes(world: World, convert: type, scheme: str) -> None:
    """Names and values mean the same as bytes."""
    name: Any = b"Authorization" if convert is bytes else "Authorization"
    session: Any = b"x-session-id" if convert is bytes else "x-session-id"
    headers: Any = {name: f"{scheme} mine".encode(), session: b"mine"}
    assert isinstance(world.client().attempt("POST", world.url, headers=headers), PlainResponse)
    [call] = world.emulator.journal.select("call")
    if scheme == "Bearer":
        assert (call.headers["authorization"], call.headers["x-session-id"]) == ("Bearer mine", "mine")
        assert world.emulator.journal.token_requests == 0
    else:
        assert call.status == 200


@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_rule_14_fields_may_be_bytes_below_request(world: World, scheme: str) -> None:
    """``urlopen`` takes them as they are, where ``request`` makes them text."""
    client = world.client()
    assert isinstance(client, Urllib3)
    headers: Any = {b"Authorization": f"{scheme} mine".encode(), b"x-session-id": b"mine"}
    client.client.urlopen("POST", world.url, headers=headers, retries=False)
    [call] = world.emulator.journal.select("call")
    if scheme == "Bearer":
        assert (call.headers["authorization"], call.headers["x-session-id"]) == ("Bearer mine", "mine")
    else:
        assert call.status == 200
