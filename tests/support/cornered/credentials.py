"""Thousands of callers of a failing fetch, and credentials providers that block or fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import anyio

from pay88_adapters import Credentials, Pay88Error, Token, TokenEndpointUnavailable, TokenManager
from pay88_adapters.clock import Clock
from pay88_adapters.testing import ManualClock, ResetAfterRead
from support.stacks import AsyncioStack

from .leaders import raised
from .shared import ALONE, DEADLINE, KINDS, OPTIONS, TASKS, THREADS, Corner, caller, case, corner, served, until


@case(*THREADS, *TASKS, ALONE)
def thousands_wait_for_a_fetch_that_fails(stack: str) -> None:
    """A thousand callers, or ten thousand without a client, each get an error of their own with the cause."""
    count = 10_000 if stack == ALONE else 1_000
    with corner(ManualClock(), fetch_attempts=1) as here, ExitStack() as clients, ThreadPoolExecutor(1) as pool:
        if stack == ALONE:
            base: type[Exception] = TokenEndpointUnavailable
            gather = partial(asyncio.run, _callers(here.manager, count), debug=False)
            attempt: Callable[[], object] = here.manager.get_token
        else:
            client: Any = clients.enter_context(KINDS[stack](here.manager, OPTIONS))
            if isinstance(client, AsyncioStack):
                client.loop.set_debug(False)  # which would note where each of ten thousand tasks came from
            base, gather = client.base_error, partial(client.gather, count, "POST", here.url)
            attempt = lambda: served([client.request("POST", here.url)])  # noqa: E731
        with here.emulator.hold("token") as held:
            broken = here.emulator.faults.add(ResetAfterRead(), on="token", times=None)
            crowd = pool.submit(gather)
            until(lambda: held.held == 1 and here.waiting == count)
        outcomes = crowd.result(DEADLINE)
        assert len({id(each) for each in outcomes}) == count
        for each in outcomes:
            assert isinstance(each, TokenEndpointUnavailable)
            assert isinstance(each, base)
            assert each.__cause__ is not None
        here.used(1)
        broken.remove()
        with raised(TokenEndpointUnavailable):
            attempt()
        here.advance(1.1)
        assert attempt()
        here.used(2)


async def _callers(manager: TokenManager, count: int) -> list[Token | BaseException]:
    return await asyncio.gather(*(manager.aget_token() for _ in range(count)), return_exceptions=True)


class Provider:
    """A credentials provider under the control of the test."""

    def __init__(self) -> None:
        self.behave: Callable[[], Any] = self.good
        self.good_ones: Callable[[], Credentials]

    def good(self) -> Any:
        """Return the credentials."""
        return self.good_ones()

    def __call__(self) -> Any:
        return self.behave()


@contextmanager
def guarded(clock: Clock | None = None, **policy: Any) -> Iterator[tuple[Corner, Provider]]:
    """Set up a case about credentials."""
    provider = Provider()
    with corner(clock, provider, **policy) as here:
        provider.good_ones = lambda: here.credentials
        yield here, provider


@case("urllib3", ALONE)
def the_credentials_block(stack: str) -> None:
    """A request with a usable token continues. One without waits for `max_wait` and gets the reason; then all work."""
    with (
        guarded(ManualClock(), max_wait=20, fetch_timeout=5) as (here, provider),
        caller(stack, here) as call,
        ThreadPoolExecutor(9) as pool,
    ):
        opened, requested = threading.Event(), threading.Semaphore(0)

        def block() -> Any:
            requested.release()
            assert opened.wait(DEADLINE)
            return provider.good()

        assert call()
        provider.behave = block
        here.advance(46)
        assert call()  # starts the refresh
        assert requested.acquire(timeout=DEADLINE)
        assert all(pool.map(lambda _: call(), range(20)))
        here.advance(14)  # there is no usable token any more
        before = here.waiting
        callers = [pool.submit(call) for _ in range(8)]
        until(lambda: here.waiting == before + 8)
        here.advance(7.5)  # the refresh has been pending for too long: another request fetches
        requested_again: list[bool] = []

        def moved() -> bool:
            here.advance(0.1)
            requested_again.extend([True] * requested.acquire(timeout=0.05))
            return bool(requested_again)

        until(moved)
        here.advance(12.6)
        for each in callers:
            error = each.exception(DEADLINE)
            assert isinstance(error, TokenEndpointUnavailable)
            assert "credentials" in str(error)
        assert here.journal.token_requests == 1
        opened.set()
        assert call()
        until(lambda: not here.manager.stats().fetching)
        assert here.journal.token_requests == 2
        provider.behave = provider.good


@case("urllib3", "httpx-asyncio", "httpx-trio", ALONE)
def the_credentials_misbehave(stack: str) -> None:
    """They never come, are cancelled, call the manager, or are invalid: an error comes soon; then all succeed."""

    async def never() -> Any:
        await anyio.sleep_forever()

    async def cancelled() -> Any:
        raise asyncio.CancelledError

    async def reenter_async() -> Any:
        await here.manager.aget_token()
        return here.credentials

    async def rubbish() -> Any:
        return 7

    def reenter() -> Any:
        here.manager.get_token()
        return here.credentials

    kinds: list[Callable[[], Any]] = [never, reenter_async, reenter, rubbish, lambda: None, lambda: object]
    if stack != "httpx-trio":
        kinds.append(cancelled)
    with guarded(Clock(speed=20), max_wait=10) as (here, provider), caller(stack, here) as call:
        for kind in kinds:
            provider.behave = kind
            began = here.clock.now()
            with raised(Pay88Error):
                call()
            waited = here.clock.now() - began
            assert waited < here.policy.fetch_timeout, (kind, waited)
            provider.behave = provider.good
            until(lambda: can(call))
            here.manager.invalidate(here.manager.get_token())
        assert here.journal.token_requests <= len(kinds) + 1


def can(call: Callable[[], object]) -> bool:
    """Whether a call succeeds."""
    try:
        call()
    except Pay88Error:
        return False
    return True
