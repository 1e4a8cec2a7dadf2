"""Acts: the locks, threads, tasks, event loops, clocks and forks that carry out what the core decides.

May import: ``core`` and ``stores``. Imported by: the adapters, ``otel``, ``testing`` and ``cli``.
What is exported here is the seam for adapters of other HTTP clients: stable, typed and documented.
"""

from pay88_adapters.core.errors import CarrierLost, Flavours
from pay88_adapters.core.retry import Broken
from pay88_adapters.core.token import MANAGED_FIELDS
from pay88_adapters.core.wire import MAX_BODY, MAX_DRAIN_SECONDS, MAX_DRAINED, TokenReply, TokenRequest

from .bodies import Bookmark
from .runners import AsyncCall, Call

__all__ = [
    "MANAGED_FIELDS",
    "MAX_BODY",
    "MAX_DRAINED",
    "MAX_DRAIN_SECONDS",
    "AsyncCall",
    "Bookmark",
    "Broken",
    "Call",
    "CarrierLost",
    "Flavours",
    "TokenReply",
    "TokenRequest",
]
