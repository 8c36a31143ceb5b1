"""Four venues at ten times real speed: what following them costs, and how late a tick is.

The trades are those of the recorded Binance file; each venue says them in its own words on a
WebSocket of its own. The player is one process and the feeds, as in production on uvloop, are
another: only the latter's CPU counts. A trade carries the moment it is sent, so a tick's
two times are its delay.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import uvloop

from bench.load import cpu_seconds
from tap_trading.base import logger
from tap_trading.base.clock import system_clock
from tap_trading.market.feeds.connection import VenueSource, open_session
from tap_trading.market.feeds.source import PriceSource
from tap_trading.market.feeds.venues import VENUES

SPEED = 10
SECONDS = 30
TRADES = "replay/binance_BTCUSDT_trades_2024-08-08.csv"
#: What the issue allows: cores, and ms at the 99th percentile.
CORES = 0.5
LAG_MS = 100
_NAMES = ("coinbase", "kraken", "bitstamp", "gemini")


async def feeds() -> None:
    """Play, follow, tell; ends the program when it is not good enough."""
    folder = os.environ.get("TAP_MARKET_DATA")
    if not folder:
        print("feeds: NOT measured, TAP_MARKET_DATA is not set")
        return
    file = Path(folder, TRADES)
    specs = [f"{name}:{file},offset_cents={n * 700}" for n, name in enumerate(_NAMES)]
    print(f"feeds: {len(_NAMES)} venues for {SECONDS} s, {SPEED} times as fast as they were")
    player = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "venues", "--speed", str(SPEED), "--loop", *specs),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert player.stdout is not None
        urls = json.loads(await player.stdout.readline())
        follower = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.feeds", *urls), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await follower.communicate()
    finally:
        player.terminate()
        await player.wait()
    found = json.loads(said.splitlines()[-1])
    print(
        f"  {found['ticks']} ticks, {found['ticks'] / SECONDS:.0f} a second: "
        f"{found['cores']:.3f} of a core, {found['cpu_us']:.0f} us CPU a tick; "
        f"send to tick p50 {found['p50']} ms, p99 {found['p99']} ms, most {found['max']} ms"
    )
    if found["cores"] > CORES or found["p99"] > LAG_MS:
        sys.exit(f"bench: feeds cost more than {CORES} of a core or {LAG_MS} ms")


async def follow(urls: Sequence[str]) -> None:
    """Be the feed process: follow the venues and print what it cost."""
    logger.configure("bench", "warning")
    delays: list[int] = []

    async def read(source: PriceSource) -> None:
        async with aclosing(source.ticks()) as ticks:
            async for tick in ticks:
                delays.append(tick.receive_time - tick.exchange_time)  # noqa: PERF401 -- endless

    async with open_session() as session:
        reading = [
            asyncio.create_task(read(VenueSource(VENUES[name](url=url), session, system_clock)))
            for name, url in zip(_NAMES, urls, strict=True)
        ]
        await asyncio.sleep(2)
        delays.clear()
        cpu = cpu_seconds(os.getpid())
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(SECONDS)
        used = cpu_seconds(os.getpid()) - cpu
        lasted = asyncio.get_running_loop().time() - began
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)
    delays.sort()
    print(
        json.dumps(
            {
                "ticks": len(delays),
                "cores": used / lasted,
                "cpu_us": used / len(delays) * 1e6,
                "p50": delays[len(delays) // 2],
                "p99": delays[int(len(delays) * 0.99)],
                "max": delays[-1],
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(follow(sys.argv[1:]) if sys.argv[1:] else feeds())
