"""How full a file system is, and whether that is too full for new bets.

A full disk stops SQLite in the middle of whatever is under way. So new bets are refused while there
is room left for all that must go on: settlement, payouts, prices, backups, and ops who make room.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Gauge

from tap_trading.base import logger

_LOOK_EVERY_S = 1.0
#: It is full from the limit on until so many points below, lest bets go on and off.
HYSTERESIS_POINTS = 2.0

_USED_RATIO = Gauge(
    "tap_disk_used_ratio", "Use of the databases' file system, 0 to 1; NaN if it cannot be asked."
)
_BETS_REFUSED = Gauge(
    "tap_disk_bets_refused", "1 while new bets are refused because the disk is full, else 0."
)


@dataclass(frozen=True, slots=True)
class Usage:
    """A file system as df shows it: what is reserved for root is not there."""

    used: int  # bytes
    usable: int  # bytes, used or free

    @property
    def percent(self) -> float:
        """How much of it is in use; 0 of one that has no size."""
        return 100 * self.used / self.usable if self.usable else 0.0


def usage_of(path: Path) -> Usage:
    """The file system that `path` is on. Raises OSError."""
    stat = os.statvfs(path)
    used = stat.f_blocks - stat.f_bfree
    return Usage(used * stat.f_frsize, (used + stat.f_bavail) * stat.f_frsize)


class DiskGuard:
    """Looks at a folder's file system once a second, and says whether it is too full for bets."""

    def __init__(
        self, folder: Path, limit_percent: float, ask: Callable[[Path], Usage] = usage_of
    ) -> None:
        self._folder = folder
        self._limit = limit_percent
        self._ask = ask
        self._percent = 0.0
        self._trouble = ""  # why it cannot be asked
        #: New bets are to be refused.
        self.is_full = False

    async def watch(self) -> None:
        """Look at it for ever."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    def look(self) -> None:
        """See how full it is now. What cannot be asked is not full: a bet that cannot be written
        is refused anyway.
        """
        try:
            usage = self._ask(self._folder)
        except OSError as error:
            if not self._trouble:
                logger.get().error("disk cannot be asked", path=str(self._folder), error=str(error))
            self._trouble = error.strerror or str(error)
            self._percent = float("nan")
        else:
            self._trouble = ""
            self._percent = usage.percent
        self._decide()
        _USED_RATIO.set(self._percent / 100)
        _BETS_REFUSED.set(self.is_full)

    def _decide(self) -> None:
        before = self.is_full
        # Nothing is true of NaN.
        limit = self._limit - HYSTERESIS_POINTS if before else self._limit
        self.is_full = self._percent >= limit
        if self.is_full == before:
            return
        words = {"path": str(self._folder), "used_percent": round(self._percent, 1)}
        if self.is_full:
            logger.get().critical("disk full: new bets are refused", **words)
        else:
            logger.get().warning("disk no longer full: new bets are taken again", **words)

    async def check(self) -> str:
        """Health check: it tells and never fails. Whoever is signed in, waits for a payout or
        brings a release that mends it is served as ever.
        """
        if self._trouble:
            return f"cannot be asked: {self._trouble}"
        return f"{self._percent:.1f} % in use: new bets are refused" if self.is_full else "ok"
