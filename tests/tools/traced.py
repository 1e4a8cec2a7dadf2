"""Three requests under a tracer, in a process of its own: ``python traced.py TRACER LIBRARY``.

One is rejected with 401 and retried. Printed is a JSON document: the spans, and all that the tracer recorded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

from toolkit import BY_LIBRARY

from pay88_adapters import TokenManager
from support.stacks import AsyncioStack

Spans = list[tuple[str, bool]]
"""The path of each, and whether it is an error."""


def send(
    library: str,
    before: Callable[[], Any] = lambda: None,
    after: Callable[[], Any] = lambda: None,
    around: Callable[[], Any] = nullcontext,
) -> None:
    """Send the requests; *before* and *after* them, the tracer has its transaction."""
    manager = TokenManager.from_env()
    url = f"{manager.base_url}/api/balance"
    manager.invalidate(manager.get_token())
    with BY_LIBRARY[library](manager) as client:
        if isinstance(client, AsyncioStack):
            stack = client

            async def requests() -> None:
                before()
                for _ in range(3):
                    with around():
                        assert (await stack.asend("POST", url)).status == 200
                after()

            stack.run(requests)
            return
        before()
        for _ in range(3):
            with around():
                assert client.request("POST", url).status == 200
        after()


def path_of(url: str) -> str:
    """Return the path of a URL."""
    return "/" + "".join(url.split("/", 3)[3:]).partition("?")[0]


def instrumented(library: str) -> Any:
    """Return OpenTelemetry's exporter, for an instrumented library."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    module, name = {
        "urllib3": ("urllib3", "URLLib3Instrumentor"),
        "requests": ("requests", "RequestsInstrumentor"),
        "httpx": ("httpx", "HTTPXClientInstrumentor"),
        "aiohttp": ("aiohttp_client", "AioHttpClientInstrumentor"),
    }[library]
    getattr(import_module(f"opentelemetry.instrumentation.{module}"), name)().instrument(tracer_provider=provider)
    trace.set_tracer_provider(provider)
    return exporter


def opentelemetry(library: str) -> tuple[Spans, Any]:
    """All request headers are captured, but for those that the page names."""
    exporter = instrumented(library)
    send(library)
    return read(exporter)


def own_span(library: str) -> tuple[Spans, Any]:
    """The page's code around each request, for which it has no more spans."""
    from recipes import blocks

    exporter = instrumented(library)
    names: dict[str, Any] = {}
    [block] = blocks("tools/tracing", "span")
    exec(block.text, names)
    send(library, around=lambda: names["one_span"]("POST", os.environ["PAY88_BASE_URL"] + "/api/balance"))
    return read(exporter)


def read(exporter: Any) -> tuple[Spans, Any]:
    """Return what OpenTelemetry exported."""
    found = exporter.get_finished_spans()
    attributes = [dict(span.attributes or {}) for span in found]
    urls = [str(each.get("http.url") or each.get("url.full")) for each in attributes]
    spans = [(path_of(url), not span.status.is_unset) for url, span in zip(urls, found, strict=True)]
    return spans, [span.to_json() for span in found]


def sentry(library: str) -> tuple[Spans, Any]:
    """With breadcrumbs and a transaction."""
    import sentry_sdk
    from sentry_sdk.transport import Transport

    sent: list[Any] = []

    class Collect(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            sent.extend(item.payload.json for item in envelope.items)

    sentry_sdk.init("https://key@sentry.invalid/1", transport=Collect, traces_sample_rate=1.0, send_default_pii=True)
    transaction = sentry_sdk.start_transaction(name="order")

    def after() -> None:
        sentry_sdk.capture_message("done")
        transaction.__exit__(None, None, None)

    send(library, transaction.__enter__, after)
    [traced] = [each for each in sent if each and each.get("type") == "transaction"]
    [event] = [each for each in sent if each and each.get("message") == "done"]
    assert len(event["breadcrumbs"]["values"]) >= 3
    spans = [span for span in traced["spans"] if span["op"] == "http.client"]
    failed = [str(span["data"].get("http.response.status_code")) >= "400" for span in spans]
    return [(path_of(span["data"]["url"]), bad) for span, bad in zip(spans, failed, strict=True)], sent


def datadog(library: str) -> tuple[Spans, Any]:
    """ddtrace."""
    import ddtrace
    from ddtrace.trace import TraceFilter, tracer

    seen: list[Any] = []

    class Collect(TraceFilter):
        def process_trace(self, trace: Any) -> None:
            seen.extend(trace)

    tracer.configure(trace_processors=[Collect()])
    ddtrace.patch(**{library: True})
    send(library)
    tracer.flush()
    spans = [span for span in seen if span.get_tag("http.url")]
    return [(path_of(span.get_tag("http.url")), bool(span.error)) for span in spans], [
        (span.name, span.resource, span.get_tags()) for span in seen
    ]


def elastic(library: str) -> tuple[Spans, Any]:
    """elastic-apm."""
    import elasticapm
    from elasticapm.transport.base import Transport

    seen: list[Any] = []

    class Collect(Transport):
        def queue(self, event_type: Any, data: Any, flush: bool = False) -> None:
            seen.append((str(event_type), data))

        def start_thread(self, *_: Any, **__: Any) -> None:
            pass

    sys.modules["traced"] = sys.modules["__main__"]
    sys.modules["traced"].Collect = Collect  # type: ignore[attr-defined]
    client = elasticapm.Client(
        transport_class="traced.Collect",
        metrics_interval="0ms",
        cloud_provider="none",
        central_config=False,
        span_compression_enabled=False,
    )
    elasticapm.instrument()
    send(library, lambda: client.begin_transaction("request"), lambda: client.end_transaction("order", "ok"))
    data = [data for kind, data in seen if "span" in kind and data["type"] == "external"]
    client.close()
    return [(path_of(span["context"]["http"]["url"]), span["outcome"] == "failure") for span in data], seen


def newrelic(library: str) -> tuple[Spans, Any]:
    """New Relic's agent, which reaches no collector in developer mode."""
    import newrelic.agent
    from newrelic.core.application import Application

    seen: list[Any] = []
    Application.record_transaction = lambda self, data: seen.append(data)
    newrelic.agent.initialize(os.environ["NEW_RELIC_CONFIG_FILE"])
    application = newrelic.agent.register_application(timeout=10)
    task = newrelic.agent.BackgroundTask(application, "order")
    import_module(library)
    send(library, task.__enter__, lambda: task.__exit__(None, None, None))
    nodes: list[Any] = []

    def walk(node: Any) -> None:
        nodes.append(node)
        for child in getattr(node, "children", ()):
            walk(child)

    for data in seen:
        walk(data.root)
    spans = [node for node in nodes if type(node).__name__ == "ExternalNode"]
    return [(path_of(node.url), False) for node in spans], repr(nodes)


TRACERS = {each.__name__: each for each in (opentelemetry, own_span, sentry, datadog, elastic, newrelic)}

if __name__ == "__main__":
    found, recorded = TRACERS[sys.argv[1]](sys.argv[2])
    print(json.dumps({"spans": found, "recorded": recorded}, default=repr))  # noqa: T201 - for the test
    sys.stdout.flush()
    os._exit(0)  # without the agents' threads
