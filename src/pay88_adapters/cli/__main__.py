"""``python -m pay88_adapters.cli`` is ``pay88``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
