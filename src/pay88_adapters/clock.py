"""The clock of a manager: an argument of :class:`TokenManager`, for tests."""

from .engine.clock import Clock

__all__ = ["Clock"]
