"""Acts: the locks, threads, tasks, event loops, clocks and forks that carry out what the core decides.

Start with ``manager`` (the public class), ``state`` (the machine under its lock, and who wakes waiters), the ``*_flow``
modules (what happens step by step) and the ``*_runner`` modules (how, on threads or an event loop).

May import: ``core`` and ``stores``. Imported by: the adapters, ``otel``, ``testing`` and ``cli``.
What is exported here is the seam for adapters of other HTTP clients: stable, typed and documented.
"""

from pay88_adapters.core.errors import AdapterErrors, ClientClosed
from pay88_adapters.core.retry import ConnectionFailure
from pay88_adapters.core.token import MANAGED_FIELDS
from pay88_adapters.core.wire import MAX_BODY, MAX_DRAIN_SECONDS, MAX_DRAINED, TokenRequest, TokenResponse

from .bodies import BodyPosition
from .calls import AsyncCall, Call

__all__ = [
    "MANAGED_FIELDS",
    "MAX_BODY",
    "MAX_DRAINED",
    "MAX_DRAIN_SECONDS",
    "AdapterErrors",
    "AsyncCall",
    "BodyPosition",
    "Call",
    "ClientClosed",
    "ConnectionFailure",
    "TokenRequest",
    "TokenResponse",
]
