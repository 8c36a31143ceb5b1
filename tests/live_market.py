"""A market without a price service: a price that stays where it is, and a steady offer."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import lru_cache

from tap_trading.base.clock import Clock, system_clock
from tap_trading.base.redis import Redis, RedisError
from tap_trading.game import grid
from tap_trading.game.cell import Cell
from tap_trading.game.grid import Column, Geometry
from tap_trading.market.offer import OFFER_CHANNEL, OFFER_KEY, Offer
from tap_trading.market.point import BAR_MS, CHANNEL, PricePoint, number_of
from tap_trading.market.state import MarketState

PRICE = 8_421_550  # cents
STEP = 2_000
#: What every cell pays, basis points.
RATE = 20_582
GEOMETRY = Geometry(width_s=5, columns=8, rows=12)


def cells(geometry: Geometry = GEOMETRY, now: int | None = None) -> list[Cell]:
    """What is offered at a moment (Unix ms): column by column, the lowest row first."""
    starts = grid.starts(geometry, system_clock() if now is None else now)
    return [cell for start in starts for cell in _column(geometry, start)]


@lru_cache(maxsize=512)
def _column(geometry: Geometry, start: int) -> list[Cell]:
    column = Column(start, geometry.width_s, STEP)
    lows = grid.rows(column, PRICE, geometry.rows)
    return [Cell(start, geometry.width_s, low, low + STEP) for low in lows]


def bar_before(now: int) -> int:
    """The stamp of the bar that has just ended."""
    return now - now % BAR_MS - BAR_MS


def offer(
    now: int,
    geometry: Geometry = GEOMETRY,
    state: MarketState = MarketState.OPEN,
    reason: str | None = None,
    rate: int = RATE,
) -> Offer:
    """An offer made at a moment (Unix ms)."""
    if state is MarketState.SUSPENDED:
        return Offer(bar_before(now), state, reason, None)
    columns = [Column(start, geometry.width_s, STEP) for start in grid.starts(geometry, now)]
    rates = {cell.cell_id: rate for cell in cells(geometry, now)}
    return Offer(bar_before(now), state, reason, None, columns, rates)


async def publish_offer(redis: Redis, made: Offer) -> None:
    """As the price service does it. Raises RedisError or OSError."""
    wire = made.encode()
    await redis.publish(OFFER_CHANNEL, wire)
    await redis.set(OFFER_KEY, wire)


async def publish_price(redis: Redis, now: int, price: int = PRICE) -> PricePoint:
    """The price of the bar that has just ended. Raises RedisError or OSError."""
    t = bar_before(now)
    point = PricePoint(t, number_of(t), price)
    await redis.publish(CHANNEL, point.encode())
    return point


async def keep_market(
    redis: Redis,
    geometry: Geometry = GEOMETRY,
    clock: Clock | Callable[[], int] = system_clock,
    offers_every_s: float = 0.1,
) -> None:
    """A market that is open for as long as this runs; tests may take Redis away meanwhile."""
    loop = asyncio.get_running_loop()
    next_offer = 0.0
    while True:
        with contextlib.suppress(RedisError, OSError):
            await publish_price(redis, clock())
            if loop.time() >= next_offer:
                await publish_offer(redis, offer(clock(), geometry))
                next_offer = loop.time() + offers_every_s
        await asyncio.sleep(0.05)
