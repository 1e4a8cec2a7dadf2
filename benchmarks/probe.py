"""One measurement, in a process of its own: ``python -m benchmarks.probe '{"measure": …}'`` prints one JSON object.

It says so on its standard output and ends immediately: whatever is open is not closed, since that is not measured.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any


def main() -> None:
    """Measure what the argument says."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    module, _, function = spec.pop("measure").partition(":")
    result = getattr(import_module(f"benchmarks.measures.{module}"), function)(**spec)
    print(json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
