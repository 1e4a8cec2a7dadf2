"""The code of docs/composition, run as it stands there, against a real emulator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import pay88_adapters.httpx
import pay88_adapters.requests
from pay88_adapters import Credentials, TokenManager, TokenPolicy
from pay88_adapters.testing import Emulator, Entry, Status

pytestmark = pytest.mark.deep

PAGE = (Path(__file__).parents[2] / "docs" / "composition.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^<!-- run: (\S+) -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
SECRET_FIELDS = {"authorization", "x-session-id", "x-api-key"}

Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """The service."""
    with Emulator(call_limits=()) as emulator:
        yield emulator


@pytest.fixture
def run(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return what runs a block of the page, and returns the names it leaves."""
    monkeypatch.setenv("PAY88_API_KEY", emulator.api_key)
    monkeypatch.setenv("PAY88_MERCHANT_ID", emulator.merchant_id)
    monkeypatch.setenv("PAY88_BASE_URL", emulator.url)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}

    def run(name: str) -> dict[str, Any]:
        exec(BLOCKS[name], names)
        return names

    run("start")
    return run


def calls(emulator: Emulator) -> list[Entry]:
    """Return the API calls that arrived, each of which must have brought a token."""
    entries = emulator.journal.select("call")
    assert all({"authorization", "x-session-id"} <= set(entry.headers) for entry in entries)
    return list(entries)


def test_httpx_retries_outside_makes_the_attempts(run: Run, emulator: Emulator) -> None:
    """Two failures are survived by its three attempts, and none is ours; a 401 in between costs it none."""
    pytest.importorskip("httpx_retries")
    emulator.faults.add(Status(503), on="call", times=2)
    emulator.faults.add(Status(401), on="call", times=1)
    names = run("httpx-retries")
    assert names["response"].status_code == 200
    assert names["response"].extensions["retry"].attempts_made == 2
    assert sorted(entry.status or 0 for entry in calls(emulator)) == [200, 401, 503, 503]
    assert emulator.journal.token_requests == 2


def test_httpx_retries_outside_of_our_own_multiplies(run: Run, emulator: Emulator) -> None:
    """Which is why the page says to choose one."""
    retries = pytest.importorskip("httpx_retries")
    names = run("httpx-retries")
    before = len(calls(emulator))
    emulator.faults.add(Status(503), on="call", times=None)
    policy = names["RetryPolicy"](attempts=2, backoff_base=0, backoff_cap=0)
    manager = TokenManager.from_env(retry=policy)
    transport = retries.RetryTransport(names["Pay88Transport"](manager), retry=retries.Retry(total=2))
    with names["httpx"].Client(transport=transport) as client:
        assert client.get(f"{emulator.url}/api/echo").status_code == 503
    assert len(calls(emulator)) - before == 2 * 3


@pytest.mark.parametrize("attached", [True, False])
def test_httpx_retries_inside_shares_a_token(run: Run, emulator: Emulator, attached: bool) -> None:
    """Its attempts carry the same token; a payment and a token request pass it once."""
    retries = pytest.importorskip("httpx_retries")
    names = run("httpx-retries")
    httpx, before = names["httpx"], len(calls(emulator))
    emulator.faults.add(Status(503), on="call", times=2)
    manager = TokenManager.from_env(retry=names["RetryPolicy"].none(), policy=TokenPolicy(fetch_attempts=1))
    inside = retries.RetryTransport(retry=retries.Retry(total=2))
    if attached:
        client = pay88_adapters.httpx.attach(httpx.Client(transport=inside), manager)
    else:
        client = httpx.Client(transport=names["Pay88Transport"](manager, inside))
    with client:
        assert client.get(f"{emulator.url}/api/echo").status_code == 200
        assert len({entry.headers["authorization"] for entry in calls(emulator)[before:]}) == 1
        assert len(calls(emulator)) - before == 3
        emulator.faults.add(Status(503), on="call", times=2)
        assert client.post(f"{emulator.url}/api/echo").status_code == 503
        assert len(calls(emulator)) - before == 4
        manager.invalidate(manager.get_token())
        requested = emulator.journal.token_requests
        emulator.faults.add(Status(503), on="token", times=None)
        with pytest.raises(httpx.TransportError):
            client.post(f"{emulator.url}/api/echo")
        assert emulator.journal.token_requests - requested == 1


def test_aiohttp_retry_makes_the_attempts(run: Run, emulator: Emulator) -> None:
    """The GET succeeds after two failures; a request without retries is sent once."""
    pytest.importorskip("aiohttp_retry")
    emulator.faults.add(Status(503), on="call", times=2)
    assert run("aiohttp-retry")["statuses"] == (200, 200)
    assert [(entry.method, entry.status) for entry in calls(emulator)] == [
        ("GET", 503), ("GET", 503), ("GET", 200), ("POST", 200),
    ]  # fmt: skip
    assert emulator.journal.token_requests == 1
    emulator.faults.add(Status(503), on="call", times=None)
    assert run("aiohttp-retry")["statuses"] == (503, 503)
    assert [entry.method for entry in calls(emulator)[4:]] == ["GET", "GET", "GET", "POST"]


def test_hishel_outside_sees_no_token(run: Run, emulator: Emulator, tmp_path: Path) -> None:
    """What is stored is served to the merchant whose it is, and none of it is secret."""
    pytest.importorskip("hishel")
    assert run("hishel")["response"].status_code == 200
    assert len(calls(emulator)) == 2
    assert stored(tmp_path)
    assert not any(secret.encode() in stored(tmp_path) for secret in emulator.service.secrets())


def test_hishel_outside_does_not_see_merchants(run: Run, emulator: Emulator) -> None:
    """Which is why the page says to give each a key of its own."""
    pytest.importorskip("hishel")
    names = run("hishel")
    before, credentials = len(calls(emulator)), Credentials("sk_test_other", "MCH-OTHER")
    emulator.service.accept_credentials(credentials.api_key, credentials.merchant_id)
    other = TokenManager(credentials, base_url=emulator.url)
    with names["httpx"].Client(transport=names["CacheTransport"](names["Pay88Transport"](names["manager"]))) as client:
        for extensions, arrived in (({}, 1), ({"caching": {"key": "other"}}, 2)):
            for manager in (names["manager"], other):
                with manager.activated():
                    mine = extensions if manager is other else {}
                    assert client.get(f"{emulator.url}/api/echo", extensions=mine).status_code == 200
            assert len(calls(emulator)) - before == arrived


def test_hishel_inside_stores_tokens(run: Run, emulator: Emulator, tmp_path: Path) -> None:
    """Which is why the page says never to do that."""
    hishel = pytest.importorskip("hishel")
    names = run("hishel")
    storage = hishel.SqliteStorage(database_path=tmp_path / "cache.db")
    transport = names["CacheTransport"](names["httpx"].HTTPTransport(), storage=storage)
    with names["httpx"].Client(transport=names["Pay88Transport"](names["manager"], transport)) as client:
        assert client.get(f"{emulator.url}/api/echo?other").status_code == 200
    assert any(secret.encode() in stored(tmp_path) for secret in emulator.service.secrets())


def stored(directory: Path) -> bytes:
    """Return all that a cache wrote."""
    return b"".join(path.read_bytes() for path in directory.rglob("cache.db*"))


def test_hishels_adapter_for_requests_stays_outside(run: Run, emulator: Emulator, tmp_path: Path) -> None:
    """It caches above the pools, where there is no token."""
    hishel = pytest.importorskip("hishel")
    adapter = pytest.importorskip("hishel.requests").CacheAdapter(
        storage=hishel.SqliteStorage(database_path=tmp_path / "cache.db")
    )
    names = run("start")
    with requests.Session() as session:
        session.mount("http://", adapter)
        pay88_adapters.requests.attach(session, names["manager"])
        for _ in range(2):
            assert session.get(f"{emulator.url}/api/echo").status_code == 200
    assert len(calls(emulator)) == 1
    assert stored(tmp_path)
    assert not any(secret.encode() in stored(tmp_path) for secret in emulator.service.secrets())


def test_aiohttps_middlewares_see_what_is_theirs(run: Run, emulator: Emulator) -> None:
    """The outer one sees one call and no token, the inner one each attempt, and neither sees one afterwards."""
    emulator.faults.add(Status(401), on="call", times=1)
    names = run("aiohttp")
    assert names["status"] == 200
    assert names["log"] == [("inner", 401, True), ("inner", 200, True), ("outer", 200, False)]
    assert emulator.journal.token_requests == 2


def test_requests_toolbelt_keeps_its_settings(run: Run, emulator: Emulator) -> None:
    """Encoders stream, adapters bind their address, and a form that cannot be rewound is sent once."""
    pytest.importorskip("requests_toolbelt")
    names = run("requests-toolbelt")
    assert (names["streamed"].status_code, names["whole"].status_code) == (200, 200)
    assert [entry.body.count(b"text/plain") for entry in calls(emulator)] == [1, 1]
    emulator.service.refuse_current_tokens()
    names = run("requests-toolbelt")
    assert (names["streamed"].status_code, names["whole"].status_code) == (401, 200)


def test_requests_toolbelts_adapter_keeps_its_source_address(run: Run, emulator: Emulator) -> None:
    """A request uses the configured source address, and so does the token request."""
    adapters = pytest.importorskip("requests_toolbelt.adapters.source")
    names = run("requests-toolbelt")
    names["manager"].invalidate(names["manager"].get_token())
    before = len(emulator.journal)
    with names["BaseUrlSession"](emulator.url) as session:
        session.mount("http://", adapters.SourceAddressAdapter(("127.0.0.3", 0)))
        assert names["attach"](session, names["manager"]).post("/api/echo").status_code == 200
    assert [(entry.kind, entry.peer[0]) for entry in list(emulator.journal)[before:]] == [
        ("token", "127.0.0.3"), ("call", "127.0.0.3"),
    ]  # fmt: skip


def test_every_block_of_the_page_is_run() -> None:
    """No code on the page but what these tests run."""
    assert len(re.findall(r"^```python$", PAGE, re.MULTILINE)) == len(BLOCKS) == 6
