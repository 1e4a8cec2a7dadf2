"""What the project says of itself in several places is the same everywhere."""

from __future__ import annotations

import configparser
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def test_the_lowest_environments_pin_exactly_the_floors() -> None:
    """Every library's lower bound is the version that the `lowest` environments of tox.ini install."""
    required = [Requirement(text) for text in metadata.requires("pay88-adapters") or []]
    floors = {(each.name, s.version) for each in required for s in each.specifier if s.operator == ">="}
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")

    assert set(re.findall(r"lowest: (\S+)==(\S+)", tox["testenv"]["deps"])) == floors


def test_a_commit_is_linted_with_what_ci_lints_with() -> None:
    """The hooks for pre-commit pin the versions of the lint group."""
    tomllib = pytest.importorskip("tomllib")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r'additional_dependencies: \["(.+)"\]', hooks)) == set(groups["lint"])
