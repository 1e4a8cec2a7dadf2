"""The store of a fleet: Redis or Valkey, one script an operation, on the server's clock.

What is kept on the server: for each key of the budget, the instants of its entries in a string; for each
record, one hash with the count of fences and the lease, and one with the record, gone after its ``keep``.
Instants are whole microseconds of the server's ``TIME``. All keys of one kind share a hash tag, so that a
cluster keeps them in one slot: they are used when tokens are fetched, not when they are attached.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from pay88_adapters.clock import Clock
from pay88_adapters.errors import ConfigurationError
from pay88_adapters.forks import survive_forks
from pay88_adapters.secret import Secret, forget_locals

from .base import Acquired, Ages, BudgetStorage, Lead, Look, Record, StoreError, Window, wait_for

try:
    import redis
except ModuleNotFoundError as exc:
    raise ConfigurationError("redis is not installed: pip install 'pay88-adapters[redis]'") from exc

from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException

from .redis_url import FORMS, parse
from .scripts import ACQUIRE, ADD, AGES, LEAD, LOOK, PUBLISH

T = TypeVar("T")

_DAY = 86_400
_FOREVER = 2**52  # microseconds; Lua counts in doubles


class _Server:
    """A client that is made at first use, and again in a forked child.

    No lock: threads that come at the same time may make one each, and the last one is kept.

    Args:
        connect: Makes the client.
        where: Names the server in messages.
    """

    def __init__(self, connect: Callable[[], Any], where: str) -> None:
        self._connect, self._where = connect, where
        self._client: Any = None
        self._close: Any = None
        self._inherited: list[Any] = []
        survive_forks(self)

    def after_fork(self) -> None:
        """Leave the parent's client alone: its connections are in use, and perhaps its locks are held."""
        if self._client is not None:
            self._close.detach()
            self._inherited.append(self._client)
            self._client = None

    def ask(self, question: Callable[[Any], T]) -> T:
        """Return what *question* makes of the client. Whatever goes wrong is a :class:`StoreError`."""
        try:
            try:
                return question(self._get())
            except redis.ConnectionError as error:
                if type(error) is not redis.ConnectionError:  # refused or loading, not broken
                    raise
                forget_locals(error)
            # Perhaps only this connection is broken: the server restarted. If the question was received
            # all the same, a unit of the budget counts twice, which errs on the safe side.
            self._forget_cluster()
            return question(self._get())
        # RedisClusterException is no RedisError; answers that make no sense are one of the last three.
        except (redis.RedisError, RedisClusterException, OSError, TypeError, ValueError, LookupError) as error:
            forget_locals(error)
            problem = _problem(error)
        self._forget_cluster()
        raise StoreError(f"{self._where} {problem}")  # not raised from its cause, which may quote a token

    def _get(self) -> Any:
        client = self._client
        if client is None:
            self._client = client = self._connect()
            self._close = weakref.finalize(self, client.close)
        return client

    def _forget_cluster(self) -> None:
        # Its client may never try a failed node again. All others reconnect.
        if isinstance(self._client, RedisCluster):
            self._client = None
            self._close()


_PROBLEMS: tuple[tuple[type[Exception], str], ...] = (
    (redis.TimeoutError, "does not answer in time"),
    (redis.AuthenticationError, "refuses the user or the password"),
    (redis.BusyLoadingError, "is still loading its data"),
    (redis.ReadOnlyError, "is a read-only replica"),
    (redis.OutOfMemoryError, "is full: it may use no more memory"),
    (redis.ConnectionError, "cannot be reached"),
    (redis.ResponseError, "refuses the command"),
    (redis.RedisError, "cannot be used"),
    (RedisClusterException, "is no usable cluster"),
    (OSError, "cannot be reached"),
)


def _problem(error: Exception) -> str:
    """Say what is wrong in our own words: the server's may quote what it was sent."""
    text = next((text for kind, text in _PROBLEMS if isinstance(error, kind)), "holds what this package did not write")
    code = re.match(r"[A-Z]{3,20}(?= |$)", str(error)) if isinstance(error, redis.ResponseError) else None
    return f"{text} ({code[0] if code else type(error).__name__})"


class RedisStorage(BudgetStorage):
    """Entries on the server, one string of instants a key."""

    def __init__(self, server: _Server, prefix: str, clock: Clock) -> None:
        super().__init__()
        self._server, self._prefix, self._clock = server, f"{prefix}{{budget}}", clock

    def acquire_all(self, windows: Sequence[Window], amount: int = 1) -> Acquired:
        keys = [self._prefix + window.key for window in windows]
        args = [arg for window in windows for arg in (window.limit, _micros(self._clock, window.expiry))]

        def question(client: Any) -> Acquired:
            taken, lists = ACQUIRE(client, keys, amount, *args)
            ages = [self._ages(each) for each in lists]
            waits = (wait_for(*each, amount) for each in zip(windows, ages, strict=True))
            return Acquired(0.0 if taken else max(waits), ages)

        return self._server.ask(question)

    def add(self, window: Window, ages: Ages) -> None:
        args = [_micros(self._clock, seconds) for seconds in (window.expiry, *ages)]
        self._server.ask(lambda client: int(ADD(client, [self._prefix + window.key], *args)))

    def ages(self, window: Window) -> Ages:
        return self._look(window.key, _micros(self._clock, window.expiry))[1]

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        now, ages = self._look(key, _micros(self._clock, expiry))
        return (now - ages[0] if ages else now, len(ages))

    def get(self, key: str) -> int:
        """Return how many entries *key* holds."""
        return len(self._look(key, _FOREVER)[1])

    def clear(self, key: str) -> None:
        """Forget the entries of *key*."""
        self._server.ask(lambda client: client.delete(self._prefix + key))

    def reset(self) -> int:
        """Forget all entries of this store; return how many keys there were."""

        def question(client: Any) -> int:
            keys = client.scan_iter(match=self._prefix + "*", count=1000)
            return sum(client.delete(key) for key in list(keys))

        return self._server.ask(question)

    def check(self) -> bool:
        """Say whether the server answers."""
        try:
            self.get("")
        except StoreError:
            return False
        return True

    def _look(self, key: str, expiry: int) -> tuple[float, Ages]:
        def question(client: Any) -> tuple[float, Ages]:
            now, ages = AGES(client, [self._prefix + key], expiry)
            return _seconds(self._clock, now), self._ages(ages)

        return self._server.ask(question)

    def _ages(self, micros: Sequence[int]) -> Ages:
        return [_seconds(self._clock, each) for each in micros]


class RedisStore:
    """What the managers of a fleet share. See :func:`redis_store`."""

    blocking: ClassVar[bool] = True

    def __init__(self, server: _Server, prefix: str, clock: Clock) -> None:
        self.budget = RedisStorage(server, prefix, clock)
        self._server, self._prefix, self._clock = server, f"{prefix}{{record}}", clock

    def lead(self, key: str, *, owner: str, known: int, lease: float) -> Lead:
        args = (owner, known, _micros(self._clock, lease), self._millis(lease + _DAY))
        return self._server.ask(lambda client: self._lead(LEAD(client, self._keys(key), *args)))

    def publish(self, key: str, *, fence: int, content: str, keep: float, after: float = 0.0) -> bool:
        content = Secret(content)  # for whoever prints a traceback with its locals
        micros = (_micros(self._clock, keep), _micros(self._clock, after))
        args = (fence, *micros, self._millis(keep), self._millis(keep + _DAY), content)
        return self._server.ask(lambda client: int(PUBLISH(client, self._keys(key), *args)) == 1)

    def look(self, key: str) -> Look:
        return self._server.ask(lambda client: self._look(LOOK(client, self._keys(key))))

    def _lead(self, reply: Any) -> Lead:
        match reply:
            case [0, *record]:
                return Lead(self._record(record))
            case [1, int(left)]:
                return Lead(busy_for=_seconds(self._clock, left))
            case [2, int(fence)]:
                return Lead(fence=fence)
            case _:
                raise ValueError("no such answer")

    def _look(self, reply: Any) -> Look:
        record, lease = reply
        found = self._record(record) if record else None
        match lease:
            case []:
                return Look(found)
            case [bytes(owner), int(left)]:
                return Look(found, owner.decode(), _seconds(self._clock, left))
            case _:
                raise ValueError("no such answer")

    def _record(self, reply: Any) -> Record:
        match reply:
            case [int(version), int(age), bytes(content)]:
                return Record(version, content.decode(), _seconds(self._clock, age))
            case _:
                raise ValueError("no such answer")

    def _keys(self, key: str) -> list[str]:
        return [f"{self._prefix}fences:{key}", f"{self._prefix}content:{key}"]

    def _millis(self, seconds: float) -> int:
        return math.ceil(_micros(self._clock, seconds) / 1000)


def _micros(clock: Clock, seconds: float) -> int:
    return math.ceil(round(clock.real(seconds) * 1e6, 3))  # 0.1 s is not 100,001 of them


def _seconds(clock: Clock, micros: int) -> float:
    return micros / 1e6 * clock.speed


def redis_store(url: str, clock: Clock) -> RedisStore:
    """Return the store at *url*, without connecting.

    The server's clock should be slewed rather than set: what is kept expires by it.

    Args:
        url: Such as ``redis://user:password@host:6379/0?prefix=pay88:``.
        clock: What the managers measure seconds on.

    Raises:
        ConfigurationError: There can be no store at *url*.
    """
    url = Secret(url)
    try:
        plan = parse(url)
    except ValueError as error:  # its text may quote the password
        forget_locals(error)
        plan = None
    if plan is None:
        raise ConfigurationError(FORMS)
    return RedisStore(_Server(plan.connect, plan.where), plan.prefix, clock)
