"""Rubbish in every part of a response of the token endpoint: a token that is safe to attach, or a failure that is data.

Never an exception, a secret in a text, or more time and memory than a small response may cost.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pay88_adapters import (
    Credentials,
    CredentialsRejected,
    Token,
    TokenEndpointUnavailable,
    TokenPolicy,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.core.budget import AcquireResult
from pay88_adapters.core.decisions import Fail, Fetch, Wait
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.machine import TokenMachine
from pay88_adapters.core.secret import mask, redact
from pay88_adapters.core.wire import MAX_BODY, TokenResponse, parse_token_response, retry_after
from pay88_adapters.engine.responses import aread_limited, read_limited

KEY = "sk_test_0123456789abcdef"
CREDENTIALS = Credentials(KEY, "MCH-COL-1")
TOKEN, SESSION = "eyJhbGciOiJFUzI1NiJ9.cGF5bG9hZA.c2ln", "sess_53a2cfc4-441e-4554"
SECRETS = (KEY, TOKEN, SESSION)

MOST_SECONDS = 2.0  # of the processor, for one response; milliseconds on any machine
MOST_BYTES = 4 * 2**20  # at the peak, for one response

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

examples = settings().max_examples  # a hundred, unless the profile says otherwise
settings_here = settings(deadline=None, max_examples=2 * examples)


# Rules for every response


def judge(status: int, fields: Mapping[str, str], body: bytes) -> Token | Failure:
    """Read a response, and hold what comes of it against all the rules."""
    busy = time.process_time()
    outcome = parse_token_response(TokenResponse(status, fields, body), 7.0, CREDENTIALS, time.time())
    assert time.process_time() - busy < MOST_SECONDS
    if isinstance(outcome, Token):
        assert status == 200
        judge_token(outcome)
    else:
        judge_failure(outcome, status)
    return outcome


def judge_token(token: Token) -> None:
    """Rule 12: only values that a header can hold, and a life that makes sense."""
    assert math.isfinite(token.expires_in)
    assert 0 < token.expires_in <= 86_400
    assert token.requested_at == 7.0
    assert list(token.headers()) == ["Authorization", "x-session-id"]
    for value in (token.access_token, token.session_id):
        assert re.fullmatch(r"[!-~]{1,8192}", str(value))
    assert repr(token) == f"Token(expires_in={token.expires_in}, requested_at=7.0)"


def judge_failure(failure: Failure, status: int) -> None:
    """Rules 9 to 12, 15 and 18: the kind that the status stands for, in clean and short texts."""
    assert (failure.kind, failure.retryable) == meaning(status)
    assert (failure.status, failure.cause) == (status, None)
    if status == 429:
        assert failure.retry_after is not None
        assert 1 <= failure.retry_after < math.inf
    else:
        assert failure.retry_after is None
    error = failure.error(failure.retry_after)
    for text in (failure.message, str(error), failure.server_message or ""):
        assert text.isprintable()
        assert len(text) < 500
    shown = "\n".join([repr(failure), repr(error), str(error), str(vars(error)), failure.message])
    assert not any(secret in shown for secret in SECRETS)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def meaning(status: int) -> tuple[type[Exception], bool]:
    """Return the documented kind of failure of a status, and whether the call may succeed later."""
    match status:
        case 200:
            return TokenResponseInvalid, True
        case 401 | 403:
            return CredentialsRejected, False
        case 429:
            return TokenRateLimited, True
        case _:
            return TokenEndpointUnavailable, status >= 500


# Bodies

names = st.sampled_from(["data", "access_token", "session_id", "expires_in", "message", "retry_after"])
any_text = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates and controls among it
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.sampled_from(SECRETS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text | names, inner, max_size=4),
    max_leaves=10,
)
literals = st.builds(json.dumps, values, ensure_ascii=st.booleans()) | st.sampled_from(
    [
        *("NaN", "Infinity", "-Infinity", "-0", "-0.0", "1e5", "6E1", "1e-400", "1e999", "-1e999", "60.", ".6", "+60"),
        *("9" * 400, "9" * 4_301, "9" * 60_000, "0." + "3" * 60_000, "1e" + "9" * 4_000, "[" * 2_000, '{"a":' * 2_000),
        *(
            '"60\\u0000"',
            '"\\u0666\\u0660"',
            '"6\\n0"',
            '"\\ud800"',
            '"\\udfff\\ud800"',
            '"\\u2028"',
            '"\\x"',
            '"\x00"',
        ),
        *('"' + "x" * 8_193 + '"', '"' + "\\u0041" * 8_192 + '"', "60", '"60"', "60.5", "0x3c", "undefined", "'x'", ""),
    ]
)
good = {"access_token": json.dumps(TOKEN), "session_id": json.dumps(SESSION), "expires_in": "60"}


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """Draw the documented body with any literal for any field, fields left out, and fields that occur twice."""
    fields = [(name, draw(st.just(value) | literals)) for name, value in good.items() if draw(st.integers(0, 9))]
    fields += draw(st.lists(st.tuples(names, literals), max_size=3))
    data = ", ".join(f'"{name}": {literal}' for name, literal in draw(st.permutations(fields)))
    beside = "".join(
        f', "{name}": {literal}' for name, literal in draw(st.lists(st.tuples(names, literals), max_size=2))
    )
    text = f'{{"status": "Success", "data": {{{data}}}{beside}}}'
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-7", "latin-1"]))
    return text.encode(encoding, "replace" if encoding in ("latin-1", "utf-7") else "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a body with bytes changed, cut out, put in and doubled."""
    body = bytearray(draw(documents()))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 20)))
        body[start:end] = draw(st.binary(max_size=8) | st.just(bytes(body[start:end]) * 2))
    return bytes(body)


bodies = st.binary(max_size=300) | literals.map(lambda text: text.encode("utf-8", "replace")) | documents() | damaged()

# Headers

zones = st.sampled_from(["GMT", "UTC", "EST", "Z", "", "+0000", "-0000", "+9999", "-2400", "+" + "9" * 20, "\u0661"])
whole = st.integers(-5, 70) | st.integers() | st.sampled_from([0, 1, 9_999, 10_000, 10**30])
days = st.sampled_from(["Mon", "Wed", "Sunday", "Foo", "", "mer."])
months = st.sampled_from(["Jan", "Feb", "Oct", "December", "Foo", "13", "", "\xe9"])
dates = st.one_of(
    st.builds("{}, {} {} {} {}:{}:{} {}".format, days, whole, months, whole, whole, whole, whole, zones),
    st.builds("{}, {}-{}-{} {}:{}:{} {}".format, days, whole, months, whole, whole, whole, whole, zones),
    st.builds("{} {} {} {}:{}:{} {}".format, days, months, whole, whole, whole, whole, whole),
    st.datetimes(timezones=st.just(timezone.utc)).map(lambda moment: format_datetime(moment, usegmt=True)),
)
numbers = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["inf", "-inf", "nan", "1e9", "1e400", "-1", "-0", "0", "0.0", " 5 ", "5, 6", "5;", "0x5", "1_0"]),
    st.sampled_from(
        ["\u0665", "\uff15", "\xb2", "9" * 12, "9" * 13, "9" * 5_000, "0." + "0" * 12 + "1", "", " ", "\0"]
    ),
)
header_values = numbers | dates | any_text | st.sampled_from(SECRETS)
header_names = st.sampled_from(
    [
        *("Retry-After", "retry-after", "RETRY-AFTER", "rEtRy-AfTeR", "Retry-After ", "Retry_After", "Date", "date"),
        *("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Content-Length", "Content-Type"),
    ]
)
headers = st.dictionaries(header_names | any_text, header_values, max_size=6)
statuses = st.sampled_from([200, 200, 200, 401, 403, 429, 429, 500]) | st.integers(100, 999)


@given(status=statuses, fields=headers, body=bodies)
@settings(settings_here, max_examples=6 * examples)
def test_rule_12_any_response_is_a_token_or_a_failure(status: int, fields: Mapping[str, str], body: bytes) -> None:
    """Whatever the status, the headers and the body are."""
    judge(status, fields, body)


def test_rule_11_every_status_means_something() -> None:
    """From 100 to 999, with a token in the body, with a message, and with nothing."""
    granted = json.dumps({"data": {"access_token": TOKEN, "session_id": SESSION, "expires_in": 60}})
    for status in range(100, 1_000):
        for body in (granted.encode(), f'{{"message": "{KEY} is wrong"}}'.encode(), b""):
            outcome = judge(status, {}, body)
            assert isinstance(outcome, Token) == (status == 200 and body == granted.encode())


@given(
    access_token=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40),
    session_id=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40),
    expires_in=st.floats(0, 86_400, exclude_min=True) | st.integers(1, 86_400),
    beside=st.dictionaries(any_text, values, max_size=3),
    ensure_ascii=st.just(True),
    indent=st.none() | st.integers(0, 4),
)
@settings_here
def test_rule_12_a_sound_token_is_read_whatever_is_beside_it(
    access_token: str, session_id: str, expires_in: float, beside: dict[str, Any], **style: Any
) -> None:
    """Unknown fields of any kind, in the envelope and in ``data``, and any white space change nothing."""
    data = {**beside, "access_token": access_token, "session_id": session_id, "expires_in": expires_in}
    outcome = judge(200, {}, json.dumps({**beside, "data": data}, **style).encode())
    assert outcome == Token(access_token, session_id, float(expires_in), 7.0)


# Waits


@given(fields=headers, said=values | numbers)
@settings_here
def test_rule_10_any_wait_is_finite_and_the_machine_caps_it(fields: Mapping[str, str], said: object) -> None:
    """At least a second; no request waits longer than ``max_retry_after``."""
    requested = retry_after(fields, {"retry_after": said}, time.time())
    assert 1 <= requested < math.inf

    policy = TokenPolicy()
    machine = TokenMachine(policy)
    leader = machine.decide(0.0, known_failures=0, deadline=20.0)
    assert isinstance(leader, Fetch)
    assert machine.on_credentials(leader.ticket, "digest", 0.0)
    assert machine.on_budget_result(leader.ticket, AcquireResult(True, 0.0, 0.0), 0.0, from_reserve=False) is None
    failure = Failure(TokenRateLimited, "429", status=429, retry_after=requested, retryable=True)
    assert machine.on_attempt_failed(leader.ticket, failure, 0.0, jitter=0.5, digest="digest") is None

    reported = machine.decide(0.0, known_failures=0, deadline=20.0)
    assert isinstance(reported, (Wait, Fail))
    assert (reported.until if isinstance(reported, Wait) else reported.retry_after) == min(
        requested, policy.max_retry_after
    )
    assert isinstance(machine.decide(policy.max_retry_after, known_failures=0, deadline=policy.max_retry_after), Fetch)


@given(
    seconds=st.integers(0, 10**11), fields=headers, said=values, name=st.sampled_from(["Retry-After", "RETRY-after"])
)
@settings_here
def test_rule_10_seconds_in_the_header_count_whatever_is_beside_them(
    seconds: int, fields: Mapping[str, str], said: object, name: str
) -> None:
    """Neither another field nor the body changes them."""
    beside = {other: value for other, value in fields.items() if other.lower() != "retry-after"}
    assert retry_after({**beside, name: str(seconds)}, {"retry_after": said}, time.time()) == max(seconds, 1.0)


@given(
    sent=st.integers(0, 2 * 10**11).map(lambda seconds: EPOCH + timedelta(seconds=seconds)),
    wait=st.integers(-(10**6), 10**6),
    shape=st.sampled_from(["%a, %d %b %Y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"]),
)
@settings_here
def test_rule_10_a_date_counts_from_the_responses_own_date(sent: datetime, wait: int, shape: str) -> None:
    """In HTTP's formats, in any year. A date in the past means the shortest wait."""
    until = sent + timedelta(seconds=wait)
    fields = {"Date": sent.strftime("%a, %d %b %Y %H:%M:%S GMT"), "Retry-After": until.strftime(shape)}
    assert retry_after(fields, {"retry_after": 5}, time.time()) == max(wait, 1.0)


# Time and memory


def filled(start: str, piece: str, end: str = "") -> bytes:
    """Return a body of the largest size that is read, or a little less, made of many pieces."""
    room = MAX_BODY - len(start.encode()) - len(end.encode())
    return (start + piece * (room // len(piece.encode())) + end).encode()


LARGEST: dict[str, bytes] = {
    "digits": filled("", "9"),
    "lifetime of digits": filled('{"data": {"access_token": "x", "session_id": "x", "expires_in": ', "9", "}}"),
    "lifetime of a long text": filled('{"data": {"access_token": "x", "session_id": "x", "expires_in": "', "9", '"}}'),
    "fraction": filled('{"data": {"expires_in": 0.', "3", "}}"),
    "exponent": filled('{"data": {"expires_in": 1e', "9", "}}"),
    "whole numbers": filled("[", "9" * 4_300 + ",", "1]"),
    "small numbers": filled("[", "1,", "1]"),
    "floats": filled("[", "1e1,", "1]"),
    "empty arrays": filled("[", "[],", "1]"),
    "empty objects": filled("[", "{},", "1]"),
    "one field again and again": filled('{"data": {', '"expires_in": 60,', '"x": 1}}'),
    "many fields": ("{" + ",".join(f'"{number}":1' for number in range(7_000)) + "}").encode()[:MAX_BODY],
    "arrays never closed": filled("", "["),
    "objects never closed": filled("", '{"data":'),
    "arrays as deep as can be": b"[" * (MAX_BODY // 2) + b"]" * (MAX_BODY // 2),
    "text never closed": filled('{"data": "', "x"),
    "a long message": filled('{"message": "', "x", '"}'),
    "a message of escapes": filled('{"message": "', "\\u0041", '"}'),
    "a message of lone surrogates": filled('{"message": "', "\\ud800", '"}'),
    "a message of wide characters": filled('{"message": "', "\U0001f4b8", '"}'),
    "a message of keys": filled('{"message": "', KEY, '"}'),
    "a message of what looks like keys": filled('{"message": "', "sk_test_", '"}'),
    "a message of what looks like tokens": filled('{"message": "', "Bearer ", '"}'),
    "a message of one token that never comes": filled('{"message": "Bearer', " ", '"}'),
    "a message of line breaks": filled('{"message": "', "\\r\\n", '"}'),
    "a wait of digits": filled('{"retry_after": ', "9", "}"),
    "a wait of white space": filled('{"retry_after": "', " ", '5"}'),
    "white space": filled("", " ", "{}"),
    "line feeds": filled("", "\n", "{"),
    "nul": bytes(MAX_BODY),
    "0xff": b"\xff" * MAX_BODY,
    "a byte too many": filled('{"data": {"access_token": "', "x", '"}}').ljust(MAX_BODY + 1),
}


@pytest.mark.parametrize("status", [200, 429, 500])
@pytest.mark.parametrize("body", LARGEST.values(), ids=LARGEST)
def test_rule_12_the_largest_responses_cost_little_time_and_memory(body: bytes, status: int) -> None:
    """Every way to fill what is read of a body, under a long ``Retry-After`` and ``Date``."""
    assert MAX_BODY - 5_000 < len(body) <= MAX_BODY + 1
    fields = {"Retry-After": "9" * MAX_BODY, "Date": "Mon, " * MAX_BODY}
    judge(status, fields, body)

    tracemalloc.start()
    try:
        parse_token_response(TokenResponse(status, fields, body), 7.0, CREDENTIALS, time.time())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES


# Reading to a bound

chunk_lists = st.lists(st.binary(max_size=20) | st.just(b"x" * 200), max_size=20)


def run(coroutine: Any) -> Any:
    """Run a coroutine that never waits."""
    with pytest.raises(StopIteration) as returned:
        coroutine.send(None)
    return returned.value.value


@pytest.mark.parametrize("reader", ["sync", "async"])
@given(given_chunks=chunk_lists, bound=st.integers(0, 300), endless=st.booleans())
@settings_here
def test_rule_12_no_more_is_kept_than_the_bound_and_no_more_is_read(
    reader: str, given_chunks: list[bytes], bound: int, endless: bool
) -> None:
    """What is kept is the beginning of what came; one byte beyond the bound shows that there was more."""
    read: list[bytes] = []

    def chunks() -> Iterator[bytes]:
        for chunk in given_chunks:
            read.append(chunk)
            yield chunk
        for _ in range(1_000 if endless else 0):  # more than a client should read
            read.append(b"yy")
            yield b"yy"

    async def achunks() -> AsyncIterator[bytes]:
        for chunk in chunks():
            yield chunk

    kept = read_limited(chunks(), bound) if reader == "sync" else run(aread_limited(achunks(), bound))

    assert kept == b"".join(read)[: bound + 1]
    assert sum(map(len, read[:-1])) <= bound, "it reads on though it has enough"
    assert len(kept) == bound + 1 or read == given_chunks, "it stops though there is room"


# Secrets in texts that come from elsewhere

secret_texts = st.from_regex(r"(sk_(test|live)_|SK_LIVE_|)[A-Za-z0-9_-]{8,40}", fullmatch=True)


@given(secret=secret_texts, around=st.lists(any_text, min_size=1, max_size=6), text=any_text)
@settings_here
def test_rule_15_no_text_keeps_a_secret(secret: str, around: list[str], text: str) -> None:
    """However often it occurs, and whatever is around it; what remains is one printable line of bounded length."""
    assume(secret not in "[secret]")
    for hostile in (secret.join(around), secret + secret, text + secret * 50, secret[:5] + secret + secret[5:]):
        assert secret not in mask(hostile, secret)
        cleaned = redact(hostile, secret)
        assert secret not in cleaned
        assert cleaned.isprintable()
        assert len(cleaned) <= 200


@given(kind=st.sampled_from(SECRETS), before=any_text, after=any_text)
@settings_here
def test_rule_15_what_looks_like_a_secret_is_one(kind: str, before: str, after: str) -> None:
    """Keys, tokens and session ids that are unknown to the package."""
    for cleaned in (mask(f"{before}{kind}{after}"), redact(f"{before} {kind.upper()} {after}")):
        assert kind.lower() not in cleaned.lower()
