"""The table of docs/tools/index.md is made from the marks of the tests in this folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toolkit import LIBRARIES, SHOWN

PAGE = Path(__file__).parents[2] / "docs" / "tools" / "index.md"
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def test_the_table_says_what_the_tests_show(request: pytest.FixtureRequest) -> None:
    """Each tool and each HTTP client: run pytest tests/tools --save-table after a change."""
    shown = request.config.stash[SHOWN]
    if {item.path for item in request.session.items} != set(Path(__file__).parent.glob("test_*.py")):
        pytest.skip("only some of the tests run")
    lines = [f"| | {' | '.join(LIBRARIES)} |", "|---" * (len(LIBRARIES) + 1) + "|"]
    for tool in sorted(shown, key=str.lower):
        cells = [shown[tool].get(library, "") for library in LIBRARIES]
        lines.append(f"| {tool} | {' | '.join(cells)} |")
    table = "\n".join([*lines, ""])
    page = PAGE.read_text(encoding="utf-8")
    if request.config.getoption("--save-table"):
        PAGE.write_text(TABLE.sub(lambda _: table, page), encoding="utf-8")
    else:
        assert TABLE.findall(page) == [table]
