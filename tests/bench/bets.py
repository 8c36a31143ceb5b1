"""A durable bet beside bare aiohttp and beside the naive way, on one core, in one run.

The servers share a core, the load has the other. Each side is measured alone, in rounds
that alternate, and the median round counts: this machine's speed drifts.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import orjson
import uvloop

import live_market
from bench.load import Result, closed_loop, cpu_seconds, open_loop, percentile
from bench.site import (
    audited,
    free_port,
    process,
    scratch_site,
    sign_in,
    wait_for,
    wait_for_market,
)
from live_market import keep_market
from tap_trading.base.clock import system_clock
from tap_trading.game import grid

ROUNDS = 3
BETS = 20_000
NAIVE_BETS = 3_000
CONNECTIONS = 64
USERS = 500
BALANCE = 10**9
#: Wide enough that a user finds a cell for every bet.
GEOMETRY = grid.Geometry(width_s=60, columns=100, rows=100)
CORE = "0"


def bet_requests(tokens: list[str]) -> Iterator[bytes]:
    """Bets of these wallets in turn, each time on another cell, all of them open; for an hour."""
    offered = iter(live_market.cells(GEOMETRY, system_clock() + 120_000))
    number = 0
    while True:
        # A column closes two widths before it begins; a bet may be on its way for a while.
        open_until = system_clock() // 1000 + 2 * GEOMETRY.width_s + 20
        cell_id = next(cell.cell_id for cell in offered if cell.start >= open_until)
        for token in tokens:
            body = orjson.dumps({"cell_id": cell_id, "amount": 100})
            yield (
                "POST /api/bets HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\n"
                "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\n"
                f"X-Request-ID: req_{number:032x}\r\nAuthorization: Bearer {token}\r\n"
                f"Idempotency-Key: {number:016x}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            ).encode() + body
            number += 1


def some(requests: Iterator[bytes], number: int) -> Iterator[bytes]:
    """The next `number` of them."""
    return (request for _, request in zip(range(number), requests, strict=False))


def api_settings(port: int) -> dict[str, str]:
    """An API without limits that a benchmark would reach."""
    return {
        "TAP_API_LISTEN": f"127.0.0.1:{port}",
        "TAP_GRID_WIDTH_S": str(GEOMETRY.width_s),
        "TAP_WALLET_RATE": "1000000",
        "TAP_MAX_OPEN_STAKE": str(BALANCE),
        "TAP_MAX_COLUMN_STAKE": str(10**12),
        "TAP_MAX_CELL_STAKE": str(10**12),
    }


@asynccontextmanager
async def api() -> AsyncIterator[tuple[int, int, list[str], Path]]:
    """An API on the servers' core with a live price: port, pid, tokens, database."""
    port = free_port()
    async with scratch_site() as (settings, redis):
        settings.update(api_settings(port))
        database = Path(settings["DB_PATH"])
        tokens = await sign_in(database, redis, USERS, BALANCE)
        command = (sys.executable, "-m", "tap_trading.services.api")
        with process(*command, core=0, **settings) as server:
            await wait_for(port)
            ticking = asyncio.create_task(keep_market(redis, GEOMETRY, offers_every_s=2.0))
            await wait_for_market(port)
            yield port, server.pid, tokens, database
            ticking.cancel()


def row(name: str, rounds: list[Result], baseline: list[Result] | None = None) -> float:
    """One row of the table; returns the ratio of throughput to the baseline's."""
    rate = median(result.rate for result in rounds)
    beside = median(result.rate for result in baseline or rounds)
    middle = sorted(rounds, key=lambda result: result.rate)[len(rounds) // 2]
    ordered = middle.latencies()
    print(
        f"  {name:<26}{rate:>7.0f}/s {percentile(ordered, 0.5):>7.1f} "
        f"{percentile(ordered, 0.95):>7.1f} {percentile(ordered, 0.99):>7.1f} ms "
        f"{middle.server_cpu_us:>6.0f} us  x {rate / beside:.2f}",
        flush=True,
    )
    return rate / beside


async def bets() -> None:
    """Closed loop beside the two baselines, then open loop."""
    uvloop.install()
    print(f"bets: closed loop over {CONNECTIONS} connections, servers on core {CORE}")
    print(f"  {'':<26}{'rate':>9} {'p50':>7} {'p95':>7} {'p99':>10} {'CPU':>9}  throughput")
    raw_port, naive_port = free_port(), free_port()
    raw_rounds, api_rounds, naive_rounds = [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        process(sys.executable, "-m", "bench.raw_server", str(raw_port), core=0) as raw,
        process(
            *(sys.executable, "-m", "bench.naive_server", str(naive_port), f"{folder}/naive.db"),
            core=0,
        ) as naive,
    ):
        await wait_for(raw_port)
        await wait_for(naive_port)
        async with api() as (port, pid, tokens, database):
            ours, theirs = bet_requests(tokens), bet_requests(tokens)
            for _ in range(ROUNDS):
                for rounds, at, server, requests in (
                    (raw_rounds, raw_port, raw.pid, some(theirs, BETS)),
                    (api_rounds, port, pid, some(ours, BETS)),
                    (naive_rounds, naive_port, naive.pid, some(theirs, NAIVE_BETS)),
                ):
                    result = await closed_loop(("127.0.0.1", at), requests, CONNECTIONS, server)
                    if set(result.statuses) != {202} or result.lost:
                        sys.exit(f"bench: not all accepted: {result.statuses} {result.codes}")
                    rounds.append(result)
            row("bare aiohttp, no database", raw_rounds)
            row("POST /api/bets", api_rounds, raw_rounds)
            row("  beside naive aiosqlite", naive_rounds, raw_rounds)
            ratio = median(r.rate for r in api_rounds) / median(r.rate for r in naive_rounds)
            print(f"  POST /api/bets is {ratio:.1f} times the naive way; {audited(database)}")
            await steady(port, pid, ours, database)


async def steady(port: int, pid: int, requests: Iterator[bytes], database: Path) -> None:
    """Open loop, latencies from the moment each bet fell due."""
    print(f"bets: open loop over {CONNECTIONS} connections, 10 s each")
    for rate in (100, 1000, 3000):
        result = await open_loop(
            ("127.0.0.1", port),
            requests,
            rate=lambda _, rate=rate: rate,
            seconds=10,
            sources=[""] * CONNECTIONS,
            cpu=lambda: cpu_seconds(pid),
        )
        row(f"{rate} bets/s", [result])
        if set(result.statuses) != {202} or result.lost or result.unsent:
            sys.exit(f"bench: not all accepted: {result.statuses} {result.codes}")
    print(f"  {audited(database)}")
