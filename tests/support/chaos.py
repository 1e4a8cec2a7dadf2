"""A chaos test over real sockets: all libraries concurrently, with every fault, and checks on the server's side."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import hashlib
import itertools
import json
import logging
import random
import socket
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import httpx
import httpx2
import requests
import trio
import urllib3

from pay88_adapters import Credentials, Pay88Error, RetryPolicy, TokenManager
from pay88_adapters.clock import Clock
from pay88_adapters.testing import (
    Body,
    Drip,
    Emulator,
    Fault,
    Garbage,
    Headers,
    Hold,
    HugeBody,
    Latency,
    Redirect,
    RefuseToken,
    ResetAfterRead,
    ResetBeforeRead,
    Status,
    TooMany,
    Truncated,
)
from support.leaks import RootLogCapture, error_texts, outcome_texts
from support.stacks import STACKS, AsyncioStack, AsyncStack, HttpxTrio, Options, PlainResponse, Stack

MERCHANT = "MCH-COL-TEST-CHAOS"
LIFETIME, FETCH_TIMEOUT = 60.0, 5.0  # seconds of the service
LONGEST_CALL = 30.0  # real seconds, for calls whose every phase may take TIMEOUT
TIMEOUT = 2.0
RECOVERY = 150.0  # seconds of the service: the longest cooldown there can be, then the longest wait for a fetch
SCHEDULING = 0.03  # real seconds of scheduling delay of threads, besides what the pulse shows
PULSE = 0.05  # real seconds
PIECE = 16  # characters of a secret
SAMPLES = 4  # of each kind of outcome are searched for secrets

OWN_ERRORS: dict[str, tuple[type[Exception], ...]] = {
    "urllib3": (urllib3.exceptions.HTTPError,),
    "requests": (requests.RequestException,),
    # A redirect cannot be followed with a body that was an iterator.
    **dict.fromkeys(("httpx", "httpx-asyncio", "httpx-trio"), (httpx.HTTPError, httpx.StreamConsumed)),
    "httpx2": (httpx2.HTTPError, httpx2.StreamConsumed),
    "aiohttp": (aiohttp.ClientError, asyncio.TimeoutError),
}
ATTEMPTS = RetryPolicy().attempts
CLOSED = (RuntimeError, OSError, asyncio.CancelledError, concurrent.futures.CancelledError, trio.Cancelled)
"""What a client that was closed under its callers may raise besides its own errors."""


@dataclass(frozen=True)
class Scale:
    """The speed-up factor of the service's clock, and the duration of the chaos test in real seconds."""

    speed: float
    seconds: float


@dataclass(frozen=True)
class Call:
    """One request, identified by a number in its query."""

    method: str
    path: str
    body: bytes | None = field(default=None, repr=False)
    streamed: bool = False
    hurry: float | None = None
    """Real seconds after which the caller is cancelled, where it can be."""

    def arguments(self, stack: Stack) -> dict[str, Any]:
        """Return the call's body and options in the terms of a client library."""
        if self.body is None:
            return {}
        [(name, _)] = stack.bodies["bytes"]().items()
        body: Any = self.body
        if self.streamed:
            pieces = (self.body[:50], self.body[50:])
            body = _Stream(pieces) if isinstance(stack, AsyncStack) else iter(pieces)
        return {name: body, "headers": {"Content-Type": "application/json"}}


class _Stream:
    """An async body that leaves nothing to clean up where it is not read: its event loop may be gone by then."""

    def __init__(self, pieces: tuple[bytes, ...]) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def _of_aiohttp(outcome: object) -> bool:
    """Whether aiohttp missed its connection: it starts to read the response also where sending the body closed it."""
    if not isinstance(outcome, AttributeError):
        return False
    *_, last = traceback.extract_tb(outcome.__traceback__)
    return last.filename.endswith("aiohttp/client_reqrep.py") and last.name == "start"


class Log(RootLogCapture):
    """Keeps each line once, and nothing that a record refers to.

    The log has no other handler in the meantime: it would be hundreds of thousands of lines.
    """

    def __init__(self, *but: str) -> None:
        super().__init__(*but)
        self.seen: set[str] = set()

    def __enter__(self) -> RootLogCapture:
        root = logging.getLogger()
        self._others, root.handlers[:] = root.handlers[:], []
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        super().__exit__(kind, exc, tb)
        logging.getLogger().handlers[:] = self._others

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the texts of a record."""
        if record.threadName not in self._but:
            self.seen |= {self.format(record), repr(record.args)}


class ChaosRun:
    """What happens, decided by a seed as far as anything can be.

    Args:
        seed: For the weather, the faults, the events and the calls.
        scale: Speed and length.
    """

    def __init__(self, seed: int, scale: Scale) -> None:
        self.seed, self.scale = seed, scale
        self.clock = Clock(scale.speed)
        self.complaints: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.calls = 0
        self.log = Log("pay88-emulator", "chaos-pulse")
        self.texts: set[str] = set()
        """What some outcomes of each kind show."""
        self.began: dict[str, float] = {}
        """When each call began, by its number: what it waited for on its way is no fault of the manager's."""
        self.disturbed: list[tuple[float, float]] = []
        """When responses could get lost: connections were dropped, clients closed."""
        self.retry_after = self.rng("retry-after").randint(20, 60)
        """One for the whole chaos test: the journal does not keep responses."""
        self._numbers = itertools.count(1)
        self._sampled: Counter[object] = Counter()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.recovery: float | None = None
        self._sealed = False
        self._holds: list[Hold] = []
        self._visitors: list[threading.Thread] = []
        key = self._new_key("first")
        self.emulator = Emulator(api_key=key, merchant_id=MERCHANT, clock=self.clock, call_limits=())
        self.elsewhere = Emulator(clock=self.clock, call_limits=())
        self._credentials = Credentials(key, MERCHANT)

    def rng(self, name: str) -> random.Random:
        """Return the random numbers of one part of the chaos test."""
        return random.Random(f"{self.seed} {name}")

    # The whole of it

    def run(self) -> None:
        """Run it, wait until all requests succeed again, and check that nothing remains."""
        threads, files = threading.active_count(), _open_files()
        self._pass_over()
        # The manager's own connections go with it.
        self._visitors.clear()
        del self.manager
        self._nothing_left(threads, files)

    def _pass_over(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self.log)
            stack.enter_context(self.elsewhere)
            stack.enter_context(self.emulator)
            self.manager = stack.enter_context(TokenManager(self._ask, base_url=self.emulator.url, clock=self.clock))
            clients = [stack.enter_context(kind(self.manager, Options(timeout=TIMEOUT))) for kind in STACKS]
            crew = [*self._crew(clients)]
            for thread in crew:
                thread.start()
            try:
                self._weather()
            finally:
                self._over.set()
                self._clear_up()
                self._gather([*crew, *self._visitors])
            self._recover(clients)
            for client in clients:
                self._no_tasks_left(client)

    def _crew(self, clients: list[Stack]) -> Iterator[threading.Thread]:
        for client, place in itertools.product(clients, range(3)):
            yield self._thread(f"{client.name}-{place}", partial(self._user, client))
        yield self._thread("bare", self._bare_user)
        yield self._thread("bare-async", lambda rng: asyncio.run(self._abare_user(rng)))
        yield threading.Thread(target=self._pulse, name="chaos-pulse")

    def _thread(self, name: str, work: Callable[[random.Random], object]) -> threading.Thread:
        def job() -> None:
            try:
                work(self.rng(name))
            except BaseException as exc:  # noqa: BLE001 - nothing may get lost
                self.complain(f"{name} gave up: {exc!r}")

        return threading.Thread(target=job, name=f"chaos-{name}")

    def _gather(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + 2 * LONGEST_CALL
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
            if thread.is_alive():
                self.complain(f"{thread.name} is stuck")

    def complain(self, text: str) -> None:
        """Note what must not be."""
        with self._lock:
            self.complaints.append(text)

    # Who calls

    def _user(self, client: Stack, rng: random.Random) -> None:
        while not self._over.is_set():
            if isinstance(client, AsyncStack):
                calls = [self._call(rng) for _ in range(rng.choice((1, 1, 2, 4)))]
                client.run(lambda calls=calls: client.all([partial(self._asend, client, call) for call in calls]))  # type: ignore[misc]
            else:
                self._send(client, self._call(rng))
            self._over.wait(rng.uniform(0.0, 0.25))

    def _call(self, rng: random.Random) -> Call:
        number = self._number()
        hurry = rng.uniform(0.0, 0.1) if rng.random() < 0.1 else None
        match rng.randrange(5):
            case 0:
                return Call("POST", f"/api/balance?id={MERCHANT}&call={number}", hurry=hurry)
            case 1:
                return Call("GET", f"/api/echo?call={number}", hurry=hurry)
            case 2:
                return Call("GET", f"/api/nowhere?call={number}", hurry=hurry)
            case 3:
                body = json.dumps({"reference": f"order-{number}", "amount": 10}).encode()
                path = f"/api/transactions/charges?call={number}"
                return Call("POST", path + _digest(body), body, hurry=hurry)
            case _:
                body = rng.randbytes(rng.choice((100, 1_000, 30_000)))
                path = f"/api/echo?call={number}{_digest(body)}"
                return Call("POST", path, body, streamed=rng.random() < 0.5, hurry=hurry)

    def _send(self, client: Stack, call: Call, closed: threading.Event | None = None) -> None:
        began = time.monotonic()
        outcome: PlainResponse | BaseException
        try:
            outcome = client.request(call.method, self.emulator.url + call.path, **call.arguments(client))
        except Exception as exc:  # noqa: BLE001 - judged below
            outcome = exc
        self._note(client, call, outcome, time.monotonic() - began, closed)

    async def _asend(self, client: AsyncStack, call: Call, closed: threading.Event | None = None) -> Any:
        began = time.monotonic()
        outcome: PlainResponse | BaseException | None = None
        job = partial(client.asend, call.method, self.emulator.url + call.path, **call.arguments(client))
        try:
            if call.hurry is None:
                outcome = await job()
            elif isinstance(client, HttpxTrio):
                with trio.move_on_after(call.hurry):
                    outcome = await job()
            else:
                task = asyncio.ensure_future(job())
                await asyncio.wait([task], timeout=call.hurry)
                task.cancel()
                await asyncio.wait([task])
                outcome = None if task.cancelled() else task.exception() or task.result()
        except Exception as exc:  # noqa: BLE001 - judged below
            outcome = exc
        self._note(client, call, outcome, time.monotonic() - began, closed)

    def _note(self, client: Stack, call: Call, outcome: object, took: float, closed: threading.Event | None) -> None:
        reported_by = outcome.status if isinstance(outcome, PlainResponse) else type(outcome).__qualname__
        what = "cancelled" if outcome is None else str(reported_by)
        with self._lock:
            self.calls += 1
            self.outcomes[what] += 1
            self._sampled[client.name, what] += 1
            sampled = self._sampled[client.name, what] <= SAMPLES
        if sampled and outcome is not None:
            self.texts.update(outcome_texts(outcome))
        if took > LONGEST_CALL:
            self.complain(f"{client.name}: {call} took {took:.1f} s")
        if isinstance(outcome, Pay88Error):
            fine = isinstance(outcome, client.base_error)
        else:
            allowed = OWN_ERRORS[client.name] + (CLOSED if closed is not None and closed.is_set() else ())
            fine = outcome is None or isinstance(outcome, (PlainResponse, *allowed)) or _of_aiohttp(outcome)
        if not fine:
            self.complain(f"{client.name}: {call} ended with {outcome!r}")

    def _number(self) -> int:
        """Return the number of a call that begins now."""
        number = next(self._numbers)
        self.began[str(number)] = self.clock.now()
        return number

    def _bare_user(self, rng: random.Random) -> None:
        with urllib3.PoolManager(retries=False, timeout=TIMEOUT) as pool:
            while not self._over.wait(rng.uniform(0.05, 0.5)):
                try:
                    token = self.manager.get_token(min_validity=rng.choice((0, 0, 0, 20)))
                except Pay88Error as exc:
                    self.texts.update(error_texts(exc))
                    continue
                url = f"{self.emulator.url}/api/echo?call={self._number()}"
                with suppress(urllib3.exceptions.HTTPError):
                    if pool.request("GET", url, headers=token.headers(), redirect=False).status == 401:
                        self.manager.invalidate(token)

    async def _abare_user(self, rng: random.Random) -> None:
        while not self._over.is_set():
            with suppress(Pay88Error, asyncio.TimeoutError):
                await asyncio.wait_for(self.manager.aget_token(), rng.uniform(0.01, 5))
            await asyncio.sleep(rng.uniform(0.05, 0.5))

    def _pulse(self) -> None:
        """Show in the journal how late a request arrives: a busy machine is no fault of the client's."""
        while not self._over.wait(PULSE):
            with suppress(OSError):
                request = f"GET /pulse?at={self.clock.now()} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                with socket.create_connection(("127.0.0.1", self.emulator.port), timeout=TIMEOUT) as sock:
                    sock.sendall(request.encode())
                    sock.recv(1024)

    def _visit(self, kind: type[Stack], rng: random.Random) -> None:
        """Open a client, and close it while its calls are in flight."""
        client = kind(self.manager, Options(timeout=TIMEOUT))
        closed, started = threading.Event(), threading.Semaphore(0)

        async def job(call: Call) -> None:
            started.release()
            assert isinstance(client, AsyncStack)
            await self._asend(client, call, closed)

        def one(call: Call) -> None:
            if isinstance(client, AsyncStack):
                with suppress(BaseException):  # the loop ends under it; what the call raises is noted
                    client.run(partial(job, call))
            else:
                started.release()
                self._send(client, call, closed)

        threads = [threading.Thread(target=one, args=(self._call(rng),), name="chaos-guest") for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in threads:
            started.acquire(timeout=LONGEST_CALL)
        time.sleep(rng.uniform(0.0, 0.1))
        closed.set()
        self._disturbing(client.close)
        self._gather(threads)

    def _disturbing(self, act: Callable[[], object]) -> None:
        """Do what can make a response get lost on its way."""
        began = self.clock.now()
        act()
        self.disturbed.append((began, self.clock.now()))

    # What happens

    def _weather(self) -> None:
        rng = self.rng("weather")
        end = time.monotonic() + self.scale.seconds
        self._pass(10)
        while time.monotonic() < end and not self.complaints:
            self._spell(rng)

    def _spell(self, rng: random.Random) -> None:
        # Calm, bad, and an outage of the token endpoint.
        on_tokens, on_calls = rng.choice(((0.0, 0.01), (0.0, 0.1), (0.05, 0.05), (0.2, 0.1), (0.5, 0.3), (1.0, 0.1)))
        for on, probability in (("token", on_tokens), ("call", on_calls)):
            faults = self._faults(rng, on)
            self._holds += [each for each in faults if isinstance(each, Hold)]
            few = rng.sample(faults, rng.randint(1, len(faults)))
            self.emulator.faults.random(rng.randrange(2**32), probability, few, on=on)
        events = [rng.choice(self._events(rng)) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
        longest = rng.choice((5, 20, 60))  # where all is well again and again, retries cost most
        for event in events:
            self._pass(rng.uniform(1, longest) / (len(events) + 1))
            event()
        self._pass(rng.uniform(1, longest) / (len(events) + 1))
        if rng.random() < 0.7:
            self._clear_up()

    def _faults(self, rng: random.Random, on: str) -> list[Fault]:
        """Return one of each kind, and more of some, with parameters by chance."""
        after = self.retry_after
        nonsense = (
            b"",
            b"not json",
            b"null",
            b'{"data": {}}',
            b"[" * 5_000,
            _token("a\r\nX-Evil: 1"),
            _token("a" * 9_000),
        )
        headers = (
            {"X-RateLimit-Remaining": "0"},
            {"Set-Cookie": "a=b"},
            {"Connection": "close"},
        )
        rejections = (400, 403, 404, 422) if on == "token" else (400, 403, 404, 422, 429)
        return [
            Latency(rng.uniform(0.1, 3)),
            Latency(rng.uniform(3, 12)),
            Hold(),
            Status(rng.choice((500, 502, 503, 504))),
            Status(rng.choice(rejections)),
            rng.choice((TooMany(after), TooMany(f"{after}"), TooMany(None, after), TooMany("soon", f"{after}"))),
            RefuseToken(),
            Redirect(
                f"{self.elsewhere.url}/api/echo?moved={rng.randrange(10**9)}", rng.choice((301, 302, 303, 307, 308))
            ),
            ResetBeforeRead(),
            ResetAfterRead(),
            Truncated(rng.randint(1, 300)),
            Garbage(rng.choice((rng.randbytes(200), b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n", b""))),
            Body(rng.choice(nonsense), rng.choice((200, 200, 500))),
            Headers(rng.choice(headers)),
            HugeBody(rng.choice((1_000, 60_000, 70_000, 1_000_000)), chunked=rng.random() < 0.5),
            Drip(rng.uniform(0.001, 0.05)),
        ]

    def _events(self, rng: random.Random) -> list[Callable[[], None]]:
        service = self.emulator.service
        return [
            partial(self._disturbing, self.emulator.drop_connections),
            lambda: self._blackout(rng.uniform(0.5, 30)),
            service.refuse_current_tokens,
            partial(self._suspended, rng.uniform(0.5, 45)),
            lambda: self._rotate(rng, rng.choice((0, 0, 20))),
            self._seal,
            partial(self._spoil_a_node, rng.choice((1, 2))),
            lambda: self._invite(rng),
            lambda: self._invite(rng),
        ]

    def _blackout(self, seconds: float) -> None:
        def dark() -> None:
            self.emulator.stop()
            self._pass(seconds)
            self.emulator.start()

        self._disturbing(dark)

    def _suspended(self, seconds: float) -> None:
        self.emulator.service.suspend()
        self._pass(seconds)
        self.emulator.service.reinstate()

    def _rotate(self, rng: random.Random, gap: float) -> None:
        """Change the key; with a gap, the old one is rejected before the new one is known."""
        service, new = self.emulator.service, Credentials(self._new_key(str(rng.random())), MERCHANT)
        old = self._credentials
        service.accept_credentials(new.api_key, MERCHANT)
        if gap:
            service.reject_credentials(old.api_key)
            self._pass(gap)
        self._credentials = new
        self._pass(2)  # for requests that wait already
        service.reject_credentials(old.api_key)

    def _new_key(self, name: str) -> str:
        return f"sk_test_{self.rng(name).getrandbits(128):032x}"

    def _ask(self) -> Credentials:
        if self._sealed:
            raise LookupError("the vault is sealed")
        return self._credentials

    def _seal(self) -> None:
        self._sealed = True

    def _spoil_a_node(self, of: int) -> None:
        # The connection decides which one responds.
        service = self.emulator.service
        service.refuse_where = lambda received, now: zlib.crc32(b"%d" % received.peer[1]) % of == 0

    def _invite(self, rng: random.Random) -> None:
        thread = self._thread(f"visit-{len(self._visitors)}", partial(self._visit, rng.choice(STACKS)))
        self._visitors.append(thread)
        thread.start()

    def _pass(self, seconds: float) -> None:
        time.sleep(self.clock.real(seconds))

    def _clear_up(self) -> None:
        self.emulator.faults.clear()
        for hold in self._holds:
            hold.release()
        self._holds.clear()
        self.emulator.service.refuse_where = None
        self._sealed = False

    # Afterwards

    def _recover(self, clients: list[Stack]) -> None:
        """Call with every client library until all get 200, which has to be soon."""
        began = self.clock.now()
        rng = self.rng("recovery")
        todo = list(clients)
        while todo:
            url = f"{self.emulator.url}/api/balance?id={MERCHANT}&call={self._number()}"
            options = Call("POST", url).arguments(todo[0])
            outcome = todo[0].attempt("POST", url, **options)
            if isinstance(outcome, PlainResponse) and outcome.status == 200:
                todo.pop(0)
            elif self.clock.now() > began + RECOVERY:
                self.complain(f"{todo[0].name} has not recovered: {outcome!r}")
                return
            self._pass(rng.uniform(0.1, 1))
        self.recovery = self.clock.now() - began

    def _no_tasks_left(self, client: Stack) -> None:
        if not isinstance(client, AsyncioStack):
            return

        async def others() -> int:
            return len(asyncio.all_tasks()) - 1

        if not _soon(lambda: client.run(others) == 0):
            self.complain(f"{client.name} has {client.run(others)} tasks left")

    def _nothing_left(self, threads: int, files: Counter[str]) -> None:
        def clean() -> bool:
            gc.collect()
            return threading.active_count() <= threads and not _open_files() - files

        if not _soon(clean):
            left = [each.name for each in threading.enumerate()]
            self.complain(f"left over: {_open_files() - files}, and of the threads {left} all but {threads}")


def _open_files() -> Counter[str]:
    """Return the open files and sockets; an empty result where the system does not report them."""
    found: Counter[str] = Counter()
    for each in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):  # the one that lists them
            found[str(each.readlink())] += 1
    return found


def _soon(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _token(value: str) -> bytes:
    return json.dumps({"data": {"access_token": value, "session_id": "sess_1", "expires_in": 60}}).encode()


def _digest(body: bytes) -> str:
    return f"&sha256={hashlib.sha256(body).hexdigest()}"
