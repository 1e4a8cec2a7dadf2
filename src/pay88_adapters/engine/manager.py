"""The one object that every stack, thread and task shares."""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import NoReturn, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from pay88_adapters.core.arguments import class_of
from pay88_adapters.core.breaker import BreakerPolicy
from pay88_adapters.core.endpoint import SANDBOX_URL, Endpoint, url_from_env
from pay88_adapters.core.errors import ConfigurationError
from pay88_adapters.core.events import Listener
from pay88_adapters.core.policy import LIFETIME, TokenPolicy
from pay88_adapters.core.retry import DEFAULT, RetryPolicy
from pay88_adapters.core.secret import Hidden, hidden
from pay88_adapters.core.token import Token
from pay88_adapters.stores import MEMORY, open_fallback, open_store
from pay88_adapters.stores.base import Store

from .clock import Clock
from .credentials import Credentials
from .forks import fork_id, survive_forks
from .overrides import CHOICES, Activation, chosen
from .pacing import Pacing
from .request_limits import Guards
from .runners import AsyncSender, Sender, TaskDriver, ThreadDriver
from .running import current_run, current_runtime
from .standalone import OwnSender, check_client, client_sender, own_sender
from .state import CredentialsSource, SharedState, Stats
from .store_client import Fleet

_POLICY = TokenPolicy()  # one for all managers
_CROWD = 32  # calls that may ask a store at once for leave to go out
_SWEPT = 16  # of what is kept, from how much on to look for what is no longer used
KEPT = 128
"""How many managers that nothing refers to :meth:`TokenManager.shared` keeps: those that were used last."""


class _Stores:
    """The stores that are open on one clock, and what this process knows of each."""

    def __init__(self) -> None:
        self._stores: WeakValueDictionary[str, Store] = WeakValueDictionary()
        self._fleets: dict[tuple[str, str | None, float | None], Fleet] = {}
        self._sweep_at = _SWEPT

    def __len__(self) -> int:
        return len(self._fleets)

    def fleet(self, url: str, fallback: str | None, clock: Clock, share: float | None) -> Fleet:
        """Return this process's one view of a store."""
        fleet = self._fleets.get((url, fallback, share))
        if fleet is None:
            if len(self._fleets) >= self._sweep_at:
                # Not where the last manager goes: what it has used up of the budget counts on.
                for key in [key for key, each in self._fleets.items() if each.is_unused()]:
                    del self._fleets[key]
                self._sweep_at = max(_SWEPT, 2 * len(self._fleets))
            # A signal handler or a finalizer may have made it meanwhile, on this very thread.
            store = self._stores.get(url) or self._stores.setdefault(url, open_store(url, clock))
            survive_forks(store)
            spare, host = open_fallback(fallback, clock) if fallback is not None else (None, "")
            if spare is not None:
                survive_forks(spare)
            fleet = self._fleets.setdefault((url, fallback, share), Fleet(store, clock, share, spare, host))
        return fleet


class _Shared:
    """The managers of :meth:`TokenManager.shared`: those that are in use, and the last ones that were."""

    def __init__(self) -> None:
        # By the hash of what they were made of, which each has itself: it may refer to its manager, and so must not
        # be referred to from here.
        self._known: dict[int, list[weakref.ref[TokenManager]]] = {}
        self._recent: dict[TokenManager, None] = {}
        self._sweep_at = _SWEPT

    def __len__(self) -> int:
        return sum(len(refs) for refs in self._known.values())

    def find(self, key: tuple[object, ...]) -> TokenManager | None:
        """Return the manager that was made of *key*, if there is one."""
        for manager in self._alike(key):
            if manager.shared_key == key:
                self._keep(manager)
                return manager
        return None

    def add(self, key: tuple[object, ...], manager: TokenManager) -> None:
        """Let *manager* be the one that was made of *key*."""
        if len(self._known) >= self._sweep_at:
            known = {each: [ref for ref in refs if ref() is not None] for each, refs in self._known.items()}
            self._known = {each: refs for each, refs in known.items() if refs}
            self._sweep_at = max(_SWEPT, 2 * len(self._known))
        manager.shared_key = key
        others = [each for each in self._alike(key) if each.shared_key != key]
        self._known[hash(key)] = [weakref.ref(each) for each in (*others, manager)]
        self._keep(manager)

    def _alike(self, key: tuple[object, ...]) -> list[TokenManager]:
        found = [ref() for ref in self._known.get(hash(key), ())]
        return [each for each in found if each is not None]

    def _keep(self, manager: TokenManager) -> None:
        self._recent.pop(manager, None)
        self._recent[manager] = None
        while len(self._recent) > KEPT:
            self._recent.pop(next(iter(self._recent)), None)


class _Process:
    """What the managers of this process share."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.managers = _Shared()
        self.names: WeakKeyDictionary[TokenManager, str] = WeakKeyDictionary()  # of those that were referred to
        self.after_fork()
        survive_forks(self)

    def after_fork(self) -> None:
        """Replace the lock: another thread may have held it."""
        self.lock = threading.RLock()

    def fleet(self, url: str, fallback: str | None, clock: Clock, share: float | None) -> Fleet:
        """Return this process's one view of a store, on this clock."""
        with self.lock:
            # On the clock itself, which the stores refer to: so they are collected together.
            stores: _Stores = vars(clock).setdefault("_pay88_stores", None) or _Stores()
            vars(clock)["_pay88_stores"] = stores
            return stores.fleet(url, fallback, clock, share)


_process = _Process()


@contextmanager
def default_clock(clock: Clock) -> Generator[None, None, None]:
    """Let the managers that are made in the block run on *clock* unless they are given one; for tests.

    Block and rest share nothing, so :meth:`TokenManager.shared` makes managers of its own in it.
    """
    kept = _process.clock, _process.managers
    _process.clock, _process.managers = clock, _Shared()
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
        client: Sends the token requests of :meth:`get_token` and :meth:`aget_token`, with its proxies, TLS settings and
            timeouts: a client of any supported library, sync or async. The manager does not close it. Without one, the
            manager makes a client of its own, over urllib3, httpx, httpx2 or aiohttp, the first that is installed.
            Clients that the manager is attached to send their token requests themselves.
        clock: For tests: a :class:`~pay88_adapters.clock.Clock` that the emulator runs on, too.

    Raises:
        ConfigurationError: The configuration cannot work.
    """

    __slots__ = ("__weakref__", "_client", "_endpoint", "_now", "_sender", "_state", "shared_key", "tasks", "threads")

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
        client: object = None,
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
        if client is not None:
            check_client(client)
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
        self._client = client
        self._sender: tuple[str, OwnSender | Sender | AsyncSender] | None = None
        self.shared_key: tuple[object, ...] | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, client: object = None) -> TokenManager:
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
            client=client,
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
        client: object = None,
    ) -> TokenManager:
        """Return the same manager for the same arguments, anywhere in the process.

        It stays the same while anything refers to it: a client that it is attached to, or a variable. Of those that
        nothing refers to, the 128 that were used last are kept. One that is made again later has the same token and
        budget, for these are the store's, but counts from zero in :meth:`stats`.

        Raises:
            ConfigurationError: The configuration cannot work.
        """
        store = hidden(store)
        listeners = _checked(listeners)
        options = (fallback_store, policy or _POLICY, retry or DEFAULT, listeners, pacing, breaker, client)
        key = (credentials, Endpoint.parse(base_url).base_url, store, options)
        try:
            hash(key)
        except TypeError as error:
            raise ConfigurationError(f"shared() cannot compare its arguments ({error}): use TokenManager()") from None
        managers = _process.managers
        with _process.lock:
            manager = managers.find(key)
        if manager is None or manager._state.closed:
            made = cls(
                credentials,
                base_url=base_url,
                store=store,
                fallback_store=fallback_store,
                policy=policy,
                retry=retry,
                listeners=listeners,
                pacing=pacing,
                breaker=breaker,
                client=client,
            )
            with _process.lock:  # others may have made it, too
                manager = managers.find(key)
                if manager is None or manager._state.closed:
                    managers.add(key, manager := made)
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

        A token request goes over the manager's *client* if it was given one. Otherwise it goes over urllib3, httpx,
        httpx2 or aiohttp, the first that is installed, without a proxy and with that library's defaults for TLS.

        Args:
            min_validity: Seconds for which the token should stay usable, such as the length of an
                upload. Where no fetch can be made, an older token is returned.

        Raises:
            CredentialsRejected: The credentials were refused, now or within ``rejection_cooldown``.
            TokenBudgetExhausted: None is left; none may be requested for ``retry_after`` seconds.
            TokenRateLimited: None is left; the service asked to wait for ``retry_after`` seconds.
            TokenEndpointUnavailable: None is left and none could be had; see ``__cause__``.
            ConfigurationError: No token lives as long as *min_validity*, the manager is closed, or its client is async.
        """
        if not min_validity:
            token, until = self._state.published
            if token is not None and self._now() < until:
                return token
        self._check_validity(min_validity)
        sender = self._standalone()
        if inspect.iscoroutinefunction(sender.post):
            raise ConfigurationError(
                f"get_token() cannot use {class_of(self._client)}: await aget_token(), or give a sync client"
            )
        return self.threads.token(cast("Sender", sender), min_validity=min_validity)

    async def aget_token(self, *, min_validity: float = 0.0) -> Token:
        """Return a token like :meth:`get_token`, on asyncio or trio, without blocking the loop."""
        if not min_validity:
            token, until = self._state.published
            if token is not None and self._now() < until:
                return token
        self._check_validity(min_validity)
        sender, runtime = self._standalone(), current_runtime()
        if inspect.iscoroutinefunction(sender.post):
            return await self.tasks.token_over(cast("AsyncSender", sender), min_validity=min_validity)
        # Only credentials need the caller's event loop; the rest is done in threads, over the manager's own client.
        carriers = (current_run(),) if self._state.rotating else ()
        return await self.tasks.token(
            lambda start: self.threads.start(start, cast("Sender", sender), runtime),
            carriers,
            min_validity=min_validity,
        )

    def activated(self) -> Activation[TokenManager]:
        """Let the calls of a context use this manager: ``with manager.activated(): …``.

        For one client and many merchants. It holds for this thread or task, and for the tasks that are
        started in it; only calls through a client with a manager attached are managed at all. A new
        thread starts without; ``contextvars.copy_context().run`` takes it along.

        ``@manager.activated()`` does the same for all that a function does, or a coroutine function. On a generator
        function it raises :class:`ConfigurationError`: its body runs after the call.
        """
        return Activation(self)

    def managing(
        self, scheme: str, host: str, port: int | None, path: str, authorization: str | None
    ) -> TokenManager | None:
        """Return the manager for a call of a client that this one is attached to; ``None`` leaves the call alone."""
        choices = CHOICES.get()  # what chosen() does, in this frame: every call comes through here
        manager = choices[-1].manager if choices else self
        if manager is None:
            return None
        if not manager._endpoint.covers(scheme, host, port, path, authorization):
            if authorization is not None and manager._endpoint.covers(scheme, host, port, path, None):
                manager._state.bypassed()
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
        """Refuse all further calls, and close the manager's own HTTP client.

        Clients that the manager was given or attached to stay open. A token request in flight finishes first.
        """
        self._state.close()
        sender = self._sender
        if sender is not None and sender[0] == fork_id() and isinstance(sender[1], OwnSender):
            sender[1].close()

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

    def __copy__(self) -> TokenManager:
        return self

    def __deepcopy__(self, memo: object) -> TokenManager:
        return self  # the same token and budget, wherever its owner is copied to

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TokenManager is not pickled: make one in each process, for example with from_env()")

    def _standalone(self) -> OwnSender | Sender | AsyncSender:
        # A forked child must not read from its parent's sockets.
        if self._sender is None or self._sender[0] != fork_id():
            sender = own_sender() if self._client is None else client_sender(self._client)
            self._sender = fork_id(), sender
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


def check_manager(manager: object) -> None:
    """Check what a client is to be attached to.

    Raises:
        ConfigurationError: It is no manager.
    """
    if not isinstance(manager, (TokenManager, _StandIn)):
        raise ConfigurationError(
            f"manager must be a TokenManager or an ActivatedManager, not {class_of(manager)}: pass"
            " TokenManager(credentials) or TokenManager.from_env()"
        )


class _StandIn:
    """Takes the place of a client's manager: calls to its base URL are those of whichever is activated, or fail."""

    def __init__(self, base_url: str) -> None:
        self._endpoint = Endpoint.parse(base_url)

    @property
    def base_url(self) -> str:
        """The checked base URL, without a slash at its end."""
        return self._endpoint.base_url

    def managing(
        self, scheme: str, host: str, port: int | None, path: str, authorization: str | None
    ) -> TokenManager | None:
        """Do what :meth:`TokenManager.managing` does.

        Raises:
            ConfigurationError: It is a call to :attr:`base_url`, and no manager of that is activated.
        """
        active = chosen(self)
        if active is None:  # unmanaged()
            return None
        if isinstance(active, TokenManager):
            manager = active.managing(scheme, host, port, path, authorization)
            if manager is not None:
                return manager
        if self._endpoint.covers(scheme, host, port, path, authorization):
            raise ConfigurationError(self._problem(active if isinstance(active, TokenManager) else None))
        return None

    def _problem(self, active: TokenManager | None) -> str:
        raise NotImplementedError


class ActivatedManager(_StandIn):
    """The manager of a client without a merchant of its own: ``attach(client, ActivatedManager())``.

    Calls to *base_url* belong to the manager that is :meth:`~TokenManager.activated` around them. Outside of that they
    raise :class:`ConfigurationError` and are not sent, so that no merchant ever pays for another. Calls in
    ``unmanaged()`` and those with a ``Bearer`` of their own pass.

    Args:
        base_url: ``SANDBOX_URL`` unless given.

    Raises:
        ConfigurationError: The URL cannot be used.
    """

    def __init__(self, base_url: str = SANDBOX_URL) -> None:
        super().__init__(base_url)

    def _problem(self, active: TokenManager | None) -> str:
        if active is not None:
            return (
                f"request not sent: the client is for {self.base_url}, the activated manager for {active.base_url};"
                " activate one for the same base URL"
            )
        return (
            f"request to {self.base_url} not sent: no manager is activated here; make it inside of"
            " `with manager.activated():`, or of unmanaged()"
        )

    def __reduce__(self) -> tuple[type[ActivatedManager], tuple[str]]:
        return ActivatedManager, (self.base_url,)

    def __repr__(self) -> str:
        return f"<ActivatedManager {self.base_url}>"


AnyManager = TokenManager | ActivatedManager
"""What a client can be attached to."""


class Missing(_StandIn):
    """Stands in for a manager that this process does not have: calls to its base URL fail, others pass."""

    def __init__(self, reference: tuple[str, str]) -> None:
        super().__init__(reference[1])
        self.reference = reference

    def _problem(self, active: TokenManager | None) -> str:
        return (
            "this client was unpickled without its TokenManager (managers hold the API key and cannot be pickled):"
            " make a TokenManager in this process and attach() it"
        )


def reference(manager: TokenManager | _StandIn) -> tuple[str, str] | ActivatedManager:
    """Return what :func:`find` finds *manager* by, in this process and in those forked from it."""
    if isinstance(manager, Missing):
        return manager.reference
    if isinstance(manager, ActivatedManager):
        return manager
    assert isinstance(manager, TokenManager)
    name = _process.names.setdefault(manager, os.urandom(16).hex())
    return name, manager.base_url


def find(reference: tuple[str, str] | ActivatedManager) -> TokenManager | ActivatedManager | Missing:
    """Return the manager that *reference* was made for, or what stands in for it in another process."""
    if isinstance(reference, ActivatedManager):
        return reference
    name, _ = reference
    return next((manager for manager, known in list(_process.names.items()) if known == name), Missing(reference))
