"""Rule 15 in tracebacks: they keep their lines, lose their local variables, and no frame or other request notices."""

from __future__ import annotations

import asyncio
import builtins
import gc
import importlib
import linecache
import operator
import ssl
import sys
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from pay88_adapters.core.secret import clear_traceback_locals, contains_secret, exception_chain

HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
SECRET = "eyJhbGciOiJFUzI1NiJ9.cGF5bG9hZA.c2ln"

GROUPS: list[Any] = [getattr(builtins, "ExceptionGroup", None)]
with suppress(ModuleNotFoundError):  # where it takes the place of Python's own
    GROUPS.append(importlib.import_module("exceptiongroup").ExceptionGroup)
GROUPS = list({id(each): each for each in GROUPS if each}.values())


def printed(exc: BaseException, *, capture_locals: bool = True) -> str:
    """Return a traceback."""
    return "".join(traceback.TracebackException.from_exception(exc, capture_locals=capture_locals).format())


def shows(exc: BaseException) -> bool:
    """Whether a traceback with local variables shows the secret."""
    return SECRET in printed(exc)


def send(exc: BaseException, by: BaseException | None = None) -> None:
    """Raise *exc*, as HTTP libraries do, with the header block in a local variable."""
    headers = [("Authorization", SECRET)]
    if by is not None:
        raise exc from by
    if headers:
        raise exc


def raised(exc: BaseException, by: BaseException | None = None) -> BaseException:
    """Return *exc* as it is once a frame with a secret has raised it, without the frame of this function."""
    try:
        send(exc, by)
    except BaseException as error:  # noqa: BLE001
        tb = error.__traceback__
        assert tb is not None
        return error.with_traceback(tb.tb_next)
    raise AssertionError


def clean(exc: BaseException, but: BaseException | None = None) -> BaseException:
    """Return *exc* without local variables, where it showed a secret."""
    assert shows(exc)
    clear_traceback_locals(exc, but)
    assert not shows(exc)
    return exc


# What is printed


class Nested:
    """Frames of all kinds."""

    def method(self, secret: str) -> object:
        """Fail in a lambda in a comprehension, on several lines."""
        return [
            (lambda each: {
                each: self.missing(each,
                                   secret)
            })(each)
            for each in secret
        ]  # fmt: skip

    def missing(self, *secrets: str) -> float:
        """Fail below."""
        exec(compile("text = secrets[0]\nint(text + secrets[1])", "<made at run time>", "exec"), {"secrets": secrets})
        return 0.0

    async def task(self, secret: str) -> object:
        """Fail in what is awaited, while something else is handled."""
        try:
            await asyncio.sleep(-secret)  # type: ignore[operator]
        except TypeError:
            return list(self.generated(secret))
        return None

    def generated(self, secret: str) -> Any:
        """Fail below a generator."""
        yield from (self.method(each + secret) for each in secret)


def fails(act: Callable[[], object]) -> BaseException:
    """Return what *act* raises."""
    try:
        act()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "act",
    [
        lambda: asyncio.run(Nested().task(SECRET)),
        lambda: Nested().method(SECRET),
        lambda: ssl.create_default_context(cafile="/nowhere"),
        lambda: compile(f"'{SECRET}' (", "<text>", "exec"),
        lambda: sorted([SECRET, 1]),  # type: ignore[type-var]
        lambda: int(SECRET),
    ],
)
def test_rule_15_a_redacted_traceback_prints_the_same_lines(act: Callable[[], object]) -> None:
    """File, line, function, source, and the marks below what failed, of causes and contexts, too."""
    error = fails(act)
    before, origin = printed(error, capture_locals=False), exception_chain(error)
    frames = [each for link in origin for each, _ in traceback.walk_tb(link.__traceback__)]
    clear_traceback_locals(error)
    linecache.clearcache()
    assert printed(error, capture_locals=False) == before
    for link in exception_chain(error):
        for frame, _ in traceback.walk_tb(link.__traceback__):
            assert not frame.f_locals or frame not in frames or frame.f_code is fails.__code__
    if sys.version_info >= (3, 11):
        names = {frame.f_code.co_qualname for frame, _ in traceback.walk_tb(error.__traceback__)}
        assert names <= {frame.f_code.co_qualname for frame in frames}


def test_rule_15_a_redacted_traceback_ends_in_frames_like_those_that_failed() -> None:
    """For tools that read more than the text: module, first line of the function; and no frame of other code behind."""
    error = raised(ValueError("no"))
    assert error.__traceback__ is not None
    real = error.__traceback__.tb_frame
    clear_traceback_locals(error)
    shown = error.__traceback__.tb_frame
    assert shown is not real
    assert (shown.f_locals, shown.f_back) == ({}, None)
    for name in ("co_filename", "co_name", "co_firstlineno"):
        assert getattr(shown.f_code, name) == getattr(real.f_code, name)
    assert shown.f_globals["__name__"] == __name__
    assert real.f_locals["headers"] == [("Authorization", SECRET)], "the frame itself is left alone"


def test_rule_15_frames_that_still_run_stay_as_they_are() -> None:
    """The frames of the caller, and of its callers, keep their locals."""
    mine = "a local variable of the caller's"

    def attempt() -> None:
        try:
            send(ValueError("no"))
        except ValueError as error:
            before = error.__traceback__
            clear_traceback_locals(error)
            seen.append((error.__traceback__ is before, mine in printed(error), shows(error)))
            raise  # Python 3.10 continues with the traceback that was caught

    seen: list[tuple[bool, bool, bool]] = []
    error = fails(attempt)
    assert seen == [(True, True, False)]
    assert "in send" in printed(error)
    assert not shows(error)


def test_rule_15_suspended_tasks_continue() -> None:
    """One exception object in many tasks: what is suspended in another one is not closed."""

    async def attempt(error: Exception, release: asyncio.Event) -> str:
        try:
            send(error)
        except ValueError:
            await release.wait()  # closing the connection
            raise
        return SECRET

    async def main() -> list[object]:
        error, release = ValueError("connection lost"), asyncio.Event()
        tasks = [asyncio.ensure_future(attempt(error, release)) for _ in range(3)]
        await asyncio.sleep(0)
        clean(error)
        release.set()
        return [each is error for each in await asyncio.gather(*tasks, return_exceptions=True)]

    assert asyncio.run(main()) == [True] * 3


# Exceptions that others hold, too


class Slotted(OSError):
    """With fields of its own, and a constructor that takes what no copy knows."""

    __slots__ = ("peer", "unset")

    def __init__(self, peer: str, *, code: int) -> None:
        super().__init__(code, f"{peer} is gone", "a file")
        self.peer = peer
        self.more = [code]

    def __reduce__(self) -> Any:
        raise TypeError("not to be copied")


@dataclass(frozen=True)
class Frozen(Exception):
    """Rejects every change."""

    number: int


class Made(ValueError):
    """Made by ``__new__``."""

    def __new__(cls, first: int, second: int) -> Made:
        made = super().__new__(cls, first, second)
        made.total = first + second
        return made

    total: int


class Both(KeyError, OSError):
    """Two bases, of which the second says how it looks inside."""


def no_number() -> BaseException:
    """Return what Python raises by itself, with fields in C."""
    return fails(b"\xff".decode)


ODD: dict[str, Callable[[], BaseException]] = {
    "slots": lambda: Slotted("peer", code=5),
    "frozen": lambda: Frozen(5),
    "new": lambda: Made(1, 2),
    "two bases": lambda: Both(1, "two"),
    "OSError": lambda: FileNotFoundError(2, "no", "a", None, "b"),
    "SSLError": lambda: fails(lambda: ssl.create_default_context(cadata="no")),
    "UnicodeError": no_number,
    "AttributeError": lambda: fails(lambda: object().missing),  # type: ignore[attr-defined]
    "ImportError": lambda: ImportError("no", name="name", path="path"),
    "StopIteration": lambda: StopIteration(5),
    "SystemExit": lambda: SystemExit(3),
    "SyntaxError": lambda: fails(lambda: compile("a b", "<text>", "exec")),
    "CancelledError": lambda: asyncio.CancelledError("no"),
    "cause of its own": lambda: raised(ValueError("outer"), LookupError("inner")),
}
FIELDS = ("errno", "strerror", "filename", "filename2", "peer", "more", "number", "total", "encoding", "start", "end",
          "reason", "object", "name", "path", "obj", "value", "code", "lineno", "text", "msg")  # fmt: skip


def fields(exc: BaseException) -> dict[str, object]:
    """Return all that can be seen of an exception."""
    seen = {name: getattr(exc, name) for name in FIELDS if hasattr(exc, name)}
    flags = exc.__suppress_context__, getattr(exc, "__notes__", None)
    return {"type": type(exc), "text": str(exc), "repr": repr(exc), "args": exc.args, "flags": flags, **seen}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("where", ["__cause__", "__context__"])
def test_rule_15_a_shared_cause_is_copied(kind: str, where: str) -> None:
    """The frames that other requests add to it later are in no traceback of this one; all else is the same."""
    shared, error = ODD[kind](), ValueError("no")
    vars(shared)["__notes__"] = ["a note"]
    setattr(error, where, raised(shared))
    error.__suppress_context__ = False
    before = printed(error, capture_locals=False)
    clean(raised(error))
    mine = getattr(error, where)
    assert mine is not shared
    assert fields(mine) == fields(shared)
    assert error.__suppress_context__ is False
    raised(shared)  # to another request
    vars(shared)["__notes__"].append(SECRET)
    assert shows(shared)
    assert not shows(error)
    assert printed(error, capture_locals=False).startswith(before[: before.index("ValueError: no")])
    copied: Any = mine
    assert set(vars(copied)) == set(vars(shared))


def test_rule_15_the_error_itself_is_the_very_object() -> None:
    """A caller that compares finds what the plain client raises, and what refers to a cause refers to its copy."""
    inner = raised(OSError("inner"))
    error = RuntimeError("no", inner, [inner, 1])
    error.reason = inner  # type: ignore[attr-defined]
    clean(raised(error, inner))
    private: Any = error.__cause__
    assert private is not inner
    assert error.args == ("no", private, [private, 1])
    assert error.reason is private  # type: ignore[attr-defined]
    assert not shows(inner), "code that keeps it prints no secret of this request either"


def test_rule_15_what_cannot_be_copied_stays() -> None:
    """Its traceback is redacted where it is, and what it came from is a copy all the same."""

    class Odd(ValueError):
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise LookupError

    odd, cause = Odd("no"), raised(OSError("inner"))
    error = clean(raised(ValueError("outer"), raised(odd, cause)))
    assert error.__cause__ is odd
    assert odd.__cause__ is not cause
    assert type(odd.__cause__) is OSError


def test_rule_15_what_the_caller_handles_stays_unchanged() -> None:
    """Neither it nor what it came from is touched, also where both errors came from the same."""
    shared = raised(OSError("shared"))
    handled = raised(LookupError("handled"), shared)
    entries = handled.__traceback__, shared.__traceback__
    error = ValueError("no")
    error.__context__ = handled
    raised(error, shared)
    clear_traceback_locals(error, but=handled)
    assert (handled.__traceback__, shared.__traceback__) == entries
    assert error.__context__ is handled
    assert handled.__cause__ is shared
    assert error.__cause__ is not shared
    handled.__cause__ = error.__context__ = None
    assert not shows(error)


# Groups, circles, depth


@pytest.mark.parametrize("group", GROUPS)
def test_rule_15_exception_groups_are_redacted(group: Any) -> None:
    """Its members, theirs, and what all of them came from; a group that is a cause is a copy, of copies."""

    def tree() -> Any:
        cause = raised(group("cause", [raised(OSError("member of a cause"))]))
        return raised(group("all", [raised(ValueError("one"), cause), raised(group("more", [raised(KeyError(2))]))]))

    error = tree()
    before, cause = printed(error, capture_locals=False), error.exceptions[0].__cause__
    members = error.exceptions
    clean(error)
    assert printed(error, capture_locals=False) == before
    assert all(map(operator.is_, error.exceptions, members))
    private = members[0].__cause__
    assert (type(private), private.message, private.args[0]) == (group, "cause", "cause")
    assert private is not cause
    raised(cause.exceptions[0])
    raised(cause)
    assert shows(cause)
    assert not shows(error)
    assert len(exception_chain(error)) == 6
    assert contains_secret(group("all", [ValueError(SECRET)]))
    assert contains_secret(ValueError(group("all", [KeyError("no")]), 1)) is False


def test_rule_15_notes_are_read() -> None:
    """A secret in a note counts as a secret in the error."""
    error = ValueError("no")
    assert not contains_secret(error, SECRET)
    error.__notes__ = [f"sent {SECRET}"]  # type: ignore[attr-defined]
    assert contains_secret(error, SECRET)


def test_rule_15_an_error_that_cannot_be_printed_is_not_trusted() -> None:
    """A secret may be why."""

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise LookupError(SECRET)

    assert contains_secret(Unprintable())


def test_rule_15_errors_in_circles_and_long_chains_end() -> None:
    """Nothing runs without end, nothing recurses, and nothing takes the square of its length."""
    first, second = raised(ValueError("first")), raised(OSError("second"))
    first.__cause__, second.__context__, second.__cause__ = second, first, second
    clean(first)
    assert first.__cause__ is not None
    assert first.__cause__.__context__ is first

    error = last = raised(ValueError("0"))
    for number in range(20_000):
        last.__context__ = ValueError(number)
        last = last.__context__
    raised(last)
    clear_traceback_locals(error)
    assert len(exception_chain(error)) == 20_001
    tb = exception_chain(error)[-1].__traceback__
    assert tb is not None
    assert tb.tb_frame.f_locals == {}
    while error.__context__ is not None:  # freed one by one
        error = error.__context__


def test_rule_15_a_traceback_that_grows_is_redacted_at_its_head() -> None:
    """With one error raised to each request of a connection, none pays for all those before."""
    error = raised(ValueError("no"))
    clear_traceback_locals(error)
    done = error.__traceback__
    clean(raised(error))
    assert error.__traceback__ is not None
    assert error.__traceback__.tb_next is done


def test_rule_15_recursion_is_redacted() -> None:
    """As deep as Python goes."""

    def recurse(secret: str) -> None:
        recurse(secret + "")

    error = fails(lambda: recurse(SECRET))
    assert isinstance(error, RecursionError)
    length = len(list(traceback.walk_tb(error.__traceback__)))
    clean(error)
    assert len(list(traceback.walk_tb(error.__traceback__))) == length


def test_rule_15_nothing_is_kept_in_a_circle() -> None:
    """What a failed request held is freed as soon as its error is, without the garbage collector."""

    class Body:
        pass

    def failing(body: Body) -> None:
        raise ValueError(id(body))

    def attempt() -> weakref.ref[Body]:
        body = Body()
        watched = weakref.ref(body)
        try:
            failing(body)
        except ValueError as error:
            clear_traceback_locals(error)
        return watched

    gc.collect()
    gc.disable()
    try:
        assert attempt()() is None
        if HAS_GIL:  # without it, functions that are made at run time wait for the collector
            assert gc.collect() == 0
    finally:
        gc.enable()
