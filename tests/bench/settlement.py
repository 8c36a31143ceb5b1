"""A column with many open bets is settled, by a resolver process of its own."""

import asyncio
import random
import re
import sys
import tempfile
import time
from pathlib import Path

from aiohttp import ClientSession

from bench.load import cpu_seconds
from bench.site import audited, free_port, process, wait_for
from market_days import BEGIN, NEAR, PRICE, START, Tape, Traders
from tap_trading.base.db import open_reader, open_writer
from tap_trading.game.cell import Cell
from tap_trading.ledger import migrations

BETS = 100_000
USERS = 5_000
CELLS = BETS // USERS
WINNERS = 5  # cells that the price touches
CORE = 0
_BUCKET = re.compile(r'tap_resolver_transaction_seconds_bucket\{le="([^"]+)"\} ([0-9.e+]+)')


def open_column(folder: Path) -> None:
    """Books with BETS confirmed bets in one column, a quarter of which win, and its bars."""
    books, prices = folder / "bets.db", folder / "prices.db"
    migrations.migrate(books)
    tape, traders = Tape(prices, BEGIN), Traders(books, count=USERS, balance=10**9)
    low = PRICE - CELLS * 1000
    cells = [Cell(START, NEAR.width, low + 1000 * n, low + 1000 * n + 999) for n in range(CELLS)]
    bets = [(cell, BEGIN, user, 100, None) for cell in cells for user in range(USERS)]
    random.Random(1).shuffle(bets)  # as traders come
    for first in range(0, BETS, 200):
        traders.bet_many(bets[first : first + 200])
    traders.close()
    tape.stay((START + 1) * 1000)
    tape.play([PRICE - WINNERS * 1000])
    tape.stay((START + NEAR.width) * 1000)
    tape.close()
    connection = open_writer(books)
    connection.execute("UPDATE bets SET status = 'confirmed', reward_rate_bps = 20000")
    connection.close()


async def settlement() -> None:
    """The time it takes, its transactions and its CPU."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        open_column(folder)
        port = free_port()
        settings = {
            "DB_PATH": str(folder / "bets.db"),
            "PRICES_DB_PATH": str(folder / "prices.db"),
            "REDIS_ADDR": "127.0.0.1:1",
            "TAP_RESOLVER_LISTEN": f"127.0.0.1:{port}",
        }
        command = (sys.executable, "-m", "tap_trading.services.resolver")
        with process(*command, core=CORE, **settings) as resolver:
            await wait_for(port)
            began, spent = time.perf_counter(), cpu_seconds(resolver.pid)
            first = remaining(folder)
            while left := remaining(folder):
                if time.perf_counter() - began > 120:
                    sys.exit(f"bench: {left} of {first} bets are open after 120 s")
                await asyncio.sleep(0.1)
            seconds = time.perf_counter() - began
            spent = cpu_seconds(resolver.pid) - spent
            async with (
                ClientSession() as session,
                session.get(f"http://127.0.0.1:{port}/metrics") as answer,
            ):
                buckets = _BUCKET.findall(await answer.text())
        print(
            f"settlement: {first} bets of one column in {seconds:.1f} s,"
            f" {spent / first * 1e6:.0f} us of CPU a bet, {spent / seconds:.2f} core"
        )
        print("  transactions: " + ", ".join(f"{int(float(n))} within {le} s" for le, n in buckets))
        print(f"  {audited(folder / 'bets.db')}")


def remaining(folder: Path) -> int:
    """Bets that are not settled."""
    connection = open_reader(folder / "bets.db")
    found = connection.execute("SELECT sum(open_stake) / 100 FROM users").get
    connection.close()
    return int(found)


if __name__ == "__main__":
    asyncio.run(settlement())
