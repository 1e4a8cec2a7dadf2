"""Tokens without an adapter in play: over a client that the manager was given, or over one of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import trio
import urllib3

import pay88_adapters.aiohttp
import pay88_adapters.httpx
import pay88_adapters.httpx2
import pay88_adapters.requests
import pay88_adapters.urllib3
from pay88_adapters import (
    ActivatedManager,
    ConfigurationError,
    Credentials,
    TokenEndpointUnavailable,
    TokenManager,
    TokenPolicy,
)
from pay88_adapters.testing import Emulator, Latency, Redirect
from support.proxies import Proxy

MINE = {"X-Mine": "1", "Authorization": "Bearer mine", "Cookie": "mine=1"}


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """The service."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """One to go through."""
    with Proxy() as proxy:
        yield proxy


def session(proxy: str | None) -> requests.Session:
    """Return one with a proxy, which its users give it after it is made."""
    made = requests.Session()
    made.headers.update(MINE)
    made.auth = ("me", "secret")
    made.trust_env = False
    if proxy:
        made.proxies = {"http": proxy}
    return made


def pools(proxy: str | None) -> urllib3.PoolManager:
    """Return pools that go through a proxy, or do not."""
    return urllib3.ProxyManager(proxy, headers=MINE) if proxy else urllib3.PoolManager(headers=MINE)


def attached(module: Any, client: Any) -> Any:
    """Return a client that already has a manager: another one."""
    return module.attach(client, ActivatedManager())


SYNC: dict[str, Callable[[str | None], Any]] = {
    "urllib3": pools,
    "urllib3, attached": lambda proxy: attached(pay88_adapters.urllib3, pools(proxy)),
    "requests": session,
    "requests, attached": lambda proxy: attached(pay88_adapters.requests, session(proxy)),
    "httpx": lambda proxy: httpx.Client(proxy=proxy, headers=MINE, trust_env=False),
    "httpx, attached": lambda proxy: attached(pay88_adapters.httpx, httpx.Client(proxy=proxy, trust_env=False)),
    "httpx2": lambda proxy: httpx2.Client(proxy=proxy, headers=MINE, trust_env=False),
}
ASYNC: dict[str, Callable[[str | None], Any]] = {
    "httpx": lambda proxy: httpx.AsyncClient(proxy=proxy, headers=MINE, trust_env=False),
    "httpx, attached": lambda proxy: attached(pay88_adapters.httpx, httpx.AsyncClient(proxy=proxy, trust_env=False)),
    "httpx2": lambda proxy: httpx2.AsyncClient(proxy=proxy, headers=MINE, trust_env=False),
    "aiohttp": lambda proxy: aiohttp.ClientSession(proxy=proxy, headers=MINE),
    "aiohttp, attached": lambda proxy: attached(pay88_adapters.aiohttp, aiohttp.ClientSession(proxy=proxy)),
}
ON_TRIO = [name for name in ASYNC if not name.startswith("aiohttp")]


def manager_over(client: Any, emulator: Emulator, **options: Any) -> TokenManager:
    """Return a manager that was given *client*."""
    credentials = Credentials(emulator.api_key, emulator.merchant_id)
    return TokenManager(credentials, base_url=emulator.url, client=client, clock=emulator.clock, **options)


def close(client: Any) -> None:
    """Close a sync client, by whichever name that has."""
    (client.clear if isinstance(client, urllib3.PoolManager) else client.close)()


async def aclose(client: Any) -> None:
    """Close a client of any kind."""
    if isinstance(client, (httpx.AsyncClient, httpx2.AsyncClient)):
        await client.aclose()
    elif isinstance(client, aiohttp.ClientSession):
        await client.close()
    else:
        close(client)


def check_token_requests(emulator: Emulator, proxy: Proxy | None, count: int) -> None:
    """Insist that so many arrived, with nothing of the caller's, through the proxy if there is one."""
    arrived = emulator.journal.select("token")
    assert len(arrived) == emulator.service.issued == count
    for entry in arrived:
        assert not {"x-mine", "authorization", "cookie"} & set(entry.headers)
        assert entry.headers["x-merchant-id"] == emulator.merchant_id
    if proxy is not None:
        assert proxy.requested == [f"POST {emulator.url}/api/auth/token"] * count or (
            proxy.requested == [f"CONNECT {emulator.url.removeprefix('http://')}"] * count
        )


@pytest.mark.parametrize("through", [False, True], ids=["direct", "proxy"])
@pytest.mark.parametrize("name", SYNC)
def test_a_sync_client_sends_the_token_requests(emulator: Emulator, proxy: Proxy, name: str, through: bool) -> None:
    """Of threads and of tasks; it stays open when the manager is closed."""
    client = SYNC[name](proxy.url if through else None)
    with manager_over(client, emulator) as manager:
        manager.invalidate(manager.get_token())
        manager.invalidate(asyncio.run(manager.aget_token()))
        manager.get_token()
    check_token_requests(emulator, proxy if through else None, 3)
    assert not getattr(client, "is_closed", False)
    with manager_over(client, emulator) as another:
        another.invalidate(another.get_token())
        another.get_token()
    close(client)


@pytest.mark.parametrize("through", [False, True], ids=["direct", "proxy"])
@pytest.mark.parametrize("name", ASYNC)
def test_an_async_client_sends_the_token_requests(emulator: Emulator, proxy: Proxy, name: str, through: bool) -> None:
    """On its event loop; it stays open when the manager is closed."""

    async def main() -> None:
        async with ASYNC[name](proxy.url if through else None) as client:
            async with manager_over(client, emulator) as manager:
                manager.invalidate(await manager.aget_token())
                assert await asyncio.gather(*[manager.aget_token() for _ in range(20)])
            assert not getattr(client, "closed", getattr(client, "is_closed", False))

    asyncio.run(main())
    check_token_requests(emulator, proxy if through else None, 2)


@pytest.mark.parametrize("name", ON_TRIO)
def test_an_async_client_sends_the_token_requests_on_trio(emulator: Emulator, name: str) -> None:
    """Those that know trio."""

    async def main() -> None:
        async with ASYNC[name](None) as client, manager_over(client, emulator) as manager:
            manager.invalidate(await manager.aget_token())
            await manager.aget_token()

    trio.run(main)
    check_token_requests(emulator, None, 2)


TRUSTING: dict[str, Callable[[], Any]] = {
    "requests": requests.Session,
    "requests, attached": lambda: attached(pay88_adapters.requests, requests.Session()),
    "httpx": lambda: httpx.Client(auth=httpx.NetRCAuth(os.environ["NETRC"]), params=MINE, cookies=MINE),
    "httpx2": lambda: httpx2.Client(auth=httpx2.NetRCAuth(os.environ["NETRC"]), params=MINE, cookies=MINE),
    "async httpx": lambda: httpx.AsyncClient(auth=httpx.NetRCAuth(os.environ["NETRC"]), params=MINE, cookies=MINE),
    "async httpx2": lambda: httpx2.AsyncClient(auth=httpx2.NetRCAuth(os.environ["NETRC"]), params=MINE, cookies=MINE),
    "aiohttp": lambda: aiohttp.ClientSession(trust_env=True, cookies=MINE),
    "aiohttp, attached": lambda: attached(pay88_adapters.aiohttp, aiohttp.ClientSession(trust_env=True, cookies=MINE)),
}


async def fetch_over(make: Callable[[], Any], emulator: Emulator) -> None:
    """Fetch a token over a new client."""
    client = make()
    await manager_over(client, emulator).aget_token()
    await aclose(client)


@pytest.mark.parametrize("name", TRUSTING)
def test_rule_13_token_requests_use_the_proxy_of_the_environment_but_no_credentials_of_the_caller(
    emulator: Emulator, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Those in a netrc file are the caller's, too."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n", encoding="utf-8")
    netrc.chmod(0o600)
    for variable in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", proxy.url)

    asyncio.run(fetch_over(TRUSTING[name], emulator))
    check_token_requests(emulator, proxy, 1)
    assert emulator.journal.count(path="/api/auth/token") == 1


HASTY = 0.1
"""Seconds."""
HASTY_CLIENTS: dict[str, Callable[[], Any]] = {
    "urllib3": lambda: urllib3.PoolManager(timeout=HASTY),
    "urllib3, total": lambda: urllib3.PoolManager(timeout=urllib3.Timeout(total=HASTY)),
    "urllib3, attached": lambda: attached(pay88_adapters.urllib3, urllib3.PoolManager(timeout=HASTY)),
    "httpx": lambda: httpx.Client(timeout=HASTY),
    "httpx, attached": lambda: attached(pay88_adapters.httpx, httpx.Client(timeout=HASTY)),
    "httpx2": lambda: httpx2.Client(timeout=HASTY),
    "async httpx": lambda: httpx.AsyncClient(timeout=HASTY),
    "async httpx2": lambda: httpx2.AsyncClient(timeout=HASTY),
    "aiohttp": lambda: aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HASTY)),
}


@pytest.mark.parametrize("name", HASTY_CLIENTS)
def test_rule_16_the_timeouts_of_a_client_limit_no_token_request(emulator: Emulator, name: str) -> None:
    """Only the policy does: others may wait for the same token."""
    emulator.faults.add(Latency(4 * HASTY), on="token")

    asyncio.run(fetch_over(HASTY_CLIENTS[name], emulator))
    check_token_requests(emulator, None, 1)


@pytest.mark.parametrize("name", SYNC)
def test_rule_13_a_token_request_follows_no_redirect(emulator: Emulator, name: str) -> None:
    """Whatever the client does with others."""
    client = SYNC[name](None)
    with Emulator() as other, manager_over(client, emulator) as manager:
        emulator.faults.add(Redirect(f"{other.url}/api/auth/token", 307), on="token")
        with pytest.raises(TokenEndpointUnavailable):
            manager.get_token()
        assert len(other.journal) == 0
    close(client)


def test_an_async_client_is_of_no_use_to_threads(emulator: Emulator) -> None:
    """The error says what is; a token that is there is returned."""

    async def main() -> None:
        async with aiohttp.ClientSession() as client:
            manager = manager_over(client, emulator)
            with pytest.raises(ConfigurationError, match=r"aiohttp\.client\.ClientSession: await aget_token\(\)"):
                manager.get_token()
            assert await manager.aget_token() is manager.get_token()

    asyncio.run(main())


def test_a_session_of_another_event_loop_is_named_as_that(emulator: Emulator) -> None:
    """And not used, which would end in an error of the event loop's."""
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(_make(aiohttp.ClientSession))
    manager = manager_over(client, emulator, policy=TokenPolicy(fetch_attempts=1))
    with pytest.raises(ConfigurationError, match="another event loop") as caught:
        asyncio.run(manager.aget_token())
    assert not caught.value.retryable
    loop.run_until_complete(client.close())
    loop.close()
    assert emulator.journal.token_requests == 0


async def _make(make: Callable[[], Any]) -> Any:
    return make()


def test_a_client_is_checked_when_the_manager_is_made() -> None:
    """What it was given is named by module and class."""
    wrong: Any
    for wrong in (
        "https://proxy",
        5,
        httpx.Client,
        TokenPolicy,
        httpx.HTTPTransport(),
        urllib3.HTTPConnectionPool("h"),
    ):
        with pytest.raises(ConfigurationError, match=r"client must be one of urllib3\.PoolManager, ") as caught:
            TokenManager(Credentials("sk_test_1", "MCH-COL-1"), client=wrong)
        assert len(str(caught.value)) <= 200


def test_a_client_is_an_argument_of_every_way_to_make_a_manager(emulator: Emulator) -> None:
    """And makes shared managers two where there are two of them."""
    with httpx.Client() as client:
        TokenManager.from_env(emulator.environ, client=client).get_token()
        credentials = Credentials("sk_test_1", "MCH-COL-1")
        shared = TokenManager.shared(credentials, client=client)
        assert TokenManager.shared(credentials, client=client) is shared
        assert TokenManager.shared(credentials) is not shared


# A client of the manager's own

ALONE = """
import gc, os, sys, threading
for library in sys.argv[1].split(","):
    sys.modules[library] = None  # as if it were not installed
from pay88_adapters import Credentials, TokenManager
os.listdir("/dev/fd")
def run():
    before = len(os.listdir("/dev/fd"))
    with TokenManager(Credentials(*sys.argv[3:]), base_url=sys.argv[2]) as manager:
        manager.invalidate(manager.get_token())
        manager.get_token()
    del manager
    gc.collect()
    return len(os.listdir("/dev/fd")) - before
run()
print(run())
"""


@pytest.mark.parametrize("left", ["urllib3", "httpx", "httpx2", "aiohttp"])
def test_a_client_of_the_managers_own_is_closed_with_it(emulator: Emulator, left: str) -> None:
    """Whichever library it is of: no descriptor stays open, and none is found open later."""
    missing = [each for each in ("urllib3", "requests", "httpx", "httpx2", "aiohttp") if each != left]
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", ALONE, ",".join(missing), emulator.url]
    done = subprocess.run(
        [*command, emulator.api_key, emulator.merchant_id], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_rule_16_a_token_request_in_flight_ends_before_its_client_is_closed(emulator: Emulator) -> None:
    """All managers that share the store have its token."""
    manager = manager_over(None, emulator)
    with emulator.hold("token") as held:
        thread = threading.Thread(target=_quietly, args=(manager.get_token,))
        thread.start()
        held.wait_for(1)
        manager.close()
        held.release()
        thread.join(10)
    while manager.stats().fetching:
        time.sleep(0.001)
    manager_over(None, emulator).get_token()
    assert emulator.journal.token_requests == 1
    manager.close()
    gc.collect()


def _quietly(act: Callable[[], object]) -> None:
    with suppress(ConfigurationError):  # it was closed
        act()
