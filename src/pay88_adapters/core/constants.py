"""Constants that several modules need."""

from __future__ import annotations

NEVER = float("-inf")
"""The instant of what has not happened."""

FOREVER = float("inf")
"""The end of what does not end, and its duration."""

UNAUTHORIZED = 401
"""Status code of a response that rejects the token: the least one after which there is anything to decide."""

TOO_MANY_REQUESTS = 429
"""Status code of a response that rejects the request because of a rate limit."""
