"""A price database as a price service leaves it, so that the next one need not warm up."""

import random
from collections.abc import Iterable
from pathlib import Path

from tap_trading.base.db import WriterLock, open_reader, open_writer
from tap_trading.game.volatility import VolatilityModel
from tap_trading.market import price_store, restart
from tap_trading.market.bars import Bar
from tap_trading.market.breaker import Breaker
from tap_trading.market.point import BAR_MS
from tap_trading.market.price_store import StoredBar

#: A minute makes a volatility.
ENOUGH = 700


def closes(count: int, price: int, seed: int = 1, step: float = 3.2e-5) -> list[int]:
    """A random walk of closes in cents that ends at `price`."""
    rng = random.Random(seed)
    walk = [float(price)]
    for _ in range(count - 1):
        walk.append(walk[-1] * (1 + rng.gauss(0, step)))
    return [round(value) for value in reversed(walk)]


def write(
    path: Path,
    until: int,
    prices: Iterable[int],
    source: str = "mock",
    model: VolatilityModel | None = None,
) -> None:
    """Bars with these closes, the last of them ending at `until` (Unix ms), in an open market."""
    model = model or VolatilityModel()
    found = list(prices)
    until -= until % BAR_MS
    t = until - len(found) * BAR_MS
    breaker = Breaker(t)
    state, before = None, found[0]
    lock, connection = WriterLock(path), open_writer(path)
    with lock.held(), connection:
        for price in found:
            state = model.advance(state, t, price) if state else model.start(t, price)
            bar = Bar(t, price, max(price, before), min(price, before), price)
            price_store.write_bar(connection, bar, model, state)
            breaker.bar(t)
            before, t = price, t + BAR_MS
        price_store.finish_bars(connection, until)
        memory = restart.memory(source, {}, breaker.export())
        price_store.remember_index(connection, memory, until)
    connection.close()
    lock.close()


def bars(path: Path) -> list[StoredBar]:
    """All bars there are, oldest first."""
    connection = open_reader(path)
    try:
        return price_store.bars(connection, 0, 2**62)
    finally:
        connection.close()


def bars_until(path: Path) -> int:
    """How far bars are final, Unix ms."""
    connection = open_reader(path)
    try:
        return price_store.bars_until(connection)
    finally:
        connection.close()
