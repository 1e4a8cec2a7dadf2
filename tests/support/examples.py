"""How many examples a test of a property tries."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100  # of hypothesis itself, and of the profile of a whole run


def examples(number: int) -> int:
    """Return *number* in a whole run, and as much less as the profile says in a sample."""
    return max(1, number * settings().max_examples // _USUAL)
