"""The market as any process sees it: from the channels, judged by its age."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY

import live_market
from live_market import GEOMETRY, offer, publish_offer, publish_price
from tap_trading.base import background
from tap_trading.base.redis import Redis, RedisError
from tap_trading.market.offer import OFFER_CHANNEL, OFFER_KEY, Offer
from tap_trading.market.point import CHANNEL, HISTORY_KEY, PricePoint, dollars
from tap_trading.market.state import MarketState
from tap_trading.market.watch import MarketStatus, PriceWatch

NOW = 1_764_000_000_000


class Clock:
    """Time that a test sets, Unix ms."""

    now = NOW

    def __call__(self) -> int:
        return self.now


@asynccontextmanager
async def watching(redis: Redis, clock: Clock, history: int = 3) -> AsyncIterator[PriceWatch]:
    watch = PriceWatch(redis, clock, history=history)
    tasks = followed(watch)
    try:
        async with asyncio.timeout(5):
            while not await _is_well(watch):
                await asyncio.sleep(0.01)
        yield watch
    finally:
        for task in tasks:
            await background.end(task)


def followed(watch: PriceWatch) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(watch.follow_prices()), asyncio.create_task(watch.follow_offers())]


async def _is_well(watch: PriceWatch) -> bool:
    try:
        await watch.check()
    except RedisError:
        return False
    return True


async def seen(watch: PriceWatch, t: int) -> None:
    """Wait until the offer and the price of this stamp have come."""
    async with asyncio.timeout(5):
        while not (watch.offer and watch.latest and watch.offer.t == t and watch.latest.t == t):
            await asyncio.sleep(0.005)


async def publish(redis: Redis, watch: PriceWatch, made: Offer) -> None:
    await publish_offer(redis, made)
    await publish_price(redis, made.t + 100)
    await seen(watch, made.t)


async def test_history_and_channel_are_taken_and_nonsense_is_skipped(redis: Redis) -> None:
    await redis.zadd(HISTORY_KEY, {f"{NOW - 1000}:1:100.00": NOW - 1000, "nonsense": NOW})
    await redis.set(OFFER_KEY, offer(NOW - 1000).encode())
    clock = Clock()
    watch = PriceWatch(redis, clock, history=3)
    assert watch.status() == MarketStatus(MarketState.SUSPENDED, "no_price", None)
    await watch.load_history()
    assert watch.latest == PricePoint(NOW - 1000, 1, 10000)
    assert watch.offer == decoded(offer(NOW - 1000))
    assert watch.state() is MarketState.OPEN
    seen: list[PricePoint] = []
    watch.on_price = seen.append
    tasks = followed(watch)
    async with asyncio.timeout(5):
        while len(seen) < 3:
            for wire in ("junk", f"{NOW}:2:{dollars(10100)}", f"{NOW + 100}:3:102.00"):
                await redis.publish(CHANNEL, wire)
            await redis.publish(OFFER_CHANNEL, "junk")
            await asyncio.sleep(0.01)
    assert {point.price for point in watch.history} <= {10000, 10100, 10200}
    assert (REGISTRY.get_sample_value("tap_errors_total", {"kind": "offer_message"}) or 0) > 0
    for task in tasks:
        await background.end(task)


def decoded(made: Offer) -> Offer:
    return Offer(made.t, made.state, made.reason, None, tuple(made.columns), made.cells)


@pytest.mark.parametrize(
    ("offer_age", "price_age", "said", "state"),
    [
        (0, 0, MarketState.OPEN, MarketState.OPEN),
        (2_900, 0, MarketState.OPEN, MarketState.OPEN),
        (3_000, 0, MarketState.OPEN, MarketState.DEGRADED),
        (0, 3_000, MarketState.OPEN, MarketState.DEGRADED),
        (0, 0, MarketState.DEGRADED, MarketState.DEGRADED),
        (10_000, 0, MarketState.OPEN, MarketState.SUSPENDED),
        (0, 10_000, MarketState.DEGRADED, MarketState.SUSPENDED),
        (0, 0, MarketState.SUSPENDED, MarketState.SUSPENDED),
        (-60_000, 0, MarketState.OPEN, MarketState.SUSPENDED),  # the clock was set back
        (0, -60_000, MarketState.OPEN, MarketState.SUSPENDED),
    ],
)
async def test_the_worst_of_offer_and_ages(
    redis: Redis, offer_age: int, price_age: int, said: MarketState, state: MarketState
) -> None:
    clock = Clock()
    watch = PriceWatch(redis, clock)
    reason = None if said is MarketState.OPEN else "quorum_lost"
    made = offer(NOW - offer_age + 100, state=said, reason=reason)
    await redis.set(OFFER_KEY, made.encode())
    t = NOW - price_age
    await redis.zadd(HISTORY_KEY, {PricePoint(t, 1, 100).encode(): t})
    await watch.load_history()
    assert watch.state() is state
    told = "no_price" if state is not said else reason
    assert watch.status() == MarketStatus(state, told, None)


async def test_cells_may_be_bet_on_for_two_seconds_after_they_were_offered(redis: Redis) -> None:
    clock = Clock()
    async with watching(redis, clock) as watch:
        began = NOW + 100
        old = offer(began, rate=15_000)
        await publish(redis, watch, old)
        first = next(iter(old.cells))
        gone = {cell: rate for cell, rate in old.cells.items() if cell != first}
        for passed in (500, 1_000, 1_500, 2_000):
            made = Offer(old.t + passed, old.state, None, None, old.columns, dict.fromkeys(gone, 2))
            await publish(redis, watch, made)
            assert watch.offered[first] == 15_000
            assert {watch.offered[cell] for cell in gone} == {2}  # the newest
        made = Offer(old.t + 2_100, old.state, None, None, old.columns, dict.fromkeys(gone, 2))
        await publish(redis, watch, made)
        assert first not in watch.offered


async def test_a_suspension_takes_all_cells_back_at_once(redis: Redis) -> None:
    async with watching(redis, Clock()) as watch:
        await publish(redis, watch, offer(NOW))
        assert len(watch.offered) == GEOMETRY.columns * GEOMETRY.rows
        await publish(
            redis, watch, offer(NOW + 100, state=MarketState.SUSPENDED, reason="quorum_lost")
        )
        assert watch.offered == {}
        assert watch.status() == MarketStatus(MarketState.SUSPENDED, "quorum_lost", None)


async def test_offers_of_a_clock_that_was_ahead_are_forgotten(redis: Redis) -> None:
    async with watching(redis, Clock()) as watch:
        await publish(redis, watch, offer(NOW + 3_600_000))
        await publish(redis, watch, offer(NOW + 100))
        wanted = {cell.cell_id for cell in live_market.cells(now=NOW + 100)}
        assert set(watch.offered) == wanted


async def test_a_price_that_comes_behind_its_successors_is_dropped(redis: Redis) -> None:
    clock = Clock()
    async with watching(redis, clock) as watch:
        await publish(redis, watch, offer(NOW))
        latest = watch.latest
        assert latest is not None
        late = PricePoint(latest.t - 2_000, 1, 1)
        assert watch._take(late.encode().encode()) is None
        assert watch.latest == latest
        # Of a clock that was set back, it is the newest there is.
        clock.now -= 60_000
        fresh = PricePoint(clock.now - 100, 1, 2)
        assert watch._take(fresh.encode().encode()) == fresh == watch.latest
