"""The contestants, and their client libraries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from benchmarks.service import Service

BARE, CONTROL, STATIC, BY_HAND, OURS = "bare", "bare again", "static headers", "by hand", "pay88-adapters"

STACKS = ("urllib3", "requests", "httpx", "httpx-async", "httpx2", "httpx2-async", "aiohttp")

Call = Callable[[], Any]
"""Makes one call and returns its status, or an awaitable of it."""
Make = Callable[[Service], Call]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One row of the tables of calls."""

    name: str
    make: Make
    both: bool = True
    """Whether it sends both header fields."""
    survives: bool = True
    """Whether a call survives a rejected token."""


_MODULES = {
    "urllib3": ("on_urllib3", ""),
    "requests": ("on_requests", ""),
    "httpx": ("on_httpx", "httpx"),
    "httpx-async": ("on_httpx", "httpx"),
    "httpx2": ("on_httpx", "httpx2"),
    "httpx2-async": ("on_httpx", "httpx2"),
    "aiohttp": ("on_aiohttp", ""),
}


def is_async(stack: str) -> bool:
    """Return whether the calls of *stack* are awaited."""
    return stack == "aiohttp" or stack.endswith("-async")


# Names only, so that the process that prints the tables imports no client library.
_EVERYWHERE = (BARE, CONTROL, STATIC, BY_HAND, OURS)
_PEERS = {
    "urllib3": ("google-auth", "botocore"),
    "requests": ("google-auth", "authlib", "azure-core"),
    "httpx": ("authlib", "httpx-auth", "recipe"),
    "httpx-async": ("authlib", "httpx-auth", "recipe"),
    "httpx2": ("authlib", "recipe"),
    "httpx2-async": ("authlib", "recipe"),
    "aiohttp": ("google-auth", "azure-core", "recipe"),
}


def rows(stack: str) -> tuple[str, ...]:
    """Return who takes part on *stack*."""
    return (*_EVERYWHERE, *_PEERS[stack])


def contestant(stack: str, name: str) -> Contestant:
    """Import what the row needs, and nothing else."""
    module, library = _MODULES[stack]
    found: Contestant = import_module(f".{module}", __package__).contestant(name, library, is_async(stack))
    return found


async def awaited(call: Callable[[], Awaitable[int]]) -> int:
    """Await one call."""
    return await call()


def contestants_marks(row: str) -> str:
    """Return what a row sends, and whether a call of it survives a 401."""
    if row in (BARE, CONTROL):
        return "nothing"
    survives = row in (BY_HAND, OURS, "recipe", "google-auth")
    return "both headers, survives a 401" if survives else "both headers"
