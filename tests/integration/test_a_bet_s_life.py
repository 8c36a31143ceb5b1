"""A bet from tap to payout, through all four services, on a price that moves."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aiohttp import ClientWebSocketResponse
from tests.integration.conftest import Serve, Tap
from tests.integration.signed_in import sign_in

import price_history
from tap_trading.base.clock import system_clock
from tap_trading.base.redis import Redis
from tap_trading.services import api, price, resolver, ws

#: Narrow columns make it quick.
SETTINGS = {"TAP_GRID_WIDTH_S": "1", "TAP_MOCK_START": "8421500"}


async def heard(stream: ClientWebSocketResponse, bets: dict[str, list[dict[str, Any]]]) -> None:
    """Sort what is said of each bet, with the moment at which it was heard."""
    async for message in stream:
        said = message.json()
        if said["type"] == "bet":
            bets.setdefault(said["bet_id"], []).append({**said, "heard": time.time()})
        elif said["type"] == "balance":
            bets.setdefault("balance", []).append(said)


async def test_a_bet_is_confirmed_settled_paid_told_and_verified(
    serve: Serve,
    environment: dict[str, str],
    redis: Redis,
    run_tap: Tap,
    monkeypatch: Any,
) -> None:
    price_history.write(
        Path(environment["PRICES_DB_PATH"]),
        system_clock(),
        price_history.closes(price_history.ENOUGH, 8_421_500),
    )
    told: dict[str, list[dict[str, Any]]] = {}
    async with AsyncExitStack() as stack:
        for service in (price, resolver):
            await stack.enter_async_context(serve(service.build, **SETTINGS))
        client = await stack.enter_async_context(serve(api.build, **SETTINGS))
        streams = await stack.enter_async_context(serve(ws.build, **SETTINGS))
        trader = await sign_in(client)
        stream = await stack.enter_async_context(streams.ws_connect("/ws"))
        await stream.send_json({"type": "auth", "token": trader.token})
        listening = asyncio.create_task(heard(stream, told))
        await market_open(client)
        market = await (await client.get("/api/market")).json()
        placed = {}
        start = market["columns"][1]["start"]
        for number, cell in enumerate(market["cells"]):
            if f"btc-usd:{start}:" in cell["cell_id"]:
                answer = await trader.bet(cell["cell_id"], 100, f"key-{number}")
                assert answer.status == 202, await answer.text()
                placed[(await answer.json())["bet_id"]] = cell
        assert placed
        async with asyncio.timeout(30):
            for bet_id in placed:
                while (await trader.json(f"/api/bets/{bet_id}"))["resolved_at"] is None:
                    await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        bets = {bet_id: await trader.json(f"/api/bets/{bet_id}") for bet_id in placed}
        balance = (await trader.json("/api/me"))["balance"]
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    paid = sum(bet["payout_amount"] or 0 for bet in bets.values())
    back = sum(bet["amount"] for bet in bets.values() if bet["status"] == "void")
    assert balance == 100_000 - 100 * len(bets) + paid + back
    assert told["balance"][-1]["balance"] == balance or not paid + back
    assert {bet["status"] for bet in bets.values()} >= {"won", "lost"}
    for name in ("DB_PATH", "PRICES_DB_PATH"):
        monkeypatch.setenv(name, environment[name])
    for bet_id, bet in bets.items():
        changes = told[bet_id]
        assert changes[-1]["status"] == bet["status"]
        if bet["status"] != "void":
            assert [change["status"] for change in changes] == ["confirmed", bet["status"]]
            assert bet["evidence"]["rate"]["lead_ms"] > 0
            assert len(bet["evidence"]["bars"]) == bet["evidence"]["result"]["bars"]
            # From the end of the column to the trader.
            assert changes[-1]["heard"] - (start + 1) < 5
        code, out, _ = run_tap("verify", bet_id)
        assert (code, "WRONG" in out) == (0, False), out


async def market_open(client: Any) -> None:
    async with asyncio.timeout(20):
        while not (await (await client.get("/api/market")).json())["cells"]:
            await asyncio.sleep(0.05)
