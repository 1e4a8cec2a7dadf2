"""An emulator, managers and clients on one clock that only the test moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from pay88_adapters import BreakerPolicy, Credentials, RetryPolicy, TokenManager, TokenPolicy
from pay88_adapters.events import Listener
from pay88_adapters.testing import Emulator, ManualClock
from support.servers import running
from support.stacks import Options, Stack

T = TypeVar("T")

Report = Callable[[str], None]


def at_rest() -> bool:
    """Whether all other threads of this process, and the servers beside it, wait for something but a processor."""
    if not Path("/proc/self/task").is_dir():  # elsewhere, wait for some time
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
    """An emulator and a manager on one clock that only the test moves, and clients of one library."""

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
        """Wait until *condition* holds, without advancing the clock."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it does not come to that"
            time.sleep(0.001)

    def settle(self, manager: TokenManager | None = None) -> None:
        """Wait until no fetch is in progress."""
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
