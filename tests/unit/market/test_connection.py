"""Pauses between attempts to connect, and sockets that are hard to come by."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import cast

import aiohttp
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.market.feeds.coinbase import Coinbase
from tap_trading.market.feeds.connection import Backoff, Timing, VenueSource
from tap_trading.market.feeds.kraken import kraken
from tap_trading.market.feeds.source import SourceStatus, Tick
from tap_trading.market.feeds.venue import Liveness, Venue


def test_the_ceiling_doubles_up_to_its_limit_and_begins_again() -> None:
    backoff = Backoff(0.25, 3.0, lambda: 1.0)
    assert [backoff.pause_s() for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert backoff.pause_s() == 0.25


@given(st.lists(st.floats(0, 1), min_size=1, max_size=2000))
def test_a_pause_is_drawn_from_all_below_the_ceiling(draws: list[float]) -> None:
    backoff = Backoff(0.25, 30.0, iter(draws).__next__)
    for attempt, draw in enumerate(draws):
        assert backoff.pause_s() == draw * min(0.25 * 2.0 ** min(attempt, 60), 30.0)


class Socket:
    """A WebSocket that says the same for ever, without a pause."""

    def __init__(self, text: str, *, takes_nothing: bool = False) -> None:
        self.closed = False
        self._text = text
        self._takes_nothing = takes_nothing

    async def send_str(self, _said: str) -> None:
        if self._takes_nothing:
            await asyncio.Event().wait()

    async def receive(self, _timeout: float) -> aiohttp.WSMessage:
        await asyncio.sleep(0)
        return aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, self._text, None)

    async def close(self) -> None:
        self.closed = True


class Session:
    """Connects to sockets of that kind."""

    def __init__(self, text: str = "", *, takes_nothing: bool = False) -> None:
        self.sockets: list[Socket] = []
        self._new = partial(Socket, text, takes_nothing=takes_nothing)

    async def ws_connect(self, *_: object, **__: object) -> Socket:
        self.sockets.append(self._new())
        return self.sockets[-1]


def source_of(venue: Venue, session: Session) -> VenueSource:
    client = cast("aiohttp.ClientSession", session)
    return VenueSource(venue, client, lambda: 1000, lambda: 0.0, Timing())


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_nonsense_without_a_pause_is_silence() -> None:
    session = Session("gossip")
    venue = Coinbase()
    venue.liveness = Liveness(0.05)
    task = asyncio.ensure_future(anext(source_of(venue, session).ticks()))
    await wait_for(lambda: len(session.sockets) == 3 or task.done())
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert all(socket.closed for socket in session.sockets)


async def test_of_several_trades_in_a_message_the_last_is_the_last() -> None:
    trades = ",".join(
        f'{{"symbol":"BTC/USD","price":{n},"trade_id":{n},"timestamp":"2026-09-04T00:00:00Z"}}'
        for n in (5, 6, 7)
    )
    session = Session(f'{{"channel":"trade","type":"update","data":[{trades}]}}')
    source = source_of(kraken(), session)
    async with aclosing(source.ticks()) as ticks:
        assert [(await anext(ticks)).price for _ in range(3)] == [500, 600, 700]
        assert source.status == SourceStatus(1000, 1000, Tick(1788480000000, 1000, 700))
    assert source.status.connected_since is None
    assert session.sockets[0].closed


async def test_ended_while_it_subscribes_it_closes_the_connection() -> None:
    session = Session(takes_nothing=True)
    task = asyncio.ensure_future(anext(source_of(Coinbase(), session).ticks()))
    await wait_for(lambda: len(session.sockets) == 1)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert session.sockets[0].closed
