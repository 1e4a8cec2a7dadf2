"""Draw the diagrams of the documentation: ``python docs/diagrams.py`` writes them into docs/images.

The first one is read off the table that the core decides by. A test compares all of them with what is committed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import layers

from pay88_adapters import TokenPolicy
from pay88_adapters.core.decisions import ACTIONS, Action, EndpointState, TokenState
from pay88_adapters.core.policy import LIFETIME

IMAGES = Path(__file__).parent / "images"

# A background of their own: a page may be dark where the system is light, and the other way round.
_STYLE = """
text { font: 14px ui-sans-serif, system-ui, sans-serif; fill: #1c2733 }
.small { font-size: 12.5px } .dim { fill: #586675 } .bold { font-weight: 600 } .mid { text-anchor: middle }
.page { fill: #ffffff; stroke: #d5dce3 } .bare { fill: #ffffff } .box { fill: #eef2f6; stroke: #b8c3ce }
.line { stroke: #9aa7b4; stroke-dasharray: 2 4 } .arrow { stroke: #1c2733; stroke-width: 1.3; fill: none }
.back { stroke-dasharray: 5 4 } .head { fill: #1c2733 } .note { fill: #fff4d6; stroke: #e0c36c }
.USE { fill: #d9f2e1 } .REFRESH { fill: #d8e9fb } .FETCH { fill: #ffe9c7 }
.WAIT { fill: #e7e4f7 } .WAIT_OR_FAIL { fill: #fbdcdc }
@media (prefers-color-scheme: dark) {
text { fill: #e4eaf0 } .dim { fill: #9fb0c0 }
.page { fill: #14191f; stroke: #303a45 } .bare { fill: #14191f } .box { fill: #222b35; stroke: #465463 }
.line { stroke: #566676 } .arrow { stroke: #e4eaf0 } .head { fill: #e4eaf0 } .note { fill: #3d3415; stroke: #7d6a2a }
.USE { fill: #173d27 } .REFRESH { fill: #16344f } .FETCH { fill: #4a3611 }
.WAIT { fill: #302b55 } .WAIT_OR_FAIL { fill: #511f22 }
}
"""

MEANINGS = {
    Action.USE: "use the cached token",
    Action.REFRESH: "use it, and start a background refresh",
    Action.FETCH: "fetch a token, and wait for it",
    Action.WAIT: "wait for the pending fetch",
    Action.WAIT_OR_FAIL: "wait for the cooldown to end if max_wait allows it; else fail, with retry_after",
}
_SOURCES = {
    EndpointState.FREE: ("is available", ""),
    EndpointState.BUSY: ("has a pending request", "one fetch in progress"),
    EndpointState.COOLDOWN: ("is in cooldown", "budget, 429, outage, …"),
}


def _ages(policy: TokenPolicy) -> dict[TokenState, str]:
    ahead, reuse = policy.reuse_for - policy.refresh_ahead, policy.reuse_for
    last = LIFETIME - policy.expiry_skew
    return {
        TokenState.FRESH: f"up to {ahead:g} s",
        TokenState.AGING: f"{ahead:g} to {reuse:g} s",
        TokenState.STALE: f"{reuse:g} to {last:g} s",
        TokenState.REJECTED: f"up to {reuse:g} s, rejected with 401",
        TokenState.ABSENT: f"{last:g} s and more, or none yet",
    }


def _text(x: float, y: float, text: str, classes: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{classes}">{escape(text)}</text>'


def _svg(width: int, height: int, title: str, body: Iterable[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    marker = 'id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<defs><marker {marker}><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
            f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def answers() -> str:
    """The action for a request, by the token's age and the token endpoint's state."""
    left, top, wide, high = 236, 76, 168, 50
    parts = [_text(20, 34, "the token", "bold"), _text(left, 34, "the token endpoint", "bold")]
    for column, (says, why) in enumerate(_SOURCES.values()):
        x = left + column * wide
        parts += [_text(x, 54, says), _text(x, 69, why, "small dim")]
    for row, (age, seconds) in enumerate(_ages(TokenPolicy()).items()):
        y = top + row * high
        parts += [_text(20, y + 22, age.name), _text(20, y + 38, seconds, "small dim")]
        for column, source in enumerate(_SOURCES):
            answer, x = ACTIONS[age][source].name, left + column * wide
            parts.append(f'<rect class="{answer}" x="{x}" y="{y + 3}" width="{wide - 8}" height="{high - 8}" rx="6"/>')
            parts.append(_text(x + wide / 2 - 4, y + 29, answer, "bold mid"))
    bottom = top + len(TokenState) * high
    for row, (told, meaning) in enumerate(MEANINGS.items()):
        y = bottom + 30 + 22 * row
        parts += [_text(20, y, told.name, "small bold"), _text(104, y, meaning, "small")]
    return _svg(left + 3 * wide + 12, bottom + 30 + 22 * len(MEANINGS), "The action for a request", parts)


Step = tuple[str, str, str] | tuple[str, str]
"""From whom, to whom and what (a response if it begins with ``<``); or a note at one of them."""


def _sequence(title: str, who: Sequence[str], steps: Sequence[Step], apart: int = 190) -> str:
    width, high, top = apart * len(who) + 20, 38, 70
    at = {name: 10 + apart * (index + 0.5) for index, name in enumerate(who)}
    bottom = top + high * len(steps) + 10
    parts = []
    for name, x in at.items():
        parts.append(f'<line class="line" x1="{x:g}" y1="48" x2="{x:g}" y2="{bottom}"/>')
        parts.append(f'<rect class="box" x="{x - 70:g}" y="16" width="140" height="32" rx="6"/>')
        parts.append(_text(x, 37, name, "bold mid"))
    for row, step in enumerate(steps):
        y = top + high * row + 22
        if len(step) == 2:
            name, text = step
            wide = 6.3 * len(text) + 20
            x = min(max(at[name], wide / 2 + 10), width - wide / 2 - 10)
            parts.append(f'<rect class="note" x="{x - wide / 2:g}" y="{y - 17}" width="{wide:g}" height="25" rx="5"/>')
            parts.append(_text(x, y, text, "small mid"))
            continue
        start, end, text = step
        back, text = text.startswith("<"), text.removeprefix("<")
        parts.append(
            f'<path class="arrow{" back" * back}" d="M{at[start]:g} {y + 4}H{at[end]:g}" marker-end="url(#head)"/>'
        )
        wide = 6.3 * len(text) + 4
        x = min(max((at[start] + at[end]) / 2, wide / 2 + 8), width - wide / 2 - 8)
        parts.append(f'<rect class="bare" x="{x - wide / 2:g}" y="{y - 16}" width="{wide:g}" height="16"/>')
        parts.append(_text(x, y - 4, text, "small mid"))
    return _svg(width, bottom + 10, title, parts)


def replay() -> str:
    """How a request with a 401 is replayed."""
    code, adapter, manager, service = who = ("your code", "adapter", "token manager", "88Pay")
    return _sequence(
        "A request that gets a 401",
        who,
        [
            (code, adapter, "POST, a payment"),
            (adapter, service, "the request, with token 7"),
            (service, adapter, "<401: it was not executed"),
            (adapter, manager, "token 7 was rejected"),
            (manager, service, "one token request"),
            (service, manager, "<token 8"),
            (manager, adapter, "<token 8, for all waiting requests"),
            (adapter, service, "the same request, byte for byte, with token 8"),
            (service, adapter, "<200"),
            (adapter, code, "<200"),
        ],
    )


def refresh() -> str:
    """How a token is refreshed while no request waits."""
    calls, manager, service = who = ("requests", "token manager", "88Pay")
    return _sequence(
        "Background refresh",
        who,
        [
            (calls, "token 7 is 45 s old"),
            (calls, manager, "a token?"),
            (manager, calls, "<token 7"),
            (manager, service, "one token request, in the background"),
            (calls, service, "requests keep using token 7"),
            (service, manager, "<token 8"),
            (calls, manager, "a token?"),
            (manager, calls, "<token 8"),
        ],
        apart=240,
    )


def lease() -> str:
    """How workers that share a store get one token."""
    one, store, other, service = who = ("worker A", "the store", "worker B", "88Pay")
    return _sequence(
        "Workers that share a store send one token request",
        who,
        [
            (one, store, "acquire the refresh lease"),
            (store, one, "<acquired, fencing token 12"),
            (other, store, "acquire the refresh lease"),
            (store, other, "<held by worker A"),
            (one, store, "consume one token request"),
            (store, one, "<granted"),
            (one, service, "one token request"),
            (service, one, "<token 8"),
            (one, store, "token 8, fencing token 12"),
            (other, store, "acquire the refresh lease"),
            (store, other, "<token 8, 0.2 s old"),
        ],
    )


PURPOSES = {
    "cli": "the pay88 command",
    "testing": "the emulator, fixtures and fake clocks",
    "adapters": "translate: one module for each HTTP client library; no policy",
    "engine": "acts: locks, threads, tasks, event loops, clocks, forks",
    "stores": "share: memory, a file, a server",
    "core": "decides: values in, values out; no I/O, no clock, no lock",
}


def architecture() -> str:
    """The layers, from the source itself."""
    width, left, right = 900, 20, 610
    found, counted = layers.modules(), layers.arrows()
    parts, y, middles = [], 20.0, {}
    for layer in layers.LAYERS:
        lines = textwrap.wrap(", ".join(found[layer]), 82)
        high = 44 + 17 * len(lines)
        middles[layer] = y + high / 2
        parts.append(f'<rect class="box" x="{left}" y="{y:g}" width="{right - left}" height="{high}" rx="6"/>')
        parts.append(_text(left + 12, y + 22, layer, "bold"))
        parts.append(_text(left + 90, y + 22, PURPOSES[layer], "small dim"))
        parts += [_text(left + 12, y + 42 + 17 * row, line, "small") for row, line in enumerate(lines)]
        y += high + 16
    for lane, ((start, end), count) in enumerate(sorted(counted.items(), key=lambda each: _span(each[0]))):
        x = right + 22 + 24 * lane
        top, bottom = middles[start] - 4 + lane % 5 * 3, middles[end] + 4 - lane % 5 * 3
        parts.append(f'<path class="arrow" d="M{right} {top:g}H{x}V{bottom:g}H{right + 2}" marker-end="url(#head)"/>')
        parts.append(_text(x + 3, (top + bottom) / 2 + 4, str(count), "small dim"))
    return _svg(width, int(y) + 4, "Layers, their modules, and the imports between them", parts)


def _span(pair: tuple[str, str]) -> tuple[int, int]:
    start, end = (layers.LAYERS.index(each) for each in pair)
    assert start < end, f"{pair[0]} imports {pair[1]}: the wrong way round"
    return end - start, start


DIAGRAMS = {"architecture": architecture, "answers": answers, "replay": replay, "refresh": refresh, "lease": lease}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        (IMAGES / f"{name}.svg").write_text(draw(), encoding="utf-8")
