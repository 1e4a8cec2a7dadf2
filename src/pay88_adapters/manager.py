"""The one object that every stack, thread and task shares."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import NoReturn
from weakref import WeakKeyDictionary

from .breaker import BreakerPolicy
from .clock import Clock
from .contexts import CHOICES, choose, chosen
from .credentials import Credentials
from .drivers import Sender, TaskDriver, ThreadDriver
from .endpoint import SANDBOX_URL, Endpoint, url_from_env
from .errors import ConfigurationError
from .events import Listener
from .fleet import Fleet
from .forks import fork_id, survive_forks
from .guards import Guards
from .pacing import Pacing
from .policy import LIFETIME, TokenPolicy
from .retry import DEFAULT, RetryPolicy
from .runtimes import current_runtime
from .secret import Hidden, hidden
from .standalone import standalone_sender
from .state import CredentialsSource, SharedState, Stats
from .stores import MEMORY, open_fallback, open_store
from .stores.base import Store
from .token import Token

_POLICY = TokenPolicy()  # one for all managers
_CROWD = 32  # calls that may ask a store at once for leave to go out


class _Process:
    """What the managers of this process share."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.managers: dict[tuple[object, ...], TokenManager] = {}
        self.names: WeakKeyDictionary[TokenManager, str] = WeakKeyDictionary()  # of those that were referred to
        self.stores: WeakKeyDictionary[Clock, dict[str, Store]] = WeakKeyDictionary()
        self.fleets: WeakKeyDictionary[Clock, dict[tuple[str, str | None, float | None], Fleet]] = WeakKeyDictionary()
        self.after_fork()
        survive_forks(self)

    def after_fork(self) -> None:
        """Replace the locks: another thread may have held them."""
        self.managers_lock = threading.Lock()
        self.stores_lock = threading.Lock()

    def fleet(self, url: str, fallback: str | None, clock: Clock, share: float | None) -> Fleet:
        """Return this process's one view of a store, on this clock."""
        with self.stores_lock:
            fleets = self.fleets.setdefault(clock, {})
            fleet = fleets.get((url, fallback, share))
            if fleet is None:
                stores = self.stores.setdefault(clock, {})
                if url not in stores:
                    stores[url] = open_store(url, clock)
                spare, host = open_fallback(fallback, clock) if fallback is not None else (None, "")
                fleet = fleets[url, fallback, share] = Fleet(stores[url], clock, share, spare, host)
            return fleet


_process = _Process()


@contextmanager
def default_clock(clock: Clock) -> Generator[None, None, None]:
    """Let the managers that are made in the block run on *clock* unless they are given one; for tests.

    Block and rest share nothing, so :meth:`TokenManager.shared` makes managers of its own in it.
    """
    kept = _process.clock, _process.managers
    _process.clock, _process.managers = clock, {}
    try:
        yield
    finally:
        _process.clock, _process.managers = kept


class TokenManager:
    """Gets, shares and replaces the tokens of one merchant, for threads and tasks alike.

    Args:
        credentials: Or a callable, sync or async, that returns them; it is asked at each fetch. A sync
            one is called on the event loop's thread where the call that leads is async.
        base_url: ``SANDBOX_URL`` unless given.
        store: Where managers meet: those with the same store share the token and the budget.
            ``memory://`` is *per process*: each process has a token and a budget of its own, though the
            service counts them together. ``sqlite:////absolute/path`` is for the processes of one host,
            ``redis://host:port`` for a fleet.
        fallback_store: A file, ``sqlite:////absolute/path``, that the processes of this host share while
            *store* is unavailable. Without one, each process has a share of the token budget of its own.
        policy: When tokens are refreshed and what may be spent.
        retry: When a call is sent again; ``RetryPolicy()`` unless given, ``RetryPolicy.none()`` for never.
        pacing: Hold calls within the limits that 88Pay documents for them: 60 a minute and 1,000 an hour
            of ``/api/transactions/…``, and as many of ``/api/balance``. A call waits for its turn at most
            ``max_wait`` seconds, then it fails with :class:`RequestBudgetExhausted`.
        breaker: Let calls fail at once with :class:`CircuitOpen` while the service fails.
        listeners: Called with each :class:`~pay88_adapters.events.Event`: see that module.
        clock: For tests: a :class:`~pay88_adapters.clock.Clock` that the emulator runs on, too.

    Raises:
        ConfigurationError: The configuration cannot work.
    """

    __slots__ = ("__weakref__", "_endpoint", "_now", "_sender", "_state", "tasks", "threads")

    def __init__(
        self,
        credentials: CredentialsSource,
        *,
        base_url: str = SANDBOX_URL,
        store: str = MEMORY,
        fallback_store: str | None = None,
        policy: TokenPolicy | None = None,
        retry: RetryPolicy | None = None,
        listeners: Iterable[Listener] = (),
        pacing: bool = False,
        breaker: BreakerPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        store = hidden(store)  # its URL may hold a password
        if not isinstance(store, str):
            raise ConfigurationError(f"store must be a str, not {type(store).__name__}")
        endpoint = Endpoint.parse(base_url)
        if isinstance(credentials, Credentials):
            endpoint.check_key(credentials)
        elif not callable(credentials):
            raise ConfigurationError("credentials must be Credentials(...) or a callable that returns them")
        _check_type("policy", policy, TokenPolicy)
        _check_type("retry", retry, RetryPolicy)
        _check_type("breaker", breaker, BreakerPolicy)
        if not isinstance(pacing, bool):
            raise ConfigurationError(f"pacing must be True or False, not {type(pacing).__name__}")
        policy = policy or _POLICY
        clock = clock or _process.clock
        fleet = _process.fleet(store, _checked_fallback(store, fallback_store), clock, policy.fallback_share)
        rotating = not isinstance(credentials, Credentials)
        guards = None
        if pacing or breaker is not None:
            crowd = _CROWD if fleet.blocking else None
            guards = Guards(Pacing(fleet.budget, endpoint.base_url, crowd=crowd) if pacing else None, breaker)
        self._endpoint = endpoint
        self._now = clock.now
        self._state = SharedState(
            endpoint,
            policy,
            clock,
            fleet,
            rotating=rotating,
            retry=retry or DEFAULT,
            guards=guards,
            listeners=_checked(listeners),
        )
        if isinstance(credentials, Credentials):
            self._state.merchant_id = credentials.merchant_id
        self.threads = ThreadDriver(self._state, credentials)
        self.tasks = TaskDriver(self._state, credentials)
        self._sender: tuple[str, Sender] | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> TokenManager:
        """Configure from ``PAY88_API_KEY``, ``PAY88_MERCHANT_ID``, ``PAY88_ENVIRONMENT``,
        ``PAY88_BASE_URL``, ``PAY88_STORE`` and ``PAY88_FALLBACK_STORE``.

        Raises:
            ConfigurationError: A variable is missing or cannot be used.
        """
        environ = Hidden(os.environ if environ is None else environ)
        return cls(
            Credentials.from_env(environ),
            base_url=url_from_env(environ),
            store=environ.get("PAY88_STORE") or MEMORY,
            fallback_store=environ.get("PAY88_FALLBACK_STORE") or None,
        )

    @classmethod
    def shared(
        cls,
        credentials: CredentialsSource,
        *,
        base_url: str = SANDBOX_URL,
        store: str = MEMORY,
        fallback_store: str | None = None,
        policy: TokenPolicy | None = None,
        retry: RetryPolicy | None = None,
        listeners: Iterable[Listener] = (),
        pacing: bool = False,
        breaker: BreakerPolicy | None = None,
    ) -> TokenManager:
        """Return the same manager for the same arguments, anywhere in the process.

        Raises:
            ConfigurationError: The configuration cannot work.
        """
        store = hidden(store)
        listeners = _checked(listeners)
        options = (fallback_store, policy or _POLICY, retry or DEFAULT, listeners, pacing, breaker)
        key = (credentials, Endpoint.parse(base_url).base_url, store, options)
        with _process.managers_lock:
            manager = _process.managers.get(key)
            if manager is None or manager._state.closed:
                manager = _process.managers[key] = cls(
                    credentials,
                    base_url=base_url,
                    store=store,
                    fallback_store=fallback_store,
                    policy=policy,
                    retry=retry,
                    listeners=listeners,
                    pacing=pacing,
                    breaker=breaker,
                )
            return manager

    @property
    def base_url(self) -> str:
        """The checked base URL, without a slash at its end."""
        return self._state.endpoint.base_url

    @property
    def merchant_id(self) -> str:
        """Of the credentials seen last; empty before the first fetch of a credentials callable."""
        return self._state.merchant_id

    @property
    def retry(self) -> RetryPolicy:
        """When a call is sent again."""
        return self._state.retry

    def get_token(self, *, min_validity: float = 0.0) -> Token:
        """Return a token that may be attached now; fetch one, or wait for the one who does.

        Any thread may call this. One that runs an event loop blocks it: prefer :meth:`aget_token` there.

        Args:
            min_validity: Seconds for which the token should stay usable, such as the length of an
                upload. Where no fetch can be made, an older token is returned.

        Raises:
            CredentialsRejected: The credentials were refused, now or within ``rejection_cooldown``.
            TokenBudgetExhausted: None is left; none may be requested for ``retry_after`` seconds.
            TokenRateLimited: None is left; the service asked to wait for ``retry_after`` seconds.
            TokenEndpointUnavailable: None is left and none could be had; see ``__cause__``.
            ConfigurationError: No token lives as long as *min_validity*, or the manager is closed.
        """
        if not min_validity:
            token, until = self._state.published
            if token is not None and self._now() < until:
                return token
        self._check_validity(min_validity)
        return self.threads.token(self._standalone(), min_validity=min_validity)

    async def aget_token(self, *, min_validity: float = 0.0) -> Token:
        """Return a token like :meth:`get_token`, on asyncio or trio, without blocking the loop."""
        if not min_validity:
            token, until = self._state.published
            if token is not None and self._now() < until:
                return token
        self._check_validity(min_validity)
        sender = self._standalone()
        sequence = self.tasks.acquisition(current_runtime(), None, min_validity)
        try:
            while True:
                await self.tasks.do(next(sequence), lambda start: self.threads.start(start, sender))
        except StopIteration as stop:
            fetched: Token = stop.value
            return fetched

    def activated(self) -> AbstractContextManager[None]:
        """Let the calls of a context use this manager: ``with manager.activated(): …``.

        For one client and many merchants. It holds for this thread or task, and for the tasks that are
        started in it; only calls through a client with a manager attached are managed at all. A new
        thread starts without; ``contextvars.copy_context().run`` takes it along.
        """
        return choose(self)

    def managing(
        self, scheme: str, host: str, port: int | None, path: str, authorization: str | None
    ) -> TokenManager | None:
        """Return the manager for a call of a client that this one is attached to; ``None`` leaves the call alone."""
        choices = CHOICES.get()  # what chosen() does, in this frame: every call comes through here
        manager = choices[-1].manager if choices else self
        if manager is None or not manager._endpoint.covers(scheme, host, port, path, authorization):
            return None
        return manager

    def invalidate(self, token: Token) -> None:
        """Forget *token* if it is the current one; the next call fetches another."""
        self._state.drop(token)

    def stats(self) -> Stats:
        """Return what has been done so far, and the budget left."""
        state = self._state
        return Stats(
            **asdict(state.counters),
            budget_left=state.budget.left(state.merchant_id),
            fetching=state.fetching,
            token_expires_in=state.expires_in(),
            circuits_open=state.guards.circuits() if state.guards else {},
            store_degraded=state.fleet.alone,
        )

    def listen(self, listener: Listener) -> None:
        """Call *listener* with each event from now on, as if it had been in ``listeners=[…]``.

        Raises:
            ConfigurationError: It is not callable.
        """
        self._state.listen(*_checked([listener]))

    def close(self) -> None:
        """Refuse all further calls. Clients that the manager was attached to stay open."""
        self._state.close()

    async def aclose(self) -> None:
        """Do what :meth:`close` does."""
        self.close()

    def __enter__(self) -> TokenManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> TokenManager:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<TokenManager {self.base_url}{' (closed)' if self._state.closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TokenManager is not pickled: make one in each process, for example with from_env()")

    def _standalone(self) -> Sender:
        # A forked child must not read from its parent's sockets.
        if self._sender is None or self._sender[0] != fork_id():
            self._sender = fork_id(), standalone_sender(self)
        return self._sender[1]

    def _check_validity(self, min_validity: float) -> None:
        longest = LIFETIME - self._state.policy.expiry_skew
        if not 0 <= min_validity <= longest:
            raise ConfigurationError(f"min_validity is {min_validity}: it must be between 0 and {longest:g} seconds")


def _check_type(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")


def _checked_fallback(store: str, fallback: object) -> str | None:
    if fallback is None:
        return None
    if not isinstance(fallback, str):
        raise ConfigurationError(f"fallback_store must be a str, not {type(fallback).__name__}")
    if store == MEMORY:
        raise ConfigurationError("fallback_store is for a store that processes share: set store, too")
    if store == fallback:
        raise ConfigurationError("fallback_store is the same as store: name another file")
    return fallback


def _checked(listeners: Iterable[Listener]) -> tuple[Listener, ...]:
    if callable(listeners):
        raise ConfigurationError("listeners must be a list of callables: put the one you have into a list")
    checked = tuple(listeners)
    if not all(callable(each) for each in checked):
        raise ConfigurationError("listeners must be callables that take one event")
    return checked


def reference(manager: TokenManager | Missing) -> tuple[str, str]:
    """Return what :func:`find` finds *manager* by, in this process and in those forked from it."""
    if isinstance(manager, Missing):
        return manager.reference
    name = _process.names.setdefault(manager, os.urandom(16).hex())
    return name, manager.base_url


def find(reference: tuple[str, str]) -> TokenManager | Missing:
    """Return the manager that *reference* was made for, or what stands in for it in another process."""
    name, _ = reference
    return next((manager for manager, known in _process.names.items() if known == name), Missing(reference))


class Missing:
    """Stands in for a manager that this process does not have: calls to its base URL fail, others pass."""

    def __init__(self, reference: tuple[str, str]) -> None:
        self.reference = reference
        self._endpoint = Endpoint.parse(reference[1])

    def managing(
        self, scheme: str, host: str, port: int | None, path: str, authorization: str | None
    ) -> TokenManager | None:
        """Do what :meth:`TokenManager.managing` does.

        Raises:
            ConfigurationError: It is this manager's call.
        """
        manager = chosen(self)
        if not isinstance(manager, Missing):
            return manager and manager.managing(scheme, host, port, path, authorization)
        if self._endpoint.covers(scheme, host, port, path, authorization):
            raise ConfigurationError(
                "this client was pickled in another process, and managers are not pickled, for they hold the key:"
                " make a TokenManager in this process and attach() it"
            )
        return None
