"""Keeping API calls within their documented limits (rule 22)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute

from .budget import AtomicMovingWindow, merchant_digest
from .stores.base import BudgetStorage
from .wire import asked_wait, calls_left

CALL_LIMITS: tuple[RateLimitItem, ...] = (RateLimitItemPerMinute(60), RateLimitItemPerHour(1000))
"""Of each group of calls, as 88Pay documents them."""

PACED = ("transactions", "balance")
"""The groups of calls that have limits."""

_TOO_MANY = 429
_LONGEST = 3600.0  # seconds; no limit lasts longer
_GUARD = 1.0  # seconds that a call may take longer to the service than the one before it
_LOST_AFTER = 10.0  # seconds until a turn that nobody has ended does not count any longer; a store fails earlier

APART = 0.25  # seconds over which those who wait for the same instant are to be spread


@dataclass(slots=True)
class _Announced:
    """What the service said is left, and until when that holds."""

    remaining: int
    until: float


@dataclass(eq=False, slots=True)
class Turn:
    """Somebody's turn to take a unit, who says how that ended."""

    group: str
    said: _Announced | None
    lost_at: float


class Pacing:
    """The calls that one merchant's managers may still make.

    What is counted in the storage is shared by all who share it. What the service says of itself, which
    may know of others, is kept here, and so is who asks the storage; the manager's lock guards it.

    Args:
        storage: Keeps the entries.
        base_url: Calls are counted per base URL and merchant.
        crowd: How many of a group may ask the storage at once, where it takes its time.
    """

    def __init__(self, storage: BudgetStorage, base_url: str, *, crowd: int | None = None) -> None:
        self._strategy = AtomicMovingWindow(storage, guard=_GUARD)
        self._base_url = base_url
        self._crowd = crowd
        self._turns: set[Turn] = set()
        self._announced: dict[str, _Announced] = {}
        self._full_until: dict[str, float] = {}

    def turn(self, group: str, now: float) -> Turn | float:
        """Return the turn to :meth:`take` a unit, or for how many seconds that would be of no use.

        It uses up one of the calls that the service said are left.
        """
        full_for = self._full_until.get(group, now) - now
        said = self._announced.get(group)
        if said is not None and now >= said.until:
            del self._announced[group]
            said = None
        if said is not None and said.remaining <= 0:
            return max(full_for, said.until - now)
        if full_for > 0:
            return full_for
        if self._crowd is not None:
            others = [turn for turn in tuple(self._turns) if turn.group == group and now < turn.lost_at]
            if len(others) >= self._crowd:
                return APART / 10
        if said is not None:
            said.remaining -= 1
        turn = Turn(group, said, now + _LOST_AFTER)
        self._turns.add(turn)
        return turn

    def take(self, group: str, merchant_id: str) -> float:
        """Take a unit of every limit of *group*: return 0, or after how many seconds to ask again. May block."""
        names = self._names(group, merchant_id)
        return self._strategy.hit_all([(item, names) for item in CALL_LIMITS]).wait

    def left(self, group: str, merchant_id: str) -> dict[str, int]:
        """Return the calls left, by limit, such as ``{"60 per 1 minute": 59}``. May block."""
        names = self._names(group, merchant_id)
        return {str(item): self._strategy.left(item, *names) for item in CALL_LIMITS}

    def ended(self, turn: Turn, wait: float, now: float) -> None:
        """Note what :meth:`take` returned."""
        self._turns.discard(turn)
        if wait:
            self._full_until[turn.group] = now + wait
            if turn.said is not None:
                turn.said.remaining += 1

    def abandoned(self, turn: Turn) -> None:
        """Note that nobody knows whether there is a unit less. Needs no lock."""
        self._turns.discard(turn)

    def heard(self, group: str, status: int, headers: Mapping[str, str], now: float) -> None:
        """Note what the service says is left, in its ``X-RateLimit-*`` fields or the ``Retry-After`` of a 429.

        Answers overtake each other: within one window the least that was said counts.
        """
        if group not in PACED:
            return
        asked = asked_wait(headers) if status == _TOO_MANY else None
        announced = (0, asked) if asked is not None and asked > 0 else calls_left(headers)
        if announced is None or announced[1] <= 0:
            return
        remaining, until = announced[0], now + min(announced[1], _LONGEST)
        said = self._announced.get(group)
        if said is None or now >= said.until or remaining < said.remaining:
            self._announced[group] = _Announced(remaining, until)
        elif remaining <= 0:
            said.until = max(said.until, until)

    def _names(self, group: str, merchant_id: str) -> tuple[str, str]:
        return group, merchant_digest(self._base_url, merchant_id)
