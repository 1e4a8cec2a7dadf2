"""What cannot work is rejected when it is configured, in words that say what to change."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import pickle
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import pytest

from pay88_adapters import (
    PRODUCTION_URL,
    SANDBOX_URL,
    BreakerPolicy,
    ConfigurationError,
    Credentials,
    RetryPolicy,
    Token,
    TokenManager,
    TokenPolicy,
)
from pay88_adapters.clock import Clock
from pay88_adapters.core.endpoint import Endpoint, url_from_env

KEY, LIVE_KEY, MERCHANT = "sk_test_0123456789abcdef", "sk_live_fedcba9876543210", "MCH-COL-1"
CREDENTIALS = Credentials(KEY, MERCHANT)
ENVIRON = {"PAY88_API_KEY": KEY, "PAY88_MERCHANT_ID": MERCHANT}
PIECES = ("0123456789", "fedcba9876")  # of the keys


def rejected(make: Any, *args: Any, says: str, **kwargs: Any) -> None:
    """Insist on a :class:`ConfigurationError` that says *says*, and never the key."""
    with pytest.raises(ConfigurationError) as caught:
        make(*args, **kwargs)
    error = caught.value
    assert isinstance(error, ValueError)
    assert says in str(error)
    for shown in (str(error), repr(error), repr(error.__cause__), str(error.__cause__)):
        assert not any(piece in shown for piece in PIECES)
    assert error.__suppress_context__ or error.__context__ is None
    assert error.retryable is False


# Credentials


@pytest.mark.parametrize("value", [None, 5, b"sk_test_0123456789abcdef", ["sk_test_0123456789abcdef"], object()])
@pytest.mark.parametrize("name", ["api_key", "merchant_id"])
def test_credentials_are_strings(name: str, value: object) -> None:
    """The message names the field and the type that was given."""
    values = {"api_key": KEY, "merchant_id": MERCHANT, name: value}
    rejected(Credentials, **values, says=f"{name} must be a str, not {type(value).__name__}")


@pytest.mark.parametrize("name", ["api_key", "merchant_id"])
def test_credentials_are_not_empty(name: str) -> None:
    """As when a variable is set to nothing."""
    rejected(Credentials, **{"api_key": KEY, "merchant_id": MERCHANT, name: ""}, says=f"{name} is empty")


@pytest.mark.parametrize(
    "bad",
    [" ", "{}\n", "\n{}", "{} ", " {}", "a{} b", "{}\r\nx-evil: 1", "{}\t", "{}\x00", "{}\x7f", "{}\x1b", "{}é",
     "{}\u2028", "{}\u200b", "{}\ud800", "{}\uff11", "{}\x85", "{}\xa0"],
    ids=ascii,
)  # fmt: skip
@pytest.mark.parametrize("name", ["api_key", "merchant_id"])
def test_credentials_hold_printable_ascii_only(name: str, bad: str) -> None:
    """White space, a copied line break, control characters and non-ASCII letters that look like ASCII."""
    values = {"api_key": KEY, "merchant_id": MERCHANT}
    values[name] = bad.format(values[name])
    rejected(Credentials, **values, says=f"{name} contains white space")


def test_credentials_that_are_swapped_are_noticed() -> None:
    """The merchant id is printed, so a key must not get there."""
    rejected(Credentials, MERCHANT, KEY, says="swapped")


@pytest.mark.parametrize("key", ["sk_test_x", "sk_live_x", "anything!~", "x" * 500])
def test_credentials_of_any_printable_form_are_accepted(key: str) -> None:
    """The service decides what a key looks like. The same two are equal and have the same digest."""
    credentials = Credentials(key, MERCHANT)
    assert str(credentials.api_key) == key
    assert credentials == Credentials(key, MERCHANT)
    assert credentials.digest == Credentials(key, MERCHANT).digest
    assert credentials.digest != Credentials(key + "2", MERCHANT).digest
    assert credentials.digest != Credentials(key, MERCHANT + "2").digest
    assert key not in credentials.digest


@pytest.mark.parametrize(("prefix", "other"), [("PAY88", "EIGHTY_EIGHT_PAY"), ("EIGHTY_EIGHT_PAY", "PAY88")])
def test_credentials_come_from_the_environment(prefix: str, other: str) -> None:
    """Under the package's own names or the vendor's; ours win."""
    environ = {f"{prefix}_API_KEY": KEY, f"{prefix}_MERCHANT_ID": MERCHANT}
    assert Credentials.from_env(environ) == CREDENTIALS
    both = {**environ, f"{other}_API_KEY": LIVE_KEY}
    assert str(Credentials.from_env(both).api_key) == (KEY if prefix == "PAY88" else LIVE_KEY)
    assert Credentials.from_env({**both, "PAY88_API_KEY": "", "EIGHTY_EIGHT_PAY_API_KEY": KEY}) == CREDENTIALS


@pytest.mark.parametrize("missing", ["API_KEY", "MERCHANT_ID"])
def test_credentials_missing_from_the_environment(missing: str) -> None:
    """The message names our variable and the vendor's."""
    environ = {**ENVIRON, f"PAY88_{missing}": ""}
    rejected(Credentials.from_env, environ, says=f"set PAY88_{missing} (or EIGHTY_EIGHT_PAY_{missing})")


# The base URL


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        (None, "must be a str"),
        (b"https://api.88pay.io", "must be a str"),
        ("", "https://"),
        ("api.88pay.io", "https://"),
        ("//api.88pay.io", "https://"),
        ("ftp://api.88pay.io", "https://"),
        ("file:///etc/passwd", "https://"),
        ("redis://api.88pay.io", "https://"),
        ("https://", "https://"),
        ("https:///path", "https://"),
        ("https://:443", "https://"),
        ("https:api.88pay.io", "https://"),
        ("https://[::1", SANDBOX_URL),
        ("https://api.88pay.io:port", SANDBOX_URL),
        ("https://api.88pay.io:99999", SANDBOX_URL),
        (f"https://api.88pay.io:{KEY}", SANDBOX_URL),
        ("http://api.88pay.io", "clear text"),
        ("http://10.0.0.1", "clear text"),
        ("http://0.0.0.0", "clear text"),
        ("http://localhost.evil.example", "clear text"),
        ("http://127.0.0.1.evil.example", "clear text"),
        ("http://[::2]", "clear text"),
        (f"https://user:{KEY}@api.88pay.io", "user name"),
        (f"https://{KEY}@api.88pay.io", "user name"),
        ("https://@api.88pay.io", "user name"),
        ("http://localhost@evil.example", "user name"),
        ("https://api.88pay.io?x=1", "query"),
        (f"https://api.88pay.io/?api_key={KEY}", "query"),
        (f"https://api.88pay.io/#{KEY}", "fragment"),
        (" https://api.88pay.io", "space"),
        ("https://api.88pay.io\n", "control"),
        ("https://api.88pay.io/a b", "space"),
        ("https://api.88\x00pay.io", "control"),
        ("https://api.example/\u00e9", "percent-encode"),
        ("https://api.example/v1/..", "segment"),
        ("https://api.example/./v1", "segment"),
        ("https://api.example/%2E./v1", "segment"),
        ("https://api.example:0", SANDBOX_URL),
        ("https://%61pi.example", "xn--"),
        ("https://api.example\\x", "xn--"),
        ("https://api\u3002example", "xn--"),
        ("https://\uff41pi.example", "xn--"),
        ("https://a\u200dpi.example", "control"),
        ("https://\U0001f4b0.example", "xn--"),
        ("https://[::1%25]", "xn--"),
        ("http://[::2%25lo]", "clear text"),
        ("http://[::ffff:10.0.0.1]", "clear text"),
    ],
    ids=ascii,
)
def test_rule_13_a_base_url_that_cannot_be_used(base_url: Any, says: str) -> None:
    """Rejected when the manager is made, and never shown where it may hold a key."""
    rejected(TokenManager, CREDENTIALS, base_url=base_url, says=says)


@pytest.mark.parametrize(
    ("base_url", "canonical", "host", "port", "path"),
    [
        ("https://api.example", "https://api.example", "api.example", 443, "/api/auth/token"),
        ("https://api.example/", "https://api.example", "api.example", 443, "/api/auth/token"),
        ("HTTPS://API.Example", "https://api.example", "api.example", 443, "/api/auth/token"),
        ("https://api.example:8443//", "https://api.example:8443", "api.example", 8443, "/api/auth/token"),
        ("https://api.example/V1/", "https://api.example/V1", "api.example", 443, "/V1/api/auth/token"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1", "127.0.0.1", 1, "/api/auth/token"),
        ("http://127.8.9.10", "http://127.8.9.10", "127.8.9.10", 80, "/api/auth/token"),
        ("http://localhost", "http://localhost", "localhost", 80, "/api/auth/token"),
        ("HTTP://LOCALHOST:80", "http://localhost", "localhost", 80, "/api/auth/token"),
        ("https://api.example:443", "https://api.example", "api.example", 443, "/api/auth/token"),
        ("https://api.example:", "https://api.example", "api.example", 443, "/api/auth/token"),
        ("https://api.example:0443/V1", "https://api.example/V1", "api.example", 443, "/V1/api/auth/token"),
        ("https://api.example:80", "https://api.example:80", "api.example", 80, "/api/auth/token"),
        ("https://api.example.", "https://api.example.", "api.example.", 443, "/api/auth/token"),
        ("https://B\u00fcro.example", "https://xn--bro-hoa.example", "xn--bro-hoa.example", 443, "/api/auth/token"),
        ("https://api.88p\u0430y.io", "https://api.xn--88py-73d.io", "api.xn--88py-73d.io", 443, "/api/auth/token"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]", "::1", 80, "/api/auth/token"),
        ("https://[2001:DB8::0:1]", "https://[2001:db8::1]", "2001:db8::1", 443, "/api/auth/token"),
        ("https://[::FFFF:c000:201]", "https://[::ffff:192.0.2.1]", "::ffff:192.0.2.1", 443, "/api/auth/token"),
        ("http://[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]", "::ffff:127.0.0.1", 80, "/api/auth/token"),
        ("https://[fe80::1%25Eth0]", "https://[fe80::1%Eth0]", "fe80::1%Eth0", 443, "/api/auth/token"),
        ("https://[FE80::1%Eth0]", "https://[fe80::1%Eth0]", "fe80::1%Eth0", 443, "/api/auth/token"),
        ("http://[::1]:8080", "http://[::1]:8080", "::1", 8080, "/api/auth/token"),
    ],
)
def test_rule_13_a_base_url_that_can_be_used(base_url: str, canonical: str, host: str, port: int, path: str) -> None:
    """Upper case, slashes at the end, prefixes, ports; plain http on loopback."""
    endpoint = Endpoint.parse(base_url)
    assert (endpoint.base_url, endpoint.host, endpoint.port, endpoint.token_path) == (canonical, host, port, path)
    assert endpoint.token_url == canonical + "/api/auth/token"
    assert TokenManager(CREDENTIALS, base_url=base_url).base_url == canonical


@pytest.mark.parametrize(
    ("key", "base_url", "says"),
    [
        (LIVE_KEY, SANDBOX_URL, "PRODUCTION_URL"),
        (LIVE_KEY, SANDBOX_URL.upper() + "/", "PRODUCTION_URL"),
        (LIVE_KEY, SANDBOX_URL + ":443/v1", "PRODUCTION_URL"),
        (KEY, PRODUCTION_URL, "SANDBOX_URL"),
        (KEY, PRODUCTION_URL + "/", "SANDBOX_URL"),
        (KEY, PRODUCTION_URL + ".", "SANDBOX_URL"),
    ],
)
def test_rule_13_a_key_of_the_other_environment(key: str, base_url: str, says: str) -> None:
    """The message names the URL that would fit."""
    rejected(TokenManager, Credentials(key, MERCHANT), base_url=base_url, says=says)


@pytest.mark.parametrize(
    ("key", "base_url"),
    [
        (KEY, SANDBOX_URL),
        (LIVE_KEY, PRODUCTION_URL),
        ("other", SANDBOX_URL),
        ("other", PRODUCTION_URL),
        (KEY, "https://proxy.example"),
        (LIVE_KEY, "https://proxy.example"),
        (LIVE_KEY, "http://127.0.0.1:1"),
    ],
)
def test_rule_13_a_key_of_the_environment_or_of_an_unknown_one(key: str, base_url: str) -> None:
    """Only the two known hosts are compared."""
    TokenManager(Credentials(key, MERCHANT), base_url=base_url)


# What counts as a call to it


@pytest.mark.parametrize(
    ("scheme", "host", "port", "path", "authorization", "ours"),
    [
        ("https", "api.88pay.io", 443, "/api/balance", None, True),
        ("https", "api.88pay.io", None, "/", None, True),
        ("HTTPS", "API.88Pay.IO", None, "/api/balance", None, True),
        ("https", "api.88pay.io", 443, "/api/auth/token/more", None, True),
        ("https", "api.88pay.io", 443, "/api/balance?next=/api/auth/token", None, True),
        ("http", "api.88pay.io", 443, "/", None, False),
        ("http", "api.88pay.io", None, "/", None, False),
        ("ftp", "api.88pay.io", 443, "/", None, False),
        ("", "api.88pay.io", 443, "/", None, False),
        ("https", "api.88pay.io", 8443, "/", None, False),
        ("https", "api.88pay.io", 80, "/", None, False),
        ("https", "api.88pay.io.", 443, "/", None, False),
        ("https", "api.88pay.io.evil.example", 443, "/", None, False),
        ("https", "evil.example", 443, "/api.88pay.io", None, False),
        ("https", "api.88pay.io@evil.example", 443, "/", None, False),
        ("https", "evil.example#api.88pay.io", 443, "/", None, False),
        ("https", "xapi.88pay.io", 443, "/", None, False),
        ("https", "x.api.88pay.io", 443, "/", None, False),
        ("https", "88pay.io", 443, "/", None, False),
        ("https", "api-sandbox.88pay.io", 443, "/", None, False),
        ("https", "api.88p\u0430y.io", 443, "/", None, False),
        ("https", "api\u30028\u20288pay.io", 443, "/", None, False),
        ("https", "", 443, "/", None, False),
        ("https", "api.88pay.io", 0, "/", None, False),
        ("https", "[api.88pay.io]", 443, "/", None, True),
        ("https", "api.88pay.io", 443, "/api/auth/token", None, False),
        ("https", "api.88pay.io", 443, "/api/auth/token?x=1", None, False),
        ("https", "api.88pay.io", 443, "/api/balance", "Bearer mine", False),
        ("https", "api.88pay.io", 443, "/api/balance", "bearer mine", False),
        ("https", "api.88pay.io", 443, "/api/balance", "BEARER mine", False),
        ("https", "api.88pay.io", 443, "/api/balance", "Bearer ", False),
        ("https", "api.88pay.io", 443, "/api/balance", "Basic dTpw", True),
        ("https", "api.88pay.io", 443, "/api/balance", "Digest x", True),
        ("https", "api.88pay.io", 443, "/api/balance", "Bearerx mine", True),
        ("https", "api.88pay.io", 443, "/api/balance", "", True),
    ],
    ids=ascii,
)
def test_rule_13_only_the_exact_origin_is_covered(
    scheme: str, host: str, port: int | None, path: str, authorization: str | None, ours: bool
) -> None:
    """Similar URLs do not count. Neither do (rule 14) requests with their own Bearer header, nor the token endpoint."""
    assert Endpoint.parse(PRODUCTION_URL).covers(scheme, host, port, path, authorization) is ours
    manager = TokenManager(Credentials("sk_live_1", "MCH-1"), base_url=PRODUCTION_URL)
    assert manager.for_request(scheme, host, port, path, authorization) is (manager if ours else None)


def test_rule_13_ports_and_prefixes() -> None:
    """A port that is not the default has to be named; below a prefix the token path is another."""
    endpoint = Endpoint.parse("http://localhost:8080/v1")
    assert endpoint.covers("http", "localhost", 8080, "/v1/x", None)
    assert endpoint.covers("http", "localhost", 8080, "/api/auth/token", None)
    assert not endpoint.covers("http", "localhost", 8080, "/v1/api/auth/token", None)
    assert not endpoint.covers("http", "localhost", None, "/v1/x", None)
    assert not endpoint.covers("http", "127.0.0.1", 8080, "/v1/x", None)
    assert Endpoint.parse("http://localhost").covers("http", "localhost", None, "/", None)
    assert Endpoint.parse("http://[::1]:8080").covers("http", "::1", 8080, "/", None)


# The environment


@pytest.mark.parametrize(
    ("environ", "base_url"),
    [
        ({}, SANDBOX_URL),
        ({"PAY88_ENVIRONMENT": ""}, SANDBOX_URL),
        ({"PAY88_ENVIRONMENT": "sandbox"}, SANDBOX_URL),
        ({"PAY88_ENVIRONMENT": "production"}, PRODUCTION_URL),
        ({"PAY88_ENVIRONMENT": "production", "PAY88_BASE_URL": "http://127.0.0.1:1"}, "http://127.0.0.1:1"),
        ({"PAY88_ENVIRONMENT": "production", "PAY88_BASE_URL": ""}, PRODUCTION_URL),
        ({"PAY88_ENVIRONMENT": "nonsense", "PAY88_BASE_URL": "https://x.example"}, "https://x.example"),
    ],
)
def test_the_environment_names_the_base_url(environ: dict[str, str], base_url: str) -> None:
    """The sandbox by default; ``PAY88_BASE_URL`` overrides the environment."""
    assert url_from_env(environ) == base_url


@pytest.mark.parametrize("name", ["Production", "live", "prod", "test", " sandbox", KEY])
def test_an_unknown_environment(name: str) -> None:
    """Not guessed at; the message names the two there are, and shows no key put there by mistake."""
    rejected(TokenManager.from_env, {**ENVIRON, "PAY88_ENVIRONMENT": name}, says="set it to 'sandbox' or 'production'")


def test_a_manager_comes_from_the_environment() -> None:
    """All variables are checked together."""
    environ = {**ENVIRON, "PAY88_STORE": "memory://"}
    assert TokenManager.from_env(environ).base_url == SANDBOX_URL
    rejected(TokenManager.from_env, {**environ, "PAY88_ENVIRONMENT": "production"}, says="SANDBOX_URL")
    rejected(TokenManager.from_env, {**environ, "PAY88_STORE": f"nonsense://{KEY}"}, says="store")
    rejected(TokenManager.from_env, {}, says="PAY88_API_KEY")


def test_from_env_takes_what_no_variable_sets() -> None:
    """Each option that is not in the environment has the same name and default, and reaches the manager."""
    taken = dict(inspect.signature(TokenManager.from_env).parameters)
    del taken["environ"]
    in_environment, for_tests = {"credentials", "base_url", "store", "fallback_store"}, {"clock"}
    options = inspect.signature(TokenManager).parameters
    assert taken == {name: each for name, each in options.items() if name not in in_environment | for_tests}
    for name in taken:
        wrong = [3] if name == "listeners" else 3
        rejected(TokenManager.from_env, ENVIRON, **{name: wrong}, says=name.removesuffix("s"))
    retry = RetryPolicy(attempts=2)
    assert TokenManager.from_env(ENVIRON, retry=retry).retry is retry


# The policy

POSITIVE = ("reuse_for", "fetch_timeout", "fetch_attempts", "max_retry_after", "fallback_share")
NAMES = [each.name for each in fields(TokenPolicy) if each.name != "limits"]


@pytest.mark.parametrize(
    "value", [-1, -0.001, math.nan, math.inf, -math.inf, True, False, "5", None, [5], 10**400, -(10**400), 1e300, 1j],
    ids=lambda value: f"{value!r:.20}",
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_a_policy_value_that_makes_no_sense(name: str, value: Any) -> None:
    """Negative, not a number, without end, or of a wrong type: the message begins with its name."""
    if (name, value) == ("fallback_share", None):
        assert TokenPolicy(fallback_share=None) == TokenPolicy(), "which is to say: automatic"
        return
    rejected(TokenPolicy, **{name: value}, says=name)


@pytest.mark.parametrize("value", [0, 5e-324, 1e-310, 1e-7], ids=repr)
@pytest.mark.parametrize(
    ("kind", "name"),
    [(TokenPolicy, "reuse_for"), (TokenPolicy, "fetch_timeout"), (TokenPolicy, "max_retry_after"),
     (BreakerPolicy, "window"), (BreakerPolicy, "open_for"), (Clock, "speed")],
)  # fmt: skip
def test_a_number_that_cannot_be_zero(kind: Any, name: str, value: float) -> None:
    """Nothing would ever be sent or used, and arithmetic overflows with the smallest numbers."""
    rejected(kind, **{name: value}, says=f"{name} is {value:g}: it must be 1e-06 or more")
    TokenManager(CREDENTIALS, policy=TokenPolicy(reuse_for=1e-6, fetch_timeout=1e-6, max_retry_after=1e-6))


@pytest.mark.parametrize(("kind", "name"), [(TokenPolicy, "fetch_attempts"), (BreakerPolicy, "failure_threshold")])
def test_a_count_that_cannot_be_zero(kind: Any, name: str) -> None:
    """Nothing would ever be sent."""
    rejected(kind, **{name: 0}, says=f"{name} is 0: it must be 1 or more")


@pytest.mark.parametrize("limit", ["10/11 year", "1/292471209 year", "10/99999999999999999999 minute"])
def test_a_window_that_no_store_can_keep(limit: str) -> None:
    """The message names the limit."""
    rejected(TokenPolicy, limits=("10/minute", limit), says=limit.replace("/", " per ") + " in limits is too long")
    TokenPolicy(limits=("99999999999999999999/10 year",))


@pytest.mark.parametrize("share", [0, 1e-310, 1e-7, 1.001, 4])
def test_a_share_that_is_none(share: float) -> None:
    """Too small for arithmetic, or more than the whole."""
    rejected(TokenPolicy, fallback_share=share, says="fallback_share is")


@pytest.mark.parametrize("name", ["fetch_attempts", "max_forced_refreshes", "forced_reserve"])
def test_counts_are_whole_numbers(name: str) -> None:
    """Two and a half attempts are none."""
    rejected(TokenPolicy, **{name: 2.5}, says=f"{name} must be")


@pytest.mark.parametrize("name", ["margin", "expiry_skew"])
@pytest.mark.parametrize("value", [60, 60.0, 100])
def test_a_margin_over_the_lifetime(name: str, value: float) -> None:
    """Every token would be too old when it comes."""
    rejected(TokenPolicy, **{name: value}, says="less than the lifetime of a token (60 s)")


def test_a_backoff_whose_cap_is_below_its_base() -> None:
    """The message says which one to raise."""
    rejected(TokenPolicy, backoff_base=5, backoff_cap=4, says="backoff_cap")


@pytest.mark.parametrize(
    "limits",
    [(), [], None, 5, "10/minute", ["10/minute"], ("",), ("ten a minute",), (5,), (None,), ("10/minute", "x"),
     ("0/minute",), ("-1/minute",), ("10/fortnight",), ("10/minute garbage",)],
    ids=repr,
)  # fmt: skip
def test_limits_that_are_none(limits: Any) -> None:
    """Not a tuple, empty, or not in the notation; the message shows one that is."""
    rejected(TokenPolicy, limits=limits, says='"10/minute"')


def test_good_policies_are_accepted() -> None:
    """Zeroes where they switch something off, whole numbers and fractions, other limits."""
    zero = [name for name in NAMES if name not in POSITIVE]
    TokenPolicy(**dict.fromkeys(zero, 0))  # type: ignore[arg-type]
    TokenPolicy(reuse_for=0.5, margin=59.9, max_wait=3_600, fetch_attempts=1)
    assert [str(each) for each in TokenPolicy(limits=("5 per 2 minutes", "1/second")).rate_limits()] == [
        "5 per 2 minute",
        "1 per 1 second",
    ]
    several = TokenPolicy(limits=("10/minute;100/hour",)).rate_limits()
    assert several == TokenPolicy().rate_limits(), "no limit is dropped silently"


# The manager


@pytest.mark.parametrize("credentials", [None, KEY, (KEY, MERCHANT), {"api_key": KEY}, 5])
def test_a_manager_wants_credentials_or_a_callable(credentials: Any) -> None:
    """Anything else is rejected immediately, and not shown."""
    rejected(TokenManager, credentials, says="Credentials(")


@pytest.mark.parametrize("store", ["", "memory", "nonsense://x", f"nonsense://{KEY}", None, 5, {}, [KEY], b"memory://"])
def test_an_unknown_store(store: Any) -> None:
    """The message names one that works."""
    rejected(TokenManager, CREDENTIALS, store=store, says="must be")


@pytest.mark.parametrize("min_validity", [-1, 59.1, 60, math.nan, math.inf])
def test_a_validity_no_token_has(min_validity: float) -> None:
    """The message says up to what it can be."""
    rejected(TokenManager(CREDENTIALS).get_token, min_validity=min_validity, says="between 0 and 59")


def test_a_manager_that_was_closed() -> None:
    """It rejects every request and every call."""
    with TokenManager(CREDENTIALS) as manager:
        pass
    rejected(manager.get_token, says="closed")


def test_shared_managers_are_one_for_the_same_arguments() -> None:
    """However the URL is spelled; another key, URL or policy is another; a closed one is replaced."""
    manager = TokenManager.shared(CREDENTIALS, base_url="https://shared.example")
    same = TokenManager.shared(Credentials(KEY, MERCHANT), base_url="HTTPS://Shared.Example/", policy=TokenPolicy())
    assert same is manager
    assert TokenManager.shared(Credentials(KEY + "2", MERCHANT), base_url="https://shared.example") is not manager
    assert TokenManager.shared(CREDENTIALS, base_url="https://shared2.example") is not manager
    assert TokenManager.shared(CREDENTIALS, base_url=manager.base_url, policy=TokenPolicy(margin=9)) is not manager
    manager.close()
    assert TokenManager.shared(CREDENTIALS, base_url="https://shared.example") is not manager
    rejected(TokenManager.shared, Credentials(LIVE_KEY, MERCHANT), base_url=SANDBOX_URL, says="PRODUCTION_URL")


# Copies


@dataclass
class Settings:
    """A configuration that holds what must not be copied."""

    manager: TokenManager
    credentials: Credentials
    nested: dict[str, Any] = field(default_factory=dict)


def test_copies_hold_the_same_manager_and_credentials() -> None:
    """Alone, in containers, in dataclasses and in settings that are copied deeply."""
    manager = TokenManager(CREDENTIALS)
    settings = Settings(manager, CREDENTIALS, {"all": [manager]})
    for copied in (copy.copy(settings), copy.deepcopy(settings), replace(settings)):
        assert copied.manager is manager
        assert copied.credentials is CREDENTIALS
        assert copied.nested["all"][0] is manager
    assert asdict(settings)["manager"] is manager
    token = Token("access", "session", 60, 0)
    for each in (manager, CREDENTIALS, token):
        assert copy.copy(each) is copy.deepcopy(each) is each


@pytest.mark.parametrize(
    ("value", "says"),
    [(TokenManager(CREDENTIALS), "from_env()"), (CREDENTIALS, "from_env()"), (Token("a", "b", 60, 0), "TokenManager")],
    ids=lambda each: type(each).__name__,
)
def test_rule_15_pickling_stays_rejected(value: Any, says: str) -> None:
    """In a configuration, too; the message says what to do instead."""
    for each in (value, Settings(value, value), [value]):
        with pytest.raises(TypeError, match=re.escape(says)):
            pickle.dumps(each)


# Values of the wrong type


NO_LISTENERS: list[object] = [None, 5, True, math.nan, object(), print, "print", [1]]
NO_CLOCKS: list[object] = ["5", 5, True, math.nan, object(), [1]]
NO_MAPPINGS: list[object] = ["5", 5, True, math.nan, object(), ["a"]]


@pytest.mark.parametrize(
    ("name", "value"),
    [*(("listeners", value) for value in NO_LISTENERS), *(("clock", value) for value in NO_CLOCKS)],
    ids=lambda value: str(value)[:12],
)
def test_a_manager_names_the_argument_of_a_wrong_type(name: str, value: object) -> None:
    """In every way to make one that takes the argument."""
    rejected(TokenManager, CREDENTIALS, **{name: value}, says=name)
    if name == "listeners":
        rejected(TokenManager.shared, CREDENTIALS, listeners=value, says=name)
        rejected(TokenManager.from_env, ENVIRON, listeners=value, says=name)


@pytest.mark.parametrize("value", NO_MAPPINGS, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("make", [TokenManager.from_env, Credentials.from_env])
def test_an_environment_is_a_mapping(make: Any, value: object) -> None:
    """As ``os.environ`` is."""
    rejected(make, value, says="environ must be a Mapping")


@pytest.mark.parametrize("value", [None, "", "5", b"5", True, [], [5], object(), -1, math.nan, math.inf, 60, 10**400])
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_validity_is_checked_whether_a_token_is_cached_or_not(value: Any, is_cached: bool) -> None:
    """By both methods, before anything is sent."""
    with TokenManager(CREDENTIALS) as manager:
        if is_cached:
            manager._state.current = Token("access", "session", 60.0, 0.0), math.inf
        rejected(manager.get_token, min_validity=value, says="min_validity")
        rejected(asyncio.run, manager.aget_token(min_validity=value), says="min_validity")
        assert manager.stats().token_requests == 0


@pytest.mark.parametrize("value", [0, 0.0, -0.0, False])
def test_a_validity_of_zero_is_none(value: float) -> None:
    """Any cached token will do."""
    with TokenManager(CREDENTIALS) as manager:
        token = Token("access", "session", 60.0, 0.0)
        manager._state.current = token, math.inf
        assert manager.get_token(min_validity=value) is token
        assert asyncio.run(manager.aget_token(min_validity=value)) is token


@pytest.mark.parametrize("value", [None, "access", 5, object()])
def test_only_a_token_can_be_discarded(value: Any) -> None:
    """The access token alone is none."""
    with TokenManager(CREDENTIALS) as manager:
        rejected(manager.invalidate, value, says="token must be a Token")


@pytest.mark.parametrize(
    ("fetch_timeout", "age", "timeout"),
    [(5, 0, 5), (5, 1, 4), (5, 4, 1), (5, 4.1, None), (1, 3.9, 1), (1, 4.1, None), (2, 3.5, 1.5), (100, 50, 50),
     (100, 81, None), (0.001, 4.9, 0.001)],
)  # fmt: skip
def test_rule_05_a_request_arrives_while_its_unit_counts(
    fetch_timeout: float, age: float, timeout: float | None
) -> None:
    """Its timeout ends within the guard that is added to each window, or it is not sent."""
    policy = TokenPolicy(fetch_timeout=fetch_timeout)
    assert policy.timeout_after(age) == (None if timeout is None else pytest.approx(timeout))
    assert timeout is None or age + timeout <= policy.guard
