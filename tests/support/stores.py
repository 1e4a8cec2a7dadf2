"""What the tests of stores and their neighbours share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.scenes import SCENES, Scene


def about(scene: Scene, seconds: float) -> Any:
    """Return what compares equal to *seconds*, or to a little less if the clock has run on."""
    return pytest.approx(seconds, abs=0.002 if scene.exact else scene.unit / 2)


def publish(
    scene: Scene, key: str = "key", *, known_version: int = 0, content: str = "a token", ttl: float = 100
) -> int:
    """Replace the record as a manager does; return its version. *ttl* is in units."""
    fencing_token = scene.store.try_acquire_lease(
        key, owner="publisher", known_version=known_version, lease=10 * scene.unit
    ).fencing_token
    assert fencing_token is not None
    assert scene.store.publish(key, fencing_token=fencing_token, content=content, ttl=ttl * scene.unit)
    return fencing_token


@pytest.fixture(params=SCENES, ids=lambda kind: kind.name)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Every kind of store in turn."""
    kind: type[Scene] = request.param
    with ExitStack() as stack:
        yield kind(tmp_path, stack)


@pytest.fixture
def exact(scene: Scene) -> Scene:
    """Only those whose clock can be moved."""
    if not scene.exact:
        pytest.skip("its clock cannot be moved")
    return scene
