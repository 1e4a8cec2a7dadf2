"""Rule 20, and what of rule 7 goes with it: the decisions alone, then with every client library, over real sockets."""

from __future__ import annotations

import ssl
from random import Random
from typing import Any

import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st

import pay88_adapters.requests
import pay88_adapters.urllib3
from pay88_adapters import ConfigurationError, Pay88Error, RetryPolicy
from pay88_adapters.core.retry import Attempts, ConnectionFailure
from pay88_adapters.events import CallRetried, Event
from pay88_adapters.testing import Garbage, Latency, RefuseToken, ResetAfterRead, ResetBeforeRead, Status, TooMany
from support.stacks import BYTES, PlainResponse, Requests, Stack, Urllib3
from support.worlds import World

# httpx leaves the iterator of a body that it cannot send to the end, and trio says so.
pytestmark = pytest.mark.filterwarnings(r"ignore:Async generator 'httpx\._content\.:ResourceWarning")

FOREVER = float("inf")
TRANSIENT = [500, 502, 503, 504]
BROKEN = [ResetBeforeRead(), ResetAfterRead(), Garbage()]


class RetryRecorder(list[CallRetried]):
    """A listener that stores the events of retries."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, CallRetried):
            self.append(event)


def ok(outcome: object) -> bool:
    """Whether a call got 200."""
    return isinstance(outcome, PlainResponse) and outcome.status == 200


def charge(world: World, client: Stack) -> Any:
    """Try to charge a customer."""
    url = f"{world.emulator.url}/api/transactions/charges"
    return world.as_time_passes(
        lambda: client.attempt("POST", url, headers={"Content-Type": "application/json"}, **client.bodies["bytes"]())
    )


# --- the decisions ------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [*TRANSIENT, 429, ConnectionFailure(), ConnectionFailure(not_sent=True)], ids=repr)
def test_rule_20_what_a_safe_call_is_retried_after(outcome: int | ConnectionFailure) -> None:
    """As often as the policy says, the first attempt included."""
    attempts = Attempts(RetryPolicy(attempts=4), FOREVER)
    pauses = [attempts.pause(outcome, 0.0, lambda: 0.5, safe=True) for _ in range(4)]
    assert pauses == [0.25, 0.5, 1.0, None]
    assert attempts.made == 4


@pytest.mark.parametrize(
    "outcome", [200, 204, 302, 400, 401, 403, 404, 422, 501, 505, ConnectionFailure(permanent=True)], ids=repr
)
def test_rule_20_what_no_call_is_retried_after(outcome: int | ConnectionFailure) -> None:
    """A retry would get the same response, or the error is unrelated to the network."""
    assert Attempts(RetryPolicy(), FOREVER).pause(outcome, 0.0, lambda: 0.5, safe=True) is None


@pytest.mark.parametrize("outcome", [429, ConnectionFailure(not_sent=True), *TRANSIENT, ConnectionFailure()], ids=repr)
def test_rule_20_a_call_that_may_have_been_executed_is_not_retried(outcome: int | ConnectionFailure) -> None:
    """One that is not safe is retried only where the service has certainly not acted on it."""
    pause = Attempts(RetryPolicy(), FOREVER).pause(outcome, 0.0, lambda: 0.5, safe=False)
    assert (pause is not None) is (outcome in (429, ConnectionFailure(not_sent=True)))


@given(
    policy=st.builds(
        RetryPolicy,
        attempts=st.integers(1, 50),
        backoff_base=st.floats(0, 1),
        backoff_cap=st.floats(1, 60),
        max_retry_after=st.floats(0, 100),
    ),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=60, max_size=60),
    retry_after=st.none() | st.floats(-1e6, 1e6),
    deadline=st.floats(0, 1000),
)
def test_rule_20_pauses_stay_within_their_bounds(
    policy: RetryPolicy, draws: list[float], retry_after: float | None, deadline: float
) -> None:
    """No pause is longer than its bound or what the service retry_after for, and none ends after the deadline."""
    attempts, now, made = Attempts(policy, deadline), 0.0, 1
    draw = iter(draws).__next__
    while (pause := attempts.pause(503, now, draw, safe=True, retry_after=retry_after)) is not None:
        bound = min(policy.backoff_cap, policy.backoff_base * 2.0 ** (made - 1))
        assert (retry_after or 0.0) <= pause <= max(bound, retry_after or 0.0, 0.0)
        assert pause >= 0
        assert retry_after is None or retry_after <= policy.max_retry_after
        now += pause
        made += 1
        assert now < deadline
    assert made <= policy.attempts


@pytest.mark.parametrize(
    ("method", "path", "safe"),
    [
        ("GET", "/api/anything", True),
        ("head", "/api/anything", True),
        ("OPTIONS", "/api/anything", True),
        ("POST", "/api/balance", True),
        ("POST", "/api/balance/", False),
        ("POST", "/api/transactions/charges", False),
        ("PUT", "/api/balance", False),
        ("DELETE", "/api/anything", False),
        ("PATCH", "/api/anything", False),
        ("POST", "", False),
    ],
)
def test_rule_20_what_is_safe(method: str, path: str, safe: bool) -> None:
    """Only what the documentation says has no side effects."""
    assert RetryPolicy().is_safe(method, path) is safe


def test_rule_20_what_is_about_tls_was_perhaps_sent() -> None:
    """A TLS error does not prove that nothing was sent. An untrusted certificate stays untrusted."""
    handshake, untrusted = ssl.SSLError("handshake"), ssl.SSLCertVerificationError("untrusted")
    broken = ConnectionError("broken")
    assert ConnectionFailure(not_sent=True).refine(broken) == ConnectionFailure(not_sent=True)
    assert ConnectionFailure(permanent=True).refine(broken) == ConnectionFailure(permanent=True)
    assert ConnectionFailure().refine(broken) == ConnectionFailure()
    broken.__cause__ = handshake
    assert ConnectionFailure(not_sent=True).refine(broken) == ConnectionFailure()
    broken.__cause__, broken.__context__ = None, untrusted
    assert ConnectionFailure(not_sent=True).refine(broken) == ConnectionFailure(permanent=True)
    assert ConnectionFailure(not_sent=True).refine(broken, but=untrusted) == ConnectionFailure(not_sent=True)


def test_rule_20_bounds_belong_to_what_is_allowed() -> None:
    """A wait of exactly ``max_retry_after`` is honoured, and a pause that ends at the deadline is too long."""
    attempts = Attempts(RetryPolicy(attempts=9, max_retry_after=30), deadline=100.0)
    assert attempts.pause(503, 0.0, lambda: 0.0, safe=True, retry_after=30.0) == 30.0
    assert attempts.pause(503, 69.9, lambda: 0.0, safe=True, retry_after=30.0) == 30.0
    assert attempts.pause(503, 70.0, lambda: 0.0, safe=True, retry_after=30.0) is None
    day = 86_400
    RetryPolicy(attempts=day, backoff_base=day, backoff_cap=day, max_retry_after=day, total_timeout=day)
    RetryPolicy(backoff_base=0, backoff_cap=0, max_retry_after=0, total_timeout=0.5)
    assert RetryPolicy.none() == RetryPolicy(attempts=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"total_timeout": "30"},
        {"attempts": 1.5},
        {"attempts": True},
        {"backoff_base": -1},
        {"backoff_base": 9},
        {"backoff_cap": float("nan")},
        {"max_retry_after": "30"},
        {"total_timeout": -1},
        {"total_timeout": float("inf")},
        {"safe_posts": "/api/balance"},
        {"safe_posts": ("api/balance",)},
        {"replay_refused": 0},
    ],
    ids=repr,
)
def test_a_policy_that_makes_no_sense_is_rejected(wrong: dict[str, Any]) -> None:
    """Immediately, with a message that names the parameter."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        RetryPolicy(**wrong)


# --- every client library -----------------------------------------------------------------------


@pytest.mark.parametrize("fault", [*(Status(status) for status in TRANSIENT), TooMany(1), *BROKEN], ids=repr)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_rule_20_a_safe_call_survives_what_is_transient(world: World, fault: Any, method: str) -> None:
    """Two consecutive failures are survived, on one token."""
    world.emulator.faults.add(fault, on="call", times=2)
    client = world.client()
    url = world.url if method == "POST" else world.echo
    assert ok(world.as_time_passes(lambda: client.attempt(method, url)))
    assert world.emulator.journal.calls == 3
    assert world.emulator.journal.token_requests == 1
    assert world.manager.stats().retried == 2


@pytest.mark.parametrize("fault", [Status(503), TooMany(1), *BROKEN], ids=repr)
def test_rule_20_the_caller_gets_the_last_response(world: World, fault: Any) -> None:
    """After the last attempt: the last response, readable, or the last error as the client library raises it."""
    world.emulator.faults.add(fault, on="call", times=None)
    client = world.client()
    outcome = world.as_time_passes(lambda: client.attempt("POST", world.url))
    assert world.emulator.journal.calls == 3
    if isinstance(fault, (Status, TooMany)):
        assert isinstance(outcome, PlainResponse)
        assert b'"status": "Error"' in outcome.body
    else:
        assert isinstance(outcome, client.base_error)
        assert not isinstance(outcome, (Pay88Error, urllib3.exceptions.MaxRetryError))


@pytest.mark.parametrize("fault", [*(Status(status) for status in TRANSIENT), *BROKEN], ids=repr)
def test_rule_20_a_payment_is_sent_at_most_once(world: World, fault: Any) -> None:
    """After any event that leaves open whether it was executed, the caller gets the error immediately."""
    client = world.client()
    assert ok(charge(world, client))  # so that the connection is an old one, which some client libraries retry on
    with world.emulator.faults.add(fault, on="/api/transactions", times=None):
        outcome = charge(world, client)
    assert not ok(outcome)
    assert world.emulator.journal.calls == 2
    assert len(world.emulator.service.charges) == (2 if isinstance(fault, ResetAfterRead) else 1)


def test_rule_20_a_payment_without_a_response_is_not_retried(world: World) -> None:
    """A read timeout leaves open whether it was executed, too."""
    client = world.client(timeout=0.3)
    assert ok(charge(world, client))
    with world.emulator.hold("/api/transactions") as held:
        assert isinstance(charge(world, client), Exception)
        held.release()
    world.as_time_passes(lambda: client.attempt("POST", world.url))
    assert len(world.emulator.journal.select("call", path="/api/transactions/charges")) == 2


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("fault", [ResetAfterRead(), Status(500)], ids=repr)
def test_rule_20_what_the_client_library_would_retry_is_not_retried(world: World, method: str, fault: Any) -> None:
    """urllib3 and aiohttp take PUT and DELETE for harmless, and broken old connections for an excuse."""
    client = world.client()
    assert ok(client.attempt("POST", world.url))
    world.emulator.faults.add(fault, on="/api/echo", times=None)
    assert not ok(world.as_time_passes(lambda: client.attempt(method, world.echo)))
    assert world.emulator.journal.calls == 2


def test_rule_20_a_payment_that_was_rejected_is_retried(world: World) -> None:
    """After a 429 it was certainly not executed."""
    world.emulator.faults.add(TooMany(2), on="/api/transactions", times=2)
    assert ok(charge(world, world.client()))
    first, second, third = world.emulator.journal.select("call", path="/api/transactions/charges")
    assert second.at - first.at >= 2
    assert third.at - second.at >= 2
    assert first.body == second.body == third.body == BYTES
    assert len(world.emulator.service.charges) == 1


def test_rule_20_a_payment_is_tried_again_where_no_connection_could_be_made(world: World) -> None:
    """It cannot have been executed."""
    recorder = RetryRecorder()
    client = world.client(world.new_manager(listeners=[recorder]))
    assert ok(charge(world, client))
    world.emulator.stop()
    assert isinstance(charge(world, client), client.base_error)
    received = [(event.group, event.attempt, event.status) for event in recorder]
    # A connection that is still open breaks; only what comes after that cannot be made at all.
    assert received in ([], [("transactions", 2, None), ("transactions", 3, None)])
    recorder.clear()
    assert isinstance(charge(world, client), client.base_error)
    assert [(event.group, event.attempt, event.status) for event in recorder] == [
        ("transactions", 2, None),
        ("transactions", 3, None),
    ]


def test_rule_20_the_same_seed_gives_the_same_pauses(world: World) -> None:
    """Exponential backoff with full jitter, from one source for all libraries; a 401 in between uses no attempt."""
    recorder = RetryRecorder()
    policy = RetryPolicy(attempts=5, backoff_base=0.5, backoff_cap=1.5)
    manager = world.new_manager(listeners=[recorder], retry=policy)
    manager._state.settings.random = Random(88).random
    for fault in (Status(503), ResetBeforeRead(), RefuseToken(), Status(500), TooMany(None, None)):
        world.emulator.faults.add(fault, on="call")
    assert ok(world.as_time_passes(lambda: world.client(manager).attempt("POST", world.url), step=0.05))
    chance = Random(88).random
    expected = [(2, 503, 0.5), (3, None, 1.0), (4, 500, 1.5), (5, 429, 1.5)]
    assert [(event.attempt, event.status, event.pause) for event in recorder] == [
        (attempt, status, bound * chance()) for attempt, status, bound in expected
    ]
    assert world.emulator.journal.calls == 6
    assert manager.stats().replayed == 1


@pytest.mark.parametrize(
    ("fault", "pause"),
    [
        (Status(503, headers={"Retry-After": "7"}), 7),
        (TooMany(30), 30),
        (TooMany("soon"), None),
        (TooMany("-5"), None),
        (Status(503, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}), None),
    ],
    ids=repr,
)
def test_rule_20_retry_after_is_honoured(world: World, fault: Any, pause: float | None) -> None:
    """The next attempt is not sent earlier; what makes no sense is not there."""
    recorder = RetryRecorder()
    client = world.client(world.new_manager(listeners=[recorder]))
    world.emulator.faults.add(fault, on="call")
    assert ok(world.as_time_passes(lambda: client.attempt("POST", world.url), step=0.5))
    [event] = recorder
    first, second = world.emulator.journal.select("call")
    assert event.pause == pause if pause is not None else event.pause <= 0.5
    assert second.at - first.at >= event.pause


@pytest.mark.parametrize("said", ["31", "3600", "Wed, 01 Jan 2070 00:00:00 GMT"])
@pytest.mark.parametrize("status", [429, 503])
def test_rule_20_a_long_retry_after_is_the_callers(world: World, said: str, status: int) -> None:
    """The clock has not moved: the request has not waited."""
    world.emulator.faults.add(Status(status, headers={"Retry-After": said}), on="call")
    outcome = world.client().attempt("POST", world.url)
    assert isinstance(outcome, PlainResponse)
    assert (outcome.status, outcome.headers["Retry-After"]) == (status, said)
    assert world.emulator.journal.calls == 1


def late(world: World, retry_after: int) -> None:
    """Let the next request find a server that is unavailable for so many seconds."""
    world.emulator.faults.add(Status(503, headers={"Retry-After": str(retry_after)}), on="call", times=1)


def test_rule_20_a_retry_without_time_for_its_token_is_not_made(world: World) -> None:
    """The token expires before the retry, and none is granted in time: the caller gets the response it has."""
    client = world.client(world.new_manager(retry=RetryPolicy(total_timeout=22)))
    assert ok(client.attempt("POST", world.url))
    world.clock.advance(44)
    late(world, 20)
    world.emulator.faults.add(Status(500), on="token", times=None)
    response = world.as_time_passes(lambda: client.attempt("POST", world.url))
    assert isinstance(response, PlainResponse)
    assert response.status == 503


def test_rule_20_a_retry_with_time_for_its_token_is_made(world: World) -> None:
    """A token request may take ``fetch_timeout``."""
    client = world.client(world.new_manager(retry=RetryPolicy(total_timeout=30)))
    assert ok(client.attempt("POST", world.url))
    world.clock.advance(44)
    late(world, 20)
    assert ok(world.as_time_passes(lambda: client.attempt("POST", world.url)))


def test_rule_20_a_retry_waits_for_its_token_no_longer_than_the_total_timeout(world: World) -> None:
    """A token request that takes longer than usual does not prolong the request."""
    client = world.client(world.new_manager(retry=RetryPolicy(total_timeout=26)))
    assert ok(client.attempt("POST", world.url))
    world.clock.advance(44)
    late(world, 20)
    world.emulator.faults.add(Latency(60), on="token", times=None)
    before = world.clock.now()
    assert isinstance(world.as_time_passes(lambda: client.attempt("POST", world.url)), Pay88Error)
    assert world.clock.now() - before == pytest.approx(26, abs=0.5)


def test_rule_20_a_retry_without_a_wait_for_its_token_is_not_made(world: World) -> None:
    """The request has waited most of ``max_wait`` before: the caller gets the response it has, not an error."""
    client = world.client(world.new_manager(max_wait=7))
    world.emulator.faults.add(Latency(2.5), on="token", times=1)
    world.emulator.faults.add(Status(503, headers={"Retry-After": "30"}), on="call", times=2)
    world.emulator.faults.add(Latency(60), on="token", times=None, after=1)
    response = world.as_time_passes(lambda: client.attempt("POST", world.url))
    assert isinstance(response, PlainResponse)
    assert response.status == 503


def test_rule_20_a_retry_that_a_cooldown_leaves_without_a_token_is_not_made(world: World) -> None:
    """The token endpoint said how long it grants none, and the current token will have expired."""
    client = world.client(world.new_manager())
    assert ok(client.attempt("POST", world.url))
    world.clock.advance(52)
    late(world, 10)
    world.emulator.faults.add(TooMany(retry_after=300), on="token", times=None)
    response = world.as_time_passes(lambda: client.attempt("POST", world.url))
    assert isinstance(response, PlainResponse)
    assert response.status == 503


def test_rule_20_nothing_waits_beyond_the_total_timeout(world: World) -> None:
    """A pause that would end later is not begun."""
    client = world.client(world.new_manager(retry=RetryPolicy(total_timeout=10)))
    world.emulator.faults.add(TooMany(6), on="call", times=None)
    began = world.clock.now()
    outcome = world.as_time_passes(lambda: client.attempt("POST", world.url))
    assert isinstance(outcome, PlainResponse)
    assert (outcome.status, world.emulator.journal.calls) == (429, 2)
    assert world.clock.now() - began < 10


def test_rule_20_no_policy_no_retry(world: World) -> None:
    """Whatever happens, each call is sent once; a rejected one is still replayed."""
    client = world.client(world.new_manager(retry=RetryPolicy.none()))
    faults: list[Any] = [Status(503), TooMany(1), *BROKEN]
    for fault in faults:
        world.emulator.faults.add(fault, on="call")
        for method, url in (("POST", world.url), ("GET", world.echo)):
            client.attempt(method, url)
    assert world.emulator.journal.calls == 10
    world.emulator.service.refuse_current_tokens()
    assert ok(client.attempt("POST", world.url))
    assert world.emulator.journal.calls == 12


def test_rule_07_the_replay_can_be_turned_off(world: World) -> None:
    """The caller gets the 401, and the next call the fresh token."""
    client = world.client(world.new_manager(retry=RetryPolicy(replay_refused=False)))
    assert ok(client.attempt("POST", world.url))
    world.emulator.service.refuse_current_tokens()
    outcome = client.attempt("POST", world.url)
    assert isinstance(outcome, PlainResponse)
    assert outcome.status == 401
    assert ok(client.attempt("POST", world.url))
    assert world.emulator.journal.calls == 3
    assert world.emulator.journal.token_requests == 2


def test_rule_20_a_body_that_cannot_be_rewound_is_not_retried(world: World) -> None:
    """Not even where the call is safe: the caller gets the response that there is."""
    client = world.client()
    [kind] = [name for name in client.bodies if name.endswith("generator")]
    world.emulator.faults.add(Status(503), on="call", times=None)
    outcome = client.attempt("POST", world.url, **client.bodies[kind]())
    assert isinstance(outcome, PlainResponse)
    assert (outcome.status, world.emulator.journal.calls) == (503, 1)


def test_rule_20_more_paths_can_be_declared_safe(world: World) -> None:
    """``safe_posts`` names them; query and prefix do not count."""
    client = world.client(world.new_manager(retry=RetryPolicy(safe_posts=("/api/echo",))))
    world.emulator.faults.add(Status(503), on="call")
    assert ok(world.as_time_passes(lambda: client.attempt("POST", f"{world.echo}?a=1")))
    world.emulator.faults.add(Status(503), on="call")
    assert not ok(client.attempt("POST", world.url))


def test_rule_16_a_caller_that_leaves_during_a_pause_sends_nothing_more(world: World) -> None:
    """Cancelled while it waits for its next attempt, a call makes none."""
    client = world.client()
    assert ok(client.attempt("POST", world.url))
    world.emulator.faults.add(Status(503, headers={"Retry-After": "20"}), on="call")
    cancel = client.start("POST", world.url)
    if cancel is None:
        pytest.skip("a thread cannot be cancelled")
    world.emulator.journal.wait_for(2, "call")
    world.until(lambda: world.manager.stats().retried == 1)
    cancel()
    world.clock.advance(30)
    assert ok(client.attempt("POST", world.url))
    assert world.emulator.journal.calls == 3


# --- urllib3's own way to say it ----------------------------------------------------------------

OWN = urllib3.Retry(4, status_forcelist=[503], allowed_methods=None, raise_on_status=False)

urllib3s = pytest.mark.parametrize("kind", [Urllib3, Requests], ids=lambda kind: kind.name)


@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("retries", "calls"),
    [
        (False, 1),
        (0, 1),
        (OWN, 5),
        (pay88_adapters.urllib3.Pay88Retry(RetryPolicy(attempts=2)), 2),
        (pay88_adapters.urllib3.Pay88Retry(RetryPolicy.none()), 1),
        (pay88_adapters.urllib3.Pay88Retry(), 3),
        (None, 3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("where", ["call", "pool manager"])
def test_rule_20_the_callers_own_retries_are_obeyed(world: World, retries: Any, calls: int, where: str) -> None:
    """Given with the call or with the whole pool manager; nothing is added to what they say."""
    if where == "pool manager" and retries is None:
        pytest.skip("is no choice")
    world.emulator.faults.add(Status(503), on="call", times=None)
    client: Any = world.client()
    kw = {}
    if where == "call":
        kw["retries"] = retries
    else:
        client.client = pay88_adapters.urllib3.Pay88PoolManager(world.manager, retries=retries)
    outcome = world.as_time_passes(lambda: client.attempt("POST", world.url, **kw))
    assert isinstance(outcome, PlainResponse)
    assert (outcome.status, world.emulator.journal.calls) == (503, calls)
    client.close()


@pytest.mark.parametrize("kind", [Requests], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("retries", "calls"),
    [(None, 3), (0, 1), (urllib3.Retry(4, status_forcelist=[503], allowed_methods=None, raise_on_status=False), 5)],
    ids=repr,
)
def test_rule_20_the_adapters_own_retries_are_obeyed(world: World, retries: Any, calls: int) -> None:
    """``max_retries=`` of the adapter that is mounted."""
    world.emulator.faults.add(Status(503), on="call", times=None)
    client: Any = world.client()
    kw = {} if retries is None else {"max_retries": retries}
    client.client.mount(world.emulator.url, pay88_adapters.requests.Pay88Adapter(world.manager, **kw))
    outcome = world.as_time_passes(lambda: client.attempt("POST", world.url))
    assert isinstance(outcome, PlainResponse)
    assert (outcome.status, world.emulator.journal.calls) == (503, calls)


@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
def test_rule_20_the_callers_total_timeout_bounds_the_pauses(world: World) -> None:
    """urllib3 passes it with the request. A delay that would end later does not start."""
    world.emulator.faults.add(TooMany(6), on="call", times=None)
    client = world.client()
    outcome = world.as_time_passes(
        lambda: client.attempt("POST", world.url, timeout=urllib3.Timeout(total=10)), step=0.25
    )
    assert isinstance(outcome, PlainResponse)
    assert (outcome.status, world.emulator.journal.calls) == (429, 2)


@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
def test_rule_20_urllib3s_history_contains_each_attempt(world: World) -> None:
    """``response.retries.history`` has them as it does for urllib3's own retries."""
    for fault in (Status(503), ResetBeforeRead(), RefuseToken()):
        world.emulator.faults.add(fault, on="call")
    outcome = world.as_time_passes(lambda: world.client().attempt("POST", world.url))
    assert isinstance(outcome, PlainResponse)
    history = outcome.raw.retries.history
    assert [(each.method, each.status) for each in history] == [("POST", 503), ("POST", None), ("POST", 401)]
    assert isinstance(history[1].error, urllib3.exceptions.ProtocolError)


@urllib3s
def test_rule_20_errors_are_what_they_would_be_without_us(world: World, kind: type[Stack]) -> None:
    """Connection refused, no response, a malformed response: the same classes, without anything around them."""
    client = world.client(timeout=0.2)
    assert ok(client.attempt("POST", world.url))
    with world.emulator.hold("call") as held:
        timeout = world.as_time_passes(lambda: client.attempt("POST", world.url))
        held.release()
    world.emulator.stop()
    world.as_time_passes(lambda: client.attempt("POST", world.url))
    rejected = world.as_time_passes(lambda: client.attempt("POST", world.url))
    if kind is Urllib3:
        expected: Any = (urllib3.exceptions.ReadTimeoutError, urllib3.exceptions.NewConnectionError)
    else:
        expected = (requests.ReadTimeout, requests.ConnectionError)
    assert (type(timeout), type(rejected)) == expected
