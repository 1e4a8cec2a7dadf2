"""The one object that all HTTP client libraries, threads and tasks share."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import NoReturn, cast

from pay88_adapters.core.arguments import check_type, checked_listeners, class_of
from pay88_adapters.core.breaker import BreakerPolicy
from pay88_adapters.core.endpoint import SANDBOX_URL, Endpoint, url_from_env
from pay88_adapters.core.errors import ConfigurationError
from pay88_adapters.core.events import Listener
from pay88_adapters.core.policy import LIFETIME, TokenPolicy
from pay88_adapters.core.retry import DEFAULT, RetryPolicy
from pay88_adapters.core.secret import RedactedMapping, as_secret
from pay88_adapters.core.token import Token
from pay88_adapters.stores import MEMORY, checked_fallback

from .async_runner import AsyncRunner
from .calls import AsyncSender, Sender
from .clock import Clock
from .credentials import Credentials, CredentialsSource
from .current_runtime import current_run, current_runtime
from .fetches import Fetches
from .forks import fork_id
from .overrides import OVERRIDES, Activation
from .registry import Process
from .settings import Settings, checked_endpoint, request_limits_for
from .standalone import OwnSender, check_client, client_sender, own_sender
from .state import ManagerState
from .stats import Stats
from .sync_runner import SyncRunner

_POLICY = TokenPolicy()  # one for all managers
PROCESS: Process[TokenManager] = Process()


class TokenManager:
    """Gets, shares and replaces the tokens of one merchant, for threads and tasks alike.

    Args:
        credentials: Or a callable, sync or async, that returns them; it is asked at each fetch. A sync
            one is called on the event loop's thread where the call that leads is async.
        base_url: ``SANDBOX_URL`` unless given.
        store: Where managers meet: those with the same store share the token and the budget.
            ``memory://`` is *per process*: each process has a token and a budget of its own, though the
            service counts them together. ``sqlite:////absolute/path`` is for the processes of one host,
            ``redis://host:port`` for several hosts.
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

    __slots__ = (
        "__weakref__",
        "_client",
        "_credentials",
        "_endpoint",
        "_now",
        "_sender",
        "_state",
        "_stores",
        "async_runner",
        "shared_key",
        "sync_runner",
    )

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
        store = as_secret(store)  # its URL may hold a password
        endpoint = checked_endpoint(store, base_url, credentials)
        for name, value, kind in (("policy", policy, TokenPolicy), ("retry", retry, RetryPolicy)):
            check_type(name, value, kind)
        if client is not None:
            check_client(client)
        self._endpoint = endpoint
        self._credentials = credentials
        self._stores = store, checked_fallback(store, fallback_store)
        policy, running = policy or _POLICY, clock or PROCESS.clock
        store_client = PROCESS.store_client(*self._stores, running, policy.fallback_share)
        request_limits = request_limits_for(store_client, endpoint, pacing, breaker)
        rotating = not isinstance(credentials, Credentials)
        settings = Settings(endpoint, policy, running, store_client, rotating, retry or DEFAULT, request_limits)
        self._start(settings, checked_listeners(listeners))
        if clock is None:
            with PROCESS.lock:
                PROCESS.made.add(self)
        self._client = client
        self._sender: tuple[str, OwnSender | Sender | AsyncSender] | None = None
        self.shared_key: tuple[object, ...] | None = None

    def _start(self, settings: Settings, listeners: Sequence[Listener]) -> None:
        state = ManagerState(settings, listeners)
        if isinstance(self._credentials, Credentials):
            state.merchant_id = self._credentials.merchant_id
        fetches = Fetches(state)
        self._resume(state, SyncRunner(fetches, self._credentials), AsyncRunner(fetches, self._credentials))

    def _start_anew(self, clock: Clock) -> tuple[ManagerState, SyncRunner, AsyncRunner]:
        """Forget what has happened so far, and run on *clock*; return what :meth:`_resume` takes."""
        before = self._state, self.sync_runner, self.async_runner
        if not self._state.closed:
            settings = self._state.settings
            store_client = PROCESS.store_client(*self._stores, clock, settings.policy.fallback_share)
            self._start(settings.on(clock, store_client), self._state.events.listeners)
        return before

    def _resume(self, state: ManagerState, sync_runner: SyncRunner, async_runner: AsyncRunner) -> None:
        self._state, self._now = state, state.now
        self.sync_runner, self.async_runner = sync_runner, async_runner

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, client: object = None) -> TokenManager:
        """Configure from ``PAY88_API_KEY``, ``PAY88_MERCHANT_ID``, ``PAY88_ENVIRONMENT``,
        ``PAY88_BASE_URL``, ``PAY88_STORE`` and ``PAY88_FALLBACK_STORE``.

        Raises:
            ConfigurationError: A variable is missing or cannot be used.
        """
        environ = RedactedMapping(os.environ if environ is None else environ)
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
        store = as_secret(store)
        listeners = checked_listeners(listeners)
        options = (fallback_store, policy or _POLICY, retry or DEFAULT, listeners, pacing, breaker, client)
        key = (credentials, Endpoint.parse(base_url).base_url, store, options)
        try:
            hash(key)
        except TypeError as error:
            raise ConfigurationError(f"shared() cannot compare its arguments ({error}): use TokenManager()") from None
        managers = PROCESS.managers
        with PROCESS.lock:
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
            with PROCESS.lock:  # others may have made it, too
                manager = managers.find(key)
                if manager is None or manager._state.closed:
                    managers.add(key, manager := made)
        return manager

    @property
    def base_url(self) -> str:
        """The checked base URL, without a slash at its end."""
        return self._state.settings.endpoint.base_url

    @property
    def merchant_id(self) -> str:
        """Of the credentials seen last; empty before the first fetch of a credentials callable."""
        return self._state.merchant_id

    @property
    def retry(self) -> RetryPolicy:
        """When a call is sent again."""
        return self._state.settings.retry

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
            token, until = self._state.fast_path
            if token is not None and self._now() < until:
                return token
        self._check_validity(min_validity)
        sender = self._standalone()
        if inspect.iscoroutinefunction(sender.post):
            raise ConfigurationError(
                f"get_token() cannot use {class_of(self._client)}: await aget_token(), or give a sync client"
            )
        return self.sync_runner.token(cast("Sender", sender), min_validity=min_validity)

    async def aget_token(self, *, min_validity: float = 0.0) -> Token:
        """Return a token like :meth:`get_token`, on asyncio or trio, without blocking the loop."""
        if not min_validity:
            token, until = self._state.fast_path
            if token is not None and self._now() < until:
                return token
        self._check_validity(min_validity)
        sender, runtime = self._standalone(), current_runtime()
        if inspect.iscoroutinefunction(sender.post):
            return await self.async_runner.token_over(cast("AsyncSender", sender), min_validity=min_validity)
        # Only credentials need the caller's event loop; the rest is done in threads, over the manager's own client.
        carriers = (current_run(),) if self._state.settings.rotating else ()
        return await self.async_runner.token(
            lambda start: self.sync_runner.start(cast("Sender", sender), start, runtime),
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

    def for_request(
        self, scheme: str, host: str, port: int | None, path: str, authorization: str | None
    ) -> TokenManager | None:
        """Return the manager for a call of a client that this one is attached to; ``None`` leaves the call alone."""
        overrides = OVERRIDES.get()  # what current_manager() does, in this frame: every call comes through here
        manager = overrides[-1].manager if overrides else self
        if manager is None:
            return None
        if not manager._endpoint.covers(scheme, host, port, path, authorization):
            if authorization is not None and manager._endpoint.covers(scheme, host, port, path, None):
                manager._state.record_bypass()
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
            budget_left=state.settings.budget.left(state.merchant_id),
            fetching=self.sync_runner.fetches.is_fetching,
            token_expires_in=state.expires_in(),
            circuits_open=state.settings.request_limits.circuit_states() if state.settings.request_limits else {},
            store_degraded=state.settings.store_client.degraded,
        )

    def listen(self, listener: Listener) -> None:
        """Call *listener* with each event from now on, as if it had been in ``listeners=[…]``.

        Raises:
            ConfigurationError: It is not callable.
        """
        self._state.listen(*checked_listeners([listener]))

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
        longest = LIFETIME - self._state.settings.policy.expiry_skew
        if not 0 <= min_validity <= longest:
            raise ConfigurationError(f"min_validity is {min_validity}: it must be between 0 and {longest:g} seconds")


def manager_id(manager: TokenManager) -> str:
    """Return a name by which :func:`find_manager` finds *manager*, in this process and in those forked from it."""
    return PROCESS.names.setdefault(manager, os.urandom(16).hex())


def find_manager(name: str) -> TokenManager | None:
    """Return the manager that has this name, if it is in this process."""
    return next((manager for manager, known in list(PROCESS.names.items()) if known == name), None)
