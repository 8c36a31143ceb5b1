"""`make bench`: what a bet, a price, a feed and a result cost, beside the least they could cost.

`python -m bench bets` measures bets, and an archive of a small week beside them: the report that
goes with every run of the tests.
"""

import asyncio
import sys

from bench.archive import archive
from bench.backup import backup
from bench.bets import bets
from bench.fan_out import fan_out
from bench.feeds import feeds
from bench.replay import replay
from bench.settlement import settlement

_SMALL_WEEK = 200_000


async def main() -> None:
    """Every benchmark of this host; `bench.frame_latency`, `bench.vm_bets`, `bench.under_load`
    and `bench.deploys` measure a provisioned site.
    """
    await bets()
    if sys.argv[1:] == ["bets"]:
        await archive(_SMALL_WEEK)
        return
    await fan_out()
    await feeds()
    await settlement()
    await replay()
    await backup()
    await archive()


if __name__ == "__main__":
    asyncio.run(main())
