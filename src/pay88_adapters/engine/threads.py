"""Daemon threads of the package: they can be interrupted, and the exiting process waits for some of them briefly."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from pay88_adapters.stores.realtime import monotonic

_EXIT_TIMEOUT = 2.0  # real seconds that the exiting process waits for threads with a result for others

_workers: dict[Worker, None] = {}  # the running ones


class Overdue(TimeoutError):
    """Raised in a thread whose step exceeds its timeout."""


class NoThread(RuntimeError):
    """No thread can be started: the limit is reached, or the interpreter is shutting down."""


class BackgroundThread(threading.Thread):
    """A thread that does not keep the process alive. In subinterpreters without daemon threads, it does."""

    def __init__(self, name: str) -> None:
        try:
            super().__init__(name=name, daemon=True)
        except RuntimeError:
            super().__init__(name=name, daemon=False)

    def start(self) -> None:
        """Start the thread.

        Raises:
            NoThread: None can be started.
        """
        try:
            super().start()
        except RuntimeError as exc:
            if self.is_alive():  # a signal handler has raised it
                raise
            raise NoThread(str(exc)) from exc


class Worker(BackgroundThread):
    """A thread that runs *work* in the background.

    Args:
        work: What to run.
        name: The thread's name.
        finishes: Whether the exiting process waits for it for a moment: other threads need its result.
    """

    def __init__(self, work: Callable[[], object], name: str, *, finishes: bool) -> None:
        super().__init__(name)
        self._work = work
        self.finishes = finishes
        # Held while this thread is interrupted, and by itself for good as soon as its work is done.
        self._interruption = threading.RLock()

    def start(self) -> None:
        """Start the thread: see :meth:`BackgroundThread.start`."""
        _workers[self] = None
        try:
            super().start()
        except BaseException:
            if not self.is_alive():
                _workers.pop(self, None)
            raise

    def run(self) -> None:
        try:
            self._work()
        finally:
            try:
                self._interruption.acquire()
            except Overdue:  # the last interruption, before or after the lock was acquired: it is reentrant
                self._interruption.acquire()
            _workers.pop(self, None)
            del self._work

    def interrupt(self) -> None:
        """Raise :class:`Overdue` in this thread as soon as it runs Python code again. C code is not interrupted.

        Nothing happens if its work is done: the system may have given its id to another thread. Where ctypes cannot be
        imported, as in subinterpreters of Python 3.12, no thread is interrupted; waiting requests continue.
        """
        try:
            import ctypes  # almost never needed
        except ImportError:
            return

        try:
            if self._interruption.acquire(blocking=False) and self.ident is not None and self.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(Overdue))
        finally:
            try:  # noqa: SIM105 - a signal handler could raise before the first step of suppress()
                self._interruption.release()
            except RuntimeError:  # not acquired
                pass


_exiting = threading.Event()


def may_block() -> bool:
    """Whether blocking this thread blocks no other work: it belongs to the package, or the process ends."""
    return _exiting.is_set() or isinstance(threading.current_thread(), Worker)


class Finisher(Protocol):
    """An object with work that must be finished when the process exits."""

    def at_exit(self) -> None:
        """Finish the work that no thread will finish any more. Must not block for long."""
        ...


_finishers: dict[weakref.ref[Finisher], None] = {}  # the references are the keys, as in forks


def finish_at_exit(finisher: Finisher) -> None:
    """Call ``finisher.at_exit()`` when the process exits, if *finisher* still exists."""
    _finishers[weakref.ref(finisher, _forget)] = None


def forget_finisher(finisher: Finisher) -> None:
    """Undo :func:`finish_at_exit`."""
    _forget(weakref.ref(finisher))


def _forget(finisher: weakref.ref[Finisher]) -> None:
    _finishers.pop(finisher, None)


@atexit.register
def _at_exit() -> None:
    _exiting.set()
    until = monotonic() + _EXIT_TIMEOUT
    for worker in list(_workers):
        if worker.is_alive() and worker.finishes and worker is not threading.current_thread():
            worker.join(max(until - monotonic(), 0.0))
    for finisher in list(_finishers):
        if (each := finisher()) is not None:
            each.at_exit()


if hasattr(os, "register_at_fork"):  # the threads exist only in the parent, which finishes its work itself
    os.register_at_fork(after_in_child=_workers.clear)
    os.register_at_fork(after_in_child=_finishers.clear)
