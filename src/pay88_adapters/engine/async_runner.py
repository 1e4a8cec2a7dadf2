"""Runs the flows on event loops."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from functools import partial
from typing import Any, TypeVar

from pay88_adapters.core.errors import ClientClosed, Failure
from pay88_adapters.core.pending import GRACE
from pay88_adapters.core.secret import clear_traceback_locals
from pay88_adapters.core.token import Token
from pay88_adapters.core.wire import TokenRequest, TokenResponse
from pay88_adapters.stores.realtime import monotonic

from .calls import AsyncCall, AsyncSender
from .credentials import Credentials
from .current_runtime import current_run, current_runtime
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
from .recorders import check_token_request
from .runner import Runner, after_failure, dependencies, failed_post, is_open, no_credentials, should_retry
from .runtimes import AsyncRuntime
from .threads import NoThread
from .token_flow import TokenAcquisition, WaitBudget

T = TypeVar("T")
R = TypeVar("R")


class AsyncRunner(Runner):
    """Run the flows in a task. A fetch gets its own task, on the event loop of the request that starts it."""

    __slots__ = ()

    async def call(self, call: AsyncCall[R]) -> R:
        """Send a managed request: immediately, if there is a token and nothing else to decide."""
        state = self.state
        read_clock = state.now  # called as a local variable, which costs less
        now = read_clock()
        token, until = state.fast_path
        if token is None or now >= until:
            return await self._run_request(self._request_flow(call, now), call)
        # Nearly every request ends here; only the rest needs a decision.
        try:
            response = await call.send(token)
        except BaseException as exc:  # noqa: BLE001 - raised again below, where what the caller recovers from is known
            failed = exc
        else:
            if call.status(response) < state.settled_below:
                return response
            return await self.resume(call, token, now, response)
        try:
            return await self.recover(call, token, now, failed)
        finally:
            del failed

    async def resume(self, call: AsyncCall[R], token: Token, began_at: float, response: R) -> R:
        """Continue a request whose first attempt, with the token of the fast path, got a response to decide about."""
        return await self._run_request(self._request_flow(call, began_at, token), call, response)

    async def recover(self, call: AsyncCall[R], token: Token, began_at: float, failed: BaseException) -> R:
        """Continue a request whose first attempt failed, or raise *failed*. Call it where no exception is handled."""
        try:
            flow = self._request_flow(call, began_at, token)
            after_failure(flow, call, failed)
            return await self._run_request(flow, call)
        finally:
            del failed

    async def _run_request(self, flow: RequestFlow[R], call: AsyncCall[R], response: Any = None) -> R:
        answer = response
        handled = sys.exc_info()[1]
        start = partial(self._spawn, call)
        with closing(flow):  # not when it is garbage-collected: it may hold the trial request
            while True:
                try:
                    effect = flow.send(answer)
                except StopIteration as stop:
                    result: R = stop.value
                    return result
                except BaseException:
                    if response is not None:  # the caller will not get the response
                        await call.discard(response)
                    raise
                answer = None
                match effect:
                    case Token():
                        try:
                            answer = response = await call.send(effect)
                        except BaseException as exc:
                            clear_traceback_locals(exc, but=handled)
                            if not should_retry(flow, call, exc, handled):
                                raise
                    case DrainResponse():
                        await call.discard(response)
                        response = None
                    case _:
                        answer = await self._do(effect, start)

    async def _run(self, flow: Generator[Any, Any, T], start: Callable[[StartFetch], FetchRun]) -> T:
        answer: Any = None
        try:
            while True:
                answer = await self._do(flow.send(answer), start)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _do(self, effect: object, start: Callable[[StartFetch], FetchRun]) -> Any:
        match effect:
            case StartFetch():
                return start(effect)
            case WaitForFetch(event, seconds):
                await self._wait(event, seconds)
            case Sleep(seconds):
                await self._sleep(seconds)
            case StoreOperation(operation):
                return await self.run_store_operation(operation)
            case _:
                raise AssertionError(effect)
        return None

    async def _wait(self, event: object, seconds: float) -> None:
        await self.state.settings.clock.wait_in_task(event, seconds)  # type: ignore[arg-type]  # an event loop's

    async def _sleep(self, seconds: float) -> None:
        await self.state.settings.clock.sleep(seconds, current_runtime())

    async def run_store_operation(self, operation: Callable[[], object]) -> object:
        # A store on a disk or behind a network must not block the event loop.
        if self.state.settings.store_client.blocking:
            with suppress(NoThread):  # the store counts as failing, and does not block
                return await current_runtime().run_in_thread(operation)
        return operation()

    async def token(
        self, start: Callable[[StartFetch], FetchRun], dependencies: tuple[object, ...], *, min_validity: float = 0.0
    ) -> Token:
        """Get a token; *start* starts a fetch."""
        return await self._run(self._join(dependencies, self._wait_budget(None), min_validity), start)

    async def token_over(self, sender: AsyncSender, *, min_validity: float = 0.0) -> Token:
        """Get a token; *sender* sends the token requests, on this event loop."""
        needed = (*dependencies(sender), current_run())
        return await self.token(partial(self._spawn, sender), needed, min_validity=min_validity)

    def _acquisition(self, call: Any, wait_budget: WaitBudget) -> AcquireTokenFlow:
        return self._join((*dependencies(call), current_run()), wait_budget)

    def _join(
        self, dependencies: tuple[object, ...], wait_budget: WaitBudget, min_validity: float = 0.0
    ) -> AcquireTokenFlow:
        runtime, state = current_runtime(), self.state
        return TokenAcquisition(
            self.fetches,
            lambda: state.join(runtime.key, runtime.event),
            wait_budget=wait_budget,
            dependencies=dependencies,
            min_validity=min_validity,
        ).run()

    def _spawn(self, sender: AsyncSender, start: StartFetch) -> FetchRun:
        fetches, runtime = self.fetches, current_runtime()
        run = FetchRun(
            start.ticket,
            dependencies=dependencies(sender),
            loop=runtime,
            is_dead=lambda: not runtime.is_running,
        )

        async def job() -> None:
            await self._fetch(runtime, run, sender)

        def ended() -> None:  # also if it never began
            fetches.abandon(run, ClientClosed("the event loop of the token request ended"))

        try:
            fetches.begin(run)
            runtime.spawn(job, ended)
        except RuntimeError as exc:  # the event loop is shutting down
            fetches.abandon(run, exc)
        except BaseException as exc:  # for example, of a signal handler
            fetches.abandon(run, exc)
            raise
        return run

    async def _fetch(self, runtime: AsyncRuntime, run: FetchRun, sender: AsyncSender) -> None:
        flow = fetch_token(self.fetches, run, partial(is_open, sender))
        answer: Any = None
        try:
            while True:
                match flow.send(answer):
                    case LoadCredentials():
                        answer = await self._load_credentials(runtime)
                    case SendTokenRequest(request):
                        answer = await _post(runtime, sender, request)
                    case effect:
                        answer = await self._do(effect, partial(self._spawn, sender))
        except StopIteration:
            self.fetches.end(run)
        except GeneratorExit:  # collected with its event loop, perhaps by a thread that holds a lock: take none
            run.is_dead = lambda: True
            raise
        except BaseException as exc:
            self.fetches.abandon(run, exc)
            if isinstance(exc, (runtime.cancelled, *runtime.ends_run)):
                raise

    async def _load_credentials(self, runtime: AsyncRuntime) -> Credentials | Failure:
        settings = self.state.settings
        try:
            answer = self._ask_source()
        except runtime.ends_run:
            raise
        except BaseException as exc:  # noqa: BLE001 - the provider is the user's
            return no_credentials(exc)
        try:
            if inspect.isawaitable(answer):
                answer = await runtime.with_timeout(answer, settings.clock.real(settings.policy.max_wait))
            return self._checked(answer)
        except (runtime.cancelled, GeneratorExit):  # this task, and not the provider
            raise
        except runtime.ends_run:
            raise
        except BaseException as exc:  # noqa: BLE001 - the provider is the user's
            return no_credentials(exc)


async def _post(
    runtime: AsyncRuntime, sender: AsyncSender, request: TokenRequest
) -> TokenResponse | Exception | UnexpectedError:
    began_at = monotonic()
    try:
        check_token_request(request)
        return await runtime.with_timeout(sender.post(request), request.timeout)
    except TimeoutError as exc:
        if monotonic() - began_at > request.timeout + GRACE:
            raise ClientClosed("the event loop of the token request was blocked or stopped") from exc
        return exc
    except Exception as exc:  # noqa: BLE001 - named as what it is
        return failed_post(exc, sender.network_errors)
