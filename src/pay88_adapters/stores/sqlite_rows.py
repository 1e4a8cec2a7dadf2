"""Rows of the SQLite store. Each value is checked when it is read: the file may be corrupt, or from another program."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple
from math import isfinite

from pay88_adapters.core.history import MIN_TTL, Cooldown, History, Past

from .base import LeaseResult, Member
from .members import HORIZON, MAX_MEMBERS, assigned_divisor, with_share
from .record_slot import RecordSlot

DAY = 86_400.0
_FRESH = 2.0  # seconds without a write for a member that only repeats a lease attempt
COLUMNS = "version, content, written_at, stored_at, keep_until, fences, owner, leased_at, leased_until"
INSERT = "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)"
SAVE = "REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def read_history(db: sqlite3.Connection, key: str, now: float) -> Past:
    query = "SELECT at, id FROM entries WHERE key = ? AND until >= ? ORDER BY at, id"
    rows = db.execute(query, (key, now)).fetchall()
    if not rows:
        return Past((), (), now)
    instants, ids = zip(*rows, strict=True)  # checked together: there may be a thousand
    if {*map(type, instants)} != {float} or {*map(type, ids)} != {str}:
        raise sqlite3.DatabaseError("an entry that is none")
    real(sum(instants))
    string("".join(ids))
    return Past(instants, ids, now)


def with_entries(past: Past, ids: Sequence[str]) -> Past:
    """Return what :func:`read_history` would after *ids* were added now: reading many rows again takes long."""
    added = sorted({*ids}.difference(past.ids))
    return Past([*past.instants, *[past.now] * len(added)], [*past.ids, *added], past.now)


def merge_entries(db: sqlite3.Connection, key: str, entries: History, ttl: float, now: float) -> None:
    if not entries:
        return
    # All entries of a key are kept equally long.
    row = db.execute("SELECT until - at FROM entries WHERE key = ? AND until >= ? LIMIT 1", (key, now)).fetchone()
    longest = max(ttl, MIN_TTL)
    if row is not None and real(row[0]) < longest - 1e-3:
        db.execute("UPDATE entries SET until = at + ? WHERE key = ?", (longest, key))
    elif row is not None:
        longest = row[0]
    rows = [(key, entry.id, now - entry.age, now - entry.age + longest) for entry in entries if entry.age <= longest]
    db.executemany(INSERT, rows)


def forget_entries(db: sqlite3.Connection, now: float) -> None:
    db.execute("DELETE FROM entries WHERE until < ?", (now - 1.0,))  # of all keys; rounding must not take a live one
    db.execute("DELETE FROM bars WHERE at + seconds < ?", (now,))


def read_cooldown(db: sqlite3.Connection, key: str, now: float) -> Cooldown | None:
    row = db.execute("SELECT at, seconds, reason FROM bars WHERE key = ? AND at + seconds > ?", (key, now)).fetchone()
    return None if row is None else Cooldown(real(row[1]), now - real(row[0]), string(row[2]))


def join_members(db: sqlite3.Connection, result: LeaseResult, member: str, now: float) -> LeaseResult:
    if not member:
        return result
    db.execute("DELETE FROM members WHERE at <= ?", (now - HORIZON,))
    before = db.execute("SELECT member, at, parts FROM members WHERE member = ?", (member,)).fetchone()
    rows = db.execute("SELECT member, at, parts FROM members WHERE member <> ? LIMIT ?", (member, MAX_MEMBERS))
    others = tuple(_member(row, now) for row in rows)
    known = None if before is None else _member(before, now)
    divisor = assigned_divisor(others, known)
    if known is None and len(others) >= MAX_MEMBERS:
        pass  # one too many, like all that come later
    elif known is None or divisor != known.divisor or known.age >= _FRESH:
        db.execute("REPLACE INTO members VALUES (?, ?, ?)", (member, now, divisor))
    return with_share(result, divisor, others, known)


def _member(row: tuple[object, object, object], now: float) -> Member:
    name, at, divisor = row
    return Member(string(name), now - real(at), whole(divisor))


def load_slot(db: sqlite3.Connection, key: str) -> RecordSlot:
    row = db.execute(f"SELECT {COLUMNS} FROM records WHERE key = ?", (key,)).fetchone()  # noqa: S608
    if row is None:
        return RecordSlot()
    version, content, written_at, stored_at, keep_until, last_fencing_token, owner, leased_at, leased_until = row
    if not 0 <= whole(version) <= whole(last_fencing_token):
        raise sqlite3.DatabaseError("a version without a fencing token")
    record = (version, string(content), real(written_at), real(stored_at), real(keep_until))
    return RecordSlot(*record, last_fencing_token, string(owner), real(leased_at), real(leased_until))


def save_slot(db: sqlite3.Connection, key: str, slot: RecordSlot) -> None:
    db.execute(SAVE, (key, *astuple(slot)))


def decode(raw: bytes) -> str:
    return raw.decode(errors="replace")  # SQLite's own error would show the text


def real(value: object) -> float:
    if not isinstance(value, float) or not isfinite(value):
        raise sqlite3.DatabaseError("a column that should be a time")
    return value


def whole(value: object) -> int:
    if not isinstance(value, int):
        raise sqlite3.DatabaseError("a column that should be a number")
    return value


def string(value: object) -> str:
    if not isinstance(value, str) or "\ufffd" in value:
        raise sqlite3.DatabaseError("a column that should be text")
    return value
