"""Markets that tests write themselves: bars in a price database, bets in the books."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tap_trading.base.db import ReaderPool, WriterLock, open_writer
from tap_trading.game.cell import Cell
from tap_trading.game.rates import RateModel
from tap_trading.game.volatility import State, VolatilityModel
from tap_trading.ledger import accounts
from tap_trading.ledger.batcher import Batcher
from tap_trading.ledger.bets import BetBooks
from tap_trading.ledger.placing import BetRequest, Limits, Placed, Refusal
from tap_trading.ledger.resolving import Changes
from tap_trading.market import price_store
from tap_trading.market.bars import Bar
from tap_trading.settlement.resolver import Resolver, do_each

BAR_MS = 100
PRICE = 8_421_500
LIMITS = Limits(user=10**12, cell=10**12, column=10**12)
#: A column starts here, Unix s.
START = 1_764_000_000
#: The first bar, Unix ms.
BEGIN = (START - 20) * 1000
SPEED_BUMP_MS = 300
RATES = RateModel()
#: Near the price at all times.
NEAR = Cell(START, 5, PRICE - 500, PRICE + 500)
FAR = Cell(START, 5, PRICE + 3000, PRICE + 4000)


class Tape:
    """Writes bars one after the other, as the price service does."""

    def __init__(self, path: Path, begin: int, price: int = PRICE, sigma: float = 7e-5) -> None:
        """A market whose first bar is stamped `begin` (Unix ms), its volatility known."""
        price_store.migrate(path)
        self._lock = WriterLock(path)
        self._connection = open_writer(path)
        self.model = VolatilityModel(prior=sigma)
        self._state = self.model.start(begin - BAR_MS, price)._replace(age=10_000.0)
        self._close = price
        self.now = begin

    def close(self) -> None:
        """Write no more."""
        with self._lock.held():
            self._connection.close()
        self._lock.close()

    def play(self, closes: Iterable[int | None]) -> None:
        """A bar for each close in cents; None is a moment without a price."""
        with self._lock.held(), self._connection:
            for price in closes:
                if price is not None:
                    self._bar(price)
                self.now += BAR_MS
            price_store.finish_bars(self._connection, self.now)

    def stay(self, until: int) -> None:
        """The same price until a moment (Unix ms)."""
        self.play([self._close] * ((until - self.now) // BAR_MS))

    def miss(self, until: int) -> None:
        """No price until a moment (Unix ms)."""
        self.play([None] * ((until - self.now) // BAR_MS))

    def _bar(self, price: int) -> None:
        low, high = min(price, self._close), max(price, self._close)
        self._state = self.model.advance(self._state, self.now, price)
        price_store.write_bar(
            self._connection, Bar(self.now, price, high, low, price), self.model, self._state
        )
        self._close = price

    @property
    def state(self) -> State:
        """The volatility's, after the last bar."""
        return self._state


class Traders:
    """Users with money who bet at given moments, straight into the books."""

    def __init__(
        self, path: Path, count: int = 3, balance: int = 10**7, opened_at: int = 1
    ) -> None:
        self._lock = WriterLock(path)
        self._connection = open_writer(path)
        self._books = BetBooks(LIMITS)
        self._number = 0
        self.users = [self._open(f"wallet{n}", balance, opened_at) for n in range(count)]

    def close(self) -> None:
        """Bet no more."""
        with self._lock.held():
            self._connection.close()
        self._lock.close()

    def _open(self, address: str, balance: int, at: int) -> str:
        with self._lock.held(), self._connection:
            return accounts.open_account(self._connection, address, at, balance).user_id

    def bet(
        self,
        cell: Cell,
        placed_at: int,
        *,
        user: int = 0,
        amount: int = 1000,
        min_rate: int | None = None,
    ) -> str:
        """Place a bet; its id."""
        [outcome] = self.bet_many([(cell, placed_at, user, amount, min_rate)])
        return outcome

    def bet_many(self, bets: Iterable[tuple[Cell, int, int, int, int | None]]) -> list[str]:
        """Place bets of (cell, placed_at, user, amount, min_rate) in one transaction."""
        requests = []
        for cell, placed_at, user, amount, min_rate in bets:
            self._number += 1
            requests.append(
                BetRequest(
                    f"bet_{placed_at:012x}{self._number:016x}",
                    self.users[user],
                    f"key{self._number}",
                    cell.cell_id,
                    amount,
                    min_rate,
                    placed_at,
                    None,
                    3 * amount,
                )
            )
        with self._lock.held(), self._connection:
            outcomes = self._books.place(self._connection, requests)
        for outcome in outcomes:
            assert isinstance(outcome, Placed) or outcome is Refusal.INSUFFICIENT_FUNDS, outcome
        return [request.bet_id for request in requests]

    def row(self, bet_id: str) -> Mapping[str, Any]:
        """A bet's row, by column."""
        cursor = self._connection.execute("SELECT * FROM bets WHERE id = ?", (bet_id,))
        [row] = cursor.fetchall()
        columns = self._connection.execute("SELECT name FROM pragma_table_info('bets')")
        return dict(zip((name for (name,) in columns), row, strict=True))

    def bets(self) -> list[str]:
        """All bets, in the order of their rows."""
        return [bet for (bet,) in self._connection.execute("SELECT id FROM bets ORDER BY rowid")]

    def balance(self, user: int = 0) -> int:
        """A user's balance, cents."""
        return self._get("SELECT balance FROM users WHERE id = ?", self.users[user])

    def open_stake(self, user: int = 0) -> tuple[int, int]:
        """A user's open stake and liability, cents."""
        row = self._connection.execute(
            "SELECT open_stake, open_liability FROM users WHERE id = ?", (self.users[user],)
        ).fetchone()
        assert row
        return row[0], row[1]

    def count(self, table: str) -> int:
        """Rows of a table."""
        return self._get(f"SELECT count(*) FROM {table}")

    def _get(self, question: str, *values: object) -> int:
        found: Any = self._connection.execute(question, values).get
        return int(found)


class Clock:
    """The time that resolvers see, Unix ms."""

    def __init__(self, now: int = BEGIN) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@asynccontextmanager
async def resolving(
    database: Path, prices: Path, clock: Callable[[], int] | None = None, holder: str = "one"
) -> AsyncIterator[Resolver]:
    """A resolver between these databases; it does nothing by itself."""
    books: Any = Batcher(database, do_each)
    readers, bars = ReaderPool(database), ReaderPool(prices)
    await books.open()
    await readers.open()
    await bars.open()
    try:
        yield Resolver(
            books=books,
            readers=readers,
            prices=bars,
            rates=RATES,
            speed_bump_ms=SPEED_BUMP_MS,
            clock=clock or Clock(),
            holder=holder,
        )
    finally:
        await books.close()
        await readers.close()
        await bars.close()


async def finish(resolver: Resolver) -> Changes:
    """Do all there is to do; everything that it changed."""
    total = Changes()

    def add(changes: Changes) -> None:
        total.bets += changes.bets
        total.balances |= changes.balances

    resolver.on_changes = add
    while await resolver.step():
        pass
    return total
