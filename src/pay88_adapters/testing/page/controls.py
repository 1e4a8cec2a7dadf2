"""The actions of the page. All of them run on the server's own event loop."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping

from pay88_adapters.testing.clock import ManualClock
from pay88_adapters.testing.faults import Rule
from pay88_adapters.testing.holds import Hold

from . import forms
from .emulated import Emulated
from .forms import Form
from .guards import RejectedRequest


class Controls:
    """The actions by name, and the plan of faults."""

    def __init__(self, emulator: Emulated) -> None:
        self._emulator = emulator
        self._rng = random.Random()
        self.actions: Mapping[str, Callable[[Form], Awaitable[None]]] = {
            "revoke_tokens": self._revoke_tokens,
            "rotate_key": self._rotate_key,
            "suspend": self._suspend,
            "reinstate": self._reinstate,
            "reset_rate_limits": self._reset_rate_limits,
            "drop_connections": self._drop_connections,
            "release": self._release,
            "advance": self._advance,
        }

    def add_fault(self, form: Form) -> Rule:
        """Add a fault to the plan: without end, a number of times, or with a probability."""
        fault, on = forms.fault(form), form.take("on", forms.target, "call")
        times = form.take("times", forms.times) if "times" in form else 1
        after, probability = form.take("after", forms.whole, 0), form.take("probability", forms.probability, 1.0)
        form.end()
        if isinstance(fault, Hold):
            if probability < 1 or after or times is not None:
                raise RejectedRequest(
                    400, "a Hold takes no after and no probability, and its times is null: release it to end it"
                )
            hold = self._emulator.hold(on)
            return next(rule for rule in self._emulator.faults if rule.upcoming is hold)
        if probability < 1:
            return self._emulator.faults.random(self._rng, probability, [fault], on, times, after)
        return self._emulator.faults.add(fault, on, times, after)

    def remove_fault(self, number: int) -> None:
        """Remove a fault, and release the requests that it holds."""
        rule = self._rule(number)
        rule.remove()
        for fault in rule.faults:
            if isinstance(fault, Hold):
                fault.release()

    def _rule(self, number: int) -> Rule:
        for rule in self._emulator.faults:
            if rule.number == number:
                return rule
        raise RejectedRequest(404, f"unknown fault {number}")

    async def act(self, form: Form) -> str:
        """Run the action of a form, and return its name."""
        name = form.take("do", forms.text)
        if name not in self.actions:
            raise RejectedRequest(400, f"do must be one of {', '.join(self.actions)}")
        await self.actions[name](form)
        return name

    async def _revoke_tokens(self, form: Form) -> None:
        form.end()
        self._emulator.service.revoke_current_tokens()

    async def _rotate_key(self, form: Form) -> None:
        key = form.take("api_key", forms.key)
        form.end()
        self._emulator.service.rotate_credentials(key)

    async def _suspend(self, form: Form) -> None:
        form.end()
        self._emulator.service.suspend()

    async def _reinstate(self, form: Form) -> None:
        form.end()
        self._emulator.service.reinstate()

    async def _reset_rate_limits(self, form: Form) -> None:
        form.end()
        self._emulator.service.reset_rate_limits()

    async def _drop_connections(self, form: Form) -> None:
        form.end()
        await self._emulator.close_connections()

    async def _release(self, form: Form) -> None:
        rule, count = self._rule(form.take("id", forms.whole)), form.take("count", forms.whole, 1)
        form.end()
        for fault in rule.faults:
            if isinstance(fault, Hold):
                fault.release(count)
                return
        raise RejectedRequest(400, "only a Hold can be released")

    async def _advance(self, form: Form) -> None:
        seconds = form.take("seconds", forms.number)
        form.end()
        clock = self._emulator.clock
        if not isinstance(clock, ManualClock):
            raise RejectedRequest(409, "this emulator runs in real time: only a ManualClock can be advanced")
        clock.advance(seconds)
