"""The resolver: fixes the rates of new bets and settles columns that have closed.

It decides from what is stored and final, and from nothing else: a bar, once it is followed by
`bars_until`, never changes. So it does not matter when it decides or which process does, and
one that was killed leaves nothing half-done: the next one reads what is still open.

Each transaction first proves the lease, so of several resolvers one writes; and each change
names the status it comes from, so not even two that both believed it could pay twice.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import apsw
import numpy as np
from prometheus_client import Counter as CounterMetric
from prometheus_client import Gauge, Histogram

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.db import DatabaseError, ReaderPool
from tap_trading.base.lease import FencedError, Lease
from tap_trading.base.live import Live, always
from tap_trading.game import cell as cells
from tap_trading.game.cell import Cell
from tap_trading.game.rates import RateModel
from tap_trading.game.settlement import (
    BAR_MS,
    VoidReason,
    Window,
    payout,
    price_moment,
    window,
)
from tap_trading.ledger import resolving
from tap_trading.ledger.batcher import Batcher, OverloadedError, StorageUnavailableError
from tap_trading.ledger.placing import scopes
from tap_trading.ledger.resolving import (
    BooksChangedError,
    Changes,
    Confirmed,
    OpenBet,
    Pricing,
    Settled,
    Void,
)
from tap_trading.market import price_store
from tap_trading.market.price_store import StoredBar

#: The name of its lease.
LEASE = "resolver"
#: Without a sign of life for this long, the next process takes over.
LEASE_TTL_MS = 1500
_RENEW_EVERY_MS = 300

#: What a transaction does: on the writing connection, at a moment (Unix ms).
Work = Callable[[apsw.Connection, int], Changes]
Books = Batcher[Callable[[apsw.Connection], Changes], Changes]

#: Looked for work this often while there is none, in s.
_IDLE_S = 0.05
_TROUBLE_S = 0.5
#: Bets are read so many at a time, and written in transactions that take about so long, in s:
#: whoever places a bet meanwhile waits for one of them.
_READ = 5000
_TRANSACTION_S = 0.005
_FEWEST, _FIRST, _MOST = 20, 100, 1000
#: Users are released so many at a time: little is written for each, and few pages.
_RELEASED_AT_ONCE = 500
#: The part of a core that work may take: less than the unit's quota, so that it is never
#: stopped in the middle of a transaction.
_SHARE = 0.45

_RESOLVED = CounterMetric("tap_bets_resolved_total", "Bets that changed their status.", ["status"])
_TRANSACTION = Histogram(
    "tap_resolver_transaction_seconds",
    "From asking for a transaction to the end of its commit, in seconds.",
    buckets=(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
_LEADING = Gauge("tap_resolver_leading", "1 while this process holds the lease.")
_LAG = Gauge("tap_resolver_lag_seconds", "From a column's end to its last result, the last one.")


def do_each(
    connection: apsw.Connection, works: Sequence[Callable[[apsw.Connection], Changes]]
) -> Sequence[Changes]:
    """What the batcher of a resolver does with its items."""
    return [work(connection) for work in works]


@dataclass(slots=True)
class ClosedColumn:
    """A column that is being settled."""

    start: int  # Unix s
    width: int  # s
    window: Window
    #: The last user whose settled bets of it no longer count as open, "" when all still do. None
    #: when it is through; bets that turned up later are released at once.
    released: str | None
    numbers: deque[int]  # rows of its bets, still to be read
    unsettled: deque[OpenBet] = field(default_factory=deque)
    unreleased: deque[tuple[str, int, int]] | None = None  # None as long as nobody has looked

    def holds(self, bet: OpenBet) -> bool:
        """Whether a bet is on a cell of it."""
        return scopes(bet.cell_id)[1] == f"{self.start}:{self.width}"


class Resolver:
    """One process's try at being the resolver."""

    def __init__(
        self,
        *,
        books: Books,
        readers: ReaderPool,
        prices: ReaderPool,
        rates: RateModel,
        speed_bump_ms: int,
        clock: Clock,
        holder: str,
    ) -> None:
        self._books = books
        self._readers = readers
        self._prices = prices
        self._rates = rates
        self._speed_bump_ms = speed_bump_ms
        self._clock = clock
        self._lease = Lease(LEASE, holder, LEASE_TTL_MS)
        self._leading = False
        self._proved_at = 0
        #: Whether this process's release is the live one; the other stands by.
        self.live: Live = always
        #: Called with what each transaction has changed, once it is durable.
        self.on_changes: Callable[[Changes], None] = lambda _changes: None
        #: Called when changes may have become durable without `on_changes` hearing of them.
        self.on_missed: Callable[[], None] = lambda: None
        #: Called with the lease's token when this process begins to lead, before any change,
        #: and awaited when it no longer does, after the last one and before another may.
        self.on_lead: Callable[[int], None] = lambda _token: None
        self.on_release: Callable[[int], Awaitable[None]] = _nothing
        self._transaction: asyncio.Task[Changes] | None = None
        self._in_doubt = False  # the last transaction failed, but perhaps after its commit
        self._chunk = float(_FIRST)
        self._decided: deque[Confirmed | Void] = deque()
        self._pricings: dict[int, Pricing] = {}
        self._column: ClosedColumn | None = None
        self._settles_next = False
        self._trouble = ""

    async def run(self) -> None:
        """Resolve for ever."""
        while True:
            began = time.process_time()
            try:
                pause = 0.0 if await self.step() else _IDLE_S
                self._trouble = ""
            except (FencedError, BooksChangedError) as error:
                logger.get().warning("starting over", reason=str(error))
                self._forget()
                pause = _IDLE_S
                if isinstance(error, FencedError):
                    self._lead(leading=False)
            except (DatabaseError, StorageUnavailableError, OverloadedError) as error:
                if str(error) != self._trouble:
                    logger.get().error("cannot resolve; trying on", error=str(error))
                self._trouble = str(error)
                self._forget()
                pause = _TROUBLE_S
            spent = time.process_time() - began
            await asyncio.sleep(max(pause, spent / _SHARE - spent))

    async def step(self) -> bool:
        """Do the next thing, one transaction at most; whether there was any.

        Raises FencedError or BooksChangedError when somebody else does the same work, and
        DatabaseError, StorageUnavailableError or OverloadedError when it could not be done.
        """
        if not self.live():
            await self.release()
            return False
        if not self._leading:
            return await self._take_over()
        until = await self._prices.run(price_store.bars_until)
        # In turns, so that a crowd of new bets does not keep closed columns waiting.
        self._settles_next = not self._settles_next
        if self._settles_next and await self._settle(until):
            return True
        if await self._confirm(until) or (not self._settles_next and await self._settle(until)):
            return True
        if self._clock() - self._proved_at >= _RENEW_EVERY_MS:
            await self._write(lambda _connection, _now: Changes())
        return False

    async def release(self) -> None:
        """Let another process take over at once, when the transaction under way has ended and
        its changes are told. Whoever calls this has ended `run`, or is it.
        """
        if not self._leading:
            return
        self._lead(leading=False)
        if self._transaction:
            await asyncio.wait({self._transaction})
        if self._in_doubt:
            self.on_missed()
        if self._lease.token is not None:
            await self.on_release(self._lease.token)

        def work(connection: apsw.Connection) -> Changes:
            self._lease.release(connection)
            return Changes()

        self._forget()
        try:
            await self._books.handle(work)
        except (StorageUnavailableError, OverloadedError) as error:
            logger.get().warning("the lease is left to expire", error=str(error))

    async def check(self) -> str:
        """Health check: what this process is, when nothing is wrong."""
        if self._trouble:
            raise RuntimeError(self._trouble)
        return "leading" if self._leading else "standing by"

    # The lease.

    async def _take_over(self) -> bool:
        taken = False

        def work(connection: apsw.Connection) -> Changes:
            nonlocal taken
            now = self._clock()
            taken = self._lease.take(connection, now)
            self._proved_at = now
            return Changes()

        await self._books.handle(work)
        self._lead(leading=taken)
        if taken and self._lease.token is not None:
            self.on_lead(self._lease.token)
        return taken

    def _lead(self, *, leading: bool) -> None:
        if leading is not self._leading:
            logger.get().info("resolving from now on" if leading else "standing by from now on")
        self._leading = leading
        _LEADING.set(leading)

    def _forget(self) -> None:
        """What was read is read anew."""
        self._decided.clear()
        self._pricings.clear()
        self._column = None

    async def _write(self, work: Work) -> Changes:
        """One transaction, if the lease is still ours. Raises FencedError when it is not."""
        if not self._leading:
            raise FencedError("the lease has been released")
        now = self._clock()

        def proved(connection: apsw.Connection) -> Changes:
            self._lease.renew(connection, now)
            return work(connection, now)

        began = time.perf_counter()
        # Whoever is cancelled here leaves the transaction to its end, and its changes are told.
        self._transaction = asyncio.create_task(self._transact(proved))
        changes = await asyncio.shield(self._transaction)
        took = time.perf_counter() - began
        _TRANSACTION.observe(took)
        self._proved_at = now
        if changes.bets:
            wanted = self._chunk * min(max(_TRANSACTION_S / took, 0.5), 1.5)
            self._chunk = min(max(wanted, _FEWEST), _MOST)
            for status, count in Counter(bet.status for _, bet in changes.bets).items():
                _RESOLVED.labels(status).inc(count)
        return changes

    async def _transact(self, work: Callable[[apsw.Connection], Changes]) -> Changes:
        """One transaction, and what it has changed told."""
        try:
            changes = await self._books.handle(work)
        except StorageUnavailableError:
            self._in_doubt = True
            raise
        if self._in_doubt:
            self._in_doubt = False
            self.on_missed()
        if changes.bets:
            self.on_changes(changes)
        return changes

    # Rates.

    async def _decide(self, until: int) -> None:
        """Decide the pending bets that can be: every bar before `until` (Unix ms) is final."""
        placed_until = until - self._speed_bump_ms
        waiting = await self._readers.run(
            lambda connection: resolving.pending(connection, placed_until, _READ)
        )
        if not waiting:
            return
        moments = {price_moment(bet.placed_at, self._speed_bump_ms) for bet in waiting}

        def first_bars(connection: apsw.Connection) -> dict[int, StoredBar | None]:
            return {each: price_store.first_bar(connection, each, until) for each in moments}

        bars = await self._prices.run(first_bars)
        priced: list[tuple[OpenBet, Cell, Pricing]] = []
        for bet in waiting:
            cell = _cell(bet)
            start = cell.start * 1000
            bar = bars[price_moment(bet.placed_at, self._speed_bump_ms)]
            if bar is None and start > until:
                continue  # it may still come
            pricing = bar and bar.t + BAR_MS <= start and self._pricing(bar)
            if pricing:
                priced.append((bet, cell, pricing))
            else:
                self._decided.append(Void(bet, VoidReason.NO_PRICE))
        if priced:
            self._price(priced)

    def _pricing(self, bar: StoredBar) -> Pricing | None:
        """What rates are computed from after `bar`; None when it is too little."""
        if bar.sigma is None or bar.spread is None:
            return None
        if bar.t not in self._pricings:
            self._pricings[bar.t] = Pricing(
                *(bar.t, bar.close, bar.sigma, bar.spread, self._speed_bump_ms),
                *(self._rates.version, bar.volatility_model),
            )
        return self._pricings[bar.t]

    def _price(self, priced: Sequence[tuple[OpenBet, Cell, Pricing]]) -> None:
        """Rates from the first bar after each bet's speed bump, with its end as now."""
        inputs = np.array(
            [
                (
                    *(pricing.price, pricing.sigma, pricing.spread),
                    *((cell.start * 1000 - pricing.bar - BAR_MS) / 1000, cell.width),
                    *(cell.low, cell.high),
                )
                for _, cell, pricing in priced
            ],
            dtype=np.float64,
        )
        rates = self._rates.rate_bps(self._rates.probability(*inputs.T))
        for (bet, _, pricing), rate in zip(priced, rates.tolist(), strict=True):
            if not rate:
                self._decided.append(Void(bet, VoidReason.NOT_OFFERED, pricing.bar))
            elif rate < (bet.min_reward_rate_bps or 0):
                self._decided.append(Void(bet, VoidReason.RATE_BELOW_MINIMUM, pricing.bar))
            else:
                self._decided.append(Confirmed(bet, pricing.bar, rate))

    async def _confirm(self, until: int) -> bool:
        """Write some decisions on pending bets; whether there were any."""
        if not self._decided:
            await self._decide(until)
        if not self._decided:
            return False
        chunk = list(islice(self._decided, int(self._chunk)))
        bars = {decision.bar for decision in chunk if decision.bar is not None}
        pricings = [self._pricings[bar] for bar in sorted(bars)]
        await self._write(
            lambda connection, now: resolving.confirm(connection, chunk, pricings, now)
        )
        column = self._column
        for decision in chunk:
            self._decided.popleft()
            if column and isinstance(decision, Confirmed) and column.holds(decision.bet):
                column.numbers.append(decision.bet.number)
            if isinstance(decision, Void):
                logger.get().debug("bet void", bet_id=decision.bet.bet_id, reason=decision.reason)
        if not self._decided:
            self._pricings.clear()
        return True

    # Results.

    async def _settle(self, until: int) -> bool:
        """Do the next thing on the column that closed first; whether there was any."""
        column = self._column
        if column is None:
            column = self._column = await self._next_column(until)
        if column is None:
            return False
        if column.released:  # begun, by us or by a process that is gone
            await self._release(column)
            return True
        if not column.unsettled and column.numbers:
            numbers = [column.numbers.popleft() for _ in range(min(len(column.numbers), _READ))]
            column.unsettled += await self._readers.run(
                lambda connection: resolving.read(connection, numbers)
            )
        if column.unsettled:
            await self._settle_bets(column)
            return True
        if column.released is not None:
            if await self._readers.run(
                lambda connection: resolving.waits(connection, column.start, column.width)
            ):
                return False  # settled with the others, once they have their rates
            _LAG.set(self._clock() / 1000 - column.start - column.width)
            await self._release(column)
            return True
        return await self._close(column)

    async def _next_column(self, until: int) -> ClosedColumn | None:
        columns = await self._readers.run(
            lambda connection: resolving.exposed_columns(connection, until // 1000)
        )
        if not columns:
            return None
        start, width = columns[0]
        decided = await self._readers.run(
            lambda connection: resolving.window_of(connection, start, width)
        )
        if decided is None:
            bars = await self._prices.run(
                lambda connection: price_store.bars(
                    connection, start * 1000, (start + width) * 1000
                )
            )
            decided = window(start, width, bars), ""
        numbers = await self._readers.run(
            lambda connection: resolving.confirmed(connection, start, width)
        )
        return ClosedColumn(start, width, *decided, deque(numbers))

    async def _settle_bets(self, column: ClosedColumn) -> None:
        """One transaction's worth of the column's results."""
        found, at_once = column.window, column.released is None
        bets = list(islice(column.unsettled, int(self._chunk)))
        results = [] if found.void else [_result(found, bet) for bet in bets]

        def work(connection: apsw.Connection, now: int) -> Changes:
            resolving.write_window(connection, column.start, column.width, found, now)
            if found.void:
                voids = [Void(bet, VoidReason.FEED_OUTAGE) for bet in bets]
                return resolving.void(connection, voids, now, at_once=at_once)
            return resolving.settle(connection, results, now, at_once=at_once)

        await self._write(work)
        for _ in bets:
            column.unsettled.popleft()

    async def _release(self, column: ClosedColumn) -> None:
        """One transaction's worth of users whose settled bets no longer count as open."""
        start, width, released = column.start, column.width, column.released or ""
        if column.unreleased is None:
            column.unreleased = deque(
                await self._readers.run(
                    lambda connection: resolving.unreleased(connection, start, width, released)
                )
            )
        users = list(islice(column.unreleased, _RELEASED_AT_ONCE))
        last = len(users) == len(column.unreleased)

        def work(connection: apsw.Connection, now: int) -> Changes:
            resolving.write_window(connection, start, width, column.window, now)
            resolving.release(connection, (start, width), users, released, last=last)
            return Changes()

        await self._write(work)
        for _ in users:
            column.unreleased.popleft()
        if last:
            self._column = None  # it comes again, to be closed
        else:
            column.released = users[-1][0]

    async def _close(self, column: ClosedColumn) -> bool:
        """Forget the exposures of the column; whether no bet of it waits any longer."""
        start, width = column.start, column.width
        closed = False

        def work(connection: apsw.Connection, _now: int) -> Changes:
            nonlocal closed
            closed = not resolving.waits(connection, start, width)
            if closed:
                resolving.close_column(connection, start, width)
            return Changes()

        await self._write(work)
        self._column = None
        if closed:
            logger.get().info("column settled", start=start, width=width, void=column.window.void)
        return closed  # else some of its bets wait for their rates


async def _nothing(_token: int) -> None:
    """Nobody is told."""


def _cell(bet: OpenBet) -> Cell:
    cell = cells.parse(bet.cell_id)
    if cell is None:
        raise DatabaseError(f"{bet.bet_id} is on no cell: {bet.cell_id}")
    return cell


def _result(found: Window, bet: OpenBet) -> Settled:
    if bet.reward_rate_bps is None:
        raise DatabaseError(f"{bet.bet_id} cannot be settled: it has no rate")
    return Settled(bet, payout(bet.amount, bet.reward_rate_bps) if found.wins(_cell(bet)) else 0)
