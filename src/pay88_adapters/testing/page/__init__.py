"""The emulator's page: what happens, live in a browser, and switches for what goes wrong.

Beside the page is an API in JSON for clients in any language. Neither shows a key, a token or a session id, and
requests for them are no part of the emulated service: no journal, fault or limit has anything to do with them.
"""

from .handler import PREFIX, Page

__all__ = ["PREFIX", "Page"]
