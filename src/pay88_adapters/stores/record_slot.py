"""One record with its lease: the rules of every store that can change a record in one step of Python."""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import LeaseResult, Record, StoreView


@dataclass(slots=True)
class RecordSlot:
    """A record, its refresh lease, and the last fencing token. All instants are on one clock."""

    version: int = 0
    content: object = field(default="", repr=False)
    written_at: float = 0.0
    stored_at: float = 0.0
    keep_until: float = 0.0
    last_fencing_token: int = 0
    owner: str = ""
    leased_at: float = 0.0
    leased_until: float = 0.0

    def try_acquire_lease(self, now: float, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        """See :meth:`Store.try_acquire_lease`."""
        if self.version != known_version and now < self.keep_until:
            return LeaseResult(self._record(now))
        if now < self.leased_until and self.owner != owner:
            return LeaseResult(lease_remaining=self.leased_until - now)
        if not self.last_fencing_token:
            # Not from 1: no fencing token from before a loss of all data may be issued again.
            self.version = self.last_fencing_token = int(now * 1e6)
        self.last_fencing_token += 1
        self.owner, self.leased_at, self.leased_until = owner, now, now + lease
        return LeaseResult(fencing_token=self.last_fencing_token)

    def publish(self, now: float, *, fencing_token: int, content: object, ttl: float, write_delay: float) -> bool:
        """See :meth:`Store.publish`."""
        if not self.version < fencing_token == self.last_fencing_token:
            return False
        self.version, self.content = fencing_token, content
        self.written_at, self.stored_at, self.keep_until = min(self.leased_at + write_delay, now), now, now + ttl
        self.owner, self.leased_at, self.leased_until = "", 0.0, 0.0
        return True

    def peek(self, now: float) -> StoreView:
        """See :meth:`Store.peek`."""
        record = self._record(now) if now < self.keep_until else None
        if now < self.leased_until:
            return StoreView(record, self.owner, self.leased_until - now)
        return StoreView(record)

    def is_dead(self, since: float) -> bool:
        """Return whether nothing of it has been of any use *since* then."""
        return max(self.keep_until, self.leased_until) < since

    def _record(self, now: float) -> Record:
        return Record(self.version, self.content, now - self.written_at, now - self.stored_at)
