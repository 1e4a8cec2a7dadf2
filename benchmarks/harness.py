"""Measurements in fresh processes, interleaved in random order."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pay88_adapters.testing import Emulator

from .service import Service

ROOT = Path(__file__).parent.parent
Figures = dict[str, float]
Job = tuple[str, Mapping[str, Any]]
"""A key, and what to measure."""


class TooLong(Exception):
    """A measurement did not end."""


def fresh(
    spec: Mapping[str, Any], *, prefix: Iterable[str] = (), seed: int = 0, timeout: float = 300
) -> tuple[Any, str]:
    """Measure in a process of its own; return the result, and what it wrote to its standard error.

    Raises:
        RuntimeError: It failed.
        TooLong: It did not end.
    """
    command = [*prefix, sys.executable, "-m", "benchmarks.probe", json.dumps(spec)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=_environment(seed), capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TooLong(f"{spec} took more than {timeout:.0f} s") from error
    if done.returncode:
        raise RuntimeError(f"{spec}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def _environment(seed: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    # What is hashed, and so how often tables collide, must not differ from process to process.
    return {**kept, "PYTHONHASHSEED": str(seed)}


def interleaved(jobs: Iterable[Job], rounds: int, tell: Callable[[str], None]) -> dict[str, list[Any]]:
    """Measure each job once a round, the order a new one in each; return the results by key."""
    jobs = list(jobs)
    results: dict[str, list[Any]] = {key: [] for key, _ in jobs}
    for turn in range(rounds):
        random.shuffle(jobs)
        for done, (key, spec) in enumerate(jobs, 1):
            tell(f"round {turn + 1} of {rounds}, {done} of {len(jobs)}")
            results[key].append(fresh(spec)[0])
    return results


def medians(results: Iterable[Mapping[str, float]]) -> Figures:
    """Return the median of each figure."""
    rows = list(results)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def valgrind() -> bool:
    """Return whether instructions can be counted here."""
    return shutil.which("valgrind") is not None


_REFERENCES = re.compile(r"I\s+refs:\s+([\d,]+)")


def _count(spec: Mapping[str, Any], seed: int) -> int:
    tool = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
    _, log = fresh(spec, prefix=tool, seed=seed)
    found = _REFERENCES.search(log)
    if found is None:
        raise RuntimeError(f"valgrind counted nothing: {log[-2000:]}")
    return int(found[1].replace(",", ""))


def instructions(
    jobs: Iterable[Job], name: str, fewer: int, more: int, tell: Callable[[str], None], *, seeds: int = 1
) -> dict[str, float]:
    """Return the instructions that one of what each job does *name* times takes: the median of some hash seeds.

    With each seed a job runs twice, *fewer* and *more* times: the difference is free of the start-up. How often hash
    tables collide depends on the seed.
    """
    jobs = list(jobs)
    turns = [
        (key, {**spec, name: times}, seed) for key, spec in jobs for times in (fewer, more) for seed in range(seeds)
    ]
    random.shuffle(turns)
    counted: dict[tuple[str, int, int], int] = {}

    def count(turn: tuple[str, Mapping[str, Any], int]) -> None:
        key, spec, seed = turn
        counted[key, spec[name], seed] = _count(spec, seed)
        tell(f"instructions, {len(counted)} of {len(turns)}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # instructions do not mind company
        list(pool.map(count, turns))
    return {
        key: statistics.median(counted[key, more, seed] - counted[key, fewer, seed] for seed in range(seeds))
        / (more - fewer)
        for key, _ in jobs
    }


def allow_many_sockets() -> None:
    """Let this process, and those that it starts, open as many as it may at all."""
    try:
        import resource
    except ModuleNotFoundError:  # where there is no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def emulator(*, lifetime: float = 60.0) -> Any:
    """Run 88Pay, without its limits: many measurements share it."""
    with Emulator(lifetime=lifetime, token_limits=(), call_limits=()) as running:
        yield running


def service(running: Emulator, **options: Any) -> dict[str, Any]:
    """Return the arguments of a process that measures."""
    return asdict(Service(running.url, running.api_key, running.merchant_id, **options))
