"""What the tests of tools share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.stacks import STACKS, Httpx2, Stack

LIBRARIES = ("urllib3", "requests", "httpx", "httpx2", "aiohttp")

BY_LIBRARY: dict[str, type[Stack]] = {kind.name: kind for kind in (*STACKS, Httpx2) if kind.name in LIBRARIES}

SHOWN = pytest.StashKey[dict[str, dict[str, str]]]()
"""What the tests show: a cell by tool and HTTP client."""

Open = Callable[[], Stack]
