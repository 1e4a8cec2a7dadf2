"""Reads without a lock, and state that threads share: a change at any instruction of a reader, and many threads."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import requests
import urllib3

import pay88_adapters
import pay88_adapters.requests
import pay88_adapters.urllib3
from pay88_adapters import ConfigurationError, Credentials, Token, TokenEndpointUnavailable, TokenManager, TokenPolicy
from pay88_adapters.core.history import Window
from pay88_adapters.engine.local_copy import LocalCopy
from pay88_adapters.engine.store_link import Link
from pay88_adapters.engine.store_share import Share
from pay88_adapters.events import Event, TokenFetched
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.testing import Emulator, ManualClock

PACKAGE = str(Path(pay88_adapters.__file__).parent)
HOUR = 3600.0  # seconds, after which the whole budget is there again
OLDEST = 60.0 - TokenPolicy().expiry_skew
CHANGES = ("expires and is replaced", "is invalidated", "is invalidated and replaced")
THREADS = 8
URL = "http://127.0.0.1:9"  # nothing is sent there
ROUNDS = [20, pytest.param(5_000, marks=[pytest.mark.figures, pytest.mark.timeout(1800)])]


class Rig:
    """A manager whose tokens change when the test says so."""

    def __init__(self, emulator: Emulator, clock: ManualClock) -> None:
        self.emulator, self.clock = emulator, clock
        self.credentials = Credentials(emulator.api_key, emulator.merchant_id)
        self.manager = self.new_manager()

    def new_manager(self) -> TokenManager:
        return TokenManager(self.credentials, base_url=self.emulator.url, clock=self.clock)

    def renew(self) -> Token:
        """Let the token expire, and get another one."""
        self.clock.advance(HOUR)
        return self.manager.get_token()

    def url(self, path: str = "/api/echo") -> str:
        return self.emulator.url + path


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A manager, its emulator and their clock."""
    clock = ManualClock()
    with Emulator(clock=clock, call_limits=()) as emulator:
        yield Rig(emulator, clock)


# --- a change at any instruction ----------------------------------------------------------------


@contextmanager
def before_instruction(number: int, act: Callable[[], object]) -> Iterator[list[int]]:
    """Call *act* before the instruction of the package with this number, of those that this thread executes."""
    executed = [0]

    def trace(frame: FrameType, kind: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if kind == "opcode":
            executed[0] += 1
            if executed[0] == number:
                act()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for such a frame when it starts to trace
    sys.settrace(trace)
    try:
        yield executed
    finally:
        sys.settrace(before)


def readers(rig: Rig) -> dict[str, Callable[[], Token | None]]:
    """Return what reads a token without the lock, by name."""
    pool = pay88_adapters.urllib3.Pay88PoolManager(rig.manager, retries=False)

    def call() -> None:
        assert pool.request("GET", rig.url()).status == 200

    return {"get_token": rig.manager.get_token, "headers": lambda: as_token(rig.manager.get_token()), "urllib3": call}


def as_token(token: Token) -> Token:
    """Return *token*, whose headers belong together."""
    assert token.headers() == {"Authorization": f"Bearer {token.access_token}", "x-session-id": token.session_id}
    return token


def test_rule_24_a_merchant_is_added_at_any_instruction_while_others_are_forgotten() -> None:
    """Another thread does both; the unit that this one has acquired is not lost."""
    for number in count(1):
        clock = ManualClock()
        copy = LocalCopy(Link(MemoryStore(clock.now), clock), None, Share(clock, None), clock)
        windows = {merchant: [Window(merchant, 10, 60.0)] for merchant in "abc"}
        copy.acquire_all(windows["a"])
        clock.advance(2 * HOUR)
        with before_instruction(number, partial(copy.acquire_all, windows["c"])) as executed:
            assert copy.acquire_all(windows["b"]).histories.keys() == {"b"}, number
        if executed[0] < number:
            break
    assert number > 10


@pytest.mark.deep
@pytest.mark.parametrize(
    ("reader", "change"),
    [
        *((reader, change) for reader in ("get_token", "headers") for change in CHANGES),
        ("urllib3", CHANGES[-1]),  # the longest
    ],
)
def test_rule_17_a_token_changes_at_any_instruction_of_a_reader(rig: Rig, reader: str, change: str) -> None:
    """The reader has the old token or the new one, whole, and none that was too old when it began."""
    read = readers(rig)[reader]
    lock = rig.manager._state._lock

    def act(old: Token) -> None:
        if change != "expires and is replaced":
            rig.manager.invalidate(old)
        if change == "expires and is replaced":
            rig.renew()
        elif change == "is invalidated and replaced":
            rig.manager.get_token()

    with ThreadPoolExecutor(1) as other:

        def elsewhere(old: Token) -> None:
            # Where the reader holds the lock, the change comes before or after: at another number.
            if other.submit(lock.acquire, blocking=False).result():
                other.submit(lock.release).result()
                other.submit(act, old).result()

        for number in count(1):
            old = rig.renew()
            began = rig.clock.now()
            with before_instruction(number, partial(elsewhere, old)) as executed:
                token = read()
            if token is not None:
                assert began - token.requested_at <= OLDEST, number
                assert as_token(token) in (old, rig.manager.get_token()), number
            if executed[0] < number:
                break
    assert number > 10


@pytest.mark.deep
@pytest.mark.parametrize("reader", ["get_token", "urllib3"])
def test_rule_17_a_manager_is_closed_at_any_instruction_of_a_reader(rig: Rig, reader: str) -> None:
    """The reader ends as if the manager had been closed before or after."""
    with ThreadPoolExecutor(1) as other:
        for number in count(1):
            rig.manager = rig.new_manager()
            rig.renew()
            read, close = readers(rig)[reader], rig.manager.close
            lock = rig.manager._state._lock

            def elsewhere(lock: Any = lock, close: Callable[[], None] = close) -> None:
                if other.submit(lock.acquire, blocking=False).result():
                    other.submit(lock.release).result()
                    other.submit(close).result()

            with before_instruction(number, elsewhere) as executed, suppress(ConfigurationError):  # it is closed
                read()
            if executed[0] < number:
                break
    assert number > 10


# --- many threads -------------------------------------------------------------------------------


def together(work: Callable[[int], object], threads: int = THREADS) -> list[Any]:
    """Do *work* in threads that start at the same moment; return what each returned."""
    barrier = threading.Barrier(threads)

    def job(place: int) -> object:
        barrier.wait()
        return work(place)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(job, range(threads)))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_rules_01_03_threads_read_tokens_while_they_change(rig: Rig, rounds: int) -> None:
    """No pair is mixed, no token is too old, each expiry costs one token request, and each token emits one event."""
    over = threading.Event()
    fetched: list[Event] = []
    rig.manager.listen(lambda event: fetched.append(event) if isinstance(event, TokenFetched) else None)
    rig.manager.get_token()

    def work(place: int) -> dict[str, str]:
        pairs: dict[str, str] = {}
        if not place:
            try:
                for _ in range(rounds):
                    rig.renew()
            finally:
                over.set()
        while not over.is_set():
            began = rig.clock.now()
            try:
                token = rig.manager.get_token()
            except TokenEndpointUnavailable:
                continue  # it waited for a token, and before it woke an hour had passed
            assert began - token.requested_at <= OLDEST
            assert pairs.setdefault(token.access_token, token.session_id) == token.session_id
            rig.manager.stats()
        return pairs

    seen: dict[str, str] = {}
    for pairs in together(work):
        for access_token, session_id in pairs.items():
            assert seen.setdefault(access_token, session_id) == session_id
    assert len(set(seen.values())) == len(seen)
    assert len(fetched) == rounds + 1
    assert rig.emulator.journal.token_requests == rig.manager.stats().token_requests == rounds + 1


@pytest.mark.parametrize("rounds", ROUNDS)
def test_rule_14_what_threads_count_is_exact(rig: Rig, rounds: int) -> None:
    """No increment is lost."""
    port = rig.emulator.port

    def work(place: int) -> None:
        for _ in range(rounds):
            assert rig.manager.for_request("http", "127.0.0.1", port, "/api/echo", "Bearer own") is None

    together(work)
    assert rig.manager.stats().bypassed == THREADS * rounds


@pytest.mark.parametrize("rounds", ROUNDS)
def test_shared_managers_are_one_for_all_threads(rounds: int) -> None:
    """However many threads make the first one, whatever else is made and forgotten in the meantime."""
    for number in range(rounds):
        credentials = Credentials("sk_test_shared", f"MCH-COL-{number}")

        def work(place: int, credentials: Credentials = credentials, number: int = number) -> TokenManager:
            other = Credentials("sk_test_shared", f"MCH-COL-{number}-{place}")
            TokenManager(other, base_url=URL)
            return TokenManager.shared(credentials, base_url=URL)

        assert len(set(together(work))) == 1


@pytest.mark.parametrize("rounds", ROUNDS)
def test_clients_are_attached_and_copied_by_many_threads(rig: Rig, rounds: int) -> None:
    """What is kept of managers and clients beside them bears additions and losses while it is searched."""
    rig.manager.get_token()

    def work(place: int) -> None:
        for _ in range(rounds):
            session = pay88_adapters.requests.attach(requests.Session(), rig.new_manager())
            copy = pickle.loads(pickle.dumps(session))
            assert copy.adapters.keys() == session.adapters.keys()
            pool = pay88_adapters.urllib3.attach(urllib3.PoolManager(), rig.manager)
            with rig.manager.activated(), pay88_adapters.unmanaged():
                pool.clear()

    together(work)
