"""Checks a chaos test: the requests at the servers must keep the rules."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from pay88_adapters.testing import Entry, Request
from support.chaos import ATTEMPTS, FETCH_TIMEOUT, LIFETIME, PIECE, SCHEDULING, TIMEOUT, ChaosRun


class Judge:
    """Checks the rules against the servers' journals alone."""

    def __init__(self, storm: ChaosRun) -> None:
        self.storm = storm
        self.journal, self.elsewhere = storm.emulator.journal, storm.elsewhere.journal
        self.tokens = self.journal.select("token")
        self.calls = self.journal.select("call")
        self.secrets = storm.emulator.service.secrets()
        pulses = [entry for entry in self.journal.select("other") if entry.path.startswith("/pulse")]
        self.pulses = [(entry.at, entry.at - float(_query(entry, "at"))) for entry in pulses]
        self.late = max((late for _, late in self.pulses), default=0.0)
        """How late a request arrived at worst, in seconds of the service."""
        self.by_call: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.calls:
            self.by_call[_query(entry, "call")].append(entry)

    def complaints(self, *, timed: bool) -> list[str]:
        """Return what was against the rules.

        Args:
            timed: Apply the checks that need a machine with nothing else to do, too: they conclude from the time
                between two requests what their client knew.
        """
        checks = [
            self._budget, self._ages, self._pairs, self._arrivals,
            self._charges, self._bodies, self._origins, self._texts,
        ]  # fmt: skip
        if timed:
            checks += [self._retry_after, self._single_flight]
        return [*self.storm.complaints, *(f"{check.__name__}: {each}" for check in checks for each in check())]

    def _slack(self, at: float) -> float:
        """Return how late requests may have arrived about then, the clients' threads' waits included."""
        speed = self.storm.scale.speed
        near = [late for pulse, late in self.pulses if abs(pulse - at) <= speed]  # within a real second
        return max(near, default=self.late) + SCHEDULING * speed

    def _budget(self) -> Iterator[str]:
        for seconds, most in ((60, 10), (3600, 100)):
            if (seen := self.journal.max_in_window(seconds)) > most:
                yield f"{seen} token requests in {seconds} s"
        for entry in self.tokens:
            if entry.status == 429 and "TooMany" not in (entry.fault or ""):
                yield f"refused by the service itself: {entry}"

    def _retry_after(self) -> Iterator[str]:
        """None before it has passed, unless the 429 came too late for its client.

        That it did not is certain where the same connection was used again, or the next request came
        before the first could have timed out.
        """
        for place, entry in enumerate(self.tokens):
            if not (entry.fault or "").endswith("TooMany"):
                continue
            slack = self._slack(entry.at)
            until = entry.at + self.storm.retry_after - slack
            for other in self.tokens[place + 1 :]:
                if other.at >= until:
                    break
                in_flight = other.at < entry.at + slack
                in_time = other.at < entry.at + FETCH_TIMEOUT - slack
                if not in_flight and (in_time or self._received(entry, other.at)):
                    yield f"{entry} was followed by {other}"

    def _received(self, entry: Entry, before: float) -> bool:
        return any(each.peer == entry.peer and entry.at < each.at < before for each in self.journal)

    def _single_flight(self) -> Iterator[str]:
        """A token that arrived is used before another one is fetched."""
        for entry, other in itertools.pairwise(self.tokens):
            slack = self._slack(entry.at)
            if entry.event != "issued" or entry.fault is not None or other.at > entry.at + FETCH_TIMEOUT - slack:
                continue
            used = any(call.serial == entry.serial and call.at <= other.at for call in self.calls)
            lost = any(began <= other.at and entry.at - slack <= ended for began, ended in self.storm.disturbed)
            if not used and not lost:
                yield f"{entry} was followed by {other}"

    def _ages(self) -> Iterator[str]:
        for entry in self.calls:
            if entry.serial is None:
                yield f"an unknown token, or none: {entry}"
            elif entry.age is not None and entry.age - (entry.at - self.storm.began[_query(entry, "call")]) > LIFETIME:
                yield f"{entry.age:.1f} s old on arrival: {entry}"

    def _pairs(self) -> Iterator[str]:
        for this, that in (("authorization", "x-session-id"), ("x-session-id", "authorization")):
            seen: dict[str, str] = {}
            for entry in self.calls:
                if seen.setdefault(entry.headers.get(this, ""), entry.headers.get(that, "")) != entry.headers.get(
                    that, ""
                ):
                    yield f"{this} and {that} do not belong together: {entry}"

    def _arrivals(self) -> Iterator[str]:
        """A request arrives again once after a 401, and as its policy says after a 429, or if it is idempotent.

        A 401 that came when its client had given up is an attempt that failed.
        """
        patience = TIMEOUT * self.storm.scale.speed
        for entries in self.by_call.values():
            again = [first for first, _ in itertools.pairwise(entries)]
            safe = entries[0].method == "GET" or "/api/balance" in entries[0].path
            harmful = [entry for entry in again if entry.status not in (401, 429)]
            rejected = [entry for entry in again if entry.status == 401 and (entry.took or 0.0) < patience]
            if (harmful and not safe) or len(rejected) > 1 or len(again) - len(rejected) >= ATTEMPTS:
                yield f"more attempts than allowed: {entries}"

    def _charges(self) -> Iterator[str]:
        booked = Counter(charge.body["reference"] for charge in self.storm.emulator.service.charges)
        yield from (f"{reference} was booked {times} times" for reference, times in booked.items() if times > 1)

    def _bodies(self) -> Iterator[str]:
        for entry in self.calls:
            digest = _query(entry, "sha256")
            if digest and entry.executed and hashlib.sha256(entry.body).hexdigest() != digest:
                yield f"not the body that was given: {entry}"

    def _origins(self) -> Iterator[str]:
        keys = _pieces(secret for secret in self.secrets if secret.startswith("sk_"))
        others = _pieces(self.secrets) - keys
        for entry in self.journal:
            text = _written(entry)
            if entry.kind != "token" and ("x-api-key" in entry.headers or _shows(text, keys)):
                yield f"an API key in {entry}"
            if entry.kind != "call" and _shows(text, others):
                yield f"a token in {entry}"
            if entry.kind == "token" and "cookie" in entry.headers:
                yield f"a cookie in {entry}"
        for entry in self.elsewhere:
            named = {"x-session-id", "x-api-key", "authorization"} & entry.headers.keys()
            if named or _shows(_written(entry), keys | others):
                yield f"{named or 'a secret'} on another origin: {entry}"

    def _texts(self) -> Iterator[str]:
        pieces = _pieces(self.secrets)
        found = [text for text in (*self.storm.texts, *self.storm.log.seen) if _shows(text, pieces)]
        if found:
            yield f"{len(found)} texts show secrets; one begins with {found[0][:20]!r}"

    def figures(self) -> str:
        """Return what happened, for people."""
        storm = self.storm
        entries = [*self.tokens, *self.calls]
        faults = Counter(name for entry in entries if entry.fault for name in entry.fault.split("+"))
        replays = sum(first.status == 401 for each in self.by_call.values() for first, _ in itertools.pairwise(each))
        hours = (self.calls[-1].at - self.calls[0].at) / 3600 if self.calls else 0.0
        lines = {
            "seed": storm.seed,
            "real seconds": f"{storm.scale.seconds:g} at speed {storm.scale.speed:g}",
            "hours of the service": f"{hours:.2f}",
            "calls made": storm.calls,
            "calls arrived": len(self.calls),
            "calls arrived elsewhere": len(self.elsewhere),
            "charges booked": len(storm.emulator.service.charges),
            "token requests": len(self.tokens),
            "most in a minute, in an hour": (self.journal.max_in_window(60), self.journal.max_in_window(3600)),
            "tokens issued": self.journal.issued,
            "oldest token on arrival": f"{self.journal.oldest_token_age or 0:.1f} s",
            "latest arrival": f"{self.late:.2f} s",
            "recovery": f"{storm.recovery:.1f} s" if storm.recovery is not None else "never",
            "calls with a 401": sum(entry.status == 401 for entry in self.calls),
            "replays": replays,
            "disturbances": len(storm.disturbed),
            "faults on tokens": dict(Counter(each.fault for each in self.tokens if each.fault).most_common(8)),
            "faults": dict(faults.most_common()),
            "outcomes": dict(storm.outcomes.most_common()),
        }
        return "\n".join(f"  {name}: {value}" for name, value in lines.items())


def _written(entry: Entry) -> str:
    return "\n".join([*entry.headers.values(), entry.path, entry.body.decode("latin-1")])


def _pieces(secrets: Iterable[str]) -> frozenset[str]:
    """Cut secrets up: any piece reveals one, and one set can be searched for all pieces."""
    return frozenset(each[at : at + PIECE] for each in secrets for at in range(0, len(each) - PIECE + 1, PIECE))


def _shows(text: str, pieces: frozenset[str]) -> bool:
    return any(text[at : at + PIECE] in pieces for at in range(len(text) - PIECE + 1))


def _query(entry: Entry, name: str) -> str:
    return Request(entry.method, entry.path).query.get(name, [""])[0]
