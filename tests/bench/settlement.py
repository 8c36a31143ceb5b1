"""A column with many open bets is settled, by a resolver process of its own."""

import asyncio
import random
import re
import sys
import time
from pathlib import Path

from aiohttp import ClientSession

from bench.beside import BETS_PER_S, CORE, USERS_WHO_BET, betting
from bench.bets import api_settings
from bench.load import cpu_seconds, percentile
from bench.site import (
    audited,
    free_port,
    process,
    scratch_site,
    sign_in,
    wait_for,
)
from market_days import BEGIN, NEAR, PRICE, START, Tape, Traders
from tap_trading.base.db import open_reader, open_writer
from tap_trading.game.cell import Cell

BETS = 100_000
USERS = 5_000
CELLS = BETS // USERS
WINNERS = 5  # cells that the price touches
_BUCKET = r'{metric}_seconds_bucket\{{le="([^"]+)"\}} ([0-9.e+]+)'
#: What is told of transactions, and the histogram that has it.
_TRANSACTIONS = {
    "from BEGIN to the end of COMMIT": "tap_batch",
    "with the wait for their turn": "tap_resolver_transaction",
}


def open_column(folder: Path) -> None:
    """Books with BETS confirmed bets in one column, a quarter of which win, and its bars."""
    books, prices = folder / "bets.db", folder / "prices.db"
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
    """The time it takes, its transactions and its CPU; and what new bets notice of it."""
    async with scratch_site() as (settings, redis):
        books = Path(settings["DB_PATH"])
        open_column(books.parent)
        tokens = await sign_in(books, redis, USERS_WHO_BET, 10**9)
        port, resolver_port = free_port(), free_port()
        settings.update(api_settings(port), TAP_RESOLVER_LISTEN=f"127.0.0.1:{resolver_port}")
        async with betting(settings, port, redis, tokens) as bet:
            before = await bet(5)
            command = (sys.executable, "-m", "tap_trading.services.resolver")
            with process(*command, core=CORE, **settings) as resolver:
                await wait_for(resolver_port)
                began, spent = time.perf_counter(), cpu_seconds(resolver.pid)
                meanwhile = asyncio.create_task(bet(6))
                first = remaining(books)
                while left := remaining(books):
                    if time.perf_counter() - began > 120:
                        sys.exit(f"bench: {left} of {first} bets are open after 120 s")
                    await asyncio.sleep(0.2)
                seconds = time.perf_counter() - began
                spent = cpu_seconds(resolver.pid) - spent
                async with (
                    ClientSession() as session,
                    session.get(f"http://127.0.0.1:{resolver_port}/metrics") as answer,
                ):
                    metrics = await answer.text()
        print(
            f"settlement: {first} bets of one column in {seconds:.1f} s,"
            f" {spent / first * 1e6:.0f} us of CPU a bet, {spent / seconds:.2f} core"
        )
        for what, metric in _TRANSACTIONS.items():
            buckets = re.findall(_BUCKET.format(metric=metric), metrics)
            counted = ", ".join(f"{int(float(n))} within {le} s" for le, n in buckets)
            print(f"  transactions {what}: {counted}")
        for when, result in (("before", before), ("meanwhile", await meanwhile)):
            ordered = result.latencies()
            p50, p99 = percentile(ordered, 0.5), percentile(ordered, 0.99)
            print(f"  {BETS_PER_S} new bets/s {when}: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        print(f"  {audited(books)}")


def remaining(books: Path) -> int:
    """Bets of the column that are not settled."""
    connection = open_reader(books)
    found = connection.execute("SELECT count(*) FROM bets WHERE status = 'confirmed'").get
    connection.close()
    return int(found)


if __name__ == "__main__":
    asyncio.run(settlement())
