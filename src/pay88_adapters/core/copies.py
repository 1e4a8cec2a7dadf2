"""Private copies of exceptions: clients raise the first error of a connection to every request on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from operator import is_
from types import BuiltinFunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

_SET_APART = frozenset({"__cause__", "__context__", "__dict__", "__suppress_context__", "__traceback__", "__weakref__"})
_UNSET = object()
_put = object.__setattr__  # also for exceptions that are frozen dataclasses


def members(exc: BaseException) -> list[BaseException]:
    """Return what an exception group, of Python's own or of the ``exceptiongroup`` package, contains."""
    parts: Any = getattr(exc, "exceptions", ()) if _is_group(exc) else ()
    return [each for each in parts if isinstance(each, BaseException)]


def _is_group(exc: BaseException) -> bool:
    return any(kind.__name__ == "BaseExceptionGroup" for kind in type(exc).__mro__)


class Copies:
    """Copies of the causes and contexts of an exception, made without calling a constructor.

    An exception that cannot be copied is used as it is.

    Args:
        exc: The exception that the caller gets. It is not copied, nor are its members if it is a group.
        links: *exc* with its causes and contexts.
    """

    def __init__(self, exc: BaseException, links: Sequence[BaseException]) -> None:
        self._links = {id(link): link for link in links}
        self._copies: dict[int, BaseException] = {}
        kept = [exc]
        for each in kept:
            self._copies[id(each)] = each
            kept += [member for member in members(each) if id(member) not in self._copies]
        for link in links:
            self.copy_of(link)
        for link in links:
            self._fill(link)

    def copy_of(self, link: BaseException) -> BaseException:
        """Return the copy of one of the links."""
        if id(link) not in self._copies:
            try:
                self._copies[id(link)] = self._blank(link)
            except Exception:  # noqa: BLE001 - classes may be of any kind
                self._copies[id(link)] = link
        return self._copies[id(link)]

    def _blank(self, link: BaseException) -> BaseException:
        kind = type(link)
        args: tuple[Any, ...] = ()
        if _is_group(link):
            for each in members(link):
                if id(each) in self._links:
                    self.copy_of(each)
            args = link.message, self._swapped(link.exceptions)  # type: ignore[attr-defined]
        for base in kind.__mro__:
            new = vars(base).get("__new__")
            if isinstance(new, BuiltinFunctionType):
                with suppress(TypeError):  # a base whose objects have another layout
                    made: BaseException = new(kind, *args)
                    made.__dict__.update(link.__dict__)
                    return made
        raise TypeError(kind)

    def _fill(self, link: BaseException) -> None:
        copy = self._copies[id(link)]
        for descriptor in _fields(type(link)):
            with suppress(Exception):  # not set, or read-only
                value = self._swapped(descriptor.__get__(link))
                if value is not _value(descriptor, copy):
                    descriptor.__set__(copy, value)
        with suppress(Exception):
            for name, value in list(link.__dict__.items()):
                if self._swapped(value) is not value:
                    copy.__dict__[name] = self._swapped(value)
        if copy is not link and type(notes := copy.__dict__.get("__notes__")) is list:
            copy.__dict__["__notes__"] = notes.copy()
        suppressed = link.__suppress_context__
        _put(copy, "__context__", self._swapped(link.__context__))
        _put(copy, "__cause__", self._swapped(link.__cause__))
        _put(copy, "__suppress_context__", suppressed)

    def _swapped(self, value: Any, depth: int = 2) -> Any:
        """Return *value*, or a list or tuple like it, with its links replaced by their copies."""
        if depth == 0 or type(value) not in (list, tuple):
            return self._copies.get(id(value), value)
        parts = [self._swapped(each, depth - 1) for each in value]
        return value if all(map(is_, parts, value)) else type(value)(parts)


def _value(descriptor: Any, exc: BaseException) -> Any:
    try:
        return descriptor.__get__(exc)
    except AttributeError:
        return _UNSET


def _fields(kind: type[BaseException]) -> Iterator[Any]:
    for base in kind.__mro__:
        fields: Mapping[str, object] = vars(base)
        for name, each in fields.items():
            if name not in _SET_APART and isinstance(each, (GetSetDescriptorType, MemberDescriptorType)):
                yield each
