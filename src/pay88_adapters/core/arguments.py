"""Checks of the arguments of ``attach`` and of constructors. Errors name the wrong value and what to pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

from .errors import ConfigurationError, shorten
from .events import Listener
from .secret import RedactedMapping

CLIENTS = {
    "urllib3": ("PoolManager",),
    "requests": ("Session",),
    "httpx": ("Client", "AsyncClient"),
    "httpx2": ("Client", "AsyncClient"),
    "aiohttp": ("ClientSession",),
}
"""The classes of clients, by library."""


def class_of(value: object) -> str:
    """Return the class of *value* with its module, as error messages show it."""
    if value is None:
        return "None"
    kind = value if isinstance(value, type) else type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    name = shorten(name, 60)
    return f"the class {name}" if kind is value else name


def check_client(client: object, library: str, kinds: tuple[type, ...]) -> None:
    """Check the first argument of *library*'s ``attach``.

    Raises:
        ConfigurationError: It is not an instance of *kinds*.
    """
    if isinstance(client, kinds):
        return
    names = " or ".join(f"{library}.{kind.__name__}" for kind in kinds)
    raise ConfigurationError(
        f"attach() of pay88_adapters.{library} takes {names}, not {class_of(client)}: {_remedy(client)}"
    )


def _remedy(client: object) -> str:
    if client is None or isinstance(client, type):
        return "create the client first"
    for each in type(client).__mro__:
        library = each.__module__.partition(".")[0]
        if each.__name__ in CLIENTS.get(library, ()):
            return f"use pay88_adapters.{library}.attach()"
        if each.__name__ == "TokenManager":
            return "the client comes first, then the manager"
    return "other libraries are not supported; send token.headers() yourself"


def inside(client: object, name: str, kind: type | tuple[type, ...] = object) -> Any:
    """Return an attribute that the constructor of every supported client sets.

    Raises:
        ConfigurationError: It is missing: a test double of the class, or a subclass that skips the constructor.
    """
    value = getattr(client, name, None)
    if value is None or not isinstance(value, kind):
        raise ConfigurationError(
            f"attach() cannot use this {class_of(client)}: it has no {name}; pass a client whose constructor has run"
        )
    return value


def check_method(name: str, value: object, method: str, wanted: str) -> None:
    """Check that *value* has *method*. The error says that it must be *wanted*.

    Raises:
        ConfigurationError: It has no such method.
    """
    found: Callable[..., Any] | None = None if isinstance(value, type) else getattr(value, method, None)
    if not callable(found):
        raise ConfigurationError(f"{name} must be {wanted}, not {class_of(value)}")


def check_type(name: str, value: object, kind: type, *, required: bool = False) -> None:
    """Raise :class:`ConfigurationError` unless *value* is an instance of *kind* or, if not *required*, ``None``."""
    if not isinstance(value, kind) and (required or value is not None):
        raise ConfigurationError(f"{name} must be a {kind.__name__}, not {class_of(value)}")


def checked_listeners(listeners: Iterable[Listener]) -> tuple[Listener, ...]:
    """Return *listeners* as a tuple; raise :class:`ConfigurationError` unless each is callable."""
    if callable(listeners):
        raise ConfigurationError("listeners must be a list of callables, not a callable: pass [listener]")
    if not isinstance(listeners, Iterable):
        raise ConfigurationError(f"listeners must be a list of callables, not {class_of(listeners)}: pass [listener]")
    checked = tuple(listeners)
    if not all(callable(each) for each in checked):
        raise ConfigurationError("listeners must contain only callables that take one event: remove the rest")
    return checked


def checked_environ(environ: Mapping[str, str]) -> RedactedMapping:
    """Return a copy of *environ*; raise :class:`ConfigurationError` unless it is a mapping, such as ``os.environ``."""
    check_type("environ", environ, Mapping, required=True)
    return RedactedMapping(environ)


_MOST = 86_400  # seconds of a day; counts are far below
LEAST = 1e-6
"""The least positive number: arithmetic overflows with the smallest ones of Python."""
_LARGEST = 1.7976931348623157e308  # float


def check_number(name: str, value: object, *, whole: bool = False, positive: bool = False) -> None:
    """Check a count or a duration in seconds: from 0 (or, with *positive*, 1 or a millionth) to 86,400.

    Raises:
        ConfigurationError: It is not such a number.
    """
    if not is_number(value) or (whole and not isinstance(value, int)):
        raise ConfigurationError(f"{name} must be a number, not {type(value).__name__}")
    least = 0 if not positive else 1 if whole else LEAST
    if not least <= value <= _MOST:  # false for NaN, too
        raise ConfigurationError(f"{name} is {shown(value)}: it must be {least:g} or more, and at most {_MOST}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether *value* is a number: Python takes ``True`` and ``False`` for numbers, too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_finite(name: str, value: object) -> None:
    """Raise :class:`ConfigurationError` unless *value* is a finite number."""
    if not is_number(value):
        raise ConfigurationError(f"{name} must be a number, not {class_of(value)}")
    if not abs(value) <= _LARGEST:  # false for NaN, too
        raise ConfigurationError(f"{name} is {shown(value)}: it must be a finite number")


def check_count(name: str, value: object, *, most: int | None = None) -> None:
    """Raise :class:`ConfigurationError` unless *value* is a whole number from 0, to *most* if given."""
    if not is_number(value) or not isinstance(value, int):
        raise ConfigurationError(f"{name} must be a whole number, not {class_of(value)}")
    if value < 0 or (most is not None and value > most):
        limits = "0 or more" if most is None else f"from 0 to {most}"
        raise ConfigurationError(f"{name} is {shown(value)}: it must be {limits}")


def check_callable(name: str, value: object) -> None:
    """Raise :class:`ConfigurationError` unless *value* is callable."""
    if not callable(value):
        raise ConfigurationError(f"{name} must be callable, not {class_of(value)}")


def shown(value: float) -> str:
    """Return a number for a message: Python raises for integers of very many digits."""
    return f"{value:g}" if isinstance(value, float) or abs(value) < 10**9 else "too large"
