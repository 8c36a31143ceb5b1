"""The hourly backup of books of a gigabyte, beside an API under full load:

PYTHONPATH=app/src:tests python -m bench.backup [BETS]
"""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.beside import betting, tell
from bench.bets import api_settings
from bench.load import Result
from bench.site import audited, free_port, scratch_site, sign_in
from full_week import write_week
from tap_trading.archive.weeks import Week
from tap_trading.base import textfile
from tap_trading.base.clock import system_clock

#: What makes a gigabyte.
BETS = 1_300_000
#: Full load: what the API takes with its half core (docs/adr/0008), over so many connections.
_BETS_PER_S, _CONNECTIONS, _USERS = 3_000, 256, 2_500
_PIECE_S = 3.0
_LONGEST_S = 900.0


async def backup(bets: int = BETS) -> None:
    """Copies of books with so many bets, made as the hourly run makes them."""
    week = Week.of(system_clock() - 14 * 24 * 3600 * 1000)
    async with scratch_site() as (found, redis):
        books, port = Path(found["DB_PATH"]), free_port()
        settings = found | api_settings(port) | {"TAP_METRICS_DIR": str(books.parent)}
        await asyncio.to_thread(write_week, books, Path(settings["PRICES_DB_PATH"]), week, bets)
        tokens = await sign_in(books, redis, _USERS, 10**9)
        size = books.stat().st_size
        metrics = books.parent / "backup.prom"
        async with betting(
            settings, port, redis, tokens, rate=_BETS_PER_S, connections=_CONNECTIONS
        ) as bet:
            alone, beside = [await bet(_PIECE_S)], list[Result]()
            began = time.monotonic()
            words = ["backup-all", "--dest", str(books.parent / "copies"), "--metrics"]
            copying = subprocess.Popen(
                ["nice", sys.executable, "-m", "tap_trading.cli.main", *words, str(metrics)],
                env={**os.environ, **settings},
            )
            try:
                while copying.poll() is None and time.monotonic() - began < _LONGEST_S:
                    beside.append(await bet(_PIECE_S))
            finally:
                copying.kill()
            if copying.wait() != 0:
                sys.exit(f"bench: the backup ended with {copying.returncode}")
        said = textfile.read(metrics)
        print(
            f"backup: books of {size / 1e9:.2f} GB, copied in"
            f" {said['tap_backup_copy_seconds']['bets']:.1f} s, proven, sealed and all in"
            f" {said['tap_backup_duration_seconds']['bets']:.0f} s"
        )
        tell(alone, beside, _BETS_PER_S)
        print(f"  {audited(books)}")


if __name__ == "__main__":
    asyncio.run(backup(int(sys.argv[1]) if len(sys.argv) > 1 else BETS))
