"""The checks of ``pay88 check``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .configuration import Configuration
from .finding import Finding
from .network import Network
from .shared_store import SharedStore

__all__ = ["Finding", "findings"]


def findings(environ: Mapping[str, str], *, fresh: bool = False) -> Iterator[Finding]:
    """Check the configuration in *environ*, with at most one token request.

    Args:
        environ: Environment variables.
        fresh: Send the token request even if the store has a token.
    """
    configuration = Configuration(environ)
    yield from configuration.check()
    network = Network(configuration.endpoint)
    yield from network.check()
    store = SharedStore(configuration)
    yield from store.check_store()
    yield network.clock(store.ahead)
    yield from store.check_shared()
    yield store.token(reached=network.reached, fresh=fresh)
