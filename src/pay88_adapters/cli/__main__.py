"""``python -m pay88_adapters.cli`` is ``pay88``."""

from . import main

if __name__ == "__main__":
    main()
