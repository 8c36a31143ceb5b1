"""Hours of a market with bets and outages, settled by the resolver and verified from its bars.

python -m bench.replay 168    # a week: some 700,000 bets, 2.2 GB, a quarter of an hour
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import struct_rusage

import numpy as np

from bench.site import audited
from market_days import BEGIN, PRICE, RATES
from settled_market import settled_market
from tap_trading.base import logger
from tap_trading.base.db import open_reader
from tap_trading.base.logger import rfc3339_ms
from tap_trading.ledger import migrations

HOURS = 3
#: Rates that are computed in one call, for comparison.
RATES_AT_ONCE = 2000


async def replay(hours: float = HOURS) -> None:
    """What verifying a bet costs, beside its rate alone; ends the program when one is wrong."""
    logger.configure("bench", "warning")
    with tempfile.TemporaryDirectory() as folder:
        books, prices = Path(folder, "bets.db"), Path(folder, "prices.db")
        migrations.migrate(books)
        began = time.perf_counter()
        end = await settled_market(books, prices, int(hours * 3600))
        took = time.perf_counter() - began
        (bars,), fates = _rows(prices, "SELECT count(*) FROM bars"), _fates(books)
        print(f"replay: {bars[0]} bars of {hours:g} h, settled in {took:.0f} s: {fates}")
        print(f"  {audited(books)}")
        nothing, _ = verified(books, prices, end, end)
        usage, said = verified(books, prices, BEGIN, end)
    print("  " + "\n  ".join(said))
    count = int(said[0].split()[0])
    cost = (_cpu_s(usage) - _cpu_s(nothing)) / count * 1e6
    print(
        f"  {cost:.0f} us of CPU a bet, {cost / rate_us():.1f} times what its rate costs alone in a"
        f" call for {RATES_AT_ONCE}; at most {usage.ru_maxrss / 1024:.0f} MB"
    )


def verified(books: Path, prices: Path, begin: int, end: int) -> tuple[struct_rusage, list[str]]:
    """`tap verify` of the bets placed in [begin, end), in Unix ms: its cost, and its words."""
    command = (sys.executable, "-m", "tap_trading.cli.main", "verify")
    times = ("--from", rfc3339_ms(begin), "--to", rfc3339_ms(end))
    environment = os.environ | {"DB_PATH": str(books), "PRICES_DB_PATH": str(prices)}
    with subprocess.Popen(
        [*command, *times], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        said = process.stdout.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"bench: not all bets are as their bars say: {said[:3]}")
    return usage, said


def rate_us() -> float:
    """CPU of a rate among many of a call, in us."""
    low = PRICE + 100 * np.arange(-RATES_AT_ONCE // 2, RATES_AT_ONCE // 2)
    began = time.process_time()
    for _ in range(20):
        RATES.rate_bps(RATES.probability(PRICE, 7e-5, 0.2, 10.0, 5, low, low + 1000))
    return (time.process_time() - began) / 20 / RATES_AT_ONCE * 1e6


def _fates(books: Path) -> str:
    found = _rows(books, "SELECT coalesce(void_reason, status), count(*) FROM bets GROUP BY 1")
    return ", ".join(f"{count} {fate}" for fate, count in found)


def _rows(path: Path, question: str) -> list[tuple[object, ...]]:
    connection = open_reader(path)
    try:
        return list(connection.execute(question))
    finally:
        connection.close()


def _cpu_s(usage: struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    asyncio.run(replay(*map(float, sys.argv[1:])))
