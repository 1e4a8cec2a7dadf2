"""Keeping API calls within their documented limits (rule 22)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute

from pay88_adapters.core.wire import asked_wait, calls_left
from pay88_adapters.stores.base import BudgetStorage

from .budget import AtomicMovingWindow, merchant_digest
from .forks import survive_forks

CALL_LIMITS: tuple[RateLimitItem, ...] = (RateLimitItemPerMinute(60), RateLimitItemPerHour(1000))
"""Of each group of calls, as 88Pay documents them."""

PACED = ("transactions", "balance")
"""The groups of calls that have limits."""

_TOO_MANY = 429
_LONGEST = 3600.0  # seconds; no limit lasts longer
_GUARD = 1.0  # seconds that a call may take longer to the service than the one before it
_LONGEST_ATTEMPT = 600.0  # seconds until one that has not ended does not count any longer
_LOST_AFTER = 10.0  # seconds until a turn that nobody has ended does not count any longer; a store fails earlier

APART = 0.25  # seconds over which those who wait for the same instant are to be spread


@dataclass(slots=True)
class _Announced:
    """What the service said is left, and until when that holds."""

    remaining: int
    until: float


@dataclass(eq=False, slots=True)
class Turn:
    """Somebody's turn to take a unit and to send an attempt for it, who says how that ended."""

    group: str
    said: _Announced | None
    lost_at: float
    taken: bool = False


class Pacing:
    """The calls that one merchant's managers may still make.

    What is counted in the storage is shared by all who share it, by when a unit is taken. An attempt may reach the
    service later, as it waits for a connection: what is counted here is when it ended, and until then it may be sent
    at any moment. What the service says of itself, which may know of others, is kept here, and so is who asks the
    storage; the manager's lock guards it.

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
        self._ended: dict[str, list[float]] = {}  # when the attempts of each group did
        self._announced: dict[str, _Announced] = {}
        self._full_until: dict[str, float] = {}
        survive_forks(self)

    def after_fork(self) -> None:
        """Go on without the attempts of the parent's threads."""
        self._turns.clear()

    def turn(self, group: str, now: float) -> Turn | float:
        """Return the turn to :meth:`take` a unit, or for how many seconds that would be of no use.

        It uses up one of the calls that the service said are left.
        """
        for lost in [turn for turn in tuple(self._turns) if now >= turn.lost_at]:
            self._turns.discard(lost)
        turns = [turn for turn in tuple(self._turns) if turn.group == group]
        full_for = max(self._full_until.get(group, now) - now, self._full_for(group, len(turns), now))
        said = self._announced.get(group)
        if said is not None and now >= said.until:
            del self._announced[group]
            said = None
        if said is not None and said.remaining <= 0:
            return max(full_for, said.until - now)
        if full_for > 0:
            return full_for
        if self._crowd is not None and sum(not turn.taken for turn in turns) >= self._crowd:
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
        """Note what :meth:`take` returned. With a unit, the attempt is under way until it is :meth:`over`."""
        if not wait:
            turn.taken, turn.lost_at = True, now + _LONGEST_ATTEMPT
            return
        self._turns.discard(turn)
        self._full_until[turn.group] = now + wait
        if turn.said is not None:
            turn.said.remaining += 1

    def over(self, turn: Turn, now: float) -> None:
        """Note that an attempt ended, and so has been sent by now, if it ever was. Needs no lock."""
        self._turns.discard(turn)
        self._ended.setdefault(turn.group, []).append(now)

    def abandoned(self, turn: Turn) -> None:
        """Note that nobody knows whether there is a unit less. Needs no lock."""
        self._turns.discard(turn)

    def _full_for(self, group: str, under_way: int, now: float) -> float:
        """Return for how many seconds one more attempt would be one too many, if those under way were sent only now."""
        ended, full_for = self._ended.setdefault(group, []), 0.0
        for item in CALL_LIMITS:
            seconds = self._strategy.expiry(item)
            first = bisect_right(ended, now - seconds)  # of those that count
            too_many = under_way + len(ended) - first - item.amount
            if too_many >= 0:
                last = first + too_many  # that has to be out of the way
                full_for = max(full_for, ended[last] + seconds - now if last < len(ended) else seconds)
        del ended[: bisect_right(ended, now - _LONGEST - _GUARD)]
        return full_for

    def heard(self, group: str, status: int, headers: Mapping[str, str], now: float, wall: float) -> None:
        """Note what the service says is left, in its ``X-RateLimit-*`` fields or the ``Retry-After`` of a 429.

        Answers overtake each other: within one window the least that was said counts.
        """
        if group not in PACED:
            return
        asked = asked_wait(headers, wall) if status == _TOO_MANY else None
        announced = (0, asked) if asked is not None and asked > 0 else calls_left(headers, wall)
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
