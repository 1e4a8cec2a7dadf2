"""The command line, as it is used."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner

from pay88_adapters.cli.app import pay88
from pay88_adapters.testing import Emulator

PAY88 = (sys.executable, "-W", "error", "-m", "pay88_adapters.cli")
_VARIABLES = (
    "PAY88_API_KEY",
    "PAY88_MERCHANT_ID",
    "PAY88_ENVIRONMENT",
    "PAY88_BASE_URL",
    "PAY88_STORE",
    "EIGHTY_EIGHT_PAY_API_KEY",
    "EIGHTY_EIGHT_PAY_MERCHANT_ID",
    "SSL_CERT_FILE",
    "NO_COLOR",
    "COLUMNS",
)
# Before click 8.2 a runner has to be configured to keep the two apart.
_APART: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


def run(*arguments: str, environ: Mapping[str, str] | None = None, text: str | bytes | None = None) -> Ended:
    """Run a command in this process, with nothing in its environment but *environ*; *text* is its input."""
    env: dict[str, str | None] = {**dict.fromkeys(_VARIABLES), **(environ or {})}
    ended = CliRunner(**_APART).invoke(pay88, arguments, env=env, input=text, prog_name="pay88")
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return Ended(ended.exit_code, ended.stdout, ended.stderr)


def configured(emulator: Emulator, **more: str) -> dict[str, str]:
    """Return the variables that configure a client of *emulator*."""
    return {
        "PAY88_API_KEY": emulator.api_key,
        "PAY88_MERCHANT_ID": emulator.merchant_id,
        "PAY88_BASE_URL": emulator.url,
        **more,
    }


@contextmanager
def started(*arguments: str, environ: Mapping[str, str] | None = None, **options: Any) -> Generator[Any, None, None]:
    """Run a command in a process of its own."""
    env = {name: value for name, value in os.environ.items() if name not in _VARIABLES} | dict(environ or {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with subprocess.Popen([*PAY88, *arguments], env=env, **streams) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def on_a_terminal(*arguments: str, environ: Mapping[str, str]) -> Generator[tuple[Any, Any], None, None]:
    """Run a command whose output is a terminal; give the process, and a function that reads what is there."""
    ours, theirs = os.openpty()
    try:
        with started(*arguments, environ={"TERM": "xterm", **environ}, stdout=theirs, text=False) as process:
            os.close(theirs)
            theirs = -1

            def read() -> str:
                try:
                    return os.read(ours, 65536).decode()
                except OSError:  # the other end is closed
                    return ""

            yield process, read
    finally:
        for each in (ours, theirs):
            if each >= 0:
                os.close(each)
