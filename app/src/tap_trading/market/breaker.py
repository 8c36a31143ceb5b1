"""The circuit breaker: whether bets are taken, by how the index fares and what ops say.

open → degraded (3 s without a price) → suspended (10 s; at once when the venues cannot give
a price) → open again after 30 s of stable prices. Ops can suspend, never open.

Stable means: a bar for at least 95 % of the last 30 s of 100 ms, and none missing for more
than 1 s, which is when columns are void.

Pure: time comes in as Unix ms. It starts suspended: who just came up has seen no stable
prices, unless the state of a process that went shortly before is restored.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tap_trading.game.settlement import MAX_GAP_MS
from tap_trading.market.index import NoPrice
from tap_trading.market.point import BAR_MS
from tap_trading.market.state import DEGRADED_AFTER_MS, SUSPENDED_AFTER_MS, MarketState

STABLE_MS = 30_000
#: Bars that have to be there among the last STABLE_MS.
STABLE_BARS = STABLE_MS // BAR_MS * 95 // 100
#: A longer gap between two bars' ends begins the 30 s anew.
LONGEST_GAP_MS = MAX_GAP_MS
#: A bar that ends further ahead than this is of a clock that has been set back since.
_FUTURE_MS = 2_000


class Reason(StrEnum):
    """Why the market is not open. The values are part of the API."""

    STARTING = "starting"  # no price since the start
    NO_PRICE = "no_price"  # none for some seconds
    QUORUM_LOST = "quorum_lost"  # too few venues
    DISAGREEMENT = "disagreement"  # venues contradict each other
    CLOCK = "clock"  # our clock was set back
    SETTLING = "settling"  # prices are there and have to prove stable
    MANUAL = "manual"  # ops said so


@dataclass(frozen=True, slots=True)
class MarketStatus:
    """The market at one moment."""

    state: MarketState
    reason: Reason | None  # None when open
    since: int  # Unix ms: since when this state
    retry_in_ms: int | None  # until it opens if prices stay stable; None when nobody knows
    note: str | None  # what ops wrote when they suspended it


class Breaker:
    """Tell it of every bar and every reading without a price; ask it at any time."""

    def __init__(self, now: int) -> None:
        self._state = MarketState.SUSPENDED
        self._reason: Reason | None = Reason.STARTING
        self._since = now
        self._last = now  # the last bar's end; at first the start
        self._streak = now  # the first stamp of the bars that have come without a long gap
        self._ends: deque[int] = deque()  # of these, the ends within STABLE_MS
        self._manual: tuple[str, int] | None = None  # what ops wrote, and when

    def bar(self, t: int) -> None:
        """The bar stamped `t` (Unix ms) was made. Stamps rise."""
        end = t + BAR_MS
        self._look(end)  # it may be the first to notice a long gap
        if not self._ends or end - self._ends[-1] > LONGEST_GAP_MS:
            self._ends.clear()
            self._streak = t
        self._ends.append(end)
        while self._ends[0] <= end - STABLE_MS:
            self._ends.popleft()
        self._last = end
        if self._state is not MarketState.OPEN:
            if end - self._streak >= STABLE_MS and len(self._ends) >= STABLE_BARS:
                self._change(MarketState.OPEN, None, end)
            else:
                self._change(self._state, Reason.SETTLING, end)

    def missed(self, now: int, reason: NoPrice) -> None:
        """At `now` (Unix ms) the venues gave no price: the market is suspended at once.

        Not so while a process starts and waits for its first messages: then the age of the
        last bar decides, so that a restart of a second or two closes nothing.
        """
        if reason is NoPrice.STARTING:
            return
        self._ends.clear()
        self._change(MarketState.SUSPENDED, Reason(reason.value), now)

    def suspend(self, note: str, now: int) -> None:
        """Ops suspend the market at `now` until they release it; `note` says why."""
        self._manual = (note, now)

    def release(self) -> None:
        """Ops take their suspension back: the market is what its prices make it."""
        self._manual = None

    def status(self, now: int) -> MarketStatus:
        """The market at `now` (Unix ms)."""
        self._look(now)
        if self._manual is not None:
            note, since = self._manual
            return MarketStatus(MarketState.SUSPENDED, Reason.MANUAL, since, None, note)
        retry = None
        if self._reason is Reason.SETTLING and self._ends and now - self._last <= LONGEST_GAP_MS:
            retry = max(self._streak + STABLE_MS - now, BAR_MS)
        return MarketStatus(self._state, self._reason, self._since, retry, None)

    def _look(self, now: int) -> None:
        """Close by the age of the last bar. Only bars open."""
        age = now - self._last
        told = self._reason not in {None, Reason.SETTLING}  # what went wrong is known already
        if age < -_FUTURE_MS:
            self._ends.clear()
            self._change(MarketState.SUSPENDED, Reason.CLOCK, now)
        elif age >= SUSPENDED_AFTER_MS:
            if self._state is not MarketState.SUSPENDED or not told:
                self._change(MarketState.SUSPENDED, Reason.NO_PRICE, now)
        elif age >= DEGRADED_AFTER_MS and not told:
            suspended = self._state is MarketState.SUSPENDED
            state = MarketState.SUSPENDED if suspended else MarketState.DEGRADED
            self._change(state, Reason.NO_PRICE, now)

    def _change(self, state: MarketState, reason: Reason | None, now: int) -> None:
        if state is not self._state:
            self._since = now
        self._state, self._reason = state, reason

    def export(self) -> dict[str, Any]:
        """What the next process continues from, as JSON can carry it."""
        return {
            "state": self._state.value,
            "reason": None if self._reason is None else self._reason.value,
            "since": self._since,
            "last": self._last,
            "manual": None if self._manual is None else list(self._manual),
        }

    def restore(self, state: Mapping[str, Any], now: int) -> None:
        """Continue from an export. Raises ValueError when it is none; nothing is taken then.

        A suspension by ops stays, however old. The rest is taken if the last bar is younger
        than what suspends: the time between two processes is a gap like any other.
        """
        try:
            market = MarketState(state["state"])
            reason = None if state["reason"] is None else Reason(state["reason"])
            since, last = int(state["since"]), int(state["last"])
            manual = None
            if state["manual"] is not None:
                note, when = state["manual"]
                manual = (str(note), int(when))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a state of the breaker: {error!r}") from error
        if (market is MarketState.OPEN) is not (reason is None):
            raise ValueError(f"not a state of the breaker: {market} because of {reason}")
        self._manual = manual
        if -_FUTURE_MS <= now - last < SUSPENDED_AFTER_MS:
            self._state, self._reason, self._since, self._last = market, reason, since, last
