"""The recipes of docs/tools: their files in a folder, and their commands as processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.servers import free_port

DOCS = Path(__file__).parents[2] / "docs"
DEADLINE = 45.0
"""Seconds for what takes a few, where nothing else is to be done."""

_BLOCK = re.compile(r"^<!-- (\w+)(?:: ([^\n]+))? -->\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(r"^```python$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of a page, with the comment above it."""

    kind: str
    about: str
    text: str


def blocks(page: str, kind: str) -> list[Block]:
    """Return the blocks of a page that have such a comment."""
    found = [Block(*part) for part in _BLOCK.findall(text_of(page))]
    return [block for block in found if block.kind == kind]


def text_of(page: str) -> str:
    """Return a page's text."""
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def unmarked(page: str) -> int:
    """Return how many blocks of Python have no comment above them, so that nothing runs them."""
    return len(_PYTHON.findall(text_of(page))) - sum(
        text.startswith("```python") for text in re.findall(r"^<!-- [^\n]+ -->\n(```\w+)$", text_of(page), re.MULTILINE)
    )


def until(happens: Callable[[], object], what: str) -> None:
    """Wait until it happens."""
    deadline = time.monotonic() + DEADLINE
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Folder:
    """A directory with a page's files in it, and what runs there.

    Args:
        path: The directory.
        page: The page.
        environment: Variables for the processes; those of the package that this process has are left out.
    """

    def __init__(self, path: Path, page: str, environment: Mapping[str, str]) -> None:
        self.path, self._log = path, path / "log"
        for block in blocks(page, "file"):
            file = path / block.about
            file.parent.mkdir(exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        self.port = free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAY88_")}
        self._environment = inherited | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONUNBUFFERED": "1",
            "PORT": str(self.port),
            **environment,
        }

    @contextmanager
    def running(self, command: str) -> Iterator[None]:
        """Run a command; at the end stop it, with all processes that it started."""
        with self._log.open("a") as log:
            process = subprocess.Popen(
                ["sh", "-c", command],
                cwd=self.path,
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            yield
            assert process.poll() is None, "it ended"
        except BaseException:
            print(self.log)  # noqa: T201 - shown where the test fails
            raise
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            finally:
                with_its_children_gone(process.pid)
                process.wait()

    def python(self, code: str) -> str:
        """Run a script; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.path,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, done.stderr + self.log
        return done.stdout

    @property
    def log(self) -> str:
        """What was logged so far."""
        return self._log.read_text(encoding="utf-8") if self._log.exists() else ""


def with_its_children_gone(group: int) -> None:
    """End what is left of a group of processes."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
