"""The recipes of docs/deployment, run as they stand there, against a real emulator."""

from __future__ import annotations

import http.client
import os
import queue
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis

from pay88_adapters import TokenManager
from pay88_adapters.clock import Clock
from pay88_adapters.stores import open_store
from pay88_adapters.testing import Emulator, Entry, Latency, ManualClock, ResetAfterRead, Status, TooMany
from pay88_adapters.urllib3 import Pay88PoolManager
from support.servers import Valkey, free_port

DOCS = Path(__file__).parents[2] / "docs" / "deployment"
WORKERS = 4
DEADLINE = 45.0
"""Seconds for what takes a few, where nothing else is to be done."""

posix = pytest.mark.skipif(os.name != "posix", reason="no such servers here")


def page(name: str) -> str:
    """Return a page's text."""
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def commands(name: str) -> list[str]:
    """Return the commands of a page, in order."""
    return [text.strip() for text in re.findall(r"^```sh\n(.*?)^```$", page(name), re.DOTALL | re.MULTILINE)]


class Host:
    """A machine with a directory of the service's own, the page's files in it, and an environment.

    Args:
        directory: For the files, the logs and the store.
        emulator: The service.
        name: The page.
        environment: Besides the credentials and the address.
    """

    def __init__(self, directory: Path, emulator: Emulator, name: str, **environment: str) -> None:
        self._directory, self._log = directory, directory / "log"
        files = re.findall(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", page(name), re.DOTALL | re.MULTILINE)
        for file, text in files:
            (directory / file).write_text(text, encoding="utf-8")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PAY88_")}
        self._environment = inherited | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PAY88_API_KEY": emulator.api_key,
            "PAY88_MERCHANT_ID": emulator.merchant_id,
            "PAY88_BASE_URL": emulator.url,
            **environment,
        }

    @contextmanager
    def running(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """Start a command; in the end send it a signal, and check that it stops without an error."""
        with self._log.open("a") as log:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=self._directory,
                env=self._environment,
                stdout=subprocess.PIPE if command.startswith("python ") else log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        try:
            yield process
            if process.stdout is None:
                process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) in (0, -signal.SIGTERM), self.log
        except BaseException:
            print(self.log)  # noqa: T201 - shown where the test fails
            raise
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    @property
    def log(self) -> str:
        """What was said so far."""
        return self._log.read_text(encoding="utf-8")


Outcome = tuple[int, int]
"""The process, and 88Pay's status code."""


def parse(line: str) -> Outcome:
    """Read what every recipe says of one call."""
    worker, status = line.split()
    return int(worker), int(status)


class Load:
    """Calls all the time.

    Args:
        responses: Yields what became of them. Each of the *threads* runs it.
    """

    def __init__(self, responses: Callable[[Load], Iterator[Outcome]], threads: int = 1) -> None:
        self.ends = threading.Event()
        self._responds, self._threads = responses, threads
        self._said: queue.Queue[Outcome] = queue.Queue()

    @contextmanager
    def applied(self) -> Iterator[Load]:
        """Apply it; at the end, see that no thread failed and that no call did."""
        with ThreadPoolExecutor(self._threads) as pool:
            jobs = [pool.submit(self._run) for _ in range(self._threads)]
            try:
                yield self
            finally:
                self.ends.set()
            for job in jobs:
                job.result()
        self.responding_workers()

    def _run(self) -> None:
        for response in self._responds(self):
            self._said.put(response)

    def responding_workers(self) -> set[int]:
        """Return the workers that have responded since the last call; every response was a 200."""
        received = [self._said.get() for _ in range(self._said.qsize())]
        assert {status for _, status in received} <= {200}
        return {worker for worker, _ in received}

    def receive_all(self) -> None:
        """Wait until every worker has responded."""
        received: set[int] = self.responding_workers()
        deadline = time.monotonic() + DEADLINE
        while len(received) < WORKERS:
            assert time.monotonic() < deadline, f"only {len(received)} workers responded"
            time.sleep(0.02)
            received |= self.responding_workers()
        assert len(received) == WORKERS


def requests_to(port: int) -> Load:
    """Return what browsers do: each call over a connection of its own, so that any worker may take it."""

    def responses(load: Load) -> Iterator[Outcome]:
        while not load.ends.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                connection.request("GET", "/")
                yield parse(connection.getresponse().read().decode())
            finally:
                connection.close()

    return Load(responses, threads=2 * WORKERS)


def lines_of(process: subprocess.Popen[str]) -> Load:
    """Return what a script does: it says so, line by line."""

    def responses(load: Load) -> Iterator[Outcome]:
        assert process.stdout is not None
        yield from map(parse, process.stdout)

    return Load(responses)


def wait_for_port(process: subprocess.Popen[str], port: int) -> None:
    """Wait until a caller listens."""
    deadline = time.monotonic() + DEADLINE
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            return connection.connect()
        except ConnectionRefusedError:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it never listened"
            time.sleep(0.02)
        finally:
            connection.close()


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """The service, a little slow, so that the workers share the calls."""
    yield from slow_emulator(0.1)


@pytest.fixture
def slower() -> Iterator[Emulator]:
    """The service, so slow that the few calls of a script last longer than a token."""
    yield from slow_emulator(0.6)


def slow_emulator(latency: float) -> Iterator[Emulator]:
    """Yield an emulator whose responses to calls take this many seconds."""
    with Emulator(call_limits=()) as emulator:
        emulator.faults.add(Latency(latency), on="call", times=None)
        yield emulator


@pytest.fixture
def store() -> Iterator[str]:
    """A file in a directory of the service's own: in memory where that is possible, since disks may be busy."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield f"sqlite:///{directory}/pay88.db"


LIFETIME = 4.0
REFRESHED_AFTER = 1.5  # half of the lifetime, less a quarter of that: rules 1 and 2


def needs_no_more_than_one(tokens: list[Entry]) -> bool:
    """Whether one process that is always busy would have sent as many token requests in the time."""
    late = REFRESHED_AFTER / 2  # the first one may have taken so long to arrive
    return tokens[-1].at - tokens[0].at + late >= REFRESHED_AFTER * (len(tokens) - 1)


def share_one_token(emulator: Emulator, load: Load) -> None:
    """Check that the workers start cold, lose their token at the same time, and refresh it, as one process would."""
    journal = emulator.journal
    cold = emulator.hold("call")
    with load.applied(), cold:
        cold.wait_for(WORKERS, timeout=DEADLINE)
        cold.release()
        load.receive_all()
        assert journal.token_requests == 1

        emulator.service.lifetime = LIFETIME
        emulator.service.refuse_current_tokens()
        journal.wait_for(1, "token", since=journal.mark(), timeout=DEADLINE)
        load.responding_workers()
        journal.wait_for(2, "token", since=journal.mark(), timeout=DEADLINE)
        load.receive_all()
        emulator.faults.clear()
    assert needs_no_more_than_one(journal.select("token")[1:])


def logged_no_problem(host: Host, emulator: Emulator) -> None:
    """See that the log holds no traceback, and no secret."""
    assert "Traceback" not in host.log
    assert not [secret for secret in emulator.service.secrets() if secret in host.log]


@pytest.mark.deep
@posix
@pytest.mark.parametrize("command", commands("gunicorn"))
def test_rule_04_gunicorn(command: str, tmp_path: Path, emulator: Emulator, store: str) -> None:
    """Four sync workers, loaded apart or before the fork."""
    port = free_port()
    host = Host(tmp_path, emulator, "gunicorn", PAY88_STORE=store, PORT=str(port))
    with host.running(command) as process:
        wait_for_port(process, port)
        share_one_token(emulator, requests_to(port))
    logged_no_problem(host, emulator)


@pytest.mark.deep
@posix
def test_rule_17_a_token_fetched_before_the_fork_is_shared(tmp_path: Path, emulator: Emulator) -> None:
    """With preload and Redis, the parent requests a token; the workers use it, over connections of their own."""
    port = free_port()
    with Valkey(tmp_path) as server:
        host = Host(tmp_path, emulator, "gunicorn", PAY88_STORE=server.url, PORT=str(port))
        with (tmp_path / "app.py").open("a", encoding="utf-8") as app:
            app.write("\nmanager.get_token()\n")
        with host.running(commands("gunicorn")[1]) as process:
            wait_for_port(process, port)
            share_one_token(emulator, requests_to(port))
    logged_no_problem(host, emulator)


@pytest.mark.deep
@posix
def test_rule_04_memory_is_per_process_as_the_page_says(tmp_path: Path, emulator: Emulator) -> None:
    """Without a store, four workers send four token requests to start with."""
    port = free_port()
    host = Host(tmp_path, emulator, "gunicorn", PORT=str(port))
    load = requests_to(port)
    with host.running(commands("gunicorn")[0]) as process:
        wait_for_port(process, port)
        cold = emulator.hold("call")
        with load.applied(), cold:
            cold.wait_for(WORKERS, timeout=DEADLINE)
            assert emulator.journal.token_requests == WORKERS


@pytest.mark.deep
@posix
def test_rule_04_uvicorn(tmp_path: Path, emulator: Emulator, store: str) -> None:
    """Four workers, each with an event loop."""
    port = free_port()
    host = Host(tmp_path, emulator, "uvicorn", PAY88_STORE=store, PORT=str(port))
    [command] = commands("uvicorn")
    with host.running(command) as process:
        wait_for_port(process, port)
        share_one_token(emulator, requests_to(port))
    logged_no_problem(host, emulator)


@pytest.mark.deep
@posix
@pytest.mark.parametrize("command", commands("multiprocessing"))
def test_rule_04_multiprocessing(command: str, tmp_path: Path, slower: Emulator, store: str) -> None:
    """A pool of four processes, forked or spawned, which give their shares back."""
    host = Host(tmp_path, slower, "multiprocessing", PAY88_STORE=store)
    with host.running(command) as process:
        share_one_token(slower, lines_of(process))
    assert host.log == ""
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as db:
        assert db.execute("SELECT * FROM members").fetchall() == [], "a process has kept its share"


@pytest.mark.deep
@posix
def test_rule_04_celery(tmp_path: Path, slower: Emulator) -> None:
    """A prefork pool of four, with Redis for both the queue and the store: in the end it gives its shares back."""
    worker, ask = commands("celery")
    with ExitStack() as stack:
        server = stack.enter_context(Valkey(tmp_path))
        broker, store = f"{server.url}/0", f"{server.url}/1"
        host = Host(
            tmp_path, slower, "celery", PAY88_STORE=store, CELERY_BROKER_URL=broker, CELERY_RESULT_BACKEND=broker
        )
        with host.running(worker), host.running(ask) as process:
            share_one_token(slower, lines_of(process))
        with redis.Redis.from_url(store) as client:
            assert not client.exists("pay88:{record}members"), "a process has kept its share"
    logged_no_problem(host, slower)


class Orders(dict[str, int | None]):
    """The table that the page leaves to its reader: the status of each order, None before the response."""

    def insert(self, order: str) -> bool:
        """Add a record; return whether there was none."""
        return order not in self and self.setdefault(order) is None

    def delete(self, order: str) -> None:
        """Delete a record."""
        del self[order]

    def update(self, order: str, status: int, data: bytes) -> None:  # type: ignore[override]
        """Record the response."""
        self[order] = status


Charge = tuple[Callable[[], Any], Orders]


@pytest.fixture
def charge(pay88_manager: TokenManager, pay88_clock: ManualClock) -> Iterator[Charge]:
    """The task of the page, which runs where it is sent and always pays the same order, and its table."""
    celery = pytest.importorskip("celery")

    class Task(celery.Task):  # type: ignore[misc, name-defined]
        def retry(self, *, countdown: float, **options: Any) -> Exception:
            pay88_clock.advance(countdown)
            error: Exception = super().retry(countdown=countdown, **options)
            return error

    app = celery.Celery("tasks", set_as_current=False, task_cls=Task)
    app.conf.update(task_always_eager=True)
    [fragment] = re.findall(r"^<!-- not run: [^\n]+\n```python\n(.*?)^```$", page("celery"), re.DOTALL | re.MULTILINE)
    with Pay88PoolManager(pay88_manager) as http:
        url = f"{pay88_manager.base_url}/api/transactions/charges"
        names: dict[str, Any] = {"app": app, "http": http, "charges_url": url, "orders": Orders()}
        exec(fragment, names)
        yield lambda: names["charge"].delay("1001", {"amount": 1}), names["orders"]


def test_a_task_that_was_not_executed_is_retried(charge: Charge, pay88_emulator: Emulator) -> None:
    """Its record does not prevent that; one that was delivered twice is skipped, and pays once."""
    pay, orders = charge
    pay88_emulator.faults.add(TooMany(600), on="token", times=5)
    assert pay().successful()
    assert pay().successful()
    assert orders == {"1001": 200}
    assert (pay88_emulator.journal.token_requests, pay88_emulator.journal.charged) == (6, 1)


@pytest.mark.parametrize("status", [401, 429])
def test_a_task_that_was_rejected_for_a_time_is_retried(charge: Charge, pay88_emulator: Emulator, status: int) -> None:
    """After the retries, or the replay, of the package."""
    pay, orders = charge
    pay88_emulator.faults.add(Status(status), on="call", times=3 if status == 429 else 2)
    assert pay().successful()
    assert orders == {"1001": 200}
    assert pay88_emulator.journal.charged == 1


def test_a_task_that_may_have_been_executed_is_not_retried(charge: Charge, pay88_emulator: Emulator) -> None:
    """Its record stays, without a status, and prevents a second payment."""
    pay, orders = charge
    pay88_emulator.faults.add(ResetAfterRead(), on="call")
    assert pay().failed()
    assert pay().successful()
    assert orders == {"1001": None}
    assert pay88_emulator.journal.charged == 1


def test_a_task_that_cannot_succeed_leaves_no_record(charge: Charge, pay88_emulator: Emulator) -> None:
    """It fails without a retry, and a later task may send the payment."""
    pay, orders = charge
    pay88_emulator.faults.add(Status(401), on="token")
    assert pay().failed()
    assert orders == {}
    assert (pay88_emulator.journal.token_requests, pay88_emulator.journal.charged) == (1, 0)


def stores_named() -> list[str]:
    """Return every store that a page names."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))
    return sorted(set(re.findall(r"^PAY88_STORE=(\S+)$", pages, re.MULTILINE)))


@pytest.mark.parametrize("url", stores_named())
def test_every_store_that_a_page_names_is_one(url: str, tmp_path: Path) -> None:
    """The forms in the pages are understood; the directory is another here."""
    open_store(url.replace("/var/lib/shop", str(tmp_path)), Clock())


def test_the_code_of_the_page_about_stores_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it goes without a service."""
    monkeypatch.setenv("PAY88_API_KEY", "sk_test_key")
    monkeypatch.setenv("PAY88_MERCHANT_ID", "MCH-COL-1")
    monkeypatch.setenv("PAY88_STORE", f"sqlite:///{tmp_path}/pay88.db")
    blocks = re.findall(r"^```python\n(.*?)^```$", page("index"), re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(block, {})
    assert blocks
