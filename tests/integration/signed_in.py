"""A live price and wallets that sign in through the API, for tests of calls that need them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from nacl.signing import SigningKey

from live_market import GEOMETRY, PRICE, keep_market
from tap_trading.auth import base58
from tap_trading.base import background
from tap_trading.base.clock import system_clock
from tap_trading.base.redis import Redis
from tap_trading.game.grid import Geometry

__all__ = ["PRICE", "Trader", "live_price", "sign_in"]


@dataclass
class Trader:
    """A signed-in user."""

    client: TestClient
    user_id: str
    address: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    async def get(self, path: str, **params: str) -> ClientResponse:
        return await self.client.get(path, params=params, headers=self.headers)

    async def json(self, path: str, **params: str) -> dict[str, Any]:
        """The body of a 200."""
        answer = await self.get(path, **params)
        assert answer.status == 200, await answer.text()
        return dict(await answer.json())

    async def bet(self, cell_id: str, amount: int, key: str) -> ClientResponse:
        return await self.client.post(
            "/api/bets",
            json={"cell_id": cell_id, "amount": amount},
            headers={**self.headers, "Idempotency-Key": key},
        )


async def sign_in(client: TestClient) -> Trader:
    """A new wallet, signed in."""
    key = SigningKey.generate()
    address = base58.encode(bytes(key.verify_key))
    asked = await (await client.post("/api/auth/challenge", json={"address": address})).json()
    signature = base58.encode(key.sign(asked["message"].encode()).signature)
    answer = await client.post(
        "/api/auth/verify",
        json={"address": address, "nonce": asked["nonce"], "signature": signature},
    )
    assert answer.status == 200, await answer.text()
    # The cookie would sign in every later request of this client.
    client.session.cookie_jar.clear()
    body = await answer.json()
    return Trader(client, body["user_id"], address, body["token"])


@asynccontextmanager
async def live_price(
    client: TestClient, redis: Redis, geometry: Geometry = GEOMETRY
) -> AsyncIterator[None]:
    """The market is open inside the block, at a price that stays where it is."""
    ticking = asyncio.create_task(keep_market(redis, geometry, lambda: system_clock()))  # noqa: PLW0108 - tests set the clock
    try:
        async with asyncio.timeout(10):
            while (await (await client.get("/api/market")).json())["state"] != "open":
                await asyncio.sleep(0.05)
        yield
    finally:
        await background.end(ticking)
