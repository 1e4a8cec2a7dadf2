"""The other libraries, set up as well as they allow for a token with a lifetime of 60 seconds.

Each uses the emulator's token endpoint and sends both headers, and each replaces a token ten seconds
before it expires. With its own defaults most of them would fetch a token for every call.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from .service import Grant, Service

now: Callable[[timezone], datetime] = datetime.now
"""Replaced where time is simulated, as ``time`` is."""


def google_credentials(service: Service) -> Any:
    """Return google-auth credentials that are refreshed in a thread of their own.

    Its threshold of 3:45 minutes is a constant of a private module, and has to be replaced there.
    """
    from google.auth import _helpers, credentials

    _helpers.REFRESH_THRESHOLD = timedelta(seconds=service.margin)

    class Credentials(credentials.Credentials):  # type: ignore[misc]
        session_id = ""

        def refresh(self, request: Any) -> None:
            grant = service.ask()
            expiry = now(timezone.utc) + timedelta(seconds=grant.expires_in)
            self.token, self.session_id = grant.access_token, grant.session_id
            self.expiry = expiry.replace(tzinfo=None)  # as google-auth has it

        def before_request(self, request: Any, method: str, url: str, headers: Any) -> None:
            # It copies the request for its thread, and one that holds urllib3's pools cannot be copied.
            super().before_request(GoogleRequest(), method, url, headers)

        def apply(self, headers: Any, token: str | None = None) -> None:
            super().apply(headers, token)
            headers["x-session-id"] = self.session_id

    made = Credentials()
    made.with_non_blocking_refresh()
    return made


class GoogleRequest:
    """What google-auth hands to ``refresh``."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Do nothing: the credentials fetch automatically."""
        raise NotImplementedError


def botocore_credentials(service: Service) -> Any:
    """Return botocore credentials: the access token as the access key, the session id as the token."""
    from botocore.credentials import RefreshableCredentials

    def ask() -> dict[str, str]:
        grant = service.ask()
        expiry = now(timezone.utc) + timedelta(seconds=grant.expires_in)
        return {
            "access_key": grant.access_token,
            "secret_key": "",
            "token": grant.session_id,
            "expiry_time": expiry.isoformat(),
        }

    return RefreshableCredentials(
        "",
        "",
        "",
        now(timezone.utc),  # nothing yet
        ask,
        "pay88",
        advisory_timeout=service.margin,
        mandatory_timeout=service.margin / 2,
    )


def _azure_token(grant: Grant, margin: float, session_ids: dict[str, str]) -> Any:
    from azure.core.credentials import AccessTokenInfo

    seconds = time.time()
    session_ids.clear()
    session_ids[grant.access_token] = grant.session_id
    # refresh_on takes the place of a window of five minutes; azure-core adds up to a minute of jitter to it.
    expires_on = int(seconds + grant.expires_in - margin)
    return AccessTokenInfo(grant.access_token, expires_on, refresh_on=expires_on)


def azure_policy(service: Service) -> Any:
    """Return azure-core's policy for a sync pipeline."""
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy

    session_ids: dict[str, str] = {}

    class Credential:
        def get_token_info(self, *scopes: str, options: Any = None) -> Any:
            return _azure_token(service.ask(), service.margin, session_ids)

        def get_token(self, *scopes: str, **options: Any) -> Any:
            return self.get_token_info(*scopes)

    class Policy(BearerTokenCredentialPolicy):  # type: ignore[misc]
        def on_request(self, request: Any) -> None:
            super().on_request(request)
            request.http_request.headers["x-session-id"] = session_ids[self._token.token]

    return Policy(Credential(), "pay88")


def azure_async_policy(service: Service, ask: Callable[[], Awaitable[Grant]]) -> Any:
    """Return azure-core's policy for an async pipeline."""
    from azure.core.pipeline.policies import AsyncBearerTokenCredentialPolicy

    session_ids: dict[str, str] = {}

    class Credential:
        async def get_token_info(self, *scopes: str, options: Any = None) -> Any:
            return _azure_token(await ask(), service.margin, session_ids)

        async def get_token(self, *scopes: str, **options: Any) -> Any:
            return await self.get_token_info(*scopes)

    class Policy(AsyncBearerTokenCredentialPolicy):  # type: ignore[misc]
        async def on_request(self, request: Any) -> None:
            await super().on_request(request)
            request.http_request.headers["x-session-id"] = session_ids[self._token.token]

    return Policy(Credential(), "pay88")


def choose_authlib(library: str) -> None:
    """Let authlib, which takes httpx2 where that is installed, take *library*. Before anything of it is imported."""
    if library == "httpx":
        sys.modules["httpx2"] = None  # type: ignore[assignment]


def authlib_httpx_client(library: str, tasks: bool) -> Any:
    """Return authlib's client class for httpx or httpx2."""
    import warnings

    choose_authlib(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from authlib.integrations import httpx_client

    return httpx_client.AsyncOAuth2Client if tasks else httpx_client.OAuth2Client


def authlib_options(service: Service) -> dict[str, Any]:
    """Return the options of any of authlib's clients; the first call fetches the first token."""

    def with_keys(client: Any, method: str, url: str, headers: Any, body: Any) -> Any:
        headers.update(service.keys)
        return url, headers, body

    return {
        "client_id": service.merchant_id,
        "client_secret": service.api_key,
        "token_endpoint": service.token_url,
        "token_endpoint_auth_method": with_keys,
        "grant_type": "client_credentials",
        "leeway": service.margin,
        "token": {"access_token": "none yet", "session_id": "", "expires_at": 1},
    }


class _Envelope:
    """A response of the token endpoint, without what 88Pay wraps around the token."""

    def __init__(self, response: Any) -> None:
        self.status_code = response.status_code
        self._response = response

    def raise_for_status(self) -> None:
        self._response.raise_for_status()

    def json(self) -> Any:
        return {"token_type": "Bearer", **self._response.json()["data"]}


def hook_authlib(client: Any, service: Service) -> Any:
    """Teach a client of authlib 88Pay's response and its second header."""

    def with_session(url: str, headers: Any, body: Any) -> Any:
        headers["x-session-id"] = client.token["session_id"]
        return url, headers, body

    client.register_compliance_hook("access_token_response", _Envelope)
    client.register_compliance_hook("protected_request", with_session)
    return client


def httpx_auth(service: Service, name: str = "") -> Any:
    """Return an ``auth=`` of httpx-auth. All of a process that have the same *name* share a token."""
    from httpx_auth import OAuth2ClientCredentials

    class Auth(OAuth2ClientCredentials):  # type: ignore[misc]
        def request_new_token(self) -> tuple[str, str, int]:
            grant = service.ask()
            self.session_ids = {grant.access_token: grant.session_id}
            return self.state, grant.access_token, int(grant.expires_in)

        def _update_user_request(self, request: Any, token: str) -> None:
            super()._update_user_request(request, token)
            request.headers["x-session-id"] = self.session_ids[token]

    return Auth(service.token_url, service.merchant_id + name, service.api_key, early_expiry=service.margin)


def httpx_auth_reader(service: Service, name: str = "") -> Callable[[], object]:
    """Return httpx-auth's way to a token."""
    from httpx_auth import OAuth2

    auth = httpx_auth(service, name)
    return lambda: OAuth2.token_cache.get_token(
        auth.state, early_expiry=auth.early_expiry, on_missing_token=auth.request_new_token
    )


def _azure_request(service: Service) -> Any:
    from azure.core.pipeline import PipelineContext, PipelineRequest
    from azure.core.rest import HttpRequest

    return PipelineRequest(HttpRequest("POST", service.call_url), PipelineContext(None, enforce_https=False))


def azure_reader(service: Service) -> Callable[[], object]:
    """Return azure-core's way to a token: its policy on a request."""
    policy, request = azure_policy(service), _azure_request(service)
    return lambda: policy.on_request(request)


def azure_areader(service: Service, ask: Callable[[], Awaitable[Grant]]) -> Callable[[], Awaitable[object]]:
    """Return the same for tasks."""
    policy, request = azure_async_policy(service, ask), _azure_request(service)
    return lambda: policy.on_request(request)
