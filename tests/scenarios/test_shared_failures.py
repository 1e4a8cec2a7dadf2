"""Rules 15 and 17: requests that fail with one exception object end as without the adapter, and reveal nothing."""

from __future__ import annotations

import re
import ssl
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpcore
import httpcore2
import httpx
import httpx2
import pytest

import pay88_adapters.httpx
import pay88_adapters.httpx2
from pay88_adapters import Credentials, RetryPolicy, TokenManager
from pay88_adapters.testing import ManualClock, ResetAfterRead, Service
from support.authority import new_authority
from support.http2 import End, Http2Server, go_away, reset, say_nothing
from support.leaks import error_texts, leaked
from support.stacks import (
    Aiohttp,
    AsyncStack,
    Httpx,
    Httpx2Asyncio,
    Httpx2Trio,
    HttpxAsyncio,
    HttpxTrio,
    Options,
    Outcome,
    Stack,
)
from support.worlds import World

CROWD = 20
KINDS = [HttpxAsyncio, HttpxTrio, Httpx2Asyncio, Httpx2Trio]

Prepare = Callable[[AsyncStack, str], None]


def nothing(client: AsyncStack, url: str) -> None:
    """Change nothing."""


def breaks_while_sending(client: AsyncStack, url: str) -> None:
    """Break the connection while it sends header blocks, which are in local variables then."""
    assert not isinstance(client.attempt("POST", url), Exception)
    core = httpcore if client.adapter.__name__.endswith("httpx") else httpcore2
    transport = client.client._transport  # type: ignore[attr-defined]
    (connection,) = getattr(transport, "wrapped", transport)._pool.connections

    async def write(*_: object) -> None:
        await anyio.lowlevel.checkpoint()
        raise core.WriteError("broken pipe")

    connection._connection._network_stream.write = write


SITUATIONS: dict[str, tuple[End | None, Prepare, float]] = {
    "reset": (reset, nothing, 30.0),
    "go away": (go_away, nothing, 30.0),
    "read timeout": (say_nothing, nothing, 0.3),
    "broken while sending": (None, breaks_while_sending, 30.0),
}


class Printer:
    """Prints errors, and what they came from, with their local variables, of which this is one."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def print(self, error: Exception) -> None:
        """Print one."""
        self.texts += traceback.TracebackException.from_exception(error, capture_locals=True).format()


def crowd(client: AsyncStack, url: str, printer: Printer | None) -> list[Outcome]:
    """Send concurrent requests; print each error immediately, while others are still in progress, and after all ended.

    Fails where one of them does not end, which nothing can be done about.
    """

    async def one() -> Outcome:
        try:
            return await client.asend("POST", url)
        except Exception as error:  # noqa: BLE001 - compared with what the plain client raises
            if printer:
                printer.print(error)
            return error

    outcomes: list[Outcome] = []
    job = threading.Thread(target=lambda: outcomes.extend(client.run(lambda: client.all([one] * CROWD))), daemon=True)
    job.start()
    job.join(30)
    assert not job.is_alive(), "some requests hang"
    for outcome in outcomes:
        if printer and isinstance(outcome, Exception):
            printer.texts.extend(error_texts(outcome))
    return outcomes


def summary(outcomes: list[Outcome]) -> Counter[str]:
    """Return how often the requests ended in what way; the numbers of streams are a matter of chance."""
    return Counter(re.sub("[0-9]+", "N", f"{type(each).__module__} {each!r}") for each in outcomes)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_rules_15_and_17_a_connection_error_of_many_requests_ends_as_without_the_adapter(
    kind: type[AsyncStack], situation: str
) -> None:
    """Concurrently, with the errors of the plain client, and without a secret in any traceback at any time."""
    end, prepare, timeout = SITUATIONS[situation]
    authority = new_authority()
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    authority.configure_trust(trusting)
    serving.set_alpn_protocols(["h2"])
    clock = ManualClock()
    service = Service(token_limits=(), call_limits=())
    options = Options(tls=trusting, http2=True, connections=1, timeout=timeout)
    with Http2Server(service, clock, serving, CROWD, end) as server:
        credentials = Credentials(service.api_key, service.merchant_id)
        manager = TokenManager(credentials, base_url=server.url, clock=clock, retry=RetryPolicy.none())
        ends = []
        for each, printer in ((None, None), (manager, Printer())):
            with kind(each, options) as client:
                assert isinstance(client, AsyncStack)
                prepare(client, f"{server.url}/api/echo")
                ends.append(summary(crowd(client, f"{server.url}/api/echo", printer)))
    assert ends[1] == ends[0]
    assert sum(ends[0].values()) == CROWD
    assert not any("PlainResponse(" in each for each in ends[0])
    assert printer
    assert len(printer.texts) >= 2 * CROWD
    assert not leaked(service.secrets(), printer.texts)


ACCESS, SESSION = "eyJ.0123456789abcdef.0123456789abcdef", "sess_0123456789abcdef"


class Connection:
    """What a transport of the caller's own sends over: its first error is raised to every request from then on."""

    def __init__(self, library: Any) -> None:
        self.error = OSError("connection lost")
        self.closing, self.closed = anyio.Event(), anyio.Event()
        self._library = library

    async def send(self, request: Any) -> Any:
        """Respond to token requests; fail to send others, the second one of which waits while it cleans up."""
        if request.url.path.endswith("/auth/token"):
            return self._library.Response(
                200, json={"data": {"access_token": ACCESS, "session_id": SESSION, "expires_in": 60}}
            )
        try:
            await self._write(list(request.headers.raw), waits=request.url.path.endswith("/second"))
        except OSError as exc:
            if request.url.path.endswith("/first"):
                raise self._library.WriteError("cannot be sent") from exc
            raise

    async def _write(self, headers: list[tuple[bytes, bytes]], *, waits: bool) -> None:
        try:
            raise self.error
        except OSError:
            if waits and headers:
                self.closing.set()
                await self.closed.wait()
            raise


@pytest.mark.parametrize("runtime", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("library", "adapter"),
    [(httpx, pay88_adapters.httpx), (httpx2, pay88_adapters.httpx2)],
    ids=["httpx", "httpx2"],
)
def test_rule_15_a_cause_that_fails_another_request_later_contains_nothing_of_it(
    library: Any, adapter: Any, runtime: str
) -> None:
    """The error of the first request is printed while the second one is at its except block, with the same cause."""

    async def failing(client: Any, path: str) -> Any:
        with pytest.raises((OSError, library.WriteError)) as caught:
            await client.post(f"http://127.0.0.1:9/{path}")
        return caught.value

    async def main() -> None:
        connection = Connection(library)

        class Transport(library.AsyncBaseTransport):  # type: ignore[misc]
            async def handle_async_request(self, request: Any) -> Any:
                return await connection.send(request)

        credentials = Credentials("sk_test_0123456789abcdef", "MCH-COL-1")
        manager = TokenManager(credentials, base_url="http://127.0.0.1:9", retry=RetryPolicy.none())
        async with library.AsyncClient(transport=adapter.AsyncPay88Transport(manager, Transport())) as client:
            await failing(client, "warm-up")  # the next ones need no token
            first, second = await failing(client, "first"), []

            async def job() -> None:
                second.append(await failing(client, "second"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(job)
                await connection.closing.wait()
                assert leaked([SESSION], error_texts(connection.error)), "what is still under way is not ours to redact"
                texts.extend(error_texts(first))
                connection.closed.set()
            assert second == [connection.error], "the very object"
        assert type(first.__cause__) is type(first.__context__) is OSError
        assert first.__cause__ is first.__context__
        texts.extend([*error_texts(first), *error_texts(connection.error)])

    texts: list[str] = []
    anyio.run(main, backend=runtime)
    assert texts
    assert not leaked([ACCESS, SESSION], texts)


def below_the_adapter(error: Exception) -> str:
    """Return a printed traceback without the lines of the adapter's own frames, and what differs by chance."""
    # aiohttp has a frame of its own between a middleware and what it calls; how a test waits is a matter of chance.
    blocks = re.split("(?m)^(?=  File |[^ ])", "".join(traceback.format_exception(error)))
    lines = [each for each in blocks if not re.match(".*(pay88_adapters|client_middlewares|concurrent.futures)", each)]
    return re.sub("0x[0-9a-f]+", "0x", "".join(lines))


@pytest.mark.parametrize("kind", [*KINDS, Httpx, Aiohttp], ids=lambda kind: kind.name)  # the others retry by themselves
def test_rule_15_tracebacks_print_the_plain_clients_lines(world: World, kind: type[Stack]) -> None:
    """But for the lines of the adapter itself."""
    world.emulator.faults.add(ResetAfterRead(), on="call", times=None)
    url, printed = world.url, []
    for manager in (None, world.new_manager(retry=RetryPolicy.none())):
        with kind(manager, Options()) as client:
            error = client.attempt("POST", url)
            assert isinstance(error, Exception)
            printed.append(below_the_adapter(error))
    assert printed[1] == printed[0]
