"""OpenTelemetry, with the SDK's own reader and exporter, with every client library over real sockets."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from pay88_adapters import BreakerPolicy, CircuitOpen, Credentials, RetryPolicy, TokenManager
from pay88_adapters.otel import instrument
from pay88_adapters.testing import RefuseToken, Status, TooMany
from support.stacks import AsyncStack, HttpxAsyncio, Stack
from support.worlds import World


class Backend:
    """What an application sets up to see."""

    def __init__(self) -> None:
        self._reader, self._spans = InMemoryMetricReader(), InMemorySpanExporter()
        self.meters = MeterProvider([self._reader])
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracer: Tracer = self.provider.get_tracer("application")

    def close(self) -> None:
        """End its threads."""
        self.meters.shutdown()
        self.provider.shutdown()

    def metrics(self) -> dict[str, Any]:
        """Return each metric by its name."""
        data = self._reader.get_metrics_data()
        found = data.resource_metrics if data else []
        return {each.name: each for r in found for scope in r.scope_metrics for each in scope.metrics}

    def points(self, name: str) -> dict[tuple[Any, ...], Any]:
        """Return what was measured, by the values of its attributes after the server's."""
        metric = self.metrics().get(name)
        points: dict[tuple[Any, ...], Any] = {}
        for point in metric.data.data_points if metric else ():
            attributes = dict(point.attributes)
            assert attributes.pop("server.address") == "127.0.0.1"
            assert attributes.pop("server.port")
            points[tuple(value for _, value in sorted(attributes.items()))] = getattr(
                point, "value", getattr(point, "count", None)
            )
        return points

    def finished(self) -> list[ReadableSpan]:
        """Return the spans that have ended, in the order of their ends."""
        return sorted(self._spans.get_finished_spans(), key=lambda span: span.end_time or 0)

    def spans(self) -> dict[str, ReadableSpan]:
        """Return the spans that have ended, by name."""
        return {span.name: span for span in self._spans.get_finished_spans()}

    def shown(self) -> str:
        """Return all exported data."""
        data = self._reader.get_metrics_data()
        return (data.to_json() if data else "") + "".join(span.to_json() for span in self._spans.get_finished_spans())


@pytest.fixture
def backend() -> Iterator[Backend]:
    """One of its own for each test."""
    backend = Backend()
    yield backend
    backend.close()


def events(span: ReadableSpan) -> list[str]:
    """Return the names of what happened to a call."""
    return [event.name for event in span.events]


def in_span(client: Stack, tracer: Tracer, name: str, url: str) -> Any:
    """Make a call within a span: in a task where the client library has tasks, or else on this thread."""
    if not isinstance(client, AsyncStack):
        with tracer.start_as_current_span(name):
            return client.request("POST", url)

    async def job() -> Any:
        with tracer.start_as_current_span(name):
            return await client.asend("POST", url)

    return client.run(job)


def test_calls_are_measured_and_their_spans_say_what_became_of_them(world: World, backend: Backend) -> None:
    """A failed token request, a 401, a 503, an open circuit: counted, and on the span of that very call."""
    breaker = BreakerPolicy(failure_threshold=2)
    manager = world.new_manager(breaker=breaker, pacing=True)
    assert instrument(manager, meter_provider=backend.meters) is manager
    client = world.client(manager)

    def call(name: str, url: str = world.url) -> Any:
        return world.as_time_passes(lambda: in_span(client, backend.tracer, name, url))

    world.emulator.faults.add(Status(503), on="token")
    assert call("cold").status == 200
    world.emulator.faults.add(RefuseToken(), on="call")
    world.emulator.faults.add(Status(503), on="call")
    assert call("unlucky").status == 200
    assert call("usual").status == 200
    world.emulator.faults.add(Status(500), on="call", times=2)
    assert [call("failed", world.echo).status for _ in range(2)] == [500, 500]
    with pytest.raises(CircuitOpen):
        call("stopped", world.echo)
    world.settle(manager)

    spans = backend.spans()
    assert events(spans["cold"]) == ["pay88.call.waited"]
    assert events(spans["unlucky"]) == [
        "pay88.token.rejected", "pay88.call.waited", "pay88.call.replayed", "pay88.call.retried",
    ]  # fmt: skip
    retried = dict(spans["unlucky"].events[-1].attributes or {})
    assert (retried["http.request.resend_count"], retried["http.response.status_code"]) == (1, 503)
    assert events(spans["usual"]) == []
    assert "pay88.breaker.opened" in events(spans["failed"])
    assert events(spans["stopped"]) == ["pay88.call.not_sent", "exception"]  # the last is OpenTelemetry's own

    points = backend.points
    assert points("pay88.token.request.duration") == {(200,): 2, ("TokenEndpointUnavailable", 503): 1}
    assert points("pay88.token.rejections") == {(True,): 1}
    assert points("pay88.call.replays") == {(): 1}
    assert points("pay88.call.retries") == {(503, "balance"): 1}
    assert points("pay88.call.not_sent") == {("CircuitOpen", "other"): 1}
    assert points("pay88.breaker.openings") == {("other",): 1}
    assert points("pay88.breaker.open") == {("balance",): 0, ("other",): 1}
    assert points("pay88.call.wait.duration") == {("token",): 2}
    assert points("pay88.token.budget.remaining") == {("10 per 1 minute",): 7, ("100 per 1 hour",): 97}
    assert 55 < points("pay88.token.remaining")[()] <= 60
    assert points("pay88.store.degraded") == {(): 0}
    shown = backend.shown()
    assert not [secret for secret in world.emulator.service.secrets() if secret in shown]
    assert world.emulator.merchant_id not in shown


def test_failed_token_requests_are_measured(world: World, backend: Backend) -> None:
    """By kind of error; an exhausted budget; a token of another manager; and a request that waits for a rate limit."""
    frugal = world.client(
        instrument(world.new_manager(limits=("1/minute",), max_wait=1), meter_provider=backend.meters)
    )
    assert frugal.request("POST", world.url).status == 200
    other = world.client(
        instrument(world.new_manager(pacing=True, retry=RetryPolicy.none()), meter_provider=backend.meters)
    )
    world.emulator.faults.add(TooMany(retry_after=5), on="call")
    assert other.request("POST", world.url).status == 429
    assert world.as_time_passes(lambda: other.request("POST", world.url), step=1).status == 200
    world.clock.advance(54)
    assert isinstance(world.as_time_passes(lambda: frugal.attempt("POST", world.url)), Exception)
    world.settle(frugal.manager)
    assert backend.points("pay88.token.shared") == {(): 1}
    assert backend.points("pay88.call.wait.duration")["balance",] == 1
    assert backend.points("pay88.token.budget.exhausted") == {(): 1}
    assert backend.points("pay88.token.fetch.failures") == {("TokenBudgetExhausted",): 1}
    assert backend.points("pay88.call.not_sent") == {("TokenBudgetExhausted", "balance"): 1}


def test_each_of_many_concurrent_calls_has_its_own_events(world: World, backend: Backend) -> None:
    """Spans of threads, and of tasks on one loop: the calls that waited for one token, and no other span."""
    client = world.client(instrument(world.new_manager(), meter_provider=backend.meters))
    names = [f"call {number}" for number in range(8)]
    jobs = [partial(in_span, client, backend.tracer, name, world.url) for name in names]
    with ThreadPoolExecutor(len(jobs)) as pool, backend.tracer.start_as_current_span("bystander"):
        with world.emulator.hold("token") as held:
            calls = [pool.submit(job) for job in jobs]
            held.wait_for(1)
            world.until(lambda: client.manager.stats().waited == len(jobs))
        assert [call.result().status for call in calls] == [200] * len(jobs)
    assert {name: events(span) for name, span in backend.spans().items()} == {
        "bystander": [], **{name: ["pay88.call.waited"] for name in names},
    }  # fmt: skip


def test_tasks_of_one_span_share_it(backend: Backend) -> None:
    """Tasks started within a span are the span's, as OpenTelemetry has it."""
    with ExitStack() as stack:
        world = World(HttpxAsyncio, stack)
        client = world.client(instrument(world.new_manager(), meter_provider=backend.meters))
        assert isinstance(client, HttpxAsyncio)

        async def both() -> None:
            with backend.tracer.start_as_current_span("both"):
                await asyncio.gather(client.asend("POST", world.url), client.asend("POST", world.url))

        client.run(both)
    assert events(backend.spans()["both"]) == ["pay88.call.waited"] * 2


def test_the_merchant_is_recorded_only_if_the_option_is_set(one_world: World, backend: Backend) -> None:
    """Without it the gauges show the worst of all managers; with it each merchant has series of its own."""
    world = one_world
    other = Credentials("sk_test_other", "MCH-OTHER")
    world.emulator.service.accept_credentials(other.api_key, other.merchant_id)
    plain, reported = Backend(), backend
    clients = []
    for credentials in (other, world.credentials):
        manager = world.new_manager(credentials)
        instrument(manager, meter_provider=plain.meters)
        instrument(manager, meter_provider=reported.meters, merchant_id=True)
        instrument(manager, meter_provider=reported.meters, merchant_id=True)
        clients.append(world.client(manager))
    for number in (0, 1, 0):
        world.emulator.service.refuse_current_tokens()
        assert clients[number].request("POST", world.echo).status == 200
        world.settle(clients[number].manager)
    assert plain.points("pay88.token.request.duration") == {(200,): 3}
    assert plain.points("pay88.token.budget.remaining") == {("10 per 1 minute",): 8, ("100 per 1 hour",): 98}
    assert reported.points("pay88.token.request.duration") == {
        (200, "MCH-OTHER"): 2, (200, world.credentials.merchant_id): 1,
    }  # fmt: skip
    left = reported.points("pay88.token.budget.remaining")
    assert left["MCH-OTHER", "100 per 1 hour"] == 98
    assert left[world.credentials.merchant_id, "100 per 1 hour"] == 99
    plain.close()


def test_each_token_request_has_a_span(world: World, backend: Backend) -> None:
    """Failed ones as well; a trace of its own, with the attributes of HTTP clients, in the order of what happened."""
    instrument(world.manager, meter_provider=backend.meters, tracer_provider=backend.provider)
    world.emulator.faults.add(Status(503), on="token")
    client = world.client()
    with backend.tracer.start_as_current_span("application"):
        assert world.as_time_passes(lambda: client.request("POST", world.url)).status == 200
    world.until(lambda: len(backend.finished()) == 3)
    failed, good = (span for span in backend.finished() if span.name == "POST")
    for span in (failed, good):
        assert span.kind is SpanKind.CLIENT
        assert span.parent is None
        attributes = dict(span.attributes or {})
        assert attributes["http.request.method"] == "POST"
        assert attributes["url.full"] == f"{world.emulator.url}/api/auth/token"
        assert attributes["server.address"] == "127.0.0.1"
    assert failed.status.status_code is StatusCode.ERROR
    assert dict(failed.attributes or {})["http.response.status_code"] == 503
    assert dict(failed.attributes or {})["error.type"] == "TokenEndpointUnavailable"
    assert good.status.status_code is StatusCode.UNSET
    assert 0 < (failed.end_time or 0) <= (good.end_time or 0)
    shown = backend.shown()
    assert not [secret for secret in world.emulator.service.secrets() if secret in shown]


def test_units_and_buckets_are_those_of_the_conventions(one_world: World, backend: Backend) -> None:
    """Seconds in buckets that separate milliseconds, counts in braces, names below ``pay88.``."""
    world = one_world
    client = world.client(instrument(world.new_manager(), meter_provider=backend.meters))
    assert client.request("POST", world.url).status == 200
    world.settle(client.manager)
    found = backend.metrics()
    assert all(name.startswith("pay88.") and name == name.lower() for name in found)
    assert found["pay88.token.request.duration"].unit == "s"
    assert min(found["pay88.token.request.duration"].data.data_points[0].explicit_bounds) == 0.005
    assert found["pay88.token.budget.remaining"].unit == "{request}"


def test_a_manager_is_not_kept_alive(backend: Backend) -> None:
    """Neither by its instruments nor by what listens to it."""
    manager = instrument(
        TokenManager(Credentials("sk_test_gone", "MCH-GONE")), meter_provider=backend.meters, merchant_id=True
    )
    gone = weakref.ref(manager)
    del manager
    gc.collect()
    assert gone() is None
    assert "pay88.store.degraded" not in backend.metrics()


def test_without_the_library_the_error_names_the_extra() -> None:
    """And the rest of the package never imports it."""
    code = """
import sys
import pay88_adapters, pay88_adapters.httpx
assert "opentelemetry" not in sys.modules
sys.modules["opentelemetry"] = None
try:
    import pay88_adapters.otel
except ImportError as exc:
    print(exc)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60, text=True)
    assert "pay88-adapters[otel]" in ran.stdout
