"""Processes that share a store, in simulated time, and a store that fails when a test says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from pay88_adapters import (
    Credentials,
    Pay88Error,
    Token,
    TokenPolicy,
)
from pay88_adapters.clock import Clock
from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.history import Acquisition, History, StorageResult
from pay88_adapters.core.wire import TokenRequest, TokenResponse
from pay88_adapters.engine.effects import StartFetch
from pay88_adapters.engine.fetches import Fetches, FetchRun
from pay88_adapters.engine.runtimes import ThreadEvent
from pay88_adapters.engine.settings import Settings
from pay88_adapters.engine.state import ManagerState
from pay88_adapters.engine.store_client import StoreClient
from pay88_adapters.engine.sync_runner import SyncRunner
from pay88_adapters.events import Listener
from pay88_adapters.stores.base import LeaseResult, StoreError
from pay88_adapters.stores.memory import MemoryStorage, MemoryStore
from pay88_adapters.testing import ManualClock

OLD, NEW = Credentials("sk_test_old", "MCH-COL-1"), Credentials("sk_test_new", "MCH-COL-1")
ELSEWHERE = Credentials("sk_test_elsewhere", "MCH-COL-2")
URL = "https://api-sandbox.88pay.io"

PlainResponse = Callable[[], TokenResponse]


def respond(status: int, **fields: str) -> PlainResponse:
    """Return the response without a token."""
    return lambda: TokenResponse(status, {name.replace("_", "-"): value for name, value in fields.items()}, b"")


class Endpoint88:
    """Returns a token to every client, unless configured for another response."""

    network_errors: ClassVar[tuple[type[Exception], ...]] = (ConnectionError,)

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock
        self.responses: list[PlainResponse] = []
        self.always: PlainResponse | None = None
        self.sent: list[float] = []

    def post(self, request: TokenRequest) -> TokenResponse:
        """Return the configured response."""
        del request
        self.sent.append(self._clock.now() if self._clock else 0.0)
        if self.responses:
            return self.responses.pop(0)()
        return self.always() if self.always else self.grant()

    def grant(self) -> TokenResponse:
        """Grant the next token."""
        number = len(self.sent)
        data = {"access_token": f"eyJ.granted{number}.x", "session_id": f"sess_{number}", "expires_in": 60}
        return TokenResponse(200, {}, json.dumps({"data": data}).encode())


class JumpingClock(ManualClock):
    """Waiting on it advances the time: for one thread."""

    def wait(self, gate: ThreadEvent, seconds: float) -> None:
        self.advance(max(seconds, 0.0))


class _Inline(SyncRunner):
    """Fetches in the thread that calls."""

    def start(self, sender: Any, start: StartFetch, caller: object = None) -> FetchRun:
        run = FetchRun(start.ticket)
        self.fetches.begin(run)
        self._fetch(run, sender, None)
        return run


class Process:
    """One process in simulated time; it sends requests to *endpoint*, with credentials that can be changed."""

    def __init__(
        self,
        store: Any,
        endpoint: Endpoint88,
        clock: Clock,
        credentials: Credentials = OLD,
        listeners: Sequence[Listener] = (),
        **policy: Any,
    ) -> None:
        self.credentials, self.endpoint = credentials, endpoint
        durations = TokenPolicy(**policy)
        self.store_client = StoreClient(store, clock, durations.fallback_share)
        settings = Settings(Endpoint.parse(URL), durations, clock, self.store_client, rotating=True)
        self.state = ManagerState(settings, listeners)
        self._driver = _Inline(Fetches(self.state, lambda: self.credentials))

    def call(self) -> Token | Pay88Error:
        """Return the decision for a request that does not wait."""
        try:
            return self.state.cached() or self._driver.token(self.endpoint, token_timeout=0.0)
        except Pay88Error as error:
            return error


class _FragileStorage(MemoryStorage):
    def __init__(self, now: Callable[[], float], before: Callable[[str], None]) -> None:
        super().__init__(now)
        self._before = before

    def acquire(self, acquisition: Acquisition) -> StorageResult:
        self._before("acquire")
        return super().acquire(acquisition)

    def merge(self, key: str, entries: History, ttl: float) -> None:
        self._before("add")
        super().merge(key, entries, ttl)


class FragileStore(MemoryStore):
    """A store to which things happen: it is *broken*, or *before* its operations something is done."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock.now)
        self.broken = False
        self.before: Callable[[str], object] = lambda _: None
        self.budget = _FragileStorage(clock.now, self._happens)

    def _happens(self, operation: str) -> None:
        if self.broken:
            raise StoreError("it is down")
        self.before(operation)

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        self._happens("lead")
        return super().try_acquire_lease(key, owner=owner, known_version=known_version, lease=lease)

    def remove_member(self, member: str) -> None:
        self._happens("remove")
        super().remove_member(member)

    def publish(self, key: str, *, fencing_token: int, content: object, ttl: float, write_delay: float = 0.0) -> bool:
        self._happens("publish")
        return super().publish(key, fencing_token=fencing_token, content=content, ttl=ttl, write_delay=write_delay)


class WorkerGroup:
    """A clock, a store and the endpoint that a few processes share."""

    def __init__(self) -> None:
        self.clock = JumpingClock()
        self.store = FragileStore(self.clock)
        self.endpoint = Endpoint88(self.clock)

    def process(self, credentials: Credentials = OLD, listeners: Sequence[Listener] = (), **policy: Any) -> Process:
        """Return one more process."""
        return Process(self.store, self.endpoint, self.clock, credentials, listeners, **policy)

    def take_time(self, operation: str, seconds: Iterator[float]) -> None:
        """Let an *operation* of the store take time: the first one the first of *seconds*, and so on."""

        def pass_time(begun: str) -> None:
            if begun == operation:
                self.clock.advance(next(seconds, 0.0))

        self.store.before = pass_time

    def until_token(self, process: Process, within: int) -> float:
        """Call once a second; return after how many seconds there was a token."""
        since = self.clock.now()
        for _ in range(within):
            if isinstance(process.call(), Token):
                break
            self.clock.advance(1)
        return self.clock.now() - since
