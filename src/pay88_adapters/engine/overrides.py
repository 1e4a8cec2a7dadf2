"""The manager of the current context: the one of the client, another one, or none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar, cast

from pay88_adapters.core.arguments import class_of
from pay88_adapters.core.errors import ConfigurationError

M = TypeVar("M")
F = TypeVar("F", bound=Callable[..., Any])

# The open ones, innermost last.
OVERRIDES: ContextVar[tuple[Activation[Any], ...]] = ContextVar("pay88_managers", default=())


def current_manager(own: M) -> Any | M | None:
    """Return the manager for a request of a client with the manager *own*; ``None`` to bypass it."""
    overrides = OVERRIDES.get()
    return overrides[-1].manager if overrides else own


class Enclosing(AbstractContextManager[None]):
    """A context manager that is also a decorator of functions and coroutine functions. It may be entered repeatedly."""

    __slots__ = ()
    names: ClassVar[str]
    """Its public name, for error messages."""

    def __call__(self, function: F) -> F:
        """Return *function* with this context around each run, or around the coroutine that it returns.

        Raises:
            ConfigurationError: It is a generator function, whose body runs after the call, or no function.
        """
        given: Any = function
        if inspect.isclass(given) or not callable(given):
            raise ConfigurationError(f"{self.names} can decorate functions, not {class_of(given)}")
        bodies = (given, given.__call__)  # an object may have its code there
        if any(inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body) for body in bodies):
            raise _no_generator(self, given)
        decorate = _in_task if any(map(inspect.iscoroutinefunction, bodies)) else _in_call
        return cast("F", wraps(given)(decorate(self, given)))


class Activation(Enclosing, Generic[M]):
    """A context manager and decorator that sets the manager, or no manager, for functions and coroutine functions."""

    __slots__ = ("manager",)
    names = "activated() and unmanaged()"

    def __init__(self, manager: M) -> None:
        self.manager = manager

    def __enter__(self) -> None:
        OVERRIDES.set((*OVERRIDES.get(), self))

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # No reset(): generators that share a context end in any order, or in another context.
        overrides = list(OVERRIDES.get())
        for index in reversed(range(len(overrides))):
            if overrides[index] is self:
                del overrides[index]
                break
        OVERRIDES.set(tuple(overrides))


def _in_task(enclosing: Enclosing, function: Callable[..., Any]) -> Callable[..., Any]:
    async def run(*args: Any, **kw: Any) -> Any:
        with enclosing:
            return await function(*args, **kw)

    return run


def _in_call(enclosing: Enclosing, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kw: Any) -> Any:
        with enclosing:
            result: Any = function(*args, **kw)
        if inspect.iscoroutine(result):
            return _awaited(enclosing, result)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise _no_generator(enclosing, function)
        return result

    return run


async def _awaited(enclosing: Enclosing, coroutine: Coroutine[Any, Any, Any]) -> Any:
    with enclosing:
        return await coroutine


def _no_generator(enclosing: Enclosing, function: Any) -> ConfigurationError:
    name = getattr(function, "__qualname__", class_of(function))
    return ConfigurationError(
        f"{enclosing.names} cannot decorate the generator {name}: its body runs after the call; use a with block inside"
        " of it"
    )


def unmanaged() -> Activation[None]:
    """Bypass the manager in the current context: ``with unmanaged(): …``. Requests pass through unchanged.

    It affects this thread or task, and the tasks that are started in it. A new thread starts without it;
    ``contextvars.copy_context().run`` copies it. A generator that yields inside the block shares its context with the
    code that iterates over it. That code bypasses the manager too until the block ends.

    ``@unmanaged()`` does the same for a function or a coroutine function.
    """
    return Activation(None)
