"""The part of the tests that runs: PAY88_TEST_SAMPLE, such as 0/2 and 1/2 for the two halves."""

from __future__ import annotations

import os

NUMBER, SIZE = map(int, os.environ.get("PAY88_TEST_SAMPLE", "0/1").split("/"))


def examples(number: int) -> int:
    """Return how many examples of a property are tried: *number*, and three tenths of them in a sample."""
    return number if SIZE == 1 else max(1, number * 3 // 10)
