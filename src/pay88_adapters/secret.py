"""Strings that go out on the wire and are never printed."""

from __future__ import annotations

import re
import traceback
from typing import Any, NoReturn

REDACTED = "[secret]"

# What 88Pay's keys, session ids and tokens look like, for text that comes from elsewhere.
_LOOKS_SECRET = re.compile(r"sk_(?:test|live)_[\w-]*|sess_[\w-]+|eyJ[\w.-]+|Bearer\s+\S+", re.IGNORECASE)


class Secret(str):
    """A string whose repr shows nothing and that refuses to be pickled.

    ``str()`` and formatting give the value: aiohttp puts ``str(value)`` on the wire.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return REDACTED

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("secrets are not pickled: build Credentials and TokenManager in the new process")


def hidden(value: Any) -> Any:
    """Return a string as a :class:`Secret`, and anything else as it is."""
    return Secret(value) if isinstance(value, str) else value


class Attached(Secret):
    """A header value that an adapter put in, as opposed to one that the caller passed."""

    __slots__ = ()


class Hidden(dict[str, str]):
    """A copy of a mapping that prints none of its values."""

    def __repr__(self) -> str:
        return f"<{len(self)} values>"


def forget_locals(exc: BaseException, but: BaseException | None = None) -> None:
    """Clear the local variables in the tracebacks of *exc* and of all it came from, up to *but*; the lines stay.

    HTTP libraries keep the raw header block in a local while they send it.
    """
    for link in chain(exc, but):
        traceback.clear_frames(link.__traceback__)  # frames that still run are left alone


def tells_secrets(exc: BaseException, *secrets: str) -> bool:
    """Whether the text of *exc*, or of what it came from, holds a secret, as far as that can be told."""
    text = " ".join(f"{link!r} {link}" for link in chain(exc))
    return mask(text, *secrets) != text


def chain(exc: BaseException, but: BaseException | None = None) -> list[BaseException]:
    """Return *exc* and all it came from, up to *but*."""
    links = [exc]
    for link in links:
        causes = (link.__cause__, link.__context__)
        links += [each for each in causes if each is not None and each is not but and each not in links]
    return links


def mask(text: str, *secrets: str) -> str:
    """Return *text* without secrets, as far as they can be told."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return _LOOKS_SECRET.sub(REDACTED, text)


def redact(text: str, *secrets: str) -> str:
    """Return *text* in one printable line of at most 200 characters, without secrets."""
    text = mask(text, *secrets)
    return "".join(c if c.isprintable() else " " for c in text)[:200]
