"""Send one API request over urllib3 and print the response with secrets redacted."""

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

from pay88_adapters import Credentials, Pay88Error
from pay88_adapters.core.endpoint import Endpoint, url_from_env
from pay88_adapters.core.secret import mask, redact
from pay88_adapters.urllib3 import Pay88PoolManager

from .options import open_manager
from .terminal import is_plain, printable

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RESERVED_HEADERS = ("authorization", "x-session-id", "x-api-key", "x-merchant-id")


class NoResponse(Pay88Error):
    """The request failed without a response."""


@dataclass(frozen=True, slots=True)
class Response:
    """Response with secrets redacted."""

    status: int
    reason: str
    headers: dict[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Call:
    """A checked API request."""

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
        """Check the arguments of the command line.

        Raises:
            click.BadParameter: An argument is invalid.
            ConfigurationError: The configuration is invalid.
        """
        if not _NAME.fullmatch(method):
            raise click.BadParameter(f"{redact(method)!r} is not an HTTP method", param_hint="METHOD")
        url = _url(Endpoint.parse(url_from_env(environ)), target, fields)
        parsed = dict(_header(each) for each in headers)
        if data is not None and not any(name.lower() == "content-type" for name in parsed):
            parsed["Content-Type"] = "application/json"
        return cls(environ, method.upper(), url, None if data is None else _read(data), parsed)

    def send(self, timeout: float) -> Response:
        """Send the request.

        Args:
            timeout: Connect and read timeout in seconds.

        Raises:
            Pay88Error: No token, or no response.
        """
        with open_manager(self.environ) as manager:
            token = manager.get_token()
            secrets = [Credentials.from_env(self.environ).api_key, token.access_token, token.session_id]
            try:
                response = Pay88PoolManager(manager).request(
                    self.method, self.url, body=self.body, headers=self.headers, redirect=False, timeout=timeout
                )
            except (HTTPError, OSError) as error:
                if isinstance(error, Pay88Error):
                    raise
                raise NoResponse(_failure_text(error)) from None
            if manager.stats().replayed:
                token = manager.get_token()  # the token of the replayed request
                secrets += [token.access_token, token.session_id]
        return Response(
            response.status,
            printable(mask(response.reason or "", *secrets)),
            {printable(name): printable(mask(value, *secrets)) for name, value in response.headers.itermerged()},
            printable(mask(response.data.decode(errors="replace"), *secrets)),
        )


def show(response: Response, *, as_json: bool) -> None:
    """Print *response* as a JSON document, in colours, or as plain text."""
    if as_json:
        click.echo(json.dumps({**asdict(response), "body": _parsed(response.body)}))
        return
    head = [
        f"HTTP {response.status} {response.reason}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
    ]
    click.echo("\n".join([*head, ""]))
    if is_plain() or isinstance(_parsed(response.body), str):
        click.echo(response.body)
        return
    from rich.console import Console

    Console().print_json(response.body)


def _url(endpoint: Endpoint, target: str, fields: Sequence[str]) -> str:
    def invalid(why: str) -> click.BadParameter:
        return click.BadParameter(why, param_hint="PATH")

    if not target.isascii() or not target.isprintable() or " " in target:
        raise invalid("it contains a space, control or non-ASCII character: percent-encode it")
    try:
        parts = urlsplit(endpoint.base_url + target if target.startswith("/") else target)
        port = parts.port
    except ValueError:
        raise invalid("it is not a valid URL") from None
    if not parts.hostname:
        raise invalid("it must start with a slash or be a full URL")
    path = parts.path or "/"
    if "@" in parts.netloc or not endpoint.covers(parts.scheme, parts.hostname, port, "/", None):
        raise invalid(f"it has another origin: tokens are sent to {endpoint.base_url} only")
    if not endpoint.covers(parts.scheme, parts.hostname, port, path, None):
        raise invalid("it is the token endpoint: use `pay88 token`")
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
    if name.lower() in _RESERVED_HEADERS:
        raise click.BadParameter(
            f"{name} is set by pay88 and must not be passed on the command line", param_hint="--header"
        )
    return name, value


def _read(data: str) -> bytes:
    if data == "@-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise click.BadParameter(f"cannot read {data[1:]}: {error.strerror}", param_hint="--data") from None


def _failure_text(error: Exception) -> str:
    sent = not isinstance(error, (NewConnectionError, ConnectTimeoutError))
    outcome = "it may have been executed: check before you retry" if sent else "it was not sent: check the base URL"
    return f"request failed without a response ({type(error).__name__}); {outcome}"


def _parsed(body: str) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body
