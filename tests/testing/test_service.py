"""The emulator's service without a socket: what it accepts, what it counts, what it says."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pay88_adapters.testing import Answer, ManualClock, Received, RefuseToken, RejectToken, Request, Response, Service
from pay88_adapters.testing.windows import MovingWindows, largest_window

KEY, MERCHANT = "sk_test_emulator", "MCH-COL-TEST-EMULATOR"
WALL = 1_700_000_000.0
JSON = {"content-type": "application/json"}


def ask(service: Service, now: float = 0.0, key: str = KEY, merchant: str = MERCHANT) -> Response:
    """Request a token."""
    headers = {"x-api-key": key, "x-merchant-id": merchant}
    return service.handle(Request("POST", "/api/auth/token", headers), now, WALL + now)


def data(response: Response) -> dict[str, Any]:
    """Return the response's ``data``."""
    found: dict[str, Any] = json.loads(response.body)["data"]
    return found


def token(service: Service, now: float = 0.0, **who: str) -> dict[str, str]:
    """Get a token; return the two headers."""
    granted = data(ask(service, now, **who))
    return {"authorization": f"Bearer {granted['access_token']}", "x-session-id": granted["session_id"]}


def call(
    service: Service,
    headers: dict[str, str],
    now: float = 0.0,
    path: str = "/api/balance",
    method: str = "POST",
    body: bytes = b"",
) -> Response:
    """Make a call with these headers."""
    return service.handle(Request(method, path, headers, body), now, WALL + now)


def statuses(service: Service, count: int, now: float) -> list[int]:
    """Request tokens; return the statuses."""
    return [ask(service, now).status for _ in range(count)]


# Tokens


def test_a_token_comes_in_the_documented_form() -> None:
    """200, the envelope, a JWT, sixty whole seconds, and a session id that is a uuid."""
    response = ask(Service())
    envelope = json.loads(response.body)
    assert (response.status, envelope["status"], envelope["code"]) == (200, "Success", 200)
    assert envelope["data"]["access_token"].startswith("eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.")
    assert repr(envelope["data"]["expires_in"]) == "60"
    assert len(envelope["data"]["session_id"]) == len("sess_53a2cfc4-441e-4554-b560-4e008784d98e")
    assert (response.event, response.serial, response.executed) == ("issued", 1, True)


def test_every_token_request_gets_secrets_of_its_own() -> None:
    """No two tokens and no two sessions are the same, in one service or in two."""
    services = [Service(), Service()]
    issued = [token(service) for service in services for _ in range(5)]
    assert len({value for headers in issued for value in headers.values()}) == 20


def test_a_seeded_service_issues_the_same_tokens_again() -> None:
    """Two services with the same seed are indistinguishable."""
    first, second = (Service(rng=random.Random(7)) for _ in range(2))
    assert [token(first) for _ in range(3)] == [token(second) for _ in range(3)]


@pytest.mark.parametrize(("key", "merchant"), [("sk_test_other", MERCHANT), (KEY, "MCH-COL-OTHER"), ("", "")])
def test_wrong_credentials_are_rejected_in_the_documented_words(key: str, merchant: str) -> None:
    """A wrong key, a wrong merchant, or none."""
    response = ask(Service(), key=key, merchant=merchant)
    assert json.loads(response.body) == {
        "status": "Error", "code": 401, "message": "Invalid API key or merchant ID",
    }  # fmt: skip
    assert (response.status, response.event, response.executed) == (401, "unauthorized", False)


def test_a_suspended_account_is_forbidden_until_it_is_reinstated() -> None:
    """403 for token requests and for calls with a token that was good; other merchants continue."""
    service = Service()
    service.accept_credentials("sk_test_other", "MCH-COL-OTHER")
    headers = token(service)
    service.suspend()
    assert [ask(service).status, call(service, headers).status] == [403, 403]
    assert ask(service, key="sk_test_other", merchant="MCH-COL-OTHER").status == 200
    service.reinstate()
    assert [ask(service).status, call(service, headers).status] == [200, 200]


def test_old_and_new_key_are_both_good_while_a_key_is_rotated() -> None:
    """A rejected key gets no more tokens; the one it got lives on."""
    service = Service()
    headers = token(service)
    service.accept_credentials("sk_test_new")
    assert [ask(service).status, ask(service, key="sk_test_new").status] == [200, 200]
    service.reject_credentials(KEY)
    assert [ask(service).status, ask(service, key="sk_test_new").status] == [401, 200]
    assert call(service, headers).status == 200


def test_reissue_sends_the_current_token_again_with_the_life_it_has_left() -> None:
    """The same token until it expires, rejected or not; then a new one."""
    service = Service(reissue=True)
    first = data(ask(service, 0.0))
    service.refuse_current_tokens()
    again = ask(service, 59.0)
    assert data(again) == {**first, "expires_in": 1}
    assert (again.event, again.serial, service.issued) == ("reissued", 1, 1)
    assert data(ask(service, 60.0))["access_token"] != first["access_token"]


@pytest.mark.parametrize("announced", ["60", 0, -1, float("nan"), {"a": 1}])
def test_expires_in_can_be_a_lie(announced: Any) -> None:
    """Any JSON value, while the token itself lives as long as before."""
    service = Service(expires_in=announced)
    granted = ask(service)
    assert repr(data(granted)["expires_in"]) == repr(announced)


# The token endpoint's limits


def test_ten_a_minute_to_the_instant() -> None:
    """The eleventh waits until the first is sixty seconds old: not a moment less, and no longer."""
    service = Service()
    assert statuses(service, 11, 0.0) == [200] * 10 + [429]
    assert ask(service, 59.999).status == 429
    assert statuses(service, 11, 60.0) == [200] * 10 + [429]


def test_the_minute_moves() -> None:
    """Five at 0 s and five at 30 s: at 60 s only the first five are free again."""
    service = Service()
    assert statuses(service, 5, 0.0) + statuses(service, 5, 30.0) == [200] * 10
    assert statuses(service, 6, 60.0) == [200] * 5 + [429]
    assert statuses(service, 6, 90.0) == [200] * 5 + [429]


def test_a_hundred_an_hour_to_the_instant() -> None:
    """A hundred, six seconds apart, and nothing more until the first is an hour old."""
    service = Service()
    assert [ask(service, 6.0 * index).status for index in range(100)] == [200] * 100
    assert [ask(service, now).status for now in (600.0, 1800.0, 3599.999)] == [429] * 3
    assert [ask(service, 3600.0).status, ask(service, 3600.0).status] == [200, 429]


def test_a_request_with_a_429_response_does_not_count() -> None:
    """A client that keeps sending over an exhausted limit is accepted as soon as one that waited."""
    service = Service()
    statuses(service, 10, 0.0)
    assert statuses(service, 500, 30.0) == [429] * 500
    assert ask(service, 60.0).status == 200


def test_429_says_when_to_retry() -> None:
    """In the header and in the body, in whole seconds, and that is when it works."""
    service = Service()
    statuses(service, 10, 0.25)
    rejected = ask(service, 10.0)
    assert json.loads(rejected.body) == {
        "status": "Error", "code": 429, "message": "Rate limit exceeded. Please try again later.",
        "retry_after": 51,
    }  # fmt: skip
    assert dict(rejected.headers)["Retry-After"] == "51"
    assert ask(service, 61.0).status == 200


def test_a_wrong_key_costs_its_merchant_a_unit() -> None:
    """Rejected credentials count, so a client cannot retry them for nothing."""
    service = Service()
    assert [ask(service, key="sk_test_wrong").status for _ in range(10)] == [401] * 10
    assert ask(service).status == 429


def test_a_merchant_has_one_budget_whatever_its_keys() -> None:
    """Two keys of a merchant share ten a minute; another merchant has ten of its own."""
    service = Service()
    service.accept_credentials("sk_test_second")
    service.accept_credentials("sk_test_other", "MCH-COL-OTHER")
    statuses(service, 5, 0.0)
    assert [ask(service, key="sk_test_second").status for _ in range(6)] == [200] * 5 + [429]
    assert ask(service, key="sk_test_other", merchant="MCH-COL-OTHER").status == 200


@given(
    gaps=st.lists(st.integers(0, 40), max_size=60),
    limits=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 60)), min_size=1, max_size=3),
)
def test_windows_count_like_the_definition(gaps: list[int], limits: list[tuple[int, int]]) -> None:
    """For any request times: allowed exactly if no window of any limit is full."""
    windows, granted, now = MovingWindows(limits), list[int](), 0
    for gap in gaps:
        now += gap
        room = all(sum(now - at < seconds for at in granted) < count for count, seconds in limits)
        assert (windows.wait(now) == 0) is room
        if room:
            windows.hit(now)
            granted.append(now)
    for count, seconds in limits:
        assert largest_window(granted, seconds) <= count


def test_the_largest_window_is_half_open() -> None:
    """Two requests exactly a minute apart never share a minute."""
    assert largest_window([], 60) == 0
    assert largest_window([0.0, 60.0], 60) == 1
    assert largest_window([0.0, 59.9, 60.0, 119.0], 60) == 3


# Calls


def test_a_token_and_its_session_are_accepted_together_only() -> None:
    """Each header missing, and each token with the other's session, is 401."""
    service = Service()
    one, two = token(service), token(service)
    crossed = {"authorization": one["authorization"], "x-session-id": two["x-session-id"]}
    only = [{name: value} for name, value in one.items()]
    assert [call(service, headers).status for headers in (one, two)] == [200, 200]
    assert [call(service, headers).status for headers in (crossed, *only, {})] == [401] * 4


@pytest.mark.parametrize("spoil", ["bearer {}", "Bearer  {}", "{}", "Basic {}", "Bearer {}, Bearer {}"])
def test_the_authorization_field_is_read_strictly(spoil: str) -> None:
    """Only ``Bearer``, one space, and one token."""
    service = Service()
    headers = token(service)
    value = headers["authorization"].removeprefix("Bearer ")
    assert call(service, {**headers, "authorization": spoil.replace("{}", value)}).status == 401


def test_a_token_expires_at_its_lifetime_exactly() -> None:
    """Good a moment before, rejected at the instant, and the age is known either way."""
    service = Service(lifetime=60.0)
    headers = token(service, 100.0)
    assert call(service, headers, 159.999).status == 200
    expired = call(service, headers, 160.0)
    assert (expired.status, expired.serial, expired.executed) == (401, 1, False)
    assert service.trace(Request("POST", "/api/balance", headers), 160.0) == (1, 60.0)


def test_rejected_tokens_stay_rejected_and_later_ones_are_valid() -> None:
    """A revocation reaches what was issued until then and nothing else."""
    service = Service()
    old = [token(service), token(service)]
    service.refuse_current_tokens()
    new = token(service)
    assert [call(service, headers).status for headers in (*old, new)] == [401, 401, 200]


def test_one_node_of_two_can_reject_every_token() -> None:
    """The hook gets the request and the instant, and only decides about valid tokens."""
    service = Service()
    headers = token(service)
    service.refuse_where = lambda received, now: received.peer[1] % 2 == 1
    even, odd = (
        service.handle(Request("POST", "/api/balance", headers, peer=("::1", port)), 1.0, WALL) for port in (2, 3)
    )
    assert (even.status, odd.status) == (200, 401)


def test_a_charge_is_booked_each_time_it_is_sent() -> None:
    """There is no idempotency: sending it twice charges twice."""
    service = Service()
    headers = {**token(service), **JSON}
    responses = [call(service, headers, 5.0, "/api/transactions/charges", body=b'{"amount": 5}') for _ in "ab"]
    references = [data(response)["reference"] for response in responses]
    assert [charge.reference for charge in service.charges] == references
    assert len(set(references)) == 2
    assert data(responses[0])["urlCheckout"].startswith("https://")
    assert [(charge.at, charge.body) for charge in service.charges] == [(5.0, {"amount": 5})] * 2


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [({}, b"{}", 400), ({"content-type": "text/plain"}, b"{}", 400), (JSON, b"{", 400), (JSON, b"\xff", 400),
     (JSON, b"[]", 422), ({"content-type": "application/json; charset=utf-8"}, b"{}", 200)],
)  # fmt: skip
def test_a_charge_must_be_a_json_object(headers: dict[str, str], body: bytes, status: int) -> None:
    """Anything else is the caller's mistake, and books nothing."""
    service = Service()
    response = call(service, {**token(service), **headers}, path="/api/transactions/charges", body=body)
    assert (response.status, len(service.charges)) == (status, int(status == 200))


def test_a_balance_is_the_merchants_own() -> None:
    """With its id or none; another merchant's is forbidden."""
    service = Service()
    headers = token(service)
    paths = [f"/api/balance?id={MERCHANT}", "/api/balance", "/api/balance?id=MCH-COL-OTHER"]
    assert [call(service, headers, path=path).status for path in paths] == [200, 200, 403]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_echo_returns_what_it_received(method: str) -> None:
    """Any method, any body: the response contains method, length and digest."""
    service = Service()
    body = bytes(range(256)) * 5
    response = call(service, token(service), path="/api/echo?a=1", method=method, body=body)
    assert data(response) == {"method": method, "length": 1280, "sha256": hashlib.sha256(body).hexdigest()}


def test_unknown_paths_are_404_for_those_who_may_know() -> None:
    """Without a token an unknown call is 401 first; outside the API there is nothing at all."""
    service = Service()
    headers = token(service)
    assert call(service, headers, path="/api/nothing").status == 404
    assert call(service, {}, path="/api/nothing").status == 401
    assert call(service, {}, path="/favicon.ico").status == 404
    assert call(service, {}, path="/api/auth/token", method="GET").status == 404
    assert call(service, headers, path="/api/balance", method="GET").status == 404


# The calls' limits


def test_sixty_calls_a_minute_to_the_instant_and_each_group_apart() -> None:
    """Exhausted for balances, free for transactions, and free again at sixty seconds."""
    service = Service(lifetime=3600)
    headers = {**token(service), **JSON}
    assert [call(service, headers).status for _ in range(61)] == [200] * 60 + [429]
    assert call(service, headers, path="/api/transactions/charges", body=b"{}").status == 200
    assert [call(service, headers, now).status for now in (59.999, 60.0)] == [429, 200]


def test_a_thousand_calls_an_hour_to_the_instant() -> None:
    """Four seconds apart the minute never fills, and the hour does."""
    service = Service(lifetime=36_000, call_limits=((60, 60), (800, 3600)))
    headers = token(service)
    assert [call(service, headers, 4.0 * index).status for index in range(801)] == [200] * 800 + [429]
    assert [call(service, headers, now).status for now in (3599.9, 3600.0)] == [429, 200]


def test_calls_without_a_good_token_do_not_count() -> None:
    """A 401 storm leaves the merchant's limits as they were."""
    service = Service()
    headers = token(service)
    service.refuse_current_tokens()
    assert {call(service, headers).status for _ in range(100)} == {401}
    assert call(service, token(service)).status == 200


def test_call_limits_can_be_turned_off() -> None:
    """An empty tuple; the responses still carry the three fields."""
    service = Service(call_limits=())
    headers = token(service)
    responses = [call(service, headers) for _ in range(1_001)]
    assert {response.status for response in responses} == {200}
    assert int(dict(responses[-1].headers)["X-RateLimit-Remaining"]) > 0


def test_every_response_announces_the_tightest_limit() -> None:
    """The limit, the remaining requests, and the Unix time of the next available unit, rounded up."""
    service = Service()
    announced = [dict(ask(service, now).headers) for now in (0.5, 1.0)]
    assert [fields["X-RateLimit-Limit"] for fields in announced] == ["10", "10"]
    assert [fields["X-RateLimit-Remaining"] for fields in announced] == ["9", "8"]
    assert [fields["X-RateLimit-Reset"] for fields in announced] == [str(int(WALL) + 61)] * 2
    rejected = [call(service, {}), call(service, {}, path="/nothing"), ask(service, key="wrong")]
    assert all("X-RateLimit-Reset" in dict(response.headers) for response in rejected)


# Secrets


def test_no_secret_is_printed() -> None:
    """Not by the service, nor by what goes in and comes out; and it knows all of them."""
    service = Service()
    service.accept_credentials("sk_test_new")
    headers = {**token(service), **JSON, "x-api-key": KEY}
    body = json.dumps(headers).encode()
    response = ask(service)
    call(service, headers, path="/api/transactions/charges", body=body)
    printed = repr([service, response, Request("POST", "/", headers, body), service.charges])
    secrets = service.secrets()
    assert {KEY, "sk_test_new", headers["x-session-id"]} <= secrets
    assert len(secrets) == 6
    assert not [secret for secret in secrets if secret in printed]


def test_deprecated_names_work() -> None:
    """Each does what the new name does."""
    service = Service()
    assert service.refuse_where is None
    service.refuse_where = lambda received, now: True
    assert service.reject_if is service.refuse_where
    ask(service)
    service.refuse_current_tokens()
    assert [token.rejected for token in service.current_tokens(0.0)] == [True]
    service.forget_usage()
    assert {each.used for each in service.usage(0.0)} == {0}
    assert RefuseToken is RejectToken
    assert (Received, Answer) == (Request, Response)
    assert ManualClock(skips_pauses=True).skips_pauses is ManualClock(auto_advance=True).skips_pauses is True
