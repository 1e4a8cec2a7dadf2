"""Snapshots that managers exchange through a shared store (rules 4, 10, 12 and 15)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pay88_adapters import ConfigurationError, Credentials, CredentialsRejected, Token, TokenEndpointUnavailable
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.snapshot import Snapshot, load, record_key

TOKEN = Token("eyJ.a.b", "sess_1", 60.0, 1_000.0)
REJECTED = Failure(CredentialsRejected, "no", status=401, server_message="no", retryable=False)


def test_rule_04_a_snapshot_travels_as_ages() -> None:
    """Whatever the reader's clock shows: the token is as old, the cooldown as far from its end."""
    reported = Snapshot(TOKEN, REJECTED, 1_020.0, 3, 998.0, {"window": {"a": 900.0, "b": 1_000.0}})
    found = load(reported.dump(1_010.0), 5.0, 76.0, 77.0)
    assert found == Snapshot(TOKEN, REJECTED, 82.0, 3, 60.0, {"window": {"a": -38.0, "b": 62.0}})
    assert found is not None
    assert found.token is not None
    assert found.token.requested_at == 61.0, "as old as it may be, for all that is known"
    assert reported.ttl(1_010.0) == 50.0
    assert load(Snapshot().dump(5.0), 1.0, 9.0, 9.0) == Snapshot()
    assert load(Snapshot(cooldown_reason=REJECTED, cooldown_until=5.0).dump(5.0), 0.0, 9.0, 9.0) == Snapshot(), (
        "it has ended"
    )


def test_rule_04_the_key_of_a_record_is_the_same_in_every_version() -> None:
    """A digest of the base URL, the API key and the merchant: processes with different versions share the record."""
    credentials = Credentials("sk_test_1", "MCH-COL-1")
    digest = hashlib.sha256(b"sk_test_1\nMCH-COL-1").hexdigest()[:16]
    key = hashlib.sha256(f"https://api.example\n{digest}".encode()).hexdigest()[:32]
    assert record_key("https://api.example", credentials) == key


def test_rule_04_a_snapshot_is_written_as_every_version_reads_it() -> None:
    """Processes with different versions of the package share a store while one replaces the other."""
    broken = Failure(TokenEndpointUnavailable, "503", status=503, retryable=True)
    reported = Snapshot(TOKEN, broken, 1_020.0, 3, 998.0, {"window": {"a": 900.0, "b": 999.75, "c": 1_000.0004}})
    document = json.loads(reported.dump(1_010.0))
    assert document == {
        "format": 1,
        "token": {"access_token": "eyJ.a.b", "session_id": "sess_1", "expires_in": 60.0, "age": 10.0},
        "bar": {
            "kind": "TokenEndpointUnavailable",
            "message": "503",
            "status": 503,
            "server_message": None,
            "retryable": True,
            "remaining": 10.0,
        },
        "failures": 3,
        "ordinary_age": 12.0,
        "spent": {},
        "history": {"window": {"a": 110.0, "b": 10.25, "c": 10.0}},
    }
    found = load(json.dumps(document), 0.0, 50.0, 50.0)
    assert found is not None
    assert (found.cooldown_reason, found.budget_entries) == (broken, {"window": {"a": -60.0, "b": 39.75, "c": 40.0}})
    del document["history"]  # as versions wrote it that counted each limit for itself
    document["spent"] = {"window": [110.0, 10.25]}
    found = load(json.dumps(document), 0.0, 50.0, 50.0)
    assert found is not None
    assert (found.token, found.budget_entries) == (Token("eyJ.a.b", "sess_1", 60.0, 40.0), {})
    document["bar"].update(message="5\r\n3", server_message="a\nb", status=None)
    found = load(json.dumps(document), 0.0, 50.0, 50.0)
    assert found is not None
    assert found.cooldown_reason == Failure(TokenEndpointUnavailable, "5  3", server_message="a b", retryable=True)


def test_rule_10_a_bar_counts_from_when_the_record_was_stored() -> None:
    """However old the store thinks that its content is: a token is as old as that, a cooldown as young as it may be."""
    reported = Snapshot(TOKEN, REJECTED, 1_020.0, budget_entries={"window": {"a": 1_000.0}}).dump(1_010.0)
    found = load(reported, 5.0, 76.0, 77.0, stored=2.0)
    assert found is not None
    assert found.token is not None
    assert (found.token.requested_at, found.cooldown_until, found.budget_entries) == (
        61.0,
        85.0,
        {"window": {"a": 65.0}},
    )


def test_rule_04_a_cooldown_that_ends_now_is_not_published() -> None:
    """And a snapshot lasts as long as the longer of token and cooldown."""
    cooling = Snapshot(cooldown_reason=REJECTED, cooldown_until=1_100.0)
    assert json.loads(cooling.dump(1_099.0))["bar"]["remaining"] == 1.0
    assert not json.loads(cooling.dump(1_100.0))["bar"]
    assert cooling.ttl(1_000.0) == 100.0
    assert Snapshot(TOKEN).ttl(1_010.0) == 50.0
    assert Snapshot(TOKEN, REJECTED, 1_100.0).ttl(1_010.0) == 90.0
    assert Snapshot(TOKEN, REJECTED, 1_100.0).ttl(2_000.0) == 0.0
    assert Snapshot().ttl(5.0) == 0.0


def test_rule_04_an_expired_token_is_not_published() -> None:
    """Nor does the rest of a snapshot get lost with it, or with what happened days ago."""
    assert json.loads(Snapshot(TOKEN).dump(1_059.9))["token"]
    assert json.loads(Snapshot(TOKEN).dump(1_060.0))["token"] is None
    later = 1_000.0 + 3 * 86_400
    reported = Snapshot(TOKEN, REJECTED, later + 20.0, 3, 998.0, {"window": {"a": 998.0}})
    assert load(reported.dump(later), 0.0, later, later) == replace(reported, token=None)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], 2),
        (["token", "access_token"], "x\r\ny"),
        (["token", "session_id"], "x\r\ny"),
        (["token", "access_token"], 7),
        (["token", "expires_in"], 86_401),
        (["token", "expires_in"], True),
        (["token", "expires_in"], "60"),
        (["token", "age"], -0.001),
        (["token"], {}),
        (["token"], [7]),
        (["bar", "kind"], "Exception"),
        (["bar", "message"], 7),
        (["bar", "message"], None),
        (["bar", "server_message"], 7),
        (["bar", "server_message"], 0),
        (["bar", "status"], "401"),
        (["bar", "remaining"], None),
        (["failures"], -1),
        (["ordinary_age"], "12"),
        (["ordinary_age"], 1e11),
        (["history"], []),
        (["history", "window"], 7),
        (["history", "window", "a"], -1),
        (["history", "window", "a"], "1"),
        (["history", "window", "a"], 10**400),
    ],
)
def test_rule_12_one_wrong_field_spoils_the_snapshot(path: list[str], value: Any) -> None:
    """Nothing of it is taken, except that an empty token is none."""
    document = json.loads(Snapshot(TOKEN, REJECTED, 1_020.0, 3, 998.0, {"window": {"a": 900.0}}).dump(1_010.0))
    assert load(json.dumps(document), 0.0, 1_000.0, 1_000.0) is not None
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    found = load(json.dumps(document), 0.0, 1_000.0, 1_000.0)
    assert found is None or (value == {} and found.token is None)


@pytest.mark.parametrize("content", ["", "[]", "7", "null", "{}", "[" * 100_000], ids=len)
def test_rule_12_what_is_no_snapshot_is_nothing(content: str) -> None:
    """Nor does it raise."""
    assert load(content, 0.0, 1_000.0, 1_000.0) is None


@pytest.mark.parametrize("seconds", [0, 86_400])
def test_rule_12_times_may_be_nothing_or_a_day(seconds: int) -> None:
    """Both ends are still times."""
    document = json.loads(Snapshot(TOKEN).dump(1_010.0))
    document["token"].update(expires_in=seconds, age=seconds)
    found = load(json.dumps(document), 0.0, 1_000.0, 1_000.0)
    assert found is not None
    assert found.token == Token("eyJ.a.b", "sess_1", seconds, 1_000.0 - seconds)


def test_rule_04_a_store_of_this_process_keeps_the_snapshot_itself() -> None:
    """With the only copy of the token, whatever age the record has meanwhile; and nothing else is a snapshot."""
    reported = Snapshot(TOKEN, refreshed_at=998.0)
    kept = reported.for_this_process(1_010.0)
    assert kept is reported
    assert load(kept, 5.0, 1_015.0, 1_015.0, stored=4.0) is kept
    assert load(None, 5.0, 1_015.0, 1_015.0) is None
    assert load(b"{}", 5.0, 1_015.0, 1_015.0) is None


def test_rule_04_managers_of_one_process_share_no_failure_that_they_would_not_share_elsewhere() -> None:
    """Its cause has the tracebacks of one manager's requests, and a provider's failure is of that manager alone."""
    broken = Failure(TokenEndpointUnavailable, "broken", status=503, retryable=True, cause=ValueError("x"))
    kept = Snapshot(TOKEN, broken, 1_020.0, 2, 998.0).for_this_process(1_010.0)
    assert kept == Snapshot(TOKEN, replace(broken, cause=None), 1_020.0, 2, 998.0)
    provider = Failure(ConfigurationError, "no credentials")
    assert Snapshot(TOKEN, provider, 1_020.0).for_this_process(1_010.0) is None


def test_rule_15_a_snapshot_shows_nothing() -> None:
    """Not in its repr."""
    assert "eyJ" not in repr(Snapshot(TOKEN))
    assert "sess_1" not in repr(Snapshot(TOKEN))


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(max_size=50) | ANYTHING.map(json.dumps), st.floats(0, 1e6))
def test_rule_12_what_a_store_holds_is_never_believed(content: str, age: float) -> None:
    """Anything that is no snapshot is nothing."""
    assert load(content, age, 1_000.0, 1_000.0) is None


@given(st.sampled_from(["format", "token", "bar", "failures", "ordinary_age", "history"]), ANYTHING)
def test_rule_12_a_field_of_any_kind_gives_a_good_snapshot_or_none(name: str, value: Any) -> None:
    """No bad value reaches a header, an instant or a count."""
    document = json.loads(Snapshot(TOKEN, REJECTED, 1_020.0, 3, 998.0).dump(1_010.0))
    found = load(json.dumps({**document, name: value}), 0.0, 1_000.0, 1_000.0)
    if found is not None:
        assert found.token in (TOKEN, None)
        assert found.cooldown_reason in (REJECTED, None)
        assert 0 <= found.failures <= 86_400
        assert found.refreshed_at <= 1_000.0


@given(st.sampled_from(["access_token", "session_id", "expires_in", "age"]), ANYTHING)
def test_rule_12_a_token_from_a_store_is_checked_like_any_other(name: str, value: Any) -> None:
    """Printable, and with times that are times."""
    document = json.loads(Snapshot(TOKEN).dump(1_010.0))
    document["token"][name] = value
    found = load(json.dumps(document), 0.0, 1_000.0, 1_000.0)
    if found is not None and found.token is not None:
        assert all(str(each).isascii() and str(each).isprintable() for each in found.token.headers().values())
        assert 0 <= found.token.expires_in <= 86_400
        assert found.token.requested_at <= 1_000.0
