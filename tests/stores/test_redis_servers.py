"""The Redis store on each server that is here, from the oldest supported version on, with the documented rights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Acquisition, Cooldown, Window
from pay88_adapters.core.secret import Secret
from pay88_adapters.stores import scripts
from pay88_adapters.stores.base import StoreError
from pay88_adapters.stores.redis import RedisStore, redis_store
from support.servers import Valkey, binaries, serve_all_slots

PAGE = Path(__file__).parents[2].joinpath("docs", "deployment", "index.md").read_text(encoding="utf-8")
RIGHTS, CLUSTER_RIGHTS = re.findall(r"^ACL SETUSER shop .*$", PAGE, re.MULTILINE)
CLIENT = {"eval", "evalsha", "select", "role", "wait"}
"""The commands that are sent as such; all others are the scripts'."""
WINDOW = Window("key", 3, 60.0)


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Valkey]]:
    """Start servers of one kind."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Valkey(tmp_path, binary=request.param, **options))


def use(store: RedisStore) -> None:
    """Do all that managers do with a store."""
    budget = store.budget
    assert budget.acquire(Acquisition([WINDOW], ["a"], known={"key": []}, durable=True)).wait == 0
    budget.merge("key", budget.history("key"), 60.0)
    budget.start_cooldown("key", Cooldown(60.0, 0.0, "429"))
    assert budget.cooldown("key")
    assert budget.acquire(Acquisition([WINDOW], ["b"])).wait > 0
    known = 0
    for _ in range(2):  # the second time, there is a record to replace
        fence = store.try_acquire_lease("record", owner="host/me", known_version=known, lease=10.0).fencing_token
        assert fence is not None
        assert store.try_acquire_lease("record", owner="other/me", known_version=known, lease=10.0).lease_remaining > 0
        assert store.publish("record", fencing_token=fence, content=Secret("a token"), ttl=10.0)
        known = fence
    assert store.peek("record").record
    store.remove_member("host")


def test_the_documented_rights_are_those_that_are_used() -> None:
    """Each command of the scripts is granted, and no other."""
    texts = "".join(each._text for each in vars(scripts).values() if isinstance(each, scripts.Script))
    used = set(re.findall(r"redis\.call\('([A-Z]+)'", texts))
    assert texts.count("redis.call(") == len(re.findall(r"redis\.call\('[A-Z]+'", texts)), "names that are put together"
    assert set(re.findall(r"\+(\S+)", RIGHTS)) == CLIENT | {each.lower() for each in used}
    assert CLUSTER_RIGHTS.startswith(RIGHTS)


@pytest.mark.deep
def test_the_documented_rights_suffice(start: Callable[..., Valkey]) -> None:
    """For all that managers do, in a database of its own."""
    server = start()
    server.command(*RIGHTS.split())
    use(redis_store(f"redis://shop:password@127.0.0.1:{server.port}/1", Clock()))


@pytest.mark.deep
@pytest.mark.parametrize("missing", ["+role", "+wait"])
def test_without_the_rights_to_wait_for_replicas_units_do_not_wait(start: Callable[..., Valkey], missing: str) -> None:
    """The permission is tried once."""
    server, replica = start(), start()
    replica.follow(server)
    rights = RIGHTS.split()
    rights.remove(missing)
    server.command(*rights)
    store = redis_store(f"redis://shop:password@127.0.0.1:{server.port}", Clock())
    use(store)
    store.budget.merge("key", store.budget.history("key"), 60.0)
    assert server.info("commandstats")[f"cmdstat_{missing[1:]}"]["rejected_calls"] == 1


@pytest.mark.deep
def test_the_documented_rights_suffice_in_a_cluster(start: Callable[..., Valkey]) -> None:
    """With those that a cluster's client needs."""
    server = start(cluster_enabled="yes")
    serve_all_slots(server)
    server.command(*CLUSTER_RIGHTS.split())
    use(redis_store(f"redis+cluster://shop:password@127.0.0.1:{server.port}", Clock()))


@pytest.mark.deep
@pytest.mark.parametrize("missing", ["+eval", "+evalsha", "+time", "+set", "~pay88:*"])
def test_a_right_that_is_missing_is_named_as_that(start: Callable[..., Valkey], missing: str) -> None:
    """A command of the client's, one of a script's, and the keys."""
    server = start()
    rights = RIGHTS.split()
    rights.remove(missing)
    server.command(*rights)
    store = redis_store(f"redis://shop:password@127.0.0.1:{server.port}", Clock())
    with pytest.raises(StoreError, match=r"denies this user.*\(No|denies this user.*\(NOPERM"):
        use(store)


@pytest.mark.deep
@pytest.mark.parametrize("login", ["", "shop:wrong@", "nobody:password@"])
def test_a_login_that_is_rejected_is_named_as_that(start: Callable[..., Valkey], login: str) -> None:
    """None, a wrong password, and a user that is not there."""
    server = start(requirepass="password")
    server.command(*RIGHTS.split())
    store = redis_store(f"redis://{login}127.0.0.1:{server.port}", Clock())
    with pytest.raises(StoreError, match="rejected the user name or password"):
        use(store)


@pytest.mark.deep
def test_what_keeps_a_server_from_writing_is_named(start: Callable[..., Valkey]) -> None:
    """Too little memory, too few replicas, and being a replica: before Redis 7, a script's error hides it."""
    server = start()
    store = redis_store(server.url, Clock())
    for setting, said in (("maxmemory", "out of memory"), ("min-replicas-to-write", "too few replicas")):
        server.command("CONFIG", "SET", setting, 1)
        if not lets_scripts_write(server):  # some versions of Redis 6.2 reject scripts on replicas then
            with pytest.raises(StoreError, match=said):
                use(store)
        server.command("CONFIG", "SET", setting, 0)
    server.command("REPLICAOF", "127.0.0.1", server.port)
    with pytest.raises(StoreError, match="read-only replica"):
        use(store)
    server.command("REPLICAOF", "NO", "ONE")
    use(store)


def lets_scripts_write(server: Valkey) -> bool:
    """Whether it does, for whatever reason."""
    try:
        server.command("EVAL", "return redis.call('SET', KEYS[1], '')", 1, "another")
    except redis.ResponseError:
        return False
    return True
