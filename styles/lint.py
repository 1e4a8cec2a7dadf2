"""Check the prose of the project: ``python styles/lint.py [FILE …]``.

proselint runs the rules of styles/terms.toml, and some of its own, over Markdown, over the texts of dashboards and over
docstrings, comments and names of tests of those Python files that are in its paths. It needs no network.
Exit code 0: no problems.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from proselint.checks import __register__ as proselint_checks
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, CheckResult
from proselint.tools import LintFile

ROOT = Path(__file__).parent.parent
tomllib = importlib.import_module("tomllib")  # from Python 3.11 on
RULES: dict[str, Any] = tomllib.loads((Path(__file__).parent / "terms.toml").read_text(encoding="utf-8"))

_FENCED = re.compile(r"^([ >]*)(`{3,})([^\n]*)\n(.*?)^\1?\2$", re.DOTALL | re.MULTILINE)
_NOT_PROSE = re.compile(
    r"<!--.*?-->"  # comments
    r"|(?<=\])\([^)\s]*\)"  # links' targets
    r"|\b\w+://\S+"
    r"|^\[[^\]]+\]: \S+$"
    r"|<[a-z/][^>\n]*>"  # HTML
    r"|^:::?.*$|^\s*:[\w-]+:.*$|^\s*\.\. .*$",  # directives and their options
    re.DOTALL | re.MULTILINE,
)
_CODE = re.compile(r"(`{1,2})[^`\n]+(?:\n[^`\n]+)?\1")
_PARAMETER = re.compile(r"^ +\*{0,2}\w+(?=: )|(?<!\*)\*\w+\*(?!\*)", re.MULTILINE)  # or an exception
_QUOTES = re.compile(r"\"|\B'|'\B")
_TEXTS = re.compile(r'"(?:title|description|summary|legendFormat)": "((?:[^"\\]|\\.)*)"')
_BLOCKS = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |#|>|\||!\[))|\|")
_SENTENCE = re.compile(r"[.!?;][*_)\"]*(?=\s|$)|:(?=\s*$)")


def blank(text: str, keep: str = "\n") -> str:
    """Return *text* with everything but *keep* as spaces, so that places stay the same."""
    return "".join(each if each in keep else " " for each in text)


def markdown(text: str) -> str:
    """Return the prose of a page: code, comments and targets of links are blank."""

    def fenced(match: re.Match[str]) -> str:
        return match[0] if match[3].startswith("{glossary}") else blank(match[0])

    def code(match: re.Match[str]) -> str:
        return re.sub(r"\S|(?<! ) ", "x", match[0])  # one word

    text = _FENCED.sub(fenced, text)
    text = _CODE.sub(code, text)
    return _NOT_PROSE.sub(lambda match: blank(match[0]), text)


def python(text: str) -> str:
    """Return the docstrings and comments of a module, and the names of its tests as sentences."""
    lines = text.splitlines(keepends=True)
    prose = [blank(line) for line in lines]

    def keep(start: tuple[int, int], end: tuple[int, int]) -> None:
        for number in range(start[0] - 1, end[0]):
            first = start[1] if number == start[0] - 1 else 0
            last = end[1] if number == end[0] - 1 else len(lines[number])
            prose[number] = prose[number][:first] + lines[number][first:last] + prose[number][last:]

    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|pragma|pyright|mypy)", token.string):
            keep(token.start, token.end)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            string = node.value
            keep((string.lineno, string.col_offset), (string.end_lineno or 0, string.end_col_offset or 0))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            line, start = lines[node.lineno - 1], lines[node.lineno - 1].index("test_")
            sentence = node.name.replace("_", " ") + "."
            prose[node.lineno - 1] = " " * start + sentence + blank(line[start + len(sentence) :])
    return markdown(_PARAMETER.sub(lambda match: re.sub(r"\w", "x", match[0]), "".join(prose)))


def json_texts(text: str) -> str:
    """Return the titles and descriptions of a dashboard or of alerts."""
    prose, end = "", 0
    for match in _TEXTS.finditer(text):
        prose += blank(text[end : match.start(1)]) + match[1]
        end = match.end(1)
    return prose + blank(text[end:])


KINDS: dict[str, Callable[[str], str]] = {".md": markdown, ".py": python, ".json": json_texts}


def avoid(patterns: list[str]) -> Callable[[str, Check], Iterator[CheckResult]]:
    """Return a check for words that have a better one."""
    whole = "|".join(pattern.replace(" ", r"[ \n]+") for pattern in patterns)
    pattern = re.compile(rf"(?<![\w-])(?:{whole})(?!\w)", re.IGNORECASE)

    def check(text: str, check: Check) -> Iterator[CheckResult]:
        for match in pattern.finditer(text):
            found = " ".join(match[0].split())
            yield CheckResult(check.path, f"{found!r}; write: {check.message}", match.span(), None)

    return check


def long_sentences(text: str, check: Check) -> Iterator[CheckResult]:
    """Find sentences that have too many words."""
    most, start = RULES["longest_sentence"], 0
    for end in [*(match.start() for match in _BLOCKS.finditer(text)), len(text)]:
        block = text[start:end]
        ends = [0, *(match.end() for match in _SENTENCE.finditer(block)), len(block)]
        for first, last in pairwise(ends):
            words = re.findall(r"[^\s|]*\w[^\s|]*", block[first:last])
            if len(words) > most:
                place = start + first + len(block[first:last]) - len(block[first:last].lstrip(" \n|*-"))
                yield CheckResult(check.path, f"{len(words)} words, at most {most}", (place, place + 1), None)
        start = end


def register() -> dict[str, bool]:
    """Register all checks; return which of them run."""
    rules = [
        Check(check_type=avoid(rule["avoid"]), path=f"terms.{number}", message=rule["write"])
        for number, rule in enumerate(RULES["rule"])
    ]
    length = Check(check_type=long_sentences, path="sentence")
    CheckRegistry().register_many((*proselint_checks, *rules, length))
    return dict.fromkeys([*RULES["proselint"], *(rule.path for rule in rules), "sentence"], True)


def files(paths: list[str]) -> list[Path]:
    """Return the files to check."""
    found = [ROOT / path for path in paths]
    every = [file for path in found for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    skipped = [ROOT / path for path in RULES["skip"]]
    return [file for file in every if file.suffix in KINDS and not any(file.is_relative_to(path) for path in skipped)]


def main(paths: list[str]) -> int:
    """Print what is found; return how much that is."""
    enabled = register()
    count = 0
    for file in files(paths or RULES["paths"]):
        prose = KINDS[file.suffix](file.read_text(encoding="utf-8"))
        for line, column, message in sorted(problems(prose, enabled)):
            print(f"{file.relative_to(ROOT)}:{line}:{column}: {message}")
            count += 1
    return count


def problems(prose: str, enabled: dict[str, bool]) -> Iterator[tuple[int, int, str]]:
    """Yield what is wrong, and where."""
    linted = LintFile("text", _QUOTES.sub(" ", prose))  # for proselint skips what is in quotes, docstrings included
    for result in linted.lint({"max_errors": 10_000, "checks": enabled}):
        (line, column), found = result.pos, result.check_result
        yield (
            line,
            column,
            found.message
            if found.check_path.startswith(("terms.", "sentence"))
            else (f"{found.check_path}: {found.message}"),
        )


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
