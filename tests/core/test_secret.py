"""Secrets print as nothing and leave the process in no pickle; errors are data and do."""

from __future__ import annotations

import copy
import importlib
import io
import logging
import pickle
import pprint
import reprlib
import textwrap
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
from rich.console import Console
from rich.traceback import Traceback

import pay88_adapters
from pay88_adapters import ConfigurationError, Credentials, Pay88Error, Token, TokenManager
from pay88_adapters.core.errors import ERROR_CLASSES, AdapterErrors, Failure
from pay88_adapters.core.secret import InjectedHeader, Secret, redact
from pay88_adapters.engine.logs import hide_secrets_in_logs

KEY, MERCHANT = "sk_test_0123456789abcdef", "MCH-COL-1"
ACCESS, SESSION = "eyJhbGciOiJFUzI1NiJ9.cGF5bG9hZA.c2ln", "sess_53a2cfc4-441e-4554"
SECRETS = (KEY, ACCESS, SESSION)

STACKS = ("urllib3", "httpx", "aiohttp")


def credentials() -> Credentials:
    """Return credentials."""
    return Credentials(KEY, MERCHANT)


def token() -> Token:
    """Return a token."""
    return Token(ACCESS, SESSION, 60.0, 0.0)


def printed(thing: object) -> Iterator[str]:
    """Yield what printing *thing*, or a collection that holds it, would show."""
    for shape in (thing, [thing], {"key": thing}, (thing, {"nested": [thing]})):
        yield repr(shape)
        yield pprint.pformat(shape)
        yield f"{shape!r}"
        yield ascii(shape)
        yield str(KeyError(shape))


# Strings


@pytest.mark.parametrize("kind", [Secret, InjectedHeader])
def test_rule_15_a_secret_is_its_value_and_prints_as_nothing(kind: type[Secret]) -> None:
    """It works wherever a string does, and shows itself in no repr, alone or in anything."""
    secret = kind(KEY)
    assert (secret == KEY, hash(secret) == hash(KEY), f"{secret}", secret.encode()) == (True, True, KEY, KEY.encode())
    assert {str(secret): 1}[secret] == 1
    assert not [text for text in printed(secret) if KEY in text]


PARTS: dict[str, Callable[[Any], object]] = {
    "slice": lambda text: text[3:40],
    "character": lambda text: text[-1],
    "every other": lambda text: text[::2],
    "sum": lambda text: "Bearer " + text[:20] + text[-2:],
    "repeated": lambda text: (2 * text, text * 2),
    "split": lambda text: (text.split("."), text.rsplit(".", 1), text.splitlines()),
    "partition": lambda text: (text.partition("."), text.rpartition(".")),
    "strip": lambda text: (text.strip(), text.lstrip("e"), text.rstrip()),
    "affixes": lambda text: (text.removeprefix("eyJ"), text.removesuffix("n")),
    "padded": lambda text: (text.ljust(99), text.rjust(99), text.center(99), text.zfill(99), text.expandtabs()),
    "case": lambda text: (
        text.lower(),
        text.upper(),
        text.casefold(),
        text.title(),
        text.capitalize(),
        text.swapcase(),
    ),
    "replaced": lambda text: (text.replace("y", "z"), text.translate({ord("y"): None})),
}


@pytest.mark.parametrize("kind", [Secret, InjectedHeader])
@pytest.mark.parametrize("part", PARTS)
def test_rule_15_a_part_of_a_secret_is_as_hidden_as_the_whole(part: str, kind: type[Secret]) -> None:
    """What printers cut, clients strip and callers put together prints as nothing, and is the text that it would be."""
    plain, hidden = PARTS[part](ACCESS), PARTS[part](kind(ACCESS))
    assert (hidden, type(hidden) is type(plain)) == (plain, isinstance(plain, (list, tuple)))
    pieces = {ACCESS[at : at + 4].lower() for at in range(len(ACCESS) - 4)}
    assert not [text for text in printed(hidden) if any(piece in text.lower() for piece in pieces)]


def test_rule_15_a_secret_raises_what_a_string_does() -> None:
    """When it is added to a value that is no string, the other operand decides first."""

    class Other:
        def __add__(self, other: str) -> str:
            return "added"

        __radd__ = __add__

    assert (Secret(KEY) + Other(), Other() + Secret(KEY)) == ("added", "added")
    for act in (lambda: Secret(KEY) + 1, lambda: 1 + Secret(KEY), lambda: Secret(KEY)["a"], lambda: Secret(KEY) * "a"):  # type: ignore[operator,index]
        with pytest.raises(TypeError):
            act()


def rich_locals(error: BaseException) -> str:
    """Print a traceback as rich does."""
    console = Console(file=io.StringIO(), width=500)
    console.print(Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def short(limit: int) -> reprlib.Repr:
    """Return what cuts every string down to *limit* characters."""
    cutter = reprlib.Repr()
    cutter.maxstring = cutter.maxother = limit
    return cutter


@pytest.mark.parametrize(
    "show",
    [
        rich_locals,
        lambda error: "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()),
        lambda error: pprint.pformat(error.__traceback__.tb_next.tb_frame.f_locals, width=10),
        lambda error: short(30).repr(list(error.__traceback__.tb_next.tb_frame.f_locals.values())),
        lambda error: short(3).repr_str(error.__traceback__.tb_next.tb_frame.f_locals["access_token"], 1),
        lambda error: textwrap.shorten(repr(error.__traceback__.tb_next.tb_frame.f_locals), 50),
    ],
)
def test_rule_15_printers_that_cut_long_strings_show_no_part(show: Callable[[Any], str]) -> None:
    """They truncate before they take the repr."""

    def fail(headers: dict[str, str], access_token: str) -> None:
        start = access_token[:-1]
        raise ValueError(len(headers) + len(start))

    made = Token(ACCESS * 10, SESSION * 10, 60.0, 0.0)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - of the line above
        fail(made.headers(), made.access_token)
    text = show(caught.value)
    assert not [secret for secret in SECRETS if secret[:6] in text]


@pytest.mark.parametrize("make", [credentials, token])
def test_rule_15_credentials_and_tokens_print_no_secret(make: Callable[[], object]) -> None:
    """Neither whole, nor field by field, nor as a dict."""
    thing: Any = make()
    for each in (thing, asdict(thing), getattr(thing, "attached", None)):
        assert not [text for text in (*printed(each), str(each)) if any(secret in text for secret in SECRETS)]
    assert not any(secret in repr(each) for each in (token().headers(), token().encoded()) for secret in SECRETS)
    assert MERCHANT in repr(credentials())
    assert "expires_in=60.0" in repr(token())


def test_rule_15_the_headers_are_a_new_dict_each_time() -> None:
    """A caller may do with it what it likes."""
    mine = token().headers()
    assert dict(mine) == {"Authorization": f"Bearer {ACCESS}", "x-session-id": SESSION}
    held = token()
    held.headers().clear()
    assert held.headers() == mine == held.attached


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(credentials, id="Credentials"),
        pytest.param(token, id="Token"),
        pytest.param(lambda: token().headers(), id="headers"),
        pytest.param(lambda: token().access_token, id="access_token"),
        pytest.param(lambda: credentials().api_key, id="api_key"),
        pytest.param(lambda: Secret(KEY), id="Secret"),
        pytest.param(lambda: TokenManager(credentials()), id="TokenManager"),
    ],
)
def test_rule_15_nothing_secret_is_pickled(make: Callable[[], object], protocol: int) -> None:
    """Not even as part of something else; the message says what to do instead."""
    for thing in (make(), [make()], {"key": make()}):
        with pytest.raises(TypeError, match="process"):
            pickle.dumps(thing, protocol)


def test_rule_21_a_collection_of_secrets_can_be_copied() -> None:
    """Clients copy their headers, also deeply; the copies print nothing either."""
    for original in (token().headers(), {"key": [Secret(KEY)]}):
        for duplicate in (copy.copy(original), copy.deepcopy(original)):
            assert duplicate == original
            assert not any(secret in repr(duplicate) for secret in SECRETS)


def test_rule_15_a_manager_prints_where_it_goes_and_no_secret() -> None:
    """Its repr and its figures."""
    manager = TokenManager(credentials())
    assert repr(manager) == "<TokenManager https://api-sandbox.88pay.io>"
    assert KEY not in repr(manager.stats())
    manager.close()
    assert "closed" in repr(manager)


def made(key: str) -> Credentials:
    """Make credentials."""
    return Credentials(key, MERCHANT)


def from_env(key: str) -> Credentials:
    """Read credentials."""
    return Credentials.from_env({"PAY88_API_KEY": key, "PAY88_MERCHANT_ID": MERCHANT})


@pytest.mark.parametrize("bad", [f"{KEY}\n", f" {KEY}", f"{KEY}\u200b"], ids=ascii)
@pytest.mark.parametrize("make", [made, from_env])
def test_rule_15_a_key_that_is_rejected_is_in_no_local_variable(make: Callable[[str], object], bad: str) -> None:
    """Tools that print tracebacks with locals print those of this package's frames, too."""
    with pytest.raises(ConfigurationError) as caught:
        make(bad)
    for frame, _ in traceback.walk_tb(caught.value.__traceback__):
        if frame.f_code.co_filename != __file__:
            shown = {name: repr(value) for name, value in frame.f_locals.items() if name != "environ"}
            assert KEY not in str(shown), frame.f_code


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"a {KEY} b", "a [secret] b"),
        (f"{KEY}{KEY}", "[secret][secret]"),
        ("merchant-secret", "[secret]"),
        ("sk_live_abc, SK_TEST_DEF", "[secret], [secret]"),
        (f"x {SESSION} y", "x [secret] y"),
        (f"'{ACCESS}'", "'[secret]'"),
        ("Authorization: bearer  abc", "Authorization: [secret]"),
        ("a\nb\r\tc\x00d\x1b[0m\u202ee", "a b  c d [0m e"),
        ("naïve café 支付", "naïve café 支付"),
        ("x" * 199 + KEY, "x" * 199 + "["),
        ("x" * 1_000, "x" * 200),
        ("", ""),
    ],
    ids=ascii,
)
def test_rule_15_foreign_text_is_cleaned(text: str, clean: str) -> None:
    """One line, 200 characters, no secret: neither a known one nor what looks like one."""
    assert redact(text, KEY, "merchant-secret") == clean


# The log of HTTP/2


def record(message: str, *args: object) -> str:
    """Return what a record of hpack's becomes."""
    hide_secrets_in_logs()
    made = logging.LogRecord("hpack.hpack", logging.DEBUG, __file__, 1, message, args, None)
    assert logging.getLogger("hpack.hpack").filter(made)
    return made.getMessage() + repr(made.args)


@pytest.mark.parametrize("name", [b"authorization", b"Authorization", b"x-session-id", b"x-api-key", b"X-API-Key"])
def test_rule_15_the_header_log_shows_names_and_no_values(name: bytes) -> None:
    """Side by side, as pairs, and whole blocks, which are no cipher."""
    secret = ACCESS.encode()
    for shown in (
        record("Adding %s=%s to the header table, sensitive:%s, huffman:%s", name, secret, False, True),
        record("Adding %s to the header table, sensitive:%s, huffman:%s", (name, secret), False, True),
        record("Evicting %s: %s from the header table", name, secret),
    ):
        assert name.decode() in shown
        assert ACCESS not in shown
    assert ACCESS not in record("Encoded header block to %s", secret)


def test_rule_15_the_header_log_shows_everything_else() -> None:
    """Other fields, numbers, and records without arguments."""
    assert "text/html" in record("Adding %s=%s to the header table", b"accept", b"text/html")
    assert "text/html" in record("Adding %s to the header table", (b"accept", b"text/html"))
    assert "Encoding 5 with 7 bits" in record("Encoding %d with %d bits", 5, 7)
    assert "nothing" in record("nothing")


def test_rule_15_the_filter_is_added_once() -> None:
    """Also if the module is imported several times."""
    for _ in range(3):
        hide_secrets_in_logs()
    for name in ("hpack.hpack", "hpack.table"):
        assert len(logging.getLogger(name).filters) == 1


# Errors


FIELDS = {"status": 429, "server_message": "slow down", "retry_after": 12.5, "retryable": True}


def same(error: Pay88Error, other: object) -> None:
    """Compare type, text and every field."""
    assert type(other) is type(error)
    assert (str(other), vars(other)) == (str(error), vars(error))


def test_all_errors_of_the_public_api_are_raised_and_documented() -> None:
    """Each is a :class:`Pay88Error`, and says in a sentence what it means."""
    public = {
        each
        for name in pay88_adapters.__all__
        if isinstance(each := getattr(pay88_adapters, name), type) and issubclass(each, Exception)
    }
    assert public == {*ERROR_CLASSES, Pay88Error}
    assert all(each.__doc__ and each.__doc__.strip() for each in public)
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(pay88_adapters.TokenResponseInvalid, pay88_adapters.TokenEndpointUnavailable)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [*ERROR_CLASSES, Pay88Error])
def test_rule_18_every_error_pickles(kind: type[Pay88Error], protocol: int) -> None:
    """With its text and all its fields, through every protocol; and it can be copied."""
    error = kind("the message", **FIELDS)  # type: ignore[arg-type]
    assert vars(error) == FIELDS
    same(error, pickle.loads(pickle.dumps(error, protocol)))
    same(error, copy.copy(error))
    same(error, copy.deepcopy(error))
    assert error.args == ("the message",)


@pytest.mark.parametrize("kind", ERROR_CLASSES)
def test_rule_18_a_failure_becomes_a_new_error_each_time(kind: type[Pay88Error]) -> None:
    """A thousand callers share no traceback; all share the cause, which is in no repr."""
    cause = OSError(KEY)
    failure = Failure(kind, "the message", 429, "slow down", 99.0, True, cause)
    first, second = failure.error(12.5), failure.error(None)
    assert first is not second
    assert (type(first), str(first), vars(first)) == (kind, "the message; retry in 13 s", FIELDS)
    assert str(second) == "the message"
    assert second.retry_after is None, "each caller gets the seconds from its own now on"
    assert first.__cause__ is second.__cause__ is cause
    assert KEY not in repr(failure)
    assert pickle.loads(pickle.dumps(Failure(kind, "m", retryable=True))) == Failure(kind, "m", retryable=True)


def base_of(stack: str) -> type[Exception]:
    """Return the base exception of a client library."""
    if stack == "urllib3":
        import urllib3

        return urllib3.exceptions.HTTPError
    if stack == "httpx":
        import httpx

        return httpx.TransportError
    import aiohttp

    return aiohttp.ClientError


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ERROR_CLASSES)
@pytest.mark.parametrize("stack", STACKS)
def test_rule_18_every_error_of_every_client_library_is_both_and_pickles(
    stack: str, kind: type[Pay88Error], protocol: int
) -> None:
    """Found by module and name; both the core's class and the library's base exception; nothing gets lost."""
    module = importlib.import_module(f"pay88_adapters.{stack}")
    subclass = getattr(module, kind.__name__)
    assert issubclass(subclass, kind)
    assert issubclass(subclass, base_of(stack))
    assert (subclass.__module__, subclass.__doc__) == (module.__name__, kind.__doc__)

    core = kind("the message", **FIELDS)  # type: ignore[arg-type]
    core.__cause__ = OSError("why")
    error = module._errors.convert(core)

    assert type(error) is subclass
    assert (str(error), error.__cause__, error.__suppress_context__) == ("the message", core.__cause__, True)
    assert {name: vars(error)[name] for name in FIELDS} == FIELDS
    assert set(vars(error)) >= set(vars(base_of(stack)("any"))), "the stack's own fields are there, too"
    same(error, pickle.loads(pickle.dumps(error, protocol)))
    same(error, copy.copy(error))
    assert module._errors.convert(error) is error, "already this stack's"


def test_rule_18_pickle_finds_the_client_specific_subclasses() -> None:
    """One class for each error, under its core class's name, and no other public name."""
    namespace: dict[str, Any] = {"__name__": "somewhere"}
    AdapterErrors(RuntimeError, namespace)
    assert {name for name in namespace if name[0] != "_"} == {kind.__name__ for kind in ERROR_CLASSES}
    assert all(issubclass(namespace[kind.__name__], (kind, RuntimeError)) for kind in ERROR_CLASSES)
