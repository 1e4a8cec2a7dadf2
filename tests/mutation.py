"""Let mutmut make one small mistake after another in the parts that decide; fail if the tests see too few of them.

A mistake in the words of a message is left out: tests assert on data, not on prose. So is one that writes the
name of a header in another case: HTTP treats them alike.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

LEAST = 90.0  # per cent, in each module
SEEN = {"killed", "timeout"}  # a test that never ends fails

RESULT = re.compile(
    r"^ +pay88_adapters\.(?P<module>[\w.]+)\.x(?:_|ǁ(?P<owner>\w+)ǁ)(?P<function>\w+?)__mutmut_\d+: (.+)$"
)
PROSE = re.compile(r'f?"[^"]* [^"]*"')
FIELD = re.compile(r'"[A-Za-z-]+":')


def mutmut(*args: str) -> str:
    """Run mutmut; return what it prints."""
    command = [sys.executable, "-m", "mutmut", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def change(name: str) -> tuple[str, str]:
    """Return the lines that a mutant removes, and those that replace them."""
    lines = mutmut("show", name).splitlines()
    old, new = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign) and not line.startswith(sign * 3))
        for sign in "-+"
    )
    return old, new


def left_out(function: str, old: str, new: str) -> str | None:
    """Say what kind of mistake it is if it is none that a test should see."""
    if PROSE.sub("None", old) == PROSE.sub("None", new):
        return "prose"
    lower, again = (FIELD.sub(lambda name: name[0].lower(), lines) for lines in (old, new))
    return "case" if function == "token_request" and lower == again else None


def check_names() -> None:
    """Fail if pytest finds a test not by its name: mutmut would take that for a mistake that was seen."""
    names = json.loads(Path("mutants/mutmut-stats.json").read_text())["duration_by_test"]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-qq", "--collect-only", *names],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd="mutants",
        env={**os.environ, "PYTHONPATH": "src"},
    )


def main() -> int:
    """Make the mistakes, and print those that no test sees."""
    shutil.rmtree("mutants", ignore_errors=True)  # old verdicts outlive a change of the tests
    subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", "2"], check=True)

    check_names()

    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for line in mutmut("results", "--all", "true").splitlines():
        if not (found := RESULT.match(line)):
            continue
        module, owner, function, verdict = found.groups()
        if verdict not in SEEN:
            old, new = change(line.strip().removesuffix(f": {verdict}"))
            if kind := left_out(function, old, new):
                counts[module][kind] += 1
                continue
            where = ".".join(filter(None, [module, owner, function]))
            print(f"{verdict}: {where}: {old} → {new}")
        counts[module][verdict] += 1

    good = bool(counts)
    for module, count in sorted(counts.items()):
        total = count.total() - count["prose"] - count["case"]
        score = 100 * sum(count[verdict] for verdict in SEEN) / total
        print(f"{module}: {score:.1f} % of {total} seen; {dict(count)}")
        good = good and score >= LEAST
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
