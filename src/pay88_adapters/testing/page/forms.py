"""Faults and other parameters, read from JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from pay88_adapters.core.arguments import is_number
from pay88_adapters.testing import faults as fault_types
from pay88_adapters.testing.faults import Fault
from pay88_adapters.testing.holds import Hold

from .guards import RejectedRequest

T = TypeVar("T")

KINDS: Mapping[str, type[Fault]] = {
    kind.__name__: kind for kind in (*get_args(fault_types.Delay), *get_args(fault_types.Outcome))
}
"""All kinds of faults, by name."""

_MARKUP = str.maketrans("", "", "`*")
_MAX_NUMBER = 1_000_000_000


class Form:
    """A JSON object that is read field by field. Fields that were not read are an error."""

    def __init__(self, fields: object) -> None:
        if not isinstance(fields, dict):
            raise RejectedRequest(400, "the body must be a JSON object")
        self._fields: dict[str, Any] = {str(name): value for name, value in fields.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def take(self, name: str, read: Callable[[Any], T], default: T | None = None) -> T:
        """Return the value of a field, parsed by *read*.

        Raises:
            RejectedRequest: The field is missing and has no default, or is invalid.
        """
        if name not in self._fields:
            if default is None:
                raise RejectedRequest(400, f"{name} is missing")
            return default
        try:
            return read(self._fields.pop(name))
        except ValueError as exc:
            raise RejectedRequest(400, f"{name} must be {exc}") from None

    def end(self) -> None:
        """Reject unknown fields."""
        if self._fields:
            raise RejectedRequest(400, f"unknown: {', '.join(sorted(self._fields))}")


def fault(form: Form) -> Fault:
    """Return the fault that a form describes: ``{"fault": "Status", "status": 503}``."""
    name = form.take("fault", text)
    if name not in KINDS:
        raise RejectedRequest(400, f"fault must be one of {', '.join(KINDS)}")
    kind = KINDS[name]
    given = {each: form.take(each, _PARAMETERS[each]) for each in parameters(kind) if each in form}
    missing = [each for each, default in parameters(kind).items() if default is _NEEDED and each not in given]
    if missing:
        raise RejectedRequest(400, f"{name} needs {', '.join(missing)}")
    return kind(**given)


def parameters(kind: type[Fault]) -> dict[str, Any]:
    """Return the parameters of a fault with their defaults."""
    if kind is Hold:
        return {}
    return {
        each.name: _NEEDED if each.default is dataclasses.MISSING else each.default
        for each in dataclasses.fields(kind)  # type: ignore[arg-type]  # a Hold is none
    }


def catalogue() -> list[dict[str, Any]]:
    """Return every kind of fault with its parameters, for forms."""
    return [
        {
            "fault": name,
            "about": " ".join((kind.__doc__ or "").partition("\n\n")[0].translate(_MARKUP).split()),
            "parameters": {each: _shown(default) for each, default in parameters(kind).items()},
        }
        for name, kind in KINDS.items()
    ]


def _shown(value: Any) -> Any:
    if value is _NEEDED:
        return None
    return value.decode("latin-1") if isinstance(value, bytes) else value


# Readers of fields: the error message continues "must be"


def text(value: Any) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise ValueError("a string")  # noqa: TRY004 - as of any value that makes no sense
    return value


def number(value: Any) -> float:
    """Read a number that is not negative and not infinite."""
    if not is_number(value) or not 0 <= value <= _MAX_NUMBER:
        raise ValueError(f"a number from 0 to {_MAX_NUMBER}")
    return value


def whole(value: Any) -> int:
    """Read a whole number that is not negative."""
    if not is_number(value) or not isinstance(value, int) or not 0 <= value <= _MAX_NUMBER:
        raise ValueError(f"a whole number from 0 to {_MAX_NUMBER}")
    return value


def probability(value: Any) -> float:
    """Read a probability."""
    if number(value) > 1:
        raise ValueError("between 0 and 1")
    return number(value)


def target(value: Any) -> str:
    """Read the selection of requests."""
    if not isinstance(value, str) or not (value in ("token", "call", "other", "any") or value.startswith("/")):
        raise ValueError('"token", "call", "other", "any" or the start of a path')
    return value


def times(value: Any) -> int | None:
    """Read the number of times; null means without end."""
    return None if value is None else whole(value)


def key(value: Any) -> str:
    """Read an API key."""
    if not isinstance(value, str) or not value or not all("!" <= letter <= "~" for letter in value):
        raise ValueError("a key: printable ASCII without blanks")
    return value


def _status(value: Any) -> int:
    if not 200 <= whole(value) <= 599:
        raise ValueError("a status from 200 to 599")
    return whole(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004
    return value


def _fields(value: Any) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    if not pairs or not all(isinstance(part, str) and part.isprintable() and part for pair in pairs for part in pair):
        raise ValueError("an object of headers")
    if not all(name.isascii() and name.replace("-", "").isalnum() for name, _ in pairs):
        raise ValueError("an object of headers, with names of letters, digits and hyphens")
    return tuple(pairs)


def _bytes(value: Any) -> bytes:
    return text(value).encode()


def _location(value: Any) -> str:
    if not text(value).isascii() or not value.isprintable() or not value:
        raise ValueError("a URL in ASCII")
    return text(value)


def _seconds_or_date(value: Any) -> float | str | None:
    if value is None or (isinstance(value, str) and value.isprintable()):
        return value
    return number(value)


_NEEDED: Any = object()
_PARAMETERS: Mapping[str, Callable[[Any], Any]] = {
    "seconds": number,
    "status": _status,
    "headers": _fields,
    "body": _bytes,
    "retry_after": _seconds_or_date,
    "body_retry_after": _seconds_or_date,
    "to": _location,
    "missing": whole,
    "data": _bytes,
    "size": whole,
    "chunked": _flag,
}
