"""Four exchanges over real WebSockets: what one of them does is not seen in the price, and too
few of them end it.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from tests.integration.conftest import Serve
from tests.integration.signed_in import sign_in
from tests.integration.test_price_service import channel

from price_history import ENOUGH, bars, closes, write
from tap_trading.base.clock import system_clock
from tap_trading.base.redis import Redis
from tap_trading.market import breaker
from tap_trading.market.offer import OFFER_CHANNEL, Offer, decode
from tap_trading.market.state import MarketState
from tap_trading.services import api, price, resolver
from venues.player import Player
from venues.synthetic import Synthetic

PRICE = 6_183_700  # cents
#: Cents and ms by which each is off.
VENUES = {"coinbase": (0, 0), "kraken": (1_200, 40), "bitstamp": (-900, 80), "gemini": (2_500, 20)}
#: A visible jump, in cents: much less than a row, and than what venues differ by.
JUMP = 300


def trades(seconds: int) -> list[tuple[int, str]]:
    """A calm market: a trade every 50 ms, each a few cents from the one before."""
    rng = random.Random(7)
    now, walk, found = 1_764_000_000_000, float(PRICE), []
    for number in range(seconds * 20):
        walk += rng.gauss(0, 8)
        cents = round(walk)
        found.append((now + number * 50, f"{cents // 100}.{cents % 100:02d}"))
    return found


Players = dict[str, Player]


@pytest.fixture
async def players() -> AsyncIterator[Players]:
    """The four exchanges, one market on all of them."""
    market = trades(300)
    async with AsyncExitStack() as stack:
        found = {}
        for name, (offset, delay) in VENUES.items():
            script = Synthetic(name, market, offset_cents=offset, delay_ms=delay)
            player = Player(script, live=True, path=script.dialect.path)
            found[name] = await stack.enter_async_context(player)
        yield found


def settings(players: Players) -> dict[str, str]:
    urls = {f"TAP_{name.upper()}_URL": player.url for name, player in players.items()}
    return {"TAP_PRICE_SOURCE": "venues", "TAP_CROSS_CHECK": "", **urls}


@pytest.fixture
def warm(prices: Path) -> Path:
    """The market was open until just now."""
    write(prices, system_clock() - 100, closes(ENOUGH, PRICE), source="venues")
    return prices


async def offer_of(offers: asyncio.Queue[bytes], state: MarketState) -> Offer:
    """The first offer of a state from now on."""
    async with asyncio.timeout(30):
        while True:
            offer = decode(await offers.get())
            if offer.state is state:
                return offer


async def all_counted(client: TestClient) -> None:
    """Wait until all four count: one that comes later than the others is watched for 15 s first,
    and meanwhile the bars of before keep the market open.
    """
    async with asyncio.timeout(60):
        while True:
            report = await (await client.get("/healthz")).json()
            if report["checks"]["source"].endswith("4 of 4 venues"):
                return
            await asyncio.sleep(0.05)


async def offered(client: TestClient) -> dict[str, Any]:
    """The market, once the API has heard of an offer."""
    async with asyncio.timeout(30):
        while not (market := await (await client.get("/api/market")).json())["cells"]:
            await asyncio.sleep(0.05)
    return dict(market)


def script(player: Player) -> Synthetic:
    assert isinstance(player.script, Synthetic)
    return player.script


async def test_one_exchange_lying_frozen_or_gone_is_not_seen_in_the_price(
    serve: Serve, redis: Redis, warm: Path, players: Players
) -> None:
    async with serve(price.build, **settings(players)) as client:
        async with channel(redis, OFFER_CHANNEL) as offers:
            assert (await offer_of(offers, MarketState.OPEN)).cells
        await all_counted(client)
        await asyncio.sleep(2)
        began = bars(warm)[-1].t  # the bars of before knew nothing of how the venues differ
        for name in players:
            script(players[name]).offset_bps = 500  # at once
            await asyncio.sleep(1.5)
            script(players[name]).offset_bps = 0
            await asyncio.sleep(1)
        script(players["kraken"]).frozen = True
        players["coinbase"].refusing = True
        players["coinbase"].drop()
        await asyncio.sleep(3)
        players["coinbase"].refusing = False
        script(players["kraken"]).frozen = False
        await asyncio.sleep(3)
        async with channel(redis, OFFER_CHANNEL) as offers:
            assert (await offer_of(offers, MarketState.OPEN)).cells
    stored = [bar for bar in bars(warm) if bar.t >= began]
    assert len(stored) > 120
    assert max(abs(b.close - a.close) for a, b in pairwise(stored)) < JUMP
    assert max(b.t - a.t for a, b in pairwise(stored)) <= 1_000  # no column is void


@pytest.mark.parametrize("how", ["stall", "drop"])
async def test_without_quorum_betting_stops_and_resumes_by_the_rule(
    serve: Serve,
    redis: Redis,
    warm: Path,
    players: Players,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(breaker, "STABLE_MS", 4_000)
    monkeypatch.setattr(breaker, "STABLE_BARS", 38)
    gone = [player for name, player in players.items() if name != "gemini"]
    async with (
        serve(price.build, **settings(players)) as client,
        channel(redis, OFFER_CHANNEL) as offers,
    ):
        assert (await offer_of(offers, MarketState.OPEN)).cells
        await all_counted(client)
        while not offers.empty():
            offers.get_nowait()
        began = system_clock()
        for player in gone:
            player.refusing = True
            player.stall() if how == "stall" else player.drop()
        suspended = await offer_of(offers, MarketState.SUSPENDED)
        assert suspended.reason == "quorum_lost"
        assert (suspended.columns, suspended.cells) == ((), {})
        assert suspended.t + 100 - began <= 2_000
        await asyncio.sleep(2)
        answer = await client.get("/healthz")
        assert answer.status == 503
        assert "quorum_lost" in (await answer.json())["checks"]["source"]
        assert not [bar for bar in bars(warm) if bar.t > suspended.t]
        for player in gone:
            player.refusing = False
            player.resume()
        while (offer := await offer_of(offers, MarketState.SUSPENDED)).reason == "quorum_lost":
            pass
        assert offer.reason == "settling"
        opened = await offer_of(offers, MarketState.OPEN)
        assert opened.cells
    first = next(bar for bar in bars(warm) if bar.t > suspended.t)
    assert opened.t + 100 - first.t >= 4_000


def longest_gap_ms(points: list[int], start: int, end: int) -> int:
    """The longest time without a bar in a window, all in Unix ms."""
    edges = [start, *(t for t in points if start <= t < end), end]
    gaps = [edges[1] - start, *(b - a - 100 for a, b in pairwise(edges[1:]))]
    return max(gaps)


async def test_a_lost_quorum_gives_back_exactly_the_bets_it_touches(
    serve: Serve, warm: Path, players: Players
) -> None:
    narrow = {**settings(players), "TAP_GRID_WIDTH_S": "2"}
    gone = [player for name, player in players.items() if name != "gemini"]
    async with (
        serve(price.build, **narrow) as making,
        serve(resolver.build, **narrow),
        serve(api.build, **narrow) as client,
    ):
        trader = await sign_in(client)
        await all_counted(making)
        market = await offered(client)
        placed = []
        for start in [column["start"] for column in market["columns"]][1:7]:
            for cell in market["cells"]:
                # Its chance will not leave what is offered before its rate is fixed.
                if f"btc-usd:{start}:" in cell["cell_id"] and 1.3 < float(cell["reward_rate"]) < 9:
                    answer = await trader.bet(cell["cell_id"], 100, f"key-{len(placed)}")
                    assert answer.status == 202, await answer.text()
                    placed.append((await answer.json())["bet_id"])
        assert len(placed) >= 12
        await asyncio.sleep(market["columns"][3]["start"] + 1.2 - system_clock() / 1000)
        for player in gone:
            player.stall()
        await asyncio.sleep(4)
        for player in gone:
            player.resume()
        async with asyncio.timeout(60):
            for bet_id in placed:
                while (await trader.json(f"/api/bets/{bet_id}"))["resolved_at"] is None:
                    await asyncio.sleep(0.1)
        bets = [await trader.json(f"/api/bets/{bet_id}") for bet_id in placed]
        balance = (await trader.json("/api/me"))["balance"]
    points = [bar.t for bar in bars(warm)]
    given_back = 0
    for bet in bets:
        start, width = map(int, bet["cell_id"].split(":")[1:3])
        touched = longest_gap_ms(points, start * 1000, (start + width) * 1000) > 1_000
        assert (bet["status"] == "void") is touched, bet
        assert bet["evidence"]["void_reason"] == ("feed_outage" if touched else None)
        given_back += 100 if touched else 0
    assert 0 < given_back < 100 * len(bets)
    paid = sum(bet["payout_amount"] or 0 for bet in bets)
    assert balance == 100_000 - 100 * len(bets) + given_back + paid
