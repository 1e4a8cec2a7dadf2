"""Which manager the calls of a context use: their client's, another one, or none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from pay88_adapters.core.arguments import class_of
from pay88_adapters.core.errors import ConfigurationError

M = TypeVar("M")
F = TypeVar("F", bound=Callable[..., Any])

CHOICES: ContextVar[tuple[Activation[Any], ...]] = ContextVar(
    "pay88_managers", default=()
)  # those still open, innermost last


def chosen(own: M) -> Any | M | None:
    """Return the manager for a call of a client whose own one is *own*; ``None`` leaves the call alone."""
    choices = CHOICES.get()
    return choices[-1].manager if choices else own


class Activation(AbstractContextManager[None], Generic[M]):
    """A context manager, and a decorator of functions and coroutine functions, with one manager or none in force."""

    __slots__ = ("manager",)

    def __init__(self, manager: M) -> None:
        self.manager = manager

    def __enter__(self) -> None:
        CHOICES.set((*CHOICES.get(), self))

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # No reset(): generators that share a context end in any order, or in another context.
        choices = list(CHOICES.get())
        for index in reversed(range(len(choices))):
            if choices[index] is self:
                del choices[index]
                break
        CHOICES.set(tuple(choices))

    def __call__(self, function: F) -> F:
        """Return *function* with the manager in force while it runs, or while the coroutine does that it returns.

        Raises:
            ConfigurationError: It is a generator function, whose body runs after the call, or no function.
        """
        given: Any = function
        if inspect.isclass(given) or not callable(given):
            raise ConfigurationError(f"activated() and unmanaged() decorate functions, not {class_of(given)}")
        bodies = (given, given.__call__)  # an object may have its code there
        if any(inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body) for body in bodies):
            raise _no_generator(given)
        decorate = _in_task if any(map(inspect.iscoroutinefunction, bodies)) else _in_call
        return cast("F", wraps(given)(decorate(self, given)))


def _in_task(activation: Activation[Any], function: Callable[..., Any]) -> Callable[..., Any]:
    async def run(*args: Any, **kw: Any) -> Any:
        with activation:
            return await function(*args, **kw)

    return run


def _in_call(activation: Activation[Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kw: Any) -> Any:
        with activation:
            result: Any = function(*args, **kw)
        if inspect.iscoroutine(result):
            return _awaited(activation, result)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise _no_generator(function)
        return result

    return run


async def _awaited(activation: Activation[Any], coroutine: Coroutine[Any, Any, Any]) -> Any:
    with activation:
        return await coroutine


def _no_generator(function: Any) -> ConfigurationError:
    name = getattr(function, "__qualname__", class_of(function))
    return ConfigurationError(
        f"activated() and unmanaged() cannot decorate the generator {name}: its body runs after the call that they"
        " enclose; use a with block inside of it"
    )


def unmanaged() -> Activation[None]:
    """Leave the calls of a context alone: ``with unmanaged(): …``. They go out as the caller made them.

    It holds for this thread or task, and for the tasks that are started in it. A new thread starts
    without; ``contextvars.copy_context().run`` takes it along. A generator that yields inside of the block
    shares its context with whoever iterates over it: they see it as well, until the block ends.

    ``@unmanaged()`` does the same for all that a function does, or a coroutine function.
    """
    return Activation(None)
