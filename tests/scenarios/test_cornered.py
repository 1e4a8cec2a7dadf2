"""Rules 3, 16 and 17 where it is hardest: each case has a process of its own, which says nothing and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pay88_adapters.testing import Emulator
from support import cornered

pytestmark = pytest.mark.deep

COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-m", cornered.__name__]
TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *(each for each in sys.path if each)])}


def pairs(cases: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Every case with each of its client libraries."""
    return [
        (case, stack) for case, stacks in cases.items() for stack in stacks if hasattr(os, "fork") or "fork" not in case
    ]


@pytest.mark.parametrize(("case", "stack"), pairs(cornered.CASES))
def test_rule_17_cornered(case: str, stack: str) -> None:
    """The case ends well, without a word."""
    done = subprocess.run([*COMMAND, case, stack], capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(("case", "stack"), pairs(cornered.EXITS))
def test_rule_17_the_interpreter_ends(case: str, stack: str) -> None:
    """The process ends immediately, with code 0 and without output, even if the token endpoint does not respond."""
    with Emulator() as emulator, emulator.hold("token") as held:
        process = subprocess.Popen(
            [*COMMAND, case, stack, emulator.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        if case == "exit_with_a_last_call":
            held.release()
        else:
            held.wait_for(1, timeout=cornered.DEADLINE)
        if case in ("exit_during_a_refresh", "exit_of_a_child_and_its_parent"):
            held.release(1)
            emulator.journal.wait_for(2, "token", timeout=cornered.DEADLINE)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        process.stdin.write("go on\n")
        process.stdin.flush()
        if case == "exit_while_threads_wait":
            held.release()
        _, stderr = process.communicate(timeout=cornered.DEADLINE)
        assert (stderr, process.returncode) == ("", 0)
        assert emulator.journal.token_requests == (2 if "refresh" in case or "child" in case else 1)
        if stack != cornered.ALONE:
            calls = {"exit_while_threads_wait": 5, "exit_with_a_last_call": 1, "exit_while_daemons_wait": 0}
            assert emulator.journal.calls == calls.get(case, 2)
