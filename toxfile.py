"""tox looks for Pythons on PATH, where pyenv hides all but the active ones: let it see the others too."""

import os
from pathlib import Path

pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
pythons = [str(path) for path in pyenv.glob("versions/3.*/bin")]
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *pythons])
