"""The pytest plugin, as its users run it: docs/testing.md, word for word, and what the page promises."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

import pay88_adapters.httpx
from pay88_adapters import TokenManager
from pay88_adapters.testing import Emulator, Latency, ManualClock, Status, TooMany

pytest_plugins = ["pytester"]

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
SYNC_CLIENTS = ["requests", "urllib3", "httpx", "httpx2"]
FOR_ASYNCIO_PLUGIN = "test_async.py"
FIXTURES = [
    *("pay88_clock", "pay88_isolated", "pay88_vcr_config", "pay88_emulator", "pay88_manager"),
    *("pay88_session_clock", "pay88_session_emulator", "pay88_session_manager"),
]
STRICT = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error", "--strict-markers")


Run = Callable[..., pytest.RunResult]


def files_in(text: str) -> dict[str, str]:
    """Return the files of a page, by name."""
    return dict(re.findall(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def files_for(client: str) -> dict[str, str]:
    """Return the files that a reader sees who has chosen the tab of a client library."""

    def tab(match: re.Match[str]) -> str:
        return match[2] if match[1] in (client, "sync clients" if client in SYNC_CLIENTS else client) else ""

    return files_in(re.sub(r"^:::\{tab-item\} ([^\n]+)\n(.*?)^:::$", tab, PAGE, flags=re.DOTALL | re.MULTILINE))


class Keeper:
    """Keeps the modules that runs within this process import first: pytester throws them away.

    Who got hold of a class in one would not know it again after the next import.
    """

    def __init__(self) -> None:
        self.modules: dict[str, ModuleType] = {}

    def pytest_unconfigure(self) -> None:
        """Remember what is there at the end of a run."""
        self.modules |= sys.modules


@pytest.fixture
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    """Put back what a test's runs have imported, except for their own files."""
    keeper = Keeper()
    yield keeper
    for name, module in keeper.modules.items():
        if not (getattr(module, "__file__", None) or "").startswith(str(tmp_path_factory.getbasetemp())):
            sys.modules.setdefault(name, module)


@pytest.fixture
def pytester(keeper: Keeper, pytester: pytest.Pytester) -> pytest.Pytester:
    """A directory of its own for a run of pytest. The keeper comes first, and so acts after it."""
    pytester.makeini("[pytest]")
    return pytester


@pytest.fixture
def run(keeper: Keeper, pytester: pytest.Pytester) -> Run:
    """Return what runs pytest on the files, in this process."""
    return lambda *options: pytester.runpytest_inprocess(*STRICT, *options, plugins=[keeper])


def write(pytester: pytest.Pytester, files: dict[str, str]) -> int:
    """Write files; return how many tests there are in them."""
    for name, text in files.items():
        (pytester.path / name).write_text(text, encoding="utf-8")
    return sum(len(re.findall(r"^ *(?:async )?def test_", text, re.MULTILINE)) for text in files.values())


@pytest.mark.parametrize("client", SYNC_CLIENTS)
def test_the_page_works_as_it_stands(client: str, run: Run, pytester: pytest.Pytester) -> None:
    """Every test on it passes, with warnings as errors; one is run twice, with other parameters."""
    files = files_for(client)
    del files[FOR_ASYNCIO_PLUGIN]
    if client != SYNC_CLIENTS[0]:  # the other files are the same for each client
        files = {name: text for name, text in files.items() if name == "shop.py" or "from shop import" in text}
    count = write(pytester, files)
    run().assert_outcomes(passed=count + 1)


def test_the_page_works_with_the_asyncio_plugin(pytester: pytest.Pytester) -> None:
    """The files of the tab for aiohttp, and the test for an async client."""
    pytest.importorskip("pytest_asyncio")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")  # or else old versions warn
    files = files_for("aiohttp")
    names = ("shop.py", "test_shop.py", "test_faults.py", FOR_ASYNCIO_PLUGIN)
    count = write(pytester, {name: files[name] for name in names})
    assert all("\nasync def test_" in files[name] for name in names[1:])
    pytester.runpytest_subprocess("-W", "error", "--strict-markers").assert_outcomes(passed=count)


def test_every_block_of_the_page_is_run() -> None:
    """No code on the page but what these tests run."""
    fragments = re.findall(r"^<!-- not run: [^\n]+ -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    files = {text for client in [*SYNC_CLIENTS, "aiohttp"] for text in files_for(client).values()}
    assert len(re.findall(r"^```python$", PAGE, re.MULTILINE)) - len(fragments) == len(files) > 15
    assert all(compile(fragment, "docs/testing.md", "exec") for fragment in fragments)


@pytest.mark.deep
def test_the_page_works_with_other_plugins(pytester: pytest.Pytester) -> None:
    """The block for pytest-asyncio is run by it, and everything by two workers of pytest-xdist."""
    pytest.importorskip("pytest_asyncio")
    pytest.importorskip("xdist")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")  # or else it warns
    count = write(pytester, files_for(SYNC_CLIENTS[0]))
    pytester.runpytest_subprocess("-W", "error", "--strict-markers", "-n", "2").assert_outcomes(passed=count + 1)


def test_nothing_is_imported_before_a_fixture_is_used(pytester: pytest.Pytester) -> None:
    """Where none is, the package is not loaded; without aiohttp, only tests that need it fail, and say what to do."""
    pytester.makepyfile(
        """
        import sys

        sys.modules["aiohttp"] = None

        def test_not_loaded():
            assert not [name for name in sys.modules if name.startswith(("pay88_adapters", "limits"))]

        def test_clock(pay88_clock):
            pay88_clock.advance(1)

        def test_emulator(pay88_emulator):
            pass
        """
    )
    result = pytester.runpytest_subprocess(*STRICT)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["E *ImportError: aiohttp is not installed: pip install 'pay88-adapters[[]testing]'"])


def test_it_does_not_mind_that_the_package_is_there_already(run: Run, pytester: pytest.Pytester) -> None:
    """A program that has imported it can run pytest, also with warnings as errors."""
    pytester.makepyfile("def test_it(pay88_manager): pass")
    program = f"import pay88_adapters, pytest, sys; sys.exit(pytest.main({list(STRICT)}))"
    assert pytester.run(sys.executable, "-W", "error", "-c", program).ret == 0


def test_it_can_be_left_out(run: Run, pytester: pytest.Pytester) -> None:
    """With `-p no:pay88` there are no such fixtures."""
    pytester.makepyfile("def test_it(pay88_emulator): pass")
    result = run("-p", "no:pay88")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'pay88_emulator' not found*"])


def test_fixtures_and_mark_are_documented(run: Run) -> None:
    """`pytest --fixtures` and `pytest --markers` describe them."""
    shown = run("--fixtures").stdout.str()
    described = re.findall(r"^(pay88_\w+)(?: \[session scope\])? -- .*\n    \S", shown, re.MULTILINE)
    assert sorted(described) == sorted(FIXTURES)
    assert "@pytest.mark.pay88(" in run("--markers").stdout.str()


def ours() -> dict[str, str]:
    """Return the variables that the plugin sets or removes."""
    return {name: value for name, value in os.environ.items() if name.startswith(("PAY88_", "EIGHTY_"))}


def test_tests_share_nothing(run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has an empty service, a budget of its own, its own managers and a clock at its start."""
    monkeypatch.setenv("PAY88_API_KEY", "sk_live_real")
    monkeypatch.setenv("PAY88_STORE", "redis://nowhere.invalid")
    monkeypatch.setenv("EIGHTY_EIGHT_PAY_API_KEY", "sk_live_real")
    before = ours()
    pytester.makepyfile(
        """
        import os

        import pytest

        from pay88_adapters import Credentials, TokenManager
        from pay88_adapters.testing import Status

        seen = set()

        @pytest.mark.pay88(merchant_id="MCH-COL-TEST-SAME")
        @pytest.mark.parametrize("turn", range(2))
        def test_it(turn, pay88_clock, pay88_emulator, pay88_manager):
            mine = {name for name in os.environ if name.startswith(("PAY88_", "EIGHTY_"))}
            assert mine == {"PAY88_API_KEY", "PAY88_MERCHANT_ID", "PAY88_BASE_URL"}
            made = TokenManager.from_env()
            assert made.get_token() == pay88_manager.get_token()
            assert pay88_clock.now() == 1000
            pay88_clock.advance(60)
            assert made.get_token() == pay88_manager.get_token()
            assert pay88_emulator.journal.token_requests == 2
            shared = TokenManager.shared(Credentials("sk_test_a", "MCH-A"), base_url="http://127.0.0.1:1")
            assert shared is TokenManager.shared(Credentials("sk_test_a", "MCH-A"), base_url="http://127.0.0.1:1")
            assert shared not in seen
            seen.add(shared)
            assert pay88_manager.stats().budget_left["100 per 1 hour"] == 98
            pay88_emulator.faults.add(Status(500), on="any", times=None)
            pay88_emulator.service.refuse_current_tokens()
        """
    )
    run().assert_outcomes(passed=2)
    assert ours() == before


def test_the_session_has_one(run: Run, pytester: pytest.Pytester) -> None:
    """It is there for all tests, beside those that tests have of their own, and leaves the environment alone."""
    pytester.makepyfile(
        """
        import os

        def test_one(pay88_session_manager, pay88_session_emulator):
            assert "PAY88_BASE_URL" not in os.environ
            pay88_session_manager.get_token()

        def test_two(pay88_session_manager, pay88_session_emulator, pay88_session_clock, pay88_manager, pay88_clock):
            pay88_manager.get_token()
            pay88_clock.advance(60)
            pay88_session_manager.get_token()
            assert pay88_session_emulator.journal.token_requests == 1
            pay88_session_clock.advance(60)
            pay88_session_manager.get_token()
            assert pay88_session_emulator.journal.token_requests == 2
        """
    )
    run().assert_outcomes(passed=2)


def test_a_failure_shows_what_arrived(run: Run, pytester: pytest.Pytester) -> None:
    """Line by line, the newest hundred, without a secret; a test that passes shows nothing."""
    pytester.makepyfile(
        """
        from pathlib import Path

        import pytest

        from pay88_adapters.testing import Status
        from pay88_adapters.urllib3 import Pay88PoolManager

        @pytest.mark.pay88(call_limits=())
        @pytest.mark.parametrize("expected", [7, 103])
        def test_it(expected, pay88_emulator, pay88_manager):
            http = Pay88PoolManager(pay88_manager)
            pay88_emulator.faults.add(Status(503), on="call")
            for _ in range(101):
                http.request("POST", f"{pay88_emulator.url}/api/balance")
            Path("secrets").write_text("\\n".join(pay88_emulator.service.secrets()))
            assert len(pay88_emulator.journal) == expected
        """
    )
    result = run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*Captured 88Pay journal teardown*", "(3 earlier requests)", "*POST /api/balance  200*"]
    )
    shown = result.stdout.str()
    assert shown.count("POST /api/balance  200  balance, token 1") == 100
    assert not [secret for secret in (pytester.path / "secrets").read_text().split() if secret in shown]


def test_the_mark_takes_what_the_emulator_does(run: Run, pytester: pytest.Pytester) -> None:
    """The closest one counts; what the emulator does not know is an error."""
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.pay88(lifetime=30)

        def test_module(pay88_emulator):
            assert pay88_emulator.service.lifetime == 30

        @pytest.mark.pay88(lifetime=20)
        def test_own(pay88_emulator):
            assert pay88_emulator.service.lifetime == 20

        @pytest.mark.pay88(lifetme=20)
        def test_misspelt(pay88_emulator): pass

        @pytest.mark.pay88(20)
        def test_nameless(pay88_emulator): pass
        """
    )
    result = run()
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["E *TypeError: *'lifetme'*"])


# Here, where the checkers see them, with the types that the page names


def test_backoff_delays_move_the_clock(
    pay88_emulator: Emulator, pay88_manager: TokenManager, pay88_clock: ManualClock
) -> None:
    """A token endpoint with errors or latency costs time on the fake clock and none in real time; so does a wait."""
    pay88_emulator.faults.add(Status(503), on="token", times=2)
    pay88_emulator.faults.add(TooMany(retry_after=15), on="token")
    pay88_emulator.faults.add(Latency(3), on="token", after=3)
    before = pay88_clock.now()
    assert pay88_manager.get_token().access_token
    assert 15 + 3 <= pay88_clock.now() - before < 15 + 3 + 2
    assert pay88_emulator.journal.token_requests == 4


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_pauses_of_tasks_move_the_clock(
    pay88_emulator: Emulator, pay88_manager: TokenManager, pay88_clock: ManualClock, anyio_backend: str
) -> None:
    """The same in a task."""
    pay88_emulator.faults.add(Status(503), on="token", times=2)
    pay88_emulator.faults.add(TooMany(retry_after=15), on="token")
    pay88_emulator.faults.add(Status(503), on="call")
    async with httpx.AsyncClient(base_url=pay88_emulator.url) as client:
        pay88_adapters.httpx.attach(client, pay88_manager)
        before = pay88_clock.now()
        assert (await client.get("/api/echo")).status_code == 200
    assert 15 <= pay88_clock.now() - before < 15 + 3
    assert [entry.status for entry in pay88_emulator.journal] == [503, 503, 429, 200, 503, 200]
