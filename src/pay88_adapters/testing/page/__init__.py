"""The emulator's page: a live view of its requests, and fault injection, in a browser.

Next to the page is an API in JSON for clients in any language. Neither shows a key, a token or a session id, and
requests for them are no part of the emulated service: no journal, fault or limit has anything to do with them.
"""

from .handler import PREFIX, Page

__all__ = ["PREFIX", "Page"]
