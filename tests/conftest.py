"""What the scenarios share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings

from pay88_adapters import BreakerPolicy, Credentials, RetryPolicy, TokenManager, TokenPolicy
from pay88_adapters.events import Listener
from pay88_adapters.testing import Emulator, ManualClock
from servers import running
from stacks import STACKS, Options, Stack, close_files

T = TypeVar("T")

Report = Callable[[str], None]

_REPORTED = pytest.StashKey[list[str]]()

# The same run again is the same run. New examples: --hypothesis-profile=default.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
# What breaks is not to be made small, only to be seen.
settings.register_profile(
    "mutation",
    derandomize=True,
    max_examples=20,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what this project's tests can be told."""
    parser.addoption("--save-images", action="store_true", help="put the images of docs/images there anew")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Return what takes a text for the end of the run: what the test has found out, or what it cost."""
    texts = request.config.stash.setdefault(_REPORTED, [])
    return lambda text: texts.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was reported; the list of what failed comes after it, and last."""
    texts = terminalreporter.config.stash.get(_REPORTED, [])
    if texts:
        terminalreporter.section("reported")
    for text in texts:
        terminalreporter.write_line(text)


def at_rest() -> bool:
    """Whether all other threads of this process, and the servers beside it, wait for something but a processor."""
    if not Path("/proc/self/task").is_dir():  # where nobody tells, time does
        time.sleep(0.02)
        return True
    own = str(threading.get_native_id())
    try:
        # Twice, since one that was asleep may have been woken by one that is now.
        return all(
            (task / "stat").read_text().rpartition(")")[2].split()[0] in "STZ"  # asleep, made to hang, dead
            for _ in range(2)
            for process in ("self", *(str(each) for each in running if Path("/proc", str(each)).is_dir()))
            for task in Path("/proc", process, "task").iterdir()
            if task.name != own
        )
    except (FileNotFoundError, ProcessLookupError):  # one that has just ended
        return False


class World:
    """An emulator and a manager on one clock that only the test moves, and clients of one stack."""

    def __init__(self, kind: type[Stack], stack: ExitStack, **emulator: Any) -> None:
        self._kind = kind
        self._open = stack
        self.clock = ManualClock()
        self.emulator = stack.enter_context(Emulator(clock=self.clock, **{"call_limits": (), **emulator}))
        self.credentials = Credentials(self.emulator.api_key, self.emulator.merchant_id)
        self.manager = self.new_manager()

    @property
    def url(self) -> str:
        """Where a harmless call goes."""
        return f"{self.emulator.url}/api/balance?id={self.emulator.merchant_id}"

    @property
    def echo(self) -> str:
        """Where a call with any body goes."""
        return f"{self.emulator.url}/api/echo"

    def as_time_passes(self, act: Callable[[], T], step: float = 0.25) -> T:
        """Run *act*; whenever the whole process does nothing but wait for the clock, move it by *step* seconds."""
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(act)
            # Client and emulator are both in this process. Those who wait on the clock are woken as it moves.
            rested = False
            while not wait([result], timeout=0.001).done:
                rest = bool(self.clock.waiting) and at_rest()
                if rest and rested:
                    self.clock.advance(step)
                rested = rest and not rested
            return result.result()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds, with the clock standing still."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it does not come to that"
            time.sleep(0.001)

    def settle(self, manager: TokenManager | None = None) -> None:
        """Wait until no fetch is under way."""
        deadline = time.monotonic() + 10
        while (manager or self.manager).stats().fetching:
            assert time.monotonic() < deadline, "the fetch does not end"
            time.sleep(0.001)

    def new_manager(
        self,
        credentials: Any = None,
        listeners: Iterable[Listener] = (),
        store: str = "memory://",
        retry: RetryPolicy | None = None,
        pacing: bool = False,
        breaker: BreakerPolicy | None = None,
        **policy: Any,
    ) -> TokenManager:
        """Return another manager for the same emulator."""
        return TokenManager(
            credentials or self.credentials,
            base_url=self.emulator.url,
            policy=TokenPolicy(**policy),
            retry=retry,
            listeners=listeners,
            pacing=pacing,
            breaker=breaker,
            store=store,
            clock=self.clock,
        )

    def client(self, manager: TokenManager | None = None, **options: Any) -> Stack:
        """Return a client, with *manager* attached or the one that all share."""
        return self._open.enter_context(self._kind(manager or self.manager, Options(**options)))


@pytest.fixture(params=STACKS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[Stack]:
    """Every stack in turn."""
    result: type[Stack] = request.param
    return result


@pytest.fixture
def make_world(kind: type[Stack]) -> Iterator[Callable[..., World]]:
    """Make worlds with emulators set up in other ways."""
    with ExitStack() as stack:
        stack.callback(close_files)
        yield lambda **emulator: World(kind, stack, **emulator)


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """An emulator and a manager as they come."""
    return make_world()


@pytest.fixture
def one_world() -> Iterator[World]:
    """One on a single stack: for what all of them share."""
    with ExitStack() as stack:
        yield World(STACKS[0], stack)
