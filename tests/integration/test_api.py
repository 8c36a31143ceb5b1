"""The HTTP API as a client meets it: the contract's codes, and bets that are on disk."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from tests.integration.conftest import Serve

from tap_trading.base import background
from tap_trading.base.clock import system_clock
from tap_trading.base.db import open_reader
from tap_trading.base.redis import Redis
from tap_trading.game import grid
from tap_trading.ledger.batcher import Batcher, OverloadedError, StorageUnavailableError
from tap_trading.market.point import CHANNEL, PricePoint
from tap_trading.services import api

PRICE = 8_421_550
GEOMETRY = grid.Geometry(width_s=5, columns=8, rows=12)


@pytest.fixture
async def client(serve: Serve, redis: Redis) -> AsyncIterator[TestClient]:
    """The API with a live price that stays where it is."""
    async with serve(api.build, TAP_ALLOWED_ORIGINS="https://partner.example") as client:
        ticking = asyncio.create_task(_keep_price(redis))
        async with asyncio.timeout(10):
            while (await _health(client))["checks"]["price"] != "open":
                await asyncio.sleep(0.05)
        yield client
        await background.end(ticking)


async def _health(client: TestClient) -> dict[str, Any]:
    await asyncio.sleep(0.3)  # health reports are reused for a quarter of a second
    return dict(await (await client.get("/api/healthz")).json())


async def _keep_price(redis: Redis) -> None:
    seq = 0
    while True:
        seq += 1
        now = system_clock()
        await redis.publish(CHANNEL, PricePoint(now - now % 100, seq, PRICE).encode())
        await asyncio.sleep(0.1)


def cell(number: int = 0) -> str:
    """An offered cell, well inside the grid."""
    offered = list(grid.cells(GEOMETRY, system_clock(), PRICE))
    return offered[GEOMETRY.rows * 2 + number].cell_id


async def post(client: TestClient, body: object, key: str | None = "key-1") -> ClientResponse:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post("/api/bets", json=body, headers=headers)


async def problem(answer: ClientResponse) -> dict[str, Any]:
    assert answer.content_type == "application/problem+json"
    body = dict(await answer.json())
    assert body["status"] == answer.status
    assert body["type"] == f"urn:tap-trading:problem:{body['code']}"
    assert body["detail"]
    assert body["request_id"] == answer.headers["X-Request-ID"]
    return body


def bets(database: Path) -> list[tuple[Any, ...]]:
    connection = open_reader(database)
    rows = connection.execute("SELECT id, user_id, cell_id, amount, status FROM bets").fetchall()
    connection.close()
    return rows


async def test_health_and_version(client: TestClient) -> None:
    for prefix in ("", "/api"):
        answer = await client.get(f"{prefix}/healthz")
        assert answer.status == 200
        body = await answer.json()
        assert body["status"] == "ok"
        assert body["component"] == "api"
        assert body["checks"] == {
            "sqlite": "ok",
            "redis": "ok",
            "price": "open",
            "schema": "version 1",
        }
        version = await (await client.get(f"{prefix}/version")).json()
        assert set(version) == {"version", "build_time", "git_commit", "python_version"}
    assert "tap_http_request_seconds" in await (await client.get("/metrics")).text()


async def test_an_accepted_bet_is_on_disk(client: TestClient, database: Path) -> None:
    wanted = cell()
    answer = await post(client, {"cell_id": wanted, "amount": 500, "min_reward_rate": "1.0582"})
    assert answer.status == 202
    body = await answer.json()
    assert set(body) == {"status", "bet_id", "cell_id", "amount", "balance", "placed_at"}
    assert body["status"] == "accepted"
    assert body["balance"] is None
    assert body["placed_at"].endswith("Z")
    assert bets(database) == [(body["bet_id"], "user_practice", wanted, 500, "pending")]


async def test_a_retry_gets_the_first_answer_and_no_second_bet(
    client: TestClient, database: Path
) -> None:
    body = {"cell_id": cell(), "amount": 500}
    answers = await asyncio.gather(*(post(client, body) for _ in range(10)))
    assert {answer.status for answer in answers} == {202}
    assert len({await answer.text() for answer in answers}) == 1
    assert len(bets(database)) == 1


async def test_a_retry_after_the_column_closed_still_gets_its_answer(
    client: TestClient, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"cell_id": cell(), "amount": 500}
    first = await (await post(client, body)).json()
    monkeypatch.setattr(grid, "refusal", lambda *_: grid.Refusal.CLOSED)
    again = await post(client, body)
    assert (again.status, await again.json()) == (202, first)
    other = await post(client, {"cell_id": cell(1), "amount": 500})
    assert (await problem(other))["code"] == "idempotency_key_reused"
    new = await post(client, body, key="key-2")
    assert (new.status, (await problem(new))["code"]) == (422, "cell_closed")
    assert len(bets(database)) == 1


async def test_a_key_is_for_one_request_only(client: TestClient, database: Path) -> None:
    wanted = cell()
    assert (await post(client, {"cell_id": wanted, "amount": 500})).status == 202
    answer = await post(client, {"cell_id": wanted, "amount": 100})
    assert (answer.status, (await problem(answer))["code"]) == (422, "idempotency_key_reused")
    assert len(bets(database)) == 1


async def test_one_bet_per_cell_even_in_a_race(client: TestClient, database: Path) -> None:
    body = {"cell_id": cell(), "amount": 500}
    answers = await asyncio.gather(*(post(client, body, key=f"key-{i}") for i in range(10)))
    assert sorted(answer.status for answer in answers) == [202] + [409] * 9
    for answer in answers:
        if answer.status == 409:
            assert (await problem(answer))["code"] == "duplicate_cell"
    assert len(bets(database)) == 1


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        (None, 400, "missing_idempotency_key"),
        ("", 400, "missing_idempotency_key"),
        ("x" * 65, 400, "malformed"),
        ("with blank", 400, "malformed"),
    ],
)
async def test_the_key_is_checked(
    client: TestClient, key: str | None, status: int, code: str
) -> None:
    answer = await post(client, {"cell_id": cell(), "amount": 500}, key=key)
    assert (answer.status, (await problem(answer))["code"]) == (status, code)


@pytest.mark.parametrize(
    "body",
    [
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
    ],
)
async def test_malformed_bodies(client: TestClient, body: bytes, database: Path) -> None:
    answer = await client.post("/api/bets", data=body, headers={"Idempotency-Key": "k"})
    assert (answer.status, (await problem(answer))["code"]) == (400, "malformed")
    assert bets(database) == []


@pytest.mark.parametrize("amount", [0, -100, 101, 10**30, 100.5, 1e300])
async def test_stakes_are_presets(client: TestClient, amount: float, database: Path) -> None:
    answer = await post(client, {"cell_id": cell(), "amount": amount})
    # A number beyond 64 bits is no JSON number to us.
    assert answer.status in (400, 422)
    assert (await problem(answer))["code"] in ("invalid_amount", "malformed")
    assert bets(database) == []


@pytest.mark.parametrize(
    ("cell_id", "code"),
    [
        ("nonsense", "unknown_cell"),
        ("btc-usd:1764000000:5:8420000:8421000", "unknown_cell"),
        ("btc-usd:1764000000:5:8420000:8422000", "cell_closed"),
        ("btc-usd:9999999995:5:8420000:8422000", "unknown_cell"),
    ],
)
async def test_cells_off_the_grid(client: TestClient, cell_id: str, code: str) -> None:
    answer = await post(client, {"cell_id": cell_id, "amount": 100})
    assert (answer.status, (await problem(answer))["code"]) == (422, code)


async def test_without_a_live_price_no_bet(serve: Serve, database: Path) -> None:
    async with serve(api.build) as client:
        answer = await post(client, {"cell_id": cell(), "amount": 500})
        assert (answer.status, (await problem(answer))["code"]) == (503, "feed_stale")
        assert int(answer.headers["Retry-After"]) > 0
    assert bets(database) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverloadedError("too many bets are waiting to be written"), "overloaded"),
        (StorageUnavailableError("database or disk is full"), "storage_unavailable"),
    ],
)
async def test_what_cannot_be_written_is_refused_with_retry_after(
    client: TestClient, error: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(Batcher, "run", refuse)
    answer = await post(client, {"cell_id": cell(), "amount": 500})
    assert (answer.status, (await problem(answer))["code"]) == (503, code)
    assert int(answer.headers["Retry-After"]) > 0


async def test_an_oversized_body_is_413(client: TestClient) -> None:
    answer = await client.post("/api/bets", data=b" " * 20_000, headers={"Idempotency-Key": "k"})
    assert (answer.status, (await problem(answer))["code"]) == (413, "payload_too_large")


async def test_unknown_routes_and_methods(client: TestClient) -> None:
    answer = await client.get("/api/nope")
    assert (answer.status, (await problem(answer))["code"]) == (404, "not_found")
    answer = await client.delete("/api/bets")
    assert (answer.status, (await problem(answer))["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


async def test_a_body_that_is_not_what_it_says_is_malformed(client: TestClient) -> None:
    answer = await client.post(
        "/api/bets",
        data=b"not gzip at all",
        headers={"Idempotency-Key": "k", "Content-Encoding": "gzip"},
    )
    assert (answer.status, (await problem(answer))["code"]) == (400, "malformed")


async def test_request_ids_are_kept_or_made(client: TestClient) -> None:
    answer = await client.get("/healthz", headers={"X-Request-ID": "req_abc123"})
    assert answer.headers["X-Request-ID"] == "req_abc123"
    for forged in ("x", "req_" + "a" * 65, "req_a b", 'req_"'):
        answer = await client.get("/healthz", headers={"X-Request-ID": forged})
        assert answer.headers["X-Request-ID"] != forged
        assert answer.headers["X-Request-ID"].startswith("req_")


async def test_cors_answers_configured_origins_only(client: TestClient) -> None:
    asked = {"Access-Control-Request-Method": "POST"}
    allowed = await client.options(
        "/api/bets", headers={"Origin": "https://partner.example", **asked}
    )
    assert allowed.status == 204
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://partner.example"
    assert "Idempotency-Key" in allowed.headers["Access-Control-Allow-Headers"]
    assert allowed.headers["Vary"] == "Origin"
    foreign = await client.options("/api/bets", headers={"Origin": "https://evil.example", **asked})
    assert "Access-Control-Allow-Origin" not in foreign.headers
    simple = await client.get("/api/version", headers={"Origin": "https://partner.example"})
    assert simple.headers["Access-Control-Allow-Origin"] == "https://partner.example"
    assert "X-Request-ID" in simple.headers["Access-Control-Expose-Headers"]


async def test_a_handler_that_breaks_is_a_500_and_the_service_lives(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(grid, "refusal", broken)
    answer = await post(client, {"cell_id": cell(), "amount": 500})
    body = await problem(answer)
    assert (answer.status, body["code"]) == (500, "internal")
    assert "secret" not in await answer.text()
    assert (await client.get("/healthz")).status == 200


async def test_redis_gone_makes_it_unavailable_and_back_makes_it_well(
    client: TestClient, redis_server: Any
) -> None:
    redis_server.stop()
    body = await _health(client)
    assert body["status"] == "unavailable"
    assert body["checks"]["sqlite"] == "ok"
    redis_server.start()
    async with asyncio.timeout(15):
        while (await _health(client))["status"] != "ok":
            pass
