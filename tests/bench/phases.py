"""What a load saw, by the phases that its controller named.

Times are of the monotonic clock in s, latencies in ms, stamps of bars in Unix ms.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench.load import percentile

#: Refused by the market alone: between the offer that a bet was chosen from and its arrival the
#: column has closed, or the price has moved away from the cell. Anything else that is no 202
#: is a failed request.
MARKET_REFUSALS = frozenset({"cell_closed", "unknown_cell"})
ACCEPTED = 202
#: So many kinds of failures are told.
_TOLD = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: when it fell due and how it ended."""

    due: float
    ms: float
    status: int  # 0: no answer
    why: str = ""  # the code of a problem, or what went wrong

    @property
    def refused(self) -> bool:
        """Whether the market alone was against it."""
        return self.why in MARKET_REFUSALS

    @property
    def failed(self) -> bool:
        """Whether the site did not do what it has to."""
        return self.status != ACCEPTED and not self.refused


@dataclass(slots=True)
class Phases:
    """Named spans of time, each until the next begins."""

    begun: list[tuple[float, str]] = field(default_factory=list)
    #: Spans that are told besides: name, beginning and end.
    extra: list[tuple[str, float, float]] = field(default_factory=list)

    def begin(self, name: str, at: float) -> None:
        """From here on it is another phase; one whose name there was gets a number."""
        before = sum(named.partition(" #")[0] == name for _, named in self.begun)
        self.begun.append((at, f"{name} #{before + 1}" if before else name))

    def spans(self, end: float) -> list[tuple[str, float, float]]:
        """Name, beginning and end of each."""
        ends = [*(at for at, _ in self.begun[1:]), end]
        return [(name, at, until) for (at, name), until in zip(self.begun, ends, strict=True)]

    def at(self, moment: float) -> str:
        """The phase of this moment."""
        return next((name for at, name in reversed(self.begun) if at <= moment), "")


def longest_gap(values: Iterable[float]) -> float:
    """The longest distance between two neighbours; 0 with fewer than two."""
    return max((after - before for before, after in pairwise(sorted(values))), default=0.0)


def of_requests(asked: Sequence[Asked]) -> dict[str, Any]:
    """How many, how they ended, and how long those took that were accepted."""
    ordered = sorted(one.ms for one in asked if one.status == ACCEPTED)
    return {
        "requests": len(asked),
        "accepted": len(ordered),
        "refused": dict(Counter(one.why for one in asked if one.refused)),
        "failed": sum(one.failed for one in asked),
        **{f"p{share}_ms": round(percentile(ordered, share / 100), 1) for share in (50, 95, 99)},
        "max_ms": round(percentile(ordered, 1.0), 1),
    }


def of_prices(prices: Sequence[tuple[float, int]], begin: float, end: float) -> dict[str, float]:
    """Gaps in what came between two moments, the one that leads into the span included."""
    before = [price for price in prices if price[0] < begin][-1:]
    seen = before + [price for price in prices if begin <= price[0] < end]
    return {
        "longest_price_gap_s": round(longest_gap(stamp for _, stamp in seen) / 1000, 1),
        "longest_silence_s": round(longest_gap(at for at, _ in seen), 2),
    }


def of_returns(absences: Sequence[dict[str, Any]], begin: float, end: float) -> dict[str, Any]:
    """Connections that ended between two moments, and how long their clients were away."""
    ended = [absence for absence in absences if begin <= absence["at"] < end]
    now = time.monotonic()
    away = sorted(
        now - absence["at"] if absence["back_s"] is None else absence["back_s"]
        for absence in ended
        if absence["how"] != "again"
    )
    return {
        "closed_politely": sum(absence["polite"] for absence in ended),
        "closed_impolitely": sum(not absence["polite"] for absence in ended),
        "median_return_s": round(percentile(away, 0.5), 2),
        "slowest_return_s": round(percentile(away, 1.0), 2),
    }


def of_sockets(seen: dict[str, Any]) -> dict[str, Any]:
    """What `bench.sockets` reports, summed up."""
    absences = seen["absences"]
    traders = seen["traders"]
    return {
        "clients": seen["clients"],
        "signed_in": len(traders),
        **of_returns(absences, 0.0, math.inf),
        "codes": dict(Counter(str(absence["code"]) for absence in absences)),
        "handshakes_refused": len(seen["refused"]),
        "errors": seen["errors"],
        "not_back": seen["clients"] - seen["connected"],
        "returned": _by_way(absences),
        "resets": sum(trader["resets"] for trader in traders),
        "events": sum(trader["told"] for trader in traders),
        "lost_events": sum(trader["never_told"] for trader in traders),
        "doubled_events": sum(trader["doubled"] for trader in traders),
        "disordered_events": sum(trader["disordered"] for trader in traders),
        "prices": len(seen["prices"]),
        "price_frames": seen["received"],
    }


def _by_way(absences: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many came back by which answer, and the slowest of them."""
    times: dict[str, list[float]] = {}
    for absence in absences:
        if absence["back_s"] is not None:
            times.setdefault(absence["how"], []).append(absence["back_s"])
    return {
        how: {"number": len(found), "slowest_s": round(max(found), 2)}
        for how, found in times.items()
    }


def of_failures(failures: Iterable[tuple[float, str]], phases: Phases) -> list[dict[str, Any]]:
    """The first few kinds: why, how many, and when, counted from the first phase's beginning."""
    began = phases.begun[0][0]
    times: dict[str, list[float]] = {}
    for at, why in sorted(failures):
        times.setdefault(why, []).append(at)
    return [
        {
            "why": why,
            "number": len(found),
            "first_s": round(found[0] - began, 2),
            "last_s": round(found[-1] - began, 2),
            "phase": phases.at(found[0]),
        }
        for why, found in list(times.items())[:_TOLD]
    ]
