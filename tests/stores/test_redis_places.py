"""Where a Redis store is: its URL, and what of it can be configured."""

from __future__ import annotations

import gc
import socket
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import ConfigurationError
from pay88_adapters.clock import Clock
from pay88_adapters.stores.redis import redis_store
from support.authority import new_authority
from support.leaks import error_texts, leaked
from support.proxies import Relay
from support.redis_stores import MINUTE, PASSWORD, TOKEN, do_all, fails, lead, open_store, operations
from support.servers import Valkey, free_port, serve_all_slots

# It breaks things for seconds; the contract of all stores is tested everywhere.
pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("nothing_is_left_open")]


def test_stores_with_different_prefixes_do_not_meet(server: Valkey) -> None:
    """Nor is anything of others forgotten with one's own."""
    stores = [open_store(server, query) for query in ("", "?prefix=shop:", "?prefix=shop:2:", "?prefix=")]
    server.command("SET", "something", "else")
    for store in stores:
        assert [len(each) for each in store.budget.acquire_all([MINUTE]).histories.values()] == [1]
        assert lead(store)
    assert stores[1].budget.reset() == 1
    assert [len(store.budget.ages(MINUTE)) for store in stores] == [1, 0, 1, 1]
    assert server.command("GET", "something") == b"else"
    assert server.command("EXISTS", "shop:{record}fences:key") == 1
    assert redis_store(f"{server.url}/1", Clock()).budget.get("minute") == 0


def test_a_unix_socket(own: Any, tmp_path: Path) -> None:
    """With a login and a database."""
    path = tmp_path / "the socket"
    own(unixsocket=f'"{path}"', requirepass=PASSWORD)
    store = redis_store(f"unix://:{PASSWORD}@{str(path).replace(' ', '%20')}?db=3&prefix=x:", Clock())
    do_all(operations(store))


@pytest.mark.parametrize("login", ["", PASSWORD])
def test_a_cluster(tmp_path: Path, login: str) -> None:
    """Every operation, on keys that share a slot; it recovers after a hang, a restart, and at another address."""
    options = {"cluster_enabled": "yes", **({"requirepass": login} if login else {})}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (Valkey(tmp_path / name, binary=None, **options) for name in ("one", "two"))
    url = one.url.replace("redis:", "redis+cluster:").replace("127.0.0.1", f"127.0.0.1:{two.port},127.0.0.1")
    store = redis_store(url, Clock())
    with one:
        serve_all_slots(one)
        do_all(operations(store))
        assert store.budget.reset() == 2
        assert store.publish("key", fencing_token=lead(store), content=TOKEN, ttl=50.0)
        with one.paused():
            for ask in operations(store)[::3]:
                fails(ask, within=5)
        one.stop()
        for ask in operations(store):
            fails(ask)
        one.start()
        serve_all_slots(one)
        do_all(operations(store))
    with two:
        serve_all_slots(two)
        store.budget.check()  # finds that the other is gone
        do_all(operations(store))


def test_a_cluster_that_is_none_is_an_error(server: Valkey) -> None:
    """A single server that was taken for one."""
    store = redis_store(server.url.replace("redis:", "redis+cluster:"), Clock())
    for ask in operations(store):
        fails(ask)


def test_a_sentinel_names_the_server(own: Any, tmp_path: Path) -> None:
    """The password is the server's. A sentinel that is down is passed over; an unknown service is an error."""
    server = own(requirepass=PASSWORD)
    monitor = f"sentinel monitor pay 127.0.0.1 {server.port} 1\nsentinel auth-pass pay {PASSWORD}"
    with Valkey(tmp_path, sentinel=monitor) as sentinel:
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}"
        store = redis_store(f"redis+sentinel://:{PASSWORD}@{hosts}/pay/1", Clock())
        do_all(operations(store))
        assert server.command("INFO", "keyspace")["db1"]["keys"] >= 3
        for ask in operations(redis_store(f"redis+sentinel://:{PASSWORD}@{hosts}/other", Clock())):
            fails(ask)
        server.stop()
        for ask in operations(store):
            fails(ask)
        server.start()
        do_all(operations(store))


def test_tls(own: Any, tmp_path: Path) -> None:
    """Certificates and host names are checked unless the URL says otherwise."""
    server = own()
    authority = new_authority()
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(trusted)
    for name, query, works in (
        ("localhost", f"?ssl_ca_certs={trusted}", True),
        ("localhost", "", False),
        ("elsewhere.example", f"?ssl_ca_certs={trusted}", False),
        ("elsewhere.example", "?ssl_cert_reqs=none", True),
        ("localhost", "?ssl_ca_certs=/no/such/file", False),
    ):
        with in_front_of(server.port, authority.issue_cert(name)) as relay:
            try_out(f"rediss://localhost:{relay.port}{query}", works=works)
            gc.collect()  # some versions of limits have storages that refer to themselves


def try_out(url: str, *, works: bool) -> None:
    """Use a store that is closed afterwards, with its connections."""
    for ask in operations(redis_store(url, Clock()))[::3]:
        if works:
            ask()
        else:
            fails(ask)


def in_front_of(port: int, certificate: Any) -> Relay:
    """Take TLS off what goes to the server: the one that tests have is built without it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return Relay(port, context)


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        f"redis://:{PASSWORD}@",
        f"redis://:{PASSWORD}@:6379",
        f"redis://:{PASSWORD}@host:port",
        f"redis://:{PASSWORD}@host:70000",
        f"redis://:{PASSWORD}/@host",
        f"redis://:{PASSWORD}#@host",
        f"redis://:{PASSWORD}?@host",
        f"redis://:{PASSWORD}@host/zero",
        f"redis://:{PASSWORD}@host/-1",
        f"redis://:{PASSWORD}@one,two",
        f"redis://:{PASSWORD}@host?unknown=1",
        f"redis://:{PASSWORD}@host?ssl_ca_certs=x",
        f"redis://:{PASSWORD}@host?prefix={{x}}",
        f"redis://:{PASSWORD}@host?prefix=*",
        f"redis+nothing://:{PASSWORD}@host",
        f"http://:{PASSWORD}@host",
        f"unix+cluster://:{PASSWORD}@/path",
        f"unix://:{PASSWORD}@",
        f"unix://:{PASSWORD}@host/path",
        f"unix://:{PASSWORD}@/path?db=x",
        f"redis+sentinel://:{PASSWORD}@host",
        f"redis+sentinel://:{PASSWORD}@host,/service",
        f"redis+cluster://:{PASSWORD}@host/1",
        f"redis+cluster://:{PASSWORD}@one,[two",
    ],
)
def test_a_url_that_cannot_work_is_rejected_without_its_password(url: str) -> None:
    """When the store is made, with what to write instead."""
    with pytest.raises(ConfigurationError, match="redis://") as raised:
        redis_store(url, Clock())
    error: BaseException = raised.value
    for _ in range(1):  # past the frame of this test
        error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
    assert not leaked([PASSWORD], error_texts(raised.value))


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://[::1]:6379/2",
        "rediss://user:p%40ss@host:6380/0?prefix=a.b/c-d_e:&ssl_cert_reqs=none",
        "unix:///var/run/redis.sock",
        "redis+sentinel://:p@one:1,two:2,[::1]:3/service/4",
        "rediss+sentinel://one/service?ssl_ca_certs=/x",
        "redis+cluster://one,two:7000/",
        "rediss+cluster://user:p@one",
    ],
)
def test_a_url_that_can_work_connects_nowhere_yet(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked up or dialled before the first operation."""

    def dial(*args: object, **kwargs: object) -> None:
        raise AssertionError("dialled")

    monkeypatch.setattr(socket.socket, "connect", dial)
    monkeypatch.setattr(socket, "getaddrinfo", dial)
    redis_store(url, Clock())


def test_without_redis_the_extra_is_named() -> None:
    """The message says what to install."""
    script = """
        import sys
        sys.modules["redis"] = None
        from pay88_adapters import ConfigurationError
        try:
            import pay88_adapters.stores.redis
        except ConfigurationError as error:
            assert "pay88-adapters[redis]" in str(error)
        else:
            raise AssertionError
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_rule_15_a_store_shows_no_password() -> None:
    """Neither it nor what it consists of, before and after it was used."""
    from support.leaks import shown

    store = redis_store(f"redis://user:{PASSWORD}@127.0.0.1:{free_port()}", Clock())
    for _ in range(2):
        assert not leaked([PASSWORD], shown(store, depth=5))
        fails(lambda: store.budget.ages(MINUTE))
        store.budget.check()
