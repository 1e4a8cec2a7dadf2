"""Request bodies: rewound byte for byte, or not at all (rules 7 and 20)."""

from __future__ import annotations

import io
import os
import re
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import urllib3

from pay88_adapters import RetryPolicy
from pay88_adapters.engine.bodies import BodyPosition
from pay88_adapters.events import Event, TokenRejected
from pay88_adapters.testing import ResetAfterRead, Status
from support.rejections import Rejections
from support.stacks import STACKS, Aiohttp, AsyncStack, Httpx, PlainResponse, Requests, Stack, Urllib3
from support.worlds import World

PAYLOAD = b"".join(b"%08d" % number for number in range(75_000))
HALVES = [PAYLOAD[:300_000], PAYLOAD[300_000:]]
PAGE = Path(__file__).parents[2] / "docs" / "stacks" / "index.md"

Body = Callable[[ExitStack], Any]


def directory(stack: ExitStack) -> Path:
    """Return a directory of its own."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory()))


def opened(stack: ExitStack, mode: str = "rb", **kw: Any) -> Any:
    """Return a real file that stands in front of the payload."""
    path = directory(stack) / "file"
    path.write_bytes(PAYLOAD)
    return stack.enter_context(path.open(mode, **kw))


def pipe(stack: ExitStack) -> Any:
    """Return a pipe that the payload comes out of."""
    out, into = os.pipe()

    def fill() -> None:
        left = memoryview(PAYLOAD)
        with suppress(BrokenPipeError):
            while left:
                left = left[os.write(into, left) :]
        os.close(into)

    thread = threading.Thread(target=fill)
    thread.start()
    stack.callback(thread.join)
    return stack.enter_context(os.fdopen(out, "rb"))


class Upload:
    """Looks as if it could be read twice."""

    def __init__(self) -> None:
        self._parts = iter(HALVES)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts


class AsyncUpload:
    """The same for tasks."""

    def __init__(self) -> None:
        self._parts = iter(HALVES)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part


class Readable:
    """Can be read, and nothing else. Some clients want it to be iterable, too."""

    def __init__(self) -> None:
        self._file = io.BytesIO(PAYLOAD)

    def read(self, size: int = -1) -> bytes:
        """Read."""
        return self._file.read(size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)


class Liar(io.BytesIO):
    """Says that it went back."""

    def seek(self, position: int, whence: int = 0) -> int:
        """Stay."""
        return position


class Bytes(bytes):
    """Bytes that could do anything."""


class List(list[bytes]):
    """A list that could do anything."""


async def agenerator() -> AsyncIterator[bytes]:
    """Yield the payload once."""
    for part in HALVES:
        yield part


RAW: dict[str, Body] = {
    "nothing": lambda stack: None,
    "`bytes`": lambda stack: PAYLOAD,
    "`str`": lambda stack: PAYLOAD.decode(),
    "`bytearray`": lambda stack: bytearray(PAYLOAD),
    "`memoryview`": lambda stack: memoryview(PAYLOAD),
    "list of `bytes`": lambda stack: list(HALVES),
    "tuple of `bytes`": lambda stack: tuple(HALVES),
    "file, binary mode": opened,
    "file, unbuffered": lambda stack: opened(stack, buffering=0),
    "`io.BytesIO`": lambda stack: io.BytesIO(PAYLOAD),
    "file, text mode": lambda stack: opened(stack, "r", encoding="ascii"),
    "pipe": pipe,
    "subclass of `bytes`": lambda stack: Bytes(PAYLOAD),
    "subclass of `list`": lambda stack: List(HALVES),
    "subclass of `io.BytesIO`": lambda stack: Liar(PAYLOAD),
    "object with `read`": lambda stack: Readable(),
    "generator": lambda stack: (half for half in HALVES),
    "iterator": lambda stack: iter(HALVES),
    "object with `__iter__`": lambda stack: Upload(),
    "async generator": lambda stack: agenerator(),
    "object with `__aiter__`": lambda stack: AsyncUpload(),
}
"""What a client may be given as a body, by the name that the documentation has for it."""


def form(*parts: tuple[str, Any]) -> aiohttp.FormData:
    """Return a form of aiohttp's."""
    data = aiohttp.FormData()
    for name, value in parts:
        data.add_field(name, value, filename="a.txt")
    return data


def named(kind: type[Stack], name: str, stack: ExitStack) -> dict[str, Any]:
    """Return a body in the client's own terms."""
    if name in RAW:
        body = RAW[name](stack)
        if body is None:
            return {}
        key = "body" if kind is Urllib3 else "data" if kind in (Requests, Aiohttp) else "content"
        return {key: body}
    text = PAYLOAD.decode()
    if name == "JSON":
        return {"json": {"a": text}}
    if name == "form":
        return {"fields": {"a": text}, "encode_multipart": False} if kind is Urllib3 else {"data": {"a": text}}
    value = opened(stack) if name == "multipart form with a file" else PAYLOAD
    if kind is Urllib3:
        return {"fields": {"a": ("a.txt", value)}}
    return {"data": form(("a", value))} if kind is Aiohttp else {"files": {"a": ("a.txt", value)}}


NAMES = [*RAW, "JSON", "form", *(f"multipart form {what}" for what in ("of `bytes`", "with a file"))]
COLUMNS = {
    "urllib3": 0,
    "requests": 1,
    "httpx": 2,
    "httpx2": 3,
    "httpx-asyncio": 4,
    "httpx-trio": 4,
    "aiohttp": 5,
}


def table() -> dict[str, list[str]]:
    """Return the table of bodies and client libraries in the documentation."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition("## Which bodies are retried")
    rows = re.findall(r"^\| (.+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return {name: rest for name, *rest in cells[1:]}  # the line of dashes has no blank


TABLE = table()


def test_the_table_of_bodies_is_complete() -> None:
    """A row for each body that is tried below, and no other."""
    assert list(TABLE) == NAMES
    assert {cell for cells in TABLE.values() for cell in cells} == {"retried", "401", "n/a"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # aiohttp's, of form fields
@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.parametrize("name", NAMES)
def test_rule_07_a_body_is_retried_byte_for_byte_or_not_at_all(kind: type[Stack], name: str, when: str) -> None:
    """However much of it the server has read when it rejects the token; as the table in the documentation says."""
    expected = TABLE[name][COLUMNS[kind.name]]
    if expected == "n/a" and when != "after":
        pytest.skip("there is nothing to see")
    with ExitStack() as stack:
        server = stack.enter_context(Rejections(when))
        client = stack.enter_context(kind(server.manager()))
        try:
            body = named(kind, name, stack)
        except TypeError as error:  # aiohttp's forms are picky
            outcome: Any = error
        else:
            outcome = client.attempt("POST", f"{server.url}/api/echo", **body)
        if not isinstance(outcome, PlainResponse):
            said = "n/a"
            assert len(server.bodies) <= 1
        elif outcome.status == 200:
            said = "retried"
            first, second = server.bodies
            assert second.startswith(first)
            assert first == second or when != "after"
            assert name == "nothing" or PAYLOAD in second
        else:
            said = str(outcome.status)
            assert len(server.bodies) == 1
            assert isinstance(again := client.attempt("POST", f"{server.url}/api/echo"), PlainResponse)
            assert (again.status, len(server.tokens)) == (200, 2)
        # aiohttp returns an early response while threads still read the file.
        early = kind is Aiohttp and when != "after" and said == "401" and ("file" in name or "BytesIO" in name)
        # Older versions of httpx2 do not accept a pipe.
        assert said == expected or early or (said, name) == ("n/a", "pipe")


@pytest.mark.parametrize("change", [True, False])
@pytest.mark.parametrize("kind", [Urllib3, Requests, Aiohttp], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["`bytearray`", "list of `bytes`"])
def test_rule_07_a_body_that_was_changed_is_not_retried(kind: type[Stack], name: str, change: bool) -> None:
    """The bytes that the server would receive are unknown."""
    with ExitStack() as stack:
        if TABLE[name][COLUMNS[kind.name]] == "n/a":
            pytest.skip("this client does not take it")
        [(key, body)] = named(kind, name, stack).items()

        def respond(send: Callable[[bytes], None], over: threading.Event) -> bool:
            if change:
                body.reverse()
            send(b"HTTP/1.1 401 Whatever\r\nContent-Length: 0\r\n\r\n")
            return True

        server = stack.enter_context(Rejections(response=respond))
        client = stack.enter_context(kind(server.manager()))
        outcome = client.attempt("POST", f"{server.url}/api/echo", **{key: body})
        assert isinstance(outcome, PlainResponse)
        assert outcome.status == (401 if change else 200)


@pytest.mark.parametrize("kind", [Urllib3, Requests, Httpx], ids=lambda kind: kind.name)
def test_rule_07_a_file_that_was_closed_is_not_retried(kind: type[Stack]) -> None:
    """The caller has the 401, and no error of the file's."""
    with ExitStack() as stack:
        [(key, body)] = named(kind, "file, binary mode", stack).items()

        def close(event: Event) -> None:
            if isinstance(event, TokenRejected):  # the whole request has been sent by now
                body.close()

        server = stack.enter_context(Rejections())
        manager = server.manager()
        manager.listen(close)
        client = stack.enter_context(kind(manager))
        outcome = client.attempt("POST", f"{server.url}/api/echo", **{key: body})
        assert isinstance(outcome, PlainResponse)
        assert outcome.status == 401


@pytest.mark.parametrize("fault", [Status(503), Status(429), ResetAfterRead()], ids=repr)
def test_rule_20_a_body_that_may_be_gone_is_not_retried(world: World, fault: Any) -> None:
    """An unsuccessful response is returned immediately."""
    client = world.client(world.new_manager(retry=RetryPolicy(safe_posts=("/api/echo",))))
    upload: Any = AsyncUpload() if isinstance(client, AsyncStack) else Upload()
    key = (
        "body"
        if world.client().name == "urllib3"
        else "data"
        if world.client().name in ("requests", "aiohttp")
        else "content"
    )
    world.emulator.faults.add(fault, on="call", times=None)
    outcome = client.attempt("POST", world.echo, **{key: upload})
    assert world.emulator.journal.calls == 1
    assert not isinstance(outcome, PlainResponse) or outcome.status == fault.status


@pytest.mark.parametrize("fault", [Status(503), ResetAfterRead()], ids=repr)
@pytest.mark.parametrize("kind", [Urllib3], ids=lambda kind: kind.name)
@pytest.mark.parametrize("raises", [True, False])
def test_rule_20_urllib3_does_not_retry_such_a_body_by_itself(world: World, fault: Any, raises: bool) -> None:
    """With the caller's own retries, none is left: urllib3 would send an empty body."""
    own = urllib3.Retry(4, status_forcelist=[503], allowed_methods=None, raise_on_status=raises)
    client = world.client()
    world.emulator.faults.add(fault, on="call")
    outcome = client.attempt("POST", world.echo, body=Upload(), retries=own)
    assert world.emulator.journal.calls == 1
    if isinstance(fault, Status) and not raises:
        assert isinstance(outcome, PlainResponse)
        assert outcome.status == 503
    else:
        assert isinstance(outcome, urllib3.exceptions.MaxRetryError)
    world.emulator.faults.add(fault, on="call")
    again = client.attempt("POST", world.echo, body=io.BytesIO(b"all"), retries=own)
    assert isinstance(again, PlainResponse)
    assert [call.body for call in world.emulator.journal.select("call")[1:]] == [b"all", b"all"]


def test_a_bookmark_goes_by_exact_types() -> None:
    """The rest may be anything."""
    for body in (
        Bytes(b"a"),
        List([b"a"]),
        Liar(b"a"),
        io.StringIO("a"),
        [b"a", 1],
        iter([b"a"]),
        object(),
        {"a": b""},
    ):
        assert not BodyPosition(body).rewind()
    assert not BodyPosition(b"a", io.BytesIO(b"b"), object()).rewind()
    assert BodyPosition(b"a", io.BytesIO(b"b"), ("c", b"d")).rewind()


def test_a_bookmark_of_a_file_that_is_none() -> None:
    """A buffer around something else, a device, and a file that is closed."""

    class Raw(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, position: int, whence: int = 0) -> int:
            return position

        def tell(self) -> int:
            return 0

    with Path("/dev/zero").open("rb") as device:
        assert not BodyPosition(device).rewind()
    assert not BodyPosition(device).rewind()
    assert not BodyPosition(io.BufferedReader(Raw())).rewind()


def test_a_bookmark_remembers_the_position() -> None:
    """Where a file stood, or where the client will send it from."""
    file = io.BytesIO(b"0123")
    file.seek(2)
    here, there = BodyPosition(file), BodyPosition(file, position=1)
    file.read()
    assert here.rewind()
    assert file.tell() == 2
    assert there.rewind()
    assert file.tell() == 1


def test_all_client_libraries_have_a_column() -> None:
    """None is left out."""
    assert {kind.name for kind in STACKS} == set(COLUMNS)
