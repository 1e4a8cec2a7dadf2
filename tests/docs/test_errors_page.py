"""docs/errors.md: what causes each error and what it says of a payment, also by the classes of connection errors."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import pay88_adapters
from pay88_adapters import Credentials, Pay88Error, TokenManager, testing
from pay88_adapters.testing import Emulator, Fault, ManualClock, Redirect, ResetAfterRead, Status
from support.stacks import STACKS, Httpx, Httpx2, Options, Stack, Urllib3

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
CHARGES = "/api/transactions/charges"
UNKNOWN = "unknown: look for the order"
MODULES = {"urllib3": "urllib3.exceptions", "requests": "requests.exceptions"}
every_library = pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)


def classes(stack: type[Stack]) -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """Return the classes in the row of a client library: of payments not executed, and of unknown ones."""
    library = stack.name.partition("-")[0]
    module = import_module(MODULES.get(library, library))
    table = PAGE.partition("## A payment with a connection error")[2]
    [cells] = [
        (left, right)
        for names, left, right in re.findall(r"^\| ([\w, ]+) \| (`.*) \| (`.*) \|$", table, re.MULTILINE)
        if library in names.split(", ")
    ]

    def named(cell: str) -> tuple[type[Exception], ...]:
        names = re.findall(r"`([\w.]+)`", cell)
        return tuple(asyncio.TimeoutError if "." in name else getattr(module, name) for name in names)

    return named(cells[0]), named(cells[1])


@contextmanager
def attached(stack: type[Stack], emulator: Emulator, timeout: float = 30.0, connections: int = 100) -> Iterator[Stack]:
    """Attach a client to a manager that has a token."""
    credentials = Credentials(emulator.api_key, emulator.merchant_id)
    with TokenManager(credentials, base_url=emulator.url, clock=ManualClock(auto_advance=True)) as manager:
        manager.get_token()
        with stack(manager, Options(timeout=timeout, connections=connections)) as client:
            yield client


def example(library: str) -> str:
    """Return the code that pays with a client library."""
    section = PAGE.partition("## A payment with a connection error")[2]
    [code] = re.findall(rf":::{{tab-item}} {library}\n.*?```python\n(.*?)```", section, re.DOTALL)
    return str(code)


@every_library
def test_the_code_catches_the_classes_of_the_table(stack: type[Stack]) -> None:
    """And those of the package, before the base class of the library."""
    library = stack.name.partition("-")[0]
    code = example(library)
    [caught] = re.findall(r"^NOT_EXECUTED = \((.*?)\)$", code, re.DOTALL | re.MULTILINE)
    names = re.findall(r"[\w.]+", caught)
    module = "urllib3.exceptions" if library == "urllib3" else library
    assert names == ["Pay88Error", *(f"{module}.{each.__name__}" for each in classes(stack)[0])]
    assert code.index("except NOT_EXECUTED:") < code.index("except (" if library == "aiohttp" else f"except {module}.")


@pytest.mark.parametrize("library", ["urllib3", "requests", "httpx", "httpx2", "aiohttp"])
@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (None, 200),
        (Redirect("/api/balance"), UNKNOWN),
        (Status(409), UNKNOWN),
        (Status(422), 422),
        (Status(500), UNKNOWN),
    ],
    ids=["200", "redirect", "409", "422", "500"],
)
def test_the_code_knows_the_outcome_of_a_response(
    library: str, fault: Fault | None, outcome: object, pay88_emulator: Emulator, pay88_manager: TokenManager
) -> None:
    """It is unknown after a redirect, too, which is not followed."""
    pytest.importorskip(library)
    if fault is not None:
        pay88_emulator.faults.add(fault, on=CHARGES)
    names: dict[str, Any] = {"manager": pay88_manager, "charges": pay88_emulator.url + CHARGES, "payment": {}}
    exec("\n".join(re.findall(r"^FINAL = .*$", PAGE, re.MULTILINE)), names)
    exec(example(library), names)
    assert names["outcome"] == outcome
    assert pay88_emulator.journal.calls == 1


@pytest.mark.parametrize("stack", [Urllib3, Httpx, Httpx2], ids=lambda stack: stack.name)
def test_no_free_connection(stack: type[Stack]) -> None:
    """The payment was not sent: the only connection of the client is in use."""
    options: dict[str, Any] = {"pool_timeout": 0.05}
    if stack is not Urllib3:
        options = {"timeout": import_module(stack.name).Timeout(30.0, pool=0.05)}
    with Emulator() as emulator, attached(stack, emulator, connections=1) as client, ThreadPoolExecutor(1) as pool:
        with emulator.hold(CHARGES) as held:
            first = pool.submit(client.attempt, "POST", emulator.url + CHARGES, json={})
            held.wait_for(1)
            error = client.attempt("POST", emulator.url + CHARGES, json={}, **options)
        first.result()
        assert emulator.journal.count(path=CHARGES) == 1
    assert isinstance(error, classes(stack)[0])
    assert type(error).__name__ in ("EmptyPoolError", "PoolTimeout")


@every_library
def test_no_connection(stack: type[Stack]) -> None:
    """The payment was not executed. requests alone does not show that by the class."""
    not_executed, unknown = classes(stack)
    with Emulator() as emulator, attached(stack, emulator) as client:
        emulator.stop()
        error = client.attempt("POST", emulator.url + CHARGES, json={})
    assert isinstance(error, unknown if stack.name == "requests" else not_executed)
    assert isinstance(error, not_executed) is (stack.name != "requests")


@pytest.mark.parametrize("retries", [None, 1], ids=["policy", "own"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_own_retries_of_urllib3_raise_a_max_retry_error(method: str, retries: int | None) -> None:
    """Without the package, urllib3 always does."""
    urllib3 = pytest.importorskip("urllib3")
    from pay88_adapters.urllib3 import Pay88PoolManager

    credentials = Credentials("sk_test_1", "MCH-COL-1")
    with Emulator(api_key=credentials.api_key, merchant_id=credentials.merchant_id) as emulator:
        clock = ManualClock(auto_advance=True)
        with TokenManager(credentials, base_url=emulator.url, clock=clock) as manager:
            manager.get_token()
            emulator.stop()
            with pytest.raises(urllib3.exceptions.HTTPError) as attached, Pay88PoolManager(manager) as http:
                http.request(method, f"{emulator.url}/api/echo", retries=retries)
            with pytest.raises(urllib3.exceptions.MaxRetryError) as plain, urllib3.PoolManager() as bare:
                bare.request(method, f"{emulator.url}/api/echo", retries=retries)
    cause = attached.value.reason if retries else attached.value
    assert type(plain.value.reason) is type(cause) is urllib3.exceptions.NewConnectionError


@pytest.mark.skipif(sys.platform != "linux", reason="other systems accept connections beyond the backlog")
@every_library
def test_no_connection_in_time(stack: type[Stack]) -> None:
    """The same; with a timeout for the whole request, aiohttp does not know what took long."""
    not_executed, unknown = classes(stack)
    with Emulator() as emulator, attached(stack, emulator, timeout=0.1) as client, socket.socket() as full:
        emulator.stop()
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind(("127.0.0.1", emulator.port))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.connect(full.getsockname())
        error = client.attempt("POST", emulator.url + CHARGES, json={})
        for each in waiting:
            each.close()
    assert isinstance(error, unknown if stack.name == "aiohttp" else not_executed)


@every_library
@pytest.mark.parametrize("timeout", [30.0, 0.2], ids=["lost", "late"])
def test_no_response(stack: type[Stack], timeout: float) -> None:
    """It was executed or it may be: no class says that it was not, and it is sent once."""
    not_executed, unknown = classes(stack)
    with Emulator() as emulator, attached(stack, emulator, timeout) as client:
        if timeout == 30.0:
            emulator.faults.add(ResetAfterRead(), on=CHARGES, times=None)
            error = client.attempt("POST", emulator.url + CHARGES, json={})
        else:
            with emulator.hold(CHARGES):
                error = client.attempt("POST", emulator.url + CHARGES, json={})
        assert emulator.journal.count(path=CHARGES) == 1
    assert isinstance(error, unknown)
    assert not isinstance(error, not_executed)


NAMES = {name: getattr(of, name) for of in (testing, pay88_adapters) for name in of.__all__}
CAUSES = [
    (heading, cause)
    for heading, section in re.findall(r"^## (\w+)\n(.*?)(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
    for text in re.findall(r"\*\*To test it\*\*: (.*?)\n\n", section, re.DOTALL)
    for cause in text.split(" For `retryable` `False`:")
]


def test_each_exception_has_its_cause() -> None:
    """All of the hierarchy have a section that says how to cause it."""
    [tree] = re.findall(r"^Pay88Error\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    names = re.findall(r"[├└]── (\w+)", tree)
    assert len(names) > 5
    assert list(dict.fromkeys(heading for heading, _ in CAUSES)) == names


@every_library
@pytest.mark.parametrize(("name", "cause"), CAUSES, ids=[f"{name}-{len(cause)}" for name, cause in CAUSES])
def test_the_cause_of_each_exception(
    stack: type[Stack],
    name: str,
    cause: str,
    pay88_emulator: Emulator,
    pay88_manager: TokenManager,
    pay88_clock: ManualClock,
) -> None:
    """The next payment raises it, and is not executed."""
    fixtures = {"pay88_emulator": pay88_emulator, "pay88_manager": pay88_manager, "pay88_clock": pay88_clock}
    names: dict[str, Any] = NAMES | fixtures | {"manager": pay88_manager}
    for statement in re.findall(r"`([^`]+\(.*?)`", cause):
        exec(statement, names)
    url = pay88_emulator.url + CHARGES
    with stack(names["manager"], Options()) as client:
        for _ in range(int("".join(re.findall(r"send (\d+) payments", cause)) or 0)):
            client.attempt("POST", url, json={})
        charged = pay88_emulator.journal.charged
        error = client.attempt("POST", url, json={})
    assert isinstance(error, Pay88Error)
    assert isinstance(error, getattr(pay88_adapters, name))
    assert type(error).__name__ == name
    assert pay88_emulator.journal.charged == charged


@every_library
def test_the_outcome_of_a_response(stack: type[Stack], pay88_emulator: Emulator, pay88_manager: TokenManager) -> None:
    """Each fault of the table leads to the response of its row, and no payment is executed."""
    start = r"^\| (?:a|any other response, such as) "
    rows = re.findall(start + r"(\d[\dx or,]+?)(?: response)? \| (.*?) \| (`.+`) \|$", PAGE, re.MULTILINE)
    assert [statuses for statuses, _, _ in rows] == [
        "401 or 429",
        "400, 403, 404 or 422",
        "3xx, 408, 409 or 5xx",
    ]
    with stack(pay88_manager, Options()) as client:
        for statuses, _, faults in rows:
            for fault in re.findall(r"`(.+?)`", faults):
                with pay88_emulator.faults.add(eval(fault, dict(NAMES)), times=None):
                    response = client.attempt("POST", pay88_emulator.url + CHARGES, json={})
                assert not isinstance(response, Exception)
                assert re.search(re.sub(" or |, ", "|", statuses.replace("x", r"\d")), str(response.status))
    assert pay88_emulator.journal.charged == 0
