"""Events that a TokenManager emits. They are immutable and contain no secrets.

A listener runs on the thread or event loop where the event happened. No lock is held, and all waiters, in other
processes too, were notified before: a listener may call the manager. A slow listener delays only the request or the
event loop that it runs on. An exception of a listener is logged and has no other effect.

Events about a request are emitted on its own thread or task. Events about a fetch are emitted on the thread or task of
the fetch, when it has ended.
"""

from .core.events import (
    BreakerClosed,
    BreakerOpened,
    BudgetExhausted,
    CallNotSent,
    CallReplayed,
    CallRetried,
    CallWaited,
    Event,
    Listener,
    RefreshFailed,
    SharedTokenUsed,
    StoreDegraded,
    StoreRestored,
    TokenFetched,
    TokenRejected,
    TokenRequestFailed,
)

__all__ = [
    "BreakerClosed",
    "BreakerOpened",
    "BudgetExhausted",
    "CallNotSent",
    "CallReplayed",
    "CallRetried",
    "CallWaited",
    "Event",
    "Listener",
    "RefreshFailed",
    "SharedTokenUsed",
    "StoreDegraded",
    "StoreRestored",
    "TokenFetched",
    "TokenRejected",
    "TokenRequestFailed",
]

for _name in __all__:
    if _name != "Listener":
        globals()[_name].__module__ = __name__  # under which users know, pickle and see them

TokenTakenOver, TokenRefused = SharedTokenUsed, TokenRejected  # deprecated names
