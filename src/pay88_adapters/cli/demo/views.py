"""Output of the demo: a redrawn terminal, plain lines, or JSON."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pay88_adapters.cli.terminal import is_plain

from .report import Line, Snapshot, clock_time, stack_table, status_line, token_table


def view() -> View:
    """Return the view for standard output."""
    return PlainView() if is_plain() else LiveView(Console(highlight=False))


class View(ABC):
    """Prints lines that stay, and the current state."""

    every: float
    """Real seconds between two updates."""

    def __init__(self) -> None:
        self._due_at = 0.0

    def __enter__(self) -> View:
        return self

    def __exit__(  # noqa: B027 - optional
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def is_due(self, *, force: bool) -> bool:
        """Return whether an update is due, and schedule the next one if so."""
        now = time.monotonic()
        if now < self._due_at and not force:
            return False
        self._due_at = now + self.every
        return True

    @abstractmethod
    def say(self, lines: Iterable[Line]) -> None:
        """Print lines that stay."""

    def phase(self, at: float, name: str, text: str) -> None:
        """Print the start of a phase."""
        self.say([Line(f"{clock_time(at):>6}  {name}: {text}", "cyan")])

    @abstractmethod
    def show(self, snapshot: Snapshot) -> None:
        """Show the current state."""

    def conclude(self, document: dict[str, object]) -> None:  # noqa: B027 - printed before
        """Print the result for programs."""


class PlainView(View):
    """Plain lines without control codes."""

    every = 2.0

    def say(self, lines: Iterable[Line]) -> None:
        for line in lines:
            print(line.text, flush=True)

    def show(self, snapshot: Snapshot) -> None:
        self.say([status_line(snapshot)])


class JsonView(View):
    """One JSON document at the end."""

    every = 60.0

    def say(self, lines: Iterable[Line]) -> None:
        pass

    def show(self, snapshot: Snapshot) -> None:
        pass

    def conclude(self, document: dict[str, object]) -> None:
        print(json.dumps(document))


class LiveView(View):
    """Tables that are redrawn below the lines that stay."""

    every = 0.25

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> View:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, lines: Iterable[Line]) -> None:
        self._console.print(_text(lines))

    def show(self, snapshot: Snapshot) -> None:
        time_line = Line(f"{'time':<20}{clock_time(snapshot.at)}")
        tables = [Line(), *stack_table(snapshot.rows), Line(), time_line, *token_table(snapshot.stats)]
        self._live.update(Group(_text(tables)), refresh=True)


def _text(lines: Iterable[Line]) -> Text:
    return Text("\n").join(Text(line.text, line.style) for line in lines)
