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

from pay88_adapters.core.errors import CarrierLost, ConfigurationError, Failure
from pay88_adapters.core.machine import GRACE, TokenMachine
from pay88_adapters.core.retry import Broken
from pay88_adapters.core.secret import forget_locals
from pay88_adapters.core.token import Token
from pay88_adapters.core.wire import TokenReply, TokenRequest

from .credentials import Credentials
from .fetches import FetchRun
from .flows import (
    REFUSED,
    Acquirer,
    Acquisition,
    AskCredentials,
    Consult,
    Discard,
    Exchange,
    Hold,
    Managed,
    Patience,
    Pause,
    Post,
    Start,
    Unexpected,
    Verdict,
    exchange,
    fetch,
    paced,
)
from .running import current_run, current_runtime
from .runtimes import AsyncRuntime, LoopEnded, ThreadGate
from .state import CredentialsSource, SharedState
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

    def post(self, request: TokenRequest) -> TokenReply:
        """Send *request*: no redirects, no retries, at most ``MAX_BODY`` + 1 bytes read."""
        ...


class AsyncSender(Protocol):
    """Sends token requests on the loop that awaits it."""

    @property
    def network_errors(self) -> tuple[type[Exception], ...]:
        """What the stack raises when there is no usable answer."""
        ...

    async def post(self, request: TokenRequest) -> TokenReply:
        """Send *request*: no redirects, no retries, at most ``MAX_BODY`` + 1 bytes read."""
        ...


class Breakable(Protocol):
    """Tells what became of an attempt that got no response."""

    def broken(self, exc: Exception) -> Broken | None:
        """Return what *exc* says of the attempt; ``None`` where it is not about the connection."""
        ...


class Call(Managed[R], Sender, Breakable, Protocol[R]):
    """One API call of a sync stack."""

    def send(self, token: Token) -> R:
        """Send the call with *token*'s headers on a copy; return the response, whatever its status."""
        ...

    def discard(self, response: R) -> None:
        """Free the connection of a refused response."""
        ...


class AsyncCall(Managed[R], AsyncSender, Breakable, Protocol[R]):
    """One API call of an async stack."""

    def send(self, token: Token) -> Awaitable[R]:
        """Send the call with *token*'s headers on a copy; return the response, whatever its status."""
        ...

    async def discard(self, response: R) -> None:
        """Free the connection of a refused response."""
        ...


class ThreadDriver:
    """Runs the sequences on the calling thread; a fetch gets a thread of its own.

    A fetch outlives whoever started it: an interrupt or a short timeout of one caller wastes nothing.
    """

    __slots__ = ("_source", "_state")

    def __init__(self, state: SharedState, source: CredentialsSource) -> None:
        self._state = state
        self._source = source

    def call(self, call: Call[R]) -> R:
        """Make a managed call, which is sent at once if there is a token and nothing to decide before."""
        state = self._state
        now = state.now()
        token, until = state.published
        if token is None or now >= until or state.guards is not None:
            return self._carry_out(self._exchange(call, now), call)
        # Nearly every call ends here; only for the others there is anything to decide.
        try:
            response = call.send(token)
        except BaseException as exc:  # noqa: BLE001 - raised again below, where what the caller recovers from is known
            failed = exc
        else:
            if call.status(response) < REFUSED and not state.unproven:
                return response
            return self._carry_out(self._exchange(call, now, token), call, response)
        try:
            sequence = self._exchange(call, now, token)
            _after_failure(sequence, call, failed)
            return self._carry_out(sequence, call)
        finally:
            del failed

    def _exchange(self, call: Call[R], began_at: float, sent: Token | None = None) -> Exchange[R]:
        patience = _patience(self._state, call.patience)

        def acquired() -> Acquisition:
            return self._acquisition(call, patience)

        sequence = exchange(self._state, call, acquired, began_at, sent)
        if sent is not None:
            next(sequence)  # up to where it waits for the answer
        return sequence

    def _carry_out(self, sequence: Exchange[R], call: Call[R], response: Any = None) -> R:
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
                            forget_locals(exc, but=handled)
                            if not _goes_on(sequence, call, exc, handled):
                                raise
                    case Discard():
                        call.discard(response)
                        response = None
                    case _:
                        answer = self._do(effect, call)

    @contextmanager
    def token_for(self, call: Call[Any]) -> Generator[Token, None, None]:
        """Get a token for another attempt that the stack makes by itself, in the block."""
        patience = _patience(self._state, call.patience)
        token, end = self._run(paced(self._state, call, lambda: self._acquisition(call, patience)), call)
        try:
            yield token
        finally:
            end()

    def token(self, sender: Sender, *, patience: float | None = None, min_validity: float = 0.0) -> Token:
        """Get a token; wait for at most *patience* real seconds, if given."""
        return self._run(self._acquisition(sender, _patience(self._state, patience), min_validity), sender)

    def _run(self, sequence: Generator[Any, Any, T], sender: Sender) -> T:
        answer: Any = None
        try:
            while True:
                answer = self._do(sequence.send(answer), sender)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _acquisition(self, sender: Sender, patience: Patience, min_validity: float = 0.0) -> Acquisition:
        state = self._state
        return Acquirer(
            state,
            lambda: state.gate(_THREADS, ThreadGate),
            patience=patience,
            carriers=_carriers(sender),
            min_validity=min_validity,
            alone=state.fetches.blocks_this_thread(),
        ).run()

    def _do(self, effect: object, sender: Sender) -> Any:
        match effect:
            case Start():
                return self.start(effect, sender)
            case Hold(gate, seconds):
                assert isinstance(gate, ThreadGate)
                self._state.clock.wait(gate, seconds)
            case Pause(seconds):
                self._state.clock.pause(seconds)
            case Consult(operation):
                return operation()
            case _:
                raise AssertionError(effect)
        return None

    def start(self, start: Start, sender: Sender, caller: AsyncRuntime | None = None) -> FetchRun:
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
                partial(self._fetch, run, sender, caller), "pay88-token-fetch", finishes=state.fleet.blocking
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
        sequence = fetch(state, run, partial(_is_open, sender))
        answer: Any = None
        try:
            while True:
                match sequence.send(answer):
                    case AskCredentials():
                        asked = self._hangs(run, "credentials provider", partial(self._ask, caller))
                        answer = _no_credentials(asked) if isinstance(asked, Overdue) else asked
                    case Post(request):
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


class TaskDriver:
    """Runs the sequences in a task; a fetch gets a task of its own, on the loop of the call that leads."""

    __slots__ = ("_source", "_state")

    def __init__(self, state: SharedState, source: CredentialsSource) -> None:
        self._state = state
        self._source = source

    async def call(self, call: AsyncCall[R]) -> R:
        """Make a managed call, which is sent at once if there is a token and nothing to decide before."""
        state = self._state
        now = state.now()
        token, until = state.published
        if token is None or now >= until or state.guards is not None:
            return await self._carry_out(self._exchange(call, now), call)
        # Nearly every call ends here; only for the others there is anything to decide.
        try:
            response = await call.send(token)
        except BaseException as exc:  # noqa: BLE001 - raised again below, where what the caller recovers from is known
            failed = exc
        else:
            if call.status(response) < REFUSED and not state.unproven:
                return response
            return await self._carry_out(self._exchange(call, now, token), call, response)
        try:
            sequence = self._exchange(call, now, token)
            _after_failure(sequence, call, failed)
            return await self._carry_out(sequence, call)
        finally:
            del failed

    def _exchange(self, call: AsyncCall[R], began_at: float, sent: Token | None = None) -> Exchange[R]:
        patience = _patience(self._state, call.patience)

        def acquired() -> Acquisition:
            return self._acquisition(current_runtime(), patience, (*_carriers(call), current_run()))

        sequence = exchange(self._state, call, acquired, began_at, sent)
        if sent is not None:
            next(sequence)  # up to where it waits for the answer
        return sequence

    async def _carry_out(self, sequence: Exchange[R], call: AsyncCall[R], response: Any = None) -> R:
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
                            forget_locals(exc, but=handled)
                            if not _goes_on(sequence, call, exc, handled):
                                raise
                    case Discard():
                        await call.discard(response)
                        response = None
                    case _:
                        answer = await self._do(effect, partial(self._spawn, call))

    async def token(
        self, start: Callable[[Start], FetchRun], carriers: tuple[object, ...], *, min_validity: float = 0.0
    ) -> Token:
        """Get a token; *start* starts a fetch, carried by *carriers*."""
        sequence = self._acquisition(current_runtime(), _patience(self._state, None), carriers, min_validity)
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
        self, runtime: AsyncRuntime, patience: Patience, carriers: tuple[object, ...], min_validity: float = 0.0
    ) -> Acquisition:
        state = self._state
        return Acquirer(
            state,
            lambda: state.gate(runtime.key, runtime.gate),
            patience=patience,
            carriers=carriers,
            min_validity=min_validity,
        ).run()

    async def _do(self, effect: object, start: Callable[[Start], FetchRun]) -> Any:
        match effect:
            case Start():
                return start(effect)
            case Hold(gate, seconds):
                # Waking early is harmless: the sequence asks again.
                await self._state.clock.wait_in_task(gate, seconds)  # type: ignore[arg-type]
            case Pause(seconds):
                await self._state.clock.sleep(seconds, current_runtime())
            case Consult(operation):
                return await self._consult(current_runtime(), operation)
            case _:
                raise AssertionError(effect)
        return None

    def _spawn(self, sender: AsyncSender, start: Start) -> FetchRun:
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
            state.fetches.abandon(run, CarrierLost("the event loop of the token request ended"))

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
        sequence = fetch(state, run, partial(_is_open, sender))
        answer: Any = None
        try:
            while True:
                match sequence.send(answer):
                    case AskCredentials():
                        answer = await self._ask(runtime)
                    case Consult(operation):
                        answer = await self._consult(runtime, operation)
                    case Post(request):
                        answer = await self._post(runtime, sender, request)
                    case Pause(seconds):
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
                answer = await runtime.bounded(answer, state.clock.real(state.policy.max_wait))
            return _checked(state, answer)
        except runtime.cancelled:  # this task, and not the provider
            raise
        except BaseException as exc:  # noqa: BLE001 - the provider is the user's
            return _no_credentials(exc)

    async def _consult(self, runtime: AsyncRuntime, operation: Callable[[], object]) -> object:
        # A store on a disk or behind a network must not keep the event loop.
        if self._state.fleet.blocking:
            with suppress(RuntimeError):  # no thread can be started: the store counts as failing, and does not block
                return await runtime.in_thread(operation)
        return operation()

    async def _post(
        self, runtime: AsyncRuntime, sender: AsyncSender, request: TokenRequest
    ) -> TokenReply | Exception | Unexpected:
        began_at = time.monotonic()
        try:
            return await runtime.bounded(sender.post(request), request.timeout)
        except TimeoutError as exc:
            if time.monotonic() - began_at > request.timeout + GRACE:
                raise CarrierLost("the event loop of the token request was blocked or stopped") from exc
            return exc
        except sender.network_errors as exc:
            return exc
        except CarrierLost:
            raise
        except Exception as exc:  # noqa: BLE001 - named as what it is
            return Unexpected(exc)


def _post(sender: Sender, request: TokenRequest) -> TokenReply | Exception | Unexpected:
    try:
        return sender.post(request)
    except sender.network_errors as exc:
        return exc
    except (CarrierLost, Overdue):
        raise
    except Exception as exc:  # noqa: BLE001 - named as what it is
        return Unexpected(exc)


def _is_open(sender: object) -> bool:
    return not getattr(sender, "is_closed", False)


def _carriers(sender: object) -> tuple[object, ...]:
    """Return what would carry a fetch over *sender*: its client; nothing that may end where that is the manager's."""
    client = getattr(sender, "client", sender)
    return () if client is None else (client,)


def _patience(state: SharedState, seconds: float | None) -> Patience:
    """Return how long a call may wait in all, if its caller is ready to wait for *seconds* (real ones)."""
    longest = state.policy.max_wait
    return Patience(longest if seconds is None else min(seconds * state.clock.speed, longest))


def _fail(state: SharedState, run: FetchRun, failure: Failure) -> None:
    def act(machine: TokenMachine, now: float) -> None:
        machine.fetch_failed(run.ticket, failure, now)
        state.fetch_failed(failure, now)

    state.transition(act)


def _goes_on(sequence: Exchange[Any], call: Breakable, exc: BaseException, handled: BaseException | None) -> bool:
    """Tell *sequence* how an attempt ended; return whether another one follows."""
    broken = call.broken(exc) if isinstance(exc, Exception) else None
    if broken is None:
        return False
    verdict = sequence.send(broken.by(exc, but=handled))
    assert isinstance(verdict, Verdict)
    return verdict.again


def _after_failure(sequence: Exchange[Any], call: Breakable, exc: BaseException) -> None:
    """Tell *sequence* how its first attempt ended; raise that again where no other one follows."""
    handled = sys.exc_info()[1]  # what the caller may be recovering from is not ours to touch
    forget_locals(exc, but=handled)
    context = exc.__context__
    try:
        if not _goes_on(sequence, call, exc, handled):
            sequence.close()
            raise exc
    finally:
        object.__setattr__(exc, "__context__", context)  # where raise has put what is being handled here
        del exc


def _call(source: CredentialsSource) -> object:
    return source() if callable(source) else source


async def _awaited(answer: Awaitable[T], seconds: float) -> T:
    return await asyncio.wait_for(answer, seconds)


def _checked(state: SharedState, answer: object) -> Credentials:
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
