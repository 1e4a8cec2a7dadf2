"""requests: adapters whose requests to 88Pay carry a token, over urllib3's pools. This file translates."""

from __future__ import annotations

import weakref
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

try:
    import requests
except ModuleNotFoundError as exc:
    raise ImportError("requests is not installed: pip install 'pay88-adapters[requests]'") from exc
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from . import urllib3
from .core import errors
from .core.arguments import check_client, class_of, inside
from .core.errors import AdapterErrors, Pay88Error
from .engine.calls import Sender
from .engine.stand_ins import ActivatedManager, AnyManager, UnavailableManager, check_manager, pickle_key, resolve
from .urllib3 import Pay88Retry

__all__ = ["Pay88Adapter", "Pay88Retry", "attach"]

S = TypeVar("S", bound=requests.Session)


class ConfigurationError(errors.ConfigurationError, requests.RequestException): ...


class CredentialsRejected(errors.CredentialsRejected, requests.RequestException): ...


class TokenBudgetExhausted(errors.TokenBudgetExhausted, requests.RequestException): ...


class TokenRateLimited(errors.TokenRateLimited, requests.RequestException): ...


class TokenEndpointUnavailable(errors.TokenEndpointUnavailable, requests.RequestException): ...


class TokenResponseInvalid(errors.TokenResponseInvalid, TokenEndpointUnavailable): ...


class RequestBudgetExhausted(errors.RequestBudgetExhausted, requests.RequestException): ...


class CircuitOpen(errors.CircuitOpen, requests.RequestException): ...


_errors = AdapterErrors(requests.RequestException, globals())

_owners: WeakKeyDictionary[HTTPAdapter, weakref.ref[requests.Session]] = WeakKeyDictionary()  # as attach() found them


class _Managed(HTTPAdapter):
    """Mixed into an adapter class: its pools are managed."""

    pay88_manager: AnyManager | UnavailableManager

    def init_poolmanager(self, *args: Any, **kw: Any) -> None:
        super().init_poolmanager(*args, **kw)
        urllib3.install(self.poolmanager, self.pay88_manager)

    def proxy_manager_for(self, proxy: str, **kw: Any) -> Any:
        known = proxy in self.proxy_manager
        pools = super().proxy_manager_for(proxy, **kw)
        return pools if known else urllib3.install(pools, self.pay88_manager)

    def send(self, request: requests.PreparedRequest, *args: Any, **kw: Any) -> requests.Response:
        try:
            return super().send(request, *args, **kw)
        except Pay88Error as error:
            translated: Any = _errors.convert(error)
            translated.request = request
            raise translated  # noqa: B904 - carries its cause
        except NewConnectionError as error:  # requests knows the two only inside of urllib3's MaxRetryError
            raise requests.ConnectionError(error, request=request) from error
        except ConnectTimeoutError as error:
            raise requests.ConnectTimeout(error, request=request) from error
        except requests.exceptions.ProxyError as error:  # without a request, outside of MaxRetryError
            error.request = error.request or request
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        # A manager is a secret and is not pickled: copies, and forked processes, find the existing one.
        kind = next((kind for kind, made in _classes.items() if made is type(self)), type(self))
        return _new, (kind, pickle_key(self.pay88_manager)), super().__getstate__()  # type: ignore[misc]


class Pay88Adapter(_Managed):
    """A :class:`requests.adapters.HTTPAdapter` whose requests to ``manager.base_url`` carry a token.

    It may be mounted at any prefix: only the same origin as ``base_url`` counts. The manager's
    :class:`~pay88_adapters.RetryPolicy` decides about retries, unless ``max_retries`` is given.

    Args:
        manager: The manager; it may be attached to any number of clients.
        kw: As for :class:`requests.adapters.HTTPAdapter`.

    Raises:
        ConfigurationError: *manager* is not a manager.
    """

    def __init__(self, manager: AnyManager, **kw: Any) -> None:
        check_manager(manager)
        self.pay88_manager = manager
        kw.setdefault("max_retries", _default_retries())
        super().__init__(**kw)


def attach(session: S, manager: AnyManager) -> S:
    """Attach *manager* to *session*: requests to ``manager.base_url`` carry a token.

    All its adapters keep their settings. If you attach another manager, it replaces the first. Adapters that you mount
    later have no manager. An adapter that is also mounted on another session has the manager there, too. With
    ``max_retries=0``, the default of requests, the :class:`~pay88_adapters.RetryPolicy` of the manager applies.

    Returns:
        *session*.

    Raises:
        ConfigurationError: *session* is not one of requests, *manager* is not a manager, the adapter mounted for
            ``base_url`` is not a :class:`requests.adapters.HTTPAdapter`, or an adapter also belongs to a session with
            another manager.
    """
    check_client(session, "requests", (requests.Session,))
    check_manager(manager)
    mounts = inside(session, "adapters", dict)
    try:
        mounted: object = session.get_adapter(f"{manager.base_url}/")
    except requests.exceptions.InvalidSchema:
        mounted = None
    if not isinstance(mounted, HTTPAdapter):
        raise ConfigurationError(
            f"the adapter mounted for {manager.base_url} is {class_of(mounted)}, not a requests.adapters.HTTPAdapter:"
            " mount a Pay88Adapter there"
        )
    adapters = [adapter for adapter in mounts.values() if isinstance(adapter, HTTPAdapter)]
    for adapter in adapters:
        owner = _owners.get(adapter, lambda: None)()
        if owner not in (None, session) and getattr(adapter, "pay88_manager", manager) is not manager:
            raise ConfigurationError(
                f"a {type(adapter).__name__} of this session is also mounted on another session with another manager:"
                " mount a new adapter on this session first"
            )
    for adapter in adapters:
        _owners[adapter] = weakref.ref(session)
        _take_over(adapter, manager)
    return session


class _ClientSender(urllib3.ClientSender):
    """Sends token requests over the pools that the session would use."""

    def _pool(self, url: str) -> tuple[Any, str]:
        session: requests.Session = self.client
        settings = session.merge_environment_settings(url, {}, None, None, None)
        adapter = session.get_adapter(url)
        if not isinstance(adapter, HTTPAdapter):
            raise ConfigurationError(f"the adapter mounted for {url} is {class_of(adapter)}, not an HTTPAdapter")
        request = requests.Request("POST", url).prepare()  # not by the session, which would add its own headers
        proxies = settings["proxies"]
        pool = adapter.get_connection_with_tls_context(
            request, settings["verify"], proxies=proxies, cert=settings["cert"]
        )
        return pool, adapter.request_url(request, proxies)


def client_sender(client: requests.Session) -> Sender:
    """Return a sender over the pools of *client*."""
    return _ClientSender(client)


def _take_over(adapter: Any, manager: AnyManager) -> None:
    if not isinstance(adapter, _Managed):
        adapter.__class__ = _managed(adapter.__class__)
        if _is_default(adapter.max_retries):
            adapter.max_retries = _default_retries()
    adapter.pay88_manager = manager
    for pools in (adapter.poolmanager, *adapter.proxy_manager.values()):
        urllib3.install(pools, manager)


def _default_retries() -> Pay88Retry:
    return Pay88Retry(total=0, read=False)  # requests' own default


def _is_default(retries: Retry) -> bool:
    return type(retries) is Retry and vars(retries) == vars(Retry(0, read=False))


_classes: dict[type[HTTPAdapter], type[_Managed]] = {HTTPAdapter: Pay88Adapter}


def _managed(kind: type[HTTPAdapter]) -> type[_Managed]:
    if kind not in _classes:
        _classes[kind] = type(f"Pay88{kind.__name__}", (_Managed, kind), {})
    return _classes[kind]


def _new(kind: type[HTTPAdapter], manager: tuple[str, str] | ActivatedManager) -> HTTPAdapter:
    """Return an adapter without its state, for pickle, which does not find classes made at run time."""
    cls = kind if issubclass(kind, _Managed) else _managed(kind)
    adapter: Any = cls.__new__(cls)
    adapter.pay88_manager = resolve(manager)  # before the state: that makes the pools
    return adapter  # type: ignore[no-any-return]
