"""`make bench`: what a bet and a price cost, beside the least that they could cost."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path

import aiohttp
import orjson

from bench.load import Result, closed_loop, cpu_seconds
from tap_trading.base.clock import system_clock
from tap_trading.base.config import Address
from tap_trading.base.redis import Redis, connect
from tap_trading.game import grid
from tap_trading.ledger import migrations
from tap_trading.market.point import CHANNEL, PricePoint

BETS = 6000
CONNECTIONS = 64
CLIENTS = 500
PRICES = 100
PRICE = 6_180_050
#: Wide enough that one user finds a cell for every bet.
GEOMETRY = grid.Geometry(width_s=60, columns=100, rows=100)


def free_port() -> int:
    """A TCP port that nobody uses at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def process(*command: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server of this benchmark's own, ended with the block."""
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH")} | settings
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            yield server
        finally:
            server.terminate()


async def wait_for(port: int) -> None:
    """Wait until something listens."""
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def bet_requests(count: int) -> list[bytes]:
    """Requests for bets on cells that are all different and all offered."""
    offered = list(islice(grid.cells(GEOMETRY, system_clock() + 60_000, PRICE), count))
    requests = []
    for number, cell in enumerate(offered):
        body = orjson.dumps({"cell_id": cell.cell_id, "amount": 100})
        head = (
            "POST /api/bets HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Idempotency-Key: bench-{number}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests


def show(name: str, result: Result, baseline: Result) -> None:
    """One row of the table."""
    print(
        f"  {name:<22}{result.rate:>8.0f}/s {result.percentile(0.5):>8.1f} "
        f"{result.percentile(0.95):>8.1f} {result.percentile(0.99):>8.1f} ms "
        f"{result.server_cpu_us:>7.0f} us  x {result.server_cpu_us / baseline.server_cpu_us:.2f}"
    )


async def keep_price(redis: Redis) -> None:
    """A live price that stays where it is."""
    seq = 0
    while True:
        seq += 1
        now = system_clock()
        await redis.publish(CHANNEL, PricePoint(now - now % 100, seq, PRICE).encode())
        await asyncio.sleep(0.5)


@asynccontextmanager
async def scratch_site() -> AsyncIterator[tuple[dict[str, str], Redis]]:
    """A Redis and a database of the benchmark's own."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("bench: redis-server is missing; install it: apt-get install redis-server")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/redis.sock"
        migrations.migrate(Path(folder, "bets.db"))
        with process(program, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder):
            while not Path(path).exists():
                await asyncio.sleep(0.02)
            redis = connect(Address(path=path))
            yield (
                {"REDIS_ADDR": path, "DB_PATH": f"{folder}/bets.db", "LOG_LEVEL": "warning"},
                redis,
            )
            await redis.aclose()


async def bets() -> None:
    """A durable bet beside a bare aiohttp answer."""
    print(f"bets: {BETS} over {CONNECTIONS} connections, closed loop, each on disk when answered")
    print(f"  {'':<22}{'rate':>10} {'p50':>8} {'p95':>8} {'p99':>11} {'CPU/req':>10}  ratio of CPU")
    raw_port, api_port = free_port(), free_port()
    with process(sys.executable, "-m", "bench.raw_server", str(raw_port)) as raw:
        await wait_for(raw_port)
        baseline = await closed_loop(raw_port, raw.pid, bet_requests(BETS), CONNECTIONS)
    show("baseline: bare aiohttp", baseline, baseline)
    async with scratch_site() as (settings, redis):
        settings |= {
            "TAP_API_LISTEN": f"127.0.0.1:{api_port}",
            "TAP_GRID_WIDTH_S": str(GEOMETRY.width_s),
            "TAP_GRID_COLUMNS": str(GEOMETRY.columns),
            "TAP_GRID_ROWS": str(GEOMETRY.rows),
        }
        with process(sys.executable, "-m", "tap_trading.services.api", **settings) as api:
            await wait_for(api_port)
            ticking = asyncio.create_task(keep_price(redis))
            await asyncio.sleep(1)
            result = await closed_loop(api_port, api.pid, bet_requests(BETS), CONNECTIONS)
            ticking.cancel()
    show("POST /api/bets", result, baseline)
    if set(result.statuses) != {202}:
        sys.exit(f"bench: not every bet was accepted: {result.statuses}")


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


async def main() -> None:
    """Every benchmark of this host; `bench.frame_latency` measures a provisioned site."""
    await bets()
    await fan_out()


if __name__ == "__main__":
    asyncio.run(main())
