"""Every interleaving of events at the machine, to a depth; and random ones far deeper.

The machine and the budget are the real ones. :class:`Model` plays callers, carriers of fetches, the token endpoint and
the API, one event at a time. It assumes no order among them: whatever can happen in
a state, happens in some branch. Time jumps to the next instant at which anything could change.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pay88_adapters.core.errors import (
    Failure,
)
from support.exploration import EXPLORATIONS, FAILURES, LIMITED, NONSENSE, Model, World, explore
from support.sample import examples
from support.worlds import Report


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", EXPLORATIONS)
def test_rules_03_to_12_hold_in_every_interleaving(which: str, report: Report) -> None:
    """One fetch in flight; a request leads while others wait; no token past its end; no error while there is one.

    And never past the budget, before ``Retry-After`` or with credentials that were just rejected.
    """
    start, depth = EXPLORATIONS[which]
    states, transitions, ways = explore(start(), depth)
    report(f"{states:,} states, {transitions:,} transitions, {ways:,} interleavings of {depth} events")
    assert states > 10_000


class AnyOrder(RuleBasedStateMachine):
    """The same model, driven at random through long sequences with any times and responses."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(World(rotating=True, shared=True, limits=("4/minute", "12/hour"), forced_reserve=4), 4)

    @rule(pick=st.integers(0, 1000))
    def happen(self, pick: int) -> None:
        """Do one of the things that can happen."""
        events = list(self.model.events())
        _, event = events[pick % len(events)]
        event(self.model)
        self.model.check()

    @rule(seconds=st.floats(0, 90, allow_subnormal=False))
    def pass_time(self, seconds: float) -> None:
        """Time passes, to no particular instant."""
        self.model.pass_time(seconds)
        self.model.check()

    @rule(pick=st.integers(0, 3), wait=st.floats(0, 20))
    def come(self, pick: int, wait: float) -> None:
        """A call that cannot wait as long as others."""
        if self.model.callers[pick].doing == "idle":
            self.model.come(pick, wait)
            self.model.check()

    @precondition(lambda self: any(each.stage == "response" for each in self.model.carriers))
    @rule(response=st.floats(0.01, 300) | st.sampled_from([*FAILURES, NONSENSE, replace(LIMITED, retry_after=9000.0)]))
    def receive(self, response: float | Failure) -> None:
        """A response of any kind."""
        index = next(index for index, each in enumerate(self.model.carriers) if each.stage == "response")
        if isinstance(response, Failure):
            self.model.fail(index, response)
        else:
            self.model.arrive(index, response)
        self.model.check()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(deadline=None, max_examples=examples(150), stateful_step_count=80)
