"""Build the sdist and, from it, the wheel; check what is in them: ``python checks/package.py [--save-licenses]``.

Both end up in dist/. The wheel is installed with all extras in an environment of its own: it is imported there, and the
licenses of what came with it are compared with docs/dependencies.md.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
PAGE = ROOT / "docs" / "dependencies.md"
PERMISSIVE = {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "PSF-2.0", "Python-2.0", "Unlicense"}
"""Licenses that a user of the package need not think about. MPL-2.0 is on the page where it occurs."""

LEFTOVERS = re.compile(
    r"__pycache__|\.pyc$|\.(?:pytest|mypy|ruff)_cache|\.hypothesis|/docs/_build/|/dist/|\.env$|/\.venv/|\.tox/"
)
IN_SDIST = {
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "pyproject.toml",
    "tox.ini",
    "src/pay88_adapters/py.typed",
}
IN_WHEEL = {"_pay88_pytest.py", "pay88_adapters/py.typed", "pay88_adapters/__init__.py"}
TABLE = re.compile(r"<!-- licenses -->\n(.*?)<!-- end of licenses -->", re.DOTALL)

IMPORTS = """
import pay88_adapters, pay88_adapters.urllib3, pay88_adapters.requests, pay88_adapters.httpx, pay88_adapters.httpx2
import pay88_adapters.aiohttp, pay88_adapters.otel, pay88_adapters.testing, pay88_adapters.stores, pay88_adapters.cli
"""


def run(*command: str | Path) -> str:
    """Run a command; return what it prints."""
    done = subprocess.run([str(part) for part in command], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return done.stdout


def require(condition: object, message: str) -> None:
    """End with a message unless *condition* holds."""
    if not condition:
        sys.exit(message)


def check_sdist(path: Path) -> None:
    """The sources and the license are in it, and nothing that a build or a test leaves."""
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    require(set(names) >= IN_SDIST, f"missing in the sdist: {IN_SDIST - set(names)}")
    left = [name for name in names if LEFTOVERS.search(f"/{name}")]
    require(not left, f"not for the sdist: {left}")
    require(any(name.startswith("tests/") for name in names), "the sdist has no tests")


def check_wheel(path: Path) -> None:
    """Every module of the package is in it, its type marker, its license, and nothing else."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        [about] = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    info = {name for name in names if ".dist-info/" in name}
    source = ROOT / "src"
    expected = {
        file.relative_to(source).as_posix()
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    require(names - info == expected, f"wheel and source differ: {(names - info) ^ expected}")
    require(names >= IN_WHEEL, f"missing in the wheel: {IN_WHEEL - names}")
    require(any(name.endswith("licenses/LICENSE") for name in info), "the wheel has no license")
    require(any(name.endswith("entry_points.txt") for name in info), "the wheel has no entry points")
    urls = re.findall(r'^\w+ = "(https://.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    require(re.findall(r"^Project-URL: \w+, (.+)$", about, re.MULTILINE) == urls, "the wheel has other addresses")


def installed(wheel: Path) -> dict[str, str]:
    """Install the wheel with all extras, import all of it, and return the licenses of what came with it."""
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        python = Path(directory) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        run(python, "-m", "pip", "install", "--quiet", f"{wheel}[all]")
        run(python, "-I", "-c", IMPORTS)
        found: dict[str, str] = json.loads(run(python, ROOT / "checks" / "licenses.py"))
        return found


def check_licenses(found: dict[str, str], save: bool) -> None:
    """Every license is permissive or on the page."""
    page = PAGE.read_text(encoding="utf-8")
    rows = "".join(f"| {name} | {text} |\n" for name, text in found.items())
    table = f"<!-- licenses -->\n| Distribution | License |\n|---|---|\n{rows}<!-- end of licenses -->"
    if save:
        PAGE.write_text(TABLE.sub(lambda _: table, page), encoding="utf-8")
        return
    listed = dict(re.findall(r"^\| (\S+) \| (.+) \|$", TABLE.findall(page)[0], re.MULTILINE))
    changed = {name: text for name, text in found.items() if name in listed and listed[name] != text}
    require(not changed, f"other licenses than docs/dependencies.md lists: {changed}; run with --save-licenses")
    new = {name: text for name, text in found.items() if name not in listed}
    doubtful = {name: text for name, text in new.items() if not set(re.split(r" (?:AND|OR) ", text)) <= PERMISSIVE}
    require(not doubtful, f"licenses to review: {doubtful}; then run with --save-licenses")
    if new:
        print(f"new in docs/dependencies.md with the next release: {', '.join(new)}")


def main() -> None:
    """Build and check."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST)
    [sdist], [wheel] = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    check_sdist(sdist)
    check_wheel(wheel)
    print(run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel), end="")
    print(run(sys.executable, "-m", "check_wheel_contents", wheel), end="")
    found = installed(wheel)
    check_licenses(found, save="--save-licenses" in sys.argv)
    print(f"{sdist.name} and {wheel.name} are good; {len(found)} distributions come with all extras")


if __name__ == "__main__":
    main()
