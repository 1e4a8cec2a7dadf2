"""Certificates for servers of the tests' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import trustme


def new_authority() -> trustme.CA:
    """Return a certificate authority; skip the test where its library has no wheel, as on CPython 3.13t."""
    ca: trustme.CA = pytest.importorskip("trustme").CA()
    return ca
