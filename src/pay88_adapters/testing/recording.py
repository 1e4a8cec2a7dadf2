"""Options for vcrpy with which no secret gets into a cassette."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from pay88_adapters.core.arguments import check_callable, class_of
from pay88_adapters.core.errors import ConfigurationError
from pay88_adapters.core.secret import REDACTED, mask

_SECRET_FIELDS = ("authorization", "x-session-id", "x-api-key")
_INSTEAD = {"access_token": "recorded-access-token", "session_id": "recorded-session-id"}

VcrResponse = dict[str, Any]
_Hook = Callable[[VcrResponse], VcrResponse | None]


def vcr_config(**options: Any) -> dict[str, Any]:
    """Return options for vcrpy's ``use_cassette()`` and pytest-recording's ``vcr_config``: no secret in a cassette.

    The headers with the API key, the access token and the session id are redacted, and so are all three wherever they
    appear in responses. The token endpoint's responses get a made-up token, so that a cassette can be replayed.

    Args:
        options: More of vcrpy's options. ``filter_headers`` and ``before_record_response`` add to what is done here.

    Raises:
        ConfigurationError: An item of ``filter_headers`` is not a name or a pair, or one of ``before_record_response``
            is not callable.
    """
    headers, hooks = _listed(options.get("filter_headers")), _listed(options.get("before_record_response"))
    for each in headers:
        if not isinstance(each, (str, tuple, list)):
            raise ConfigurationError(f"filter_headers must be names, or pairs of name and value, not {class_of(each)}")
    for each in hooks:
        check_callable("before_record_response", each)
    return {
        "decode_compressed_response": True,
        **options,
        "filter_headers": [*((name, REDACTED) for name in _SECRET_FIELDS), *headers],
        "before_record_response": _chained([_without_secrets, *hooks]),
    }


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    several: Any = given
    return [given] if callable(given) or isinstance(given, str) or not isinstance(given, Iterable) else list(several)


def _chained(functions: list[_Hook]) -> _Hook:
    def before_record_response(response: VcrResponse) -> VcrResponse | None:
        changed: VcrResponse | None = response
        for function in functions:
            if changed is None:  # it is not to be recorded
                break
            changed = function(changed)
        return changed

    return before_record_response


def _without_secrets(response: VcrResponse) -> VcrResponse:
    """Return a response of vcrpy's without secrets in its body and headers, and with a length that fits."""
    body: dict[str, Any] = response.get("body") or {}
    text = _text(body.get("string"))
    headers: Mapping[str, list[str]] = response.get("headers") or {}
    clean_headers = {name: _masked(values) for name, values in headers.items()}
    if text is None:
        return {**response, "headers": clean_headers}
    clean = mask(_with_made_up_token(text))
    if clean == text:
        return {**response, "headers": clean_headers}
    content = clean if isinstance(body["string"], str) else clean.encode()
    length = str(len(clean.encode()))
    clean_headers = {
        name: [length] if name.lower() == "content-length" else values for name, values in clean_headers.items()
    }
    return {**response, "headers": clean_headers, "body": {**body, "string": content}}


def _masked(values: Any) -> Any:
    if isinstance(values, str):
        return mask(values)
    return [mask(value) if isinstance(value, str) else value for value in values]


def _text(content: object) -> str | None:
    if isinstance(content, str):
        return content
    try:
        return content.decode() if isinstance(content, bytes) else None
    except UnicodeDecodeError:
        return None


def _with_made_up_token(text: str) -> str:
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    data: object = cast("dict[str, object]", document).get("data") if isinstance(document, dict) else None
    if not (isinstance(data, dict) and "access_token" in data):
        return text
    found = cast("dict[str, object]", data)
    made_up = {name: value for name, value in _INSTEAD.items() if isinstance(found.get(name), str)}
    return json.dumps({**cast("dict[str, object]", document), "data": {**found, **made_up}})
