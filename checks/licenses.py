"""Print the distributions of this environment with their licenses, as JSON: ``python checks/licenses.py``."""

from __future__ import annotations

import json
import re
from importlib import metadata

NAMES = {
    "Apache Software License": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache 2": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""SPDX identifiers of what older metadata say in words."""


def license_of(distribution: metadata.Distribution) -> str:
    """Return the SPDX expression of a distribution's license."""
    about = distribution.metadata
    if "License-Expression" in about:
        return str(about["License-Expression"])
    [text] = about.get_all("License") or [""]
    if text and "\n" not in text and len(text) < 40:
        return NAMES.get(text, str(text))
    classifiers = about.get_all("Classifier") or []
    named = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License ::")]
    return " OR ".join(sorted({NAMES.get(each, each) for each in named})) or "unknown"


def licenses() -> dict[str, str]:
    """Return the license of every distribution but the tools of the environment and the package itself."""
    found = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name not in ("pip", "setuptools", "wheel", "pay88-adapters"):
            found[name] = license_of(distribution)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    print(json.dumps(licenses()))
