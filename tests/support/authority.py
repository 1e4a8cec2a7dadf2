"""Certificates for servers of the tests' own."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import trustme


def new_authority() -> trustme.CA:
    """Return a certificate authority; skip the test where its library has no wheel, as on CPython 3.13t."""
    ca: trustme.CA = pytest.importorskip("trustme").CA()
    return ca


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the context of a server on loopback, and that of clients that trust it."""
    authority = new_authority()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client
