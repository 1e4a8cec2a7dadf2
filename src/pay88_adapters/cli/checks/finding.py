"""Results of checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pay88_adapters import ConfigurationError


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    detail: str
    remedy: str = ""

    @property
    def text(self) -> str:
        """The result as one line."""
        line = f"{self.detail}: {self.remedy}" if self.remedy else self.detail
        return " ".join(f"{self.state:<9}{self.name:<13}{line}".splitlines())


def ok(name: str, detail: str) -> Finding:
    """Return a passed check."""
    return Finding(name, "ok", detail)


def failed(name: str, detail: str, remedy: str) -> Finding:
    """Return a failed check and its remedy."""
    return Finding(name, "failed", detail, remedy)


def invalid(name: str, error: ConfigurationError, remedy: str) -> Finding:
    """Return a failed check with the remedy that the message contains, or else *remedy*."""
    what, _, own = str(error).rpartition(": ")
    return failed(name, what, own) if what else failed(name, own, remedy)


def skipped(name: str, why: str) -> Finding:
    """Return a check that was not made."""
    return Finding(name, "skipped", why)
