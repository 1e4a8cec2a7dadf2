"""The numbers in README.md and docs/benchmarks.md are those of the plots, which a run of the benchmarks draws."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")

_TEXTS = re.compile(r'<text x="[\d.]+" y="\d+"( font-size="13"| text-anchor="end"|)>([^<]*)</text>')
WORDS = {2: "two", 10: "ten"}
COLUMNS = ["pay88-adapters", "by hand", "google-auth", "authlib", "httpx-auth"]
"""The rows of the plots that are columns in README.md."""

NAMES = {
    "urllib3": ("urllib3",),
    "requests": ("requests",),
    "httpx, async": ("httpx", "httpx-async"),
    "httpx2, async": ("httpx2", "httpx2-async"),
    "aiohttp": ("aiohttp",),
}
"""The rows of docs/benchmarks.md, and the client libraries of the plots in each."""


def bars(plot: str) -> dict[str, dict[str, float]]:
    """Return the numbers of a plot: by the title of each chart, then by the name of each bar."""
    found: dict[str, dict[str, float]] = {}
    title = name = ""
    for kind, text in _TEXTS.findall((ROOT / "docs" / "benchmarks" / f"{plot}.svg").read_text(encoding="utf-8")):
        if "font-size" in kind:
            title = unescape(text)
            found[title] = {}
        elif kind:
            name = unescape(text)
        else:
            found[title][name] = float(text.replace(",", ""))
    assert found
    return found


def by_library(plot: str) -> dict[str, dict[str, float]]:
    """Return the numbers of a plot by client library."""
    return {re.findall(r": ([\w-]+) \(", title)[0]: chart for title, chart in bars(plot).items()}


def spread(charts: dict[str, dict[str, float]], name: str, form: str) -> str:
    """Return the range of a bar over all client libraries, as text."""
    values = [chart[name] for chart in charts.values() if name in chart]
    return " to ".join(dict.fromkeys(format(value, form) for value in (min(values), max(values))))


def row(page: str, label: str) -> list[str]:
    """Return the cells of a row, without emphasis and marks of footnotes."""
    [cells] = re.findall(rf"^\| {re.escape(label)} \| (.*) \|$", page, re.MULTILINE)
    return [re.sub(r"\*\*| \(.*\)", "", cell) for cell in cells.split(" | ")]


def test_the_requests_that_wait() -> None:
    """At how many refreshes, of how many requests, and how many: in the plot, in README.md and on the page."""
    [refreshes] = {int(number) for title in bars("boundary") for number in re.findall(r"across (\d+)", title)}
    charts, requests, word = by_library("boundary"), 500 * refreshes, WORDS[refreshes]
    cells = [spread(charts, column, ".0f") for column in COLUMNS]
    assert row(README, f"Requests that wait for a refresh, of {requests:,}") == cells
    assert f"across {word} refreshes, at 100 requests per second" in " ".join(README.split())
    waited = "none" if cells[0] == "0" else cells[0]
    assert (
        f"Across {word} refreshes, {waited} of {requests:,} requests waited for a token on any library."
        f" With your own code, {cells[1]} did."
    ) in " ".join(PAGE.split())


def test_the_instructions_of_a_request() -> None:
    """For README.md the range over the client libraries; each one on the page."""
    charts = by_library("cached")
    cells = [spread(charts, column, ".2f") for column in COLUMNS]
    assert row(README, "CPU instructions per request, bare client = 1") == cells
    low, high = (round((float(number) - 1) * 100) for number in cells[0].split(" to "))
    assert f"{low} to {high} % more CPU instructions per request than the bare client" in README
    for label, libraries in NAMES.items():
        measured = [
            ", ".join(f"{charts[library][name]:.3f}" for library in libraries)
            for name in ("static headers", "by hand", "pay88-adapters")
        ]
        instructions = PAGE.partition("| CPU instructions")[2].partition("\n\n")[0]
        assert row(instructions, label)[:3] == measured


def test_the_token_requests() -> None:
    """At a cold start the largest number of each row; per hour those of 32 workers."""
    starts = {title: chart for title, chart in bars("storms").items() if "cold start" in title}
    most = [max(chart[column] for chart in starts.values() if column in chart) for column in COLUMNS]
    assert row(README, "Token requests at a cold start of 64 threads") == [format(value, ".0f") for value in most]
    [hour] = bars("fleet").values()
    ours = hour["pay88-adapters, sqlite"]
    hourly = [ours, *(hour[column] for column in COLUMNS[1:])]
    assert row(README, "Token requests per hour, 32 workers") == [format(value, ",.0f") for value in hourly]
