"""The figures at full scale: run with ``tox -e figures``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle
from typing import Any

import pytest

from pay88_adapters import Credentials, TokenManager, TokenPolicy
from pay88_adapters.testing import Emulator
from support.stacks import STACKS, Aiohttp, Httpx, HttpxAsyncio, Options, Outcome, PlainResponse, Stack, Urllib3

pytestmark = [pytest.mark.figures, pytest.mark.timeout(1200)]

CALLERS = {"urllib3": 1_000, "httpx": 1_000, "httpx-asyncio": 10_000, "httpx-trio": 1_000, "aiohttp": 10_000}
PATIENT = Options(timeout=600)


class TenClients(HttpxAsyncio):
    """Ten of httpx's clients: each looks through all its waiting requests whenever one of them ends."""

    def __init__(self, manager: TokenManager, options: Options | None = None) -> None:
        super().__init__(manager, options)
        self._others = [HttpxAsyncio(manager, options) for _ in range(9)]
        self._turn = cycle([self.client, *(each.client for each in self._others)])

    async def asend(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **kw: Any
    ) -> PlainResponse:
        response = await next(self._turn).request(method, url, headers=headers, **kw)
        return PlainResponse(response.status_code, response.headers, response.content, response)

    async def aclose(self) -> None:
        await super().aclose()
        for other in self._others:
            await other.client.aclose()

    def close(self) -> None:
        super().close()
        for other in self._others:
            other.close()


@pytest.fixture(autouse=True)
def fair_interpreter() -> Iterator[None]:
    """Thousands of threads in one interpreter: each would wait its turn for five milliseconds at every read."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An emulator on a real clock."""
    with Emulator(call_limits=()) as emulator:
        yield emulator


@pytest.fixture
def manager(emulator: Emulator) -> TokenManager:
    """One manager for all."""
    # Tens of thousands of callers and the server share one interpreter here: this counts the token requests, and
    # measures no time.
    patient = TokenPolicy(fetch_timeout=120, max_wait=600)
    return TokenManager(Credentials(emulator.api_key, emulator.merchant_id), base_url=emulator.url, policy=patient)


def url(emulator: Emulator) -> str:
    """Where a harmless call goes."""
    return f"{emulator.url}/api/balance?id={emulator.merchant_id}"


def failures(outcomes: list[Outcome]) -> list[Outcome]:
    """What did not get a 200."""
    return [each for each in outcomes if not isinstance(each, PlainResponse) or each.status != 200]


def token_requests_before_the_first_refresh(emulator: Emulator) -> int:
    """How many token requests came in the 45 seconds from the first one; a slow machine takes longer in all."""
    tokens = emulator.journal.select("token")
    return len([each for each in tokens if each.at < tokens[0].at + 45])


@pytest.mark.parametrize("kind", STACKS, ids=lambda kind: kind.name)
def test_rule_03_a_cold_start_of_thousands(kind: type[Stack], emulator: Emulator, manager: TokenManager) -> None:
    """A thousand threads, or ten thousand tasks, start concurrently: one token request."""
    with kind(manager, PATIENT) as client:
        outcomes = client.gather(CALLERS[kind.name], "POST", url(emulator))
    assert not failures(outcomes)
    assert len(outcomes) == CALLERS[kind.name]
    assert token_requests_before_the_first_refresh(emulator) == 1


def test_rule_03_all_client_libraries_start_cold_concurrently(emulator: Emulator, manager: TokenManager) -> None:
    """Threads and tasks of every library through one manager: one token request until the first refresh is due."""
    load = [(Urllib3, 1_000), (Httpx, 1_000), (Aiohttp, 10_000), (TenClients, 10_000)]
    with ExitStack() as stack, ThreadPoolExecutor(len(load)) as pool:
        clients = [(stack.enter_context(kind(manager, PATIENT)), callers) for kind, callers in load]
        jobs = [pool.submit(client.gather, callers, "POST", url(emulator)) for client, callers in clients]
        outcomes = [each for job in jobs for each in job.result()]
    assert not failures(outcomes)
    assert len(outcomes) == 22_000
    assert token_requests_before_the_first_refresh(emulator) == 1


@pytest.mark.parametrize("kind", STACKS, ids=lambda kind: kind.name)
def test_rule_08_a_thousand_calls_rejected_with_one_token(
    kind: type[Stack], emulator: Emulator, manager: TokenManager
) -> None:
    """All are in flight when the token is rejected: one more token request, and every call gets 200."""
    with ExitStack() as stack, ThreadPoolExecutor(10) as pool:
        # httpx looks at all its connections each time a request ends: a hundred to a client.
        clients = [stack.enter_context(kind(manager, PATIENT)) for _ in range(10)]
        assert clients[0].request("POST", url(emulator)).status == 200
        with emulator.hold("call") as held:
            storm = [pool.submit(client.gather, 100, "POST", url(emulator)) for client in clients]
            held.wait_for(1_000, timeout=120)
            emulator.service.refuse_current_tokens()
            held.release()
            outcomes = [each for job in storm for each in job.result()]
    assert len(outcomes) == 1_000
    assert not failures(outcomes)
    assert emulator.journal.token_requests == 2
    assert emulator.journal.count("call") == 2_001
