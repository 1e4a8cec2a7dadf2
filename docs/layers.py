"""Read the layers of the package, and the imports between them, off its source: for the diagram of the architecture."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pay88_adapters

PACKAGE = Path(pay88_adapters.__file__).parent
LAYERS = ("cli", "testing", "adapters", "engine", "stores", "core")
"""From the outside to the inside: none imports one that stands before it."""
_FACADES = ("errors", "events", "clock")  # public names of what is in core and engine


def modules() -> dict[str, list[str]]:
    """Return the modules of each layer by name; packages within a layer count as one."""
    found: dict[str, set[str]] = {layer: set() for layer in LAYERS}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if (parts[-1] in ("__init__", "__main__") and len(parts) <= 2) or parts[0] in _FACADES:
            continue
        found[_layer(parts)].add(parts[1] if len(parts) > 1 else parts[0])
    return {layer: sorted(names) for layer, names in found.items()}


def arrows() -> dict[tuple[str, str], int]:
    """Return how many imports lead from one layer to another."""
    counted: Counter[tuple[str, str]] = Counter()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",) or parts[0] in _FACADES:
            continue
        for target in _imported(path, parts):
            if target and target[0] not in (*_FACADES, "__init__"):
                pair = _layer(parts), _layer(target)
                counted[pair] += pair[0] != pair[1]
    return {pair: count for pair, count in sorted(counted.items()) if count}


def _layer(parts: tuple[str, ...]) -> str:
    return parts[0] if parts[0] in LAYERS else "adapters"


def _imported(path: Path, parts: tuple[str, ...]) -> list[tuple[str, ...]]:
    targets: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        named = tuple((node.module or "").split(".")) if node.module else ()
        if node.level:
            targets.append((*parts[: len(parts) - node.level], *named))
        elif named[:1] == ("pay88_adapters",):
            targets.append(named[1:])
    return targets
