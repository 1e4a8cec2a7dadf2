"""requests: adapters whose calls to 88Pay carry a token, over urllib3's pools. This file translates."""

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
from .errors import ConfigurationError, Flavours, Pay88Error
from .manager import TokenManager, find, reference
from .urllib3 import Pay88Retry

__all__ = ["Pay88Adapter", "Pay88Retry", "attach"]

S = TypeVar("S", bound=requests.Session)

_flavours = Flavours(requests.RequestException, globals())

_owners: WeakKeyDictionary[HTTPAdapter, weakref.ref[requests.Session]] = WeakKeyDictionary()  # as attach() saw them


class _Managed(HTTPAdapter):
    """Mixed into an adapter class: its pools are managed ones."""

    pay88_manager: TokenManager

    def init_poolmanager(self, *args: Any, **kw: Any) -> None:
        super().init_poolmanager(*args, **kw)
        urllib3.attach(self.poolmanager, self.pay88_manager)

    def proxy_manager_for(self, proxy: str, **kw: Any) -> Any:
        known = proxy in self.proxy_manager
        pools = super().proxy_manager_for(proxy, **kw)
        return pools if known else urllib3.attach(pools, self.pay88_manager)

    def send(self, request: requests.PreparedRequest, *args: Any, **kw: Any) -> requests.Response:
        try:
            return super().send(request, *args, **kw)
        except Pay88Error as error:
            translated: Any = _flavours.of(error)
            translated.request = request
            raise translated  # noqa: B904 - carries its cause
        except NewConnectionError as error:  # requests knows the two only inside of urllib3's MaxRetryError
            raise requests.ConnectionError(error, request=request) from error
        except ConnectTimeoutError as error:
            raise requests.ConnectTimeout(error, request=request) from error
        except requests.exceptions.ProxyError as error:  # which it gives no request outside of that
            error.request = error.request or request
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        # A manager is a secret and is not pickled: copies, and forked processes, find the one there is.
        kind = next((kind for kind, made in _classes.items() if made is type(self)), type(self))
        return _new, (kind, reference(self.pay88_manager)), super().__getstate__()  # type: ignore[misc]


class Pay88Adapter(_Managed):
    """A :class:`requests.adapters.HTTPAdapter` whose calls to ``manager.base_url`` carry a token.

    It may be mounted at any prefix: only the exact origin of ``base_url`` counts. A call is sent again as
    the manager's :class:`~pay88_adapters.RetryPolicy` says, unless ``max_retries`` is given.

    Args:
        manager: Shared by every stack.
        kw: As for :class:`requests.adapters.HTTPAdapter`.
    """

    def __init__(self, manager: TokenManager, **kw: Any) -> None:
        self.pay88_manager = manager
        kw.setdefault("max_retries", _default_retries())
        super().__init__(**kw)


def attach(session: S, manager: TokenManager) -> S:
    """Let the calls that *session* makes to ``manager.base_url`` carry a token.

    All its adapters stay, with their settings; attaching again replaces the manager. An adapter that is
    mounted later is not managed; one that another session has, too, is managed there as well.
    ``max_retries=0`` is what requests has by default, and gives way to the manager's policy.

    Returns:
        *session*.

    Raises:
        ConfigurationError: What is mounted for ``base_url`` is no :class:`requests.adapters.HTTPAdapter`,
            or an adapter is another session's, too, with another manager.
    """
    mounted = session.get_adapter(f"{manager.base_url}/")
    if not isinstance(mounted, HTTPAdapter):
        raise ConfigurationError(
            f"what is mounted for {manager.base_url} is no HTTPAdapter but {type(mounted).__name__}:"
            " mount a Pay88Adapter there"
        )
    adapters = [adapter for adapter in session.adapters.values() if isinstance(adapter, HTTPAdapter)]
    for adapter in adapters:
        owner = _owners.get(adapter, lambda: None)()
        if owner not in (None, session) and getattr(adapter, "pay88_manager", manager) is not manager:
            raise ConfigurationError(
                f"a {type(adapter).__name__} of this session is another session's, too, which has another manager:"
                " mount one of its own first"
            )
    for adapter in adapters:
        _owners[adapter] = weakref.ref(session)
        _take_over(adapter, manager)
    return session


def _take_over(adapter: Any, manager: TokenManager) -> None:
    if not isinstance(adapter, _Managed):
        adapter.__class__ = _managed(adapter.__class__)
        if _is_default(adapter.max_retries):
            adapter.max_retries = _default_retries()
    adapter.pay88_manager = manager
    for pools in (adapter.poolmanager, *adapter.proxy_manager.values()):
        urllib3.attach(pools, manager)


def _default_retries() -> Pay88Retry:
    return Pay88Retry(total=0, read=False)  # what requests has in its place


def _is_default(retries: Retry) -> bool:
    return type(retries) is Retry and vars(retries) == vars(Retry(0, read=False))


_classes: dict[type[HTTPAdapter], type[_Managed]] = {HTTPAdapter: Pay88Adapter}


def _managed(kind: type[HTTPAdapter]) -> type[_Managed]:
    if kind not in _classes:
        _classes[kind] = type(f"Pay88{kind.__name__}", (_Managed, kind), {})
    return _classes[kind]


def _new(kind: type[HTTPAdapter], manager: tuple[str, str]) -> HTTPAdapter:
    """Return an adapter without its state, for pickle, which finds no class that was made at run time."""
    cls = kind if issubclass(kind, _Managed) else _managed(kind)
    adapter: Any = cls.__new__(cls)
    adapter.pay88_manager = find(manager)  # before the state: that makes the pools
    return adapter  # type: ignore[no-any-return]
