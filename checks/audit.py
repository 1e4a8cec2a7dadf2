"""Check the dependencies for known vulnerabilities: ``python checks/audit.py``.

pip-audit needs a service that lists them, PyPI or OSV. Where neither is reachable, as on a machine without internet or
with a mirror of PyPI alone, the check says so and passes. Exit code 1: there are known vulnerabilities.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SERVICES = {
    "pypi": "https://pypi.org/pypi/limits/json",
    "osv": "https://api.osv.dev/v1/vulns/PYSEC-2024-60",
}
"""What pip-audit calls a service, and a document that it has where it works."""


def requirements() -> list[str]:
    """Return what the package installs, with all extras."""
    project = importlib.import_module("tomllib").loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    every = {*project["dependencies"], *(text for extra in extras for text in extra)}
    return sorted(text for text in every if not text.startswith(project["name"]))


def reachable(url: str) -> bool:
    """Whether a service responds."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - https, see above
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main() -> int:
    """Audit with the first service that works; return an exit code."""
    service = next((name for name, url in SERVICES.items() if reachable(url)), None)
    if service is None:
        print(f"vulnerabilities were not checked: {' and '.join(SERVICES)} are not reachable from here")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "requirements.txt"
        file.write_text("\n".join(requirements()), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--requirement", str(file)]
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "--format", "json"], capture_output=True, check=False, text=True
        )
    if not done.stdout:
        print(f"vulnerabilities were not checked: pip-audit failed\n{done.stderr}")
        return 0
    return report(json.loads(done.stdout)["dependencies"])


def report(dependencies: list[dict[str, Any]]) -> int:
    """Print what was found, and what was not checked; return an exit code."""
    skipped = [each["name"] for each in dependencies if "skip_reason" in each]
    found = [
        (each["name"], each["version"], vulnerability)
        for each in dependencies
        for vulnerability in each.get("vulns", ())
    ]
    if skipped:
        print(f"vulnerabilities were not checked for {len(skipped)} of {len(dependencies)}: {', '.join(skipped)}")
    for name, version, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
        print(f"{name} {version}: {vulnerability['id']}, fixed in {fixed}")
    print(f"{len(found)} known vulnerabilities in {len(dependencies) - len(skipped)} distributions")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
