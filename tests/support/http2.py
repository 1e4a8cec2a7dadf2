"""The emulator's service over HTTP/2, which the emulator itself does not speak."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from pay88_adapters.clock import Clock
from pay88_adapters.testing import Request, Service
from pay88_adapters.testing.messages import TOKEN_PATH

End = Callable[[H2Connection, asyncio.StreamWriter], None]


def reset(connection: H2Connection, writer: asyncio.StreamWriter) -> None:
    """Break the connection."""
    writer.transport.abort()


def go_away(connection: H2Connection, writer: asyncio.StreamWriter) -> None:
    """Announce that no further request gets a response."""
    connection.close_connection()


def say_nothing(connection: H2Connection, writer: asyncio.StreamWriter) -> None:
    """Let them wait."""


class Http2Server:
    """Serves *service* on a loopback port, over TLS.

    Args:
        service: Handles the requests.
        clock: Its time for the service.
        tls: Offers ``h2``.
        crowd: After how many requests on one connection to break it, without a response to any; those for a token
            get responses, and do not count.
        end: Breaks it.

    Attributes:
        unfinished: A status after whose responses the stream stays open.
        connected: How many connections there have been.
    """

    THREAD = "http2-server"

    def __init__(
        self, service: Service, clock: Clock, tls: ssl.SSLContext, crowd: int = 0, end: End | None = None
    ) -> None:
        self.received: list[Request] = []
        self._service, self._clock, self._tls, self._crowd, self._end = service, clock, tls, crowd, end
        self.unfinished = 0
        self.connected = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=self.THREAD)
        self._connections: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Http2Server:
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls), self._loop
        ).result(10)
        self.url = f"https://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.connected += 1
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the client hung up, or the test is over
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        requests: dict[int, dict[str, str]] = {}
        bodies: dict[int, bytes] = {}
        left = self._crowd
        while True:
            writer.write(connection.data_to_send())
            data = await reader.read(65_536)
            if not data:
                return
            for event in connection.receive_data(data):
                match event:
                    case RequestReceived():
                        requests[event.stream_id] = {str(name): str(value) for name, value in event.headers}
                    case DataReceived():
                        bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    case StreamEnded():
                        body = bodies.pop(event.stream_id, b"")
                        headers = requests.pop(event.stream_id)
                        if self._end is None or headers[":path"] == TOKEN_PATH:
                            self._respond(connection, event.stream_id, headers, body)
                            continue
                        left -= 1
                        if left == 0:
                            self._end(connection, writer)
                    case _:
                        pass  # settings, pings and the like

    def _respond(self, connection: H2Connection, stream_id: int, headers: dict[str, str], body: bytes) -> None:
        received = Request(headers[":method"], headers[":path"], headers, body)
        self.received.append(received)
        response = self._service.handle(received, self._clock.now(), time.time())
        fields = [(name.lower(), value) for name, value in response.headers]
        connection.send_headers(stream_id, [(":status", str(response.status)), *fields])
        connection.send_data(stream_id, response.body, end_stream=response.status != self.unfinished)
