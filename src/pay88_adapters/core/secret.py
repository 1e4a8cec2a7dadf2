"""Strings whose repr is redacted, and redaction of text and exceptions."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from inspect import currentframe
from typing import Any, NoReturn

from .copies import Copies, members
from .tracebacks import callers, forget_locals_below, without_locals

REDACTED = "[secret]"

# Patterns of 88Pay's keys, session ids and tokens, for text from other sources.
_LOOKS_SECRET = re.compile(r"sk_(?:test|live)_[\w-]*|sess_[\w-]+|eyJ[\w.-]+|Bearer\s+\S+", re.IGNORECASE)


class Secret(str):
    """A string whose repr is redacted, as is that of each part of it. It cannot be pickled.

    ``str()`` and formatting return the value: aiohttp sends ``str(value)``.
    """

    __slots__ = ()

    def __add__(self, other: str) -> Secret:
        return Secret(str.__add__(self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Secret:
        return Secret(str.__add__(other, self)) if isinstance(other, str) else NotImplemented

    def __repr__(self) -> str:
        return REDACTED

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "secrets cannot be pickled: create Credentials and TokenManager in the new process; open vcrpy cassettes"
            " with **pay88_adapters.testing.vcr_config()"
        )


def as_secret(value: Any) -> Any:
    """Return a string as a :class:`Secret`, and anything else as it is."""
    return Secret(value) if isinstance(value, str) else value


def _hiding(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def hides(self: Secret, *args: Any, **kwargs: Any) -> Any:
        part = method(self, *args, **kwargs)
        return as_secret(part) if isinstance(part, str) else type(part)(map(as_secret, part))

    return hides


# The methods that return the secret, in part or in another form: printers shorten long strings with some of them.
for _name in (
    *("__getitem__", "__mul__", "__rmul__", "split", "rsplit", "splitlines", "partition", "rpartition"),
    *("strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "replace", "translate", "expandtabs"),
    *("ljust", "rjust", "center", "zfill", "lower", "upper", "casefold", "capitalize", "title", "swapcase"),
):
    setattr(Secret, _name, _hiding(getattr(str, _name)))


class InjectedHeader(Secret):
    """A header value that an adapter added, as opposed to one of the caller."""

    __slots__ = ()


class RedactedMapping(dict[str, str]):
    """A copy of a mapping whose repr contains none of its values."""

    def __repr__(self) -> str:
        return f"<{len(self)} values>"


def clear_traceback_locals(exc: BaseException, but: BaseException | None = None) -> None:
    """Remove the local variables from the tracebacks of *exc* and of its causes and contexts, up to *but*.

    The lines stay. HTTP libraries keep the raw headers in a local variable while they send them. Other requests may
    share the causes of *exc*, and add their frames later: *exc* gets copies of its own.
    """
    keep = callers(currentframe())  # the frames of the caller and of the runner, which are not ours to redact
    BaseException.with_traceback(exc, forget_locals_below(exc.__traceback__, keep))
    links = exception_chain(exc, but)
    copies, others = Copies(exc, links), {id(link) for link in (exception_chain(but) if but else ())}
    for link in links[1:]:
        clean = without_locals(link.__traceback__, keep)
        BaseException.with_traceback(copies.copy_of(link), clean)
        if id(link) not in others:
            BaseException.with_traceback(link, clean)


def contains_secret(exc: BaseException, *secrets: str) -> bool:
    """Whether the text of *exc*, or of its causes and contexts, contains a secret that is recognized."""
    try:
        text = " ".join(f"{link!r} {link} {getattr(link, '__notes__', '')}" for link in exception_chain(exc))
    except Exception:  # noqa: BLE001 - one that cannot be printed, today
        return True
    return mask(text, *secrets) != text


def without_secrets(exc: BaseException, *secrets: str, kind: type[Exception] = RuntimeError) -> BaseException:
    """Return *exc* as others may see it: without local variables, or if its text contains a secret, one of *kind*."""
    clear_traceback_locals(exc)
    if not contains_secret(exc, *secrets):
        return exc
    return kind(f"{type(exc).__module__}.{type(exc).__qualname__}; its text contained a secret and was removed")


def exception_chain(exc: BaseException, but: BaseException | None = None) -> list[BaseException]:
    """Return *exc* with its causes, contexts and members, up to *but*."""
    links, seen = [exc], {id(exc), id(but)}
    for link in links:
        for each in (link.__cause__, link.__context__, *members(link)):
            if each is not None and id(each) not in seen:
                seen.add(id(each))
                links.append(each)
    return links


def mask(text: str, *secrets: str) -> str:
    """Return *text* with its secrets redacted: those given, and those that look like 88Pay's."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return _LOOKS_SECRET.sub(REDACTED, text)


def redact(text: str, *secrets: str) -> str:
    """Return *text* as one printable line of at most 200 characters, with its secrets redacted."""
    text = mask(text, *secrets)
    return "".join(c if c.isprintable() else " " for c in text)[:200]
