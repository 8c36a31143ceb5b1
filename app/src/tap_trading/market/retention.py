"""Bars are kept for a week, and for as long as a bet of the books may need them."""

import asyncio
from collections.abc import Awaitable, Callable

import apsw

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.db import DatabaseError
from tap_trading.base.lease import FencedError
from tap_trading.base.metrics import ERRORS

KEPT_MS = 7 * 24 * 3600 * 1000
#: Bars this much older than the oldest bet are kept as well: they are what volatility and
#: evidence are shown from.
_SLACK_MS = 3600 * 1000
_EVERY_S = 3600.0
#: So many bars in a transaction, and a pause after each: bars go on being written meanwhile.
_AT_ONCE = 250
_PAUSE_S = 0.05

#: Who may not drop bars now may do so some time later, in s.
_AGAIN_S = 5.0

#: Drops up to so many bars stamped before a moment (Unix ms); how many there were, None when
#: another process sees to it.
Drop = Callable[[int, int], Awaitable[int | None]]
#: When the oldest bet was placed that may still need its bars, Unix ms; None: there is none.
#: Raises DatabaseError when nobody can tell.
OldestNeeded = Callable[[], Awaitable[int | None]]


def droppable_before(now: int, oldest_needed: int | None) -> int:
    """Bars stamped before this moment (Unix ms) are of no more use."""
    before = now - KEPT_MS
    return before if oldest_needed is None else min(before, oldest_needed - _SLACK_MS)


async def keep_a_week(drop: Drop, oldest_needed: OldestNeeded, clock: Clock) -> None:
    """Drop what is of no more use every hour, for ever."""
    while True:
        try:
            before = droppable_before(clock(), await oldest_needed())
            dropped = 0
            while count := await drop(before, _AT_ONCE):
                dropped += count
                await asyncio.sleep(_PAUSE_S)
            if dropped:
                logger.get().info("old bars dropped", count=dropped, before=before)
            if count is None:
                await asyncio.sleep(_AGAIN_S)
                continue
        except (DatabaseError, FencedError, apsw.Error) as error:
            ERRORS.labels("price_retention").inc()
            logger.get().warning("old bars are kept for now", error=str(error))
        await asyncio.sleep(_EVERY_S)
