"""What one check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """What was checked, how it is, and what to do about it."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    detail: str
    remedy: str = ""

    @property
    def text(self) -> str:
        """All of it in one line."""
        said = f"{self.detail}: {self.remedy}" if self.remedy else self.detail
        return " ".join(f"{self.state:<9}{self.name:<13}{said}".splitlines())


def ok(name: str, detail: str) -> Finding:
    """Return that it is good."""
    return Finding(name, "ok", detail)


def failed(name: str, detail: str, remedy: str) -> Finding:
    """Return that it is not, and what to do about it."""
    return Finding(name, "failed", detail, remedy)


def skipped(name: str, why: str) -> Finding:
    """Return that it was not checked."""
    return Finding(name, "skipped", why)
