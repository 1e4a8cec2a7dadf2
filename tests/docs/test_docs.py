"""The documentation: its code runs as it stands there, its links lead somewhere, its diagrams are the code's.

What a page says of a block, in comments that readers do not see:

- ``<!-- first: CODE -->`` above it runs before it, with ``emulator`` and all of ``pay88_adapters.testing`` imported.
- ``<!-- then: EXPRESSION -->`` below it has to hold after it; ``printed`` is what it printed.
- ``<!-- file: NAME -->`` above it: it is written to that file, for a command further down to run.
- ``<!-- output -->`` above a text: the command before it printed that.
- ``<!-- not run: REASON -->`` above a command, or above a fragment of Python, which is compiled. All other Python runs,
  and of a diff the new lines.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import pay88_adapters
from pay88_adapters import testing
from pay88_adapters.cli.app import Commands
from pay88_adapters.cli.demo.guarantees import GUARANTEES
from pay88_adapters.testing import Emulator
from support.worlds import Report

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
    if "_build" not in path.parts
}

OWN_TESTS = {
    "docs/composition.md": "adapters/test_composition.py",
    "docs/cli.md": "docs/test_cli_page.py",
    "docs/deployment/celery.md": "docs/test_deployment.py",
    "docs/deployment/gunicorn.md": "docs/test_deployment.py",
    "docs/deployment/index.md": "docs/test_deployment.py",
    "docs/deployment/multiprocessing.md": "docs/test_deployment.py",
    "docs/deployment/serverless.md": "docs/test_serverless.py",
    "docs/deployment/uvicorn.md": "docs/test_deployment.py",
    "docs/emulator.md": "docs/test_emulator_docs.py",
    "docs/observability.md": "docs/test_observability.py",
    "docs/testing.md": "testing/test_pytest_plugin.py",
    "docs/tools/notebooks.md": "tools/test_frameworks.py",
    "docs/tools/queues.md": "tools/test_frameworks.py",
    "docs/tools/sdks.md": "tools/test_sdks.py",
    "docs/tools/tracing.md": "tools/test_tracers.py",
    "docs/tools/web.md": "tools/test_frameworks.py",
}
"""Pages with a test module of their own, which also checks that all of their code runs."""

ELSEWHERE = {"demo command": "cli/test_demo.py", "test command": "../.ci/run"}
"""What else runs commands, by the comment above them."""

COMMANDS_ONLY = {"docs/benchmarks.md", "CONTRIBUTING.md", "RELEASING.md"}
"""Pages of commands that take hours, or make a release."""

PLACEHOLDERS = {
    "sk_test_…": "sk_test_emulator",
    "MCH-COL-…": "MCH-COL-TEST-EMULATOR",
    "...  # your code": "manager.get_token()",
}

_PARTS = re.compile(r"^<!--\s(.*?)\s-->$|^(`{3,})([^\s`]*)[^\n]*\n(.*?)^\2$", re.DOTALL | re.MULTILINE)
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
URLS = dict(re.findall(r'^(\w+) = "(https://.+)"$', PROJECT, re.MULTILINE))
HOSTS = {url.split("/")[2] for url in URLS.values()} | {"raw.githubusercontent.com"}
IMAGES = {".svg", ".png"}

_RUN = ("python", "diff", "sh", "console")


@dataclass
class Block:
    """A fenced block, with the comments above and below it."""

    language: str
    text: str
    above: list[str]
    below: list[str] = field(default_factory=list)

    def said(self, word: str, comments: list[str]) -> list[str]:
        """Return what the comments of one kind say."""
        return [text.removeprefix(f"{word}:").strip() for text in comments if text.startswith(f"{word}:")]

    @property
    def reasons(self) -> list[str]:
        """Why it is not run here."""
        return self.said("not run", self.above)


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page that can be run."""
    found: list[Block] = []
    comments: list[str] = []
    end = 0
    for part in _PARTS.finditer(text):
        near = not text[end : part.start()].strip()
        if not near:
            comments = []
        if part[1]:
            if found and near and part[1].startswith("then:"):
                found[-1].below.append(part[1])
            comments.append(part[1])
        else:
            if part[3] in _RUN or "output" in comments:
                found.append(Block(part[3], part[4], comments))
            comments = []
        end = part.end()
    return found


HERE = {
    page: found
    for page, text in PAGES.items()
    if page not in OWN_TESTS and page not in COMMANDS_ONLY and (found := blocks(text))
}


@pytest.mark.parametrize("page", HERE)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, against an emulator instead of 88Pay, with the results that the page shows."""
    with Emulator(call_limits=()) as emulator:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(DOCS / "examples"))
        monkeypatch.setenv("PAY88_API_KEY", emulator.api_key)
        monkeypatch.setenv("PAY88_MERCHANT_ID", emulator.merchant_id)
        monkeypatch.setenv("PAY88_BASE_URL", emulator.url)
        monkeypatch.delenv("PAY88_STORE", raising=False)
        monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        monkeypatch.setattr(pay88_adapters, "SANDBOX_URL", emulator.url)
        monkeypatch.setattr(pay88_adapters, "PRODUCTION_URL", emulator.url)
        hidden = {name: getattr(of, name) for of in (testing, pay88_adapters) for name in of.__all__}
        hidden["emulator"] = emulator
        names: dict[str, Any] = {"__name__": "docs"}
        printed = ""
        for block in HERE[page]:
            for code in block.said("first", block.above):
                stage(code, hidden, names)
            printed = run(block, page, names, printed)
            for expression in block.said("then", block.below):
                assert eval(expression, hidden | names | {"printed": printed}), expression
        names.clear()
        gc.collect()  # what was left open is a warning, and an error


def stage(code: str, hidden: dict[str, Any], names: dict[str, Any]) -> None:
    """Run what readers do not see: it knows more names than the page does."""
    scope = hidden | names
    exec(code, scope)
    names.update({name: value for name, value in scope.items() if name not in hidden})


def run(block: Block, page: str, names: dict[str, Any], printed: str) -> str:
    """Run one block; return what it printed, or what was printed before."""
    text = block.text
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    if block.language == "diff":
        before, text = ("\n".join(re.findall(rf"^(?:[ {sign}] |$)(.*)$", text, re.MULTILINE)) for sign in "-+")
        compile(before, page, "exec")
    if block.language in ("python", "diff"):
        code, files = compile(text, page, "exec"), block.said("file", block.above)
        for name in files:
            Path(name).write_text(text, encoding="utf-8")
        if not files and not block.reasons:
            with redirect_stdout(StringIO()) as out:
                exec(code, names)
            return out.getvalue()
    elif "output" in block.above:
        assert text == printed
    elif not (block.reasons or elsewhere(block)):
        done = subprocess.run(["sh", "-e", "-c", text], check=True, timeout=60, capture_output=True, text=True)
        return done.stdout
    return printed


def elsewhere(block: Block) -> str | None:
    """Return what else runs a command."""
    return next((who for word, who in ELSEWHERE.items() for said in block.above if said.startswith(word)), None)


def test_no_block_is_left_out(report: Report) -> None:
    """Each one runs here, or somewhere that is there; a command that runs nowhere says why."""
    every = [block for found in HERE.values() for block in found]
    idle = [block for block in every if block.reasons]
    assert all(block.language in ("sh", "python") and all(map(str.strip, block.reasons)) for block in idle)
    assert all((ROOT / "tests" / who).exists() for block in every if (who := elsewhere(block)))
    for page, tests in OWN_TESTS.items():
        assert Path(page).stem in (ROOT / "tests" / tests).read_text(encoding="utf-8"), page
    report(f"{len(every) - len(idle)} blocks are run, {len(idle)} commands and fragments are not")


def test_the_recipes_leave_no_block_out() -> None:
    """Those of docs/deployment are files, or say why they are not run; test_deployment runs all of its index."""
    recipes = [page for page, tests in OWN_TESTS.items() if tests == "docs/test_deployment.py" and "index" not in page]
    found = [block for page in recipes for block in blocks(PAGES[page]) if block.language == "python"]
    assert found
    assert all(block.said("file", block.above) or block.reasons for block in found)


def headings(text: str) -> set[str]:
    """Return the anchors of a page, as GitHub makes them."""
    prose = _PARTS.sub("", text)
    lines = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """To a file that is there, and to a heading in it."""
    prose = re.sub(r"`[^`\n]*`", "", _PARTS.sub("", PAGES[page]))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        public = re.match(r"\w+:", target)
        file = of_the_project(path) if public else (ROOT / page).parent / path if path else ROOT / page
        if file is None:
            continue
        assert file.exists(), target
        assert public or not page.startswith("docs/") or file.suffix in {".md", *IMAGES}, (
            f"{target} would be a download"
        )
        if anchor:
            assert anchor in headings(file.read_text(encoding="utf-8")), target


def of_the_project(url: str) -> Path | None:
    """Return the file that an address of the project stands for; None for other addresses."""
    if re.match(rf"https?://(?:{'|'.join(map(re.escape, HOSTS))})/", url) is None:
        return None
    docs, repository = URLS["Documentation"], URLS["Repository"]
    raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/")
    if url.startswith(docs):
        return DOCS / (url.removeprefix(docs) or "index.html").replace(".html", ".md")
    for prefix in (f"{repository}/blob/main/", f"{raw}/main/"):
        if url.startswith(prefix):
            return ROOT / url.removeprefix(prefix)
    assert url in {*URLS.values(), f"{repository}/security/advisories/new"}, url
    return None


def test_a_payment_has_the_same_fields_everywhere() -> None:
    """Readers copy it, so that they may take a field that only one page has for a required one."""
    payments = {page: re.findall(r"\{[^{}]*\"amount\"[^{}]*\}", text) for page, text in PAGES.items()}
    fields = {tuple(re.findall(r'"(\w+)": ', payment)) for found in payments.values() for payment in found}
    assert sum(map(len, payments.values())) > 10
    assert fields == {("flow", "amount", "currency", "description")}


def test_the_readme_links_to_public_addresses() -> None:
    """All links and images are absolute, so that it reads well on a package index."""
    assert [
        link for link in re.findall(r"\]\(([^)\s]+)\)", _PARTS.sub("", PAGES["README.md"])) if ":" not in link
    ] == []


def test_the_readme_has_the_supported_versions() -> None:
    """Those that the classifiers list."""
    versions = re.findall(r"Python :: 3\.(\d+)\"", PROJECT)
    assert f"CPython 3.{versions[0]} to 3.{versions[-1]}" in PAGES["README.md"]
    assert ("Free Threading" in PROJECT) == ("free-threaded Python" in PAGES["README.md"])


def test_pages_have_the_same_name_everywhere() -> None:
    """On the landing page, in the sidebar (their title) and wherever a link in a table leads to them."""
    titles = {page: next(iter(re.findall(r"^# (.+)$", text, re.MULTILINE)), "") for page, text in PAGES.items()}
    titles["docs/changelog.md"] = titles["CHANGELOG.md"]  # it includes the other
    rows = re.findall(r"^\| \[([^\]]+)\]\(([^)#]+\.md)\) \|", PAGES["docs/index.md"], re.MULTILINE)
    assert len(rows) > 20
    assert [(name, titles[f"docs/{path}"]) for name, path in rows if name != titles[f"docs/{path}"]] == []
    toctrees = "".join(re.findall(r"```{toctree}\n(.*?)```", PAGES["docs/index.md"], re.DOTALL))
    assert {path.removesuffix(".md") for _, path in rows} == set(re.findall(r"^[a-z/]+$", toctrees, re.MULTILINE))


def test_the_diagrams_are_drawn_from_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are committed are what the script makes: run ``python docs/diagrams.py``."""
    monkeypatch.syspath_prepend(DOCS)
    spec = importlib.util.spec_from_file_location("diagrams", DOCS / "diagrams.py")
    assert spec is not None
    assert spec.loader is not None
    diagrams = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = diagrams
    spec.loader.exec_module(diagrams)
    drawn = {f"{name}.svg": draw() for name, draw in diagrams.DIAGRAMS.items()}
    committed = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "images").glob("*.svg")}
    del committed["demo.svg"]
    assert drawn == committed


def test_the_picture_of_the_demo_shows_the_guarantees_of_today() -> None:
    """All of them, kept; nothing of the machine that took it, and nothing to load: run ``python docs/demo.py``."""
    picture = (DOCS / "images" / "demo.svg").read_text(encoding="utf-8")
    shown = unescape(picture).replace("\xa0", " ")
    assert [guarantee.text for guarantee in GUARANTEES if guarantee.text not in shown] == []
    assert f"All {len(GUARANTEES)} guarantees kept." in shown
    assert f"{len(GUARANTEES)} guarantees kept" in PAGES["README.md"]
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg\b)|/home|/root|/tmp", shown) == []
    assert len(picture) < 50_000


def test_what_the_architecture_page_names_is_there() -> None:
    """Each module exists, and what stands before a module in a cell of its tables is in it."""
    text = PAGES["docs/architecture.md"] + PAGES["CONTRIBUTING.md"]
    places = set(re.findall(r"`((?:core|engine|stores|tests|docs)/[\w/]+\.py)`", text))
    assert len(places) > 20
    roots = (ROOT, ROOT / "src" / "pay88_adapters")
    assert [place for place in places if not any((root / place).is_file() for root in roots)] == []
    named = re.findall(r"`([\w.]+)(?:\(\))?` in `([\w/]+\.py)`", text)
    assert len(named) > 10
    source = {place: next(root / place for root in roots if (root / place).is_file()) for _, place in named}
    assert [
        (name, place)
        for name, place in named
        if not all(re.search(rf"\b{each}\b", source[place].read_text(encoding="utf-8")) for each in name.split("."))
    ] == []


def test_what_the_readme_names_is_there() -> None:
    """Its commands, its environments of tox, and its lowest versions are those of the package."""
    readme = PAGES["README.md"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    environments = re.findall(r"^\[testenv:(\w+)\]$", (ROOT / "tox.ini").read_text(encoding="utf-8"), re.MULTILINE)
    floors = re.findall(r"([\w-]+)`? ≥ ([\d.]+\d)", readme)

    assert {"check", "demo"} <= set(re.findall(r"pay88 (\w+)", readme)) <= set(Commands.names)
    assert {"docs", "figures"} <= set(re.findall(r"tox run -e ([a-z]+)\b(?!\d)", readme)) <= set(environments)
    assert len(floors) > 5
    assert [each for each in floors if f'"{each[0]}>={each[1]}' not in project] == []
