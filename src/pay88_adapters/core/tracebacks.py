"""Tracebacks that print as usual and contain no local variables.

Existing frames are not changed: clearing one closes the coroutines that are suspended in it, and those may belong to
another request that shares the exception object.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any, TypeAlias

_MARK = "local variables redacted by pay88_adapters"

Span: TypeAlias = "tuple[int, int, int, int]"
"""First and last line, first and last column of the failing expression; -1 if unknown."""

_NOWHERE: Span = (-1, -1, -1, -1)


def callers(frame: FrameType | None) -> set[FrameType]:
    """Return the callers of *frame*, without itself: it may have them in a variable."""
    found: set[FrameType] = set()
    while frame is not None and (frame := frame.f_back) is not None:
        found.add(frame)
    return found


def forget_locals_below(tb: TracebackType | None, keep: Collection[FrameType]) -> TracebackType | None:
    """Return *tb* as :func:`without_locals` does, but keep the first entries whose frames are in *keep*.

    On Python 3.10, ``raise`` continues the traceback that ``except`` saw, not the current one of the exception.
    """
    first, last = tb, None
    while tb is not None and tb.tb_frame in keep:
        last, tb = tb, tb.tb_next
    rest = without_locals(tb, keep)
    if last is None:
        return rest
    last.tb_next = rest
    return first


def without_locals(tb: TracebackType | None, keep: Collection[FrameType]) -> TracebackType | None:
    """Return a traceback with the lines of *tb*. Frames that are not in *keep* are replaced by empty ones."""
    entries: list[TracebackType] = []
    while tb is not None and not _is_look_alike(tb.tb_frame):  # the entries from here on were replaced before
        entries.append(tb)
        tb = tb.tb_next
    for entry in reversed(entries):
        if entry.tb_frame in keep:
            tb = TracebackType(tb, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
            continue
        with suppress(Exception):  # a missing line is better than an unexpected error
            tb = _look_alike(entry, tb)
    return tb


def _is_look_alike(frame: FrameType) -> bool:
    return _MARK in frame.f_code.co_consts


def _look_alike(entry: TracebackType, following: TracebackType | None) -> TracebackType:
    original, line = entry.tb_frame.f_code, _known(entry.tb_lineno)
    names = original.co_filename, original.co_name, getattr(original, "co_qualname", "")  # since 3.11
    span = _span(original, original.co_linetable, entry.tb_lasti, line)
    code, index = _code(*names, original.co_firstlineno, span)
    # The frame of a generator that never starts: nothing runs, and it has no caller.
    frame = FunctionType(code, entry.tb_frame.f_globals)().gi_frame
    return TracebackType(following, frame, 2 * index, line)


@lru_cache(maxsize=1024)
def _span(code: CodeType, lines: bytes, lasti: int, lineno: int) -> Span:
    """Return the span of an instruction; *lines* is part of the cache key, since comparing code ignores it."""
    span = _known_span(next(islice(_positions(code), lasti // 2, None), ())) if lasti >= 0 else _NOWHERE
    return (lineno, lineno, -1, -1) if -1 in span else span


def _positions(code: CodeType) -> Iterator[Sequence[int | None]]:
    positions: Callable[[], Iterator[Sequence[int | None]]] | None = getattr(code, "co_positions", None)  # since 3.11
    return positions() if positions else iter(())


def _known_span(position: Sequence[int | None]) -> Span:
    line, end_line, column, end_column = map(_known, position or _NOWHERE)
    return line, end_line, column, end_column


def _known(number: int | None) -> int:
    return -1 if number is None else number


@lru_cache(maxsize=1024)
def _code(filename: str, name: str, qualname: str, first_line: int, span: Span) -> tuple[CodeType, int]:
    """Return code with these names, and the index of its instruction at *span*."""
    module = ast.parse(f"def look_alike():\n yield {_MARK!r}")
    definition = module.body[0]
    _put(definition, (first_line, first_line, 0, 0))
    for node in islice(ast.walk(definition), 1, None):
        _put(node, span)
    (made,) = (each for each in compile(module, filename, "exec").co_consts if isinstance(each, CodeType))
    names: dict[str, Any] = {"co_name": name, "co_qualname": qualname} if qualname else {"co_name": name}
    made = made.replace(**names)
    return made, next((index for index, each in enumerate(_positions(made)) if _known_span(each) == span), 0)


def _put(node: ast.AST, span: Span) -> None:
    if "lineno" in node._attributes:
        node.lineno, node.end_lineno, node.col_offset, node.end_col_offset = span  # type: ignore[attr-defined]
