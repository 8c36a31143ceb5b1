"""Bars from sources: of each 100 ms what arrived in it, and none that nobody watched."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tap_trading.market.bar_maker import BarMaker
from tap_trading.market.bars import Bar
from tap_trading.market.feeds.source import SourceStatus, Tick
from tap_trading.market.index import IndexRules, NoPrice, single

NOW = 1_764_000_000_000


class Clock:
    """Time that a test sets, Unix ms."""

    now = NOW

    def __call__(self) -> int:
        return self.now


class Source:
    """Says what a test wants."""

    def __init__(self, name: str = "one") -> None:
        self.name = name
        self.status = SourceStatus(NOW, None, None)
        self.waiting: asyncio.Queue[Tick] = asyncio.Queue()

    async def ticks(self) -> AsyncIterator[Tick]:
        while True:
            yield await self.waiting.get()

    def trades(self, at: int, price: int) -> Tick:
        tick = Tick(at, at, price)
        self.status = SourceStatus(NOW, at, tick)
        return tick


def maker(clock: Clock, *sources: Source, rules: IndexRules | None = None) -> BarMaker:
    return BarMaker(sources, rules or single(sources[0].name), clock)


async def made(found: BarMaker) -> list[tuple[int, int | None]]:
    """The ends and closes of what was made."""
    return [(slot.end, slot.bar and slot.bar.close) for slot in await found.made(0)]


async def test_a_bar_holds_what_arrived_before_its_end() -> None:
    clock, source = Clock(), Source()
    bars = maker(clock, source)
    bars.begin({}, None, None)
    bars._take("one", source.trades(NOW + 50, 100))
    bars._take("one", source.trades(NOW + 99, 101))
    # The tick itself is of the next bar, and the first to notice that one has ended.
    bars._take("one", source.trades(NOW + 100, 999))
    assert await made(bars) == [(NOW + 100, 101)]
    bars._read(NOW + 200)
    assert await made(bars) == [(NOW + 200, 999)]


async def test_ranges_reach_to_the_close_before_and_stamps_go_on() -> None:
    clock, source = Clock(), Source()
    bars = maker(clock, source)
    bars.begin({}, Bar(NOW + 100, 90, 90, 90, 90), NOW + 100)
    bars._take("one", source.trades(NOW + 10, 100))
    for moment in (NOW + 100, NOW + 200, NOW + 300):
        bars._read(moment)
    [slot] = await bars.made(0)
    assert slot.bar == Bar(NOW + 200, 100, 100, 90, 100)


async def test_a_slot_that_nobody_watched_has_no_bar() -> None:
    clock, source = Clock(), Source()
    bars = maker(clock, source)
    bars.begin({}, None, None)
    bars._take("one", source.trades(NOW + 10, 100))
    bars._read(NOW + 100)
    bars._read(NOW + 450)  # asleep for 350 ms
    bars._read(NOW + 500)
    assert await made(bars) == [(NOW + 100, 100), (NOW + 500, 100)]


async def test_a_clock_that_was_set_back_makes_no_second_bar_of_a_time() -> None:
    clock, source = Clock(), Source()
    bars = maker(clock, source)
    bars.begin({}, None, None)
    bars._take("one", source.trades(NOW + 10, 100))
    bars._read(NOW + 100)
    bars._read(NOW + 200)
    for moment in range(NOW - 300, NOW + 300, 100):
        bars._read(moment)
    assert await made(bars) == [(NOW + 100, 100), (NOW + 200, 100)]
    bars._read(NOW + 300)
    assert await made(bars) == [(NOW + 300, 100)]


async def test_without_a_price_there_is_a_slot_and_no_bar() -> None:
    clock, source = Clock(), Source()
    bars = maker(clock, source)
    bars.begin({}, None, None)
    bars._read(NOW + 100)
    [slot] = await bars.made(0)
    assert (slot.bar, slot.reading.reason) == (None, NoPrice.STARTING)
    with pytest.raises(RuntimeError, match="no price: starting"):
        await bars.check()


async def test_a_venue_whose_connection_is_lost_is_out_at_once() -> None:
    clock = Clock()
    one, two = Source("one"), Source("two")
    bars = maker(clock, one, two, rules=IndexRules(("one", "two"), quorum=2))
    bars.begin({}, None, None)
    for source in (one, two):
        bars._take(source.name, source.trades(NOW + 10, 10_000))
    bars._read(NOW + 100)
    assert await made(bars) == [(NOW + 100, 10_000)]
    assert await bars.check() == "2 of 2 venues"
    two.status = SourceStatus(None, NOW + 10, None)
    bars._read(NOW + 200)
    [slot] = await bars.made(0)
    assert (slot.bar, slot.reading.reason) == (None, NoPrice.QUORUM_LOST)


async def test_while_nobody_wants_bars_none_are_made_and_who_begins_knows_the_last_trades() -> None:
    clock, source = Clock(), Source()
    bars = maker(clock, source)
    bars._take("one", source.trades(NOW + 10, 100))
    bars._read(NOW + 100)
    assert await made(bars) == []
    clock.now = NOW + 150
    bars.begin({"not": "an export"}, None, None)
    bars._read(NOW + 200)
    assert await made(bars) == [(NOW + 200, 100)]
    bars.pause()
    bars._read(NOW + 300)
    bars.end()
    bars._read(NOW + 400)
    assert await made(bars) == []
    assert bars.export() == {}


async def test_ticks_are_followed() -> None:
    clock, source = Clock(), Source()
    bars = maker(clock, source)
    bars.begin({}, None, None)
    task = asyncio.create_task(bars.follow(source))
    source.waiting.put_nowait(source.trades(NOW + 10, 100))
    source.waiting.put_nowait(source.trades(NOW + 110, 101))
    assert [slot.end for slot in await bars.made(5)] == [NOW + 100]
    task.cancel()
    await asyncio.wait([task])
