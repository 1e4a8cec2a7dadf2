"""Carry out the effects of the sequences: once for threads, once for event loops."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from pay88_adapters.core.errors import ClientClosed, ConfigurationError, Failure
from pay88_adapters.core.machine import GRACE, TokenMachine
from pay88_adapters.core.retry import ConnectionFailure
from pay88_adapters.core.secret import clear_traceback_locals
from pay88_adapters.core.token import Token
from pay88_adapters.core.wire import TokenRequest, TokenResponse

from .credentials import Credentials
from .fetches import FetchRun
from .flows import (
    UNAUTHORIZED,
    AcquireTokenFlow,
    DrainResponse,
    LoadCredentials,
    RequestFlow,
    RequestInfo,
    RetryDecision,
    SendTokenRequest,
    Sleep,
    StartFetch,
    StoreOperation,
    TokenAcquisition,
    UnexpectedError,
    WaitBudget,
    WaitForFetch,
    acquire_permit_and_token,
    fetch_token,
    run_request,
)
from .running import current_run, current_runtime
from .runtimes import AsyncRuntime, LoopEnded, ThreadEvent
from .state import CredentialsSource, ManagerState
from .threads import Overdue, Worker

T = TypeVar("T")
R = TypeVar("R")
_THREADS = "threads"
_STUCK_PATIENCE = 0.2  # real seconds for an interrupted thread to end before another fetch is refused


class Sender(Protocol):
    """Sends token requests, from any thread."""

    @property
    def network_errors(self) -> tuple[type[Exception], ...]:
        """What the stack raises when there is no usable answer."""
        ...

    def post(self, request: TokenRequest) -> TokenResponse:
        """Send *request*: no redirects, no retries, at most ``MAX_BODY`` + 1 bytes read."""
        ...


class AsyncSender(Protocol):
    """Sends token requests on the loop that awaits it."""

    @property
    def network_errors(self) -> tuple[type[Exception], ...]:
        """What the stack raises when there is no usable answer."""
        ...

    async def post(self, request: TokenRequest) -> TokenResponse:
        """Send *request*: no redirects, no retries, at most ``MAX_BODY`` + 1 bytes read."""
        ...


class ErrorClassifier(Protocol):
    """Tells what became of an attempt that got no response."""

    def classify_error(self, exc: Exception) -> ConnectionFailure | None:
        """Return what *exc* says of the attempt; ``None`` where it is not about the connection."""
        ...


class Call(RequestInfo[R], Sender, ErrorClassifier, Protocol[R]):
    """One API call of a sync stack."""

    def send(self, token: Token) -> R:
        """Send the call with *token*'s headers on a copy; return the response, whatever its status."""
        ...

    def discard(self, response: R) -> None:
        """Free the connection of a refused response."""
        ...


class AsyncCall(RequestInfo[R], AsyncSender, ErrorClassifier, Protocol[R]):
    """One API call of an async stack."""

    def send(self, token: Token) -> Awaitable[R]:
        """Send the call with *token*'s headers on a copy; return the response, whatever its status."""
        ...

    async def discard(self, response: R) -> None:
        """Free the connection of a refused response."""
        ...


class SyncRunner:
    """Runs the sequences on the calling thread; a fetch gets a thread of its own.

    A fetch outlives whoever started it: an interrupt or a short timeout of one caller wastes nothing.
    """

    __slots__ = ("_source", "_state")

    def __init__(self, state: ManagerState, source: CredentialsSource) -> None:
        self._state = state
        self._source = source

    def call(self, call: Call[R]) -> R:
        """Make a managed call, which is sent at once if there is a token and nothing to decide before."""
        state = self._state
        now = state.now()
        token, until = state.fast_path
        if token is None or now >= until or state.guards is not None:
            return self._run_request(self._exchange(call, now), call)
        # Nearly every call ends here; only for the others there is anything to decide.
        try:
            response = call.send(token)
        except BaseException as exc:  # noqa: BLE001 - raised again below, where what the caller recovers from is known
            failed = exc
        else:
            if call.status(response) < UNAUTHORIZED and not state.awaiting_first_success:
                return response
            return self._run_request(self._exchange(call, now, token), call, response)
        try:
            sequence = self._exchange(call, now, token)
            _after_failure(sequence, call, failed)
            return self._run_request(sequence, call)
        finally:
            del failed

    def _exchange(self, call: Call[R], began_at: float, sent: Token | None = None) -> RequestFlow[R]:
        token_timeout = _wait_budget(self._state, call.token_timeout)

        def acquired() -> AcquireTokenFlow:
            return self._acquisition(call, token_timeout)

        sequence = run_request(self._state, call, acquired, began_at, sent)
        if sent is not None:
            next(sequence)  # up to where it waits for the answer
        return sequence

    def _run_request(self, sequence: RequestFlow[R], call: Call[R], response: Any = None) -> R:
        answer = response
        handled = sys.exc_info()[1]
        with closing(sequence):  # not when it is collected: it may hold the probe that all others wait for
            while True:
                try:
                    effect = sequence.send(answer)
                except StopIteration as stop:
                    result: R = stop.value
                    return result
                except BaseException:
                    if response is not None:  # the caller will not get it
                        call.discard(response)
                    raise
                answer = None
                match effect:
                    case Token():
                        try:
                            answer = response = call.send(effect)
                        except BaseException as exc:
                            clear_traceback_locals(exc, but=handled)
                            if not _should_retry(sequence, call, exc, handled):
                                raise
                    case DrainResponse():
                        call.discard(response)
                        response = None
                    case _:
                        answer = self._do(effect, call)

    @contextmanager
    def token_for(self, call: Call[Any]) -> Generator[Token, None, None]:
        """Get a token for another attempt that the stack makes by itself, in the block."""
        token_timeout = _wait_budget(self._state, call.token_timeout)
        token, end = self._run(
            acquire_permit_and_token(self._state, call, lambda: self._acquisition(call, token_timeout)), call
        )
        try:
            yield token
        finally:
            end()

    def token(self, sender: Sender, *, token_timeout: float | None = None, min_validity: float = 0.0) -> Token:
        """Get a token; wait for at most *patience* real seconds, if given."""
        return self._run(self._acquisition(sender, _wait_budget(self._state, token_timeout), min_validity), sender)

    def _run(self, sequence: Generator[Any, Any, T], sender: Sender) -> T:
        answer: Any = None
        try:
            while True:
                answer = self._do(sequence.send(answer), sender)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _acquisition(self, sender: Sender, token_timeout: WaitBudget, min_validity: float = 0.0) -> AcquireTokenFlow:
        state = self._state
        return TokenAcquisition(
            state,
            lambda: state.join_waiters(_THREADS, ThreadEvent),
            token_timeout=token_timeout,
            carriers=_carriers(sender),
            min_validity=min_validity,
            alone=state.fetches.blocks_this_thread(),
        ).run()

    def _do(self, effect: object, sender: Sender) -> Any:
        match effect:
            case StartFetch():
                return self.start(effect, sender)
            case WaitForFetch(event, seconds):
                assert isinstance(event, ThreadEvent)
                self._state.clock.wait(event, seconds)
            case Sleep(seconds):
                self._state.clock.pause(seconds)
            case StoreOperation(operation):
                return operation()
            case _:
                raise AssertionError(effect)
        return None

    def start(self, start: StartFetch, sender: Sender, caller: AsyncRuntime | None = None) -> FetchRun:
        """Start a fetch, in this thread if it is needed and no other can be had.

        Args:
            start: What to start.
            sender: Sends its token requests.
            caller: The event loop of the call that starts it, if one does: it awaits async credentials.
        """
        state = self._state
        run = FetchRun(start.ticket, cannot_wait=start.cannot_wait)
        stuck = state.fetches.stuck(_STUCK_PATIENCE if caller is None else 0.0)
        if stuck is not None:
            _fail(state, run, stuck)
            return run
        try:
            state.fetches.begin(run)
            worker = run.worker = Worker(
                partial(self._fetch, run, sender, caller), "pay88-token-fetch", finishes=state.store_client.blocking
            )
            worker.start()
        except RuntimeError as exc:  # the interpreter is going down, or the system has no thread left
            run.worker = None
            if start.background or caller is not None:
                state.fetches.abandon(run, exc)
            else:
                self._fetch(run, sender, None)
        except BaseException as exc:  # a signal handler's, for one
            if run.worker is None or not run.worker.is_alive():
                state.fetches.abandon(run, exc)
            raise
        return run

    def _fetch(self, run: FetchRun, sender: Sender, caller: AsyncRuntime | None) -> None:
        state = self._state
        sequence = fetch_token(state, run, partial(_is_open, sender))
        answer: Any = None
        try:
            while True:
                match sequence.send(answer):
                    case LoadCredentials():
                        asked = self._hangs(run, "credentials provider", partial(self._ask, caller))
                        answer = _no_credentials(asked) if isinstance(asked, Overdue) else asked
                    case SendTokenRequest(request):
                        answer = self._hangs(run, "token request", partial(_post, sender, request))
                    case effect:
                        answer = self._do(effect, sender)
        except StopIteration:
            pass
        except BaseException as exc:  # noqa: BLE001 - there is no caller
            state.fetches.abandon(run, exc)
        finally:
            state.fetches.end(run)

    def _hangs(self, run: FetchRun, doing: str, act: Callable[[], T]) -> T | Overdue:
        """Do what may hang: whoever notices that it takes too long interrupts it with :class:`Overdue`."""
        run.since, run.doing = time.monotonic(), doing
        try:
            return act()
        except Overdue as exc:
            return exc
        finally:
            run.doing = ""

    def _ask(self, caller: AsyncRuntime | None) -> Credentials | Failure:
        state = self._state
        seconds = state.clock.real(state.policy.max_wait)
        try:
            answer = _call(self._source)
            if inspect.isawaitable(answer) and caller is not None:
                answer = caller.run_from_thread(answer, seconds)
            elif inspect.isawaitable(answer):
                answer = asyncio.run(_awaited(answer, seconds))
            return _checked(state, answer)
        except (LoopEnded, Overdue):
            raise
        except BaseException as exc:  # noqa: BLE001 - the provider is the user's, and nobody else runs in this thread
            return _no_credentials(exc)


class AsyncRunner:
    """Runs the sequences in a task; a fetch gets a task of its own, on the loop of the call that leads."""

    __slots__ = ("_source", "_state")

    def __init__(self, state: ManagerState, source: CredentialsSource) -> None:
        self._state = state
        self._source = source

    async def call(self, call: AsyncCall[R]) -> R:
        """Make a managed call, which is sent at once if there is a token and nothing to decide before."""
        state = self._state
        now = state.now()
        token, until = state.fast_path
        if token is None or now >= until or state.guards is not None:
            return await self._run_request(self._exchange(call, now), call)
        # Nearly every call ends here; only for the others there is anything to decide.
        try:
            response = await call.send(token)
        except BaseException as exc:  # noqa: BLE001 - raised again below, where what the caller recovers from is known
            failed = exc
        else:
            if call.status(response) < UNAUTHORIZED and not state.awaiting_first_success:
                return response
            return await self._run_request(self._exchange(call, now, token), call, response)
        try:
            sequence = self._exchange(call, now, token)
            _after_failure(sequence, call, failed)
            return await self._run_request(sequence, call)
        finally:
            del failed

    def _exchange(self, call: AsyncCall[R], began_at: float, sent: Token | None = None) -> RequestFlow[R]:
        token_timeout = _wait_budget(self._state, call.token_timeout)

        def acquired() -> AcquireTokenFlow:
            return self._acquisition(current_runtime(), token_timeout, (*_carriers(call), current_run()))

        sequence = run_request(self._state, call, acquired, began_at, sent)
        if sent is not None:
            next(sequence)  # up to where it waits for the answer
        return sequence

    async def _run_request(self, sequence: RequestFlow[R], call: AsyncCall[R], response: Any = None) -> R:
        answer = response
        handled = sys.exc_info()[1]
        with closing(sequence):  # not when it is collected: it may hold the probe that all others wait for
            while True:
                try:
                    effect = sequence.send(answer)
                except StopIteration as stop:
                    result: R = stop.value
                    return result
                except BaseException:
                    if response is not None:  # the caller will not get it
                        await call.discard(response)
                    raise
                answer = None
                match effect:
                    case Token():
                        try:
                            answer = response = await call.send(effect)
                        except BaseException as exc:
                            clear_traceback_locals(exc, but=handled)
                            if not _should_retry(sequence, call, exc, handled):
                                raise
                    case DrainResponse():
                        await call.discard(response)
                        response = None
                    case _:
                        answer = await self._do(effect, partial(self._spawn, call))

    async def token(
        self, start: Callable[[StartFetch], FetchRun], carriers: tuple[object, ...], *, min_validity: float = 0.0
    ) -> Token:
        """Get a token; *start* starts a fetch, carried by *carriers*."""
        sequence = self._acquisition(current_runtime(), _wait_budget(self._state, None), carriers, min_validity)
        answer: Any = None
        try:
            while True:
                answer = await self._do(sequence.send(answer), start)
        except StopIteration as stop:
            fetched: Token = stop.value
            return fetched

    async def token_over(self, sender: AsyncSender, *, min_validity: float = 0.0) -> Token:
        """Get a token; *sender* sends the token requests, on this event loop."""
        carriers = (*_carriers(sender), current_run())
        return await self.token(partial(self._spawn, sender), carriers, min_validity=min_validity)

    def _acquisition(
        self, runtime: AsyncRuntime, token_timeout: WaitBudget, carriers: tuple[object, ...], min_validity: float = 0.0
    ) -> AcquireTokenFlow:
        state = self._state
        return TokenAcquisition(
            state,
            lambda: state.join_waiters(runtime.key, runtime.event),
            token_timeout=token_timeout,
            carriers=carriers,
            min_validity=min_validity,
        ).run()

    async def _do(self, effect: object, start: Callable[[StartFetch], FetchRun]) -> Any:
        match effect:
            case StartFetch():
                return start(effect)
            case WaitForFetch(event, seconds):
                # Waking early is harmless: the sequence asks again.
                await self._state.clock.wait_in_task(event, seconds)  # type: ignore[arg-type]
            case Sleep(seconds):
                await self._state.clock.sleep(seconds, current_runtime())
            case StoreOperation(operation):
                return await self._run_store_operation(current_runtime(), operation)
            case _:
                raise AssertionError(effect)
        return None

    def _spawn(self, sender: AsyncSender, start: StartFetch) -> FetchRun:
        state, runtime = self._state, current_runtime()
        run = FetchRun(
            start.ticket,
            cannot_wait=start.cannot_wait,
            loop_thread=threading.get_ident(),
            is_dead=lambda: not runtime.is_running,
        )

        async def job() -> None:
            await self._fetch(runtime, run, sender)

        def ended() -> None:  # also if it never began
            state.fetches.abandon(run, ClientClosed("the event loop of the token request ended"))

        try:
            state.fetches.begin(run)
            runtime.spawn(job, ended)
        except RuntimeError as exc:  # the loop is going down
            state.fetches.abandon(run, exc)
        except BaseException as exc:  # a signal handler's, for one
            state.fetches.abandon(run, exc)
            raise
        return run

    async def _fetch(self, runtime: AsyncRuntime, run: FetchRun, sender: AsyncSender) -> None:
        state = self._state
        sequence = fetch_token(state, run, partial(_is_open, sender))
        answer: Any = None
        try:
            while True:
                match sequence.send(answer):
                    case LoadCredentials():
                        answer = await self._ask(runtime)
                    case StoreOperation(operation):
                        answer = await self._run_store_operation(runtime, operation)
                    case SendTokenRequest(request):
                        answer = await self._post(runtime, sender, request)
                    case Sleep(seconds):
                        answer = None
                        await state.clock.sleep(seconds, runtime)
        except StopIteration:
            state.fetches.end(run)
        except GeneratorExit:  # collected with its loop, perhaps by a thread that another one waits for: take no lock
            run.is_dead = lambda: True
            raise
        except BaseException as exc:
            state.fetches.abandon(run, exc)
            if not isinstance(exc, Exception):  # it was cancelled
                raise

    async def _ask(self, runtime: AsyncRuntime) -> Credentials | Failure:
        state = self._state
        try:
            answer = _call(self._source)
        except BaseException as exc:  # noqa: BLE001 - the provider is the user's
            return _no_credentials(exc)
        try:
            if inspect.isawaitable(answer):
                answer = await runtime.with_timeout(answer, state.clock.real(state.policy.max_wait))
            return _checked(state, answer)
        except runtime.cancelled:  # this task, and not the provider
            raise
        except BaseException as exc:  # noqa: BLE001 - the provider is the user's
            return _no_credentials(exc)

    async def _run_store_operation(self, runtime: AsyncRuntime, operation: Callable[[], object]) -> object:
        # A store on a disk or behind a network must not keep the event loop.
        if self._state.store_client.blocking:
            with suppress(RuntimeError):  # no thread can be started: the store counts as failing, and does not block
                return await runtime.run_in_thread(operation)
        return operation()

    async def _post(
        self, runtime: AsyncRuntime, sender: AsyncSender, request: TokenRequest
    ) -> TokenResponse | Exception | UnexpectedError:
        began_at = time.monotonic()
        try:
            return await runtime.with_timeout(sender.post(request), request.timeout)
        except TimeoutError as exc:
            if time.monotonic() - began_at > request.timeout + GRACE:
                raise ClientClosed("the event loop of the token request was blocked or stopped") from exc
            return exc
        except sender.network_errors as exc:
            return exc
        except ClientClosed:
            raise
        except Exception as exc:  # noqa: BLE001 - named as what it is
            return UnexpectedError(exc)


def _post(sender: Sender, request: TokenRequest) -> TokenResponse | Exception | UnexpectedError:
    try:
        return sender.post(request)
    except sender.network_errors as exc:
        return exc
    except (ClientClosed, Overdue):
        raise
    except Exception as exc:  # noqa: BLE001 - named as what it is
        return UnexpectedError(exc)


def _is_open(sender: object) -> bool:
    return not getattr(sender, "is_closed", False)


def _carriers(sender: object) -> tuple[object, ...]:
    """Return what would carry a fetch over *sender*: its client; nothing that may end where that is the manager's."""
    client = getattr(sender, "client", sender)
    return () if client is None else (client,)


def _wait_budget(state: ManagerState, seconds: float | None) -> WaitBudget:
    """Return how long a call may wait in all, if its caller is ready to wait for *seconds* (real ones)."""
    longest = state.policy.max_wait
    return WaitBudget(longest if seconds is None else min(seconds * state.clock.speed, longest))


def _fail(state: ManagerState, run: FetchRun, failure: Failure) -> None:
    def act(machine: TokenMachine, now: float) -> None:
        machine.on_fetch_failed(run.ticket, failure, now)
        state.record_failure(failure, now)

    state.transition(act)


def _should_retry(
    sequence: RequestFlow[Any], call: ErrorClassifier, exc: BaseException, handled: BaseException | None
) -> bool:
    """Tell *sequence* how an attempt ended; return whether another one follows."""
    broken = call.classify_error(exc) if isinstance(exc, Exception) else None
    if broken is None:
        return False
    verdict = sequence.send(broken.refine(exc, but=handled))
    assert isinstance(verdict, RetryDecision)
    return verdict.retry


def _after_failure(sequence: RequestFlow[Any], call: ErrorClassifier, exc: BaseException) -> None:
    """Tell *sequence* how its first attempt ended; raise that again where no other one follows."""
    handled = sys.exc_info()[1]  # what the caller may be recovering from is not ours to touch
    clear_traceback_locals(exc, but=handled)
    context = exc.__context__
    try:
        if not _should_retry(sequence, call, exc, handled):
            sequence.close()
            raise exc
    finally:
        object.__setattr__(exc, "__context__", context)  # where raise has put what is being handled here
        del exc


def _call(source: CredentialsSource) -> object:
    return source() if callable(source) else source


async def _awaited(answer: Awaitable[T], seconds: float) -> T:
    return await asyncio.wait_for(answer, seconds)


def _checked(state: ManagerState, answer: object) -> Credentials:
    if not isinstance(answer, Credentials):
        raise ConfigurationError(f"the credentials callable returned {type(answer).__name__}, not Credentials")
    state.endpoint.check_key(answer)
    return answer


def _no_credentials(exc: BaseException) -> Failure:
    if isinstance(exc, ConfigurationError):
        return Failure(ConfigurationError, str(exc))
    if isinstance(exc, (TimeoutError, asyncio.TimeoutError)):
        return Failure(
            ConfigurationError,
            "the credentials provider did not return in time; request not sent",
            retryable=True,
            cause=exc,
        )
    return Failure(
        ConfigurationError,
        f"the credentials callable raised {type(exc).__name__}; the call was not sent",
        retryable=True,
        cause=exc,
    )
