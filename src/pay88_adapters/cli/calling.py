"""One managed call over urllib3, and its answer without secrets."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import click
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from pay88_adapters import Credentials, Pay88Error, TokenManager
from pay88_adapters.core.endpoint import Endpoint, url_from_env
from pay88_adapters.core.secret import mask, redact
from pay88_adapters.urllib3 import Pay88PoolManager

from .options import finishing
from .terminal import is_plain, printable

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = ("authorization", "x-session-id", "x-api-key", "x-merchant-id")


class NoAnswer(Pay88Error):
    """The call got no answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, without secrets."""

    status: int
    reason: str
    headers: dict[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call that may be made."""

    environ: Mapping[str, str] = field(repr=False)
    method: str
    url: str
    body: bytes | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(
        cls,
        environ: Mapping[str, str],
        method: str,
        target: str,
        data: str | None,
        headers: Sequence[str],
        fields: Sequence[str],
    ) -> Call:
        """Check what the command line says.

        Raises:
            click.BadParameter: It cannot be done.
            ConfigurationError: The environment cannot work.
        """
        if not _NAME.fullmatch(method):
            raise click.BadParameter(f"{redact(method)!r} is no HTTP method", param_hint="METHOD")
        url = _url(Endpoint.parse(url_from_env(environ)), target, fields)
        parsed = dict(_header(each) for each in headers)
        if data is not None and not any(name.lower() == "content-type" for name in parsed):
            parsed["Content-Type"] = "application/json"
        return cls(environ, method.upper(), url, None if data is None else _read(data), parsed)

    def make(self, timeout: float) -> Answer:
        """Make it.

        Args:
            timeout: Seconds to connect, and again between two pieces of the answer.

        Raises:
            Pay88Error: There was no token, or no answer.
        """
        with TokenManager.from_env(self.environ) as manager, finishing(manager):
            token = manager.get_token()
            secrets = [Credentials.from_env(self.environ).api_key, token.access_token, token.session_id]
            try:
                response = Pay88PoolManager(manager).request(
                    self.method, self.url, body=self.body, headers=self.headers, redirect=False, timeout=timeout
                )
            except (HTTPError, OSError) as error:
                if isinstance(error, Pay88Error):
                    raise
                raise NoAnswer(_broken(error)) from None
            if manager.stats().replayed:
                token = manager.get_token()  # the one that the answer is about
                secrets += [token.access_token, token.session_id]
        return Answer(
            response.status,
            printable(mask(response.reason or "", *secrets)),
            {printable(name): printable(mask(value, *secrets)) for name, value in response.headers.itermerged()},
            printable(mask(response.data.decode(errors="replace"), *secrets)),
        )


def show(answer: Answer, *, as_json: bool) -> None:
    """Show *answer* as a document, in colours, or as plain text."""
    if as_json:
        click.echo(json.dumps({**asdict(answer), "body": _parsed(answer.body)}))
        return
    head = [f"HTTP {answer.status} {answer.reason}", *(f"{name}: {value}" for name, value in answer.headers.items())]
    click.echo("\n".join([*head, ""]))
    if is_plain() or isinstance(_parsed(answer.body), str):
        click.echo(answer.body)
        return
    from rich.console import Console

    Console().print_json(answer.body)


def _url(endpoint: Endpoint, target: str, fields: Sequence[str]) -> str:
    def refused(why: str) -> click.BadParameter:
        return click.BadParameter(why, param_hint="PATH")

    if not target.isascii() or not target.isprintable() or " " in target:
        raise refused("it holds a space, control or non-ASCII character: percent-encode it")
    try:
        parts = urlsplit(endpoint.base_url + target if target.startswith("/") else target)
        port = parts.port
    except ValueError:
        raise refused("it is no URL") from None
    if not parts.hostname:
        raise refused("it must begin with a slash, or be a full URL")
    path = parts.path or "/"
    if "@" in parts.netloc or not endpoint.covers(parts.scheme, parts.hostname, port, "/", None):
        raise refused(f"a token goes to {endpoint.base_url} and nowhere else")
    if not endpoint.covers(parts.scheme, parts.hostname, port, path, None):
        raise refused("this is the token endpoint: use `pay88 token`")
    origin = endpoint.base_url.removesuffix(urlsplit(endpoint.base_url).path)
    query = "&".join(filter(None, [parts.query, urlencode([_pair(each) for each in fields])]))
    return f"{origin}{path}{'?' + query if query else ''}"


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{redact(text)!r} is not of the form NAME=VALUE", param_hint="--query")
    return name, value


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    value = value.strip()
    if not colon or not _NAME.fullmatch(name) or not value.isprintable() or not value.isascii():
        raise click.BadParameter(f"{redact(text)!r} is not of the form 'NAME: VALUE'", param_hint="--header")
    if name.lower() in _OURS:
        raise click.BadParameter(f"{name} is the package's to send, and would show in `ps`", param_hint="--header")
    return name, value


def _read(data: str) -> bytes:
    if data == "@-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise click.BadParameter(f"{data[1:]} cannot be read: {error.strerror}", param_hint="--data") from None


def _broken(error: Exception) -> str:
    sent = not isinstance(error, (NewConnectionError, ConnectTimeoutError))
    became = "it may have been executed: look before you make it again" if sent else "it was not sent"
    return f"the call got no answer ({type(error).__name__}); {became}"


def _parsed(body: str) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body
