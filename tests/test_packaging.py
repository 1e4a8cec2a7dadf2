"""The lowest versions that the package says it supports are the lowest ones that its tests run with."""

from __future__ import annotations

import configparser
import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def test_the_lowest_environments_pin_exactly_the_floors() -> None:
    """Every library's lower bound is the version that the `lowest` environments of tox.ini install."""
    required = [Requirement(text) for text in metadata.requires("pay88-adapters") or []]
    floors = {(each.name, s.version) for each in required for s in each.specifier if s.operator == ">="}
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(Path(__file__).parent.parent / "tox.ini", encoding="utf-8")

    assert set(re.findall(r"lowest: (\S+)==(\S+)", tox["testenv"]["deps"])) == floors
