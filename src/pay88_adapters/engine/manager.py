"""The manager, which all HTTP client libraries, threads and tasks share."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import NoReturn, cast

from pay88_adapters.core.arguments import check_type, checked_environ, checked_listeners, class_of, is_number, shown
from pay88_adapters.core.breaker import BreakerPolicy
from pay88_adapters.core.endpoint import SANDBOX_URL, Endpoint, url_from_env
from pay88_adapters.core.errors import ConfigurationError
from pay88_adapters.core.events import Listener
from pay88_adapters.core.policy import LIFETIME, TokenPolicy
from pay88_adapters.core.retry import DEFAULT, RetryPolicy
from pay88_adapters.core.secret import as_secret
from pay88_adapters.core.token import Token
from pay88_adapters.stores import MEMORY, checked_fallback

from .async_runner import AsyncRunner
from .calls import AsyncSender, Sender
from .clock import Clock
from .credentials import Credentials, CredentialsSource
from .current_runtime import current_run, current_runtime
from .fetches import Fetches
from .forks import at_fork, fork_id, survive_forks
from .overrides import OVERRIDES, Activation
from .registry import Process
from .runner import dependencies
from .settings import Settings, checked_endpoint, request_limits_for, shared_settings
from .standalone import OwnSender, check_client, client_sender, own_sender
from .state import ManagerState
from .stats import Stats
from .sync_runner import SyncRunner

_overrides = OVERRIDES.get  # looked up once
_POLICY = TokenPolicy()  # one for all managers
PROCESS: Process[TokenManager] = Process()


class TokenManager:
    """Fetch, cache and refresh access tokens of one merchant. Thread-safe and async-safe.

    Args:
        credentials: Credentials, or a credentials provider: a callable, sync or async, that returns them. It is
            called for each fetch. A sync provider runs on the event loop's thread if the request that fetches is async.
        base_url: Base URL of 88Pay; ``SANDBOX_URL`` unless given.
        store: URL of the shared store. Managers with the same store share the token, the refresh lease and the token
            budget. ``memory://`` is *per process*: each process has its own token and budget, although 88Pay counts
            them together. ``sqlite:////absolute/path`` is for the processes of one host, ``redis://host:port`` for
            several hosts.
        fallback_store: A file, ``sqlite:////absolute/path``, that the processes of this host share while *store* is
            unavailable. Without one, each process has its own share of the token budget in degraded mode.
        policy: When tokens are refreshed, and the token budget.
        retry: Retry policy of API requests; ``RetryPolicy()`` unless given, ``RetryPolicy.none()`` for no retries.
        pacing: Client-side rate limiting. Keeps API requests within the limits that 88Pay documents: 60 per minute and
            1,000 per hour for ``/api/transactions/…``, and the same for ``/api/balance``. A request waits at most
            ``max_wait`` seconds, then it fails with :class:`RequestBudgetExhausted`.
        breaker: Circuit breaker. After repeated failures, requests fail fast with :class:`CircuitOpen`.
        listeners: Called with each :class:`~pay88_adapters.events.Event`.
        client: Sends the token requests of :meth:`get_token` and :meth:`aget_token`, with its proxies, TLS settings and
            timeouts: a client of any supported library, sync or async. The manager does not close it. Without one, the
            manager creates a client over the first installed library of urllib3, httpx, httpx2 and aiohttp. Clients
            that the manager is attached to send their own token requests.
        clock: For tests: a :class:`~pay88_adapters.clock.Clock` to share with the emulator.

    Raises:
        ConfigurationError: The configuration is invalid.
    """

    __slots__ = (
        "__weakref__",
        "_client",
        "_endpoint",
        "_has_own_clock",
        "_sender",
        "_state",
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
        store = MEMORY if store == MEMORY else as_secret(store)  # its URL may hold a password
        endpoint = checked_endpoint(store, base_url, credentials)
        for name, value, kind in (
            ("policy", policy, TokenPolicy),
            ("retry", retry, RetryPolicy),
            ("clock", clock, Clock),
        ):
            check_type(name, value, kind)
        if client is not None:
            check_client(client)
        self._endpoint = endpoint
        fallback_store = checked_fallback(store, fallback_store)
        policy, running = policy or _POLICY, clock or PROCESS.clock
        store_client = PROCESS.store_client(store, fallback_store, running, policy.fallback_share)
        request_limits = request_limits_for(store_client, endpoint, pacing, breaker)
        rotating = not isinstance(credentials, Credentials)
        settings = shared_settings(endpoint, policy, running, store_client, rotating, retry or DEFAULT, request_limits)
        self._start(settings, checked_listeners(listeners), credentials)
        self._has_own_clock = clock is not None
        at_fork(self, _start_over)
        self._client = client
        self._sender: tuple[str, OwnSender | Sender | AsyncSender] | None = None
        self.shared_key: tuple[object, ...] | None = None

    def _start(self, settings: Settings, listeners: Sequence[Listener], credentials: CredentialsSource) -> None:
        state = ManagerState(settings, listeners)
        settings.store_client.open(self)
        if isinstance(credentials, Credentials):
            state.merchant_id = credentials.merchant_id
        fetches = Fetches(state, credentials)
        self._resume(state, SyncRunner(fetches), AsyncRunner(fetches))

    def _start_anew(self, clock: Clock) -> tuple[ManagerState, SyncRunner, AsyncRunner]:
        """Reset the state, and run on *clock*; return the argument of :meth:`_resume`."""
        fetches = self.sync_runner.fetches
        survive_forks(fetches)  # which may not be those of this manager then
        before = self._state, self.sync_runner, self.async_runner
        if not self._state.closed:
            settings = self._state.settings
            store_client = PROCESS.store_client_like(settings.store_client, settings.clock, clock)
            self._start(settings.on(clock, store_client), self._state.listeners.given, fetches.source)
        return before

    def _resume(self, state: ManagerState, sync_runner: SyncRunner, async_runner: AsyncRunner) -> None:
        self._state, self.sync_runner, self.async_runner = state, sync_runner, async_runner

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        policy: TokenPolicy | None = None,
        retry: RetryPolicy | None = None,
        listeners: Iterable[Listener] = (),
        pacing: bool = False,
        breaker: BreakerPolicy | None = None,
        client: object = None,
    ) -> TokenManager:
        """Configure from ``PAY88_API_KEY``, ``PAY88_MERCHANT_ID``, ``PAY88_ENVIRONMENT``,
        ``PAY88_BASE_URL``, ``PAY88_STORE`` and ``PAY88_FALLBACK_STORE``.

        Args:
            environ: The variables; ``os.environ`` unless given.
            policy, retry, listeners, pacing, breaker, client: As for :class:`TokenManager`.

        Raises:
            ConfigurationError: A variable is missing or invalid, or an argument is invalid.
        """
        environ = checked_environ(os.environ if environ is None else environ)
        return cls(
            Credentials.from_env(environ),
            base_url=url_from_env(environ),
            store=environ.get("PAY88_STORE") or MEMORY,
            fallback_store=environ.get("PAY88_FALLBACK_STORE") or None,
            policy=policy,
            retry=retry,
            listeners=listeners,
            pacing=pacing,
            breaker=breaker,
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

        It stays the same while it is referenced: by a client that it is attached to, or by a variable. The 128 most
        recently used unreferenced managers are kept. A manager that is created again later has the same token and
        budget, which are in the store, but its :meth:`stats` start from zero.

        Raises:
            ConfigurationError: The configuration is invalid.
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
            with PROCESS.lock:  # another thread may have made it, too
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
        """Merchant id of the last credentials; empty before the first fetch of a credentials provider."""
        return self._state.merchant_id

    @property
    def retry(self) -> RetryPolicy:
        """Retry policy of API requests."""
        return self._state.settings.retry

    def get_token(self, *, min_validity: float = 0.0) -> Token:
        """Return a valid token, fetching one if necessary.

        Thread-safe. On a thread with a running event loop it blocks that loop: use :meth:`aget_token` there.

        A token request is sent over the manager's *client*, if given. Otherwise it is sent over the first installed
        library of urllib3, httpx, httpx2 and aiohttp, without a proxy and with that library's TLS defaults.

        Args:
            min_validity: Seconds for which the token should stay usable, such as the duration of an upload. If no token
                can be fetched, an older one is returned.

        Raises:
            CredentialsRejected: 88Pay rejected the credentials, now or within ``rejection_cooldown``.
            TokenBudgetExhausted: No valid token, and the token budget is exhausted for ``retry_after`` seconds.
            TokenRateLimited: No valid token, and 88Pay returned 429: no token request for ``retry_after`` seconds.
            TokenEndpointUnavailable: No valid token, and none could be fetched; see ``__cause__``.
            ConfigurationError: *min_validity* is not a number or exceeds any lifetime, the manager is closed, or its
                client is async.
        """
        if min_validity == 0.0:  # not by its truth: None and "" are none
            state = self._state
            read_clock = state.now  # called as a local variable, which costs less
            token, until = state.current
            if token is not None and read_clock() < until:
                return token
        self._check_validity(min_validity)
        sender = self._standalone()
        if inspect.iscoroutinefunction(sender.post):
            raise ConfigurationError(
                f"get_token() cannot use {class_of(self._client)}: await aget_token(), or pass a sync client"
            )
        return self.sync_runner.token(cast("Sender", sender), min_validity=min_validity)

    async def aget_token(self, *, min_validity: float = 0.0) -> Token:
        """Return a token like :meth:`get_token`, on asyncio or trio, without blocking the event loop."""
        if min_validity == 0.0:
            state = self._state
            read_clock = state.now  # called as a local variable, which costs less
            token, until = state.current
            if token is not None and read_clock() < until:
                return token
        self._check_validity(min_validity)
        sender, runtime = self._standalone(), current_runtime()
        if inspect.iscoroutinefunction(sender.post):
            return await self.async_runner.token_over(cast("AsyncSender", sender), min_validity=min_validity)
        # Only credentials need the caller's event loop; the rest is done in threads, over the manager's own client.
        run = (current_run(),) if self._state.settings.rotating else ()
        return await self.async_runner.token(
            lambda start: self.sync_runner.start(cast("Sender", sender), start, runtime),
            (*dependencies(sender), *run),
            min_validity=min_validity,
        )

    def activated(self) -> Activation[TokenManager]:
        """Use this manager in the current context: ``with manager.activated(): …``.

        For one client and many merchants. It affects this thread or task, and the tasks that are started in it. Only
        requests through a client with a manager attached are managed at all. A new thread starts without it;
        ``contextvars.copy_context().run`` copies it.

        ``@manager.activated()`` does the same for a function or a coroutine function. On a generator function it raises
        :class:`ConfigurationError`, because its body runs after the call.
        """
        return Activation(self)

    def for_request(
        self, scheme: str, host: str, port: int | None, path: str, authorization: str | None
    ) -> TokenManager | None:
        """Return the manager for a request of a client that this one is attached to; ``None`` to bypass it."""
        overrides = _overrides()  # what current_manager() does, in this frame: every call comes through here
        manager = overrides[-1].manager if overrides else self
        if manager is None:
            return None
        endpoint = manager._endpoint
        if (  # nearly always; covers() would return the same, and costs another call
            host == endpoint.host
            and port == endpoint.port
            and scheme == endpoint.scheme
            and authorization is None
            and endpoint.token_path not in path
        ):
            return manager
        if endpoint.covers(scheme, host, port, path, authorization):
            return manager
        if authorization is not None and endpoint.covers(scheme, host, port, path, None):
            manager._state.record_bypass()
        return None

    def invalidate(self, token: Token) -> None:
        """Discard *token* if it is the cached one, so that the next request fetches a new one.

        Raises:
            ConfigurationError: *token* is not a :class:`Token`.
        """
        check_type("token", token, Token, required=True)
        self._state.drop(token)

    def stats(self) -> Stats:
        """Return the counters so far, and the remaining token budget."""
        state = self._state
        return Stats(
            **asdict(state.counters),
            **asdict(state.request_counters),
            budget_left=state.settings.budget.left(state.merchant_id),
            fetching=self.sync_runner.fetches.is_fetching,
            token_expires_in=state.expires_in(),
            circuits_open=state.settings.request_limits.circuit_states() if state.settings.request_limits else {},
            store_degraded=state.settings.store_client.degraded,
        )

    def listen(self, listener: Listener) -> None:
        """Call *listener* with each event from now on, like those in ``listeners=[…]``.

        Raises:
            ConfigurationError: *listener* is not callable.
        """
        self._state.listen(*checked_listeners([listener]))

    def close(self) -> None:
        """Reject all further requests, and close the manager's own HTTP client.

        Clients that the manager is attached to, and its *client*, stay open. A token request in flight finishes first.

        The last manager of this process with a shared store gives the share of the process for degraded mode back,
        which may block for one store operation: on an event loop use :meth:`aclose`.
        """
        if (give_back := self._close()) is not None:
            give_back()

    def _close(self) -> Callable[[], None] | None:
        """Close the manager; return what gives the share of the process back, if any."""
        self._state.close()
        sender = self._sender
        if sender is not None and sender[0] == fork_id() and isinstance(sender[1], OwnSender):
            sender[1].close()
        return self._state.settings.store_client.close(self)

    async def aclose(self) -> None:
        """Do the same as :meth:`close`, without blocking the event loop."""
        if (give_back := self._close()) is not None:
            await self.async_runner.run_store_operation(give_back)

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
        await self.aclose()

    def __repr__(self) -> str:
        return f"<TokenManager {self.base_url}{' (closed)' if self._state.closed else ''}>"

    def __copy__(self) -> TokenManager:
        return self

    def __deepcopy__(self, memo: object) -> TokenManager:
        return self  # the same token and budget, wherever its owner is copied to

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TokenManager cannot be pickled: create one in each process, for example with from_env()")

    def _standalone(self) -> OwnSender | Sender | AsyncSender:
        # A forked child must not read from its parent's sockets.
        if self._sender is None or self._sender[0] != fork_id():
            sender = own_sender() if self._client is None else client_sender(self._client)
            self._sender = fork_id(), sender
        return self._sender[1]

    def _check_validity(self, min_validity: float) -> None:
        if min_validity == 0.0:
            return
        longest = LIFETIME - self._state.settings.policy.expiry_skew
        if not is_number(min_validity):
            raise ConfigurationError(f"min_validity must be a number of seconds, not {class_of(min_validity)}")
        if not 0 <= min_validity <= longest:  # false for NaN, too
            raise ConfigurationError(
                f"min_validity is {shown(min_validity)}: it must be between 0 and {longest:g} seconds"
            )


def _start_over(manager: TokenManager) -> None:
    """Continue in a forked child."""
    manager.sync_runner.fetches.after_fork()
