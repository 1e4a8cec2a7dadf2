"""Installs a browser for the tests that need one: Debian's Chromium, where this runs as root."""

from __future__ import annotations

import os
import shutil
import subprocess

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = f"no browser is found: install Chromium or Chrome, so that one of {', '.join(BROWSERS)} is on PATH"
INSTALL = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120")


def browser() -> str | None:
    """Return the path of a browser."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def main() -> None:
    """Install one unless there is one; whether that went well is for the tests to say."""
    if browser() or not shutil.which("apt-get") or os.geteuid():
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    packages = ("chromium", "fonts-liberation", "fonts-dejavu-core")
    for what in (("update",), ("install", "-y", "--no-install-recommends", *packages)):
        subprocess.run([*INSTALL, *what], env=environment, check=False)


if __name__ == "__main__":
    main()
