"""What is sent to the token endpoint, and what each response of it means. Every response is hostile."""

from __future__ import annotations

import asyncio
import json
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest
import urllib3
from multidict import CIMultiDict

from pay88_adapters import (
    ConfigurationError,
    Credentials,
    CredentialsRejected,
    Token,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.wire import (
    MAX_BODY,
    TokenResponse,
    network_failure,
    parse_rate_limit,
    parse_token_response,
    retry_after,
    token_request,
    unexpected_failure,
)
from pay88_adapters.engine.responses import aread_limited, read_limited

KEY = "sk_test_0123456789abcdef"
CREDENTIALS = Credentials(KEY, "MCH-COL-1")
TOKEN, SESSION = "eyJhbGciOiJFUzI1NiJ9.cGF5bG9hZA.c2ln", "sess_53a2cfc4-441e-4554"
CANARY = "CANARY"


def respond(status: int, body: bytes = b"", **headers: str) -> Token | Failure:
    """Read a response to a request sent at second 7."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse_token_response(TokenResponse(status, fields, body), 7.0, CREDENTIALS, time.time())


def failure(status: int, body: bytes = b"", **headers: str) -> Failure:
    """Read a response that is no token."""
    outcome = respond(status, body, **headers)
    assert isinstance(outcome, Failure)
    return outcome


def granted(**changes: Any) -> bytes:
    """Return the documented body, with changes in ``data``; ``None`` takes a field away."""
    data = {"access_token": TOKEN, "session_id": SESSION, "expires_in": 60, **changes}
    data = {name: value for name, value in data.items() if value is not None}
    return json.dumps({"status": "Success", "code": 200, "message": "OK", "data": data}).encode()


def plain(name: str) -> str:
    """Return a name by which pytest finds a test, whatever is in it."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


# The request


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_rule_13_the_request_carries_the_two_keys_and_nothing_of_the_callers(prefix: str) -> None:
    """POST to the token path below the base URL; the secret fields do not print."""
    request = token_request(Endpoint.parse(f"https://api.example:8443{prefix}"), CREDENTIALS, 5.0)
    assert (request.method, request.url) == ("POST", f"https://api.example:8443{prefix}/api/auth/token")
    assert (request.path, request.timeout) == (f"{prefix}/api/auth/token", 5.0)
    assert {name.lower(): str(value) for name, value in request.headers.items()} == {
        "x-api-key": KEY,
        "x-merchant-id": "MCH-COL-1",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-length": "0",
    }
    assert KEY not in repr(request)
    assert KEY not in repr(dict(request.headers))


# Tokens


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [(60, 60.0), (60.5, 60.5), ("60", 60.0), (" 60 ", 60.0), ("59.5", 59.5), (86_400, 86_400.0), (0.5, 0.5)],
)
def test_rule_12_a_token_is_read_and_a_number_may_be_a_string(expires_in: object, seconds: float) -> None:
    """The values come through; the age counts from the moment the request was sent."""
    outcome = respond(200, granted(expires_in=expires_in))
    assert outcome == Token(TOKEN, SESSION, seconds, 7.0)
    assert isinstance(outcome, Token)
    assert outcome.requested_at == 7.0
    assert {name: str(value) for name, value in outcome.headers().items()} == {
        "Authorization": f"Bearer {TOKEN}",
        "x-session-id": SESSION,
    }


def test_rule_12_unknown_fields_are_ignored() -> None:
    """More in the envelope or in ``data``, and the longest body allowed."""
    body = granted(scope="all", nested={"deep": [1]})
    assert isinstance(respond(200, body + b" " * (MAX_BODY - len(body))), Token)


@pytest.mark.parametrize("name", ["access_token", "session_id"])
def test_rule_12_a_value_may_be_as_long_as_servers_take_a_field(name: str) -> None:
    """Eight KiB, and not one byte more."""
    assert isinstance(respond(200, granted(**{name: "x" * 8_192})), Token)
    assert failure(200, granted(**{name: "x" * 8_193})).kind is TokenResponseInvalid


def values(name: str) -> dict[str, bytes]:
    """Return bodies whose field *name* cannot go into a header."""
    bad: dict[str, Any] = {
        "missing": None,
        "empty": "",
        "line feed": f"{CANARY}\nx-evil: 1",
        "carriage return": f"{CANARY}\rx",
        "both": f"{CANARY}\r\nx-evil: {CANARY}",
        "trailing line feed": f"{CANARY}\n",
        "nul": f"{CANARY}\x00",
        "escape": f"\x1b[2J{CANARY}",
        "delete": f"{CANARY}\x7f",
        "tab": f"{CANARY}\tx",
        "space": f"{CANARY} x",
        "c1 control": f"{CANARY}\x85",
        "latin-1": f"{CANARY}\xe9",
        "line separator": f"{CANARY}\u2028x",
        "wide digit": f"{CANARY}\uff11",
        "emoji": f"{CANARY}\U0001f4b8",
        "lone surrogate": f"{CANARY}\ud800",
        "number": 12_345_678,
        "boolean": True,
        "array": [CANARY],
        "object": {CANARY: CANARY},
        "too long": CANARY * 5_000,
    }
    return {f"{name}: {what}": granted(**{name: value}) for what, value in bad.items()}


LIFETIMES: dict[str, bytes] = {
    f"expires_in: {value!r:.40}": granted(expires_in=value)
    for value in (
        *(None, True, False, 0, -1, -0.001, 86_400.001, 86_401, 1e308, 10**30, 10**400),
        *("", "abc", "-60", "0", "1e3", "NaN", "Infinity", "0x3c", "6_0", "60s", "60\n60", "\u0666\u0660", "9" * 5_000),
        *((60,), {"seconds": 60}),  # an array, under a name by which pytest finds it
    )
}
LITERALS = {
    f"expires_in: {literal:.20}": granted(expires_in=-12_345).replace(b"-12345", literal.encode())
    for literal in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5_000, "null")
}

SHAPES: dict[str, bytes] = {
    "empty": b"",
    "blank": b"  \n",
    "text": CANARY.encode(),
    "html": f"<html>{CANARY}</html>".encode(),
    "null": b"null",
    "number": b"60",
    "string": json.dumps(CANARY).encode(),
    "array": b"[]",
    "array of tokens": b"[" + granted() + b"]",
    "empty object": b"{}",
    "no data": json.dumps({"access_token": TOKEN, "session_id": SESSION, "expires_in": 60}).encode(),
    "data null": b'{"data": null}',
    "data text": json.dumps({"data": CANARY}).encode(),
    "data array": json.dumps({"data": [TOKEN, SESSION, 60]}).encode(),
    "data empty": b'{"data": {}}',
    "cut short": granted()[:-9],
    "two documents": granted() * 2,
    "trailing comma": granted()[:-1] + b",}",
    "deep arrays": b"[" * 60_000,
    "deep objects": b'{"data":' * 7_000,
    "deep and closed": b'{"data":' * 3_000 + b"1" + b"}" * 3_000,
    "not UTF-8": b'{"data": {"access_token": "\xff\xfe' + CANARY.encode() + b'"}}',
    "UTF-16": granted().decode().encode("utf-16"),
    "UTF-16 without a mark": granted().decode().encode("utf-16-le"),
    "UTF-32": granted().decode().encode("utf-32"),
    "latin-1": granted(from_reserve="é").decode("unicode_escape").encode("latin-1"),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(30),
    "nul bytes": bytes(1_000),
    "too long": granted() + b" " * MAX_BODY,
    "one byte too long": granted() + b" " * (MAX_BODY + 1 - len(granted())),
}

BODIES = {**SHAPES, **values("access_token"), **values("session_id"), **LIFETIMES, **LITERALS}


@pytest.mark.parametrize("body", BODIES.values(), ids=map(plain, BODIES))
def test_rule_12_a_200_that_makes_no_sense(body: bytes) -> None:
    """``TokenResponseInvalid``, to be treated like an outage; nothing of the body is in it."""
    outcome = respond(200, body)

    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.status, outcome.retryable) == (TokenResponseInvalid, 200, True)
    assert (outcome.server_message, outcome.cause, outcome.retry_after) == (None, None, None)
    for shown in (repr(outcome), outcome.message, repr(outcome.error(1.0)), str(vars(outcome.error(1.0)))):
        for secret in (CANARY, TOKEN, SESSION, TOKEN[:12], KEY):
            assert secret not in shown


# Other responses


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (401, CredentialsRejected, False),
        (403, CredentialsRejected, False),
        (429, TokenRateLimited, True),
        *((status, TokenEndpointUnavailable, True) for status in (500, 501, 502, 503, 504, 599)),
        *((status, TokenEndpointUnavailable, False) for status in (100, 201, 204, 301, 302, 304, 307, 308)),
        *((status, TokenEndpointUnavailable, False) for status in (400, 402, 404, 405, 408, 422, 451)),
    ],
)
def test_rule_11_what_each_status_means(status: int, kind: type[Exception], retryable: bool) -> None:
    """Rules 9, 10 and 11; a token in the body of anything but a 200 is none."""
    for body in (b"", granted(), b"<html>", b"[1]"):
        outcome = failure(status, body)
        assert (outcome.kind, outcome.status, outcome.retryable) == (kind, status, retryable)
        assert str(status) in outcome.message
        assert (outcome.retry_after is not None) == (status == 429)
        assert TOKEN not in repr(outcome) + outcome.message


def test_rule_18_what_the_service_said_is_data() -> None:
    """Its message is in the error's text and in a field of its own."""
    outcome = failure(401, json.dumps({"message": "Invalid API Key"}).encode())
    error = outcome.error(30.0)
    assert (error.server_message, error.status, error.retry_after, error.retryable) == (
        "Invalid API Key",
        401,
        30.0,
        False,
    )
    assert "Invalid API Key" in str(error)


@pytest.mark.parametrize(
    ("sent", "cleaned"),
    [
        (f"key {KEY} is unknown", "key [secret] is unknown"),
        ("use sk_live_abc-DEF_9 instead", "use [secret] instead"),
        (f"token {TOKEN} and {SESSION}", "token [secret] and [secret]"),
        ("header was Bearer abc.def", "header was [secret]"),
        ("one\r\ntwo\x1b[31m\x00three\u2028four", "one  two [31m three four"),
        ("long " * 100, ("long " * 100)[:200]),
    ],
)
def test_rule_15_what_the_service_said_is_cleaned(sent: str, cleaned: str) -> None:
    """No secret that it echoes, no line break, no control character, no endless text."""
    outcome = failure(403, json.dumps({"message": sent}).encode())
    assert outcome.server_message == cleaned
    assert cleaned in outcome.message or (len(cleaned) == 200 and "long l…g long" in outcome.message)


def test_rule_15_a_key_of_any_shape_is_cleaned() -> None:
    """Also one that does not look like 88Pay's."""
    body = json.dumps({"message": "key opaque.0123456789 is unknown"}).encode()
    outcome = parse_token_response(
        TokenResponse(401, {}, body), 7.0, Credentials("opaque.0123456789", "MCH-COL-1"), time.time()
    )
    assert isinstance(outcome, Failure)
    assert outcome.server_message == "key [secret] is unknown"


@pytest.mark.parametrize("said", [None, "", 5, ["x"], {"x": 1}, True])
def test_rule_18_a_message_that_is_no_text_is_none(said: object) -> None:
    """It is ignored."""
    assert failure(500, json.dumps({"message": said}).encode()).server_message is None


def test_rule_11_no_response_is_a_failure_with_its_cause() -> None:
    """The text names the kind of the cause, never its own text, which may hold anything."""
    cause = OSError("could not send it")
    outcome = network_failure(cause)
    assert (outcome.kind, outcome.status, outcome.retryable) == (TokenEndpointUnavailable, None, True)
    assert "OSError" in outcome.message
    assert "could not send" not in outcome.message + repr(outcome)
    assert outcome.error(1.0).__cause__ is cause


def test_rule_18_the_message_names_the_host_and_the_merchant() -> None:
    """With and without a response. A message without a base URL names no host."""
    url = "https://api.example"
    for base_url, host in ((url, "(api.example) returned 500 for MCH-COL-1; "), ("", "endpoint returned 500 for MCH")):
        answered = parse_token_response(TokenResponse(500, {}, b""), 7.0, CREDENTIALS, 0.0, base_url=base_url)
        assert isinstance(answered, Failure)
        assert host in answered.message
    assert f"request to {url} failed" in network_failure(OSError(), base_url=url).message
    assert "request failed" in network_failure(OSError()).message


def test_rule_18_what_is_no_network_error_is_a_bug_and_no_outage() -> None:
    """Named by its class and its text. An error of this package's own stays what it is."""
    cause = KeyError("no such pool")
    outcome = unexpected_failure(cause)
    assert outcome == Failure(TokenEndpointUnavailable, outcome.message, cause=cause, is_bug=True)
    assert "builtins.KeyError" in outcome.message
    assert "no such pool" in outcome.message
    assert outcome.error(None).__cause__ is cause
    wrong = ConfigurationError("timeout must be a number")
    assert unexpected_failure(wrong) == Failure(ConfigurationError, "timeout must be a number", is_bug=True)


@pytest.mark.parametrize("secret", [KEY, "sess_53a2cfc4", "eyJhbGciOi.x.y", "of-no-known-shape"])
def test_rule_15_a_bug_that_quotes_a_secret_is_not_chained(secret: str) -> None:
    """Its text is in the message, without the secret."""
    outcome = unexpected_failure(ValueError(f"illegal header {secret} of the caller"), "of-no-known-shape")
    chained = outcome.error(None).__cause__
    assert isinstance(chained, RuntimeError)
    assert "ValueError" in str(chained)
    assert "illegal header [secret] of the caller" in outcome.message
    assert secret not in repr(chained) + outcome.message + repr(outcome)


@pytest.mark.parametrize("secret", [KEY, "sess_53a2cfc4", "eyJhbGciOi.x.y", "of-no-known-shape"])
def test_rule_15_a_cause_that_quotes_a_secret_is_not_chained(secret: str) -> None:
    """Also if only its cause quotes one. The message still names its class."""
    try:
        try:
            raise ValueError(f"illegal line: {secret}")
        except ValueError as exc:
            raise OSError("broken") from exc
    except OSError as exc:
        outcome = network_failure(exc, "of-no-known-shape")
    chained = outcome.error(1.0).__cause__
    assert isinstance(chained, ConnectionError)
    assert "OSError" in str(chained)
    assert secret not in repr(chained)
    assert chained.__cause__ is chained.__context__ is None


@pytest.mark.parametrize("failure_of", [network_failure, unexpected_failure])
def test_rule_15_the_cause_keeps_its_lines_and_loses_its_locals(failure_of: Callable[[Exception], Failure]) -> None:
    """They may hold half a response, in its own frames and in those of what led to it."""

    def read() -> None:
        body = f"half of {TOKEN}"
        try:
            raise ValueError(len(body))
        except ValueError as exc:
            raise OSError("broken") from exc

    with pytest.raises(OSError, match="broken") as caught:
        read()
    cause = caught.value
    failure_of(cause)
    shown = "".join(traceback.TracebackException.from_exception(cause, capture_locals=True).format())
    assert "in read" in shown
    assert TOKEN not in shown.replace('f"half of {TOKEN}"', "")


# Retry-After

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
LONGEST = 1e12  # seconds


@pytest.mark.parametrize(
    ("header", "said", "seconds"),
    [
        ("30", None, 30.0),
        ("30", 99, 30.0),
        (" 30 ", None, 30.0),
        ("1.5", None, 1.5),
        ("0", 30, 1.0),
        ("0.001", None, 1.0),
        ("3600", None, 3_600.0),
        ("999999999999", None, 999_999_999_999.0),
        ("Wed, 21 Oct 2015 07:28:45 GMT", None, 45.0),
        ("Wednesday, 21-Oct-15 07:28:45 GMT", None, 45.0),
        ("Wed Oct 21 07:28:45 2015", None, 45.0),
        ("Wed, 21 Oct 2015 07:28:45", None, 45.0),
        ("Wed, 21 Oct 2015 09:28:45 +0200", None, 45.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 30, 1.0),
        ("Wed, 21 Oct 2015 07:28:45 GMT".ljust(64), None, 45.0),
        ("Wed, 21 Oct 2015 07:28:45 GMT".ljust(65), None, 60.0),
        *((garbage, said, seconds) for said, seconds in ((None, 60.0), (17, 17.0)) for garbage in
          ("", "soon", "-5", "NaN", "inf", "1e9", "0x10", "30s", "1,000", "\u0663", "Wed, 99 Oct 2015", "soon, 5s",
           "Wed, 21 Oct 99999 07:28:45 GMT", "Wed, 21 Oct 2015 07:28:45 +99999999", "x" * 100_000)),
        *((digits, 30, LONGEST) for digits in ("9" * 13, "9" * 100, "9" * 5_000, "9" * 20 + ".5")),
        ("5, 50", None, 50.0),
        ("50, 5", None, 50.0),
        ("50, soon", 70, 50.0),
        ("Wed, 21 Oct 2015 07:28:45 GMT, 30", None, 45.0),
        ("30, wednesday, 21-Oct-15 07:28:45 GMT", None, 45.0),
        ("Wed, 21 Oct 2015 07:28:45 GMT, Wed, 21 Oct 2015 07:28:55 GMT", None, 55.0),
        (None, None, 60.0),
        (None, 25, 25.0),
        (None, "25", 25.0),
        (None, 25.5, 25.5),
        (None, 0, 1.0),
        (None, -3, 60.0),
        (None, 86_400_000_000, 86_400_000_000.0),
        (None, -86_400_000_000, 60.0),
        *((None, many, LONGEST) for many in (10**13, 1e300, 10**400, "9" * 100)),
        (None, "-3", 60.0),
        *((None, garbage, 60.0) for garbage in (True, [30], {"s": 30}, "soon", float("nan"), float("inf"), -(10**400))),
    ],
    ids=lambda value: plain(f"{value!s:.34}"),
)  # fmt: skip
def test_rule_10_how_long_a_429_demands_to_wait(header: str | None, said: object, seconds: float) -> None:
    """``Retry-After`` in seconds or as a date by the response's own ``Date``, else the body, else 60; never 0."""
    fields = {"date": DATE, **({} if header is None else {"RETRY-AFTER": header})}
    assert retry_after(fields, {"retry_after": said}, time.time()) == seconds


@pytest.mark.parametrize("headers", [urllib3.HTTPHeaderDict, httpx.Headers, httpx2.Headers, CIMultiDict])
@pytest.mark.parametrize("values", [("5", "50"), ("50", "5"), (DATE, "50"), ("50", "soon")], ids=repr)
def test_rule_10_of_two_headers_the_longer_wait_counts(headers: Any, values: tuple[str, str]) -> None:
    """Whether a client library joins them or not."""
    fields = headers([("Date", DATE), *(("Retry-After", value) for value in values)])
    assert retry_after(fields, {}, time.time()) == 50.0


def test_rule_10_without_a_date_header_the_wall_clock_is_used() -> None:
    """The only use of it."""
    instant = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 97 < retry_after({"Retry-After": instant}, {}, time.time()) <= 100
    epoch = TokenResponse(429, {"Retry-After": "Thu, 01 Jan 1970 00:01:40 GMT"}, b"")
    outcome = parse_token_response(epoch, 7.0, CREDENTIALS, 30.0)
    assert isinstance(outcome, Failure)
    assert outcome.retry_after == 70.0


@pytest.mark.parametrize(
    ("headers", "limit"),
    [
        ({"X-RateLimit-Remaining": "7", "X-RateLimit-Reset": "130"}, (7, 30.0)),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "99.5"}, (0, -0.5)),
        (
            {"X-RateLimit-Remaining": "7", "X-RateLimit-Reset": "130", "Date": "Thu, 01 Jan 1970 00:02:00 GMT"},
            (7, 10.0),
        ),
        ({"X-RateLimit-Remaining": "7"}, None),
        ({"X-RateLimit-Reset": "130"}, None),
        ({"X-RateLimit-Remaining": "many", "X-RateLimit-Reset": "130"}, None),
        ({"X-RateLimit-Remaining": "7", "X-RateLimit-Reset": "soon"}, None),
    ],
)
def test_rule_22_the_rate_limit_of_the_service_is_read(
    headers: dict[str, str], limit: tuple[int, float] | None
) -> None:
    """The reset is a Unix time, by the response's own ``Date`` where it has one."""
    assert parse_rate_limit(headers, wall=100.0) == limit


def test_rule_10_the_zone_of_this_machine_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A date without a zone is one of HTTP's, which are GMT."""
    monkeypatch.setenv("TZ", "America/Bogota")
    time.tzset()
    try:
        assert retry_after({"retry-after": "Wed Oct 21 07:28:45 2015", "date": DATE}, {}, time.time()) == 45.0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_rule_10_a_429_without_any_body_or_field_waits_a_minute() -> None:
    """The length of the service's shorter window; the documented body says the same."""
    assert failure(429).retry_after == 60.0
    assert failure(429, b'{"retry_after": 12}').retry_after == 12.0
    assert failure(429, b"[]", Retry_After="7").retry_after == 7.0


# Reading bodies


def chunks(size: int, consumed: list[int]) -> Iterator[bytes]:
    """Yield more chunks than a client should read, and note each."""
    for _ in range(1_000):
        consumed.append(size)
        yield b"x" * size


@pytest.mark.parametrize("size", [1, 7, 100, 250])
def test_rule_12_an_endless_body_is_read_to_a_bound(size: int) -> None:
    """One byte more than the bound is returned, so that it shows, and nothing after that is read."""
    consumed: list[int] = []
    assert read_limited(chunks(size, consumed), bound=100) == b"x" * 101
    assert 100 < sum(consumed) <= 100 + size


def test_rule_12_a_body_within_the_bound_is_read_whole() -> None:
    """Also one of exactly the bound, in pieces, and an empty one."""
    assert read_limited([b"ab", b"", b"c" * 98], bound=100) == b"ab" + b"c" * 98
    assert read_limited([]) == b""


def test_rule_12_the_async_reader_has_the_same_bound() -> None:
    """Chunks without end, and few."""
    consumed: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        for chunk in chunks(30, consumed):
            yield chunk

    async def few() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    assert asyncio.run(aread_limited(endless(), bound=100)) == b"x" * 101
    assert len(consumed) == 4
    assert asyncio.run(aread_limited(few())) == b"ab"
