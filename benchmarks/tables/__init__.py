"""The tables, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.report import Options, Table

from . import boundary, cached, crowds, fleet, imports, loopback, managers, reads, stores, storms

TABLES: dict[str, Callable[[Options], list[Table]]] = {
    "cached": cached.run,
    "loopback": loopback.run,
    "reads": reads.run,
    "storms": storms.run,
    "crowds": crowds.run,
    "boundary": boundary.run,
    "fleet": fleet.run,
    "managers": managers.run,
    "stores": stores.run,
    "imports": imports.run,
}
