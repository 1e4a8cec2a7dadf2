"""The store for several hosts: Redis or Valkey, one script per operation, on the server's clock.

The server contains, for each key of the budget, the instants of its entries in a string; for each
record, one hash with the last fencing token and the lease, and one with the record, gone after its ``ttl``.
Instants are whole microseconds of the server's ``TIME``. All keys of one kind share a hash tag, so that a
cluster keeps them in one slot: they are used when tokens are fetched, not when they are attached.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from pay88_adapters.core.constants import FOREVER
from pay88_adapters.core.errors import ConfigurationError
from pay88_adapters.core.history import (
    MIN_TTL,
    Acquisition,
    Cooldown,
    History,
    Past,
    StorageResult,
    Window,
    counted,
    verdict,
)
from pay88_adapters.core.secret import Secret, clear_traceback_locals

from .base import REMEDY, EntryStorage, LeaseResult, Member, Record, StoreClock, StoreError, StoreView
from .members import FIRST_DIVISOR, GRACE, GROWTH_INTERVAL, HORIZON, MAX_MEMBERS, member_of

try:
    import redis
except ModuleNotFoundError as exc:
    raise ConfigurationError("redis is not installed: pip install 'pay88-adapters[redis]'") from exc

from redis.cluster import RedisCluster
from redis.exceptions import ClusterDownError, MasterDownError, NoPermissionError, RedisClusterException
from redis.sentinel import MasterNotFoundError

from .redis_url import FORMS, parse
from .replicas import Replication
from .scripts import ACQUIRE, ACQUIRE_LEASE, COOLDOWN, HISTORY, MERGE, PEEK, PUBLISH, REMOVE_MEMBER

T = TypeVar("T")

_DAY = 86_400
_FOREVER = 2**52  # microseconds; Lua counts in doubles


class _Server:
    """A client that is created at first use, and again in a forked child.

    It has no lock: concurrent threads may create one each, and the last one is kept.

    Args:
        connect: Creates the client.
        where: Name of the server in messages.
    """

    def __init__(self, connect: Callable[[], Any], where: str) -> None:
        self._connect, self._where = connect, where
        self._client: Any = None
        self._close: Any = None
        self._inherited: list[Any] = []

    def after_fork(self) -> None:
        """Do not touch the parent's client: its connections are in use, and its locks may be held."""
        if self._client is not None:
            self._close.detach()
            self._inherited.append(self._client)
            self._client = None

    def run(self, operation: Callable[[Any], T]) -> T:
        """Return the result of *operation* with the client. Every failure is a :class:`StoreError`."""
        try:
            try:
                return operation(self._get())
            except (redis.ConnectionError, redis.ResponseError) as error:
                if not _needs_reconnect(error):
                    raise
                clear_traceback_locals(error)
            # Maybe only this connection is broken: the server restarted, or another one is the primary now.
            # If the operation was executed all the same, a unit of the budget counts twice, which is the safe side.
            self._reconnect()
            return operation(self._get())
        # RedisClusterException is not a RedisError; invalid responses are one of the last three.
        except (redis.RedisError, RedisClusterException, OSError, TypeError, ValueError, LookupError) as error:
            clear_traceback_locals(error)
            problem, remedy = _problem(error)
        self._forget_cluster()
        raise StoreError(f"{self._where} {problem}", remedy)  # not raised from its cause, which may quote a token

    def _get(self) -> Any:
        client = self._client
        if client is None:
            self._client = client = self._connect()
            self._close = weakref.finalize(self, client.close)
            self._close.atexit = False  # a process that exits may still publish a token, and release its lease
        return client

    def _reconnect(self) -> None:
        client = self._client
        if isinstance(client, RedisCluster):
            self._forget_cluster()
        elif client is not None:
            client.connection_pool.disconnect(inuse_connections=False)  # those in use are other threads' to find out

    def _forget_cluster(self) -> None:
        # The client of a cluster may never retry a failed node. All other clients reconnect.
        if isinstance(self._client, RedisCluster):
            self._client = None
            self._close()


_PROBLEMS: tuple[tuple[type[Exception] | tuple[()], str, str], ...] = (
    (redis.TimeoutError, "", "did not respond within 1 s"),
    (redis.AuthenticationError, "NOAUTH", "rejected the user name or password"),
    (NoPermissionError, "NOPERM", "denies this user a command or key of the store"),
    (redis.BusyLoadingError, "", "is still loading its data"),
    (redis.ReadOnlyError, "READONLY", "is a read-only replica"),
    ((), "NOREPLICAS", "has too few replicas to accept writes"),
    (redis.OutOfMemoryError, "OOM", "is out of memory"),
    (MasterNotFoundError, "", "is unknown to the sentinels, or no sentinel is reachable"),
    (MasterDownError, "", "is a replica without a connection to its primary"),
    (ClusterDownError, "", "is a cluster that is down"),
    (redis.ConnectionError, "", "cannot be reached"),
    (redis.ResponseError, "", "rejected a command of the store"),
    (redis.RedisError, "", "failed"),
    (RedisClusterException, "", "is not a working cluster"),
    (OSError, "", "cannot be reached"),
)
"""Exceptions, the server's error codes where redis-py has no class of its own, and our text for them."""

_REMEDIES = {
    "rejected the user name or password": "correct the user name and password in PAY88_STORE",
    "denies this user a command or key of the store": "grant this user the documented ACL (docs/deployment)",
    "is still loading its data": "wait until the server has loaded its data",
    "is a read-only replica": "set PAY88_STORE to the primary, or to the sentinels",
    "is out of memory": "raise maxmemory of the server, or remove other data",
    "rejected a command of the store": "use Redis 6.2 or Valkey 7.2 or newer, without renamed commands",
}
"""What to do, where starting the server or correcting its URL does not help."""


def _problem(error: Exception) -> tuple[str, str]:
    """Return what is wrong and what to do, in our own words: the server's may quote the request."""
    code = _code(error)
    text = next(
        (text for kind, name, text in _PROBLEMS if isinstance(error, kind) or (name and name == code)),
        "contains data that this package did not write",
    )
    return f"{text} ({code or type(error).__name__})", _REMEDIES.get(text, REMEDY)


def _code(error: Exception) -> str:
    """Return the server's error code, for errors that redis-py passes on unclassified; "" for none."""
    text = str(error) if isinstance(error, redis.ResponseError) else ""
    # No long command before the login; a login that the server has no password or no user names for.
    if "unauthenticated" in text or "AUTH <password>" in text or "number of arguments for 'auth'" in text:
        return "NOAUTH"
    if "executing the script" in text or "ACL failure" in text:
        return "NOPERM"
    # Before Redis 7, what fails inside of a script is wrapped into a text of the script's.
    found = re.search(r"(?:^|@user_script: ?\d+: -?)([A-Z]{3,20})(?: |$)", text)
    return found[1] if found else ""


def _needs_reconnect(error: Exception) -> bool:
    """Whether another connection may help: this one is broken, or its server is not the primary any longer."""
    return type(error) is redis.ConnectionError or isinstance(error, redis.ReadOnlyError) or _code(error) == "READONLY"


class RedisStorage(EntryStorage):
    """Histories on the server, each in one string."""

    def __init__(self, server: _Server, prefix: str, clock: StoreClock) -> None:
        super().__init__()
        self._server, self._clock = server, clock
        self._replication = Replication()
        self._prefix = f"{prefix}{{budget}}2:"  # the first format had a list a limit

    def acquire(self, acquisition: Acquisition) -> StorageResult:
        keys = list(dict.fromkeys(window.key for window in acquisition.windows))
        args = self._acquire_args(keys, acquisition)
        script_keys = [*map(self._key, keys), *map(self._cooldown_key, keys)]

        def operation(client: Any) -> StorageResult:
            now, granted, texts, current = ACQUIRE(client, script_keys, *args)
            histories = {key: self._history(now, text) for key, text in zip(keys, texts, strict=True)}
            cooldown = self._cooldown(current) if current else None
            wait = 0.0 if granted else max(verdict(acquisition, histories, cooldown), 1e-3)
            return StorageResult(wait, histories, cooldown)

        return self._run_replicated(operation) if acquisition.durable else self._server.run(operation)

    def _acquire_args(self, keys: list[str], acquisition: Acquisition) -> list[object]:
        """Return the arguments of the script: see there."""
        windows, ids, cap = acquisition.windows, acquisition.ids, acquisition.longest_cooldown
        ttl = max(MIN_TTL, *(window.expiry for window in windows))
        args: list[object] = [self._micros(ttl), _FOREVER if cap == FOREVER else self._micros(cap), len(windows)]
        for each in windows:
            args += [keys.index(each.key) + 1, each.limit, self._micros(each.expiry)]
        args += [len(ids), *ids]
        for key in keys:
            known = acquisition.known.get(key, ())
            args += [len(known), *self._encoded(known)]
        return args

    def merge(self, key: str, entries: History, ttl: float) -> None:
        args = (self._micros(max(ttl, MIN_TTL)), *self._encoded(entries))
        self._run_replicated(lambda client: int(MERGE(client, [self._key(key)], *args)))

    def history(self, key: str) -> History:
        return self._read_history(key)[1]

    def start_cooldown(self, key: str, cooldown: Cooldown) -> None:
        args = (self._micros(cooldown.seconds), self._micros(cooldown.age), cooldown.reason)
        self._run_replicated(lambda client: int(COOLDOWN(client, [self._cooldown_key(key)], *args)))

    def cooldown(self, key: str) -> Cooldown | None:
        def operation(client: Any) -> Cooldown | None:
            current = COOLDOWN(client, [self._cooldown_key(key)])
            return self._cooldown(current) if current else None

        return self._server.run(operation)

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        now, history = self._read_history(key)
        ages = counted(Window(key, limit, expiry), history)
        return (now - ages[0] if ages else now, len(ages))

    def clear(self, key: str) -> None:
        """Delete the entries of *key*."""
        self._server.run(lambda client: client.delete(self._key(key), self._cooldown_key(key)))

    def reset(self) -> int:
        """Delete all entries of this store; return the number of keys."""

        def operation(client: Any) -> int:
            cooldown_keys = list(client.scan_iter(match=self._cooldown_key("*"), count=1000))
            keys = set(client.scan_iter(match=self._prefix + "*", count=1000)) - set(cooldown_keys)
            for key in cooldown_keys:
                client.delete(key)
            return sum(client.delete(key) for key in keys)

        return self._server.run(operation)

    def check(self) -> bool:
        """Whether the server responds."""
        try:
            self.get("")
        except StoreError:
            return False
        return True

    def _run_replicated(self, operation: Callable[[Any], T]) -> T:
        return self._server.run(lambda client: self._replication.run(client, self._prefix, operation))

    def _read_history(self, key: str) -> tuple[float, History]:
        def operation(client: Any) -> tuple[float, History]:
            now, text = HISTORY(client, [self._key(key)])
            return _seconds(self._clock, now), self._history(now, text)

        return self._server.run(operation)

    def _history(self, now: int, text: bytes) -> History:
        pairs = (each.split(":") for each in text.decode().split())
        entries = sorted((_seconds(self._clock, int(at) - now), name) for at, name in pairs)
        return Past([at for at, _ in entries], [name for _, name in entries], 0.0)

    def _cooldown(self, response: Any) -> Cooldown:
        match response:
            case [int(seconds), int(age), bytes(reason)]:
                return Cooldown(_seconds(self._clock, seconds), _seconds(self._clock, age), reason.decode())
            case _:
                raise ValueError("invalid response")

    def _encoded(self, entries: History) -> list[object]:
        return [arg for entry in entries for arg in (entry.id, self._micros(entry.age))]

    def _micros(self, seconds: float) -> int:
        return _micros(self._clock, seconds)

    def _key(self, key: str) -> str:
        return self._prefix + key

    def _cooldown_key(self, key: str) -> str:
        return f"{self._prefix}bar:{key}"


class RedisStore:
    """The store of the managers on several hosts. See :func:`redis_store`."""

    blocking: ClassVar[bool] = True
    separate_calls: ClassVar[bool] = False

    def __init__(self, server: _Server, prefix: str, clock: StoreClock) -> None:
        self.budget = RedisStorage(server, prefix, clock)
        self._server, self._prefix, self._clock = server, f"{prefix}{{record}}", clock

    def after_fork(self) -> None:
        """Do not touch the parent's connections."""
        self._server.after_fork()

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        times = (_micros(self._clock, each) for each in (HORIZON, GRACE, GROWTH_INTERVAL))
        member = (member_of(owner), *times, FIRST_DIVISOR, MAX_MEMBERS)
        args = (owner, known_version, _micros(self._clock, lease), self._millis(lease + _DAY), *member)
        keys = [*self._keys(key), self._members, f"{self._prefix}parts"]  # "parts" holds the divisors
        return self._server.run(lambda client: self._lease_result(ACQUIRE_LEASE(client, keys, *args)))

    def remove_member(self, member: str) -> None:
        self._server.run(lambda client: int(REMOVE_MEMBER(client, [self._members], member)))

    def publish(self, key: str, *, fencing_token: int, content: str, ttl: float, write_delay: float = 0.0) -> bool:
        content = Secret(content)  # tracebacks with locals show it redacted
        micros = (_micros(self._clock, ttl), _micros(self._clock, write_delay))
        args = (fencing_token, *micros, self._millis(ttl), self._millis(ttl + _DAY), content)
        return self._server.run(lambda client: int(PUBLISH(client, self._keys(key), *args)) == 1)

    def peek(self, key: str) -> StoreView:
        return self._server.run(lambda client: self._view(PEEK(client, self._keys(key))))

    def _lease_result(self, response: Any) -> LeaseResult:
        match response:
            case [share, 0, *record]:
                return LeaseResult(self._record(record), **self._share(share))
            case [share, 1, int(left)]:
                return LeaseResult(lease_remaining=_seconds(self._clock, left), **self._share(share))
            case [share, 2, int(fencing_token)]:
                return LeaseResult(fencing_token=fencing_token, **self._share(share))
            case _:
                raise ValueError("invalid response")

    def _share(self, response: Any) -> dict[str, Any]:
        divisor, others, last = response
        members = (Member(name.decode(), _seconds(self._clock, age), each) for name, age, each in others)
        last_attempt = _seconds(self._clock, last) if last >= 0 else math.inf
        return {"divisor": divisor, "others": tuple(members), "last_attempt": last_attempt}

    def _view(self, response: Any) -> StoreView:
        record, lease = response
        found = self._record(record) if record else None
        match lease:
            case []:
                return StoreView(found)
            case [bytes(owner), int(left)]:
                return StoreView(found, owner.decode(), _seconds(self._clock, left))
            case _:
                raise ValueError("invalid response")

    def _record(self, response: Any) -> Record:
        match response:
            case [int(version), int(age), bytes(content), int(stored)]:
                return Record(version, content.decode(), _seconds(self._clock, age), _seconds(self._clock, stored))
            case _:
                raise ValueError("invalid response")

    def _keys(self, key: str) -> list[str]:
        return [f"{self._prefix}fences:{key}", f"{self._prefix}content:{key}"]

    @property
    def _members(self) -> str:
        return f"{self._prefix}members"

    def _millis(self, seconds: float) -> int:
        return math.ceil(_micros(self._clock, seconds) / 1000)


def _micros(clock: StoreClock, seconds: float) -> int:
    return math.ceil(round(clock.real(seconds) * 1e6, 3))  # 0.1 s is not 100,001 of them


def _seconds(clock: StoreClock, micros: int) -> float:
    return micros / 1e6 * clock.speed


def redis_store(url: str, clock: StoreClock) -> RedisStore:
    """Return the store at *url*, without connecting.

    The server's clock should be slewed rather than set: entries expire by it.

    Args:
        url: Such as ``redis://user:password@host:6379/0?prefix=pay88:``.
        clock: Clock of the managers.

    Raises:
        ConfigurationError: *url* is invalid.
    """
    url = Secret(url)
    try:
        plan = parse(url)
    except ValueError as error:  # its text may quote the password
        clear_traceback_locals(error)
        plan = None
    if plan is None:
        raise ConfigurationError(FORMS)
    return RedisStore(_Server(plan.connect, plan.where), plan.prefix, clock)
