"""The state of an emulator as values for JSON, without secrets."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from pay88_adapters.testing.clock import ManualClock
from pay88_adapters.testing.faults import Rule
from pay88_adapters.testing.holds import Hold
from pay88_adapters.testing.journal import Entry
from pay88_adapters.testing.service import Service

from .emulated import Emulated

TIMELINE = 200
"""Number of requests shown, the latest ones."""
_LOOKED_AT = 2_000  # requests that are read for the users of a token
_WINDOWS = 24  # a client that makes up merchants does not fill the page
_TEXT = 200  # characters of what a client sent


class View:
    """Reads the state of an emulator."""

    def __init__(self, emulator: Emulated) -> None:
        self._emulator = emulator
        self._started_at = emulator.clock.now()
        self._counted = 0
        self._counts = Counter[str]()

    def state(self) -> dict[str, Any]:
        """Return the state without the timeline. It changes only with an event."""
        emulator, service, now = self._emulator, self._emulator.service, self._emulator.clock.now()
        return {
            "emulator": {
                "url": emulator.url,
                "merchant": self._shown(service.merchant_id),
                "suspended": service.merchant_id in service.suspended,
                "lifetime": service.lifetime,
                "started_at": self._started_at,
                "speed": 0 if isinstance(emulator.clock, ManualClock) else emulator.clock.speed,
                "movable": isinstance(emulator.clock, ManualClock),
            },
            "counts": {**self._count(), "issued": service.issued, "open_connections": emulator.open_connections},
            "windows": self._windows(service, now),
            "tokens": self._tokens(service, now),
            "faults": self.faults(),
        }

    def now(self) -> float:
        """Return the time of the emulator's clock, which every ``…_at`` refers to."""
        return self._emulator.clock.now()

    def faults(self) -> list[dict[str, Any]]:
        """Return the active faults."""
        return [self.rule(rule) for rule in self._emulator.faults if rule.left != 0]

    def rule(self, rule: Rule) -> dict[str, Any]:
        """Return one fault."""
        return {
            "id": rule.number,
            "fault": "+".join(type(fault).__name__ for fault in rule.faults),
            "parameters": [self._parameters(fault) for fault in rule.faults],
            "on": self._shown(rule.on) if isinstance(rule.on, str) else "a predicate",
            "times": rule.left,
            "after": rule.spared,
            "probability": rule.probability,
            "used": rule.used,
            "held": sum(fault.held for fault in rule.faults if isinstance(fault, Hold)),
        }

    def entry(self, number: int, entry: Entry) -> dict[str, Any]:
        """Return a line of the timeline; *number* counts from 1."""
        return {
            "n": number,
            "at": entry.at,
            "kind": entry.kind,
            "method": entry.method,
            "path": self._shown(entry.path),
            "status": entry.status,
            "took": entry.took,
            "event": entry.event,
            "token": entry.serial,
            "token_age": entry.age,
            "client": self._agent(entry),
            "peer": f"{entry.peer[0]}:{entry.peer[1]}",
            "fault": entry.fault,
            "finished": entry.finished,
        }

    def _count(self) -> dict[str, int]:
        """Count what is new in the journal: an emulator that was busy for hours is not read from the start."""
        new = self._emulator.journal[self._counted :]
        self._counted += len(new)
        self._counts.update(entry.kind for entry in new)
        return {"token_requests": self._counts["token"], "calls": self._counts["call"], "others": self._counts["other"]}

    def _windows(self, service: Service, now: float) -> list[dict[str, Any]]:
        usage = service.usage(now)[:_WINDOWS]
        return [
            {
                "limit": each.limit,
                "seconds": each.seconds,
                "group": each.group,
                "merchant": self._shown(each.merchant_id),
                "used": each.used,
                "frees_at": each.frees_at,
            }
            for each in usage
        ]

    def _tokens(self, service: Service, now: float) -> list[dict[str, Any]]:
        tokens = service.current_tokens(now)
        users = self._users(min((token.issued_at for token in tokens), default=now))
        return [
            {
                "serial": token.serial,
                "issued_at": token.issued_at,
                "expires_at": token.expires_at,
                "merchant": self._shown(token.merchant_id),
                "rejected": token.rejected,
                "users": [
                    {"client": client, "peer": peer, "calls": calls}
                    for (client, peer), calls in users.get(token.serial, Counter()).most_common(8)
                ],
            }
            for token in tokens
        ]

    def _users(self, since: float) -> dict[int, Counter[tuple[str, str]]]:
        """Return the number of requests of each client with each token, among the latest ones."""
        users: dict[int, Counter[tuple[str, str]]] = {}
        for entry in self._emulator.journal[-_LOOKED_AT:]:
            if entry.at >= since and entry.kind == "call" and entry.serial is not None:
                users.setdefault(entry.serial, Counter())[entry.headers.get("user-agent", ""), entry.peer[0]] += 1
        return {
            serial: Counter({(self._shown(client), peer): calls for (client, peer), calls in counter.items()})
            for serial, counter in users.items()
        }

    def _agent(self, entry: Entry) -> str:
        return self._shown(entry.headers.get("user-agent", ""))

    def _parameters(self, fault: object) -> dict[str, Any]:
        if isinstance(fault, Hold) or not dataclasses.is_dataclass(fault):
            return {}
        given = {each.name: getattr(fault, each.name) for each in dataclasses.fields(fault)}
        return {name: self._plain(value) for name, value in given.items()}

    def _plain(self, value: Any) -> Any:
        match value:
            case bool() | int() | float() | None:
                return value
            case bytes():
                return f"{len(value)} bytes"  # any bytes, possibly a whole token response
            case str():
                return self._shown(value)
            case _:
                return {self._shown(name): self._shown(each) for name, each in dict(value).items()}

    def _shown(self, text: str) -> str:
        masked = self._emulator.service.masked(text)
        return masked if len(masked) <= _TEXT else f"{masked[:_TEXT]}…"
