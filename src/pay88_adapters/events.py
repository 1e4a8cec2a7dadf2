"""What a manager tells its listeners: small frozen values, and no secret in any of them.

A listener is called where the event happened, on that thread or event loop, with no lock held and
after everybody who waited has been woken, in other processes too: it may call the manager. A slow one
delays the call, or the loop, that it is called on, and nobody else. One that raises is logged and changes nothing.

What happens to a call is told on the call's own thread or task; what happens to a fetch, on the fetch's, once it
is over.
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
