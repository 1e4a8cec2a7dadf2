"""The Redis store while its servers fail over, lag, move slots, evict, load, or cannot be reached.

What counts is what 88Pay saw: no more token requests than it allows, whatever the servers forgot.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from pay88_adapters import TokenPolicy
from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Acquisition, Cooldown, Entry, Window
from pay88_adapters.engine.budget import TokenBudget
from pay88_adapters.engine.store_link import OPERATION_TIMEOUT
from pay88_adapters.stores import replicas
from pay88_adapters.stores.base import StoreError
from pay88_adapters.stores.memory import MemoryStorage
from pay88_adapters.stores.redis import RedisStore, redis_store
from pay88_adapters.testing import Emulator
from support.fleet_worker import Plan, team
from support.proxies import Relay
from support.servers import Valkey, free_port, until

pytestmark = pytest.mark.deep

WINDOW = Window("key", 10, 3600.0)
TOKEN = "a-token-to-keep-secret"
SPEED = 10.0
POLICY = TokenPolicy(limits=("10/hour",), max_wait=10, fetch_attempts=1, fetch_timeout=100)
SENT, NOT_SENT = "CredentialsRejected", "TokenBudgetExhausted"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Valkey]]:
    """Start servers for one test, each in a directory of its own."""
    with ExitStack() as stack:

        def make(sentinel: str = "", **options: str) -> Valkey:
            directory = tmp_path / str(free_port())
            directory.mkdir()
            return stack.enter_context(Valkey(directory, sentinel, None, **options))

        yield make


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """What keeps the journal."""
    with Emulator(call_limits=(), clock=Clock(SPEED)) as emulator:
        yield emulator


def lead(store: RedisStore, *, owner: str = "a", known_version: int = 0) -> int:
    """Take the lease; return the fence."""
    fence = store.try_acquire_lease("key", owner=owner, known_version=known_version, lease=30.0).fencing_token
    assert fence is not None
    return fence


def take(store: RedisStore, count: int = 1) -> None:
    """Take so many units."""
    assert store.budget.acquire_all([WINDOW], count).wait == 0


def taken(store: RedisStore) -> int:
    """Return how many units are taken."""
    return len(store.budget.ages(WINDOW))


class Members:
    """Two processes that share a store; each acquires units of one merchant's budget on command."""

    def __init__(self, stack: ExitStack, emulator: Emulator, *urls: str) -> None:
        plan = Plan("", emulator.url, emulator.api_key, emulator.merchant_id, SPEED, POLICY, stacks=["urllib3"])
        self._workers = stack.enter_context(team([replace(plan, store=url, name=url) for url in urls]))
        self._emulator = emulator
        self.one, self.two = self._workers
        merchant = TokenBudget(POLICY, MemoryStorage(time.monotonic), emulator.url)
        self.key = merchant.key(emulator.merchant_id)

    def settle(self) -> None:
        """Let all members use the store again: after a failure they wait for ``RETRY_INTERVAL``."""
        for worker in self._workers:
            until(partial(worker.do, "reach_store"))

    def overspend(self) -> None:
        """Let each want more than there can be; check what the service saw, and the store knows."""
        for worker in (self.two, self.one):  # who knows more comes first
            assert set(worker.do("spend", 5)) <= {SENT, NOT_SENT}
        assert self._emulator.journal.token_requests <= 10

    def check_known(self, store: RedisStore) -> None:
        """Check that the store has all units that the service counted."""
        assert len(store.budget.history(self.key)) == self._emulator.journal.token_requests


# Sentinel


def sentinel_of(start: Callable[..., Valkey], primary: Valkey) -> Valkey:
    """Start one that fails over within a second."""
    lines = [
        f"monitor pay 127.0.0.1 {primary.port} 1",
        "down-after-milliseconds pay 500",
        "failover-timeout pay 2000",
    ]
    return start("\n".join(f"sentinel {line}" for line in lines))


def primary_of(sentinel: Valkey) -> int:
    """Return the port of the server that it calls the primary."""
    return int(sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "pay")[1])


def replicas_of(sentinel: Valkey) -> int:
    """Return how many it could promote."""
    return len(sentinel.command("SENTINEL", "REPLICAS", "pay"))


@pytest.mark.parametrize("lag", [False, True], ids=["no lag", "lag"])
def test_rule_05_a_sentinel_promotes_a_replica(start: Any, emulator: Emulator, lag: bool) -> None:
    """No configuration changes. A member writes what a lagging replica has missed again."""
    primary, replica = start(), start()
    replica.follow(primary)
    sentinel = sentinel_of(start, primary)
    until(lambda: replicas_of(sentinel) == 1)
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/pay"
    with ExitStack() as stack:
        members = Members(stack, emulator, url, url)
        assert members.one.do("spend", 4) == {SENT: 4}
        assert members.two.do("spend", 1) == {SENT: 1}
        replica.catch_up(primary)
        if lag:
            replica.fall_behind(primary)
        assert members.two.do("spend", 3) == {SENT: 3}
        if not lag:
            replica.catch_up(primary)
        primary.kill()
        until(lambda: primary_of(sentinel) == replica.port)
        until(lambda: replica.info("replication")["role"] == "master")
        store = redis_store(url, Clock(SPEED))
        until(store.budget.check)
        assert len(store.budget.history(members.key)) == (5 if lag else 8)
        members.settle()
        members.overspend()
        members.check_known(store)


@pytest.mark.parametrize("right", [True, False], ids=["its own", "wrong"])
def test_sentinels_with_a_login_of_their_own(start: Any, right: bool) -> None:
    """It is not that of the servers, and stands beside it."""
    primary = start(requirepass="servers")
    monitor = f"sentinel monitor pay 127.0.0.1 {primary.port} 1\nsentinel auth-pass pay servers"
    sentinel = start(monitor, requirepass="sentin%40els")
    password = "sentin%2540els" if right else "servers"
    url = f"redis+sentinel://:servers@127.0.0.1:{sentinel.port}/pay?sentinel_password={password}"
    assert redis_store(url, Clock()).budget.check() == right


def acquire(store: RedisStore, unit: str) -> None:
    """Acquire a unit as token requests do."""
    assert store.budget.acquire(Acquisition([WINDOW], [unit], durable=True)).wait == 0


def test_rule_05_a_unit_is_granted_once_the_replica_has_it(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is all that the budget contains: no failover loses any of it."""
    monkeypatch.setattr(replicas, "WAITS", 75)
    primary, replica = start(), start()
    with Relay(primary.port, delay=0.2) as relay:
        replica.command("REPLICAOF", "127.0.0.1", relay.port)
        replica.catch_up(primary)
        store, copy = redis_store(primary.url, Clock()), redis_store(replica.url, Clock())
        acquire(store, "a")
        assert taken(copy) == 1
        store.budget.merge("key", [Entry("b", 1.0)], 60.0)
        assert taken(copy) == 2
        store.budget.start_cooldown("key", Cooldown(60.0, 0.0, "429"))
        assert copy.budget.cooldown("key")


@pytest.mark.parametrize("clustered", [False, True], ids=["one server", "cluster"])
def test_rule_05_a_unit_waits_for_a_replica_that_lags_but_not_for_long(start: Any, clustered: bool) -> None:
    """A replica that hangs stops no payments. Units of API requests wait for no replica."""
    if clustered:
        cluster = Cluster(start)
        replica, url = cluster.replica, cluster.url
    else:
        primary, replica = start(), start()
        replica.follow(primary)
        url = primary.url
    store = redis_store(url, Clock())
    acquire(store, "a")
    with replica.paused():
        began = time.monotonic()
        acquire(store, "b")
        assert time.monotonic() - began >= replicas.WAITS * 0.4
        take(store)
    assert taken(store) == 3


@pytest.mark.parametrize("end", ["killed", "demoted"])
def test_rule_05_a_primary_that_ends_before_the_replica_has_the_unit(
    start: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The unit is acquired again, from the new primary: the token request is sent only then."""
    monkeypatch.setattr(replicas, "WAITS", 75)
    primary, replica = start(), start()
    with Relay(primary.port) as link, Relay(primary.port) as relay, ThreadPoolExecutor(1) as pool:
        replica.command("REPLICAOF", "127.0.0.1", link.port)
        replica.catch_up(primary)
        store = redis_store(f"redis://127.0.0.1:{relay.port}", Clock())
        take(store)
        replica.catch_up(primary)
        with link.partition():
            granted = pool.submit(acquire, store, "a")
            until(lambda: primary.info("clients")["blocked_clients"] == 1)  # it waits for the replica
            link.cut()
            replica.command("REPLICAOF", "NO", "ONE")
            relay.target = replica.port
            primary.kill() if end == "killed" else primary.follow(replica)
            granted.result(30)
        assert taken(redis_store(replica.url, Clock())) == 2


def test_rule_04_no_fence_from_before_a_failover_is_given_out_again(start: Any) -> None:
    """The replica had not replicated the last ones."""
    primary, replica = start(), start()
    with Relay(primary.port) as relay:
        store = redis_store(f"redis://127.0.0.1:{relay.port}", Clock())
        lead(store)
        replica.follow(primary)
        replica.fall_behind(primary)
        lost = [lead(store) for _ in range(3)]
        assert store.publish("key", fencing_token=lost[-1], content=TOKEN, ttl=50.0)
        relay.target = replica.port
        replica.command("REPLICAOF", "NO", "ONE")
        primary.kill()
        new = lead(store, known_version=lost[-1])
        assert new > max(lost)
        assert not store.publish("key", fencing_token=lost[-1], content="late", ttl=50.0)
        assert store.publish("key", fencing_token=new, content=TOKEN, ttl=50.0)


def test_rule_24_a_primary_that_was_demoted_is_left(start: Any) -> None:
    """Behind one address, as managed services have it: the connections to the old one stay open."""
    primary, replica = start(), start()
    replica.follow(primary)
    with Relay(primary.port) as relay:
        store = redis_store(f"redis://127.0.0.1:{relay.port}", Clock())
        take(store, 3)
        replica.catch_up(primary)
        relay.target = replica.port
        replica.command("REPLICAOF", "NO", "ONE")
        primary.follow(replica)
        take(store)
        assert taken(store) == 4
        relay.target = free_port()
        replica.follow(start())
        with pytest.raises(StoreError):
            take(store)


# Clusters


class Cluster:
    """Three primaries, one of which keeps all that the store has, and a replica of that one."""

    def __init__(self, start: Callable[..., Valkey]) -> None:
        options = {"cluster_enabled": "yes", "cluster_node_timeout": "500", "cluster_replica_validity_factor": "0"}
        self.nodes = [start(**options) for _ in range(4)]
        self.primary, self.spare, third, self.replica = self.nodes
        slots = {0, self.slot("budget"), self.slot("record")}  # one that stays: who has none becomes a replica
        self.primary.command("CLUSTER", "ADDSLOTS", *slots)
        for node, parity in ((self.spare, 0), (third, 1)):
            node.command("CLUSTER", "ADDSLOTS", *(each for each in range(parity, 16384, 2) if each not in slots))
        for number, node in enumerate(self.nodes, 1):
            if node is not self.replica:
                node.command("CLUSTER", "SET-CONFIG-EPOCH", number)
            node.command("CLUSTER", "MEET", "127.0.0.1", self.primary.port)
        self.await_state(4)
        self.replica.command("CLUSTER", "REPLICATE", self.id_of(self.primary))
        until(lambda: self.replica.info("replication").get("master_link_status") == "up")
        until(lambda: all(str(node.command("CLUSTER", "NODES")).count("slave") == 1 for node in self.nodes))
        self.await_state(4)

    @property
    def url(self) -> str:
        """Where it is: not all nodes have to be named."""
        return f"redis+cluster://127.0.0.1:{self.nodes[2].port},127.0.0.1:{self.primary.port}"

    def slot(self, kind: str) -> int:
        """Return where the keys of a kind are."""
        return int(self.nodes[0].command("CLUSTER", "KEYSLOT", f"{{{kind}}}"))

    def id_of(self, node: Valkey) -> str:
        """Return what the others call it."""
        return str(node.command("CLUSTER", "MYID").decode())

    def await_state(self, known: int) -> None:
        """Return when all nodes know so many, and agree that all is well."""
        expected = ("cluster_state:ok", f"cluster_known_nodes:{known}")
        until(lambda: all(each in str(node.command("CLUSTER", "INFO")) for node in self.nodes for each in expected))

    def begin_move(self, kind: str) -> None:
        """Begin to move the slot of a kind of keys to another primary."""
        slot = self.slot(kind)
        self.spare.command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(self.primary))
        self.primary.command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(self.spare))

    def move_keys(self, kind: str) -> None:
        """Move what is in it."""
        for key in self.primary.command("CLUSTER", "GETKEYSINSLOT", self.slot(kind), 100):
            self.primary.command("MIGRATE", "127.0.0.1", self.spare.port, key, 0, 5000)

    def end_move(self, kind: str) -> None:
        """Announce the move to all nodes."""
        for node in (self.spare, self.primary, self.nodes[2]):
            node.command("CLUSTER", "SETSLOT", self.slot(kind), "NODE", self.id_of(self.spare))


def test_rule_24_a_cluster_moves_the_slots(start: Any) -> None:
    """Nothing is lost, and at worst it cannot be used as long as a slot is on its way."""
    cluster = Cluster(start)
    store = redis_store(cluster.url, Clock())
    for count, kind in enumerate(("budget", "record"), 1):
        take(store)
        lead(store)
        for step in (cluster.begin_move, cluster.move_keys):
            step(kind)
            began = time.monotonic()
            try:
                assert store.budget.history(WINDOW.key)
                assert store.peek("key").owner == "a"
            except StoreError:
                assert time.monotonic() - began < OPERATION_TIMEOUT
        cluster.end_move(kind)
        assert taken(store) == count
        assert store.peek("key").owner == "a"
    take(store)
    lead(store)
    assert len(cluster.spare.command("KEYS", "pay88:*")) == 2


@pytest.mark.parametrize("end", ["order", "kill"])
def test_rule_24_a_cluster_promotes_a_replica(start: Any, end: str) -> None:
    """On an operator's order without an error; when the primary dies, once the others have noticed."""
    cluster = Cluster(start)
    store = redis_store(cluster.url, Clock())
    take(store, 3)
    assert store.publish("key", fencing_token=lead(store), content=TOKEN, ttl=50.0)
    cluster.replica.catch_up(cluster.primary)
    if end == "order":
        cluster.replica.command("CLUSTER", "FAILOVER")
        until(lambda: cluster.replica.info("replication")["role"] == "master")
        until(lambda: cluster.primary.info("replication")["role"] == "slave")
    else:
        cluster.primary.kill()
        until(store.budget.check)
    assert taken(store) == 3
    assert store.peek("key").record
    take(store)


# Networks and memory


def test_rule_24_a_partition(start: Any, emulator: Emulator) -> None:
    """A cut-off member switches to degraded mode; its writes arrive late, and no unit is lost."""
    server = start()
    with Relay(server.port) as relay, ExitStack() as stack:
        members = Members(stack, emulator, f"redis://127.0.0.1:{relay.port}", server.url)
        assert members.one.do("spend", 2) == {SENT: 2}
        assert members.two.do("spend", 2) == {SENT: 2}
        with relay.partition():
            members.one.do("spend", 1)
        members.settle()
        members.overspend()
        history = redis_store(server.url, Clock(SPEED)).budget.history(members.key)
        assert len(history) >= emulator.journal.token_requests


def test_rule_24_a_partition_is_noticed_in_time(start: Any) -> None:
    """On a connection that is in use, and on a new one; afterwards all is well."""
    with Relay(start().port) as relay:
        used, new = (redis_store(f"redis://127.0.0.1:{relay.port}", Clock()) for _ in range(2))
        take(used)
        with relay.partition():
            for store in (used, new):
                began = time.monotonic()
                with pytest.raises(StoreError, match="did not respond within"):
                    taken(store)
                assert time.monotonic() - began < OPERATION_TIMEOUT
        assert taken(used) == taken(new) == 1


def test_rule_05_keys_that_were_evicted_are_written_again(start: Any, emulator: Emulator) -> None:
    """A server under pressure, with the policy that the page warns of."""
    server = start(maxmemory="3mb", maxmemory_policy="allkeys-lru")
    with ExitStack() as stack:
        members = Members(stack, emulator, server.url, f"{server.url}/0")
        for worker in (members.one, members.two):
            assert worker.do("spend", 3) == {SENT: 3}
        filler: Any = redis.Redis(port=server.port)
        with filler:
            for number in range(100_000):
                filler.set(f"filler {number}", "x" * 1000)
                if not filler.keys("pay88:*"):
                    break
            assert not filler.keys("pay88:*")
            filler.flushall()
        members.overspend()
        members.check_known(redis_store(server.url, Clock(SPEED)))


def test_rule_24_a_server_that_loads_its_data(tmp_path: Path) -> None:
    """It says so, and is used once it has it, with all that is in it."""
    with Valkey(tmp_path, key_load_delay="500") as server:
        store = redis_store(server.url, Clock())
        take(store, 3)
        client: Any = redis.Redis(port=server.port)
        with client:
            client.mset({f"filler {number}": os.urandom(10_000) for number in range(1000)})
        server.command("SAVE")
        server.kill()
        server.launch()
        said: list[str] = []

        def is_back() -> bool:
            try:
                return taken(store) == 3
            except StoreError as error:
                said.append(str(error))
                return False

        until(is_back)
        assert "is still loading its data" in "".join(said)


def test_scripts_may_be_forgotten_at_any_moment(start: Any) -> None:
    """While others are in the middle of operations: none of them fails, and none counts twice."""
    server, over = start(), threading.Event()
    store = redis_store(server.url, Clock())

    def flush() -> None:
        while not over.is_set():
            server.command("SCRIPT", "FLUSH")

    with ThreadPoolExecutor(5) as pool:
        flushing = pool.submit(flush)
        try:
            window = WINDOW._replace(limit=1000)
            list(pool.map(lambda _: store.budget.acquire_all([window]), range(200)))
        finally:
            over.set()
        flushing.result()
    assert taken(store) == 200
