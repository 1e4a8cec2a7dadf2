"""The value of ``retries=`` that urllib3 sees for a request that the core retries, and what urllib3 does with it."""

from __future__ import annotations

import re
from copy import copy
from typing import Any

import urllib3
from urllib3.exceptions import MaxRetryError, ResponseError
from urllib3.util.retry import RequestHistory

from .core.errors import ConfigurationError
from .core.retry import RetryPolicy
from .core.token import SESSION_ID


class Pay88Retry(urllib3.Retry):
    """A value of ``retries=`` that retries as a :class:`~pay88_adapters.RetryPolicy` says.

    By default, requests to 88Pay use the policy of their manager. Pass a ``Pay88Retry`` to use another policy for a
    request or a pool manager. Any other value of ``retries=`` replaces the policy. After the last attempt you get its
    response or exception, without the ``MaxRetryError`` of urllib3. Redirects are counted as in urllib3, and so are
    retries after a redirect to another origin.

    Args:
        policy: The retry policy; the manager's unless given.
        kw: As for :class:`urllib3.Retry`; for redirects and other origins.

    Raises:
        ConfigurationError: *policy* is not a RetryPolicy.
    """

    def __init__(self, policy: RetryPolicy | None = None, **kw: Any) -> None:
        if not isinstance(policy, (RetryPolicy, type(None))):
            raise ConfigurationError(f"policy must be a RetryPolicy, not {type(policy).__name__}")
        kw.setdefault("total", urllib3.Retry.DEFAULT.total)
        super().__init__(**kw)
        self.policy = policy

    def new(self, **kw: Any) -> Pay88Retry:
        other = super().new(**kw)
        other.policy = self.policy
        return other

    def is_retry(self, method: str, status_code: int, has_retry_after: bool = False) -> bool:
        return False  # the call's own sequence decides

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> Pay88Retry:
        if error is not None:  # this, too; and nothing is wrapped around it
            raise error.with_traceback(_stacktrace)
        return super().increment(method, url, response, error, _pool, _stacktrace)

    def after(self, method: str, path: str, *, status: int | None = None, error: Exception | None = None) -> Pay88Retry:
        """Return the value after one more attempt."""
        return self.new(history=(*self.history, RequestHistory(method, path, error, status, None)))

    def plain(self) -> urllib3.Retry:
        """Return the plain :class:`urllib3.Retry` with the same values."""
        plain: Any = copy(self)
        plain.__class__ = urllib3.Retry
        result: urllib3.Retry = plain
        return result


def without_resending(retries: Any, *, redirect: bool) -> Any:
    """Return *retries* without retries except redirects: urllib3 would retry with an empty body."""
    if retries is False:
        return False
    retries = urllib3.Retry.from_int(retries, redirect=redirect)
    return retries.new(
        **{kind: 0 for kind in ("connect", "read", "status", "other") if getattr(retries, kind) is not False}
    )


def continues(retries: Any, *, redirect: bool) -> bool:
    """Whether urllib3 sends the request of a pool again, or follows its redirect, *retries* being its value.

    A pool manager follows redirects, too: with a new request of a pool, which does not follow any.
    """
    return bool(getattr(retries, "history", ())) and (redirect or not is_redirect(retries))


def is_redirect(retries: urllib3.Retry) -> bool:
    """Whether the request that urllib3 sends next follows a redirect, *retries* being its value."""
    return bool(retries.history and retries.history[-1].redirect_location)


def removes_injected(retries: Any) -> bool:
    """Whether urllib3 removes both headers of a token when it follows a redirect to another host."""
    return SESSION_ID in getattr(retries, "remove_headers_on_redirect", ())


def without_removing(retries: urllib3.Retry) -> urllib3.Retry:
    """Return *retries* so that urllib3 leaves our headers: they show whose redirect it is, and go no further."""
    return retries.new(remove_headers_on_redirect=retries.remove_headers_on_redirect - {SESSION_ID})


class Redirected(urllib3.HTTPResponse):
    """The redirect that a request got, in place of the response of its target.

    The outcome of the request for the target must not be taken for that of the first one, which was executed.

    Args:
        args, kw: The arguments of the pool's ``urlopen()`` for the target.
        by_position: Names in *kw* that are passed by position after *args*.
    """

    def __init__(self, args: tuple[Any, ...], by_position: tuple[str, ...], kw: dict[str, Any]) -> None:
        self.args, self.by_position, self.kw = args, by_position, kw
        retries = kw["retries"]
        last = _last_attempt(retries)
        headers = {"Location": last.redirect_location or ""}
        super().__init__(headers=headers, status=last.status or 0, preload_content=False, retries=retries)


def _last_attempt(retries: Any) -> RequestHistory:
    last: RequestHistory = retries.history[-1]
    return last


def exhausted(retries: urllib3.Retry, pool: Any, url: str) -> MaxRetryError:
    """Return the exception that urllib3 raises when it may not retry the last attempt of *retries*."""
    last = _last_attempt(retries)
    reason = last.error or ResponseError(ResponseError.SPECIFIC_ERROR.format(status_code=last.status))
    error = MaxRetryError(pool, url, reason)
    error.__cause__ = reason
    return error


def exhausted_status(exc: MaxRetryError) -> int | None:
    """Return the status code of the response after which urllib3 may not retry; ``None`` after an error."""
    if not isinstance(exc.reason, ResponseError):
        return None
    found = re.fullmatch(_SPECIFIC_ERROR, str(exc.reason))
    return int(found[1]) if found else _FOUND


_SPECIFIC_ERROR = ResponseError.SPECIFIC_ERROR.format(status_code=r"(\d{3})")
_FOUND = 302  # of too many redirects; which of the codes it was is lost
