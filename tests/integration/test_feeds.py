"""Feeds over real WebSockets: recordings come out trade by trade, faults do no harm."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from prometheus_client import REGISTRY
from tests.conftest import ROOT, process_environment, python

from tap_trading.base.clock import system_clock
from tap_trading.market.feeds.binance import Binance
from tap_trading.market.feeds.bitstamp import Bitstamp
from tap_trading.market.feeds.coinbase import Coinbase
from tap_trading.market.feeds.connection import (
    LARGEST_MESSAGE,
    Timing,
    VenueSource,
    open_session,
)
from tap_trading.market.feeds.gemini import Gemini
from tap_trading.market.feeds.kraken import KrakenV1
from tap_trading.market.feeds.source import Tick
from tap_trading.market.feeds.venue import Liveness, Venue
from tap_trading.market.feeds.venues import VENUES
from venues.faults import Fault
from venues.player import Player
from venues.recording import Recording
from venues.synthetic import DIALECTS, FIRST_NUMBER, Synthetic, read_trades

#: Reconnects at once, as far as a test can tell.
AT_ONCE = Timing(first_pause_s=0.01, longest_pause_s=0.05)
ALL_AT_ONCE = float("inf")


def metric(name: str, source: str, **labels: str) -> float:
    """A counter of feeds, 0 before it first counts."""
    return REGISTRY.get_sample_value(f"tap_feed_{name}_total", {"source": source, **labels}) or 0.0


@dataclass
class Following:
    """A source that is being read, and what has come of it."""

    source: VenueSource
    task: asyncio.Task[None]
    ticks: list[Tick]
    before: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def prices(self) -> list[int]:
        return [tick.price for tick in self.ticks]

    def counted(self, name: str, **labels: str) -> float:
        """How far a counter has moved since this following began."""
        key = (name, json.dumps(labels))
        return metric(name, self.source.name, **labels) - self.before.get(key, 0.0)


COUNTED: list[tuple[str, dict[str, str]]] = [
    *((name, {}) for name in ("messages", "trades", "gaps", "missed_trades")),
    *(("dropped", {"reason": why}) for why in ("malformed", "unknown", "repeated", "late")),
    *(
        ("reconnects", {"reason": why})
        for why in ("connect", "closed", "stale", "refused", "asked", "numbers")
    ),
]


@asynccontextmanager
async def following(
    venue: Venue, timing: Timing = AT_ONCE, draw: Callable[[], float] = lambda: 1.0
) -> AsyncIterator[Following]:
    """Read a venue inside the block; at its end nothing is left of it."""
    tasks_before = asyncio.all_tasks()
    ticks: list[Tick] = []
    async with open_session() as session:
        source = VenueSource(venue, session, system_clock, draw, timing)
        before = {
            (name, json.dumps(labels)): metric(name, venue.name, **labels)
            for name, labels in COUNTED
        }

        async def read() -> None:
            async with aclosing(source.ticks()) as stream:
                async for tick in stream:
                    ticks.append(tick)  # noqa: PERF401 -- it never ends

        task = asyncio.create_task(read())
        try:
            yield Following(source, task, ticks, before)
        finally:
            if task.done():
                task.result()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert source.status.connected_since is None
    left = {task for task in asyncio.all_tasks() - tasks_before if "market/feeds" in repr(task)}
    assert not left


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def everything(venue: Venue, player: Player) -> Following:
    """Read a player that closes at its end, to the end."""
    async with following(venue) as feed:
        await until(player.finished.is_set, 60)
        await until(lambda: feed.source.status.connected_since is None)
    return feed


# Recordings. What they hold is found here without the adapters. Old are by rule: Coinbase's
# last_match, and Gemini's trades inside l2_updates; tickers and books are no trades. Prices of
# less than half a cent are none.


def in_cents(price: str) -> int:
    return int((Decimal(price) * 100).quantize(Decimal(1), ROUND_HALF_UP))


def coinbase_trades(message: Any) -> list[tuple[str, int, str]]:
    if message["type"] != "match":
        return []
    seconds, fraction = message["time"].rstrip("Z").split(".")
    whole = int(datetime.fromisoformat(seconds + "+00:00").timestamp())
    return [(message["product_id"], whole * 1000 + int(fraction[:3]), message["price"])]


def kraken_trades(message: Any) -> list[tuple[str, int, str]]:
    if isinstance(message, dict) or message[2] != "trade":
        return []
    return [(message[3], int(Decimal(item[2]) * 1000), item[0]) for item in message[1]]


def bitstamp_trades(message: Any) -> list[tuple[str, int, str]]:
    if message["event"] != "trade":
        return []
    data, pair = message["data"], message["channel"].removeprefix("live_trades_")
    return [(pair, int(data["microtimestamp"]) // 1000, data["price_str"])]


def gemini_trades(message: Any) -> list[tuple[str, int, str]]:
    if message["type"] != "trade":
        return []
    return [(message["symbol"], message["timestamp"], message["price"])]


def binance_trades(message: Any) -> list[tuple[str, int, str]]:
    data = message["data"]
    if data.get("e") not in ("trade", "aggTrade"):
        return []
    return [(data["s"].lower(), data["T"], data["p"])]


@dataclass
class Recorded:
    """A recording, how to find its trades, and the adapter for one of its pairs."""

    file: str
    trades: Callable[[Any], list[tuple[str, int, str]]]
    adapter: Callable[[str, str], Venue]
    pairs: dict[str, int]  # new trades by pair, as counted with grep


RECORDED = {
    "coinbase": Recorded(
        "coinbase-exchange_alts-noBTCUSD_2021-04-17",
        coinbase_trades,
        Coinbase,
        {"SKL-USD": 52, "DASH-BTC": 15, "NMR-EUR": 8, "BAND-GBP": 4, "SKL-BTC": 8, "YFI-BTC": 0},
    ),
    "kraken": Recorded(
        "kraken-v1_XBTCHF+9alts_2021-04-17",
        kraken_trades,
        KrakenV1,
        {"XMR/USD": 4, "SC/EUR": 6, "XBT/CHF": 0},
    ),
    "bitstamp": Recorded(
        "bitstamp_btcusdc+9_2021-04-05",
        bitstamp_trades,
        Bitstamp,
        {"btcusdc": 2, "bcheur": 9, "ethgbp": 2, "xlmeur": 4, "linketh": 9},
    ),
    "gemini": Recorded(
        "gemini-v2_BTCUSD+9_2021-04-17",
        gemini_trades,
        Gemini,
        {"BTCUSD": 18, "ETHUSD": 14, "LTCUSD": 14, "AMPUSD": 3, "BALUSD": 2, "MKRUSD": 0},
    ),
    "binance.us": Recorded(
        "binanceus_btcusdt+9_2021-04-17",
        binance_trades,
        Binance,
        {"btcusdt": 5, "bchusdt": 6, "usdtusd": 4, "zrxusd": 2, "xlmusdt": 1},
    ),
    "binance": Recorded(
        "binance-spot_btcusdt_2024-08-08",
        binance_trades,
        lambda pair, url: Binance(pair, url, "trade"),
        {"btcusdt": 9757},
    ),
}


@pytest.mark.parametrize(
    ("name", "pair"), [(name, pair) for name, found in RECORDED.items() for pair in found.pairs]
)
async def test_a_recording_gives_exactly_its_trades(
    name: str, pair: str, market_data: Path
) -> None:
    recorded = RECORDED[name]
    path = market_data / "ws" / f"{recorded.file}.ndjson.gz"
    expected = []
    with gzip.open(path, "rt") as file:
        for entry in map(json.loads, file):
            if entry["dir"] == "in":
                found = recorded.trades(json.loads(entry["data"]))
                expected.extend((at, in_cents(price)) for of, at, price in found if of == pair)
    assert len(expected) == recorded.pairs[pair]
    recording = Recording.read(path)
    async with Player(recording, speed=ALL_AT_ONCE, at_end="close") as player:
        began = system_clock()
        feed = await everything(recorded.adapter(pair, player.url), player)
        ended = system_clock()
    priced = [(at, price) for at, price in expected if price > 0]
    assert [(tick.exchange_time, tick.price) for tick in feed.ticks] == priced
    assert all(began <= tick.receive_time <= ended for tick in feed.ticks)
    assert feed.counted("messages") == player.sent
    assert feed.counted("trades") == len(priced)
    assert bool(feed.counted("dropped", reason="malformed")) == (len(priced) < len(expected))
    for reason in ("unknown", "repeated", "late"):
        assert feed.counted("dropped", reason=reason) == 0, reason
    assert feed.counted("gaps") == 0


# Venues made from a table of trades.


def walk(count: int, step_ms: int = 10) -> list[tuple[int, str]]:
    """Trades of which no two have the same price."""
    return [(1_700_000_000_000 + n * step_ms, f"{60_000 + n}.{n % 100:02d}") for n in range(count)]


def prices_of(trades: list[tuple[int, str]]) -> list[int]:
    return [in_cents(price) for _, price in trades]


def adapter(dialect: str, url: str) -> Venue:
    return VENUES[dialect.removesuffix("-v1")](url=url)


def play(dialect: str, trades: list[tuple[int, str]], **settings: Any) -> Player:
    """A venue played from a table of trades."""
    script = Synthetic(dialect, trades, restamp=False)
    return Player(script, path=script.dialect.path, **settings)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_every_venue_can_be_made_from_trades(dialect: str) -> None:
    trades = walk(300)
    script = Synthetic(dialect, trades, offset_cents=-250, offset_bps=3, restamp=False)
    path = script.dialect.path
    async with Player(script, speed=ALL_AT_ONCE, at_end="close", path=path) as player:
        feed = await everything(adapter(dialect, player.url), player)
    shifted = [(Decimal(price) * Decimal("1.0003") - Decimal("2.50")) for _, price in trades]
    assert [(tick.exchange_time, tick.price) for tick in feed.ticks] == [
        (at, in_cents(str(price.quantize(Decimal("0.01")))))
        for (at, _), price in zip(trades, shifted, strict=True)
    ]
    for name, labels in COUNTED[2:-6]:
        assert feed.counted(name, **labels) == 0, (name, labels)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_real_trades_through_every_venue(dialect: str, market_data: Path) -> None:
    table = market_data / "replay" / "binance_BTCUSDT_trades_2024-08-08.csv"
    trades = read_trades(table)[:2000]
    async with play(dialect, trades, speed=ALL_AT_ONCE, at_end="close") as player:
        feed = await everything(adapter(dialect, player.url), player)
    assert [(tick.exchange_time, tick.price) for tick in feed.ticks] == [
        (at, in_cents(price)) for at, price in trades
    ]


async def test_four_venues_of_one_file_with_offsets_and_delays(tmp_path: Path) -> None:
    """As a program: each venue on its port, its trades later and higher than the next."""
    file = tmp_path / "trades.csv"
    rows = "".join(f"{at},{price},1\n" for at, price in walk(40))
    file.write_text("ts_ms,price,size\n" + rows)
    names = ("coinbase", "kraken", "bitstamp", "gemini")
    specs = [f"{name}:{file},offset_cents={n},delay_ms={n * 50}" for n, name in enumerate(names)]
    program = await asyncio.create_subprocess_exec(
        *python("-m", "venues", "--speed", "2", *specs),
        stdout=asyncio.subprocess.PIPE,
        env=process_environment({"PYTHONPATH": f"{ROOT}/app/src:{ROOT}/tests"}),
    )
    try:
        assert program.stdout is not None
        urls = json.loads(await program.stdout.readline())
        for n, (name, url) in enumerate(zip(names, urls, strict=True)):
            async with following(VENUES[name](url=url)) as feed:
                await until(lambda feed=feed: len(feed.ticks) == 40)  # type: ignore[misc] # mypy cannot type a default
            assert feed.prices == [price + n for price in prices_of(walk(40))]
            # Re-stamped to now; what happened reaches us so much later.
            assert all(tick.receive_time - tick.exchange_time >= n * 50 for tick in feed.ticks)
            assert abs(feed.ticks[-1].exchange_time - system_clock()) < 60_000
    finally:
        program.terminate()
        await program.wait()


# Faults.


async def test_after_a_drop_it_comes_back_and_says_what_it_missed() -> None:
    trades = walk(400, step_ms=2)
    faults = [Fault("drop", after=100, connection=0)]
    async with (
        play("coinbase", trades, live=True, faults=faults) as player,
        following(Coinbase(url=player.url)) as feed,
    ):
        await until(player.finished.is_set)
        await until(lambda: feed.prices[-1:] == prices_of(trades)[-1:])
    assert player.accepted == 2
    assert feed.counted("reconnects", reason="closed") == 1
    assert all(earlier < later for earlier, later in pairwise(feed.prices))
    # Nothing twice, and what is not here was counted as missed.
    first = prices_of(trades).index(feed.prices[0])
    assert len(feed.prices) + feed.counted("missed_trades") == len(trades) - first
    assert feed.counted("gaps") >= 1


async def test_a_replayed_connection_brings_nothing_twice() -> None:
    """A venue that begins anew: what was known before is not news on a later connection."""
    trades = walk(60)
    faults = [Fault("drop", after=50, connection=0)]
    async with (
        play("bitstamp", trades, speed=ALL_AT_ONCE, faults=faults) as player,
        following(Bitstamp(url=player.url)) as feed,
    ):
        await until(lambda: feed.counted("reconnects", reason="numbers") == 1)
    assert feed.counted("dropped", reason="repeated") == 20
    assert feed.prices[:50] == prices_of(trades)[: len(feed.prices[:50])]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_silent_connection_is_given_up(dialect: str) -> None:
    trades = walk(5000, step_ms=5)
    faults = [Fault("stall", after=20, connection=0)]
    async with play(dialect, trades, live=True, faults=faults) as player:
        venue = adapter(dialect, player.url)
        venue.liveness = Liveness(0.3, venue.liveness.ping, 0.1)
        async with following(venue) as feed:
            await until(lambda: len(feed.ticks) >= 40)
    # It was open all the time.
    assert feed.counted("reconnects", reason="stale") >= 1
    assert feed.counted("reconnects", reason="closed") == 0
    assert player.accepted >= 2
    assert all(earlier < later for earlier, later in pairwise(feed.prices))


async def test_a_quiet_venue_that_answers_is_alive_and_its_trades_are_old() -> None:
    async with play("bitstamp", walk(3)) as player:
        venue = Bitstamp(url=player.url)
        venue.liveness = Liveness(1.5, venue.liveness.ping, 0.1)
        async with following(venue) as feed:
            await until(lambda: len(feed.ticks) == 3)
            last = feed.ticks[-1]
            await until(lambda: feed.counted("messages") >= 24)
            status = feed.source.status
    assert player.accepted == 1
    assert player.heard.count(venue.liveness.ping) >= 20
    assert status.last_trade == last
    assert status.last_message is not None
    assert status.last_message - last.receive_time >= 1500


async def test_a_pause_of_our_own_is_not_the_venues_silence() -> None:
    """The process stood still for longer than a venue may; what it said meanwhile counts."""
    async with play("coinbase", walk(100_000, step_ms=5), live=True) as player:
        venue = Coinbase(url=player.url)
        venue.liveness = Liveness(0.3)
        async with following(venue) as feed:
            await until(lambda: len(feed.ticks) > 10)
            for _ in range(5):
                # Said, but not yet read when the process stands still.
                await player.say('{"type":"subscriptions","channels":[]}')
                time.sleep(0.4)
                seen = len(feed.ticks)
                await until(lambda seen=seen: len(feed.ticks) > seen + 5)  # type: ignore[misc] # mypy cannot type a default
    assert feed.counted("reconnects", reason="stale") == 0
    assert player.accepted == 1


async def test_pings_alone_are_silence() -> None:
    async with play("coinbase", walk(3), heartbeat_s=60) as player:
        venue = Coinbase(url=player.url)
        venue.liveness = Liveness(0.3)
        async with following(venue) as feed:
            await until(lambda: len(feed.ticks) == 3)

            async def ping() -> None:
                while True:
                    await player.ping()
                    await asyncio.sleep(0.02)

            pinging = asyncio.create_task(ping())
            await until(lambda: feed.counted("reconnects", reason="stale") >= 1)
            pinging.cancel()


async def test_nonsense_alone_is_silence() -> None:
    async with play("coinbase", walk(3), heartbeat_s=60) as player:
        venue = Coinbase(url=player.url)
        venue.liveness = Liveness(0.3)
        async with following(venue) as feed:
            await until(lambda: len(feed.ticks) == 3)
            while not feed.counted("reconnects", reason="stale"):
                await player.say('{"type":"gossip"}')
                await player.say("gossip")
                await asyncio.sleep(0.002)
            # However slow the machine: some of each came while the venue counted as silent.
            assert feed.counted("dropped", reason="unknown") >= 2
            assert feed.counted("dropped", reason="malformed") >= 2


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_repeated_messages_are_dropped(dialect: str) -> None:
    trades = walk(100)
    faults = [Fault("repeat", count=100)]
    settings: dict[str, Any] = {"speed": ALL_AT_ONCE, "at_end": "close"}
    async with play(dialect, trades, faults=faults, **settings) as player:
        feed = await everything(adapter(dialect, player.url), player)
    assert feed.prices == prices_of(trades)
    assert feed.counted("dropped", reason="repeated") == 100


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_of_two_trades_that_changed_places_the_newer_stands(dialect: str) -> None:
    trades = walk(100)
    faults = [Fault("reorder", count=50)]
    settings: dict[str, Any] = {"speed": ALL_AT_ONCE, "at_end": "close"}
    async with play(dialect, trades, faults=faults, **settings) as player:
        feed = await everything(adapter(dialect, player.url), player)
    assert feed.prices == prices_of(trades)[1::2]
    assert feed.counted("dropped", reason="late") == 50
    # Old trades before the first say that one is missing; else nothing can.
    gaps = {"coinbase": 50, "kraken": 50, "binance": 49}.get(dialect, 0)
    assert feed.counted("gaps") == gaps


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_corrupted_messages_are_dropped(dialect: str) -> None:
    trades = walk(200)
    faults = [Fault("corrupt", after=50, count=60)]
    settings: dict[str, Any] = {"speed": ALL_AT_ONCE, "at_end": "close"}
    async with play(dialect, trades, faults=faults, **settings) as player:
        feed = await everything(adapter(dialect, player.url), player)
    assert feed.prices == prices_of(trades[:50] + trades[110:])
    assert feed.counted("dropped", reason="malformed") == 60
    assert feed.counted("reconnects", reason="closed") >= 1  # the player's own, at its end
    missed = 60 if dialect in ("coinbase", "kraken", "binance") else 0
    assert feed.counted("missed_trades") == missed


async def test_refused_connections_are_tried_again_with_growing_pauses() -> None:
    drawn = 0

    def draw() -> float:
        nonlocal drawn
        drawn += 1
        return 0.5

    async with play("gemini", walk(3)) as player:
        player.refusing = True
        timing = Timing(first_pause_s=0.02, longest_pause_s=0.1)
        async with following(Gemini(url=player.url), timing, draw) as feed:
            await until(lambda: feed.counted("reconnects", reason="connect") >= 4)
            assert feed.source.status.connected_since is None
            player.refusing = False
            await until(lambda: len(feed.ticks) == 3)
            assert feed.source.status.connected_since is not None
    assert drawn == feed.counted("reconnects", reason="connect")


async def test_nobody_there_and_no_answer_are_the_same() -> None:
    """A port that nobody listens on, and a server that accepts and says nothing."""
    gone: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: gone.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    timing = Timing(connect_s=0.1, first_pause_s=0.01, longest_pause_s=0.01)
    async with following(Gemini(url=f"ws://127.0.0.1:{port}/"), timing) as feed:
        await until(lambda: feed.counted("reconnects", reason="connect") >= 2)
        server.close()
        await until(lambda: feed.counted("reconnects", reason="connect") >= 4)
    for writer in gone:
        writer.close()
    await server.wait_closed()


async def test_only_a_healthy_connection_ends_the_growing_pauses() -> None:
    timing = Timing(first_pause_s=0.01, longest_pause_s=0.01, healthy_s=1.0)
    async with (
        play("kraken", walk(100_000, step_ms=2), live=True) as player,
        following(VENUES["kraken"](url=player.url), timing) as feed,
    ):
        attempts = feed.source._backoff
        for lost in range(1, 6):
            await until(lambda lost=lost: player.accepted == lost)  # type: ignore[misc] # mypy cannot type a default
            await until(lambda: player.connections == 1)
            player.drop()
            await until(lambda lost=lost: attempts.attempt == lost)  # type: ignore[misc] # mypy cannot type a default
        await until(lambda: player.accepted == 6)
        before = len(feed.ticks)
        await until(lambda: len(feed.ticks) > before)
        began = feed.ticks[before].receive_time
        await until(lambda: feed.ticks[-1].receive_time - began > 1200)
        player.drop()
        await until(lambda: player.accepted == 7)
        assert attempts.attempt == 1


async def test_the_venue_may_ask_for_a_new_connection() -> None:
    async with (
        play("bitstamp", walk(3)) as player,
        following(Bitstamp(url=player.url)) as feed,
    ):
        await until(lambda: len(feed.ticks) == 3)
        await player.say('{"event":"bts:request_reconnect","channel":"","data":""}')
        await until(lambda: player.accepted == 2)
        assert feed.counted("reconnects", reason="asked") == 1


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"x" * (LARGEST_MESSAGE + 1), WSMsgType.TEXT),
        (b"\xff\xfe", WSMsgType.TEXT),  # not UTF-8
    ],
)
async def test_a_message_against_the_protocol_ends_the_connection(
    data: bytes, kind: WSMsgType
) -> None:
    async with (
        play("gemini", walk(3)) as player,
        following(Gemini(url=player.url)) as feed,
    ):
        await until(lambda: len(feed.ticks) == 3)
        await player.say(data, kind)
        await until(lambda: player.accepted == 2)
        assert feed.counted("reconnects", reason="closed") == 1


async def test_a_binary_message_is_dropped() -> None:
    async with (
        play("gemini", walk(3)) as player,
        following(Gemini(url=player.url)) as feed,
    ):
        await until(lambda: len(feed.ticks) == 3)
        await player.say(b"{}", WSMsgType.BINARY)
        await until(lambda: feed.counted("dropped", reason="malformed") == 1)
        assert player.accepted == 1


async def test_it_can_be_ended_at_any_moment() -> None:
    """`following` asserts that nothing is left; here it ends at many moments."""
    async with play("coinbase", walk(100_000, step_ms=1), live=True, speed=3) as player:
        for number in range(40):
            player.refusing = number % 5 == 4
            async with following(Coinbase(url=player.url)):
                await asyncio.sleep(number * 0.0007)
        await until(lambda: player.connections == 0)


async def test_a_reader_that_leaves_takes_the_connection_along() -> None:
    async with play("coinbase", walk(1000, step_ms=1)) as player, open_session() as session:
        source = VenueSource(Coinbase(url=player.url), session, system_clock)
        async with aclosing(source.ticks()) as ticks:
            async for tick in ticks:
                assert source.status.last_trade == tick
                break
        await until(lambda: player.connections == 0)
        assert player.goodbyes == [1000]


async def test_a_venue_that_talks_on_after_goodbye_is_cut_off() -> None:
    """Its goodbye is never answered, and it goes on talking."""

    async def talk(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        socket = aiohttp.web.WebSocketResponse(autoclose=False, timeout=0.1)
        await socket.prepare(request)
        await socket.send_str('{"event":"bts:request_reconnect"}')
        talking.set()
        while not closed.is_set() and request.transport is not None:
            await socket._writer.send_frame(b"{}", WSMsgType.TEXT)  # type: ignore[union-attr] # it is open
            await asyncio.sleep(0.01)
        return socket

    talking, closed = asyncio.Event(), asyncio.Event()
    app = aiohttp.web.Application()
    app.router.add_get("/", talk)
    runner = aiohttp.web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    async with following(Bitstamp(url=f"ws://127.0.0.1:{port}/")) as feed:
        await until(lambda: feed.counted("reconnects", reason="asked") >= 2)
    closed.set()
    await runner.cleanup()


async def test_a_venue_can_freeze_fall_silent_and_lie() -> None:
    """What tests of the index do to a venue while it plays."""
    script = Synthetic("coinbase", walk(100_000, step_ms=2))
    async with (
        Player(script, live=True, heartbeat_s=0.02) as player,
        following(Coinbase(url=player.url)) as feed,
    ):
        await until(lambda: len(feed.ticks) > 20)
        script.frozen = True
        await until(lambda: len(feed.prices) > 40 and len(set(feed.prices[-20:])) == 1)
        script.frozen = False
        script.offset_bps = 500
        at = feed.prices[-1]
        await until(lambda: feed.prices[-1] > at * 1.04)
        script.mute = True
        await until(lambda: feed.counted("messages") > len(feed.ticks) + 20)
        status = feed.source.status
        assert status.last_trade is not None
        assert status.last_message is not None
        assert status.last_message > status.last_trade.receive_time
        assert player.accepted == 1


def test_trades_are_numbered_without_gaps_round_after_round() -> None:
    table = walk(3)  # 20 ms of trades, and 1 s until the next round
    script = Synthetic("coinbase", table, loop=True)
    lines = script.lines(0)
    first = [next(lines) for _ in range(7)]
    numbers = [json.loads(line.text())["trade_id"] for line in first]
    assert numbers == list(range(FIRST_NUMBER, FIRST_NUMBER + 7))
    assert [round(line.at_s * 1000) for line in first] == [0, 10, 20, 1020, 1030, 1040, 2040]
    # Who comes later finds the same numbers, and what was before as old.
    later = next(script.lines(1.025))
    assert json.loads(later.text())["trade_id"] == FIRST_NUMBER + 4
    assert json.loads(script.answers("{}", 1.025)[-1])["trade_id"] == FIRST_NUMBER + 3


def test_faults_can_be_written_as_words() -> None:
    assert Fault.parse("drop:at_s=2.5:connection=0") == Fault("drop", at_s=2.5, connection=0)
    assert Fault.parse("corrupt:after=10:count=5") == Fault("corrupt", after=10, count=5)
    for wrong in ("explode", "drop:soon", "drop:after=x"):
        with pytest.raises(ValueError, match=r"fault|invalid"):
            Fault.parse(wrong)


async def test_a_fault_can_wait_for_its_moment() -> None:
    faults = [Fault("drop", at_s=1.0)]
    async with (
        play("gemini", walk(100_000, step_ms=5), live=True, faults=faults) as player,
        following(Gemini(url=player.url)) as feed,
    ):
        await until(lambda: player.accepted == 2)
        assert len(feed.ticks) > 5
