"""The reading calls as a client meets them: one's own, complete, and nobody else's."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from tests.integration.conftest import Serve
from tests.integration.signed_in import PRICE, Trader, live_price, sign_in

from live_market import offer, publish_offer, publish_price
from tap_trading.auth.sessions import Sessions
from tap_trading.base import background
from tap_trading.base.clock import system_clock
from tap_trading.base.db import WriterLock, open_writer
from tap_trading.base.logger import rfc3339_ms
from tap_trading.base.redis import Redis
from tap_trading.ledger.ids import new_id
from tap_trading.market.offer import OFFER_KEY
from tap_trading.market.point import HISTORY_KEY, PricePoint
from tap_trading.market.state import MarketState
from tap_trading.services import api

PERSONAL = ("/api/me", "/api/bets", "/api/bets/bet_1", "/api/ledger")


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[TestClient]:
    async with serve(api.build) as client:
        yield client


@pytest.fixture
async def ada(client: TestClient) -> Trader:
    return await sign_in(client)


class Books:
    """Writes into the database beside the running service."""

    def __init__(self, path: Path) -> None:
        self._lock = WriterLock(path)
        self._connection = open_writer(path)
        self._cells = 0

    def close(self) -> None:
        self._connection.close()
        self._lock.close()

    def run(self, statement: str, values: tuple[object, ...] = ()) -> None:
        with self._lock.held():
            self._connection.execute(statement, values)

    def bet(self, user_id: str, time: int, **columns: object) -> str:
        self._cells += 1
        bet_id = new_id("bet", time)
        row = {
            "id": bet_id,
            "user_id": user_id,
            "cell_id": f"btc-usd:1764000000:5:{self._cells}:{self._cells + 1}",
            "amount": 500,
            "status": "pending",
            "placed_at": time,
            **columns,
        }
        marks = ", ".join("?" * len(row))
        self.run(f"INSERT INTO bets ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
        return bet_id


@pytest.fixture
async def books(client: TestClient, database: Path) -> AsyncIterator[Books]:
    books = Books(database)
    yield books
    books.close()


async def problem(answer: ClientResponse) -> tuple[int, str, str]:
    """Status, code and detail of a problem."""
    assert answer.content_type == "application/problem+json", await answer.text()
    body = await answer.json()
    assert body["status"] == answer.status
    return answer.status, body["code"], body["detail"]


async def all_pages(trader: Trader, path: str, **params: str) -> list[dict[str, Any]]:
    page = await trader.json(path, **params)
    items = list(page["items"])
    while page["next_cursor"] is not None:
        cursor = page["next_cursor"]
        page = await trader.json(path, cursor=cursor, **params)
        assert page["next_cursor"] != cursor
        items += page["items"]
    return items


async def test_me(ada: Trader) -> None:
    answer = await ada.get("/api/me")
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert await answer.json() == {
        "user_id": ada.user_id,
        "address": ada.address,
        "balance": 100_000,
        "currency": "USD",
    }


async def test_the_cookie_signs_in_as_well(client: TestClient, ada: Trader) -> None:
    answer = await client.get("/api/me", headers={"Cookie": f"tap_session={ada.token}"})
    assert (await answer.json())["user_id"] == ada.user_id


@pytest.mark.parametrize("path", PERSONAL)
async def test_whoever_is_not_signed_in_learns_nothing_else(client: TestClient, path: str) -> None:
    for query in ("", "?limit=0", "?nonsense=1", "?cursor=x"):
        answer = await client.get(path + query, headers={"Authorization": "Bearer wrong"})
        assert (await problem(answer))[:2] == (401, "unauthenticated")
        assert (await problem(await client.get(path + query)))[:2] == (401, "unauthenticated")


async def test_a_session_without_an_account_is_none(client: TestClient, redis: Redis) -> None:
    token, _ = await Sessions(redis, system_clock).open("user_gone", "somewhere")
    answer = await client.get("/api/me", headers={"Authorization": f"Bearer {token}"})
    assert (await problem(answer))[:2] == (401, "unauthenticated")


async def test_a_placed_bet_is_listed_and_paid_for(
    client: TestClient, ada: Trader, redis: Redis
) -> None:
    async with live_price(client, redis):
        market = await (await client.get("/api/market")).json()
        cell_id = market["cells"][30]["cell_id"]
        placed = await (await ada.bet(cell_id, 500, "key-1")).json()
    bet = {
        "bet_id": placed["bet_id"],
        "cell_id": cell_id,
        "amount": 500,
        "status": "pending",
        "reward_rate": None,
        "payout_amount": None,
        "placed_at": placed["placed_at"],
        "resolved_at": None,
    }
    page = {"items": [bet], "next_cursor": None, "archived_before": None}
    assert await ada.json("/api/bets") == page
    evidence = {"void_reason": None, "min_reward_rate": None, "rate": None, "result": None}
    shown = await ada.json(f"/api/bets/{placed['bet_id']}")
    assert shown == {**bet, "evidence": {**evidence, "bars": []}}
    assert (await ada.json("/api/me"))["balance"] == 99_500
    stake, credit = (await ada.json("/api/ledger"))["items"]
    assert stake["entry_id"].startswith("led_")
    assert stake == {
        "entry_id": stake["entry_id"],
        "amount": -500,
        "balance_after": 99_500,
        "ref_type": "BET",
        "ref_id": placed["bet_id"],
        "created_at": placed["placed_at"],
    }
    assert (credit["amount"], credit["ref_type"]) == (100_000, "DEPOSIT")


async def test_a_settled_bet_shows_rate_payout_and_times(ada: Trader, books: Books) -> None:
    bet_id = books.bet(
        ada.user_id,
        1_764_000_000_007,
        status="won",
        reward_rate_bps=110_582,
        payout_amount=5_529,
        resolved_at=1_764_000_020_450,
    )
    bet = await ada.json(f"/api/bets/{bet_id}")
    assert bet["status"] == "won"
    assert bet["reward_rate"] == "11.0582"
    assert bet["payout_amount"] == 5_529
    assert bet["placed_at"] == "2025-11-24T16:00:00.007Z"
    assert bet["resolved_at"] == "2025-11-24T16:00:20.450Z"
    for bps, rate in ((1, "0.0001"), (10_000, "1.0000"), (10_582, "1.0582"), (205_000, "20.5000")):
        other = books.bet(ada.user_id, 1_764_000_000_008, reward_rate_bps=bps)
        assert (await ada.json(f"/api/bets/{other}"))["reward_rate"] == rate


async def test_pages_are_complete_while_bets_are_placed(ada: Trader, books: Books) -> None:
    began = system_clock()
    # Three to a millisecond, so that pages end between bets of the same moment.
    ids = [books.bet(ada.user_id, began - 100 + i // 3) for i in range(240)]

    async def keep_placing() -> None:
        while True:
            books.bet(ada.user_id, system_clock())
            await asyncio.sleep(0)

    placing = asyncio.create_task(keep_placing())
    await asyncio.sleep(0.05)
    found = [bet["bet_id"] for bet in await all_pages(ada, "/api/bets", limit="7")]
    await background.end(placing)
    assert len(found) == len(set(found))
    older = set(ids)
    assert [bet_id for bet_id in found if bet_id in older] == ids[::-1]
    assert len(found) > len(ids)


async def test_a_page_holds_50_unless_asked_otherwise(ada: Trader, books: Books) -> None:
    for i in range(101):
        books.bet(ada.user_id, 1_764_000_000_000 + i)
    assert len((await ada.json("/api/bets"))["items"]) == 50
    assert len((await ada.json("/api/bets", limit="1"))["items"]) == 1
    page = await ada.json("/api/bets", limit="100")
    assert len(page["items"]) == 100
    last = await ada.json("/api/bets", cursor=page["next_cursor"], limit="1")
    assert len(last["items"]) == 1
    assert last["next_cursor"] is None


async def test_the_ledger_comes_in_pages_too(ada: Trader, books: Books) -> None:
    for i in range(25):
        time = system_clock() + i // 9
        number = books.bet(ada.user_id, time).removeprefix("bet_")
        books.run(
            "INSERT INTO transaction_ledger"
            " (id, user_id, amount, balance_after, ref_type, ref_id, created_at)"
            " VALUES (?, ?, -1, ?, 'BET', ?, ?)",
            (f"led_{number}u", ada.user_id, 99_999 - i, f"bet_{number}", time),
        )
    entries = await all_pages(ada, "/api/ledger", limit="4")
    assert [entry["balance_after"] for entry in entries] == [*range(99_975, 100_000), 100_000]


async def test_a_status_selects(ada: Trader, books: Books) -> None:
    by_status = {
        status: [books.bet(ada.user_id, 1_764_000_000_000, status=status) for _ in range(3)]
        for status in ("pending", "confirmed", "won", "lost", "insufficient_funds", "void")
    }
    for status, ids in by_status.items():
        found = await all_pages(ada, "/api/bets", status=status, limit="2")
        assert [bet["bet_id"] for bet in found] == ids[::-1]


async def test_nobody_reads_anyone_elses(client: TestClient, ada: Trader, books: Books) -> None:
    bob = await sign_in(client)
    mine = [books.bet(ada.user_id, 1_764_000_000_000) for _ in range(3)]
    theirs = books.bet(bob.user_id, 1_764_000_000_000)
    answer = await bob.get(f"/api/bets/{mine[0]}")
    assert (await problem(answer))[:2] == (404, "not_found")
    assert [bet["bet_id"] for bet in await all_pages(bob, "/api/bets")] == [theirs]
    # A cursor is a place in a list, whoever's it was.
    cursor = (await ada.json("/api/bets", limit="1"))["next_cursor"]
    assert (await bob.json("/api/bets", cursor=cursor))["items"] == []
    assert {entry["ref_type"] for entry in await all_pages(bob, "/api/ledger")} == {"DEPOSIT"}


@pytest.mark.parametrize("bet_id", ["bet_none", "1", "%2e%2e", "a%2Fb", "%00", "%ff", "%ED%A0%80"])
async def test_an_id_of_nothing_is_not_found(ada: Trader, bet_id: str) -> None:
    answer = await raw_get(ada, f"/api/bets/{bet_id}")
    assert answer.startswith(b"HTTP/1.1 404"), answer
    assert b'"code":"not_found"' in answer


async def raw_get(trader: Trader, target: str) -> bytes:
    """The answer to a request whose target is sent as it is."""
    reader, writer = await asyncio.open_connection(trader.client.host, trader.client.port)
    writer.write(
        f"GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
        f"Authorization: Bearer {trader.token}\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=", "limit"),
        ("limit=05", "limit"),
        ("limit=5.0", "limit"),
        ("limit=+5", "limit"),
        ("limit=1e1", "limit"),
        ("limit=%D9%A5", "limit"),
        ("limit=9999999999999999999999", "limit"),
        ("limit=5&limit=5", "limit"),
        ("status=", "status"),
        ("status=WON", "status"),
        ("status=won,lost", "status"),
        ("status=won&status=lost", "status"),
        ("cursor=", "cursor"),
        ("cursor=x", "cursor"),
        ("cursor=e1019ab3c2d4e56c6564", "cursor"),
        ("cursor=b1019ab3c2d4e5", "cursor"),
        ("cursor=b2019ab3c2d4e5626574", "cursor"),
        ("Limit=5", "Limit"),
        ("offset=5", "offset"),
        ("limit=5&user_id=eve", "user_id"),
        ("%ED%A0%80=1", "parameter"),
        ("%00", "parameter"),
        ("=", "parameter"),
    ],
)
async def test_wrong_parameters_are_named(ada: Trader, query: str, named: str) -> None:
    answer = await raw_get(ada, f"/api/bets?{query}")
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b'"code":"malformed"' in answer
    detail = answer.partition(b'"detail":"')[2].partition(b'","code"')[0]
    assert named in detail.decode()


@pytest.mark.parametrize(
    "target",
    ["/api/me?x=1", "/api/market?x=1", "/api/bets/bet_1?x=1", "/api/ledger?status=won"],
)
async def test_parameters_of_other_calls_are_unknown(ada: Trader, target: str) -> None:
    name = target.partition("?")[2].partition("=")[0]
    status, code, detail = await problem(await ada.get(target))
    assert (status, code) == (400, "malformed")
    assert name in detail


async def test_cursors_belong_to_their_list(ada: Trader, books: Books) -> None:
    for _ in range(2):
        books.bet(ada.user_id, 1_764_000_000_000)
    cursor = (await ada.json("/api/bets", limit="1"))["next_cursor"]
    status, code, detail = await problem(await ada.get("/api/ledger", cursor=cursor))
    assert (status, code) == (400, "malformed")
    assert "cursor" in detail


@pytest.mark.parametrize("path", PERSONAL)
async def test_books_that_cannot_be_read_are_a_503(ada: Trader, books: Books, path: str) -> None:
    for table in ("users", "bets", "transaction_ledger"):
        books.run(f"ALTER TABLE {table} RENAME TO broken_{table}")
    answer = await ada.get(path)
    assert (await problem(answer))[:2] == (503, "storage_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    for table in ("users", "bets", "transaction_ledger"):
        books.run(f"ALTER TABLE broken_{table} RENAME TO {table}")
    assert (await ada.get("/api/me")).status == 200


async def test_the_market_while_it_is_open(client: TestClient, redis: Redis) -> None:
    async with live_price(client, redis):
        before = system_clock()
        answer = await client.get("/api/market")
        market = await answer.json()
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert set(market) == {"symbol", "price", "server_time", "state", "columns", "cells"}
    assert (market["symbol"], market["price"], market["state"]) == ("btc-usd", PRICE, "open")
    assert rfc3339_ms(before) <= market["server_time"] <= rfc3339_ms(system_clock())
    assert len(market["columns"]) == 8
    assert set(market["columns"][0]) == {"start", "width", "step"}
    assert len(market["cells"]) == 8 * 12
    assert {cell["reward_rate"] for cell in market["cells"]} == {"2.0582"}


@pytest.mark.parametrize(
    ("age_ms", "state", "columns", "cells"),
    [(4_000, "degraded", 8, 96), (11_000, "suspended", 0, 0)],
)
async def test_an_old_price_takes_no_bets(
    serve: Serve, redis: Redis, age_ms: int, state: str, columns: int, cells: int
) -> None:
    t = (system_clock() - age_ms) // 100 * 100
    await redis.zadd(HISTORY_KEY, {PricePoint(t, 1, PRICE).encode(): t})
    await redis.set(OFFER_KEY, offer(system_clock()).encode())
    async with serve(api.build) as client:
        market = await (await client.get("/api/market")).json()
    assert (market["state"], market["price"]) == (state, PRICE)
    assert (len(market["columns"]), len(market["cells"])) == (columns, cells)


async def test_a_suspended_market_offers_nothing_whatever_its_price(
    client: TestClient, redis: Redis
) -> None:
    async with live_price(client, redis):
        pass
    now = system_clock()
    await publish_price(redis, now)
    await publish_offer(redis, offer(now, state=MarketState.SUSPENDED, reason="manual"))
    async with asyncio.timeout(10):
        while (market := await (await client.get("/api/market")).json())["state"] != "suspended":
            await asyncio.sleep(0.02)
    assert market["price"] == PRICE
    assert (market["columns"], market["cells"]) == ([], [])


async def test_a_market_without_any_price(client: TestClient) -> None:
    market = await (await client.get("/api/market")).json()
    assert (market["price"], market["state"]) == (None, "suspended")
    assert (market["columns"], market["cells"]) == ([], [])
