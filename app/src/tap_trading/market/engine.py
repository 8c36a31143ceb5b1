"""The market's engine: bars are stored, then published, and with them what is offered.

One transaction for each 100 ms holds the bar, how far bars are final, and the columns that are
offered for the first time; only what is on disk is published. Each transaction proves the lease,
so of several processes one makes the market, and the others stand by with their feeds connected.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import apsw
from prometheus_client import Counter, Gauge, Histogram

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.db import DatabaseError
from tap_trading.base.lease import FencedError, Lease
from tap_trading.base.live import NOTICED_WITHIN_S, Live, always
from tap_trading.base.metrics import ERRORS
from tap_trading.game import grid, rates
from tap_trading.game.grid import Column, Geometry
from tap_trading.game.rates import RateModel
from tap_trading.game.volatility import State, VolatilityModel
from tap_trading.market import price_store, restart
from tap_trading.market.bar_maker import BarMaker, Slot
from tap_trading.market.bars import Bar
from tap_trading.market.breaker import Breaker, MarketStatus, Reason
from tap_trading.market.offer import Offer, offered_cells
from tap_trading.market.point import BAR_MS
from tap_trading.market.price_store import Override
from tap_trading.market.publisher import Publisher
from tap_trading.market.restart import Continuation
from tap_trading.market.state import MarketState

T = TypeVar("T")

#: Without a sign of life for this long, the next process takes over.
LEASE_TTL_MS = 1500
#: Offers are made at multiples of this, columns roll at some of them.
_OFFER_MS = 500
#: What ops do and what has to be remembered is looked after this often.
_SECOND_MS = 1000
#: Without bars (a clock that was set back) the rest goes on at this pace, in s.
_IDLE_S = 0.5
#: Who is in trouble tries again after so many seconds; whoever waits for the lease, after so many.
_AGAIN_S = 0.2
_TAKEN_S = 0.1

_BARS = Counter("tap_bars_total", "Bars stored.")
_LATE = Histogram(
    "tap_bar_stored_seconds",
    "From the end of a bar to its being on disk and on its way to Redis, in seconds.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
_STATE = Gauge("tap_market_state", "1 for the market's state, 0 for the others.", ["state"])
_CELLS = Gauge("tap_offer_cells", "Cells in the last offer.")
_OFFER_TIME = Gauge("tap_offer_last_seconds", "When the last offer was made, Unix seconds.")
_OFFER_SECONDS = Histogram(
    "tap_offer_seconds",
    "Time to compute an offer, in seconds.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
)
_LEADING = Gauge("tap_price_leading", "1 while this process makes the market.")


class Run(Protocol):
    """Runs work in a durable transaction that may write, and returns its answer.

    What the work raises is raised, and nothing of it is kept. Raises DatabaseError when it
    could not be written.
    """

    def __call__(self, work: Callable[[apsw.Connection], T]) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class MarketRules:
    """What kind of market it is."""

    source: str  # names where the prices come from
    geometry: Geometry
    rates: RateModel
    volatility: VolatilityModel


class _Step(NamedTuple):
    """A bar, and the volatility after it."""

    bar: Bar
    state: State


class PriceEngine:
    """One process's try at making the market."""

    def __init__(
        self,
        rules: MarketRules,
        maker: BarMaker,
        run: Run,
        publisher: Publisher,
        clock: Clock,
        holder: str,
        live: Live = always,
    ) -> None:
        self._rules = rules
        self._live = live
        self._maker = maker
        self._run = run
        self._publisher = publisher
        self._clock = clock
        self._lease = Lease(price_store.LEASE, holder, LEASE_TTL_MS)
        self._leading = False
        self._ready = False  # what was stored has been read
        self._breaker = Breaker(clock())
        self._override: Override | None = None
        self._last: Bar | None = None
        self._state: State | None = None
        self._columns: dict[int, Column] = {}  # by start: those with a step
        self._offer: Offer | None = None
        self._second = 0
        self._trouble = ""

    async def run(self) -> None:
        """Make the market whenever the lease can be had and the release is live, for ever."""
        while True:
            try:
                if not self._live():
                    await self.release()
                    await asyncio.sleep(NOTICED_WITHIN_S)
                elif self._leading and self._ready:
                    await self._store(await self._maker.made(_IDLE_S))
                elif not await self._begin():
                    await asyncio.sleep(_TAKEN_S)
            except FencedError as error:
                logger.get().warning("standing by", reason=str(error))
                self._stand_by()
            except (DatabaseError, apsw.Error) as error:
                # Whatever was made and not stored is lost; nothing of it was published.
                self._ready = False
                self._maker.pause()
                ERRORS.labels("price_store").inc()
                if not self._trouble:
                    logger.get().error("bars cannot be stored; trying on", error=str(error))
                self._trouble = str(error) or type(error).__name__
                await asyncio.sleep(_AGAIN_S)

    async def release(self) -> None:
        """Let another process take over at once, from exactly here."""
        if not self._leading:
            return
        memory = self._memory()

        def work(connection: apsw.Connection) -> None:
            now = self._clock()
            self._lease.renew(connection, now)
            price_store.remember_index(connection, memory, now)
            self._lease.release(connection)

        try:
            await self._run(work)
        except (FencedError, DatabaseError, apsw.Error) as error:
            logger.get().warning("the lease runs out by itself", error=str(error))
        self._stand_by()

    async def drop_bars(self, before: int, limit: int) -> int | None:
        """Drop some bars stamped before a moment (Unix ms); how many there were.

        None, and nothing is dropped, unless this process makes the market. Raises
        FencedError, DatabaseError or apsw.Error.
        """
        if not self._leading:
            return None

        def work(connection: apsw.Connection) -> int:
            self._lease.renew(connection, self._clock())
            return price_store.drop_bars(connection, before, limit)

        return await self._run(work)

    async def check(self) -> str:
        """Health check: what this process does, when nothing is wrong."""
        if self._trouble:
            raise RuntimeError(f"bars cannot be stored: {self._trouble}")
        return "leading" if self._leading else "standing by"

    async def market(self) -> str:
        """Health check: the market's state, as it was offered last."""
        if self._offer is None:
            return "not made here"
        return f"{self._offer.state}: {self._offer.reason or 'ok'}"

    # The lease.

    async def _begin(self) -> bool:
        """Take the lease, unless it is ours already, and read what was stored.

        Whether it is ours now. Raises FencedError, DatabaseError or apsw.Error.
        """
        rules, ours = self._rules, self._leading

        def work(connection: apsw.Connection) -> Continuation | None:
            now = self._clock()
            if ours:
                self._lease.renew(connection, now)
            elif not self._lease.take(connection, now):
                return None
            return restart.read(
                connection, rules.source, rules.volatility, rules.geometry.width_s, now
            )

        found = await self._run(work)
        if self._trouble:
            logger.get().info("bars are stored again" if ours else "the price database is back")
            self._trouble = ""
        if found is None:
            return False
        if not ours:
            self._breaker = self._breaker_from(found)
            self._override = None
        self._leading = self._ready = True
        _LEADING.set(1)
        self._last, self._state = found.last, found.state
        self._columns = dict(found.columns)
        self._heed(found.override)
        self._maker.begin(found.index, found.last, found.after)
        if not ours:
            logger.get().info("making the market", last_bar=found.last.t if found.last else None)
        return True

    def _breaker_from(self, found: Continuation) -> Breaker:
        """The breaker as it was left: a restart of a second closes nothing."""
        breaker = Breaker(self._clock())
        if found.breaker and found.last is not None:
            try:
                breaker.restore(found.breaker, self._clock())
            except ValueError as error:
                logger.get().error("the breaker begins anew", error=str(error))
            else:
                # Bars are stored more often than it is remembered.
                if 0 <= self._clock() - found.last.t <= _SECOND_MS * 10:
                    breaker.bar(found.last.t)
        return breaker

    def _stand_by(self) -> None:
        self._leading = self._ready = False
        _LEADING.set(0)
        self._maker.end()
        self._offer = None

    # Bars.

    async def _store(self, slots: Sequence[Slot]) -> None:
        """Store what was made, then publish it.

        Raises FencedError, DatabaseError or apsw.Error; nothing is published then.
        """
        now = self._clock()
        steps = self._follow(slots)
        last, state = (steps[-1].bar, steps[-1].state) if steps else (self._last, self._state)
        until = slots[-1].end if slots else None
        status = self._status(now, state)
        fresh = self._fresh_columns(status, last, state, until)
        memory = None
        if now // _SECOND_MS != self._second:
            self._second, memory = now // _SECOND_MS, self._memory()

        def work(connection: apsw.Connection) -> Override | None:
            self._lease.renew(connection, now)
            for step in steps:
                price_store.write_bar(connection, step.bar, self._rules.volatility, step.state)
            if until is not None:
                price_store.finish_bars(connection, until)
            price_store.write_columns(connection, fresh, now)
            if memory is None:
                return self._override
            price_store.remember_index(connection, memory, now)
            return price_store.last_override(connection)

        override = await self._run(work)
        self._last, self._state = last, state
        self._columns |= {column.start: column for column in fresh}
        for step in steps:
            self._publisher.price(step.bar)
            _BARS.inc()
            _LATE.observe(max(self._clock() - step.bar.t - BAR_MS, 0) / 1000)
        self._heed(override)
        self._make_offer(until if until is not None else now - now % BAR_MS)

    def _follow(self, slots: Sequence[Slot]) -> list[_Step]:
        """Tell the volatility and the breaker what was made.

        Should it not be stored after all, the volatility is read anew. The breaker has then
        heard of one bar too many, which opens nothing: without a stored bar there is no offer.
        """
        steps: list[_Step] = []
        state, model = self._state, self._rules.volatility
        for slot in slots:
            bar, reason = slot.bar, slot.reading.reason
            if bar is not None:
                state = (
                    model.start(bar.t, bar.close)
                    if state is None
                    else model.advance(state, bar.t, bar.close)
                )
                steps.append(_Step(bar, state))
                self._breaker.bar(bar.t)
            elif reason is not None:
                self._breaker.missed(slot.end, reason)
        return steps

    def _memory(self) -> str:
        return restart.memory(self._rules.source, self._maker.export(), self._breaker.export())

    def _heed(self, override: Override | None) -> None:
        """Do as ops said last."""
        if override == self._override:
            return
        self._override = override
        if override is not None and override.action == "suspend":
            self._breaker.suspend(override.reason, override.created_at)
        else:
            self._breaker.release()
        if override is not None:
            logger.get().warning(
                "ops decided", action=override.action, by=override.operator, why=override.reason
            )

    # Offers.

    def _status(self, now: int, state: State | None) -> MarketStatus:
        """The market's status: it is not open before there is a volatility to price with."""
        status, model = self._breaker.status(now), self._rules.volatility
        if status.state is MarketState.SUSPENDED or (state and model.ready(state)):
            return status
        wait_ms = int(model.warm_up_bars - state.age) * BAR_MS if state else None
        return MarketStatus(MarketState.SUSPENDED, Reason.SETTLING, status.since, wait_ms, None)

    def _fresh_columns(
        self, status: MarketStatus, last: Bar | None, state: State | None, end: int | None
    ) -> list[Column]:
        """The columns that are to be offered for the first time, with their steps."""
        if status.state is MarketState.SUSPENDED or not (last and state and end):
            return []
        geometry = self._rules.geometry
        fresh = [start for start in grid.starts(geometry, end) if start not in self._columns]
        if not fresh:
            return []
        step = rates.step_for(
            last.close,
            self._rules.volatility.sigma(state),
            width_s=geometry.width_s,
            columns=geometry.columns,
            rows=geometry.rows,
        )
        return [Column(start, geometry.width_s, step) for start in fresh]

    def _make_offer(self, end: int) -> None:
        """Publish an offer twice a second, and when the state changes."""
        status = self._status(self._clock(), self._state)
        before = self._offer
        if (
            before is not None
            and before.state is status.state
            and before.reason == status.reason
            and (before.t + BAR_MS) // _OFFER_MS == end // _OFFER_MS
        ):
            return
        with _OFFER_SECONDS.time():
            self._offer = self._offered(status, end)
        if before is None or (before.state, before.reason) != (status.state, status.reason):
            logger.get().info("market", state=status.state, reason=status.reason, note=status.note)
        for state in MarketState:
            _STATE.labels(state).set(state is status.state)
        _CELLS.set(len(self._offer.cells))
        _OFFER_TIME.set(self._clock() / 1000)
        self._publisher.offer(self._offer)

    def _offered(self, status: MarketStatus, end: int) -> Offer:
        model, geometry = self._rules.volatility, self._rules.geometry
        columns: list[Column] = []
        cells: dict[str, int] = {}
        if status.state is not MarketState.SUSPENDED and self._last and self._state:
            known = self._columns
            columns = [known[start] for start in grid.starts(geometry, end) if start in known]
            self._columns = {column.start: column for column in columns}
            cells = offered_cells(
                self._rules.rates,
                self._last,
                model.sigma(self._state),
                model.spread(self._state),
                columns,
                geometry.rows,
            )
        return Offer(end - BAR_MS, status.state, status.reason, status.retry_in_ms, columns, cells)
