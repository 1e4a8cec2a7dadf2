"""OpenTelemetry's instrumentations of the clients: the spans are those without the package, and some of its own.

Their own tox environment installs them, in several versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("opentelemetry.instrumentation.urllib3")

from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from pay88_adapters.testing import RefuseToken, Status
from support.stacks import Aiohttp, Httpx, HttpxAsyncio, HttpxTrio, Requests, Stack, Urllib3
from support.worlds import World

INSTRUMENTED: dict[type[Stack], type[Any]] = {
    Urllib3: URLLib3Instrumentor,
    Requests: RequestsInstrumentor,
    Httpx: HTTPXClientInstrumentor,
    HttpxAsyncio: HTTPXClientInstrumentor,
    HttpxTrio: HTTPXClientInstrumentor,
    Aiohttp: AioHttpClientInstrumentor,
}
OUTSIDE = (Requests, Aiohttp)
"""Instrumented closer to the caller than the adapter: a call is one span, however often it is sent."""

TOKENS_TOO = (Urllib3, Httpx, HttpxAsyncio, HttpxTrio, Aiohttp)
"""Token requests have spans, too."""


@pytest.fixture
def spans(kind: type[Stack]) -> Iterator[InMemorySpanExporter]:
    """The spans recorded while the client library is instrumented."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with ExitStack() as stack:
        instrumentor = INSTRUMENTED[kind]()
        instrumentor.instrument(tracer_provider=provider)
        stack.callback(instrumentor.uninstrument)
        yield exporter


def taken(spans: InMemorySpanExporter) -> list[tuple[str, str, int]]:
    """Return each span's name, path and status, in the order of their ends, and start with an empty list."""
    found = [seen(span) for span in spans.get_finished_spans()]
    spans.clear()
    return found


def seen(span: ReadableSpan) -> tuple[str, str, int]:
    """Return the attributes of a span, by the names of older and newer conventions."""
    attributes = dict(span.attributes or {})
    url = str(attributes.get("http.url") or attributes.get("url.full"))
    status: Any = attributes.get("http.status_code") or attributes.get("http.response.status_code")
    for secret in ("sk_test", "eyJ", "sess_"):
        assert secret not in repr(attributes)
    return span.name, "/" + url.split("/", 3)[3].partition("?")[0], int(status)


@pytest.mark.parametrize("kind", INSTRUMENTED, ids=lambda kind: kind.name)
def test_rule_21_the_same_spans_as_without_the_package(
    world: World, kind: type[Stack], spans: InMemorySpanExporter
) -> None:
    """A call is one span; so is each token request; a replay is another one where the adapter is outside."""
    token = ("POST", "/api/auth/token", 200)
    tokens = [token] if kind in TOKENS_TOO else []
    headers = world.manager.get_token().headers()
    taken(spans)
    with kind(None) as plain:
        assert plain.request("POST", world.url, headers=headers).status == 200
    expected = taken(spans)
    assert expected == [("POST", "/api/balance", 200)]

    world.clock.advance(60)
    client = world.client()
    assert client.request("POST", world.url).status == 200
    first = taken(spans)
    assert sorted(first) == sorted([*tokens, *expected])
    assert client.request("POST", world.url).status == 200
    assert taken(spans) == expected

    world.emulator.faults.add(RefuseToken())
    assert client.request("POST", world.url).status == 200
    rejected = [] if kind in OUTSIDE else [("POST", "/api/balance", 401)]
    assert sorted(taken(spans)) == sorted([*rejected, *tokens, *expected])

    world.emulator.faults.add(Status(503), on="call")
    assert world.as_time_passes(lambda: client.request("POST", world.url)).status == 200
    failed = [] if kind in OUTSIDE else [("POST", "/api/balance", 503)]
    assert taken(spans) == [*failed, *expected]


@pytest.mark.parametrize("kind", [Httpx, HttpxAsyncio, HttpxTrio], ids=lambda kind: kind.name)
def test_a_client_instrumented_after_attach_has_one_span_for_a_call(world: World) -> None:
    """And no error, where the caller sees none."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    client: Any = world.client()
    HTTPXClientInstrumentor.instrument_client(client.client, tracer_provider=provider)
    world.emulator.faults.add(RefuseToken())
    assert client.request("POST", world.url).status == 200
    [span] = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.UNSET
