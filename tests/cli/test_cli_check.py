"""`pay88 check` names the cause, against real servers, certificates, ports and stores that fail in real ways."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import PRODUCTION_URL, SANDBOX_URL, Credentials, TokenPolicy
from pay88_adapters.cli.checks.configuration import Configuration
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
    """The output of `pay88 check`."""

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
        """Return the detail and the remedy of a check."""
        return f"{self.findings[name]['detail']}: {self.findings[name]['remedy']}"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """The service."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def environ(emulator: Emulator, tmp_path: Path) -> dict[str, str]:
    """A valid configuration."""
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
    assert again.states("skipped") == ["key", "TLS"]
    assert "the store has one" in again.said("token")
    assert "9 of 10 per 1 minute" in again.said("budget")
    assert emulator.journal.token_requests == 1
    assert open_store(environ["PAY88_STORE"], Clock()).peek("check") == StoreView()  # no trace of the trial


def test_what_was_read_is_named(emulator: Emulator, environ: dict[str, str]) -> None:
    """The vendor's variables if they are set, and options that override a variable."""
    assert Checked(environ).said("environment").startswith(
        "read PAY88_API_KEY, PAY88_MERCHANT_ID, PAY88_BASE_URL, PAY88_STORE"
    )  # fmt: skip
    theirs = {"EIGHTY_EIGHT_PAY_API_KEY": emulator.api_key, "EIGHTY_EIGHT_PAY_MERCHANT_ID": emulator.merchant_id}
    said = Checked({**theirs, "PAY88_ENVIRONMENT": "sandbox"}, "--base-url", emulator.url).said("environment")
    assert said.startswith("read EIGHTY_EIGHT_PAY_API_KEY, EIGHTY_EIGHT_PAY_MERCHANT_ID, --base-url:")


@pytest.mark.parametrize(
    ("key", "url", "state"),
    [
        ("sk_test_1", SANDBOX_URL, "ok"),
        ("sk_live_1", PRODUCTION_URL, "ok"),
        ("sk_live_1", "http://127.0.0.1:8088", "skipped"),
        ("sk_live_1", "https://pay.example", "skipped"),
        ("another", SANDBOX_URL, "skipped"),
    ],
)
def test_a_key_is_compared_with_an_environment_only(key: str, url: str, state: str) -> None:
    """With neither the sandbox nor production, there is nothing to compare. The token is checked all the same."""
    variables = {"PAY88_API_KEY": key, "PAY88_MERCHANT_ID": "MCH-COL-1", "PAY88_BASE_URL": url}
    configuration = Configuration(variables)
    assert {finding.name: finding.state for finding in configuration.check()}["key"] == state
    assert configuration.fits


def test_an_environment_that_is_ignored(emulator: Emulator, environ: dict[str, str]) -> None:
    """Even if it is invalid: the variable or option that overrides it is named."""
    environ["PAY88_ENVIRONMENT"] = "staging"
    assert "PAY88_ENVIRONMENT is ignored, because PAY88_BASE_URL is set" in Checked(environ).said("base URL")
    del environ["PAY88_BASE_URL"]
    said = Checked(environ, "--base-url", emulator.url).said("base URL")
    assert "PAY88_ENVIRONMENT is ignored, because --base-url is set" in said


def test_no_key(environ: dict[str, str]) -> None:
    """The checks that do not need it are made all the same."""
    del environ["PAY88_API_KEY"]
    checked = Checked(environ)
    assert checked.states("failed") == ["environment"]
    assert "set PAY88_API_KEY" in checked.said("environment")
    assert "key" in checked.said("key")
    assert "URL" not in checked.said("key")
    assert {"TCP", "store", "clock"} <= set(checked.states("ok"))


def test_a_wrong_key(emulator: Emulator, environ: dict[str, str]) -> None:
    """One token request, with the endpoint's own message; the next check sends none."""
    checked = Checked({**environ, "PAY88_API_KEY": "sk_test_mistaken"})
    assert checked.states("failed") == ["token"]
    token = checked.findings["token"]
    assert re.fullmatch(
        r"token endpoint returned 401 for \S+: .*[^.] \(no further token request for 30 s\)", token["detail"]
    )
    assert "PAY88_API_KEY" in token["remedy"]
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
    assert checked.said("base URL").count(": ") == 1
    assert "URL" in checked.said("key")
    assert "store" in checked.states("ok")


def test_a_name_that_cannot_be_resolved(environ: dict[str, str]) -> None:
    """By the resolver of this host. An address is not resolved."""
    assert Checked(environ).findings["DNS"]["detail"] == "127.0.0.1 is an IP address"
    checked = Checked({**environ, "PAY88_BASE_URL": "https://no-such-host.invalid"})
    assert checked.states("failed") == ["DNS"]
    assert "no-such-host.invalid cannot be resolved" in checked.said("DNS")
    assert {"store", "budget", "lease"} <= set(checked.states("ok"))


def test_a_rejected_connection(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port. The remedy names a proxy variable, which the check does not use."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    checked = Checked({**environ, "PAY88_BASE_URL": f"https://127.0.0.1:{free_port()}"})
    assert checked.states("failed") == ["TCP"]
    assert "rejected the connection" in checked.said("TCP")
    assert "HTTPS_PROXY" in checked.said("TCP")


# TLS


class Certified:
    """An emulator with a certificate, and its authority."""

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


def test_a_valid_certificate(tmp_path: Path) -> None:
    """The remaining days are shown, and the service's clock is read over the connection."""
    certified = Certified(tmp_path)
    checked = certified.checked(SSL_CERT_FILE=str(certified.trusted))
    assert checked.states("failed") == []
    assert "certificate valid for" in checked.said("TLS")
    assert {"clock", "token"} <= set(checked.states("ok"))
    assert certified.emulator.journal.token_requests == 1


def test_a_certificate_of_an_untrusted_issuer(tmp_path: Path) -> None:
    """The remedy names the variable, and no key is sent."""
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
    assert "another host" in checked.said("TLS")


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
    """The network is checked, with a host of this name on loopback, and no key is sent."""
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
    """It was there before; the token endpoint is checked all the same."""
    with Valkey(tmp_path) as server:
        good = Checked({**environ, "PAY88_STORE": server.url})
        assert good.states("failed") == []
        assert "the store's" in good.said("clock")
        server.stop()
        checked = Checked({**environ, "PAY88_STORE": server.url})
    assert checked.states("failed") == ["store"]
    assert "cannot be reached" in checked.said("store")
    assert checked.states("skipped") == ["key", "TLS", "budget", "lease"]
    assert emulator.journal.token_requests == 2


@pytest.mark.parametrize("url", ["mysql://x", "sqlite:////no/such/place/store.db", "redis://host/path"])
def test_a_store_that_cannot_be(environ: dict[str, str], url: str) -> None:
    """Its form, or its directory. One remedy is suggested, and the store is not called missing."""
    checked = Checked({**environ, "PAY88_STORE": url})
    assert checked.states("failed") == ["store"]
    assert checked.said("store").count(": ") == 1
    assert "unavailable" in checked.said("budget")
    assert "unavailable" in checked.said("lease")


def test_a_store_that_takes_no_writes(environ: dict[str, str], tmp_path: Path) -> None:
    """A replica responds, but accepts no writes."""
    with Valkey(tmp_path, replicaof=f"127.0.0.1 {free_port()}") as server:
        checked = Checked({**environ, "PAY88_STORE": server.url})
    assert checked.states("failed") == ["store"]
    assert "read-only" in checked.said("store")


def test_an_exhausted_budget(emulator: Emulator, environ: dict[str, str]) -> None:
    """The seconds until a unit is available; and no token request is sent."""
    store = open_store(environ["PAY88_STORE"], Clock())
    budget = TokenBudget(TokenPolicy(), store.budget, emulator.url)
    while budget.acquire(emulator.merchant_id, from_reserve=False).granted:
        pass
    checked = Checked(environ)
    assert checked.states("failed") == ["budget"]
    assert "0 of 10 per 1 minute" in checked.said("budget")
    assert "set one PAY88_STORE" in checked.said("budget")
    assert "token" in checked.states("skipped")
    assert emulator.journal.token_requests == 0


def test_no_token_request_in_the_cooldown_after_a_429(emulator: Emulator, environ: dict[str, str]) -> None:
    """The store has the cooldown of all workers."""
    emulator.faults.add(TooMany(retry_after=60), on="token")
    first, second = Checked(environ), Checked(environ)
    assert first.states("failed") == second.states("failed") == ["token"]
    assert "429" in first.said("token")
    assert second.said("token").startswith("not requested, cooldown of ")
    assert emulator.journal.token_requests == 1


def test_one_token_request_to_an_endpoint_that_fails(emulator: Emulator, environ: dict[str, str]) -> None:
    """A check does not retry."""
    emulator.faults.add(Status(503), on="token", times=None)
    assert Checked(environ).states("failed") == ["token"]
    assert emulator.journal.token_requests == 1


def test_the_lease_of_another_holder(emulator: Emulator, environ: dict[str, str]) -> None:
    """A free lease is not a failure."""
    assert "free" in Checked(environ).said("lease")
    store = open_store(environ["PAY88_STORE"], Clock())
    key = record_key(emulator.url, Credentials(emulator.api_key, emulator.merchant_id))
    record = store.peek(key).record
    assert record is not None
    assert (
        store.try_acquire_lease(key, owner="0123456789abcdef", known_version=record.version, lease=20).fencing_token
        is not None
    )
    checked = Checked(environ)
    assert checked.states("failed") == []
    assert checked.said("lease").startswith("held by 01234567, expires in ")
    assert emulator.journal.token_requests == 1


# The clock


@pytest.mark.parametrize(("shift", "said"), [(3600, "3,600 s behind 88Pay's"), (-90, "90 s ahead of")])
def test_a_clock_that_is_wrong(tmp_path: Path, shift: float, said: str) -> None:
    """By the service's Date header; a token is fetched all the same."""
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
    """Passed checks are green."""
    with on_a_terminal("check", environ=environ) as (process, read):
        shown = ""
        while piece := read():
            shown += piece
        assert process.wait(30) == 0
    assert "\x1b[32mok " in shown


def test_a_suspended_merchant_is_seen_with_fresh(emulator: Emulator, environ: dict[str, str]) -> None:
    """Although the store has a token, which the workers keep; the token request counts in the shared budget."""
    assert Checked(environ).findings["token"]["state"] == "ok"
    emulator.service.suspend()
    assert Checked(environ).findings["token"]["state"] == "ok"
    checked = Checked(environ, "--fresh")
    assert checked.states("failed") == ["token"]
    assert "suspen" in checked.findings["token"]["remedy"]
    assert emulator.merchant_id in checked.said("token")
    status = json.loads(run("budget", "--json", environ=environ).out)
    assert status["token"] is not None
    assert status["cooldown"] is None
    assert (status["tokens"]["10 per 1 minute"], emulator.journal.token_requests) == (8, 2)


def test_fresh_spares_an_endpoint_that_limits(emulator: Emulator, environ: dict[str, str]) -> None:
    """A 429 that it gets holds for all workers (rule 10), and no request is sent without a unit of the reserve."""
    assert Checked(environ, "--fresh").findings["token"]["state"] == "ok"  # without a token in the store
    emulator.faults.add(TooMany(120), on="token")
    assert Checked(environ, "--fresh").states("failed") == ["token"]
    assert 100 < json.loads(run("budget", "--json", environ=environ).out)["cooldown"]["remaining"] <= 120
    assert "token" not in Checked(environ, "--fresh").states("ok")
    assert emulator.journal.token_requests == 2


@pytest.mark.parametrize(
    ("key", "host", "right"),
    [("sk_live_1", "api-sandbox.88pay.io", "production"), ("sk_test_1", "api.88pay.io", "sandbox")],
)
def test_a_key_of_the_other_environment_names_the_variable(
    environ: dict[str, str], key: str, host: str, right: str
) -> None:
    """And PAY88_BASE_URL, which overrides it."""
    said = Checked({**environ, "PAY88_API_KEY": key, "PAY88_BASE_URL": f"https://{host}"}).findings["key"]
    assert host in said["detail"]
    assert {f"PAY88_ENVIRONMENT={right}", "PAY88_BASE_URL"} <= set(said["remedy"].split())


@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:wrong@"], ids=["none", "password", "user"])
@pytest.mark.parametrize("requirepass", ["right", None], ids=["protected", "open"])
def test_bad_credentials_of_the_store_are_named(
    environ: dict[str, str], tmp_path: Path, login: str, requirepass: str | None
) -> None:
    """And the remedy is not to start a server that runs."""
    if not login and not requirepass:
        pytest.skip("nothing is wrong")
    options = {"requirepass": requirepass} if requirepass else {}
    with Valkey(tmp_path, "", None, **options) as server:
        url = f"redis://{login}127.0.0.1:{server.port}"
        store = Checked({**environ, "PAY88_STORE": url}).findings["store"]
    assert "user name or password" in store["detail"]
    assert "user name and password in PAY88_STORE" in store["remedy"]
