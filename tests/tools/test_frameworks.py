"""The recipes of docs/tools for web frameworks, task queues and notebooks, run as they stand there."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import requests
from recipes import Folder, blocks, text_of, unmarked, until

from pay88_adapters import TokenBudgetExhausted
from pay88_adapters.requests import TokenBudgetExhausted as FromRequests
from pay88_adapters.testing import Emulator
from support.servers import Valkey, free_port

WEB, QUEUES, NOTEBOOKS = "tools/web", "tools/queues", "tools/notebooks"
REQUESTS = 8
"""Concurrently, so that each worker gets some."""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no such servers here")

Check = Callable[[str | Path], None]
SERVED = [
    pytest.param(block.about.split(), block.text.strip(), id=block.text.strip()) for block in blocks(WEB, "serve")
]
WORKING = [pytest.param(block.about, block.text.strip(), id=block.text.strip()) for block in blocks(QUEUES, "work")]


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A file in a directory of the service's own."""
    (tmp_path / "store").mkdir()
    return f"sqlite:///{tmp_path}/store/pay88.db"


@pytest.fixture
def no_store() -> str:
    """A store that is down."""
    return f"redis://127.0.0.1:{free_port()}"


def get(url: str) -> tuple[int, Any]:
    """Return the status code and the document."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


def serves(url: str) -> bool:
    """Whether a server listens; nothing of ours is at this path."""
    try:
        get(f"{url}/nothing")
    except OSError:
        return False
    return True


def reloaded(url: str) -> bool:
    """Whether the new code responds; between the two processes, nothing does."""
    try:
        return "new" in (get(url)[1] or {})
    except (OSError, http.client.HTTPException):
        return False


def outage_was_logged(folder: Folder) -> bool:
    """Whether the log contains the warning about the store."""
    return any("WARNING" in line and "pay88_adapters.store" in line for line in folder.log.splitlines())


@pytest.mark.parametrize(("paths", "command"), SERVED)
def test_a_server(
    paths: list[str], command: str, emulator: Emulator, store: str, tmp_path: Path, no_secret: Check
) -> None:
    """All workers, all views: one token request, and a clean log."""
    folder = Folder(tmp_path, WEB, {**emulator.environ, "PAY88_STORE": store})
    url = f"http://127.0.0.1:{folder.port}"
    with folder.running(command):
        until(lambda: serves(url), "it never listened")
        with ThreadPoolExecutor(REQUESTS) as pool:
            for path in paths:
                found = list(pool.map(get, [url + path] * REQUESTS))
                assert [(status, document["data"]["balance"]) for status, document in found] == [
                    (200, 100_000)
                ] * REQUESTS
    assert emulator.journal.token_requests == 1
    assert "Traceback" not in folder.log
    no_secret(folder.log)


@pytest.mark.parametrize(("paths", "command"), SERVED)
def test_a_server_whose_store_is_down(
    paths: list[str], command: str, emulator: Emulator, no_store: str, tmp_path: Path
) -> None:
    """It continues, and its log has the warning."""
    folder = Folder(tmp_path, WEB, {**emulator.environ, "PAY88_STORE": no_store})
    url = f"http://127.0.0.1:{folder.port}"
    with folder.running(command):
        until(lambda: serves(url), "it never listened")
        assert [get(url + path)[0] for path in paths] == [200] * len(paths)
        until(lambda: outage_was_logged(folder), "no warning")


def test_a_reload_needs_no_token_request(emulator: Emulator, store: str, tmp_path: Path) -> None:
    """The new process takes the token from the store."""
    folder = Folder(tmp_path, WEB, {**emulator.environ, "PAY88_STORE": store})
    url = f"http://127.0.0.1:{folder.port}"
    [command] = [block.text for block in blocks(WEB, "serve") if "runserver" in block.text]
    views = tmp_path / "shop" / "views.py"
    with folder.running(command):
        until(lambda: serves(url), "it never listened")
        assert get(f"{url}/balance")[0] == 200
        views.write_text(views.read_text().replace("JsonResponse(response", 'JsonResponse({"new": True} | response'))
        touched = time.monotonic()

        def seen() -> bool:
            # A change before the first check of the watcher goes unnoticed.
            nonlocal touched
            if time.monotonic() > touched + 5:
                touched = time.monotonic()
                views.touch()
            return reloaded(f"{url}/balance")

        until(seen, "it never reloaded")
    assert emulator.journal.token_requests == 1


def test_an_error_becomes_a_503(emulator: Emulator, store: str, tmp_path: Path) -> None:
    """With a ``Retry-After``, if there is one."""
    environment = {**emulator.environ, "PAY88_API_KEY": "sk_test_wrong", "PAY88_STORE": store}
    folder = Folder(tmp_path, WEB, environment)
    [command] = [block.text for block in blocks(WEB, "serve") if "fastapi_app" in block.text]
    with folder.running(command):
        until(lambda: serves(f"http://127.0.0.1:{folder.port}"), "it never listened")
        response = requests.get(f"http://127.0.0.1:{folder.port}/balance", timeout=30)
    assert response.status_code == 503
    assert 0 < int(response.headers["Retry-After"]) <= 30


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A queue."""
    (tmp_path / "broker").mkdir()
    with Valkey(tmp_path / "broker") as server:
        yield server.url


def work(folder: Folder, tool: str) -> None:
    """See the workers do some tasks."""
    if tool == "celery":
        code = "from tasks import balance\nfor each in [balance.delay() for _ in range(8)]: print(each.get(timeout=40))"
        assert folder.python(code).split() == ["200"] * 8
    else:
        folder.python("from actors import charge\nfor order in range(8): charge.send(order, 100)")


@pytest.mark.parametrize(("tool", "command"), WORKING)
def test_a_queue(tool: str, command: str, emulator: Emulator, broker: str, tmp_path: Path, no_secret: Check) -> None:
    """All workers: one token request, and a clean log."""
    environment = {**emulator.environ, "BROKER_URL": f"{broker}/0", "PAY88_STORE": f"{broker}/1"}
    folder = Folder(tmp_path, QUEUES, environment)
    with folder.running(command):
        work(folder, tool)
        emulator.journal.wait_for(8, "call", timeout=40)
        until(lambda: folder.log, "nothing was logged")  # Dramatiq writes with a delay
    assert emulator.journal.token_requests == 1
    assert "Traceback" not in folder.log
    no_secret(folder.log)


@pytest.mark.parametrize(("tool", "command"), WORKING)
def test_a_queue_whose_store_is_down(
    tool: str, command: str, emulator: Emulator, broker: str, no_store: str, tmp_path: Path
) -> None:
    """The tasks are done, and the log has the warning."""
    environment = {**emulator.environ, "BROKER_URL": f"{broker}/0", "PAY88_STORE": no_store}
    folder = Folder(tmp_path, QUEUES, environment)
    with folder.running(command):
        work(folder, tool)
        until(lambda: outage_was_logged(folder), "no warning")


def test_a_task_is_retried_if_88pay_has_not_executed_it(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pay88_isolated: None
) -> None:
    """And in no other case."""
    for name, value in emulator.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BROKER_URL", "redis://127.0.0.1:1/0")
    names: dict[str, Any] = {}
    [block] = [block for block in blocks(QUEUES, "file") if block.about == "actors.py"]
    exec(block.text, names)
    not_executed, exhausted = names["not_executed"], FromRequests("exhausted", retryable=True)
    assert isinstance(exhausted, TokenBudgetExhausted)
    assert not_executed(0, exhausted)
    assert not not_executed(5, exhausted)
    assert not not_executed(0, requests.ConnectionError())
    assert not not_executed(0, requests.HTTPError())
    assert names["charge"].options["retry_when"] is not_executed
    names["payments"].close()
    names["broker"].close()


def test_a_notebook(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_secret: Check) -> None:
    """In a kernel, whose event loop runs; the first cell twice."""
    nbformat, nbclient = import_module("nbformat"), import_module("nbclient")
    for name, value in emulator.environ.items():
        monkeypatch.setenv(name, value)
    first, second = (block.text for block in blocks(NOTEBOOKS, "cell"))
    last = "print(repr(manager), repr(payments))\nmanager.get_token().headers()"
    cells = [nbformat.v4.new_code_cell(text) for text in (first, first, second, last)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in cells[:3]:
        [output] = cell.outputs
        assert "'balance': 100000" in output["data"]["text/plain"]
    assert emulator.journal.token_requests == 1
    no_secret(nbformat.writes(notebook))


def test_a_notebook_whose_store_is_down(emulator: Emulator, no_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning is among the outputs of the cell."""
    nbformat, nbclient = import_module("nbformat"), import_module("nbclient")
    for name, value in {**emulator.environ, "PAY88_STORE": no_store}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(blocks(NOTEBOOKS, "cell")[0].text)])
    nbclient.NotebookClient(notebook, timeout=60).execute()
    streams = [output["text"] for output in notebook.cells[0].outputs if output["output_type"] == "stream"]
    assert "WARNING pay88_adapters.store" in "".join(streams)


def test_streamlit(emulator: Emulator, tmp_path: Path) -> None:
    """Several reruns and sessions need one token request."""
    folder = Folder(tmp_path, NOTEBOOKS, emulator.environ)
    code = """
from streamlit.testing.v1 import AppTest
for _ in range(2):
    app = AppTest.from_file("streamlit_app.py", default_timeout=30).run()
    for _ in range(3):
        app.button[0].click().run()
        assert not app.exception, app.exception
        print(app.metric[0].value)
"""
    assert folder.python(code).split() == ["100000"] * 6
    assert emulator.journal.calls == 8
    assert emulator.journal.token_requests == 1


@pytest.mark.parametrize("page", [WEB, QUEUES, NOTEBOOKS])
def test_no_block_is_left_out(page: str) -> None:
    """Each is a file, or is run."""
    assert text_of(page)
    assert unmarked(page) == 0
