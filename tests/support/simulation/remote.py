"""The simulated clock, and the store behind a network that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Acquisition, Cooldown, History, StorageResult
from pay88_adapters.engine.store_link import OPERATION_TIMEOUT
from pay88_adapters.stores.base import EntryStorage, LeaseResult, StoreError, StoreView
from pay88_adapters.stores.memory import MemoryStorage, MemoryStore

if TYPE_CHECKING:
    from support.simulation.process import Process
    from support.simulation.world import World

T = TypeVar("T")


class SimulatedClock(Clock):
    """What one process reads: it began at any number, and *shift* is where an operation of the store has got to."""

    def __init__(self, world: World, offset: float) -> None:
        super().__init__()
        self.shift = 0.0
        self.now: Callable[[], float] = lambda: world.now + offset + self.shift


class Remote:
    """The way of one process to a store."""

    blocking: ClassVar[bool] = True
    separate_calls: ClassVar[bool] = False

    def __init__(self, process: Process, store: MemoryStore, reachable: Callable[[], str]) -> None:
        self.process, self._store, self._reachable = process, store, reachable
        self.budget: EntryStorage = _RemoteBudget(self)

    def after_fork(self) -> None:
        """Nothing here forks."""

    def ask(self, question: Callable[[MemoryStore], T]) -> T:
        """Deliver the operation and its result, or lose one of them."""
        clock = self.process.clock
        clock.shift = max(clock.shift, 0.0)
        match self._reachable():
            case "refused":
                clock.shift += 0.002
                raise StoreError("connection refused")
            case "hangs":
                clock.shift += OPERATION_TIMEOUT
                raise StoreError("no response")
            case "deaf":
                question(self._store)
                clock.shift += OPERATION_TIMEOUT
                raise StoreError("no response")
            case _:
                pass
        response = question(self._store)
        clock.shift += self.process.delay("after")
        return response

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        result = self.ask(
            lambda store: store.try_acquire_lease(key, owner=owner, known_version=known_version, lease=lease)
        )
        if result.fencing_token:
            self.process.leads()
        return result

    def remove_member(self, member: str) -> None:
        self.ask(lambda store: store.remove_member(member))

    def publish(self, key: str, *, fencing_token: int, content: str, ttl: float, write_delay: float = 0.0) -> bool:
        return self.ask(
            lambda store: store.publish(
                key, fencing_token=fencing_token, content=content, ttl=ttl, write_delay=write_delay
            )
        )

    def peek(self, key: str) -> StoreView:
        return self.ask(lambda store: store.peek(key))


class _RemoteBudget(MemoryStorage):
    def __init__(self, remote: Remote) -> None:
        super().__init__(lambda: 0.0)
        self._remote = remote

    def acquire(self, acquisition: Acquisition) -> StorageResult:
        return self._remote.ask(lambda store: store.budget.acquire(acquisition))

    def merge(self, key: str, entries: History, ttl: float) -> None:
        self._remote.ask(lambda store: store.budget.merge(key, entries, ttl))

    def history(self, key: str) -> History:
        return self._remote.ask(lambda store: store.budget.history(key))

    def start_cooldown(self, key: str, cooldown: Cooldown) -> None:
        self._remote.ask(lambda store: store.budget.start_cooldown(key, cooldown))

    def cooldown(self, key: str) -> Cooldown | None:
        return self._remote.ask(lambda store: store.budget.cooldown(key))


class SimulatedStore(MemoryStore):
    """The shared store. It can be set back to what it once was."""

    def copy(self) -> tuple[Any, ...]:
        """Return all that it holds."""
        budget = self.budget
        return dict(budget._histories), dict(budget._cooldowns), dict(self._slots), dict(self._members)

    def restore(self, copy: tuple[Any, ...]) -> None:
        """Contain what it contained then."""
        histories, cooldowns, slots, members = map(dict, copy)
        self.budget._histories, self.budget._cooldowns = histories, cooldowns
        self._slots, self._members = slots, members

    def fail_over(self, copy: tuple[Any, ...]) -> None:
        """Lose what replicas did not have then, but not the budget: its writes wait for the replicas."""
        self.restore((*self.copy()[:2], *copy[2:]))

    def units(self, key: str) -> set[str]:
        """Return the ids of the units that it has."""
        return {entry.id for entry in self.budget.history(key)}
