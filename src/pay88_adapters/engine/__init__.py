"""The engine: locks, threads, tasks, event loops, clocks and forks that carry out the decisions of the core.

``manager`` has the public class. ``state`` has the machine under its lock, and wakes waiters. The ``*_flow`` modules
are what happens, step by step. The ``*_runner`` modules carry that out, on threads or on an event loop.

May import: ``core`` and ``stores``. Imported by: the adapters, ``otel``, ``testing`` and ``cli``.
What is exported here is the seam for adapters of other HTTP clients: stable, typed and documented.
"""

from pay88_adapters.core.errors import AdapterErrors, ClientClosed, NoFreeConnection
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
    "NoFreeConnection",
    "TokenRequest",
    "TokenResponse",
]
