"""Take the picture of the demonstration: ``python docs/demo.py`` runs ``pay88 demo`` on a terminal of its own.

It needs a POSIX system and takes 20 seconds. The picture, docs/images/demo.svg, shows what stays on the terminal.
"""

from __future__ import annotations

import io
import os
import pty
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent / "images" / "demo.svg"

# Rich's own format loads a font from elsewhere. The background is the picture's own: it can be read on any page.
_FORMAT = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="720" role="img">
<title>What pay88 demo shows</title>
<style>
text {{ font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""

_CONTROLS = re.compile(r"(\n|\r|\x1b\[1A|\x1b\[2K|\x1b\[\?25[hl])")


def record(*command: str) -> str:
    """Return what a command writes to a terminal."""
    written: list[bytes] = []

    def read(terminal: int) -> bytes:
        written.append(os.read(terminal, 65536))
        return written[-1]

    ended = os.waitstatus_to_exitcode(pty.spawn(command, read))
    if ended:
        raise SystemExit(ended)
    return b"".join(written).decode()


def what_stays(written: str) -> str:
    """Return the lines that are not drawn over: rich goes up line by line, and clears each."""
    lines = [""]
    for part in _CONTROLS.split(written):
        if part == "\n":
            lines.append("")
        elif part == "\x1b[1A":
            lines.pop()
        elif part == "\x1b[2K":
            lines[-1] = ""
        elif not _CONTROLS.match(part):
            lines[-1] += part
    return "\n".join(lines).strip("\n")


def draw(text: str) -> str:
    """Return the picture of a terminal that shows *text*."""
    console = Console(record=True, width=80, file=io.StringIO(), highlight=False)
    console.print(Text.from_ansi(text))
    return console.export_svg(title="pay88 demo", code_format=_FORMAT, unique_id="demo")


if __name__ == "__main__":
    os.environ |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "50"}
    os.environ.pop("NO_COLOR", None)
    PICTURE.write_text(draw(what_stays(record("pay88", "demo"))), encoding="utf-8")
