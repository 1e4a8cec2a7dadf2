"""Token requests for a manager that is asked for a token without any adapter in play."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from .drivers import Sender
from .errors import ConfigurationError

if TYPE_CHECKING:
    from .manager import TokenManager


def standalone_sender(manager: TokenManager) -> Sender:
    """Return a sender over whichever stack is installed.

    Raises:
        ConfigurationError: None is.
    """
    if find_spec("urllib3"):
        from . import urllib3

        return urllib3.standalone_sender(manager)
    if find_spec("httpx"):
        from . import httpx

        return httpx.standalone_sender(manager)
    if find_spec("httpx2"):
        from . import httpx2

        return httpx2.standalone_sender(manager)
    if find_spec("aiohttp"):
        from . import aiohttp

        return aiohttp.standalone_sender()
    raise ConfigurationError(
        "no HTTP library is installed to request a token with: pip install 'pay88-adapters[urllib3]',"
        " or [requests], [httpx], [httpx2] or [aiohttp]"
    )
