"""The HTTP API as a client meets it, apart from its bets."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from tests.integration.conftest import Serve, problem
from tests.integration.signed_in import live_price

from tap_trading.base.redis import Redis
from tap_trading.ledger import migrations
from tap_trading.services import api


@pytest.fixture
async def client(serve: Serve, redis: Redis) -> AsyncIterator[TestClient]:
    """The API with a live price that stays where it is."""
    async with (
        serve(api.build, TAP_ALLOWED_ORIGINS="https://partner.example") as client,
        live_price(client, redis),
    ):
        yield client


async def _health(client: TestClient) -> dict[str, Any]:
    await asyncio.sleep(0.3)  # health reports are reused for a quarter of a second
    return dict(await (await client.get("/api/healthz")).json())


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
            "revocations": "ok",
            "disk": "ok",
            "schema": f"version {len(migrations.available())}",
        }
        version = await (await client.get(f"{prefix}/version")).json()
        assert set(version) == {"version", "build_time", "git_commit", "python_version"}
    assert "tap_http_request_seconds" in await (await client.get("/metrics")).text()


async def test_unknown_routes_and_methods(client: TestClient) -> None:
    answer = await client.get("/api/nope")
    assert (answer.status, (await problem(answer))["code"]) == (404, "not_found")
    answer = await client.delete("/api/bets")
    assert (answer.status, (await problem(answer))["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD", "POST"}


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
