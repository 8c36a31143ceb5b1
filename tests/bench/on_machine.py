"""The part of `bench.vm_bets` that runs on the provisioned machine, with the release's Python.

Wallets are signed in directly, because signing thousands in through the site would take
longer than what is measured. Bets go through Nginx from as many loopback addresses as its
limit for one address needs, on cells that the site offers at that moment. Prints one line
of JSON. `load.py` lies beside this file.
"""

import asyncio
import http.client
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

import uvloop
from load import Rate, Result, cpu_seconds, open_loop, percentile

from tap_trading.auth.sessions import Sessions
from tap_trading.base.clock import system_clock
from tap_trading.base.config import Address
from tap_trading.base.db import WriterLock, open_writer
from tap_trading.base.redis import connect
from tap_trading.ledger import accounts

DATABASE = Path("/data/bets.db")
REDIS = Address(path="/run/redis/redis-server.sock")
UNIT = "tap-trading-api.service"
#: Where the unit's quota is accounted for, with one hierarchy of control groups or several.
CGROUPS = (
    Path(f"/sys/fs/cgroup/system.slice/{UNIT}/cpu.stat"),
    Path(f"/sys/fs/cgroup/cpu/system.slice/{UNIT}/cpu.stat"),
)
NGINX = ("127.0.0.1", 80)
STAKE = 100
BALANCE = 10**8
#: Columns that may close before a bet on them arrives are left alone.
SOONEST = 1
#: Rows near the edge of the grid may leave it before a bet on them arrives.
EDGE = 3


def throttled() -> tuple[int, int]:
    """In how many periods of the quota the unit ran, and in how many it was held up."""
    found = next(path for path in CGROUPS if path.exists())
    stat = {name: int(value) for name, value in map(str.split, found.read_text().splitlines())}
    return stat["nr_periods"], stat["nr_throttled"]


def main_pid() -> int:
    """The API's process."""
    asked = ("systemctl", "show", "--property", "MainPID", "--value", UNIT)
    return int(subprocess.run(asked, capture_output=True, check=True, text=True).stdout)


async def sign_in(number: int) -> list[str]:
    """So many wallets with money; returns a session's token of each."""
    lock, connection, now = WriterLock(DATABASE), open_writer(DATABASE), system_clock()
    with lock.held():
        connection.execute("BEGIN IMMEDIATE")
        users = [
            accounts.open_account(connection, f"bench-{now}-{n}", now, BALANCE)
            for n in range(number)
        ]
        connection.execute("COMMIT")
        connection.close()
    lock.close()
    redis = connect(REDIS)
    sessions = Sessions(redis, system_clock)
    tokens = [(await sessions.open(user.user_id, user.address))[0] for user in users]
    await redis.aclose()
    return tokens


def opened(tokens: list[str], sources: list[str]) -> None:
    """Each wallet opens the page, which asks who it is."""
    for token, source in zip(tokens, sources, strict=True):
        connection = http.client.HTTPConnection(*NGINX, source_address=(source, 0), timeout=5)
        connection.request("GET", "/api/me", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            sys.exit(f"on_machine.py: a wallet is not signed in: {answer.status}")


class Offer:
    """The cells the site offers now."""

    def __init__(self) -> None:
        self.cells: list[str] = []

    async def follow(self) -> None:
        """Ask twice a second, each time as another address."""
        for number in count():
            self.cells = await asyncio.to_thread(
                self._ask, f"127.250.{number // 250 % 250}.{number % 250 + 1}"
            )
            await asyncio.sleep(0.5)

    @staticmethod
    def _ask(source: str) -> list[str]:
        connection = http.client.HTTPConnection(*NGINX, source_address=(source, 0), timeout=5)
        connection.request("GET", "/api/market")
        market = json.loads(connection.getresponse().read())
        connection.close()
        starts = sorted({column["start"] for column in market["columns"]})[SOONEST:]
        by_start: dict[int, list[tuple[int, str]]] = {start: [] for start in starts}
        for cell in market["cells"]:
            _, start, _, low, _ = cell["cell_id"].split(":")
            if int(start) in by_start:
                by_start[int(start)].append((int(low), cell["cell_id"]))
        return [name for rows in by_start.values() for _, name in sorted(rows)[EDGE:-EDGE]]


def bets(offer: Offer, tokens: list[str]) -> Iterator[bytes]:
    """Bets of these wallets in turn, never two on a cell."""
    taken: list[set[str]] = [set() for _ in tokens]
    run = random.randrange(16**8)
    for number, (wallet, token) in zip(count(), cycle(enumerate(tokens))):
        free = [name for name in random.sample(offer.cells, 8) if name not in taken[wallet]]
        if not free:
            free = [name for name in offer.cells if name not in taken[wallet]]
        taken[wallet].add(free[0])
        body = f'{{"cell_id":"{free[0]}","amount":{STAKE}}}'
        yield (
            f"POST /api/bets HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
            f"Idempotency-Key: {run:08x}-{number:x}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()


def rate_of(shape: str, rate: int) -> Rate:
    """Requests a second over time: `steady`, or a `spike` up to the rate and down again."""
    if shape == "steady":
        return lambda _: float(rate)
    # 5 s of ordinary load, 3 s up, 5 s at the top, then ordinary load again.
    low = 500.0
    return lambda t: low + (rate - low) * min(max((t - 5) / 3, 0.0), 1.0) if t < 13 else low


def summary(result: Result, quota: tuple[int, int]) -> dict[str, object]:
    """What is printed; `quota` is the difference of what `throttled` says."""
    ordered = result.latencies()
    seconds = range(int(result.seconds) + 1)
    return {
        "statuses": result.statuses,
        "codes": result.codes,
        "lost": result.lost,
        "unsent": result.unsent,
        "without_retry_after": result.without_retry_after,
        "answers_per_second": round(result.rate),
        "p50_ms": round(percentile(ordered, 0.5), 1),
        "p95_ms": round(percentile(ordered, 0.95), 1),
        "p99_ms": round(percentile(ordered, 0.99), 1),
        "max_ms": round(percentile(ordered, 1.0), 1),
        "p99_ms_by_second": [round(percentile(result.latencies(s, s + 1), 0.99)) for s in seconds],
        "api_cpu_us_per_answer": round(result.server_cpu_us),
        "api_core": round(result.server_cpu_us * result.rate / 1e6, 3),
        "quota_periods_throttled": f"{quota[1]} of {quota[0]}",
        "load_core": round(result.own_cpu, 2),
    }


async def main() -> None:
    """on_machine.py SHAPE RATE SECONDS WALLETS"""
    shape, rate, seconds, wallets = sys.argv[1], *map(int, sys.argv[2:])
    tokens = await sign_in(wallets)
    offer = Offer()
    following = asyncio.create_task(offer.follow())
    while not offer.cells:
        await asyncio.sleep(0.1)
    sources = [f"127.{i // 62500 + 1}.{i // 250 % 250}.{i % 250 + 1}" for i in range(wallets)]
    await asyncio.to_thread(opened, tokens, sources)
    pid, before = main_pid(), throttled()
    result = await open_loop(
        NGINX,
        bets(offer, tokens),
        rate=rate_of(shape, rate),
        seconds=seconds,
        sources=sources,
        cpu=lambda: cpu_seconds(pid),
    )
    following.cancel()
    after = throttled()
    print(json.dumps(summary(result, (after[0] - before[0], after[1] - before[1]))))


if __name__ == "__main__":
    uvloop.run(main())
