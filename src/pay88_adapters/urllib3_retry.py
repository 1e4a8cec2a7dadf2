"""The value of ``retries=`` that urllib3 sees for a request that the core retries."""

from __future__ import annotations

from copy import copy
from typing import Any

import urllib3
from urllib3.util.retry import RequestHistory

from .core.errors import ConfigurationError
from .core.retry import RetryPolicy


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
