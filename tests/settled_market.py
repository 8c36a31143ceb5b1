"""A long market with bets and outages, settled by the resolver while it goes on."""

import random
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from market_days import BEGIN, PRICE, Tape, Traders, resolving
from tap_trading.game.cell import Cell

#: Columns of so many s, and rows of so many cents.
WIDTH, STEP = 5, 1000
USERS = 500
#: Standard deviation of a bar's move, cents; and what `Tape` is told of it in the beginning.
MOVE, SIGMA = 180, 7e-5
#: The least rates that are asked for, basis points.
WANTED = (None, None, None, None, 15_000, 40_000)
#: So much of the market passes between two rounds of the resolver, in columns.
ROUND = 20
#: How long the price stays away, in bars: hardly, as long as is allowed, longer, past whole
#: windows, and so long that the volatility is forgotten.
OUTAGES = (4, 10, 11, 25, 300, 2500)
#: The part of all columns in which an outage begins: some three an hour.
OFTEN = 0.004


async def settled_market(
    books: Path,
    prices: Path,
    seconds: int,
    *,
    begin: int = BEGIN,
    often: float = OFTEN,
    seed: int = 1,
) -> int:
    """Write bars and bets of a market of so many seconds into these databases, the former
    migrated, and settle them all; the end of the last bar, Unix ms. The first begins at `begin`.

    Some six bets are placed on each column, around the price. In the part `often` of all columns
    an outage begins.
    """
    chance = random.Random(seed)
    tape = Tape(prices, begin, sigma=SIGMA)
    traders = Traders(books, count=USERS, balance=10**10, opened_at=begin)
    users = cycle(range(USERS))  # in turn, so that nobody bets on a cell twice
    price, away = PRICE, 0
    try:
        async with resolving(books, prices, lambda: tape.now) as resolver:
            for column in range(seconds // WIDTH):
                traders.bet_many(_bets(chance, users, tape.now, price))
                if not away and chance.random() < often:
                    away = chance.choice(OUTAGES)
                closes: list[int | None] = []
                for _ in range(WIDTH * 10):
                    price += round(chance.gauss(0, MOVE))
                    closes.append(None if away else price)
                    away = max(away - 1, 0)
                tape.play(closes)
                if column % ROUND == 0:
                    while await resolver.step():
                        pass
            tape.stay(tape.now + 60_000)
            while await resolver.step():
                pass
        return tape.now
    finally:
        tape.close()
        traders.close()


def _bets(
    chance: random.Random, users: Iterator[int], now: int, price: int
) -> list[tuple[Cell, int, int, int, int | None]]:
    """Bets of the coming 5 s on the placeable columns, as they come."""
    bets = []
    for ahead in range(2, 6):
        start = now // 1000 + ahead * WIDTH
        for _ in range(chance.randrange(4)):
            low = (price // STEP + chance.randint(-4, 4)) * STEP
            placed_at = now + chance.randrange(WIDTH * 1000)
            amount, wanted = 100 * chance.randint(1, 9), chance.choice(WANTED)
            bets.append(
                (Cell(start, WIDTH, low, low + STEP), placed_at, next(users), amount, wanted)
            )
    return sorted(bets, key=lambda bet: bet[1])
