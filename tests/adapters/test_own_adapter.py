"""The adapter that the documentation shows how to write: it obeys the rules, though it knows none."""

from __future__ import annotations

import http.client
import io
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import Credentials, CredentialsRejected, RetryPolicy, TokenManager
from pay88_adapters.testing import Emulator, RefuseToken, ResetAfterRead, Status

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return pytest.importorskip("http_client")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """The service."""
    with Emulator(call_limits=()) as emulator:
        yield emulator


@pytest.fixture
def client(module: Any, emulator: Emulator) -> Any:
    """A client that retries without delay."""
    credentials = Credentials(emulator.api_key, emulator.merchant_id)
    retry = RetryPolicy(backoff_base=0, backoff_cap=0)
    return module.Client(TokenManager(credentials, base_url=emulator.url, retry=retry))


def test_rule_03_a_cold_start_sends_one_token_request(client: Any, emulator: Emulator) -> None:
    """Twenty threads, one token."""
    with ThreadPoolExecutor(20) as pool:
        responses = list(pool.map(lambda _: client.request("POST", f"{emulator.url}/api/balance").status, range(20)))
    assert responses == [200] * 20
    assert emulator.journal.token_requests == 1


@pytest.mark.parametrize("body", [b"payment", io.BytesIO(b"some payment")])
def test_rule_07_a_rejected_call_is_retried(client: Any, emulator: Emulator, body: Any) -> None:
    """With a fresh token, byte for byte, a file from its start position."""
    if isinstance(body, io.BytesIO):
        body.seek(5)
    emulator.faults.add(RefuseToken())
    assert client.request("POST", f"{emulator.url}/api/echo", body).status == 200
    assert [(each.status, each.body) for each in emulator.journal.select("call")] == [
        (401, b"payment"),
        (200, b"payment"),
    ]
    assert emulator.journal.token_requests == 2


def test_rule_07_a_body_that_is_gone_is_not_retried(client: Any, emulator: Emulator) -> None:
    """The caller gets the 401, and the next call the fresh token."""
    emulator.faults.add(RefuseToken())
    assert client.request("POST", f"{emulator.url}/api/echo", iter([b"pay", b"ment"])).status == 401
    assert client.request("POST", f"{emulator.url}/api/echo").status == 200
    assert emulator.journal.token_requests == 2


def test_rule_13_other_calls_pass_untouched(client: Any) -> None:
    """Another origin sees no token, and the caller's own Bearer stays."""
    with Emulator() as other:
        assert client.request("GET", f"{other.url}/api/echo").status == 401
        [entry] = other.journal
        assert not {"authorization", "x-session-id"} & set(entry.headers)


def test_rule_14_the_callers_own_bearer_stays(client: Any, emulator: Emulator) -> None:
    """It goes out as it is, and any other scheme does not."""
    for scheme in ("Bearer", "Basic"):
        client.request("GET", f"{emulator.url}/api/echo", headers={"authorization": f"{scheme} mine"})
    mine, ours = emulator.journal.select("call")
    assert mine.headers["authorization"] == "Bearer mine"
    assert (mine.status, ours.status) == (401, 200)


def test_rule_18_errors_are_the_clients_own_too(module: Any, emulator: Emulator) -> None:
    """A subclass of the client's base error, that pickles."""
    manager = TokenManager(Credentials("sk_test_wrong", emulator.merchant_id), base_url=emulator.url)
    with pytest.raises(http.client.HTTPException) as caught:
        module.Client(manager).request("POST", f"{emulator.url}/api/balance")
    assert isinstance(caught.value, CredentialsRejected)
    assert type(pickle.loads(pickle.dumps(caught.value))) is module.CredentialsRejected


def test_rule_20_idempotent_requests_are_retried(client: Any, emulator: Emulator) -> None:
    """After a 503 and after a connection error."""
    emulator.faults.add(Status(503))
    emulator.faults.add(ResetAfterRead())
    assert client.request("POST", f"{emulator.url}/api/balance").status == 200
    assert emulator.journal.calls == 3


def test_rule_20_a_payment_is_sent_once(client: Any, emulator: Emulator) -> None:
    """What broke the connection is the caller's; only one that was never made is made again."""
    emulator.faults.add(ResetAfterRead())
    with pytest.raises((OSError, http.client.HTTPException)):
        client.request("POST", f"{emulator.url}/api/transactions/charges", b"{}")
    assert emulator.journal.calls == 1


def test_rule_20_a_connection_that_was_never_made(module: Any, client: Any, emulator: Emulator) -> None:
    """Is the client's own error in the end, whatever the call."""
    client.request("POST", f"{emulator.url}/api/balance")
    emulator.stop()
    with pytest.raises(module.ConnectFailed):
        client.request("POST", f"{emulator.url}/api/transactions/charges", b"{}")
