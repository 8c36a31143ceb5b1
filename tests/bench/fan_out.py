"""One price to many WebSockets, beside a bare loop that sends a frame to each."""

import asyncio
import sys
import time
from collections.abc import Coroutine

import aiohttp
import orjson

from bench.load import cpu_seconds
from bench.site import free_port, process, scratch_site, wait_for
from live_market import PRICE
from tap_trading.base.clock import system_clock
from tap_trading.base.redis import Redis
from tap_trading.market.point import CHANNEL, PricePoint

CLIENTS = 500
PRICES = 100


async def fan_out() -> None:
    """One price to many WebSockets, beside a bare loop that sends a frame to each."""
    print(f"fan-out: {PRICES} prices to {CLIENTS} WebSockets, 10 a second")
    raw_port, ws_port = free_port(), free_port()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        with process(sys.executable, "-m", "bench.raw_server", str(raw_port)) as raw:
            await wait_for(raw_port)
            baseline, _ = await listen(session, raw_port, raw.pid, asyncio.sleep(PRICES / 10))
        async with scratch_site() as (settings, redis):
            settings["TAP_WS_LISTEN"] = f"127.0.0.1:{ws_port}"
            with process(sys.executable, "-m", "tap_trading.services.ws", **settings) as ws:
                await wait_for(ws_port)
                cost, delays = await listen(session, ws_port, ws.pid, publish_prices(redis))
    print(f"  baseline: bare sends  {baseline:>6.1f} us CPU a message  x 1.00")
    print(
        f"  /ws                   {cost:>6.1f} us CPU a message  x {cost / baseline:.2f}   "
        f"publish to client p50 {delays[len(delays) // 2]:.1f} ms, "
        f"p99 {delays[int(len(delays) * 0.99)]:.1f} ms; {len(delays)} of {PRICES * CLIENTS} arrived"
    )


async def publish_prices(redis: Redis) -> None:
    """Ten prices a second, each stamped with the moment it is published."""
    for seq in range(PRICES):
        await redis.publish(CHANNEL, PricePoint(system_clock(), seq, PRICE + seq).encode())
        await asyncio.sleep(0.1)


async def listen(
    session: aiohttp.ClientSession, port: int, pid: int, publishing: Coroutine[None, None, None]
) -> tuple[float, list[float]]:
    """Server CPU per message received, in microseconds, and the sorted delays in ms."""
    delays: list[float] = []

    async def client(socket_: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket_:
            if '"price"' in message.data[:20]:
                delay = time.time() * 1000 - orjson.loads(message.data)["t"]
                delays.append(delay)

    sockets = [await session.ws_connect(f"http://127.0.0.1:{port}/ws") for _ in range(CLIENTS)]
    listening = [asyncio.create_task(client(socket_)) for socket_ in sockets]
    await asyncio.sleep(1)
    delays.clear()
    cpu = cpu_seconds(pid)
    await publishing
    await asyncio.sleep(0.3)
    used = cpu_seconds(pid) - cpu
    received = sorted(delays)
    await asyncio.gather(*(socket_.close() for socket_ in sockets))
    await asyncio.gather(*listening)
    return used / max(len(received), 1) * 1e6, received
