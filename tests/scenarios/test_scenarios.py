"""The rules, each with every client library, over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pay88_adapters import (
    Credentials,
    CredentialsRejected,
    Pay88Error,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.testing import (
    Body,
    Drip,
    Garbage,
    Headers,
    HugeBody,
    Redirect,
    ResetAfterRead,
    ResetBeforeRead,
    Status,
    TooMany,
    Truncated,
)
from support.stacks import STACKS, Options, PlainResponse, Stack, last_file_position
from support.worlds import World


def ok(outcome: object) -> bool:
    """Whether a call got 200."""
    return isinstance(outcome, PlainResponse) and outcome.status == 200


def test_rule_01_a_token_is_reused_for_fifty_seconds(world: World) -> None:
    """Calls within the reuse window share one token; the next one gets another."""
    client = world.client()
    for _ in range(5):
        assert ok(client.attempt("POST", world.url))
        world.clock.advance(8)
    assert world.emulator.journal.issued == 1
    world.clock.advance(19)  # 59 seconds old
    assert ok(client.attempt("POST", world.url))
    assert world.emulator.journal.issued == 2


def test_rule_01_both_headers_travel_together(world: World) -> None:
    """What arrives is one Authorization and the session id that belongs to it, and nothing else is new."""
    client = world.client()
    assert ok(client.attempt("POST", world.url, headers={"X-Mine": "1"}))
    [call] = world.emulator.journal.select("call")
    assert call.headers["authorization"].startswith("Bearer ")
    assert call.headers["x-session-id"].startswith("sess_")
    assert call.headers["x-mine"] == "1"
    assert "x-api-key" not in call.headers


def test_rule_02_a_refresh_runs_in_the_background(world: World) -> None:
    """From 45 seconds on one refresh runs, and the call that starts it continues with the old token."""
    client = world.client()
    assert ok(client.attempt("POST", world.url))
    world.clock.advance(46)
    with world.emulator.hold("token") as held:
        assert all(ok(client.attempt("POST", world.url)) for _ in range(3))
        held.wait_for(1)
        assert world.emulator.journal.token_requests == 2
    world.settle()
    assert ok(client.attempt("POST", world.url))
    assert [call.serial for call in world.emulator.journal.select("call")] == [1, 1, 1, 1, 2]
    assert world.manager.stats().waited == 1


def test_rule_03_a_cold_start_sends_one_token_request(world: World) -> None:
    """However many concurrent requests start, one token request is sent."""
    assert all(ok(response) for response in world.client().gather(100, "POST", world.url))
    assert world.emulator.journal.token_requests == 1


def test_rule_03_all_client_libraries_share_one_fetch(make_world: Callable[..., World], kind: type[Stack]) -> None:
    """A concurrent cold start of every client library through one manager sends one token request."""
    world = make_world()
    clients = [each(world.manager, Options()) for each in STACKS]
    with ThreadPoolExecutor(len(clients)) as pool:
        outcomes = list(pool.map(lambda client: client.gather(20, "POST", world.url), clients))
    for client in clients:
        client.close()
    assert all(ok(response) for responses in outcomes for response in responses)
    assert world.emulator.journal.token_requests == 1


def test_rule_05_the_budget_rejects_before_the_service_would(world: World) -> None:
    """Every attempt counts, and the eleventh in a minute is not sent."""
    client = world.client()
    world.emulator.faults.add(Status(500), on="token", times=None, after=1)
    assert ok(client.attempt("POST", world.url))
    for _ in range(70):
        world.manager.invalidate(world.manager.get_token()) if world.clock.now() == 1000 else None
        world.as_time_passes(lambda: client.attempt("POST", world.url))
        world.clock.advance(1)
    journal = world.emulator.journal
    assert 5 < journal.max_in_window(60) <= 10
    assert not [entry for entry in journal.select("token") if entry.status == 429]


@pytest.mark.parametrize(
    "fault",
    [Status(500), TooMany(retry_after=600), Status(403), ResetAfterRead(), Status(404), Body(b"{}")],
    ids=lambda fault: type(fault).__name__,
)
def test_rule_06_a_stale_token_is_attached_while_none_can_be_fetched(world: World, fault: Any) -> None:
    """Past its window and not past its expiry less the skew, an old token is better than an error."""
    client = world.client()
    assert ok(client.attempt("POST", world.url))
    world.emulator.faults.add(fault, on="token", times=None)
    world.clock.advance(50)
    assert ok(world.as_time_passes(lambda: client.attempt("POST", world.url)))
    assert ok(world.as_time_passes(lambda: client.attempt("POST", world.url)))
    world.clock.advance(10)
    assert isinstance(world.as_time_passes(lambda: client.attempt("POST", world.url)), Pay88Error)
    assert world.emulator.journal.calls == 3


def test_rule_06_a_call_waits_for_a_short_bar_and_not_for_a_long_one(world: World) -> None:
    """With no token at all a request waits for a cooldown that ends within ``max_wait``, and else fails fast."""
    client = world.client()
    world.emulator.faults.add(TooMany(retry_after=10), on="token")
    assert ok(world.as_time_passes(lambda: client.attempt("POST", world.url)))
    world.emulator.faults.add(TooMany(retry_after=30), on="token")
    world.clock.advance(60)
    error = client.attempt("POST", world.url)  # the clock has not moved: it cannot have waited
    assert isinstance(error, TokenRateLimited)
    assert error.retry_after == pytest.approx(30)


BODIES = sorted({name for kind in STACKS for name in kind.bodies})


@pytest.mark.parametrize("body", BODIES)
def test_rule_07_a_rejected_call_is_replayed_byte_for_byte_or_not_at_all(world: World, body: str) -> None:
    """Bodies that can be retried arrive twice, the same; for the others the caller gets the 401."""
    client = world.client()
    if body not in client.bodies:
        pytest.skip("this stack has no such body")
    assert ok(client.attempt("POST", world.url))
    world.emulator.service.refuse_current_tokens()
    outcome = client.attempt("POST", world.echo, **client.bodies[body]())
    calls = world.emulator.journal.select("call", path="/api/echo")
    assert isinstance(outcome, PlainResponse)
    if "generator" in body:
        assert outcome.status == 401
        assert len(calls) == 1
        assert ok(client.attempt("POST", world.echo, **client.bodies[body]()))
        *_, last = world.emulator.journal.select("call")
        assert last.body == calls[0].body
    else:
        assert outcome.status == 200
        assert [call.status for call in calls] == [401, 200]
        assert calls[0].body == calls[1].body
        assert bool(calls[0].body) is (body != "none")
    assert world.emulator.journal.issued == 2


@pytest.mark.parametrize("fault", [Status(500), ResetAfterRead()], ids=["500", "no response"])
def test_rule_21_the_file_of_a_call_that_is_not_retried_stays_where_it_is(world: World, fault: Any) -> None:
    """A payment that may have been executed is not retried: the caller finds its file as without the package."""
    client = world.client()
    world.emulator.faults.add(fault, on="call")
    body = client.bodies["file" if "file" in client.bodies else "multipart file"]()
    client.attempt("POST", f"{world.emulator.url}/api/transactions/charges", **body)
    assert last_file_position() != 0  # aiohttp closes files, sooner or later


def test_rule_07_a_second_401_goes_to_the_caller(world: World) -> None:
    """A call is sent at most twice, and the caller can read the response."""
    client = world.client()
    world.emulator.service.refuse_where = lambda received, now: True
    outcome = client.attempt("POST", world.url)
    assert isinstance(outcome, PlainResponse)
    assert (outcome.status, b'"code": 401' in outcome.body) == (401, True)
    assert world.emulator.journal.calls == 2
    assert world.emulator.journal.token_requests == 2


@pytest.mark.parametrize("size", [100, 5_000_000])
def test_rule_07_a_pool_of_one_connection_does_not_deadlock(world: World, size: int) -> None:
    """The rejected response gives its connection back before the token request needs it."""
    client = world.client(connections=1)
    assert ok(client.attempt("POST", world.url))
    world.emulator.service.refuse_current_tokens()
    world.emulator.faults.add(Status(401, body=b"x" * size), on="call")
    assert ok(client.attempt("POST", world.url))
    assert ok(client.attempt("POST", world.url))
    assert world.emulator.journal.issued == 2


def test_rule_07_only_the_rejected_token_is_dropped(world: World) -> None:
    """A late 401 for an old token costs nothing: the newer token is used."""
    client = world.client()
    assert ok(client.attempt("POST", world.url))
    with ThreadPoolExecutor(1) as pool, world.emulator.hold("call") as held:
        late = pool.submit(client.attempt, "POST", world.url)
        held.wait_for(1)
        world.clock.advance(46)
        with world.emulator.hold("token"):
            pass
        world.manager.get_token()  # starts the refresh
        world.settle()
        world.emulator.service.refuse_where = lambda received, now: (
            received.headers["authorization"] == world.emulator.journal.select("call")[0].headers["authorization"]
        )
        held.release()
        assert ok(late.result(30))
    assert world.emulator.journal.token_requests == 2


def test_rule_08_a_401_storm_costs_one_token_request(world: World) -> None:
    """Calls in flight that are all rejected with one token share one new token."""
    client = world.client()
    assert ok(client.attempt("POST", world.url))
    with world.emulator.hold("call") as held, ThreadPoolExecutor(1) as pool:
        storm = pool.submit(client.gather, 100, "POST", world.url)
        held.wait_for(100)
        world.emulator.service.refuse_current_tokens()
        held.release()
        assert all(ok(outcome) for outcome in storm.result(60))
    assert world.emulator.journal.token_requests == 2


def test_rule_08_consecutive_rejections_stop_costing_tokens(world: World) -> None:
    """When every new token is rejected, too, the 401s go to the callers and the budget is left alone."""
    client = world.client()
    world.emulator.service.refuse_where = lambda received, now: True
    for _ in range(25):
        outcome = client.attempt("POST", world.url)
        assert isinstance(outcome, PlainResponse)
        assert outcome.status == 401
        world.clock.advance(1)
    assert world.emulator.journal.token_requests <= 1 + 3


def test_rule_09_rejected_credentials_are_not_tried_during_the_cooldown(world: World) -> None:
    """One token request; then requests fail fast until the cooldown has ended."""
    world.emulator.service.reject_credentials(world.emulator.api_key)
    client = world.client()
    for _ in range(3):
        error = client.attempt("POST", world.url)
        assert isinstance(error, CredentialsRejected)
        assert (error.status, error.retryable) == (401, False)
    assert world.emulator.journal.token_requests == 1
    world.clock.advance(30)
    assert isinstance(client.attempt("POST", world.url), CredentialsRejected)
    assert world.emulator.journal.token_requests == 2
    assert world.emulator.journal.calls == 0


def test_rule_09_changed_credentials_are_tried_immediately(world: World) -> None:
    """A rejection does not outlive the key that was rejected."""
    current = [Credentials("sk_test_old", world.emulator.merchant_id)]
    client = world.client(world.new_manager(lambda: current[0]))
    assert isinstance(client.attempt("POST", world.url), CredentialsRejected)
    assert isinstance(client.attempt("POST", world.url), CredentialsRejected)
    assert world.emulator.journal.token_requests == 1
    current[0] = world.credentials
    assert ok(client.attempt("POST", world.url))
    assert world.emulator.journal.token_requests == 2


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (TooMany(retry_after=120), 120),
        (TooMany(retry_after="Wed, 01 Jan 2070 00:00:00 GMT"), 3600),
        (TooMany(retry_after=None, body_retry_after=90), 90),
        (TooMany(retry_after="soon", body_retry_after=None), 60),
        (TooMany(retry_after=10**9), 3600),
    ],
    ids=["seconds", "date", "body", "neither", "too long"],
)
def test_rule_10_a_429_bars_all_token_requests(world: World, fault: TooMany, seconds: float) -> None:
    """No token request is sent before the time of the service, at most for ``max_retry_after``."""
    client = world.client()
    world.emulator.faults.add(fault, on="token")
    error = client.attempt("POST", world.url)
    assert isinstance(error, TokenRateLimited)
    assert error.retry_after == pytest.approx(seconds)
    world.clock.advance(seconds - 21)
    assert isinstance(client.attempt("POST", world.url), TokenRateLimited)
    assert world.emulator.journal.token_requests == 1
    world.clock.advance(22)
    assert ok(client.attempt("POST", world.url))


RETRIED = [
    Status(500),
    Status(503),
    ResetBeforeRead(),
    ResetAfterRead(),
    Truncated(),
    Garbage(),
    Body(b"not json"),
    HugeBody(100_000),
    HugeBody(100_000, chunked=True),
]


@pytest.mark.parametrize("fault", RETRIED, ids=repr)
def test_rule_11_a_transient_failure_is_tried_again(world: World, fault: Any) -> None:
    """Two consecutive failures are survived within one fetch; the call does not notice."""
    world.emulator.faults.add(fault, on="token", times=2)
    assert ok(world.as_time_passes(lambda: world.client().attempt("POST", world.url)))
    assert world.emulator.journal.token_requests == 3


@pytest.mark.parametrize("fault", RETRIED, ids=repr)
def test_rule_11_an_outage_fails_fast_and_is_probed_once(world: World, fault: Any) -> None:
    """After three attempts requests fail fast; then one trial request; after the outage all requests succeed."""
    rule = world.emulator.faults.add(fault, on="token", times=None)
    client = world.client()
    error = world.as_time_passes(lambda: client.attempt("POST", world.url), step=0.05)
    assert isinstance(error, TokenEndpointUnavailable)
    assert isinstance(error, client.base_error)
    assert error.retryable
    assert error.retry_after == pytest.approx(1, abs=0.2)
    assert all(isinstance(each, TokenEndpointUnavailable) for each in client.gather(5, "POST", world.url))
    assert world.emulator.journal.token_requests == 3
    world.clock.advance(1.5)
    assert all(isinstance(each, TokenEndpointUnavailable) for each in client.gather(20, "POST", world.url))
    assert world.emulator.journal.token_requests == 4
    rule.remove()
    world.clock.advance(2.5)
    assert ok(client.attempt("POST", world.url))
    assert world.emulator.journal.calls == 1


@pytest.mark.parametrize("fault", [Redirect("/elsewhere"), Status(404), Status(400), Status(204)], ids=repr)
def test_rule_11_a_response_that_is_not_88pays_is_not_tried_again(world: World, fault: Any) -> None:
    """It is an error immediately, which is not retryable."""
    world.emulator.faults.add(fault, on="token", times=None)
    error = world.client().attempt("POST", world.url)
    assert isinstance(error, TokenEndpointUnavailable)
    assert not error.retryable
    assert len(world.emulator.journal) == 1


def test_rule_11_a_token_endpoint_that_drips_times_out(make_world: Callable[..., World]) -> None:
    """A body that comes byte by byte cannot hold a fetch for longer than its timeout and a grace."""
    world = make_world()
    world.emulator.faults.add(Drip(0.5), on="token")
    manager = world.new_manager(fetch_timeout=0.3, fetch_attempts=1)
    error = world.as_time_passes(lambda: world.client(manager).attempt("POST", world.url), step=0.02)
    assert ok(error) or isinstance(error, TokenEndpointUnavailable)


def _token(access_token: Any = "eyJ.a", session_id: Any = "sess_1", expires_in: Any = 60) -> Body:
    import json

    data = {"access_token": access_token, "session_id": session_id, "expires_in": expires_in}
    return Body(json.dumps({"data": data}).encode())


MALFORMED = [
    Body(b""),
    Body(b"null"),
    Body(b"[]"),
    Body(b"{}"),
    Body(b'"text"'),
    Body(b"<html>"),
    Body(b"\xff\xfe\x00"),
    Body(b'{"data": null}'),
    Body(b'{"data": []}'),
    Body(b'{"data": {}}'),
    Body(b"[" * 60_000),
    Body(b'{"data": {"access_token": "a", "session_id": "b"}}'),
    Body(b'{"data": {"access_token": "a", "session_id": "b", "expires_in": NaN}}'),
    Body(b'{"data": {"access_token": "a", "session_id": "b", "expires_in": Infinity}}'),
    Body(b'{"data": {"access_token": "a", "session_id": "b", "expires_in": 1' + b"0" * 5000 + b"}}"),
    *(
        _token(access_token=bad)
        for bad in ("", None, 1, ["a"], "a b", "a\r\nX-Evil: 1", "a\nb", "a\x00b", "ä", " a", "x" * 10_000)
    ),
    *(_token(session_id=bad) for bad in ("", None, 1, "s\r\nX-Evil: 1", "s\x7f", "s\u2028")),
    *(_token(expires_in=bad) for bad in (0, -1, True, None, "", "soon", "1e3", [60], 86_401, "-60")),
]


def test_rule_12_malformed_responses_never_reach_a_header(world: World) -> None:
    """More than thirty kinds of nonsense: the documented error each time, and no call is sent."""
    assert len(MALFORMED) > 30
    client = world.client(world.new_manager(fetch_attempts=1))
    for fault in MALFORMED:
        rule = world.emulator.faults.add(fault, on="token", times=None)
        error = client.attempt("POST", world.url)
        assert isinstance(error, TokenResponseInvalid), fault
        assert error.status == 200
        rule.remove()
        world.clock.advance(3700)
    assert world.emulator.journal.calls == 0


def test_rule_12_a_number_may_come_as_a_string(world: World) -> None:
    """``"60"`` is sixty seconds."""
    world.emulator.faults.add(_token(expires_in="60"), on="token")
    assert isinstance(world.client().attempt("POST", world.url), PlainResponse)
    [call] = [each for each in world.emulator.journal.select("call") if each.headers["x-session-id"] == "sess_1"]
    assert call.headers["authorization"] == "Bearer eyJ.a"


@pytest.mark.parametrize("expires_in", [0.001, 1, 2])
def test_rule_12_a_token_about_to_expire_causes_no_loop(world: World, expires_in: float) -> None:
    """Each request fetches at most one token per attempt, and the budget holds."""
    world.emulator.faults.add(_token(expires_in=expires_in), on="token", times=None)
    client = world.client()
    for _ in range(5):
        world.as_time_passes(lambda: client.attempt("POST", world.url), step=0.05)
    assert world.emulator.journal.token_requests <= 10


def test_rule_16_a_caller_that_is_cancelled_wastes_nothing(world: World) -> None:
    """The request that started the fetch is cancelled; the fetch continues, and all other requests get its token."""
    leader, followers = world.client(), world.client()
    with world.emulator.hold("token") as held, ThreadPoolExecutor(1) as pool:
        cancel = leader.start("POST", world.url)
        if cancel is None:
            pytest.skip("a thread cannot be cancelled")
        held.wait_for(1)
        following = pool.submit(followers.gather, 10, "POST", world.url)
        cancel()
        held.release()
        assert all(ok(outcome) for outcome in following.result(30))
    assert world.emulator.journal.token_requests == 1
    assert world.emulator.journal.calls == 10


def test_rule_16_a_caller_waits_no_longer_than_max_wait(world: World) -> None:
    """If the token endpoint does not respond, the caller gets an error in time; the fetch continues."""
    manager = world.new_manager(max_wait=2)
    client = world.client(manager)
    began = world.clock.now()
    with world.emulator.hold("token") as held:
        error = world.as_time_passes(lambda: client.attempt("POST", world.url))
        assert isinstance(error, TokenEndpointUnavailable)
        assert world.clock.now() - began < 5
        held.release()
    assert ok(client.attempt("POST", world.url))
    assert world.emulator.journal.token_requests == 1


def test_rule_16_slow_responses_delay_and_do_not_multiply(world: World) -> None:
    """Callers that arrive while the token endpoint is slow share its one response."""
    with ThreadPoolExecutor(1) as pool, world.emulator.hold("token") as held:
        outcomes = pool.submit(world.client().gather, 30, "POST", world.url)
        held.wait_for(1)
        world.until(lambda: world.clock.waiting >= 30)
        world.clock.advance(3)
        held.release()
        assert all(ok(each) for each in outcomes.result(30))
    assert world.emulator.journal.token_requests == 1


def test_rule_19_a_new_key_takes_effect_at_the_next_refresh(world: World) -> None:
    """The provider is called for each fetch, no request is dropped, and the old token serves until then."""
    service = world.emulator.service
    current = [world.credentials]
    requested = []

    def credentials() -> Credentials:
        requested.append(current[0])
        return current[0]

    client = world.client(world.new_manager(credentials))
    assert ok(client.attempt("POST", world.url))
    service.accept_credentials("sk_test_new", world.emulator.merchant_id)
    current[0] = Credentials("sk_test_new", world.emulator.merchant_id)
    service.reject_credentials(world.emulator.api_key)
    assert ok(client.attempt("POST", world.url))
    assert len(requested) == 1
    world.clock.advance(59)
    assert ok(client.attempt("POST", world.url))
    assert [entry.headers["x-api-key"] for entry in world.emulator.journal.select("token")] == [
        world.emulator.api_key,
        "sk_test_new",
    ]


def test_rule_19_the_callable_may_be_async(world: World) -> None:
    """An async provider works with sync and async client libraries alike."""

    async def credentials() -> Credentials:
        return world.credentials

    assert ok(world.client(world.new_manager(credentials)).attempt("POST", world.url))


def test_rule_19_a_callable_that_raises_fails_the_call_with_its_error_as_cause(world: World) -> None:
    """No request is sent, and the next call works once the callable does."""
    broken = [True]

    def credentials() -> Credentials:
        if broken[0]:
            raise LookupError("the vault is sealed")
        return world.credentials

    client = world.client(world.new_manager(credentials))
    error = client.attempt("POST", world.url)
    assert isinstance(error, Pay88Error)
    assert isinstance(error.__cause__, LookupError)
    assert len(world.emulator.journal) == 0
    broken[0] = False
    world.clock.advance(1.1)
    assert ok(client.attempt("POST", world.url))


def test_the_budget_error_says_how_long(world: World) -> None:
    """With the budget exhausted and no token left, the request fails fast and the error has ``retry_after``."""
    manager = world.new_manager(limits=("1/minute",))
    client = world.client(manager)
    world.emulator.faults.add(Headers({}), on="token")
    assert ok(client.attempt("POST", world.url))
    manager.invalidate(manager.get_token())
    error = client.attempt("POST", world.url)
    assert isinstance(error, TokenBudgetExhausted)
    assert isinstance(error, client.base_error)
    assert error.retry_after == pytest.approx(65 - 20, abs=21)
