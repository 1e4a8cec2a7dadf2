"""When an API request is replayed after a 401 (rule 7), or retried (rule 20). The engine sleeps and sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from .arguments import check_number
from .constants import TOO_MANY_REQUESTS
from .errors import ConfigurationError
from .secret import exception_chain

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_TRANSIENT = frozenset({500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retry policy for API requests. Durations are in seconds.

    Idempotent requests (GET, HEAD, OPTIONS and the POST paths in *safe_posts*) are retried on 429, 500, 502, 503, 504
    and connection errors. All other requests are retried only after a 429, or if no connection was established.

    Args:
        attempts: Maximum attempts of a request. The retry after a 401 does not count.
        backoff_base: Upper bound of the first backoff delay; it doubles each time.
        backoff_cap: Largest upper bound of a backoff delay.
        max_retry_after: Longest ``Retry-After`` to wait for; with a longer one the response is returned immediately.
        total_timeout: No retry starts later than this, from the start of the request; ``None`` for no limit. The
            total timeout of the client library, if it has one, applies as well. A retry that needs a new token is
            only made if there is time for a token request (``fetch_timeout``).
        safe_posts: Paths of POST requests without side effects, after the base URL. 88Pay documents them.
        replay_refused: Whether a request that got a 401 is retried once with a new token.

    Raises:
        ConfigurationError: A value is out of range.
    """

    attempts: int = 3
    backoff_base: float = 0.5
    backoff_cap: float = 8
    max_retry_after: float = 30
    total_timeout: float | None = None
    safe_posts: tuple[str, ...] = ("/api/balance",)
    replay_refused: bool = True

    def __post_init__(self) -> None:
        for name in ("attempts", "backoff_base", "backoff_cap", "max_retry_after"):
            check_number(name, getattr(self, name), whole=name == "attempts")
        if self.total_timeout is not None:
            check_number("total_timeout", self.total_timeout)
        if self.attempts < 1:
            raise ConfigurationError(
                "attempts is 0: it must be 1 or more, because the first one counts; or use RetryPolicy.none()"
            )
        if self.backoff_cap < self.backoff_base:
            raise ConfigurationError(
                f"backoff_cap ({self.backoff_cap:g} s) is less than backoff_base ({self.backoff_base:g} s): raise it"
            )
        if not isinstance(self.replay_refused, bool):
            raise ConfigurationError(f"replay_refused must be True or False, not {type(self.replay_refused).__name__}")
        if not isinstance(self.safe_posts, tuple) or not all(
            isinstance(path, str) and path.startswith("/") for path in self.safe_posts
        ):
            raise ConfigurationError('safe_posts must be a tuple of paths such as ("/api/balance",)')

    @classmethod
    def none(cls) -> RetryPolicy:
        """Return the policy without retries, except the one after a 401 (``replay_refused``)."""
        return cls(attempts=1)

    def is_safe(self, method: str, path: str) -> bool:
        """Whether the request is idempotent; *path* starts after the base URL and has no query."""
        method = method.upper()
        return method in _SAFE_METHODS or (method == "POST" and path in self.safe_posts)


@lru_cache
def single_attempt(policy: RetryPolicy) -> RetryPolicy:
    """Return *policy* with a single attempt, for a client library that retries by itself."""
    return replace(policy, attempts=1)


class ConnectionFailure(NamedTuple):
    """An attempt that got no response, or whose response the client library replaced by an error.

    Attributes:
        not_sent: No connection was established, so that the service cannot have received the request.
        permanent: No retry follows: it cannot succeed, such as with an untrusted certificate, or the client library has
            made all retries.
        status: The status code of the response, if there was one.
    """

    not_sent: bool = False
    permanent: bool = False
    status: int | None = None

    def refine(self, exc: BaseException, *, but: BaseException | None = None) -> ConnectionFailure:
        """Return the failure corrected for TLS errors in *exc* and its causes, up to *but*."""
        links = [link for link in exception_chain(exc, but) if _is_from_ssl(link, "SSLError")]
        # Not all libraries distinguish a failed handshake from a later connection error.
        not_sent = self.not_sent and not links
        untrusted = any(_is_from_ssl(link, "SSLCertVerificationError") for link in links)
        return ConnectionFailure(not_sent, self.permanent or untrusted, self.status)


def _is_from_ssl(exc: BaseException, name: str) -> bool:
    # By name: importing ssl is slow, and its errors only occur where it was imported.
    return any(kind.__module__ == "ssl" and kind.__name__ == name for kind in type(exc).__mro__)


class Attempts:
    """The attempts of one request.

    Args:
        policy: The retry policy.
        deadline: When the last backoff delay must end.
    """

    __slots__ = ("deadline", "made", "may_replay", "policy")

    def __init__(self, policy: RetryPolicy, deadline: float) -> None:
        self.policy, self.deadline = policy, deadline
        self.made = 1
        self.may_replay = policy.replay_refused
        """Whether a 401 may still be replayed: the first one of a request, never a second (rule 7)."""

    def pause(
        self,
        outcome: int | ConnectionFailure,
        now: float,
        random: Callable[[], float],
        *,
        safe: bool,
        retry_after: float | None = None,
    ) -> float | None:
        """Return the backoff delay in seconds before the next attempt, or ``None`` after the last one.

        Args:
            outcome: The status code, or the failure without a response.
            now: The time.
            random: Returns a random number in [0, 1), for full jitter.
            safe: Whether the request is idempotent.
            retry_after: Seconds of the response's ``Retry-After``.
        """
        policy = self.policy
        if self.made >= policy.attempts or not _allowed(outcome, safe):
            return None
        if retry_after is not None and retry_after > policy.max_retry_after:
            return None
        bound = policy.backoff_base * 2.0 ** min(self.made - 1, 32)
        pause = max(min(policy.backoff_cap, bound) * random(), retry_after or 0.0)
        if now + pause >= self.deadline:
            return None
        self.made += 1
        return pause


def _allowed(outcome: int | ConnectionFailure, safe: bool) -> bool:
    if isinstance(outcome, ConnectionFailure):
        return not outcome.permanent and (safe or outcome.not_sent)
    return outcome == TOO_MANY_REQUESTS or (safe and outcome in _TRANSIENT)


DEFAULT = RetryPolicy()  # one for all managers
