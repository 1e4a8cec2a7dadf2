"""A server that behaves like 88Pay, for tests and demonstrations. Not for production.

:class:`Emulator` needs aiohttp (``pip install 'pay88-adapters[testing]'``); everything else does not.

May import: all but ``cli``. Imported by: ``cli``. The pytest plugin is next to the package: ``_pay88_pytest.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .clock import ManualClock
from .faults import (
    Body,
    Drip,
    Fault,
    FaultPlan,
    Garbage,
    Headers,
    HugeBody,
    Latency,
    Redirect,
    RefuseToken,
    RejectToken,
    ResetAfterRead,
    ResetBeforeRead,
    Rule,
    Status,
    TooMany,
    Truncated,
)
from .holds import Hold
from .isolation import isolated
from .journal import Entry, Journal
from .messages import Answer, Charge, Received, Request, Response
from .recording import vcr_config
from .service import Service

if TYPE_CHECKING:
    from .emulator import Emulator

__all__ = [
    "Answer",
    "Body",
    "Charge",
    "Drip",
    "Emulator",
    "Entry",
    "Fault",
    "FaultPlan",
    "Garbage",
    "Headers",
    "Hold",
    "HugeBody",
    "Journal",
    "Latency",
    "ManualClock",
    "Received",
    "Redirect",
    "RefuseToken",
    "RejectToken",
    "Request",
    "ResetAfterRead",
    "ResetBeforeRead",
    "Response",
    "Rule",
    "Service",
    "Status",
    "TooMany",
    "Truncated",
    "isolated",
    "vcr_config",
]


def __getattr__(name: str) -> object:
    if name == "Emulator":  # not at the top, because only it needs aiohttp
        from .emulator import Emulator

        return Emulator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
