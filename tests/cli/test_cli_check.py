"""`pay88 check` names the cause, against real servers, certificates, ports and stores that fail in real ways."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import Credentials, TokenPolicy
from pay88_adapters.clock import Clock
from pay88_adapters.core.snapshot import record_key
from pay88_adapters.engine.budget import TokenBudget
from pay88_adapters.stores import open_store
from pay88_adapters.stores.base import StoreView
from pay88_adapters.testing import Emulator, Status, TooMany
from support.authority import new_authority
from support.commands import configured, on_a_terminal, run
from support.servers import Valkey, free_port

NAMES = ["environment", "base URL", "key", "DNS", "TCP", "TLS", "store", "clock", "budget", "lease", "token"]


class Checked:
    """What `pay88 check` found."""

    def __init__(self, environ: dict[str, str], *arguments: str) -> None:
        ended = run("check", "--json", *arguments, environ=environ)
        document = json.loads(ended.out)
        self.findings: dict[str, Any] = {each["name"]: each for each in document["checks"]}
        assert list(self.findings) == NAMES
        assert document["ok"] is not any(each["state"] == "failed" for each in document["checks"])
        assert all(each["remedy"] for each in document["checks"] if each["state"] == "failed")
        assert (ended.code, ended.err) == (0 if document["ok"] else 1, "")
        assert not any(value in ended.out for name, value in environ.items() if name.endswith("API_KEY"))

    def states(self, state: str) -> list[str]:
        """Return the names of the checks that are *state*."""
        return [name for name, each in self.findings.items() if each["state"] == state]

    def said(self, name: str) -> str:
        """Return what one of them says, with its remedy."""
        return f"{self.findings[name]['detail']}: {self.findings[name]['remedy']}"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """The service."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def environ(emulator: Emulator, tmp_path: Path) -> dict[str, str]:
    """A configuration that is good."""
    return configured(emulator, PAY88_STORE=f"sqlite:///{tmp_path}/store.db")


def test_a_good_configuration_costs_one_token_request_and_then_none(
    emulator: Emulator, environ: dict[str, str]
) -> None:
    """Line by line; the second check finds the token that the first one left in the store."""
    ended = run("check", environ=environ)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert [line[9:22].strip() for line in lines] == NAMES
    assert {line.split()[0] for line in lines} == {"ok", "skipped"}
    assert "\x1b" not in ended.out
    again = Checked(environ)
    assert again.states("skipped") == ["TLS"]
    assert "the fleet has one" in again.said("token")
    assert "9 of 10 per 1 minute" in again.said("budget")
    assert emulator.journal.token_requests == 1
    assert open_store(environ["PAY88_STORE"], Clock()).peek("check") == StoreView()  # no trace of the trial


def test_what_was_read_is_named(emulator: Emulator, environ: dict[str, str]) -> None:
    """The vendor's names where they are the ones, and options that take a variable's place."""
    assert Checked(environ).said("environment").startswith(
        "read PAY88_API_KEY, PAY88_MERCHANT_ID, PAY88_BASE_URL, PAY88_STORE"
    )  # fmt: skip
    theirs = {"EIGHTY_EIGHT_PAY_API_KEY": emulator.api_key, "EIGHTY_EIGHT_PAY_MERCHANT_ID": emulator.merchant_id}
    said = Checked({**theirs, "PAY88_ENVIRONMENT": "sandbox"}, "--base-url", emulator.url).said("environment")
    assert said.startswith("read EIGHTY_EIGHT_PAY_API_KEY, EIGHTY_EIGHT_PAY_MERCHANT_ID, --base-url:")


def test_no_key(environ: dict[str, str]) -> None:
    """The rest is checked all the same, but for what needs it."""
    del environ["PAY88_API_KEY"]
    checked = Checked(environ)
    assert checked.states("failed") == ["environment"]
    assert "set PAY88_API_KEY" in checked.said("environment")
    assert {"TCP", "store", "clock"} <= set(checked.states("ok"))


def test_a_wrong_key(emulator: Emulator, environ: dict[str, str]) -> None:
    """One request, and the endpoint's own word; the next check spares the endpoint."""
    checked = Checked({**environ, "PAY88_API_KEY": "sk_test_mistaken"})
    assert checked.states("failed") == ["token"]
    assert "check the API key" in checked.said("token")
    assert "check the API key" in Checked({**environ, "PAY88_API_KEY": "sk_test_mistaken"}).said("token")
    assert emulator.journal.token_requests == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PAY88_BASE_URL": "http://pay.example"}, "use https://"),
        ({"PAY88_BASE_URL": "", "PAY88_ENVIRONMENT": "staging"}, "set it to 'sandbox' or 'production'"),
    ],
)
def test_a_url_that_cannot_be_used(environ: dict[str, str], variables: dict[str, str], said: str) -> None:
    """There is nothing to connect to, but the store is checked."""
    checked = Checked({**environ, **variables})
    assert checked.states("failed") == ["base URL"]
    assert said in checked.said("base URL")
    assert "store" in checked.states("ok")


def test_a_name_that_cannot_be_resolved(environ: dict[str, str]) -> None:
    """By the resolver of this host."""
    checked = Checked({**environ, "PAY88_BASE_URL": "https://no-such-host.invalid"})
    assert checked.states("failed") == ["DNS"]
    assert "no-such-host.invalid cannot be resolved" in checked.said("DNS")
    assert {"store", "budget", "lease"} <= set(checked.states("ok"))


def test_a_connection_that_is_refused(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a closed port; a proxy that somebody may count on is named."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    checked = Checked({**environ, "PAY88_BASE_URL": f"https://127.0.0.1:{free_port()}"})
    assert checked.states("failed") == ["TCP"]
    assert "refuses the connection" in checked.said("TCP")
    assert "HTTPS_PROXY" in checked.said("TCP")


# TLS


class Certified:
    """An emulator with a certificate, and who vouches for it."""

    def __init__(self, tmp_path: Path, name: str = "localhost", **certificate: Any) -> None:
        authority = new_authority()
        self.trusted = tmp_path / "authority.pem"
        authority.cert_pem.write_to_path(str(self.trusted))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name, **certificate).configure_cert(context)
        self.emulator = Emulator(ssl_context=context)

    def checked(self, **more: str) -> Checked:
        """Check a client that knows it as localhost."""
        with self.emulator as emulator:
            url = f"https://localhost:{emulator.port}"
            return Checked(configured(emulator) | {"PAY88_BASE_URL": url, **more})


def test_a_certificate_that_is_good(tmp_path: Path) -> None:
    """For how many days more is told, and the service's clock is read through it."""
    certified = Certified(tmp_path)
    checked = certified.checked(SSL_CERT_FILE=str(certified.trusted))
    assert checked.states("failed") == []
    assert "days more" in checked.said("TLS")
    assert {"clock", "token"} <= set(checked.states("ok"))
    assert certified.emulator.journal.token_requests == 1


def test_a_certificate_of_an_issuer_that_nobody_trusts(tmp_path: Path) -> None:
    """What to set is said, and no key is sent."""
    certified = Certified(tmp_path)
    checked = certified.checked()
    assert checked.states("failed") == ["TLS"]
    assert "SSL_CERT_FILE" in checked.said("TLS")
    assert "token" in checked.states("skipped")
    assert len(certified.emulator.journal) == 0


def test_a_certificate_of_another_host(tmp_path: Path) -> None:
    """Although its issuer is trusted."""
    certified = Certified(tmp_path, "elsewhere.example")
    checked = certified.checked(SSL_CERT_FILE=str(certified.trusted))
    assert checked.states("failed") == ["TLS"]
    assert "another host's" in checked.said("TLS")


@pytest.mark.parametrize(("begins", "ends"), [(-2, -1), (1, 2)])
def test_a_certificate_that_is_not_valid_now(tmp_path: Path, begins: float, ends: float) -> None:
    """Expired, or of the future: it may be this host's clock."""
    now = datetime.now(timezone.utc)
    dates: dict[str, Any] = {"not_before": now + timedelta(days=begins), "not_after": now + timedelta(days=ends)}
    certified = Certified(tmp_path, **dates)
    checked = certified.checked(SSL_CERT_FILE=str(certified.trusted))
    assert checked.states("failed") == ["TLS"]
    assert "not valid now" in checked.said("TLS")
    assert "clock" in checked.said("TLS")


@pytest.mark.parametrize(("key", "host"), [("sk_test_x", "api.88pay.io"), ("sk_live_x", "api-sandbox.88pay.io")])
def test_a_sandbox_key_on_production_and_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, host: str
) -> None:
    """The way there is checked, with a host of this name on loopback, and no key is sent."""
    certified = Certified(tmp_path, host)
    lookup = socket.getaddrinfo

    def nearby(name: str, port: int, *args: Any, **kwargs: Any) -> Any:
        assert (name, port) == (host, 443)
        return lookup("127.0.0.1", certified.emulator.port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", nearby)
    trusted = str(certified.trusted)
    checked = certified.checked(SSL_CERT_FILE=trusted, PAY88_API_KEY=key, PAY88_BASE_URL=f"https://{host}")
    assert checked.states("failed") == ["key"]
    assert "the other key" in checked.said("key")
    assert checked.states("ok") == ["environment", "base URL", "DNS", "TCP", "TLS", "clock"]
    assert certified.emulator.journal.token_requests == 0


def test_a_port_that_speaks_no_tls(emulator: Emulator, environ: dict[str, str]) -> None:
    """An http server behind an https:// URL."""
    checked = Checked({**environ, "PAY88_BASE_URL": f"https://127.0.0.1:{emulator.port}"})
    assert checked.states("failed") == ["TLS"]
    assert "speaks TLS" in checked.said("TLS")


# The store


def test_a_store_that_is_down(emulator: Emulator, environ: dict[str, str], tmp_path: Path) -> None:
    """It was there, and is no more; the endpoint is asked all the same."""
    with Valkey(tmp_path) as server:
        good = Checked({**environ, "PAY88_STORE": server.url})
        assert good.states("failed") == []
        assert "the store's" in good.said("clock")
        server.stop()
        checked = Checked({**environ, "PAY88_STORE": server.url})
    assert checked.states("failed") == ["store"]
    assert "cannot be reached" in checked.said("store")
    assert checked.states("skipped") == ["TLS", "budget", "lease"]
    assert emulator.journal.token_requests == 2


@pytest.mark.parametrize("url", ["mysql://x", "sqlite:////no/such/place/store.db", "redis://host/path"])
def test_a_store_that_cannot_be(environ: dict[str, str], url: str) -> None:
    """Its form, or where it would be."""
    assert Checked({**environ, "PAY88_STORE": url}).states("failed") == ["store"]


def test_a_store_that_takes_no_writes(environ: dict[str, str], tmp_path: Path) -> None:
    """A replica answers, and is no store."""
    with Valkey(tmp_path, replicaof=f"127.0.0.1 {free_port()}") as server:
        checked = Checked({**environ, "PAY88_STORE": server.url})
    assert checked.states("failed") == ["store"]
    assert "read-only" in checked.said("store")


def test_a_budget_that_is_spent(emulator: Emulator, environ: dict[str, str]) -> None:
    """When there is room again; and no request is sent that would be refused."""
    store = open_store(environ["PAY88_STORE"], Clock())
    budget = TokenBudget(TokenPolicy(), store.budget, emulator.url)
    while budget.acquire(emulator.merchant_id, from_reserve=False).granted:
        pass
    checked = Checked(environ)
    assert checked.states("failed") == ["budget"]
    assert "0 of 10 per 1 minute" in checked.said("budget")
    assert "share one PAY88_STORE" in checked.said("budget")
    assert "token" in checked.states("skipped")
    assert emulator.journal.token_requests == 0


def test_a_limit_that_the_service_holds_is_not_asked_for_again(emulator: Emulator, environ: dict[str, str]) -> None:
    """It is in the store, for all to see."""
    emulator.faults.add(TooMany(retry_after=60), on="token")
    first, second = Checked(environ), Checked(environ)
    assert first.states("failed") == second.states("failed") == ["token"]
    assert "429" in first.said("token")
    assert second.said("token").startswith("not asked for, for ")
    assert emulator.journal.token_requests == 1


def test_an_endpoint_that_fails_is_asked_once(emulator: Emulator, environ: dict[str, str]) -> None:
    """A check makes no attempts."""
    emulator.faults.add(Status(503), on="token", times=None)
    assert Checked(environ).states("failed") == ["token"]
    assert emulator.journal.token_requests == 1


def test_somebody_elses_lease_is_named(emulator: Emulator, environ: dict[str, str]) -> None:
    """And is no failure."""
    assert "free" in Checked(environ).said("lease")
    store = open_store(environ["PAY88_STORE"], Clock())
    key = record_key(emulator.url, Credentials(emulator.api_key, emulator.merchant_id))
    record = store.peek(key).record
    assert record is not None
    assert (
        store.try_acquire_lease(key, owner="0123456789abcdef", known=record.version, lease=20).fencing_token is not None
    )
    checked = Checked(environ)
    assert checked.states("failed") == []
    assert checked.said("lease").startswith("01234567 fetches a token, for ")
    assert emulator.journal.token_requests == 1


# The clock


@pytest.mark.parametrize(("shift", "said"), [(3600, "3,600 s behind the service's"), (-90, "90 s ahead of")])
def test_a_clock_that_is_wrong(tmp_path: Path, shift: float, said: str) -> None:
    """Told by the service's Date; a token is had all the same."""
    with Emulator(wall=lambda: time.time() + shift) as emulator:
        checked = Checked(configured(emulator, PAY88_STORE=f"sqlite:///{tmp_path}/store.db"))
    assert checked.states("failed") == ["clock"]
    assert said.split()[0] in checked.said("clock")
    assert said.split(" s ")[1] in checked.said("clock")
    assert "NTP" in checked.said("clock")
    assert "token" in checked.states("ok")


def test_a_service_that_hangs_up_says_no_time(environ: dict[str, str]) -> None:
    """The clock is not checked then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.settimeout(10)

        def hang_up() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        checked = Checked({**environ, "PAY88_BASE_URL": url})
        thread.join()
    assert checked.states("failed") == ["token"]
    assert "clock" in checked.states("skipped")


def test_a_terminal_gets_colours(environ: dict[str, str]) -> None:
    """Green for what is good."""
    with on_a_terminal("check", environ=environ) as (process, read):
        shown = ""
        while piece := read():
            shown += piece
        assert process.wait(30) == 0
    assert "\x1b[32mok " in shown
