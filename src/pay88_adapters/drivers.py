"""Carry out the effects of the sequences: once for threads, once for event loops."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing, contextmanager, suppress
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from .credentials import Credentials
from .errors import ConfigurationError, Failure
from .events import Event
from .retry import Broken
from .runtimes import AsyncRuntime, ThreadGate, current_runtime
from .secret import forget_locals
from .sequences import (
    REFUSED,
    Acquisition,
    AskCredentials,
    Consult,
    Discard,
    Exchange,
    Hold,
    Managed,
    Pause,
    Post,
    Start,
    Verdict,
    acquire,
    exchange,
    fetch,
    paced,
)
from .state import CredentialsSource, SharedState
from .token import Token
from .wire import TokenReply, TokenRequest, network_failure

T = TypeVar("T")
R = TypeVar("R")
_THREADS = "threads"
_lost: WeakSet[object] = WeakSet()  # senders whose client was closed


class CarrierLost(Exception):
    """The client that carried a fetch was closed under it; somebody else's can carry the next one."""


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
        def acquired() -> Acquisition:
            return self.acquisition(call.patience)

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
                    case _:
                        answer = self._do(effect, call)

    @contextmanager
    def token_for(self, call: Call[Any]) -> Generator[Token, None, None]:
        """Get a token for another attempt that the stack makes by itself, in the block."""
        token, end = self._run(paced(self._state, call, lambda: self.acquisition(call.patience)), call)
        try:
            yield token
        finally:
            end()

    def token(self, sender: Sender, *, patience: float | None = None, min_validity: float = 0.0) -> Token:
        """Get a token."""
        return self._run(self.acquisition(patience, min_validity), sender)

    def _run(self, sequence: Generator[Any, Any, T], sender: Sender) -> T:
        answer: Any = None
        try:
            while True:
                answer = self._do(sequence.send(answer), sender)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def acquisition(self, patience: float | None, min_validity: float = 0.0) -> Acquisition:
        """Return the sequence that gets a token, for a thread."""
        state = self._state
        return acquire(
            state,
            lambda: state.gate(_THREADS, ThreadGate),
            patience=None if patience is None else patience * state.clock.speed,
            min_validity=min_validity,
            alone=state.carried_by_this_thread(),
        )

    def _do(self, effect: object, sender: Sender) -> Any:
        match effect:
            case Start():
                self.start(effect, sender)
            case Hold(gate, seconds):
                assert isinstance(gate, ThreadGate)
                self._state.clock.wait(gate, seconds)
            case Pause(seconds):
                self._state.clock.pause(seconds)
            case Consult(operation):
                return operation()
            case AskCredentials():
                return _read_credentials(self._state, self._ask)
            case Post(request):
                return self._post(sender, request)
            case _:
                raise AssertionError(effect)
        return None

    def start(self, effect: Start, sender: Sender) -> None:
        """Start a fetch, in this thread if it is needed and no other can be had."""
        _check_carrier(self._state, effect.ticket, sender)
        thread = threading.Thread(
            target=self._fetch, args=(effect.ticket, sender), name="pay88-token-fetch", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as exc:  # the interpreter is going down, or the system has no thread left
            if effect.beside:
                _abandon(self._state, effect.ticket, exc)
            else:
                self._fetch(effect.ticket, sender)

    def _fetch(self, ticket: int, sender: Sender) -> None:
        try:
            self._run(fetch(self._state, ticket), sender)
        except BaseException as exc:
            if isinstance(exc, CarrierLost):
                _lost.add(sender)
            _abandon(self._state, ticket, exc)
            if not isinstance(exc, Exception):
                raise
        else:
            self._state.ended(ticket)

    def _post(self, sender: Sender, request: TokenRequest) -> TokenReply | Exception:
        try:
            return sender.post(request)
        except sender.network_errors as exc:
            return exc

    def _ask(self) -> object:
        answer = self._source() if callable(self._source) else self._source
        if not inspect.isawaitable(answer):
            return answer
        return asyncio.run(_awaited(answer, self._state.clock.real(self._state.policy.max_wait)))


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
        def acquired() -> Acquisition:
            return self.acquisition(current_runtime(), call.patience)

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
                    case _:
                        answer = await self.do(effect, lambda start: self._spawn(start.ticket, call))

    def acquisition(self, runtime: AsyncRuntime, patience: float | None, min_validity: float = 0.0) -> Acquisition:
        """Return the sequence that gets a token, for a task."""
        state = self._state
        return acquire(
            state,
            lambda: state.gate(runtime.key, runtime.gate),
            patience=None if patience is None else patience * state.clock.speed,
            min_validity=min_validity,
        )

    async def do(self, effect: object, start: Callable[[Start], None]) -> Any:
        """Carry out one step of a sequence; *start* starts a fetch."""
        match effect:
            case Start():
                start(effect)
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

    def _spawn(self, ticket: int, sender: AsyncSender) -> None:
        _check_carrier(self._state, ticket, sender)
        runtime = current_runtime()

        async def job() -> None:
            await self._fetch(runtime, ticket, sender)

        self._state.carry(ticket)
        try:
            runtime.spawn(job)
        except RuntimeError as exc:  # the loop is going down
            self._state.put_down(ticket)
            _abandon(self._state, ticket, exc)

    async def _fetch(self, runtime: AsyncRuntime, ticket: int, sender: AsyncSender) -> None:
        sequence = fetch(self._state, ticket)
        answer: Any = None
        try:
            while True:
                match sequence.send(answer):
                    case AskCredentials():
                        answer = await _aread_credentials(self._state, self._source, runtime)
                    case Consult(operation):
                        answer = await self._consult(runtime, operation)
                    case Post(request):
                        answer = await self._post(runtime, sender, request)
                    case Pause(seconds):
                        answer = None
                        await self._state.clock.sleep(seconds, runtime)
        except StopIteration:
            self._state.ended(ticket)
        except GeneratorExit:  # collected with its dead loop, wherever that happens: touch no lock
            self._state.under_way.pop(ticket, None)
            raise
        except BaseException as exc:
            if isinstance(exc, CarrierLost):
                _lost.add(sender)
            _abandon(self._state, ticket, exc)
            if not isinstance(exc, Exception):
                raise
        finally:
            self._state.put_down(ticket)

    async def _consult(self, runtime: AsyncRuntime, operation: Callable[[], object]) -> object:
        # A store on a disk or behind a network must not keep the event loop.
        if self._state.fleet.blocking:
            with suppress(RuntimeError):  # no thread can be started: the store counts as failing, and does not block
                return await runtime.in_thread(operation)
        return operation()

    async def _post(self, runtime: AsyncRuntime, sender: AsyncSender, request: TokenRequest) -> TokenReply | Exception:
        async def attempt() -> _Attempt:
            try:
                return _Attempt(await sender.post(request))
            except sender.network_errors as exc:
                return _Attempt(exc)

        try:
            return (await runtime.bounded(attempt(), request.timeout)).outcome
        except TimeoutError as exc:
            return exc


class _Attempt:
    """What a task comes back with: in debug mode asyncio logs results and exceptions, whatever they quote."""

    __slots__ = ("outcome",)

    def __init__(self, outcome: TokenReply | Exception) -> None:
        self.outcome = outcome


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
    context = exc.__context__
    try:
        forget_locals(exc, but=handled)
        if not _goes_on(sequence, call, exc, handled):
            sequence.close()
            raise exc
    finally:
        exc.__context__ = context  # where raise has put what is being handled here
        del exc


def _abandon(state: SharedState, ticket: int, exc: BaseException) -> None:
    failure = network_failure(exc)
    news: list[Event] = []
    with state.deciding(news) as (machine, now):
        machine.fetch_abandoned(ticket, failure, now, counts=not isinstance(exc, CarrierLost))
        state.fetch_failed(failure, now)
    state.ended(ticket)
    state.notify(news)


def _check_carrier(state: SharedState, ticket: int, sender: object) -> None:
    """Fail a call that would lead again with a client that is known to be closed: it would only be in the way."""
    if sender in _lost:
        exc = CarrierLost("the client was closed")
        _abandon(state, ticket, exc)
        raise network_failure(exc).error(None)


async def _awaited(answer: Awaitable[T], seconds: float) -> T:
    return await asyncio.wait_for(answer, seconds)


def _read_credentials(state: SharedState, ask: Callable[[], object]) -> Credentials | Failure:
    try:
        return _checked(state, ask())
    except asyncio.CancelledError as exc:  # its own: there is no task here that anybody else could cancel
        return _no_credentials(exc)
    except Exception as exc:  # noqa: BLE001 - the callable is the user's
        return _no_credentials(exc)


async def _aread_credentials(
    state: SharedState, source: CredentialsSource, runtime: AsyncRuntime
) -> Credentials | Failure:
    try:
        answer = source() if callable(source) else source
        if inspect.isawaitable(answer):
            answer = await runtime.bounded(answer, state.clock.real(state.policy.max_wait))
        return _checked(state, answer)
    except Exception as exc:  # noqa: BLE001 - the callable is the user's
        return _no_credentials(exc)


def _checked(state: SharedState, answer: object) -> Credentials:
    if not isinstance(answer, Credentials):
        raise ConfigurationError(f"the credentials callable returned {type(answer).__name__}, not Credentials")
    state.endpoint.check_key(answer)
    return answer


def _no_credentials(exc: BaseException) -> Failure:
    if isinstance(exc, ConfigurationError):
        return Failure(ConfigurationError, str(exc))
    return Failure(
        ConfigurationError,
        f"the credentials callable raised {type(exc).__name__}; the call was not sent",
        retryable=True,
        cause=exc,
    )
