"""The lifecycle of fetches and leases: each ends exactly once, whatever detects its end (rules 4, 16 and 17)."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pay88_adapters.core.errors import ClientClosed, Failure, NoFreeConnection, TokenEndpointUnavailable, in_seconds
from pay88_adapters.core.events import Event
from pay88_adapters.core.failures import NO_CONNECTION
from pay88_adapters.core.machine import TokenMachine
from pay88_adapters.core.secret import clear_traceback_locals
from pay88_adapters.core.wire import network_failure, unexpected_failure
from pay88_adapters.stores.base import LeaseResult
from pay88_adapters.stores.realtime import monotonic

from .credentials import Credentials, CredentialsSource
from .forks import fork_id
from .runtimes import AsyncRuntime, never
from .state import ManagerState
from .store_client import NO_LEASE
from .threads import NoThread, Worker, finish_at_exit, forget_finisher


class Lease(NamedTuple):
    """The exclusive right to replace the record of *credentials* in the store."""

    credentials: Credentials
    key: str
    """Key of the record."""
    fencing_token: int
    acquired_at: float
    """When the store granted it, in seconds on the manager's clock."""
    until: float
    """When it expires at the earliest, in seconds on the manager's clock."""


@dataclass(slots=True, eq=False)
class FetchRun:
    """One fetch, from its start until its outcome is in the store."""

    ticket: int
    blocked_thread: int | None = None
    """The thread that its caller blocks while it waits, if any, with any event loop on it."""
    worker: Worker | None = None
    """The thread that runs it; ``None`` for a task."""
    loop: AsyncRuntime | None = None
    """The event loop without which it does not continue, if any."""
    dependencies: tuple[object, ...] = ()
    """Its client, unless that is the manager's own."""
    is_dead: Callable[[], bool] = never
    """Whether its event loop, thread or client has ended or stopped, as far as another thread can detect."""
    doing: str = ""
    """The current step that may hang, if any, for error messages."""
    since: float = 0.0
    """When that step began, in real seconds."""
    leases: list[Lease] = field(default_factory=list["Lease"])
    """Its lease, from the store's grant until the outcome is on the way into the store: the one that takes it from here
    publishes the outcome."""
    events: list[Event] = field(default_factory=list["Event"])
    """What has happened in it, until the listeners are called."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What its errors must not contain, whatever its client raises."""
    death: Failure | None = None
    """The error for a fetch whose thread, event loop or client ended before it."""
    no_connection: Failure | None = None
    """The error for a fetch whose client had no free connection."""


# The fetches of this process, of all managers.
_running: dict[tuple[int, int], tuple[weakref.ref[Fetches], FetchRun]] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)


class Fetches:
    """The unfinished fetches of one manager, and their leases.

    Args:
        state: The state of the manager.
        source: Credentials, or a credentials provider.
    """

    __slots__ = ("__weakref__", "_runs", "_seen_key", "_seen_version", "source", "state")

    def __init__(self, state: ManagerState, source: CredentialsSource) -> None:
        self.state = state
        self.source = source
        self._runs: tuple[FetchRun, ...] = ()  # never changed, only replaced, so that reading needs no lock
        self._seen_key, self._seen_version = "", 0  # of the last record read or published; the lock keeps them together

    def after_fork(self) -> None:
        """Continue without the parent's threads and event loops. The manager calls it."""
        self.state.after_fork()
        for run in self._runs:
            run.leases.clear()  # the parent's
        self._runs = ()

    @property
    def is_fetching(self) -> bool:
        """Whether a fetch runs or its outcome is on the way into the store. Takes no lock."""
        runs = self._runs
        return any(not run.is_dead() for run in runs) or bool(self.state.pending - {run.ticket for run in runs})

    # --- beginning and end

    def begin(self, run: FetchRun) -> None:
        """Record that *run* is about to start."""
        finish_at_exit(self)
        self._replace_runs(lambda runs: (*runs, run))
        _running[id(self), run.ticket] = weakref.ref(self), run

    @contextmanager
    def dependent_on(self, run: FetchRun, loop: AsyncRuntime) -> Generator[None, None, None]:
        """Record that *run*, in a thread, waits for *loop* in the block. Calls that block that loop stop waiting."""
        run.loop = loop
        self.state.wake_threads()
        try:
            yield
        finally:
            run.loop = None

    def end(self, run: FetchRun) -> None:
        """Record the end of *run*, and release its lease, if any. Further calls do nothing."""
        if not run.leases:
            self._forget(run)
        elif not self.state.settings.store_client.blocking or run.worker is threading.current_thread():
            self.publish(run)
            self._forget(run)
        else:
            self._publish_in_background(run)

    def _publish_in_background(self, run: FetchRun) -> None:
        def publish() -> None:
            self.publish(run)
            self._forget(run)

        try:
            Worker(publish, "pay88-lease", finishes=True).start()
        except NoThread:  # the lease expires
            self._forget(run)

    def _forget(self, run: FetchRun) -> None:
        self._replace_runs(lambda runs: tuple(each for each in runs if each is not run))
        _running.pop((id(self), run.ticket), None)
        if not self._runs:
            forget_finisher(self)

    def _replace_runs(self, change: Callable[[tuple[FetchRun, ...]], tuple[FetchRun, ...]]) -> None:
        while True:
            runs = self._runs
            changed = change(runs)
            with self.state.lock:  # no call in this block: a signal handler there would wait while this holds the lock
                if self._runs is runs:  # nothing else has replaced them
                    self._runs = changed
                    return

    def abandon(self, run: FetchRun, cause: BaseException) -> None:
        """Record that *run* could not be completed, which is no failure of the service (rule 16).

        Its thread, event loop or client has ended, or the pool of its client was full. Another one starts the next.
        """
        if run not in self._runs:
            return
        state = self.state
        clear_traceback_locals(cause)
        if isinstance(cause, NoFreeConnection):
            run.no_connection = replace(NO_CONNECTION, cause=cause)
            state.settings.lifetimes.pool_was_full(run.dependencies, state.now(), state.settings.policy)
        else:
            run.death = _death(cause, *run.secrets)

        def act(machine: TokenMachine, now: float) -> None:
            failure = machine.on_fetch_abandoned(run.ticket, now)
            if failure is not None:
                state.record_failure(failure, now)

        state.transition(act, run.events)
        self.end(run)
        self.report(run)

    def report(self, run: FetchRun) -> None:
        """Call the listeners with what has happened in *run*, each time once."""
        events = run.events[:]
        del run.events[: len(events)]
        self.state.listeners.dispatch_safely(events)

    def at_exit(self) -> None:
        """Release the remaining leases: the process ends."""
        for run in self._runs:
            self.publish(run)

    # --- fetches that end without an event

    def interrupt_overdue(self) -> None:
        """Interrupt the threads of overdue fetches: a server may send single bytes without end."""
        overdue = self.state.take_overdue()
        for run in self._runs:
            if run.ticket in overdue and run.worker is not None and self._hangs(run):
                run.worker.interrupt()

    def stuck(self, timeout: float) -> Failure | None:
        """Return why no other fetch can be started in a thread: an earlier one still hangs in its own.

        Args:
            timeout: Real seconds that the interrupted thread gets to end.
        """
        for run in self._runs:
            worker = run.worker
            if worker is None or run.ticket in self.state.pending or not self._hangs(run):
                continue
            worker.interrupt()
            worker.join(timeout)
            if worker.is_alive() and run.doing:
                worker.finishes = False
                return Failure(
                    TokenEndpointUnavailable,
                    f"the {run.doing} has been blocking for {in_seconds(monotonic() - run.since)}, and no other fetch"
                    " can start; request not sent: give it a timeout",
                    retryable=True,
                )
        return None

    def _hangs(self, run: FetchRun) -> bool:
        # In real seconds: a fake clock does not measure threads.
        return bool(run.doing) and monotonic() - run.since >= self.state.settings.clock.real(
            self.state.settings.policy.fetch_timeout
        )

    def on_another_loop(self) -> bool:
        """Whether the event loop of another thread runs a fetch: it may stop without an event."""
        here = threading.get_ident()
        loops = [run.loop for run in self._runs]
        return any(loop is not None and not loop.is_on(here) for loop in loops)

    def needs_this_thread(self) -> bool:
        """Whether a fetch needs an event loop of this thread, so that a call that blocks here would block it.

        A fetch of another manager counts, too, if it may hold the lease that a fetch of this manager waits for.
        """
        return any(
            fetches is self or (run.worker is None and fetches._may_share_lease(self))
            for fetches, run in _needing(threading.get_ident())
        )

    def _may_share_lease(self, other: Fetches) -> bool:
        mine, its = self.state.settings, other.state.settings
        return (
            mine.endpoint.base_url == its.endpoint.base_url
            and mine.store_client.may_share(its.store_client)
            # The next credentials of a provider are not known.
            and (mine.rotating or its.rotating or self.state.merchant_id == other.state.merchant_id)
        )

    def _holder_is_blocked(self, run: FetchRun, key: str) -> bool:
        """Whether the caller of *run* blocks a task that holds the lease of *key*, or interrupts a thread that may."""
        thread, access, now = run.blocked_thread, self.state.settings.store_client, self.state.now()
        if thread is None:
            return False
        return any(fetches._may_share_lease(self) for fetches in _in_thread(thread)) or any(
            lease.key == key and now < lease.until and fetches.state.settings.store_client.may_share(access)
            for fetches, each in _needing(thread)
            for lease in list(each.leases)
        )

    def on_this_thread(self) -> bool:
        """Whether this code interrupts what a fetch needs (as a finalizer does), and cannot wait for it."""
        here = threading.current_thread()
        return any(run.worker is here for run in self._runs) or self.state.settings.store_client.runs_here

    # --- leases

    def try_acquire_lease(self, run: FetchRun, credentials: Credentials) -> LeaseResult:
        """Try to acquire the lease (rule 4). May block.

        A fetch does not wait for a holder that its caller blocks: it continues without the lease.
        """
        state, policy = self.state, self.state.settings.policy
        key = state.record_key(credentials)
        lease = policy.extended_lease_duration if run.leases else policy.lease_duration
        asked_at = state.now()
        owner = f"{fork_id()}-{id(self):x}"  # unique: what runs a fetch refers to this object
        with state.lock:
            known_version = self._seen_version if self._seen_key == key else 0
        result = state.settings.store_client.try_acquire_lease(
            key, owner=owner, known_version=known_version, lease=lease
        )
        if result.record is not None:
            self._record_seen(key, result.record.version)
        if result.fencing_token:
            run.leases[:] = [Lease(credentials, key, result.fencing_token, state.now(), asked_at + lease)]
            if run not in self._runs:  # the fetch has ended in the meantime
                self.publish(run)
            return result
        run.leases.clear()  # an earlier one was too short: the fetch continues without it
        if result.record is None and result.fencing_token is None and self._holder_is_blocked(run, key):
            return LeaseResult(fencing_token=NO_LEASE)
        return result

    def lease_lasts(self, run: FetchRun, seconds: float) -> bool:
        """Whether the lease of *run*, if any, lasts for *seconds* more."""
        until = self.state.now() + seconds
        return all(until <= lease.until for lease in list(run.leases))

    def publish(self, run: FetchRun) -> None:
        """Publish the current snapshot and release the lease. Only the first call has an effect. May block."""
        try:
            lease = run.leases.pop()
        except IndexError:  # without a lease, or published before
            return
        state, key = self.state, lease.key
        snapshot, now = state.snapshot(lease.credentials)
        if state.settings.store_client.publish(
            key, fencing_token=lease.fencing_token, snapshot=snapshot, now=now, write_delay=now - lease.acquired_at
        ):
            self._record_seen(key, lease.fencing_token)

    def _record_seen(self, key: str, version: int) -> None:
        with self.state.lock:
            self._seen_key, self._seen_version = key, version


def _death(cause: BaseException, *secrets: str) -> Failure:
    if not isinstance(cause, (Exception, asyncio.CancelledError)):  # such as a test double's
        return unexpected_failure(cause, *secrets)
    if not isinstance(cause, ClientClosed):
        return network_failure(cause, *secrets)
    return Failure(
        TokenEndpointUnavailable,
        f"{cause}; request not sent: retry with an open client",
        retryable=True,
        cause=cause,
    )


def _needing(thread: int) -> list[tuple[Fetches, FetchRun]]:
    """Return the living fetches that need an event loop of *thread*."""
    return [
        (fetches, run)
        for reference, run in list(_running.values())
        if (loop := run.loop) is not None
        and loop.is_on(thread)
        and not run.is_dead()
        and (fetches := reference()) is not None
    ]


def _in_thread(thread: int) -> list[Fetches]:
    """Return the managers' fetches of which one runs in *thread*: a finalizer may interrupt it there."""
    return [
        fetches
        for reference, run in list(_running.values())
        if run.worker is not None and run.worker.ident == thread and (fetches := reference()) is not None
    ]


def sweep() -> None:
    """End the fetches whose event loop has stopped or was closed."""
    for reference, run in list(_running.values()):
        fetches = reference()
        if fetches is not None and run.is_dead():
            fetches.abandon(run, ClientClosed("the event loop of the token request has stopped"))
