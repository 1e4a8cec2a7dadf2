"""Many merchants in one process."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import peers, stubs
from benchmarks.byhand import Manager
from benchmarks.service import Grant, Service

ROWS = ("by hand", "pay88-adapters", "google-auth", "botocore", "authlib")


def memory(row: str, count: int) -> dict[str, float]:
    """Return the bytes and threads of a manager that holds a token of its own; ours counts its budget, too."""
    make = _maker(row)
    kept = [make(-number) for number in range(1, 11)]  # what is made once
    tracemalloc.start()
    gc.collect()
    before, threads = tracemalloc.get_traced_memory()[0], threading.active_count()
    kept += [make(number) for number in range(count)]
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    return {"bytes": used / count, "threads": (threading.active_count() - threads) / count}


def shared(count: int, times: int) -> dict[str, float]:
    """Return the seconds that ``TokenManager.shared`` takes with *count* managers in the process."""
    from pay88_adapters import Credentials, TokenManager

    for number in range(count):
        TokenManager.shared(Credentials(f"sk_test_{number}", f"MCH-{number}"), base_url="http://127.0.0.1:1")
    wanted = Credentials("sk_test_0", "MCH-0")
    begin = time.perf_counter()
    for _ in range(times):
        TokenManager.shared(wanted, base_url="http://127.0.0.1:1")
    return {"wall": (time.perf_counter() - begin) / times}


def _grant(number: int) -> Grant:
    return Grant(f"{number:08}" + 200 * "x", f"sess_{number:08}" + 28 * "x", 60.0)


def _maker(row: str) -> Callable[[int], Any]:
    if row == "pay88-adapters":
        return _ours()
    service = Service("http://127.0.0.1:1", "sk_test_0", "MCH-0")

    class Asked(Service):
        """Responds without a server."""

        def ask(self) -> Grant:
            return next(grants)

    grants: Iterator[Grant] = iter(())
    service = Asked(service.url, service.api_key, service.merchant_id)

    def make(number: int) -> Any:
        nonlocal grants
        grants = iter([_grant(number)])
        if row == "by hand":
            manager = Manager(service.ask, service.margin)
            manager.headers()
            return manager
        if row == "google-auth":
            google = peers.google_credentials(service)
            google.refresh(None)
            return google
        if row == "botocore":
            credentials = peers.botocore_credentials(service)
            credentials.get_frozen_credentials()
            return credentials
        from authlib.integrations.requests_client import OAuth2Session

        session = peers.hook_authlib(OAuth2Session(**peers.authlib_options(service)), service)
        grant = _grant(number)
        session.token = {"access_token": grant.access_token, "session_id": grant.session_id, "expires_in": 60}
        return session

    return make


def _ours() -> Callable[[int], Any]:
    """Every manager fetches over one pool that responds from memory."""
    import urllib3

    from pay88_adapters import Credentials, TokenManager
    from pay88_adapters.urllib3 import attach

    url = "http://127.0.0.1:1"
    first = TokenManager(Credentials("sk_test_first", "MCH-first"), base_url=url)
    pool = attach(stubs.install(urllib3.PoolManager()), first)

    def make(number: int) -> Any:
        manager = TokenManager(Credentials(f"sk_test_{number}", f"MCH-{number}"), base_url=url)
        with manager.activated():
            pool.request("POST", f"{url}/api/balance")
        return manager

    return make
