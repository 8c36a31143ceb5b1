"""`make bench`: what a bet and a price cost, beside the least that they could cost."""

import asyncio

from bench.bets import bets
from bench.fan_out import fan_out


async def main() -> None:
    """Every benchmark of this host; `bench.frame_latency` and `bench.vm_bets` measure a
    provisioned site.
    """
    await bets()
    await fan_out()


if __name__ == "__main__":
    asyncio.run(main())
