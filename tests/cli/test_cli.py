"""The command line: how commands end, and `pay88 token`, `request` and `budget` against a real server."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pay88_adapters import (
    Credentials,
    CredentialsRejected,
    TokenBudgetExhausted,
    TokenManager,
    TokenPolicy,
    __version__,
)
from pay88_adapters.clock import Clock
from pay88_adapters.core.snapshot import record_key
from pay88_adapters.engine.budget import TokenBudget
from pay88_adapters.stores import open_store
from pay88_adapters.testing import (
    Body,
    Emulator,
    Latency,
    Redirect,
    RefuseToken,
    ResetAfterRead,
    Status,
    TooMany,
)
from support.commands import PAY88, Ended, configured, on_a_terminal, run, started
from support.leaks import leaked
from support.servers import Valkey, free_port

COMMANDS = ("budget", "check", "demo", "emulator", "request", "token")
posix = pytest.mark.skipif(os.name != "posix", reason="no such terminals or signals here")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """The service."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def environ(emulator: Emulator, tmp_path: Path) -> dict[str, str]:
    """A configuration with a store that outlives a command."""
    return configured(emulator, PAY88_STORE=f"sqlite:///{tmp_path}/store.db")


# --- all commands


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_the_help_says_how_a_command_ends(command: tuple[str, ...]) -> None:
    """Exit codes, and --json for each of them."""
    ended = run(*command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "xit code" in ended.out
    assert not command or "--json" in ended.out


def test_the_version() -> None:
    """The version of the package."""
    ended = run("--version")
    assert (ended.code, ended.out) == (0, f"pay88-adapters {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("token", "--format", "xml"),
        ("token", "--store", "redis://:secret@host"),
        ("token", "--store", "redis+sentinel://me:secret@host,host/service"),
        ("budget", "--interval", "0"),
        ("request", "POST"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    """The error names the wrong value."""
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Error: " in ended.err


def test_no_command_at_all_shows_the_help() -> None:
    """A usage error all the same."""
    ended = run()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == run("--help").out
    assert all(name in ended.err for name in COMMANDS)


def shell(command: str, environ: Mapping[str, str]) -> Ended:
    """Run a command in a shell; ``pay88`` is this one."""
    pay88 = " ".join(map(shlex.quote, PAY88))
    ended = subprocess.run(
        ["/bin/sh", "-c", command.replace("pay88", pay88, 1)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@posix
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("pay88 token >&-", 1),
        ("pay88 token --json >&-", 1),
        ("pay88 check >&-", 1),
        ("pay88 --help >&-", 1),
        ("pay88 --version >/dev/full", 1),
        ("pay88 token >/dev/full", 1),
        ("pay88 budget --once >/dev/full", 1),
        ("pay88 token 2>&-", 0),
        ("pay88 2>&-", 2),
        ("pay88 nonsense 2>&-", 2),
        ("pay88 token >&- 2>&- <&-", 1),
        ("pay88 request POST /api/balance --data @- <&-", 0),
    ],
)
def test_a_stream_that_is_closed_or_full(environ: dict[str, str], command: str, code: int) -> None:
    """The exit code is right, with at most one line of error and no traceback."""
    ended = shell(command, environ)
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == (1 if code == 1 and "2>&-" not in command else 0)


@pytest.mark.parametrize("arguments", [("token",), ("budget",), ("request", "POST", "/api/balance")])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_configuration_that_cannot_work_exits_with_2(arguments: tuple[str, ...], as_json: bool) -> None:
    """One line, and a document with --json."""
    ended = run(*arguments, *["--json"] * as_json)
    assert ended.code == 2
    assert ended.err == (
        "pay88: set PAY88_API_KEY and PAY88_MERCHANT_ID"
        " (or EIGHTY_EIGHT_PAY_API_KEY and EIGHTY_EIGHT_PAY_MERCHANT_ID) in the environment\n"
    )
    assert (json.loads(ended.out)["error"]["kind"] == "ConfigurationError") if as_json else ended.out == ""


@pytest.mark.parametrize(
    ("arguments", "name", "extra"),
    [
        (("request", "POST", "/api/balance"), "urllib3", "cli"),
        (("check",), "urllib3", "cli"),
        (("emulator",), "aiohttp", "testing"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    arguments: tuple[str, ...], name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and exit code 2."""
    monkeypatch.setitem(sys.modules, name, None)
    ended = run(*arguments)
    assert (ended.code, ended.err) == (2, f"pay88: {name} is not installed: pip install 'pay88-adapters[{extra}]'\n")


def test_the_package_needs_no_click() -> None:
    """Neither the import of the package nor that of the command needs it; the error names the extra."""
    code = (
        "import sys; sys.modules['click'] = None\n"
        "import pay88_adapters, pay88_adapters.cli\n"
        "pay88_adapters.cli.main(['token'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "pay88: click is not installed: pip install 'pay88-adapters[cli]'\n")


def test_help_imports_nothing_heavy() -> None:
    """A command imports its dependencies when it runs."""
    code = (
        "import sys; from pay88_adapters.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ended.stderr.split())
    assert "click" in loaded
    assert not loaded & {"aiohttp", "httpx", "redis", "requests", "rich", "sqlite3", "urllib3"}


@posix
def test_a_reader_that_has_had_enough_ends_it(emulator: Emulator) -> None:
    """Exit code 141 and no message."""
    ours, theirs = os.pipe()
    os.close(ours)
    with started("token", environ=configured(emulator), stdout=theirs) as process:
        os.close(theirs)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (141, "")


# --- pay88 token


def test_a_token_as_header_lines(emulator: Emulator, environ: dict[str, str]) -> None:
    """The format of curl -H @file, with a valid token."""
    ended = run("token", environ=environ)
    assert (ended.code, ended.err) == (0, "")
    fields = dict(line.split(": ") for line in ended.out.splitlines())
    assert list(fields) == ["Authorization", "x-session-id"]
    assert set(fields.values()) <= {f"Bearer {secret}" for secret in emulator.service.secrets()} | set(
        emulator.service.secrets()
    )


def test_every_format_gives_the_same_token_and_costs_one_request(emulator: Emulator, environ: dict[str, str]) -> None:
    """All commands share one token through the store."""
    lines = dict(line.split(": ") for line in run("token", environ=environ).out.splitlines())
    document = json.loads(run("token", "--json", environ=environ).out)
    same = json.loads(run("token", "--format", "json", environ=environ).out)
    later = {"age": None, "expires_in": None}
    assert {**same, **later} == {**document, **later}
    assert 50 < same["expires_in"] < 60, "the age that the store tells is not to a tenth of a second"
    assert document["headers"] == lines
    assert lines["Authorization"] == f"Bearer {document['access_token']}"
    assert lines["x-session-id"] == document["session_id"]
    assert 50 < document["expires_in"] < 60, "what is left of it"
    words = shlex.split(run("token", "--format", "curl", environ=environ).out)
    assert words == [word for name, value in lines.items() for word in ("-H", f"{name}: {value}")]
    assignments = [shlex.split(line) for line in run("token", "--format", "env", environ=environ).out.splitlines()]
    assert assignments == [
        [f"PAY88_ACCESS_TOKEN={document['access_token']}"],
        [f"PAY88_SESSION_ID={document['session_id']}"],
    ]
    assert emulator.journal.token_requests == 1


def test_a_token_that_should_last_is_a_new_one_if_need_be(emulator: Emulator, environ: dict[str, str]) -> None:
    """--min-validity; more than the lifetime of a token is a usage error."""
    first = run("token", environ=environ).out
    assert run("token", "--min-validity", "30", environ=environ).out == first
    assert run("token", "--min-validity", "59", environ=environ).out != first
    assert emulator.journal.token_requests == 2
    ended = run("token", "--min-validity", "61", environ=environ)
    assert (ended.code, ended.out) == (2, "")


def test_a_token_that_does_not_last_is_not_printed(tmp_path: Path) -> None:
    """Where the service grants less than --min-validity, or no newer token can be fetched."""
    with Emulator(lifetime=20) as emulator:
        environ = configured(emulator, PAY88_STORE=f"sqlite:///{tmp_path}/store.db")
        assert run("token", "--min-validity", "15", environ=environ).code == 0
        emulator.faults.add(Status(503), on="token", times=None)
        ended = run("token", "--min-validity", "30", environ=environ)
        assert (ended.code, ended.out) == (1, "")
        assert re.search(r"expires in 1\d\.\d s, before --min-validity 30 s", ended.err)
        assert run("token", "--min-validity", "10", environ=environ).code == 0


def test_a_token_that_cannot_be_had_exits_with_1(emulator: Emulator, environ: dict[str, str]) -> None:
    """With the reason and the seconds, but no secret."""
    emulator.service.reject_credentials(emulator.api_key)
    ended = run("token", "--json", environ=environ)
    error = json.loads(ended.out)["error"]
    assert (ended.code, error["kind"], error["status"]) == (1, "CredentialsRejected", 401)
    assert 0 < error["retry_after"] <= 30
    assert ended.err == f"pay88: {error['message']}\n"
    assert not leaked([emulator.api_key], [ended.out, ended.err])


def test_a_background_refresh_of_the_command_completes(emulator: Emulator, environ: dict[str, str]) -> None:
    """A command with an ageing token starts a refresh; the next one finds the new token, and no lease."""
    assert run("token", environ=environ).code == 0
    store = open_store(environ["PAY88_STORE"], Clock())
    key = record_key(emulator.url, Credentials(emulator.api_key, emulator.merchant_id))
    record = store.peek(key).record
    assert record is not None
    aged = json.loads(str(record.content))
    aged["token"]["age"] = aged["ordinary_age"] = 47.0
    fencing_token = store.try_acquire_lease(key, owner="test", known_version=record.version, lease=5).fencing_token
    assert fencing_token is not None
    assert store.publish(key, fencing_token=fencing_token, content=json.dumps(aged), ttl=10)
    emulator.faults.add(Latency(0.3), on="token")

    assert run("token", environ=environ).code == 0
    look = store.peek(key)
    assert (emulator.journal.issued, look.owner) == (2, "")
    assert look.record is not None
    assert json.loads(str(look.record.content))["token"]["age"] < 40


# --- pay88 token and pay88 request


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("arguments", [("token",), ("request", "POST", "/api/balance")])
def test_a_store_that_is_down_is_a_warning(emulator: Emulator, arguments: tuple[str, ...], as_json: bool) -> None:
    """One line on standard error, without the password of the store, and the command succeeds."""
    environ = configured(emulator, PAY88_STORE="redis://shop:hidden@127.0.0.1:1")
    ended = run(*arguments, *["--json"] * as_json, environ=environ)
    assert (ended.code, emulator.journal.token_requests) == (0, 1)
    assert ended.err == "pay88: warning: the store is unavailable (run `pay88 check` for the cause)\n"
    assert json.loads(ended.out) if as_json else ended.out


@pytest.mark.parametrize("arguments", [("token",), ("request", "POST", "/api/balance")])
def test_a_store_that_is_down_is_a_warning_before_an_error(emulator: Emulator, arguments: tuple[str, ...]) -> None:
    """Also if there is no token."""
    emulator.service.reject_credentials(emulator.api_key)
    ended = run(*arguments, environ=configured(emulator, PAY88_STORE="redis://127.0.0.1:1"))
    assert (ended.code, ended.out) == (1, "")
    warning, error = ended.err.splitlines()
    assert "the store is unavailable" in warning
    assert "returned 401" in error


# --- pay88 request


def test_a_request_and_its_response(emulator: Emulator, environ: dict[str, str]) -> None:
    """Status, headers and body; and the request had a token."""
    ended = run("request", "POST", "/api/balance", "--query", f"id={emulator.merchant_id}", environ=environ)
    assert (ended.code, ended.err) == (0, "")
    head, _, body = ended.out.partition("\n\n")
    assert head.splitlines()[0] == "HTTP 200 OK"
    assert "X-RateLimit-Limit: 60" in head.splitlines()
    assert json.loads(body)["data"]["balance"] == 100_000
    assert emulator.journal[-1].path == f"/api/balance?id={emulator.merchant_id}"
    assert emulator.journal[-1].executed


def test_a_response_as_json(environ: dict[str, str]) -> None:
    """One document, with the body as JSON."""
    ended = run("request", "post", "/api/balance", "--json", environ=environ)
    response = json.loads(ended.out)
    assert (ended.code, response["status"], response["reason"]) == (0, 200, "OK")
    assert response["headers"]["Content-Type"] == "application/json"
    assert response["body"]["data"]["currency"] == "COP"


CHARGE = b'{"amount": 100}'


def test_a_body_as_it_is_from_a_file_or_from_standard_input(
    emulator: Emulator, environ: dict[str, str], tmp_path: Path
) -> None:
    """Byte for byte, as JSON unless a header says otherwise."""
    (tmp_path / "charge.json").write_bytes(CHARGE)
    path = "/api/transactions/charges"
    assert run("request", "POST", path, "--data", CHARGE.decode(), environ=environ).code == 0
    assert run("request", "POST", path, "--data", f"@{tmp_path}/charge.json", environ=environ).code == 0
    assert run("request", "POST", path, "--data", "@-", environ=environ, text=CHARGE).code == 0
    assert len(emulator.service.charges) == 3
    ended = run("request", "POST", path, "--data", "a=1", "--header", "Content-type: text/plain", environ=environ)
    assert (ended.code, ended.out.splitlines()[0]) == (1, "HTTP 400 Bad Request")
    assert [entry.body for entry in emulator.journal.select("call")] == [CHARGE] * 3 + [b"a=1"]
    assert emulator.journal[-1].headers["content-type"] == "text/plain"


@pytest.mark.parametrize("where", ["{origin}/api/echo?a=1", "/api/echo?a=1"])
def test_a_full_url_of_the_origin_is_as_good_as_a_path(emulator: Emulator, environ: dict[str, str], where: str) -> None:
    """With its query and with --query."""
    ended = run("request", "GET", where.format(origin=emulator.url), "--query", "b=ä &", environ=environ)
    assert ended.code == 0
    assert emulator.journal[-1].path == "/api/echo?a=1&b=%C3%A4+%26"


@pytest.mark.parametrize(
    "arguments",
    [
        ("GET", "http://127.0.0.1:1/api/echo"),
        ("GET", "https://{host}/api/echo"),
        ("GET", "http://{host}.evil.example/api/echo"),
        ("GET", "http://user@{host}/api/echo"),
        ("GET", "http://{host}@evil.example/"),
        ("GET", "ftp://{host}/"),
        ("GET", "api/echo"),
        ("GET", "/api/echo\r\nx: y"),
        ("POST", "/api/auth/token"),
        ("G E T", "/api/echo"),
        ("GET", "/api/echo", "--query", "a"),
        ("GET", "/api/echo", "--header", "nothing"),
        ("GET", "/api/echo", "--header", "a b: c"),
        ("GET", "/api/echo", "--header", "Authorization: Bearer x"),
        ("GET", "/api/echo", "--header", "X-Api-Key: x"),
        ("GET", "/api/echo", "--data", "@/no/such/file"),
        ("GET", "/api/echo", "--timeout", "0"),
    ],
)
def test_what_must_not_be_sent_is_not(emulator: Emulator, environ: dict[str, str], arguments: tuple[str, ...]) -> None:
    """A usage error: no token is fetched, and none is sent."""
    host = emulator.url.removeprefix("http://")
    ended = run("request", *(each.format(host=host) for each in arguments), environ=environ)
    assert (ended.code, ended.out) == (2, "")
    assert "Error: " in ended.err
    assert len(emulator.journal) == 0


def test_a_payment_without_a_response_is_sent_once(emulator: Emulator, environ: dict[str, str]) -> None:
    """Exit code 1, and a warning that it may have been executed."""
    emulator.faults.add(ResetAfterRead(), times=None)
    ended = run("request", "POST", "/api/transactions/charges", "--data", CHARGE.decode(), "--json", environ=environ)
    assert ended.code == 1
    assert "it may have been executed" in json.loads(ended.out)["error"]["message"]
    assert len(emulator.service.charges) == 1


def test_an_idempotent_call_is_retried(emulator: Emulator, environ: dict[str, str]) -> None:
    """As in any client; a payment is not retried."""
    emulator.faults.add(Status(502), on="/api/balance")
    assert run("request", "POST", "/api/balance", environ=environ).code == 0
    emulator.faults.add(Status(503), on="call")
    assert run("request", "POST", "/api/transactions/charges", "--data", "{}", environ=environ).code == 1
    assert [entry.status for entry in emulator.journal.select("call")] == [502, 200, 503]


def test_a_redirect_is_shown_and_not_followed(emulator: Emulator, environ: dict[str, str]) -> None:
    """Its target may be any host."""
    emulator.faults.add(Redirect(f"{emulator.url}/api/echo"))
    ended = run("request", "GET", "/api/echo", environ=environ)
    assert (ended.code, ended.out.splitlines()[0]) == (0, "HTTP 307 Temporary Redirect")
    assert emulator.journal.calls == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_no_secret_and_no_control_code_in_a_response(
    emulator: Emulator, environ: dict[str, str], as_json: bool
) -> None:
    """Whatever the server echoes; also for the token that replaced the first one."""
    first = json.loads(run("token", "--json", environ=environ).out)
    emulator.faults.add(RefuseToken())
    everything = [emulator.api_key, first["access_token"], first["session_id"]]
    echo = Body(" ".join(everything).encode() + b" \x1b[31mred\xff", headers={"X-Echo": " ".join(everything)})
    emulator.faults.add(echo)
    ended = run("request", "GET", "/api/echo", *["--json"] * as_json, environ=environ)
    assert ended.code == 0
    assert "red" in ended.out
    assert not leaked(emulator.service.secrets(), [ended.out, ended.err])
    assert "\x1b" not in ended.out
    assert emulator.journal.token_requests == 2


# --- pay88 budget


@pytest.fixture(params=["sqlite", "redis"])
def shared(request: pytest.FixtureRequest, environ: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The configuration with each shared store."""
    with ExitStack() as stack:
        if request.param == "redis":
            environ = {**environ, "PAY88_STORE": stack.enter_context(Valkey(tmp_path)).url}
        yield environ


def looked(environ: dict[str, str], *more: str) -> Any:
    """Return the output of `pay88 budget --json`."""
    ended = run("budget", "--json", *more, environ=environ)
    assert (ended.code, ended.err) == (0, "")
    return json.loads(ended.out)


def test_the_budget_is_looked_at_and_nothing_taken(emulator: Emulator, shared: dict[str, str]) -> None:
    """Before and after a token; reading changes nothing, whether the store exists or not."""
    full = {"tokens": {"10 per 1 minute": 10, "100 per 1 hour": 100}, "free_in": 0.0, "lease": None, "token": None}
    for _ in range(3):
        assert looked(shared) == {**full, "calls": None, "cooldown": None, "forced": 8, "store_error": None}
    assert run("token", environ=shared).code == 0
    for _ in range(2):
        status = looked(shared)
        assert status["tokens"] == {"10 per 1 minute": 9, "100 per 1 hour": 99}
        assert 0 < status["token"]["age"] < 30
        assert status["token"]["expires_in"] == 60
    assert emulator.journal.token_requests == 1


def test_the_lease_holder_and_an_exhausted_budget_are_shown(emulator: Emulator, shared: dict[str, str]) -> None:
    """The holder as an opaque id, the expiry of its lease, and the seconds until the next unit."""
    store = open_store(shared["PAY88_STORE"], Clock())
    key = record_key(emulator.url, Credentials(emulator.api_key, emulator.merchant_id))
    store.try_acquire_lease(key, owner="0123456789abcdef", known_version=0, lease=20)
    budget = TokenBudget(TokenPolicy(), store.budget, emulator.url)
    while budget.acquire(emulator.merchant_id, from_reserve=False).granted:
        pass
    status = looked(shared)
    assert status["lease"]["holder"] == "01234567"
    assert 0 < status["lease"]["remaining"] <= 20
    assert status["tokens"]["10 per 1 minute"] == 0
    assert 30 < status["free_in"] <= 66
    lines = run("budget", environ=shared).out.splitlines()
    assert any("01234567, expires in " in line for line in lines)
    assert any(line.startswith("next token request  ") for line in lines)


def test_what_is_reserved_is_shown_as_the_error_has_it(emulator: Emulator, shared: dict[str, str]) -> None:
    """A manager that may not force a refresh, with units left: the command and the error have the same numbers."""
    options: dict[str, Any] = {"store": shared["PAY88_STORE"], "policy": TokenPolicy(max_wait=1)}
    credentials = Credentials(emulator.api_key, emulator.merchant_id)
    with TokenManager(credentials, base_url=emulator.url, **options) as manager:

        def force_refreshes() -> None:
            for _ in range(12):
                manager.invalidate(manager.get_token())

        with pytest.raises(TokenBudgetExhausted, match=r"1 of 10 per 1 minute.* reserved for regular refreshes"):
            force_refreshes()
        status = looked(shared)
        assert status["tokens"] == dict(manager.stats().budget_left)
        assert (status["forced"], status["free_in"]) == (0, 0.0)
    assert "forced refreshes left         0" in run("budget", environ=shared).out
    checked = json.loads(run("check", "--json", environ=shared).out)
    [budget] = [each["detail"] for each in checked["checks"] if each["name"] == "budget"]
    assert "reserved for regular refreshes" in budget


def test_the_fallback_store_is_shown_while_the_other_is_away(
    emulator: Emulator, environ: dict[str, str], tmp_path: Path
) -> None:
    """With the units used by the processes of this host; the shared store is shown again when it has recovered."""
    with ExitStack() as stack:
        server = stack.enter_context(Valkey(tmp_path))
        spare = environ["PAY88_STORE"]
        both = {**environ, "PAY88_STORE": server.url, "PAY88_FALLBACK_STORE": spare}
        assert looked(both)["store_error"] is None
        server.stop()
        for other in ({"PAY88_FALLBACK_STORE": ""}, {"PAY88_FALLBACK_STORE": both["PAY88_STORE"]}):
            assert run("budget", environ={**both, **other}).code == 1
        assert run("token", environ=both).code == 0
        status = looked(both)
        assert "cannot be reached" in status["store_error"]
        assert status["tokens"] == looked({**environ, "PAY88_STORE": spare})["tokens"]
        assert status["tokens"]["10 per 1 minute"] < 10
        assert "degraded mode" in run("budget", environ=both).out
        findings = {each["name"]: each for each in json.loads(run("check", "--json", environ=both).out)["checks"]}
        assert findings["store"]["state"] == "failed"
        assert "PAY88_FALLBACK_STORE" in findings["store"]["remedy"]
        assert findings["budget"]["state"] == findings["token"]["state"] == "ok"
        assert emulator.journal.token_requests == 1
        server.start()
        assert looked(both)["store_error"] is None


def test_the_reason_of_a_cooldown_is_shown(emulator: Emulator, shared: dict[str, str]) -> None:
    """As all workers know it."""
    emulator.faults.add(TooMany(retry_after=60), on="token")
    assert run("token", environ=shared).code == 1
    status = looked(shared)
    assert 30 < status["cooldown"]["remaining"] <= 60
    assert "429" in status["cooldown"]["reason"]
    assert "cooldown" in run("budget", environ=shared).out


def test_the_remaining_requests_are_shown_with_pacing(emulator: Emulator, environ: dict[str, str]) -> None:
    """With --pacing."""
    assert looked(environ, "--pacing")["calls"] == {
        group: {"60 per 1 minute": 60, "1000 per 1 hour": 1000} for group in ("transactions", "balance")
    }
    assert "balance requests left" in run("budget", "--pacing", environ=environ).out


def test_a_private_store_is_a_configuration_error(emulator: Emulator) -> None:
    """memory:// is private to each process."""
    ended = run("budget", environ=configured(emulator))
    assert (ended.code, ended.out) == (2, "")
    assert "PAY88_STORE" in ended.err


@pytest.mark.parametrize("url", ["redis://[::1", "sqlite://", "mysql://me"])
def test_a_store_that_cannot_be_exits_with_2(environ: dict[str, str], url: str) -> None:
    """The error names the valid forms."""
    ended = run("budget", "--store", url, environ=environ)
    assert (ended.code, ended.out) == (2, "")
    assert "redis://" in ended.err or "sqlite://" in ended.err


def test_a_store_that_is_down_exits_with_1(environ: dict[str, str]) -> None:
    """The error names the store."""
    ended = run("budget", "--store", f"redis://127.0.0.1:{free_port()}", environ=environ)
    assert (ended.code, ended.out) == (1, "")
    assert "cannot be reached" in ended.err


@posix
def test_a_terminal_gets_a_live_view_that_an_interrupt_ends(environ: dict[str, str]) -> None:
    """Redrawn until an interrupt: exit code 130."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes inherit that it is ignored
    try:
        with on_a_terminal("budget", "--interval", "0.1", environ=environ) as (process, read):
            drawn = ""
            while drawn.count("token requests left") < 3:
                drawn += read()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert process.stderr.read() == b"pay88: interrupted\n"
    finally:
        signal.signal(signal.SIGINT, before)
    assert "\x1b[" in drawn


@posix
@pytest.mark.parametrize(("more", "plain"), [({}, False), ({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, True)])
def test_a_terminal_gets_colors_unless_they_are_disabled(
    environ: dict[str, str], more: dict[str, str], plain: bool
) -> None:
    """JSON with colors; with NO_COLOR and TERM=dumb the body is unchanged."""
    with on_a_terminal("request", "POST", "/api/balance", environ={**environ, **more}) as (process, read):
        shown = ""
        while piece := read():
            shown += piece
        assert process.wait(30) == 0
    assert ("\x1b[" not in shown) is plain
    assert ('\n  "status"' in shown.replace("\x1b[1;34m", "").replace("\r", "")) is not plain


def test_the_command_is_the_package_run_as_a_module() -> None:
    """`python -m pay88_adapters.cli` is `pay88`."""
    ended = subprocess.run([*PAY88, "--version"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"pay88-adapters {__version__}\n", "")


def test_an_error_names_all_missing_variables(environ: dict[str, str]) -> None:
    """The key and the merchant id in one error, not one after the other."""
    ended = run("token", environ={**environ, "PAY88_API_KEY": "", "PAY88_MERCHANT_ID": ""})
    assert ended.code == 2
    assert {"PAY88_API_KEY", "PAY88_MERCHANT_ID"} <= set(ended.err.split())


def test_json_of_a_token_has_its_age_and_its_remaining_lifetime(environ: dict[str, str]) -> None:
    """Together they are the granted lifetime; a token from the store has the age that it has there."""
    run("token", environ=environ)
    time.sleep(0.2)
    document = json.loads(run("token", "--json", environ=environ).out)
    assert document["age"] >= 0.2
    assert document["age"] + document["expires_in"] == pytest.approx(60, abs=0.15)


def test_an_error_of_a_command_is_that_of_the_package(emulator: Emulator, environ: dict[str, str]) -> None:
    """The same text on the terminal, in JSON and as ``str(error)``, with the merchant, the URL and the seconds."""
    emulator.service.suspend()
    ended = run("token", "--json", environ={**environ, "PAY88_STORE": ""})
    with TokenManager.from_env({**environ, "PAY88_STORE": ""}) as manager, pytest.raises(CredentialsRejected) as caught:
        manager.get_token()
    assert ended.err == f"pay88: {caught.value}\n"
    assert json.loads(ended.out)["error"]["message"] == str(caught.value)
    assert all(part in ended.err for part in (emulator.merchant_id, emulator.url.partition("://")[2], " 30 s"))


@pytest.mark.parametrize(
    "command",
    [("demo", "--seconds"), ("budget", "--once", "--interval"), ("token", "--min-validity"),
     ("request", "GET", "/api/echo", "--timeout"), ("emulator", "--lifetime"), ("emulator", "--speed")],
    ids=lambda command: command[0] + command[-1],
)  # fmt: skip
def test_not_a_number_is_none(command: tuple[str, ...], environ: Mapping[str, str]) -> None:
    """It lies in no range, and a demo of that many seconds would not end."""
    ended = run(*command, "nan", environ=environ)
    assert ended.code == 2
    assert "'nan' is not a number" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [("--host", ""), ("--api-key", ""), ("--api-key", "sk live"), ("--merchant-id", "a\nb"), ("--merchant-id", "")],
    ids=repr,
)
def test_an_emulator_that_no_client_could_use(arguments: tuple[str, str]) -> None:
    """It does not start, and an empty address does not mean all addresses of the machine."""
    ended = run("emulator", "--port", "0", *arguments)
    assert ended.code == 2
    assert arguments[0].strip("-").replace("-", "_") in ended.err
