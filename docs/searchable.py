"""Look up the name of each tool in the index of the built site: ``python docs/searchable.py docs/_build``.

Exit code 0: a search for each name leads to a page of "With your tools", "Several processes" or "Testing".
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from sphinx.search.en import SearchEnglish

PAGES = ("tools/", "deployment/", "testing")
TABLE = re.compile(r"<!-- table -->\n.*?\n.*?\n(.*?)<!-- end of table -->", re.DOTALL)
OTHERS = {
    *("pytest-randomly", "pytest-socket", "pytest-xdist", "rich", "structlog", "loguru", "prometheus-client"),
    *("FastAPI", "Starlette", "Django", "Flask", "gunicorn", "gevent", "uvicorn", "Celery", "Dramatiq"),
    *("Jupyter", "IPython", "Streamlit", "Lambda"),
}
"""Tools that are in no table."""


def names() -> list[str]:
    """Return the tools in the first columns of the tables, and the others."""
    pages = [path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parent / "tools").glob("*.md"))]
    rows = "".join("".join(TABLE.findall(page)) for page in pages)
    return sorted({*re.findall(r"^\| ([^|]+) \|", rows, re.MULTILINE), *OTHERS})


def missing(site: Path) -> list[str]:
    """Return the names that a search does not find."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    search = SearchEnglish({})
    wanted = {place for place, name in enumerate(index["docnames"]) if name.startswith(PAGES)}

    def found(word: str) -> set[int]:
        pages: set[int] = set()
        for terms in (index["terms"], index["titleterms"]):
            places = terms.get(search.stem(word.lower()), [])
            pages |= {places} if isinstance(places, int) else set(places)
        return pages & wanted

    return [name for name in names() if not set.intersection(*map(found, re.findall(r"\w+", name)))]


if __name__ == "__main__":
    lost = missing(Path(sys.argv[1]))
    sys.exit(f"a search does not find {', '.join(lost)}" if lost else 0)
