"""The form of every error message in the source, and of those with parts from elsewhere."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import pay88_adapters
from pay88_adapters import ConfigurationError, Credentials
from pay88_adapters.core.arguments import class_of
from pay88_adapters.core.errors import Failure, fitted, in_seconds, shorten
from pay88_adapters.core.wire import TokenResponse, network_failure, parse_token_response, unexpected_failure
from support.messages import MOST, faults_of

SOURCE = Path(pay88_adapters.__file__).parent
RAISERS = {
    "CannotServe", "CircuitOpen", "ConfigurationError", "Failure", "NoResponse", "RequestBudgetExhausted", "StoreError",
    "StoreUnusable", "TokenTooOld",
}  # fmt: skip
SHOWN = "x" * 8  # stands for what a placeholder shows
LONG = "x" * 1000


def literal(node: ast.expr) -> str | None:
    """Return the text of a message, with stand-ins for its placeholders; ``None`` for one that is made elsewhere."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(str(each.value) if isinstance(each, ast.Constant) else SHOWN for each in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (literal(left) or SHOWN) + (literal(right) or SHOWN)
        case _:
            return None


def messages() -> Iterator[tuple[str, str]]:
    """Yield each message in the source, with its place."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISERS):
                continue
            position = 1 if node.func.id == "Failure" else 0
            text = literal(node.args[position]) if len(node.args) > position else None
            if text is not None:
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", text


def test_every_message_of_the_source_has_the_form() -> None:
    """At most 200 characters, lower case, no full stop; and there are many of them."""
    found = list(messages())
    assert len(found) > 60
    assert {place: faults for place, text in found if (faults := faults_of(text))} == {}


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("said", ["", "Invalid API key or merchant ID", f"{LONG}."], ids=["none", "usual", "long"])
@pytest.mark.parametrize("where", ["https://api.88pay.io", f"https://{LONG}.example"], ids=["usual", "long"])
def test_the_message_of_a_response_of_any_length(status: int, said: str, where: str) -> None:
    """The status code, the merchant and the seconds stay, whatever the service and the configuration contain."""
    body = json.dumps({"message": said}).encode()
    for merchant_id in ("MCH-COL-1", f"MCH-COL-{LONG}"):
        failure = parse_token_response(
            TokenResponse(status, {}, body), 0.0, Credentials("sk_test_1", merchant_id), 0.0, base_url=where
        )
        assert isinstance(failure, Failure)
        for retry_after in (0.3, 45.0, 86_400.0):
            error = failure.error(retry_after)
            assert faults_of(str(error), retry_after) == []
            assert str(status) in str(error)
            assert "MCH-COL-" in str(error)


def test_messages_with_names_and_texts_of_any_length() -> None:
    """Exceptions, classes and base URLs of other people's code."""
    kind = type(LONG, (Exception,), {"__module__": LONG})
    assert faults_of(str(network_failure(kind(LONG), base_url=f"https://{LONG}").error(86_400.0)), 86_400.0) == []
    assert faults_of(str(unexpected_failure(kind(f"{LONG}.")).error(None))) == []
    assert len(class_of(kind())) <= 60
    with pytest.raises(ConfigurationError) as caught:
        Credentials(kind(), "MCH-COL-1")
    assert faults_of(str(caught.value)) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "0.1 s"), (4.42, "4.5 s"), (1, "1.0 s"), (9.99, "10 s"), (12.1, "13 s"), (3600, "3600 s")],
)
def test_seconds_are_rounded_up(seconds: float, text: str) -> None:
    """A retry after that time is never too early."""
    assert in_seconds(seconds) == text


def test_shortened_texts_keep_both_ends() -> None:
    """An ellipsis replaces the middle."""
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghij", 7) == "abc…hij"
    assert shorten("abcdefghij", 2) == ""
    assert len(fitted(SHOWN, LONG, "; retry")) < MOST
