"""vcrpy and pytest-recording: no secret in a cassette, and a replay that needs no server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vcr
from toolkit import Open

from pay88_adapters import ConfigurationError, TokenManager
from pay88_adapters.testing import Emulator, RefuseToken, Status, isolated, vcr_config

Check = Callable[[str | Path], None]


@pytest.fixture(params=["yaml", "json"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """With each of vcrpy's formats."""
    return {"serializer": request.param}


@pytest.mark.tool("vcrpy", setting="`vcr_config()`")
def test_records_and_replays(
    client: Open, emulator: Emulator, options: dict[str, str], tmp_path: Path, no_secret: Check
) -> None:
    """Rejected tokens and failures included; the replay starts without a token, and reaches no server."""
    url = f"{emulator.url}/api/balance"
    emulator.faults.add(Status(503), on="token")
    emulator.faults.add(RefuseToken(), on="call")
    cassette = tmp_path / "cassette"

    def seen() -> Any:
        return json.loads(client().request("POST", url).body)

    with vcr.use_cassette(str(cassette), **vcr_config(**options)), isolated():
        recorded = seen()
    no_secret(tmp_path)
    arrived = len(emulator.journal)
    for _ in range(2):
        with vcr.use_cassette(str(cassette), record_mode="none", **vcr_config(**options)), isolated():
            assert seen() == recorded
    assert len(emulator.journal) == arrived


FILTERS = ["authorization", "x-session-id", "x-api-key"]


def scrubbed(response: dict[str, Any]) -> dict[str, Any]:
    """Return a token response as a careful user of vcrpy would record it."""
    document = json.loads(response["body"]["string"])
    if "access_token" in (document.get("data") or {}):
        document["data"].update(access_token="made-up", session_id="made-up")
    return {**response, "body": {"string": json.dumps(document).encode()}}


def test_filters_of_ones_own_will_do(
    client: Open, emulator: Emulator, options: dict[str, str], tmp_path: Path, no_secret: Check
) -> None:
    """Those for the three headers and for the bodies of token responses."""
    own = {"filter_headers": FILTERS, "before_record_response": scrubbed, **options}
    with vcr.use_cassette(str(tmp_path / "cassette"), **own):
        assert client().request("POST", f"{emulator.url}/api/balance").status == 200
    no_secret(tmp_path)


@pytest.mark.parametrize(
    "given",
    [{}, {"filter_headers": FILTERS}, {"before_record_response": scrubbed}, {"filter_headers": FILTERS[:2]}],
    ids=["nothing", "headers only", "bodies only", "all but the key"],
)
def test_a_cassette_that_would_hold_a_secret_is_rejected(
    client: Open, emulator: Emulator, manager: TokenManager, options: dict[str, str], given: Any, tmp_path: Path
) -> None:
    """Before anything is sent; the error names what to use, and nothing is left of it afterwards."""
    url = f"{emulator.url}/api/balance"
    opened = client()
    with vcr.use_cassette(str(tmp_path / "cassette"), **given, **options):
        with pytest.raises(ConfigurationError, match=r"vcrpy cassette .*pay88_adapters\.testing\.vcr_config\(\)"):
            opened.request("POST", url)
        with pytest.raises(ConfigurationError, match="vcr_config"):
            manager.get_token()
    assert len(emulator.journal) == 0
    assert not (tmp_path / "cassette").exists()
    assert opened.request("POST", url).status == 200


def test_a_token_from_before_is_not_recorded(
    library: str, client: Open, emulator: Emulator, options: dict[str, str], tmp_path: Path, no_secret: Check
) -> None:
    """Where there is no token request to reject, the request itself is; vcrpy sees none of aiohttp's headers."""
    url = f"{emulator.url}/api/balance"
    opened = client()
    opened.request("POST", url)
    with vcr.use_cassette(str(tmp_path / "cassette"), **options):
        if library != "aiohttp":
            with pytest.raises(ConfigurationError, match=r"request not sent: .*vcr_config\(\)"):
                opened.request("POST", url)
            assert emulator.journal.calls == 1
            return
        opened.request("POST", url)
    no_secret(tmp_path)


def test_options_of_ones_own_are_kept() -> None:
    """Filters add to ours; what is not to be recorded is not."""
    config = vcr_config(
        filter_headers=["cookie"], before_record_response=lambda response: None, record_mode="none", match_on=["uri"]
    )
    assert "cookie" in config["filter_headers"]
    assert ("authorization", "[secret]") in config["filter_headers"]
    assert config["before_record_response"]({"headers": {}, "body": {"string": b""}}) is None
    assert (config["record_mode"], config["match_on"]) == ("none", ["uri"])


RECORDED = """
import pytest
from pay88_adapters import TokenManager
from toolkit import BY_LIBRARY

manager = TokenManager.from_env()

@pytest.fixture(scope="module")
def client():
    with BY_LIBRARY["{library}"](manager) as client:
        yield client

@pytest.fixture
def vcr_config(pay88_vcr_config):
    return pay88_vcr_config

@pytest.mark.vcr
@pytest.mark.parametrize("turn", range(3))
def test_balance(turn, client):
    assert client.request("POST", f"{{manager.base_url}}/api/balance").status == 200
"""


@pytest.mark.tool("pytest-recording", setting="`pay88_vcr_config`")
def test_pytest_recording(
    library: str, pytester: pytest.Pytester, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, no_secret: Check
) -> None:
    """Each test records its own token request, also with a manager that all share: so each replays alone."""
    here = Path(__file__).parent
    for name, value in emulator.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # of ten others, which take seconds to start
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_recording.plugin,_pay88_pytest")
    pytester.makepyfile(RECORDED.format(library=library))
    pytester.makeini("[pytest]")
    pytester.runpytest_subprocess("--record-mode=once").assert_outcomes(passed=3)
    assert emulator.journal.token_requests == 3
    no_secret(Path(pytester.path, "cassettes"))
    arrived = len(emulator.journal)
    for options in (["-k", "2"], []):
        result = pytester.runpytest_subprocess("--record-mode=none", "--block-network", *options)
        assert not result.parseoutcomes().get("failed")
        assert result.ret == 0
    assert len(emulator.journal) == arrived
