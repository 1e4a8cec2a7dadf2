"""What the project says of itself in several places is the same everywhere."""

from __future__ import annotations

import configparser
import importlib.util
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


def test_the_audit_distinguishes_vulnerable_from_unchecked(capsys: pytest.CaptureFixture[str]) -> None:
    """A known vulnerability fails the check; what no service knows does not, and is named."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / "checks" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    unchecked = {"name": "httpx", "skip_reason": "not found"}
    vulnerable = {"name": "idna", "version": "3.6", "vulns": [{"id": "PYSEC-2024-60", "fix_versions": ["3.7"]}]}
    assert audit.report([unchecked, {"name": "limits", "version": "5.8.0", "vulns": []}]) == 0
    assert "not checked for 1 of 2: httpx" in capsys.readouterr().out
    assert audit.report([unchecked, vulnerable]) == 1
    assert "idna 3.6: PYSEC-2024-60, fixed in 3.7" in capsys.readouterr().out
