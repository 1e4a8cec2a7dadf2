"""``python -m benchmarks``: measure, print the tables, write JSON, draw the plots."""

from __future__ import annotations

import argparse
import compileall
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from . import plots
from .contestants import STACKS
from .harness import ROOT, valgrind
from .report import Options, Table
from .tables import TABLES

_QUICK = ("urllib3", "aiohttp")
_LIBRARIES = (
    "pay88-adapters", "urllib3", "requests", "httpx", "httpx2", "aiohttp", "limits",
    "google-auth", "authlib", "httpx-auth", "botocore", "azure-core",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"a few minutes: few rounds, {' and '.join(_QUICK)} only")
    parser.add_argument("--full", action="store_true", help="cold starts and storms of 1,000 threads or 10,000 tasks")
    parser.add_argument("--only", action="append", choices=TABLES, metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--stack", action="append", choices=STACKS, metavar="NAME", help=", ".join(STACKS))
    parser.add_argument("--json", type=Path, help="where the figures go, benchmarks/results/ unless given")
    parser.add_argument("--plots", type=Path, help="where the plots go; docs/benchmarks/, and none with --quick")
    requested = parser.parse_args(arguments)
    compileall.compile_dir(str(ROOT / "benchmarks"), quiet=1)  # or the first process that measures would
    compileall.compile_dir(str(ROOT / "src"), quiet=1)
    tables: list[Table] = []
    for name in requested.only or TABLES:
        options = Options(
            requested.quick, requested.full, requested.stack or (_QUICK if requested.quick else STACKS), _telling(name)
        )
        made = TABLES[name](options)
        _clear()
        for table in made:
            print(table.text(), flush=True)
        tables += made
    path = requested.json or ROOT / "benchmarks" / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = {
        "made": _circumstances(quick=requested.quick, full=requested.full),
        "tables": [asdict(table) for table in tables],
    }
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {path}")
    if requested.plots is None and not requested.quick:
        requested.plots = ROOT / "docs" / "benchmarks"
    if requested.plots is not None:
        for drawn in plots.draw(tables, requested.plots):
            print(f"drawn: {drawn}")


def _circumstances(*, quick: bool, full: bool) -> dict[str, object]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {
        "python": python,
        "system": platform.system(),
        "quick": quick,
        "full": full,
        "valgrind": valgrind(),
        **versions,
    }


def _telling(name: str) -> Callable[[str], None]:
    def tell(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{name}: {text}")
            sys.stderr.flush()

    return tell


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


if __name__ == "__main__":
    main()
