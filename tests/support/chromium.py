"""Chromium, for the tests of pages: of the emulator and of the documentation."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.browser_setup import MISSING, browser

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


def unavailable(reason: str) -> None:
    """Skip a test that needs a browser; fail in CI, where every test has to run."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def needed(name: str) -> Any:
    """Return a module of the dependency groups `browser` and `docs`."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return unavailable(f"{name} is not installed: pip install --group browser --group docs")


@contextmanager
def started() -> Iterator[Any]:
    """Start a browser."""
    path = browser()
    if path is None:
        unavailable(MISSING)
    with needed("playwright.sync_api").sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield running
        running.close()
