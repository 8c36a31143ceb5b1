"""An API whose traders go on betting, beside whatever else is measured."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from bench.bets import CONNECTIONS, GEOMETRY, bet_requests
from bench.load import Result, cpu_seconds, open_loop, percentile
from bench.site import process, wait_for, wait_for_market
from live_market import keep_market
from tap_trading.base.redis import Redis

#: So many users bet, together at this rate if no other is asked for; the API has this core.
USERS_WHO_BET, BETS_PER_S = 500, 500
CORE = 0

#: Bets for so many seconds; ends the benchmark when one is not accepted.
Bet = Callable[[float], Awaitable[Result]]


@asynccontextmanager
async def betting(
    settings: dict[str, str],
    port: int,
    redis: Redis,
    tokens: list[str],
    *,
    rate: int = BETS_PER_S,
    connections: int = CONNECTIONS,
) -> AsyncIterator[Bet]:
    """An API of these settings in an open market, and what bets there as these users."""
    command = (sys.executable, "-m", "tap_trading.services.api")
    with process(*command, core=CORE, **settings) as api:
        await wait_for(port)
        market = asyncio.create_task(keep_market(redis, GEOMETRY, offers_every_s=2.0))
        await wait_for_market(port)
        requests = bet_requests(tokens)

        async def bet(seconds: float) -> Result:
            result = await open_loop(
                ("127.0.0.1", port),
                requests,
                rate=lambda _: rate,
                seconds=seconds,
                sources=[""] * connections,
                cpu=lambda: cpu_seconds(api.pid),
            )
            if set(result.statuses) != {202} or result.lost or result.unsent:
                sys.exit(f"bench: not all accepted: {result.statuses} {result.codes}")
            return result

        yield bet
        market.cancel()


def tell(before: list[Result], meanwhile: list[Result], rate: int = BETS_PER_S) -> None:
    """Print how long the bets took before something else was done, and beside it."""
    for when, results in (("before", before), ("meanwhile", meanwhile)):
        ordered = sorted(latency for result in results for latency in result.latencies())
        p50, p99 = percentile(ordered, 0.5), percentile(ordered, 0.99)
        print(
            f"  {rate} new bets/s {when}: {len(ordered)}, p50 {p50:.1f} ms,"
            f" p99 {p99:.1f} ms, at most {ordered[-1]:.1f} ms"
        )
