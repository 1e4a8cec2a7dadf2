"""OpenTelemetry: metrics of managers, and events on the caller's span for the outcome of a request.

Only the API is needed here. What is collected, and where to, is up to the SDK that the application sets up; without
one nothing is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from weakref import WeakKeyDictionary

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
except ModuleNotFoundError as exc:
    raise ImportError("opentelemetry-api is not installed: pip install 'pay88-adapters[otel]'") from exc

from . import __version__
from .core.endpoint import Endpoint
from .core.events import (
    BreakerClosed,
    BreakerOpened,
    BudgetExhausted,
    CallNotSent,
    CallReplayed,
    CallRetried,
    CallWaited,
    Event,
    RefreshFailed,
    SharedTokenUsed,
    TokenFetched,
    TokenRejected,
    TokenRequestFailed,
)
from .engine.forks import survive_forks
from .engine.manager import TokenManager
from .engine.stats import Stats

__all__ = ["instrument"]

Attributes = dict[str, str | bool | int | float]
_Reading = tuple[Attributes, float]
_Worst = Callable[[float, float], float]

_MERCHANT = "pay88.merchant.id"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)  # as for HTTP in general
_COUNTERS: Mapping[type[Event], tuple[str, str, str]] = {
    SharedTokenUsed: ("pay88.token.shared", "{token}", "Tokens of another manager read from the shared store."),
    RefreshFailed: ("pay88.token.fetch.failures", "{fetch}", "Fetches that ended without a token."),
    BudgetExhausted: (
        "pay88.token.budget.exhausted",
        "{request}",
        "Token requests not sent: the token budget was exhausted.",
    ),
    TokenRejected: ("pay88.token.rejections", "{call}", "API requests that got a 401."),
    CallReplayed: ("pay88.call.replays", "{call}", "API requests retried after a 401."),
    CallRetried: ("pay88.call.retries", "{call}", "Retries of API requests after a failure."),
    CallNotSent: (
        "pay88.call.not_sent",
        "{call}",
        "API requests that failed with an error of this package before they were sent or retried.",
    ),
    BreakerOpened: (
        "pay88.breaker.openings",
        "{opening}",
        "Times that a circuit opened or reopened.",
    ),
}
_ON_SPANS: Mapping[type[Event], str] = {
    TokenRejected: "pay88.token.rejected",
    CallReplayed: "pay88.call.replayed",
    CallRetried: "pay88.call.retried",
    CallWaited: "pay88.call.waited",
    CallNotSent: "pay88.call.not_sent",
    BreakerOpened: "pay88.breaker.opened",
    BreakerClosed: "pay88.breaker.closed",
}


def instrument(
    manager: TokenManager,
    *,
    meter_provider: metrics.MeterProvider | None = None,
    tracer_provider: trace.TracerProvider | None = None,
    merchant_id: bool = False,
) -> TokenManager:
    """Record OpenTelemetry metrics and spans of *manager*. A second call with the same manager has no effect.

    Events of a request are added to the span that is current when the request is sent.

    Args:
        manager: The manager. It is referenced weakly.
        meter_provider: Meter provider; the global one unless given.
        tracer_provider: Tracer provider for the spans of token requests; the global one unless given.
        merchant_id: Whether metrics and spans have the attribute ``pay88.merchant.id``. Each merchant then has time
            series of its own. Without it, a gauge shows the worst value of all managers with the same base URL.

    Returns:
        *manager*.
    """
    with _process.lock:
        key = metrics if meter_provider is None else meter_provider  # the global one may be set later
        instruments = _process.instruments.get(key)
        if instruments is None:
            instruments = _process.instruments[key] = _Instruments(meter_provider)
        if manager in instruments.managers:
            return manager
        instruments.managers[manager] = merchant_id
    manager.listen(_Observer(instruments, tracer_provider, manager, merchant_id))
    return manager


class _Instruments:
    """What is measured, once for all managers of one meter provider."""

    def __init__(self, meter_provider: metrics.MeterProvider | None) -> None:
        self.managers: WeakKeyDictionary[TokenManager, bool] = (
            WeakKeyDictionary()
        )  # and whether to include the merchant
        meter = metrics.get_meter("pay88_adapters", __version__, meter_provider)
        self.counters = {
            kind: meter.create_counter(name, unit=unit, description=text)
            for kind, (name, unit, text) in _COUNTERS.items()
        }
        self.requests = meter.create_histogram(
            "pay88.token.request.duration",
            unit="s",
            description="Duration of token requests.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.waits = meter.create_histogram(
            "pay88.call.wait.duration",
            unit="s",
            description="Wait of API requests for a token or for a rate limit.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )

        def gauge(name: str, unit: str, text: str, read: Callable[[Stats], Iterable[_Reading]], worst: _Worst) -> None:
            def observe(_: metrics.CallbackOptions) -> list[metrics.Observation]:
                return list(self._observe(read, worst))

            meter.create_observable_gauge(name, [observe], unit=unit, description=text)

        gauge("pay88.token.budget.remaining", "{request}", "Remaining token requests, by limit.", _budget, min)
        gauge("pay88.token.remaining", "s", "Remaining lifetime of the token, if any.", _token, min)
        gauge("pay88.breaker.open", "{circuit}", "1 while a circuit is open, else 0.", _circuits, max)
        gauge("pay88.store.degraded", "{store}", "1 while the store is unavailable, else 0.", _store, max)

    def _observe(self, read: Callable[[Stats], Iterable[_Reading]], worst: _Worst) -> Iterator[metrics.Observation]:
        found: dict[tuple[tuple[str, object], ...], _Reading] = {}
        with _process.lock:
            managers = list(self.managers.items())
        for manager, with_merchant in managers:
            stats, shared = manager.stats(), _server(manager)
            if with_merchant:
                shared[_MERCHANT] = manager.merchant_id
            for own, value in read(stats):
                attributes = {**shared, **own}
                key = tuple(attributes.items())
                found[key] = attributes, worst(value, found[key][1]) if key in found else value
        for attributes, value in found.values():
            yield metrics.Observation(value, attributes)


class _Observer:
    """Listens to one manager, without a reference to it."""

    def __init__(
        self,
        instruments: _Instruments,
        tracer_provider: trace.TracerProvider | None,
        manager: TokenManager,
        with_merchant: bool,
    ) -> None:
        self._instruments = instruments
        self._tracer = trace.get_tracer("pay88_adapters", __version__, tracer_provider)
        self._server = _server(manager)
        self._token_url = Endpoint.parse(manager.base_url).token_url
        self._with_merchant = with_merchant

    def __call__(self, event: Event) -> None:
        kind, attributes = type(event), {**self._server, **_attributes(event)}
        if self._with_merchant:
            attributes[_MERCHANT] = event.merchant_id
        if kind in self._instruments.counters:
            self._instruments.counters[kind].add(1, attributes)
        match event:
            case TokenFetched(duration=seconds) | TokenRequestFailed(duration=seconds):
                self._instruments.requests.record(seconds, attributes)
                self._trace(event, seconds, event.ended_at, attributes)
            case CallWaited(seconds=seconds):
                self._instruments.waits.record(seconds, attributes)
            case _:
                pass
        if kind in _ON_SPANS:
            trace.get_current_span().add_event(_ON_SPANS[kind], {**attributes, **_figures(event)})

    def _trace(self, event: Event, seconds: float, ended_at: float, attributes: Attributes) -> None:
        """Make the span of a token request. It belongs to no trace of a caller's: it serves all of them."""
        request: Attributes = {"http.request.method": "POST", "url.full": self._token_url}
        span = self._tracer.start_span(
            "POST",
            context=Context(),
            kind=trace.SpanKind.CLIENT,
            attributes={**attributes, **request},
            start_time=int((ended_at - seconds) * 1e9),
        )
        if isinstance(event, TokenRequestFailed):
            span.set_status(trace.StatusCode.ERROR)
        span.end(int(ended_at * 1e9))


def _attributes(event: Event) -> Attributes:
    """Return the attributes of an event: each has few values."""
    match event:
        case TokenFetched():
            return {"http.response.status_code": 200}
        case TokenRequestFailed(error=error, status=status):
            return {"error.type": error.__name__, **_status(status)}
        case RefreshFailed(error=failure):
            return {"error.type": type(failure).__name__}
        case TokenRejected(replaced=replaced):
            return {"pay88.token.replaced": replaced}
        case CallRetried(group=group, status=status):
            return {"pay88.call.group": group, **_status(status)}
        case CallWaited(reason=reason):
            return {"pay88.call.wait.reason": reason}
        case CallNotSent(group=group, error=error):
            return {"pay88.call.group": group, "error.type": error.__name__}
        case BreakerOpened(group=group) | BreakerClosed(group=group):
            return {"pay88.call.group": group}
        case _:
            return {}


def _figures(event: Event) -> Attributes:
    """Return what else a span should know: any number of values."""
    match event:
        case CallRetried(attempt=attempt, pause=pause):
            return {"http.request.resend_count": attempt - 1, "pay88.call.pause": pause}
        case CallWaited(seconds=seconds):
            return {"pay88.call.wait.seconds": seconds}
        case CallNotSent(retry_after=seconds) if seconds is not None:
            return {"pay88.retry_after": seconds}
        case BreakerOpened(retry_after=seconds):
            return {"pay88.retry_after": seconds}
        case _:
            return {}


def _status(status: int | None) -> Attributes:
    return {} if status is None else {"http.response.status_code": status}


def _server(manager: TokenManager) -> Attributes:
    endpoint = Endpoint.parse(manager.base_url)
    return {"server.address": endpoint.host, "server.port": endpoint.port}


def _budget(stats: Stats) -> Iterable[_Reading]:
    return [({"pay88.token.budget.limit": limit}, left) for limit, left in stats.budget_left.items()]


def _token(stats: Stats) -> Iterable[_Reading]:
    return [] if stats.token_expires_in is None else [({}, stats.token_expires_in)]


def _circuits(stats: Stats) -> Iterable[_Reading]:
    return [({"pay88.call.group": group}, int(is_open)) for group, is_open in stats.circuits_open.items()]


def _store(stats: Stats) -> Iterable[_Reading]:
    return [({}, int(stats.store_degraded))]


class _Process:
    """What this process measures with."""

    def __init__(self) -> None:
        self.instruments: WeakKeyDictionary[object, _Instruments] = WeakKeyDictionary()  # by meter provider
        self.after_fork()
        survive_forks(self)

    def after_fork(self) -> None:
        """Replace the lock: another thread may have held it."""
        self.lock = threading.RLock()


_process = _Process()
