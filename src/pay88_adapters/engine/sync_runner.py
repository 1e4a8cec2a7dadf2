"""Runs the flows on threads."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, TypeVar

from pay88_adapters.core.errors import Failure
from pay88_adapters.core.machine import TokenMachine
from pay88_adapters.core.secret import clear_traceback_locals
from pay88_adapters.core.token import Token
from pay88_adapters.core.wire import TokenRequest, TokenResponse
from pay88_adapters.stores.realtime import monotonic

from .calls import Call, Sender
from .credentials import Credentials
from .effects import (
    AcquireTokenFlow,
    DrainResponse,
    LoadCredentials,
    RequestFlow,
    SendTokenRequest,
    Sleep,
    StartFetch,
    StoreOperation,
    UnexpectedError,
    WaitForFetch,
)
from .fetch_flow import fetch_token
from .fetches import FetchRun
from .permit_flow import record_retried_attempt
from .recorders import check_token_request
from .request_flow import acquire_permit_and_token
from .runner import Runner, after_failure, dependencies, failed_post, interrupts, is_open, no_credentials, should_retry
from .runtimes import AsyncRuntime, LoopEnded, ThreadEvent
from .state import THREADS
from .threads import NoThread, Overdue, Worker
from .token_flow import TokenAcquisition, WaitBudget

T = TypeVar("T")
R = TypeVar("R")
_STUCK_TIMEOUT = 0.2  # real seconds for an interrupted thread to end before another fetch is rejected


class SyncRunner(Runner):
    """Run the flows on the calling thread. A fetch gets its own thread.

    A fetch outlives the thread that started it: the fetch continues after an interrupt or a short timeout of one
    caller.
    """

    __slots__ = ()

    def call(self, call: Call[R]) -> R:
        """Send a managed request: immediately, if there is a token and nothing else to decide."""
        state = self.state
        read_clock = state.now  # called as a local variable, which costs less
        now = read_clock()
        token, until = state.fast_path
        if token is None or now >= until:
            return self._run_request(self._request_flow(call, now), call)
        # Nearly every request ends here; only the rest needs a decision.
        try:
            response = call.send(token)
        except BaseException as exc:  # noqa: BLE001 - raised again below, where what the caller recovers from is known
            failed = exc
        else:
            if call.status(response) < state.settled_below:
                return response
            return self.resume(call, token, now, response)
        try:
            return self.recover(call, token, now, failed)
        finally:
            del failed

    def resume(self, call: Call[R], token: Token, began_at: float, response: R) -> R:
        """Continue a request whose first attempt, with the token of the fast path, got a response to decide about."""
        return self._run_request(self._request_flow(call, began_at, token), call, response)

    def recover(self, call: Call[R], token: Token, began_at: float, failed: BaseException) -> R:
        """Continue a request whose first attempt failed, or raise *failed*. Call it where no exception is handled."""
        try:
            flow = self._request_flow(call, began_at, token)
            after_failure(flow, call, failed)
            return self._run_request(flow, call)
        finally:
            del failed

    def _run_request(self, flow: RequestFlow[R], call: Call[R], response: Any = None) -> R:
        answer = response
        handled = sys.exc_info()[1]
        start = partial(self.start, call)
        with closing(flow):  # not when it is garbage-collected: it may hold the trial request
            while True:
                try:
                    effect = flow.send(answer)
                except StopIteration as stop:
                    result: R = stop.value
                    return result
                except BaseException:
                    if response is not None:  # the caller will not get the response
                        call.discard(response)
                    raise
                answer = None
                match effect:
                    case Token():
                        try:
                            answer = response = call.send(effect)
                        except BaseException as exc:
                            clear_traceback_locals(exc, but=handled)
                            if not should_retry(flow, call, exc, handled):
                                raise
                    case DrainResponse():
                        call.discard(response)
                        response = None
                    case _:
                        answer = self._do(effect, start)

    def _run(self, flow: Generator[Any, Any, T], start: Callable[[StartFetch], FetchRun]) -> T:
        answer: Any = None
        try:
            while True:
                answer = self._do(flow.send(answer), start)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _do(self, effect: object, start: Callable[[StartFetch], FetchRun]) -> Any:
        match effect:
            case StartFetch():
                return start(effect)
            case WaitForFetch(event, seconds):
                self._wait(event, seconds)
            case Sleep(seconds):
                self._sleep(seconds)
            case StoreOperation(operation):
                return self.run_store_operation(operation)
            case _:
                raise AssertionError(effect)
        return None

    def _wait(self, event: object, seconds: float) -> None:
        assert isinstance(event, ThreadEvent)
        self.state.settings.clock.wait(event, seconds)  # waking early is harmless: the flow checks again

    def _sleep(self, seconds: float) -> None:
        self.state.settings.clock.pause(seconds)

    def run_store_operation(self, operation: Callable[[], object]) -> object:
        return operation()

    def may_retry(self, call: Call[Any], status: int | None) -> bool:
        """Record an attempt that the client library retries by itself; return whether it may.

        Args:
            call: The request.
            status: The status code of the attempt, ``None`` without a response.
        """
        return record_retried_attempt(self.state, call, status)

    @contextmanager
    def token_for(self, call: Call[Any]) -> Generator[Token, None, None]:
        """Get a token for another attempt that the client library makes by itself, in the block."""
        wait_budget = self._wait_budget(call.token_timeout)
        flow = acquire_permit_and_token(self.state, call, lambda: self._acquisition(call, wait_budget), wait_budget)
        token, end = self._run(flow, partial(self.start, call))
        try:
            yield token
        finally:
            end()

    def token(self, sender: Sender, *, token_timeout: float | None = None, min_validity: float = 0.0) -> Token:
        """Get a token; wait for at most *token_timeout* real seconds, if given."""
        flow = self._acquisition(sender, self._wait_budget(token_timeout), min_validity)
        return self._run(flow, partial(self.start, sender))

    def _acquisition(self, call: Any, wait_budget: WaitBudget, min_validity: float = 0.0) -> AcquireTokenFlow:
        state = self.state
        return TokenAcquisition(
            self.fetches,
            lambda: state.join(THREADS, ThreadEvent),
            wait_budget=wait_budget,
            dependencies=dependencies(call),
            min_validity=min_validity,
            blocks=True,
        ).run()

    def start(self, sender: Sender, start: StartFetch, caller: AsyncRuntime | None = None) -> FetchRun:
        """Start a fetch: in this thread if the caller needs it and no other thread can be started.

        Args:
            sender: Sends the token requests.
            start: The fetch to start.
            caller: The event loop of the request that starts it, if any. It awaits async credentials.
        """
        fetches = self.fetches
        waits = caller is None and not start.background
        blocked = threading.get_ident() if waits else None
        run = FetchRun(start.ticket, blocked_thread=blocked, dependencies=dependencies(sender))
        stuck = fetches.stuck(_STUCK_TIMEOUT if caller is None else 0.0)
        if stuck is not None:
            self._fail(run, stuck)
            return run
        try:
            fetches.begin(run)
            finishes = self.state.settings.store_client.blocking
            worker = run.worker = Worker(
                partial(self._fetch, run, sender, caller), "pay88-token-fetch", finishes=finishes
            )
            worker.start()
        except NoThread as exc:
            run.worker = None
            if start.background or caller is not None:
                fetches.abandon(run, exc)
            else:
                self._fetch(run, sender, None)
        except BaseException as exc:  # for example, of a signal handler
            if run.worker is None or not run.worker.is_alive():
                fetches.abandon(run, exc)
            raise
        return run

    def _fail(self, run: FetchRun, failure: Failure) -> None:
        state = self.state

        def act(machine: TokenMachine, now: float) -> None:
            machine.on_fetch_failed(run.ticket, failure, now)
            state.record_failure(failure, now)

        state.transition(act)

    def _fetch(self, run: FetchRun, sender: Sender, caller: AsyncRuntime | None) -> None:
        flow = fetch_token(self.fetches, run, partial(is_open, sender))
        answer: Any = None
        try:
            while True:
                match flow.send(answer):
                    case LoadCredentials():
                        loaded = self._hangs(run, "credentials provider", partial(self._load_credentials, run, caller))
                        answer = no_credentials(loaded) if isinstance(loaded, Overdue) else loaded
                    case SendTokenRequest(request):
                        answer = self._hangs(run, "token request", partial(_post, sender, request))
                    case effect:
                        answer = self._do(effect, partial(self.start, sender))
        except StopIteration:
            pass
        except BaseException as exc:
            self.fetches.abandon(run, exc)
            if run.worker is None and interrupts(exc):  # the caller, on its own thread
                raise
        finally:
            self.fetches.end(run)

    def _hangs(self, run: FetchRun, doing: str, act: Callable[[], T]) -> T | Overdue:
        """Run a step that may hang: interrupt it with :class:`Overdue` when it takes too long."""
        run.since, run.doing = monotonic(), doing
        try:
            return act()
        except Overdue as exc:
            return exc
        finally:
            run.doing = ""

    def _load_credentials(self, run: FetchRun, caller: AsyncRuntime | None) -> Credentials | Failure:
        settings = self.state.settings
        seconds = settings.clock.real(settings.policy.max_wait)
        try:
            answer = self._ask_source()
            if inspect.isawaitable(answer) and caller is not None:
                with self.fetches.dependent_on(run, caller):
                    answer = caller.run_from_thread(answer, seconds)
            elif inspect.isawaitable(answer):
                answer = asyncio.run(_awaited(answer, seconds))
            return self._checked(answer)
        except (LoopEnded, Overdue):
            raise
        except BaseException as exc:
            if run.worker is None and interrupts(exc):  # the caller, on its own thread
                raise
            return no_credentials(exc)


def _post(sender: Sender, request: TokenRequest) -> TokenResponse | Exception | UnexpectedError:
    try:
        check_token_request(request)
        return sender.post(request)
    except Exception as exc:  # noqa: BLE001 - named as what it is
        return failed_post(exc, sender.network_errors)


async def _awaited(answer: Awaitable[T], seconds: float) -> T:
    return await asyncio.wait_for(answer, seconds)
