"""Runs the flows: the part without waiting and I/O."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, TypeVar

from pay88_adapters.core.arguments import class_of
from pay88_adapters.core.errors import ClientClosed, ConfigurationError, Failure, NoFreeConnection
from pay88_adapters.core.secret import clear_traceback_locals, redact, without_secrets
from pay88_adapters.core.token import Token

from .calls import ErrorClassifier
from .credentials import Credentials
from .effects import AcquireTokenFlow, RequestFlow, RequestInfo, RetryDecision, UnexpectedError
from .fetches import Fetches
from .request_flow import run_request
from .threads import Overdue
from .token_flow import WaitBudget

R = TypeVar("R")


class Runner:
    """Run the flows of one manager: carry out the effects that they yield, and send back the results.

    Args:
        fetches: The fetches of the manager.
    """

    __slots__ = ("fetches", "state")

    def __init__(self, fetches: Fetches) -> None:
        self.fetches = fetches
        self.state = fetches.state

    def _acquisition(self, call: Any, wait_budget: WaitBudget) -> AcquireTokenFlow:
        """Return the flow that gets a token for one attempt of *call*."""
        raise NotImplementedError

    def _request_flow(self, call: RequestInfo[R], began_at: float, sent: Token | None = None) -> RequestFlow[R]:
        """Return the flow of *call*. With *sent*, it starts where it waits for the outcome of a first attempt."""
        wait_budget = self._wait_budget(call.token_timeout)
        flow = run_request(self.state, call, lambda: self._acquisition(call, wait_budget), began_at, wait_budget, sent)
        if sent is not None:
            next(flow)
        return flow

    def _wait_budget(self, seconds: float | None) -> WaitBudget:
        """Return how long a request may wait in total, if its caller waits for *seconds* (real ones) at most."""
        return WaitBudget(self.state.settings.longest_wait(seconds))

    def _ask_source(self) -> object:
        source = self.fetches.source
        return source() if callable(source) else source

    def _checked(self, credentials: object) -> Credentials:
        if not isinstance(credentials, Credentials):
            raise ConfigurationError(
                f"the credentials provider must return Credentials, not {class_of(credentials)}; request not sent"
            )
        self.state.settings.endpoint.check_key(credentials)
        return credentials


def is_open(sender: object) -> bool:
    return not getattr(sender, "is_closed", False)


def dependencies(sender: object) -> tuple[object, ...]:
    """Return what may end before a fetch over *sender*: its client, unless that is the manager's own."""
    client = getattr(sender, "client", sender)
    return () if client is None else (client,)


def should_retry(
    sequence: RequestFlow[Any], call: ErrorClassifier, exc: BaseException, handled: BaseException | None
) -> bool:
    """Send the outcome of an attempt to *sequence*; return whether a retry follows."""
    broken = call.classify_error(exc) if isinstance(exc, Exception) else None
    if broken is None:
        return False
    decision = sequence.send(broken.refine(exc, but=handled))
    assert isinstance(decision, RetryDecision)
    return decision.retry


def after_failure(sequence: RequestFlow[Any], call: ErrorClassifier, exc: BaseException) -> None:
    """Send the outcome of the first attempt to *sequence*; raise it unless a retry follows."""
    handled = sys.exc_info()[1]  # an exception that the caller handles must stay unchanged
    clear_traceback_locals(exc, but=handled)
    context = exc.__context__
    try:
        if not should_retry(sequence, call, exc, handled):
            sequence.close()
            raise exc
    finally:
        object.__setattr__(exc, "__context__", context)  # where raise has put the exception that is being handled here
        del exc


def failed_post(exc: Exception, network_errors: tuple[type[Exception], ...]) -> Exception | UnexpectedError:
    """Return the result of a failed token request; raise *exc* if it is not a network error (rule 18)."""
    if isinstance(exc, network_errors):
        return exc
    if isinstance(exc, (ClientClosed, NoFreeConnection, Overdue)):
        raise exc
    return UnexpectedError(exc)


def interrupts(exc: BaseException) -> bool:
    """Whether *exc* ends what the thread does, such as Ctrl-C or a soft time limit."""
    return not isinstance(exc, (Exception, asyncio.CancelledError))


def no_credentials(exc: BaseException) -> Failure:
    """Return the failure of a credentials provider. What it raises may quote a key, or have one in a variable."""
    if isinstance(exc, ConfigurationError):
        return Failure(ConfigurationError, redact(str(exc)))
    cause = without_secrets(exc)
    if isinstance(exc, (TimeoutError, asyncio.TimeoutError)):
        return Failure(
            ConfigurationError,
            "the credentials provider did not return in time; request not sent: give it a shorter timeout",
            retryable=True,
            cause=cause,
        )
    return Failure(
        ConfigurationError,
        f"the credentials provider raised {class_of(exc)}; request not sent: see the cause",
        retryable=True,
        cause=cause,
    )
