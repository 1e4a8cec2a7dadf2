"""A request with the headers of a token that the caller adds (rule 14)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import pytest

from pay88_adapters import Token
from pay88_adapters.testing import Emulator, Redirect
from support.stacks import Urllib3
from support.worlds import World

FORMS: dict[str, Callable[[Token], Mapping[str, str]]] = {
    "authorization": lambda token: {"Authorization": token.authorization},
    "attached": lambda token: token.attached,
    "headers": lambda token: token.headers(),
}
forms = pytest.mark.parametrize("form", FORMS)


@forms
def test_rule_14_a_token_that_the_caller_adds_is_sent(world: World, form: str) -> None:
    """It is a Bearer token of the caller, even if it comes from a manager."""
    other = world.new_manager().get_token()
    world.manager.get_token()
    assert world.client().request("POST", world.url, headers=FORMS[form](other)).status in {200, 401}
    (entry,) = world.emulator.journal.select("call")
    assert entry.headers["authorization"] == other.authorization
    assert world.manager.stats().bypassed == 1


@forms
def test_rule_21_a_token_that_the_caller_adds_for_another_server_is_sent_there(world: World, form: str) -> None:
    """The request is not the manager's, and passes through unchanged."""
    token = world.manager.get_token()
    with Emulator(call_limits=()) as other:
        assert world.client().request("POST", f"{other.url}/api/echo", headers=FORMS[form](token)).status == 401
        (entry,) = other.journal.select("call")
        assert entry.headers["authorization"] == token.authorization


@forms
@pytest.mark.parametrize("pooled", [False, True], ids=["pool manager", "pool"])
@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
def test_rule_14_a_redirect_of_a_request_with_the_callers_token_is_followed(
    world: World, form: str, pooled: bool
) -> None:
    """By the pool manager or by the pool, as without the package."""
    client = world.client()
    assert isinstance(client, Urllib3)
    token = world.manager.get_token()
    with ExitStack() as stack:
        world.emulator.faults.add(Redirect("/api/balance", 307), on="/api/echo")
        pools = stack.enter_context(client.client.connection_from_url(world.echo)) if pooled else client.client
        response = pools.request("POST", "/api/echo" if pooled else world.echo, headers=FORMS[form](token))
        assert response.status == 401 if form == "authorization" else 200
        assert [entry.path for entry in world.emulator.journal.select("call")] == ["/api/echo", "/api/balance"]
