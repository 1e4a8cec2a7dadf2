"""What the Redis store promises beyond what every store does, on real servers."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from pay88_adapters import Credentials, TokenManager
from pay88_adapters.clock import Clock
from pay88_adapters.core.history import Window
from pay88_adapters.engine.forks import survive_forks
from pay88_adapters.stores.redis import redis_store
from pay88_adapters.testing import Emulator
from support.proxies import Relay
from support.redis_stores import HOUR, MINUTE, PASSWORD, TOKEN, do_all, fails, lead, open_store, operations
from support.servers import Valkey, free_port

# It breaks things for seconds; the contract of all stores is tested everywhere.
pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("nothing_is_left_open")]


def test_rule_24_a_server_that_is_down_is_an_error_at_first_use_and_found_when_it_comes(own: Any) -> None:
    """Making the store touches no network; every operation says so; the same store works later."""
    server = own()
    server.stop()
    store = open_store(server)
    for ask in operations(store):
        assert "cannot be reached" in fails(ask)
    assert not store.budget.check()
    server.start()
    do_all(operations(store))
    assert store.budget.check()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_rule_04_no_fence_from_before_a_restart_publishes(own: Any, end: str) -> None:
    """The store restarts empty, without an error; the fencing tokens that it issues then are new ones."""
    server = own()
    store = open_store(server)
    old = lead(store)
    store.budget.acquire_all([MINUTE])
    getattr(server, end)()
    fails(lambda: store.budget.ages(MINUTE))
    server.start()
    assert list(store.budget.ages(MINUTE)) == []
    assert not store.publish("key", fencing_token=old, content=TOKEN, ttl=50.0)
    new = lead(store, owner="b")
    assert new > old
    assert not store.publish("key", fencing_token=old, content=TOKEN, ttl=50.0)
    assert store.publish("key", fencing_token=new, content=TOKEN, ttl=50.0)


def test_rule_24_a_connection_lost_meanwhile_is_no_error(own: Any) -> None:
    """A server that was restarted between two operations, and one that hung up."""
    server = own()
    store = open_store(server)
    for ask in operations(store):
        ask()
        server.stop()
        server.start()
        ask()
        server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        ask()


def test_rule_24_a_connection_lost_before_the_response_is_no_error(server: Valkey) -> None:
    """The operation is retried once."""
    store = open_store(server)
    server.command("CLIENT", "PAUSE", "10000", "WRITE")
    with ThreadPoolExecutor(1) as pool:
        acquired = pool.submit(store.budget.acquire_all, [MINUTE])
        while not server.command("INFO", "clients")["blocked_clients"]:
            time.sleep(0.001)
        server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        server.command("CLIENT", "UNPAUSE")
        assert acquired.result().wait == 0


def test_rule_24_a_server_that_hangs_is_an_error_soon(own: Any) -> None:
    """On a new connection and on one that was in use; it is found again when it continues."""
    server = own()
    used, new = open_store(server), open_store(server)
    used.budget.ages(MINUTE)
    with server.paused():
        for ask in (*operations(used)[::3], *operations(new)[::3]):
            assert "did not respond within" in fails(ask)
    assert used.budget.acquire_all([HOUR]).wait == 0
    assert new.budget.acquire_all([HOUR]).wait == 0


def test_rule_24_a_full_server_is_an_error_and_takes_nothing(server: Valkey) -> None:
    """Neither half of an acquisition nor a lease; what needs no memory works."""
    store = open_store(server)
    fencing_token = lead(store)
    server.command("CONFIG", "SET", "maxmemory", "1")
    try:
        acquire, add, *_, publish, look, _ = operations(store)
        for ask in (acquire, add, lambda: lead(store, "another"), lambda: lead(store, owner="member/b")):
            assert "out of memory" in fails(ask)
        assert "out of memory" in fails(
            lambda: store.publish("key", fencing_token=fencing_token, content=TOKEN, ttl=50.0)
        )
        assert list(store.budget.ages(MINUTE)) == []
        assert publish() is False
        look()
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")
    assert [len(each) for each in store.budget.acquire_all([MINUTE, HOUR]).histories.values()] == [1, 1]
    assert store.publish("key", fencing_token=fencing_token, content=TOKEN, ttl=50.0)


def test_rule_24_a_replica_that_takes_no_writes_is_an_error(server: Valkey) -> None:
    """As after a failover that the client has not noticed."""
    store = open_store(server)
    server.command("REPLICAOF", "127.0.0.1", free_port())
    try:
        assert "replica" in fails(operations(store)[0])
    finally:
        server.command("REPLICAOF", "NO", "ONE")
    operations(store)[0]()


@pytest.mark.parametrize("login", ["", f":{PASSWORD}-not@", f"somebody:{PASSWORD}@"])
def test_rule_24_a_login_that_is_rejected_is_an_error_without_the_password(own: Any, login: str) -> None:
    """None at all, a wrong password, a wrong user."""
    server = own(requirepass=PASSWORD)
    assert open_store(server).budget.check()
    store = redis_store(f"redis://{login}127.0.0.1:{server.port}", Clock())
    for ask in operations(store):
        assert "rejected the user name or password" in fails(ask)


def test_rule_24_a_command_that_is_rejected_is_an_error_without_what_was_sent(own: Any) -> None:
    """The server's message quotes the arguments of a command that it does not know."""
    store = open_store(own(rename_command="EVALSHA hidden"))
    for ask in operations(store):
        text = fails(ask)
        assert "rejected a command" in text
        assert "{" not in text, "it quotes a key"


def test_rule_24_a_server_that_speaks_no_redis_is_an_error() -> None:
    """A web server, and one that hangs up."""
    for response in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"$-7\r\n", b"*1\r\n$1\r\nx\r\n"):
        with responding(response) as port:
            store = redis_store(f"redis://127.0.0.1:{port}", Clock())
            for ask in operations(store):
                fails(ask)


@contextmanager
def responding(response: bytes) -> Generator[int]:
    """Send *response* to each client, and close the connection."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(response)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("value", ["rubbish", "12 -1", "12 1:", "12 :a", "12 1:a 5", "1e5", "1.5", "nan", "\x00\xff"])
def test_rule_24_a_budget_that_makes_no_sense_is_an_error(server: Valkey, value: str) -> None:
    """And takes nothing from the windows beside it."""
    store = open_store(server)
    server.command("SET", "pay88:{budget}2:hour", value)
    acquire, *_ = operations(store)
    fails(acquire)
    fails(lambda: store.budget.ages(HOUR))
    fails(lambda: store.budget.add(HOUR, [1.0]))
    fails(lambda: store.budget.get("hour"))
    assert list(store.budget.ages(MINUTE)) == []
    store.budget.clear("hour")
    acquire()


def test_rule_24_keys_of_another_type_are_an_error(server: Valkey) -> None:
    """For each key of each operation."""
    store = open_store(server)
    for key in ("{budget}2:minute", "{budget}2:hour", "{record}fences:key", "{record}content:key", "{record}members"):
        server.command("SADD", f"pay88:{key}", TOKEN)
    *_, leading, _, look, _ = asks = operations(store)
    for ask in asks:
        assert "WRONGTYPE" in fails(ask)
    server.command("DEL", "pay88:{record}fences:key")
    assert "WRONGTYPE" in fails(leading)
    assert "WRONGTYPE" in fails(look)


@pytest.mark.parametrize("value", ["", "rubbish", "-1", "1.5", "1e3", "nan"])
def test_rule_24_a_record_that_makes_no_sense_is_an_error(server: Valkey, value: str) -> None:
    """Field by field; and one that is no text."""
    store = open_store(server)
    fencing_token = lead(store)
    assert store.publish("key", fencing_token=fencing_token, content=TOKEN, ttl=50.0)
    lead(store, known_version=fencing_token)
    for name, fields in (("content", ("version", "at", "until")), ("fences", ("fences", "version", "at", "until"))):
        for field in fields:
            key = f"pay88:{{record}}{name}:key"
            before = server.command("HGET", key, field)
            server.command("HSET", key, field, value)
            ask: Callable[[], object] = lambda: store.try_acquire_lease("key", owner="b", known_version=0, lease=30.0)  # noqa: E731
            if name == "fences":
                ask = lambda: store.try_acquire_lease("key", owner="b", known_version=fencing_token, lease=30.0)  # noqa: E731
            if field in ("fences", "version") and name == "fences":
                ask = lambda: store.publish("key", fencing_token=fencing_token + 1, content=TOKEN, ttl=50.0)  # noqa: E731
            fails(ask)
            if name == "content" or field in ("at", "until"):
                fails(lambda: store.peek("key"))
            server.command("HSET", key, field, before)
    server.command("HSET", "pay88:{record}content:key", "content", b"\xff" + TOKEN.encode())
    fails(lambda: store.try_acquire_lease("key", owner="b", known_version=0, lease=30.0))
    fails(lambda: store.peek("key"))


def test_scripts_are_sent_in_full_to_a_server_without_them(server: Valkey) -> None:
    """Each of them."""
    store = open_store(server)
    for _ in range(2):
        for ask in operations(store):
            server.command("SCRIPT", "FLUSH")
            ask()
            ask()


def test_what_is_kept_ends_by_itself(server: Valkey) -> None:
    """Entries after an hour or their window, the record with its ``keep``, the count of fences a day later."""
    store = open_store(server)
    store.budget.acquire_all([MINUTE, HOUR])
    store.budget.add(Window("added", 9, 7300.0), [1.0])
    assert store.publish("key", fencing_token=lead(store), content=TOKEN, ttl=50.0)
    lead(store, "leased", lease=20.0)
    kept = {key: server.command("PTTL", key) / 1000 for key in server.command("KEYS", "*")}
    assert kept == {
        b"pay88:{budget}2:minute": pytest.approx(3660, abs=2),
        b"pay88:{budget}2:hour": pytest.approx(3660, abs=2),
        b"pay88:{budget}2:added": pytest.approx(7300, abs=2),
        b"pay88:{record}content:key": pytest.approx(50, abs=2),
        b"pay88:{record}fences:key": pytest.approx(86_450, abs=2),
        b"pay88:{record}fences:leased": pytest.approx(86_420, abs=2),
    }
    assert all(left <= 50 for key, left in kept.items() if b"content" in key)
    record = store.try_acquire_lease("key", owner="a", known_version=0, lease=1.0).record
    assert record is not None
    lead(store, known_version=record.version, lease=1.0)
    assert server.command("PTTL", "pay88:{record}fences:key") > 86_440_000, "a lease shortens nothing"


def test_a_fast_clock_makes_the_servers_seconds_short(server: Valkey) -> None:
    """A hundred of ours in one of its own: windows, ttl and lease end accordingly, and ages are ours."""
    store, window = open_store(server, speed=100), Window("fast", 1, 200.0)
    began = time.monotonic()
    assert store.budget.acquire_all([window]).wait == 0
    taken = time.monotonic()
    fencing_token = lead(store, lease=200.0)
    assert store.publish("late", fencing_token=lead(store, "late"), content=TOKEN, ttl=200.0)

    def left() -> float:
        """Return what is left at least of that."""
        return 200 - (time.monotonic() - began) * 100 - 1  # 1: the two clocks need not be equally fast

    assert 200.001 >= store.budget.acquire_all([window]).wait >= left()
    assert 200 >= store.try_acquire_lease("key", owner="b", known_version=0, lease=1.0).lease_remaining >= left()
    passed = (time.monotonic() - taken) * 100
    assert passed - 1 <= store.budget.ages(window)[0] <= 200 - left()

    deadline = began + 20  # what ends accordingly, ends in two seconds
    while store.budget.acquire_all([window]).wait > 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert left() <= 0
    while store.try_acquire_lease("key", owner="b", known_version=fencing_token, lease=200.0).fencing_token is None:
        assert time.monotonic() < deadline
    while store.try_acquire_lease("late", owner="b", known_version=0, lease=0.0).record is not None:
        assert time.monotonic() < deadline
    assert left() <= 0


def test_rule_04_the_clock_of_a_host_changes_nothing(server: Valkey) -> None:
    """Another process, whose clocks are years off, agrees about ages, waits and leases."""
    store = open_store(server)
    store.budget.acquire_all([MINUTE], 10)
    assert store.publish("key", fencing_token=lead(store), content=TOKEN, ttl=50.0)
    lead(store, "leased")
    script = """
        import sys, time
        wall, steady, boot = time.time, time.monotonic, time.clock_gettime
        time.time = lambda: wall() - 1e9
        time.monotonic = lambda: steady() + 1e6
        time.clock_gettime = lambda clock: boot(clock) + 1e6
        from pay88_adapters.clock import Clock
        from pay88_adapters.core.history import Window
        from pay88_adapters.stores.redis import redis_store
        store = redis_store(sys.argv[1], Clock())
        result = store.budget.acquire_all([Window("minute", 10, 65.0)])
        wait, ages = result.wait, [entry.age for entry in result.histories["minute"]]
        assert len(ages) == 10 and 0 <= min(ages) and max(ages) < 30 and 35 < wait < 65.1, (wait, ages)
        assert 0 <= store.try_acquire_lease("key", owner="b", known_version=0, lease=30.0).record.age < 30
        assert 0 < store.try_acquire_lease("leased", owner="b", known_version=0, lease=30.0).lease_remaining <= 30
        assert store.budget.acquire_all([Window("other", 10, 65.0)]).wait == 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), server.url], check=True, timeout=60)
    assert store.budget.ages(Window("other", 10, 65.0))[0] < 30


def test_rule_05_a_server_whose_clock_was_set_back_counts_from_then_on(server: Valkey) -> None:
    """Entries, leases and records from the future: none blocks for as long as the step."""
    store = open_store(server)
    fencing_token = lead(store)
    future = str((time.time_ns() // 1000) + 10**10)
    server.command(
        "SET", "pay88:{budget}2:minute", " ".join(["3660000000", *(f"{future}:{number}" for number in range(10))])
    )
    assert 60 < store.budget.acquire_all([MINUTE]).wait <= 65.001
    time.sleep(0.05)
    assert store.budget.ages(MINUTE)[0] >= 0.05
    assert store.publish("key", fencing_token=fencing_token, content=TOKEN, ttl=50.0)
    server.command("HSET", "pay88:{record}content:key", "at", future, "until", future + "0")
    assert lead(store, owner="b") > fencing_token
    server.command("HSET", "pay88:{record}fences:key", "at", future, "until", future + "0")
    assert lead(store, owner="c") > fencing_token + 1


def test_threads_that_share_a_store_get_their_own_results(server: Valkey) -> None:
    """Each its own keys, many times, on one store that none has used before."""
    store, barrier = open_store(server), threading.Barrier(16)

    def use(number: int) -> None:
        barrier.wait()
        for turn in range(1, 21):
            version = lead(store, f"key {number}", owner=str(number), known_version=0)
            assert store.publish(f"key {number}", fencing_token=version, content=f"{number} {turn}", ttl=50.0)
            record = store.try_acquire_lease(f"key {number}", owner="other", known_version=0, lease=1.0).record
            assert record is not None
            assert record.content == f"{number} {turn}"
            server_side = store.budget.acquire_all([Window(f"w {number}", 99, 60.0)])
            assert len(server_side.histories[f"w {number}"]) == turn
            again = lead(store, f"key {number}", owner=str(number), known_version=version, lease=0.0)
            assert store.publish(f"key {number}", fencing_token=again, content="", ttl=0.0)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(16)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_rule_17_a_forked_child_has_connections_of_its_own(server: Valkey) -> None:
    """Forked repeatedly while threads are in the middle of operations: no process gets another's response."""
    store, stop = open_store(server), threading.Event()
    survive_forks(store)
    wrong: list[object] = []

    def use(name: str, times: int = 10**9) -> None:
        for turn in range(1, times + 1):
            if stop.is_set():
                return
            result = store.budget.acquire_all([Window(name, 10**6, 60.0), Window(f"{name} too", turn, 60.0)])
            if [len(each) for each in result.histories.values()] != [turn, turn]:
                wrong.append((name, turn))

    threads = [threading.Thread(target=use, args=(f"thread {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        for child in range(10):
            pid = os.fork()
            if pid == 0:
                try:
                    use(f"child {child}", 20)
                    os._exit(bool(wrong))
                finally:
                    os._exit(2)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


EXITING = """
    import sys
    from pay88_adapters import Credentials, TokenManager
    manager = TokenManager(Credentials(*sys.argv[3:]), base_url=sys.argv[1], store=sys.argv[2])
    manager.get_token()
    """


def test_rule_16_a_process_that_exits_publishes_its_token(server: Valkey) -> None:
    """It exits as soon as it has the token: its connections stay open until the last operation has ended."""
    with Emulator() as emulator, Relay(server.port, delay=0.05) as relay:
        who = emulator.api_key, emulator.merchant_id
        store = server.url.replace(str(server.port), str(relay.port))
        subprocess.run([sys.executable, "-c", textwrap.dedent(EXITING), emulator.url, store, *who], check=True)
        with TokenManager(Credentials(*who), base_url=emulator.url, store=server.url) as manager:
            manager.get_token()
        assert emulator.journal.token_requests == 1
        assert relay.connections == 1


def test_connections_do_not_pile_up(server: Valkey) -> None:
    """Whatever is done and however it ends; when the store is gone, so are they."""
    store = open_store(server)

    asks = operations(store)
    asks.append(partial(fails, partial(store.budget.ages, Window("rubbish", 1, 1.0))))

    def connections() -> int:
        return len(server.command("CLIENT", "LIST", "TYPE", "normal").splitlines()) - 1

    before = connections()
    server.command("SET", "pay88:{budget}2:rubbish", "rubbish")
    for _ in range(20):
        do_all(asks)
    store.budget.ages(MINUTE)
    assert connections() <= before + 1
    del store, asks
    gc.collect()
    deadline = time.monotonic() + 5
    while connections() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
