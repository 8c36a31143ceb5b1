"""A week is archived while others bet: how long it takes, and what they notice of it.

python -m bench.archive [BETS]      5 million without a number
"""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from archived_site import rows, totals
from bench.beside import USERS_WHO_BET, betting, tell
from bench.bets import api_settings
from bench.load import Result
from bench.site import (
    audited,
    free_port,
    scratch_site,
    sign_in,
)
from full_week import write_week
from tap_trading.archive.shelf import Shelf
from tap_trading.archive.weeks import Week
from tap_trading.base.clock import system_clock

BETS = 5_000_000
_PIECE_S = 5.0
_LONGEST_S = 3600.0


async def archive(bets: int = BETS) -> None:
    """Books with a closed week of so many bets, and an archiver beside an API that takes more."""
    # Two weeks ago: neither it nor the one after ends while this lasts.
    week = Week.of(system_clock() - 14 * 24 * 3600 * 1000)
    async with scratch_site() as (found, redis):
        books, port = Path(found["DB_PATH"]), free_port()
        folder = books.parent
        settings = (
            found
            | api_settings(port)
            | {"TAP_ARCHIVE_DIR": f"{folder}/archive", "TAP_METRICS_DIR": str(folder)}
        )
        empty = books.stat().st_size
        await asyncio.to_thread(write_week, books, Path(settings["PRICES_DB_PATH"]), week, bets)
        tokens = await sign_in(books, redis, USERS_WHO_BET, 10**9)
        before, size = totals(books), books.stat().st_size
        async with betting(settings, port, redis, tokens) as bet:
            alone = [await bet(_PIECE_S)]
            began, beside = time.monotonic(), list[Result]()
            # As its unit: it is nice, and where it writes it leaves more time
            # to others by itself.
            archiver = subprocess.Popen(
                ["nice", sys.executable, "-m", "tap_trading.services.archiver"],
                env={**os.environ, **settings},
            )
            try:
                while archiver.poll() is None:
                    beside.append(await bet(_PIECE_S))
                    if time.monotonic() - began > _LONGEST_S:
                        sys.exit("bench: the archiver takes for ever")
                took = time.monotonic() - began
            finally:
                archiver.kill()
            if archiver.returncode != 0:
                sys.exit(f"bench: the archiver ended with {archiver.returncode}")
        path = Shelf(folder / "archive").path(week)
        _compare(before, totals(books, path))
        archived = rows(path, "SELECT count(*) FROM bets")[0][0]
        print(
            f"archive: {archived} bets of {size / 1e9:.2f} GB in {took:.0f} s; the books have"
            f" {books.stat().st_size / 1e6:.1f} MB then, {empty / 1e6:.1f} when they are empty"
        )
        tell(alone, beside)
        print(f"  {audited(books)}; the archive: {audited(path)}")


def _compare(before: dict[str, int], after: dict[str, int]) -> None:
    """Whoever did not bet meanwhile has what they had."""
    others = {user for user, total in before.items() if after.get(user) != total}
    if len(others) > USERS_WHO_BET + 1:  # the house too
        sys.exit(f"bench: {len(others)} users have not what they had")


if __name__ == "__main__":
    asyncio.run(archive(int(sys.argv[1]) if len(sys.argv) > 1 else BETS))
