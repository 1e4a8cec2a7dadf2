"""Responses from memory instead of the network: as far down as each client library can be cut off, for all rows.

Every response contains a token. Calls do not look at it, and token requests over the same client get one.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
from typing import Any

LIFETIME = 600.0  # seconds: no token is refreshed in between, however slow a process under valgrind is

_TOKEN = {"access_token": "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9." + 180 * "x", "expires_in": int(LIFETIME)}
_DATA = {**_TOKEN, "session_id": "sess_53a2cfc4-441e-4554-b560-4e008784d98e"}
BODY = json.dumps({"status": "Success", "code": 200, "message": "Token generated successfully", "data": _DATA}).encode()
FIELDS = [("Content-Type", "application/json; charset=utf-8"), ("Content-Length", str(len(BODY)))]
RESPONSE = b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (b"".join(f"{k}: {v}\r\n".encode() for k, v in FIELDS), BODY)


def pool_classes() -> dict[str, Any]:
    """Return pool classes for urllib3 whose connections swallow requests and have their responses ready."""
    import urllib3
    from urllib3.connection import HTTPConnection

    class Read:
        """What a response is read from gives its connection back once it is closed."""

        msg = http.client.HTTPMessage()

        def isclosed(self) -> bool:
            return True

        def close(self) -> None:
            """Nothing to close."""

    original: Any = Read()

    class Connection(HTTPConnection):
        def connect(self) -> None:
            """Nothing to connect to."""

        @property
        def is_connected(self) -> bool:
            return True

        def request(self, method: str, url: str, *args: Any, **options: Any) -> None:
            self._requested = method, url, options["preload_content"], options["decode_content"]

        def getresponse(self) -> Any:
            method, url, preload_content, decode_content = self._requested
            return urllib3.HTTPResponse(
                body=io.BytesIO(BODY),
                headers=urllib3.HTTPHeaderDict(FIELDS),
                status=200,
                version=11,
                version_string="HTTP/1.1",
                reason="OK",
                preload_content=preload_content,
                decode_content=decode_content,
                original_response=original,
                request_method=method,
                request_url=url,
            )

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls: Any = Connection

    return {"http": Pool, "https": urllib3.HTTPSConnectionPool}


def install(pool_manager: Any) -> Any:
    """Let *pool_manager* respond from memory."""
    pool_manager.pool_classes_by_scheme = pool_classes()
    return pool_manager


def httpx_transport(library: Any, *, is_async: bool) -> Any:
    """Return the own transport of httpx or httpx2, which responds in place of its connection pool."""

    def respond(request: Any) -> Any:
        return library.Response(200, headers=FIELDS, stream=library.ByteStream(BODY))

    async def respond_async(request: Any) -> Any:
        return library.Response(200, headers=FIELDS, stream=library.ByteStream(BODY))

    if is_async:
        transport = library.AsyncHTTPTransport(verify=False)
        transport.handle_async_request = respond_async
    else:
        transport = library.HTTPTransport(verify=False)
        transport.handle_request = respond
    return transport


class Wire(asyncio.Transport):
    """For aiohttp: a connection whose other end responds in the next turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Any) -> None:
        super().__init__()
        self._respond = lambda: protocol.data_received(RESPONSE)
        self._loop = loop
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        """Respond to a request once it is there; a POST without a body is written immediately."""
        self._loop.call_soon(self._respond)

    def writelines(self, list_of_data: Any) -> None:
        """Do the same."""
        self.write(b"")

    def is_closing(self) -> bool:
        """Return that it never is."""
        return False

    def close(self) -> None:
        """Nothing to close."""


def aiohttp_connector() -> Any:
    """Return a connector for aiohttp. Call it on the loop."""
    import aiohttp
    from aiohttp.client_proto import ResponseHandler

    class Connector(aiohttp.BaseConnector):
        async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
            protocol = ResponseHandler(self._loop)
            Wire(self._loop, protocol)
            return protocol

    return Connector(limit=0)
