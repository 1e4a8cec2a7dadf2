"""The commands of docs/cli.md, run as they stand there: they print what the page says they do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pay88_adapters import SANDBOX_URL
from pay88_adapters.testing import Emulator
from support.commands import configured, run, started
from support.servers import free_port

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="the page is for a shell"),
]

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
BLOCKS = {
    (how, name): text
    for how, name, text in re.findall(
        r"^<!-- (run|serve): (\S+) -->\n```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
    )
}
TO_RUN = [name for how, name in BLOCKS if how == "run"]


def steps(block: str) -> list[tuple[str, str]]:
    """Return each command of a block, and what it is said to print."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def prints(said: str, printed: str) -> bool:
    """Whether what was *printed* is what the page *said*, where … stands for anything."""
    pattern = "".join(".*" if each == "…" else re.escape(each) for each in re.split("(…)", said))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """The service."""
    with Emulator() as emulator:
        yield emulator


@pytest.mark.parametrize("name", TO_RUN)
def test_the_page_shows_what_is_printed(name: str, emulator: Emulator, tmp_path: Path) -> None:
    """In a shell, with the emulator as 88Pay and a token in the store except where the page begins without."""
    environ = configured(emulator, PAY88_STORE=f"sqlite:///{tmp_path}/store.db")
    if name == "budget":
        assert run("token", environ=environ).code == 0
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command, said in steps(BLOCKS["run", name]):
        if "curl " in command and not shutil.which("curl"):
            continue
        here = command.replace(SANDBOX_URL, emulator.url)
        ended = subprocess.run(
            ["bash", "-c", here], env={**environ, "PATH": path}, capture_output=True, text=True, check=False
        )
        printed = ended.stdout if ended.stdout.endswith("\n") else ended.stdout + "\n"  # a prompt comes on a new line
        assert ended.stderr == "", command
        assert prints(said, printed), printed


def test_the_page_shows_what_the_emulator_prints(tmp_path: Path) -> None:
    """On another port, which may not be free here."""
    [(command, said)] = steps(BLOCKS["serve", "emulator"])
    port = str(free_port())
    said = said.replace("8088", port)
    word, *arguments = shlex.split(command)
    assert word == "pay88"
    with started(*arguments, "--port", port) as process:
        lines = [process.stdout.readline() for _ in range(5)]
        environ = dict(shlex.split(line)[1].split("=", 1) for line in lines[2:])
        assert run("request", "POST", "/api/balance", environ=environ).code == 0
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert prints(said, "".join(lines) + out), out


def test_no_example_is_left_out() -> None:
    """All but the demonstration, which has a test of its own."""
    assert len(re.findall(r"^```console$", PAGE, re.MULTILINE)) == len(BLOCKS) + 1


@pytest.mark.parametrize("command", ["budget", "check", "demo", "emulator", "request", "token"])
def test_every_option_is_on_the_page(command: str) -> None:
    """Whatever the help of a command lists."""
    options = set(re.findall(r"^  (--[a-z-]+)", run(command, "--help").out, re.MULTILINE)) - {"--help"}
    assert options
    assert {option for option in options if option not in PAGE} == set()
