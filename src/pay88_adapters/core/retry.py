"""When an API call is sent again (rule 20): decisions only; who waits and sends is the driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from .arguments import check_number
from .errors import ConfigurationError
from .secret import exception_chain

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_TOO_MANY = 429
_TRANSIENT = frozenset({500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When an API call is sent again. Durations are in seconds.

    A call that may have been executed is sent again only if executing it twice does no harm: GET, HEAD,
    OPTIONS and the POST paths in *safe_posts* are, on 429, 500, 502, 503, 504 and broken connections.
    Every other call is sent again only after a 429, or after a connection could not even be made.

    Args:
        attempts: How often a call is sent at most. The replay of a refused call does not count.
        backoff_base: Bound on the first random pause; it doubles each time.
        backoff_cap: Largest bound on such a pause.
        max_retry_after: A ``Retry-After`` up to this is waited for; with a longer one the response is
            handed over at once.
        total_timeout: No pause lasts beyond this long after the call began; ``None`` for no such limit.
            The caller's own total timeout, where its stack tells, bounds the pauses as well.
        safe_posts: Paths of POST calls without side effects, as 88Pay documents them, after the base URL.
        replay_refused: Whether a call that was answered 401 is sent once more with a fresh token.

    Raises:
        ConfigurationError: A value makes no sense.
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
            raise ConfigurationError("attempts is 0: the first one counts, so 1 is the least; see RetryPolicy.none()")
        if self.backoff_cap < self.backoff_base:
            raise ConfigurationError("backoff_cap is less than backoff_base: raise it")
        if not isinstance(self.replay_refused, bool):
            raise ConfigurationError(f"replay_refused must be True or False, not {type(self.replay_refused).__name__}")
        if not isinstance(self.safe_posts, tuple) or not all(
            isinstance(path, str) and path.startswith("/") for path in self.safe_posts
        ):
            raise ConfigurationError('safe_posts must be a tuple of paths such as ("/api/balance",)')

    @classmethod
    def none(cls) -> RetryPolicy:
        """Return the policy that sends nothing again, but for the replay of a refused call (``replay_refused``)."""
        return cls(attempts=1)

    def is_safe(self, method: str, path: str) -> bool:
        """Whether executing a call twice does no harm; *path* has no query and starts after the base URL."""
        method = method.upper()
        return method in _SAFE_METHODS or (method == "POST" and path in self.safe_posts)


@lru_cache
def single_attempt(policy: RetryPolicy) -> RetryPolicy:
    """Return *policy* with a single attempt: the stack makes the others by itself."""
    return replace(policy, attempts=1)


class ConnectionFailure(NamedTuple):
    """An attempt that got no response.

    Attributes:
        not_sent: The service cannot have seen it: no connection was made.
        permanent: Trying again cannot help, such as where a certificate is not trusted.
    """

    not_sent: bool = False
    permanent: bool = False

    def refine(self, exc: BaseException, *, but: BaseException | None = None) -> ConnectionFailure:
        """Return what remains true if *exc*, or what it came from up to *but*, is about TLS."""
        links = [link for link in exception_chain(exc, but) if _is_from_ssl(link, "SSLError")]
        # Stacks tell a failed handshake from a connection that broke later in ways of their own.
        not_sent = self.not_sent and not links
        untrusted = any(_is_from_ssl(link, "SSLCertVerificationError") for link in links)
        return ConnectionFailure(not_sent, self.permanent or untrusted)


def _is_from_ssl(exc: BaseException, name: str) -> bool:
    # By name: ssl is slow to import, and an error of it can only come where something else has.
    return any(kind.__module__ == "ssl" and kind.__name__ == name for kind in type(exc).__mro__)


class Attempts:
    """The attempts of one call.

    Args:
        policy: What is allowed.
        deadline: Until when the last pause has to be over.
    """

    __slots__ = ("_deadline", "made", "policy")

    def __init__(self, policy: RetryPolicy, deadline: float) -> None:
        self.policy, self._deadline = policy, deadline
        self.made = 1

    def pause(
        self,
        outcome: int | ConnectionFailure,
        now: float,
        random: Callable[[], float],
        *,
        safe: bool,
        retry_after: float | None = None,
    ) -> float | None:
        """Return for how many seconds to wait before the next attempt, or ``None`` if that was the last.

        Args:
            outcome: A status, or that there is none.
            now: The time.
            draw: Returns a random number in [0, 1), for full jitter.
            safe: Whether executing the call twice does no harm.
            asked: Seconds that the response's ``Retry-After`` asks for.
        """
        policy = self.policy
        if self.made >= policy.attempts or not _allowed(outcome, safe):
            return None
        if retry_after is not None and retry_after > policy.max_retry_after:
            return None
        bound = policy.backoff_base * 2.0 ** min(self.made - 1, 32)
        pause = max(min(policy.backoff_cap, bound) * random(), retry_after or 0.0)
        if now + pause >= self._deadline:
            return None
        self.made += 1
        return pause


def _allowed(outcome: int | ConnectionFailure, safe: bool) -> bool:
    if isinstance(outcome, ConnectionFailure):
        return not outcome.permanent and (safe or outcome.not_sent)
    return outcome == _TOO_MANY or (safe and outcome in _TRANSIENT)


DEFAULT = RetryPolicy()  # one for all managers
