"""Bets over the HTTP API: the contract's codes, and money that is where it should be.

Every test runs twice: through the lane, and through the ordinary route, which a header
that the lane does not take leads to.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from tests.conftest import RedisServer
from tests.integration.conftest import Serve, problem
from tests.integration.signed_in import Trader, live_price, sign_in

import live_market
from tap_trading.base.db import open_reader
from tap_trading.base.redis import Redis
from tap_trading.game import grid
from tap_trading.ledger.batcher import Batcher, OverloadedError, StorageUnavailableError
from tap_trading.services import api

CREDIT = 100_000


@pytest.fixture(params=["lane", "ordinary"])
def way(request: pytest.FixtureRequest) -> dict[str, str]:
    """Headers that send a bet this way."""
    return {} if request.param == "lane" else {"Content-Encoding": "identity"}


@pytest.fixture
async def client(serve: Serve, redis: Redis) -> AsyncIterator[TestClient]:
    """The API with a live price that stays where it is."""
    async with (
        serve(api.build, TAP_ALLOWED_ORIGINS="https://partner.example") as client,
        live_price(client, redis),
    ):
        yield client


@pytest.fixture
async def ada(client: TestClient) -> Trader:
    return await sign_in(client)


class Bettor:
    """A signed-in trader who bets this way."""

    def __init__(self, trader: Trader, way: dict[str, str]) -> None:
        self.trader = trader
        self._way = way

    async def post(self, body: object, key: str | None = "key-1", **headers: str) -> ClientResponse:
        sent = {**self.trader.headers, **self._way, **headers}
        if key is not None:
            sent["Idempotency-Key"] = key
        data = body if isinstance(body, bytes) else json.dumps(body)
        return await self.trader.client.post("/api/bets", data=data, headers=sent)

    async def balance(self) -> int:
        return int((await self.trader.json("/api/me"))["balance"])


@pytest.fixture
async def bettor(ada: Trader, way: dict[str, str]) -> Bettor:
    return Bettor(ada, way)


def cell(number: int = 0) -> str:
    """An offered cell, well inside the grid."""
    return live_market.cells()[live_market.GEOMETRY.rows * 2 + number].cell_id


def bets(database: Path) -> list[tuple[Any, ...]]:
    connection = open_reader(database)
    rows = connection.execute("SELECT id, user_id, cell_id, amount, status FROM bets").fetchall()
    connection.close()
    return rows


async def refused(answer: ClientResponse) -> tuple[int, str]:
    return answer.status, str((await problem(answer))["code"])


async def test_an_accepted_bet_is_on_disk_and_paid_for(bettor: Bettor, database: Path) -> None:
    wanted = cell()
    answer = await bettor.post({"cell_id": wanted, "amount": 500, "min_reward_rate": "1.0582"})
    assert answer.status == 202
    body = await answer.json()
    assert set(body) == {"status", "bet_id", "cell_id", "amount", "balance", "placed_at"}
    assert body["status"] == "accepted"
    assert body["balance"] == CREDIT - 500 == await bettor.balance()
    assert body["placed_at"].endswith("Z")
    assert bets(database) == [(body["bet_id"], bettor.trader.user_id, wanted, 500, "pending")]
    entries = (await bettor.trader.json("/api/ledger"))["items"]
    assert [(e["ref_type"], e["amount"], e["balance_after"]) for e in entries] == [
        ("BET", -500, CREDIT - 500),
        ("DEPOSIT", CREDIT, CREDIT),
    ]


async def test_a_retry_gets_the_first_answer_and_no_second_bet(
    bettor: Bettor, database: Path
) -> None:
    body = {"cell_id": cell(), "amount": 500}
    answers = await asyncio.gather(*(bettor.post(body) for _ in range(10)))
    assert {answer.status for answer in answers} == {202}
    assert len({await answer.text() for answer in answers}) == 1
    assert len(bets(database)) == 1
    assert await bettor.balance() == CREDIT - 500


async def test_a_retry_after_the_column_closed_still_gets_its_answer(
    bettor: Bettor, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"cell_id": cell(), "amount": 500}
    first = await (await bettor.post(body)).json()
    monkeypatch.setattr(grid, "first_placeable", lambda *_: 2**40)
    again = await bettor.post(body)
    assert (again.status, await again.json()) == (202, first)
    other = await bettor.post({"cell_id": cell(1), "amount": 500})
    assert await refused(other) == (422, "idempotency_key_reused")
    assert await refused(await bettor.post(body, key="key-2")) == (422, "cell_closed")
    assert len(bets(database)) == 1


async def test_a_key_is_for_one_request_only(bettor: Bettor, database: Path) -> None:
    wanted = cell()
    assert (await bettor.post({"cell_id": wanted, "amount": 500})).status == 202
    answer = await bettor.post({"cell_id": wanted, "amount": 100})
    assert await refused(answer) == (422, "idempotency_key_reused")
    assert len(bets(database)) == 1


async def test_two_tabs_with_one_key_each_have_their_own(
    client: TestClient, way: dict[str, str], database: Path
) -> None:
    traders = [Bettor(await sign_in(client), way) for _ in range(2)]
    body = {"cell_id": cell(), "amount": 500}
    answers = await asyncio.gather(*(trader.post(body) for trader in traders))
    assert [answer.status for answer in answers] == [202, 202]
    assert len(bets(database)) == 2


async def test_one_bet_per_cell_even_in_a_race(bettor: Bettor, database: Path) -> None:
    body = {"cell_id": cell(), "amount": 500}
    answers = await asyncio.gather(*(bettor.post(body, key=f"key-{i}") for i in range(10)))
    assert sorted(answer.status for answer in answers) == [202] + [409] * 9
    for answer in answers:
        if answer.status == 409:
            assert await refused(answer) == (409, "duplicate_cell")
    assert len(bets(database)) == 1
    assert await bettor.balance() == CREDIT - 500


async def test_a_hundred_bets_at_once_with_money_for_ten(
    serve: Serve, redis: Redis, way: dict[str, str], database: Path
) -> None:
    tall = grid.Geometry(width_s=5, columns=8, rows=100)
    async with (
        serve(api.build, TAP_PRACTICE_CREDIT="1000") as client,
        live_price(client, redis, tall),
    ):
        bettor = Bettor(await sign_in(client), way)
        wide = live_market.cells(tall)[200:300]
        answers = await asyncio.gather(
            *(
                bettor.post({"cell_id": wanted.cell_id, "amount": 100}, key=f"key-{i}")
                for i, wanted in enumerate(wide)
            )
        )
        assert sorted(answer.status for answer in answers) == [202] * 10 + [402] * 90
        assert await bettor.balance() == 0
        poor = next(i for i, answer in enumerate(answers) if answer.status == 402)
        assert await refused(answers[poor]) == (402, "insufficient_funds")
        # The same request has its answer for ever; nothing was deducted for it.
        again = await bettor.post({"cell_id": wide[poor].cell_id, "amount": 100}, key=f"key-{poor}")
        assert await refused(again) == (402, "insufficient_funds")
    statuses = [row[4] for row in bets(database)]
    assert (statuses.count("pending"), statuses.count("insufficient_funds")) == (10, 90)


async def test_limits_on_what_is_at_stake(serve: Serve, redis: Redis, way: dict[str, str]) -> None:
    settings = {"TAP_MAX_OPEN_STAKE": "1000", "TAP_MAX_CELL_STAKE": "1200"}
    async with serve(api.build, **settings) as client, live_price(client, redis):
        ada, bob = [Bettor(await sign_in(client), way) for _ in range(2)]
        assert (await ada.post({"cell_id": cell(), "amount": 1000})).status == 202
        over = await ada.post({"cell_id": cell(1), "amount": 100}, key="key-2")
        assert await refused(over) == (422, "limit_exceeded")
        crowded = await bob.post({"cell_id": cell(), "amount": 500})
        assert await refused(crowded) == (422, "limit_exceeded")
        assert (await bob.post({"cell_id": cell(1), "amount": 500}, key="key-2")).status == 202


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        (None, 400, "missing_idempotency_key"),
        ("", 400, "missing_idempotency_key"),
        ("x" * 65, 400, "malformed"),
        ("with blank", 400, "malformed"),
        ("ключ", 400, "malformed"),
    ],
)
async def test_the_key_is_checked(bettor: Bettor, key: str | None, status: int, code: str) -> None:
    answer = await bettor.post({"cell_id": cell(), "amount": 500}, key=key)
    assert await refused(answer) == (status, code)


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b'"bet"',
    b"{}",
    b'{"cell_id":"x"}',
    b'{"amount":100}',
    b'{"cell_id":"x","amount":100,"user_id":"eve"}',
    b'{"cell_id":5,"amount":100}',
    b'{"cell_id":"x","amount":"100"}',
    b'{"cell_id":"x","amount":true}',
    b'{"cell_id":"x","amount":null}',
    b'{"cell_id":"x","amount":NaN}',
    b'{"cell_id":"x","amount":100,"min_reward_rate":1.5}',
    b'{"cell_id":"x","amount":100,"min_reward_rate":"0"}',
    b'{"cell_id":"x","amount":100,"min_reward_rate":"1.05821"}',
    b'{"cell_id":"x","amount":100,"min_reward_rate":"1e9"}',
    b"\xff\xfe",
]


async def test_malformed_bodies(bettor: Bettor, database: Path) -> None:
    for body in MALFORMED:
        assert await refused(await bettor.post(body)) == (400, "malformed"), body
    assert bets(database) == []


@pytest.mark.parametrize("amount", [0, -100, 101, 10**30, 100.5, 1e300])
async def test_stakes_are_presets(bettor: Bettor, amount: float, database: Path) -> None:
    status, code = await refused(await bettor.post({"cell_id": cell(), "amount": amount}))
    # A number beyond 64 bits is no whole number to us.
    assert (status, code) in ((422, "invalid_amount"), (400, "malformed"))
    assert bets(database) == []


@pytest.mark.parametrize(
    ("cell_id", "code"),
    [
        ("nonsense", "unknown_cell"),
        ("btc-usd:1764000000:10:8420000:8422000", "unknown_cell"),
        ("btc-usd:1764000001:5:8420000:8422000", "unknown_cell"),
        ("btc-usd:1764000000:5:8420000:8422000", "cell_closed"),
        ("btc-usd:9999999995:5:8420000:8422000", "unknown_cell"),
        ("btc-usd:\u0000\u2028\U0001f4a9", "unknown_cell"),
    ],
)
async def test_cells_off_the_grid(bettor: Bettor, cell_id: str, code: str) -> None:
    answer = await bettor.post({"cell_id": cell_id, "amount": 100})
    assert await refused(answer) == (422, code)


async def test_without_a_live_price_no_bet(
    serve: Serve, way: dict[str, str], database: Path
) -> None:
    async with serve(api.build) as client:
        bettor = Bettor(await sign_in(client), way)
        answer = await bettor.post({"cell_id": cell(), "amount": 500})
        assert await refused(answer) == (503, "feed_stale")
    assert bets(database) == []


async def test_a_full_disk_refuses_new_bets_and_nothing_else(
    bettor: Bettor, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"cell_id": cell(), "amount": 500}
    placed = await (await bettor.post(wanted)).json()
    for used, status in ((100, 503), (98, 503), (97, 202)):
        stat = SimpleNamespace(f_blocks=100, f_bfree=100 - used, f_bavail=100 - used, f_frsize=1)
        monkeypatch.setattr("os.statvfs", lambda _path, stat=stat: stat)
        await asyncio.sleep(1.2)  # it looks once a second
        answer = await bettor.post({"cell_id": cell(1), "amount": 500}, key="key-2")
        assert answer.status == status
        if status == 503:
            assert (await refused(answer))[1] == "storage_unavailable"
            assert answer.headers["Retry-After"] == "30"
            assert await (await bettor.post(wanted)).json() == placed
            assert len(bets(database)) == 1
            assert await bettor.balance() == CREDIT - 500
            newcomer = await sign_in(bettor.trader.client)
            assert (await newcomer.json("/api/me"))["balance"] == CREDIT
            healthy = await bettor.trader.client.get("/healthz")
            said = (await healthy.json())["checks"]["disk"]
            assert (healthy.status, said) == (200, f"{used}.0 % in use: new bets are refused")
            assert (await bettor.trader.client.get("/readyz")).status == 200
        shown = await (await bettor.trader.client.get("/metrics")).text()
        assert f"\ntap_disk_bets_refused {int(status == 503)}.0\n" in shown
        assert f"\ntap_disk_used_ratio {used / 100}\n" in shown


@pytest.mark.parametrize("token", ["", "Bearer", "Bearer x", f"Bearer {'a' * 43}", "Basic eDp5"])
async def test_without_a_session_no_bet(
    client: TestClient, way: dict[str, str], token: str, database: Path
) -> None:
    # Whoever is not signed in is told that first, whatever else is wrong.
    for headers in ({}, {"Idempotency-Key": "k"}):
        if token:
            headers["Authorization"] = token
        answer = await client.post("/api/bets", data=b"{", headers={**way, **headers})
        assert await refused(answer) == (401, "unauthenticated")
    assert bets(database) == []


async def test_the_cookie_will_do(ada: Trader, way: dict[str, str]) -> None:
    headers = {**way, "Idempotency-Key": "k", "Cookie": f"theme=dark; tap_session={ada.token}"}
    body = {"cell_id": cell(), "amount": 500}
    answer = await ada.client.post("/api/bets", json=body, headers=headers)
    assert answer.status == 202


async def test_after_logout_no_bet(bettor: Bettor) -> None:
    assert (await bettor.post({"cell_id": cell(), "amount": 500})).status == 202
    trader = bettor.trader
    assert (await trader.client.post("/api/auth/logout", headers=trader.headers)).status == 204
    answer = await bettor.post({"cell_id": cell(1), "amount": 500}, key="key-2")
    assert await refused(answer) == (401, "unauthenticated")


async def test_a_wallet_that_asks_too_often_is_refused(
    serve: Serve, redis: Redis, way: dict[str, str]
) -> None:
    async with serve(api.build, TAP_WALLET_RATE="20") as client, live_price(client, redis):
        ada, bob = [Bettor(await sign_in(client), way) for _ in range(2)]
        answers = [await ada.post(b"{", key=f"key-{i}") for i in range(45)]
        statuses = [answer.status for answer in answers]
        # The minute may change in between, but not twice.
        assert 20 <= statuses.count(400) <= 40
        assert statuses.count(429) >= 5
        assert await refused(answers[statuses.index(429)]) == (429, "rate_limited")
        assert (await bob.post({"cell_id": cell(), "amount": 500})).status == 202


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverloadedError("too many bets are waiting to be written"), "overloaded"),
        (StorageUnavailableError("database or disk is full"), "storage_unavailable"),
    ],
)
async def test_what_cannot_be_written_is_refused_with_retry_after(
    bettor: Bettor, error: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(Batcher, "submit", refuse)
    monkeypatch.setattr(Batcher, "handle", refuse)
    answer = await bettor.post({"cell_id": cell(), "amount": 500})
    assert await refused(answer) == (503, code)


async def test_a_desk_that_breaks_is_a_500_and_the_service_lives(
    bettor: Bettor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(grid, "has_closed", broken)
    answer = await bettor.post({"cell_id": cell(), "amount": 500})
    assert await refused(answer) == (500, "internal")
    assert "secret" not in await answer.text()
    monkeypatch.undo()
    assert (await bettor.post({"cell_id": cell(), "amount": 500})).status == 202


async def test_an_oversized_body_is_413(bettor: Bettor) -> None:
    assert await refused(await bettor.post(b" " * 20_000)) == (413, "payload_too_large")


async def test_a_body_that_is_not_what_it_says_is_malformed(ada: Trader) -> None:
    answer = await Bettor(ada, {"Content-Encoding": "gzip"}).post(b"not gzip at all")
    assert await refused(answer) == (400, "malformed")


async def test_pages_of_allowed_origins_may_read_the_answer(bettor: Bettor) -> None:
    body = {"cell_id": cell(), "amount": 500}
    answer = await bettor.post(body, Origin="https://partner.example")
    assert answer.headers["Access-Control-Allow-Origin"] == "https://partner.example"
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    answer = await bettor.post(body, Origin="https://evil.example")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Vary"] == "Origin"


async def test_without_redis_known_sessions_go_on_betting(
    bettor: Bettor, redis_server: RedisServer, database: Path
) -> None:
    assert (await bettor.post({"cell_id": cell(), "amount": 500})).status == 202
    redis_server.stop()
    answer = await bettor.post({"cell_id": cell(1), "amount": 500}, key="key-2")
    assert answer.status == 202
    asked = await bettor.trader.client.post(
        "/api/auth/challenge", json={"address": bettor.trader.address}
    )
    assert await refused(asked) == (503, "unavailable")
    redis_server.start()
    # It came back empty: nobody is signed in any more, and no bet is lost.
    async with asyncio.timeout(15):
        while (await bettor.post({"cell_id": cell(2), "amount": 500}, key="key-3")).status == 202:
            await asyncio.sleep(0.05)
    assert len(bets(database)) >= 2
