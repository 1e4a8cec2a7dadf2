"""The documentation site as a reader sees it: in Chromium, on a phone and on a laptop."""

from __future__ import annotations

import html
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.chromium import DESKTOP, PHONE, needed, started

pytestmark = pytest.mark.browser

DOCS = Path(__file__).parents[2] / "docs"
FIRST_READ = ["index", "quickstart", "errors"]
"""The pages that every reader starts with."""

# Code that is wider than its block, by the longest line
CUT = """() => [...document.querySelectorAll('article pre')]
    .filter(block => block.checkVisibility() && block.scrollWidth > block.clientWidth)
    .map(block => block.innerText.split('\\n').reduce((one, other) => one.length > other.length ? one : other))"""
# Names in tables that are on more than one line
BROKEN = """() => [...document.querySelectorAll('article table code')]
    .filter(name => !name.matches('.long') && name.getClientRects().length > 1).map(name => name.innerText)"""
# How many rows each set of tabs has
ROWS = """() => [...document.querySelectorAll('.sd-tab-set')]
    .map(set => new Set([...set.querySelectorAll(':scope > label')].map(label => label.offsetTop)).size)"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `tox run -e docs` builds it."""
    needed("sphinx")
    built = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-n", DOCS, built], check=True)
    return built


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser."""
    with started() as running:
        yield running


@pytest.fixture(scope="module")
def phone(chromium: Any) -> Any:
    """A page on a phone."""
    return chromium.new_context(**PHONE).new_page()


@pytest.fixture(scope="module")
def laptop(chromium: Any) -> Any:
    """A page on a laptop."""
    return chromium.new_context(**DESKTOP).new_page()


def test_no_page_is_wider_than_a_phone(site: Path, phone: Any) -> None:
    """Wide tables, diagrams and code scroll within the page; the page itself does not."""
    wide = {}
    for file in sorted(site.rglob("*.html")):
        phone.goto(file.as_uri())
        width = phone.evaluate("document.documentElement.scrollWidth")
        if width != 390:
            wide[file.relative_to(site).as_posix()] = width
    assert wide == {}


@pytest.mark.parametrize("name", FIRST_READ)
def test_a_phone_shows_names_and_tabs_in_one_piece(site: Path, phone: Any, name: str) -> None:
    """No name in a table is broken into two lines, and the tabs are in one row."""
    phone.goto((site / f"{name}.html").as_uri())
    assert phone.evaluate(BROKEN) == []
    assert set(phone.evaluate(ROWS)) <= {1}


@pytest.mark.parametrize("name", FIRST_READ)
def test_no_code_is_cut_on_a_laptop(site: Path, laptop: Any, name: str) -> None:
    """Every line of code is visible without scrolling, in every tab."""
    laptop.goto((site / f"{name}.html").as_uri())
    cut = laptop.evaluate(CUT)
    for tab in laptop.locator(".sd-tab-set > label").all():
        tab.click()
        cut += laptop.evaluate(CUT)
    assert cut == []


def test_the_reference_shows_no_docstring_of_python_itself(site: Path) -> None:
    """Sphinx would show that of str for a constant without one."""
    pages = [file.read_text(encoding="utf-8") for file in sorted((site / "reference").glob("*.html"))]
    assert len(pages) > 5
    for kind in (str, int, float, frozenset, type(int | str)):
        first = (kind.__doc__ or "").splitlines()[0]
        assert [page for page in pages if html.escape(first, quote=False) in page.replace("&#39;", "'")] == [], first


def test_terms_lead_to_the_glossary(site: Path, laptop: Any) -> None:
    """The first use of a term on a page is a link to its entry."""
    laptop.goto((site / "deployment" / "index.html").as_uri())
    terms = laptop.locator("article a.term")
    assert terms.count() > 10
    budget = laptop.get_by_role("link", name="token budget", exact=True)
    assert budget.count() == 1
    budget.click()
    laptop.wait_for_url("**/glossary.html#term-token-budget")
    laptop.locator("#term-token-budget").wait_for(state="visible")  # the page may still be loading
