"""The platform's monotonic clock, also if a test has frozen or advanced the one in ``time``.

freezegun replaces the functions of that module. On a frozen clock a deadline never passes, and a token that was fetched
on another clock has expired, or never will.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.machinery import BuiltinImporter
from importlib.util import module_from_spec
from types import BuiltinFunctionType, ModuleType
from typing import Any


def _untouched() -> ModuleType | Any:
    """Return the module ``time`` as the interpreter makes it."""
    spec = BuiltinImporter.find_spec("time")
    if spec is None or spec.loader is None:  # an interpreter that has it elsewhere
        return time
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    # What is the very function in `time` would be replaced here, too.
    return module if isinstance(module.monotonic, BuiltinFunctionType) else time


_time = _untouched()

monotonic: Callable[[], float] = _time.monotonic
"""Real seconds since an arbitrary instant: the original ``time.monotonic``, without patches."""
