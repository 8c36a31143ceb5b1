"""The part of `bench.vm_bets` that runs on the provisioned machine, with the release's Python.

Prints one line of JSON.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import uvloop

from bench.bettors import NGINX, Bets, Offer, loopback, opened, signed_in
from bench.load import Rate, Result, cpu_seconds, open_loop, percentile

UNIT = "tap-trading-api.service"
#: Where the unit's quota is accounted for, with one hierarchy of control groups or several.
CGROUPS = (
    Path(f"/sys/fs/cgroup/system.slice/{UNIT}/cpu.stat"),
    Path(f"/sys/fs/cgroup/cpu/system.slice/{UNIT}/cpu.stat"),
)


def throttled() -> tuple[int, int]:
    """In how many periods of the quota the unit ran, and in how many it was held up."""
    found = next(path for path in CGROUPS if path.exists())
    stat = {name: int(value) for name, value in map(str.split, found.read_text().splitlines())}
    return stat["nr_periods"], stat["nr_throttled"]


def main_pid() -> int:
    """The API's process."""
    asked = ("systemctl", "show", "--property", "MainPID", "--value", UNIT)
    return int(subprocess.run(asked, capture_output=True, check=True, text=True).stdout)


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
    tokens, sources = await signed_in(wallets), loopback(wallets)
    offer = Offer()
    following = asyncio.create_task(offer.follow())
    await offer.known()
    await asyncio.to_thread(opened, tokens, sources)
    pid, before = main_pid(), throttled()
    result = await open_loop(
        NGINX,
        Bets(offer, tokens).requests(),
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
