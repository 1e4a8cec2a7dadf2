"""Open cassettes of vcrpy: none may record a secret."""

from __future__ import annotations

import copy
import http.client
import json
import sys
from importlib import import_module
from typing import Any

from pay88_adapters.core.errors import ConfigurationError
from pay88_adapters.core.wire import TokenRequest

RECORDER = "vcr.cassette"
"""The module that is imported if cassettes can be open. Adapters check for it before they call :func:`check_call`."""

# In the shape of 88Pay's values: for filters that match on values.
_ACCESS_TOKEN = "eyJhbGciOiJIUzI1NiJ9.cHJvYmU.pay88-adapters-probe"
_SESSION_ID = "sess_pay88-adapters-probe"
_ATTACHED = {"Authorization": f"Bearer {_ACCESS_TOKEN}", "x-session-id": _SESSION_ID}


def check_token_request(request: TokenRequest) -> None:
    """Check that an open cassette redacts the secrets of a token request and of the requests that follow it.

    Raises:
        ConfigurationError: It would record a secret.
    """
    if RECORDER not in sys.modules:
        return
    headers = {name: str(value) for name, value in request.headers.items()}
    token = {"access_token": _ACCESS_TOKEN, "session_id": _SESSION_ID, "expires_in": 60}
    exchanges: list[tuple[dict[str, str], dict[str, Any]]] = [
        (headers, {"status": "Success", "data": token}),
        (_ATTACHED, {}),
    ]
    if _would_record(request.method, request.url, exchanges, (headers["x-api-key"], _ACCESS_TOKEN, _SESSION_ID)):
        raise _recording_error("token request")


def check_call(method: str, url: str) -> None:
    """Check that an open cassette redacts the secrets of an API request. Call it only if :data:`RECORDER` is imported.

    Raises:
        ConfigurationError: It would record a secret.
    """
    if _would_record(method, url, [(_ATTACHED, {})], (_ACCESS_TOKEN, _SESSION_ID)):
        raise _recording_error("request")


def _recording_error(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} not sent: the open vcrpy cassette would record secrets; open it with"
        " **pay88_adapters.testing.vcr_config()"
    )


def _would_record(
    method: str, url: str, exchanges: list[tuple[dict[str, str], dict[str, Any]]], secrets: tuple[str, ...]
) -> bool:
    # vcrpy replaces this class while a cassette is open, for every client.
    cassette: Any = getattr(http.client.HTTPConnection, "cassette", None)
    try:
        if cassette is None or cassette.write_protected:
            return False
        request = _vcr("request").Request
        sent = [(request(method, url, None, headers), _response(document)) for headers, document in exchanges]
        if cassette.can_play_response_for(sent[0][0]):
            return False
        text = _recorded(cassette, sent)
    except Exception:  # noqa: BLE001 - a filter of the user's, or a version that looks different inside
        return False
    return any(secret in text for secret in secrets)


def _recorded(cassette: Any, exchanges: list[tuple[Any, dict[str, Any]]]) -> str:
    """Return the text that *cassette* would write to its file."""

    class Persister:
        text = ""

        @classmethod
        def save_cassette(cls, path: object, cassette_dict: Any, serializer: Any) -> None:
            cls.text = str(_vcr("serialize").serialize(cassette_dict, serializer))

    probe: Any = copy.copy(cassette)
    probe.data, probe._old_interactions, probe._played_interactions, probe._loaded_count = [], [], [], 0
    probe._persister = Persister
    for request, response in exchanges:
        probe.append(request, response)
    probe._save(force=True)
    return Persister.text


def _vcr(module: str) -> Any:
    return import_module(f"vcr.{module}")


def _response(document: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(document).encode()
    return {
        "status": {"code": 200, "message": "OK"},
        "headers": {"Content-Type": ["application/json"], "Content-Length": [str(len(body))]},
        "body": {"string": body},
    }
