"""The replay source: recorded trades from a CSV file, re-stamped to now, looping."""

import asyncio
import csv
from array import array
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tap_trading.base.clock import Clock
from tap_trading.market.feeds.cents import cents
from tap_trading.market.feeds.source import SourceStatus, Tick

#: Pause between the last trade of a round and the first of the next, recorded ms.
_LOOP_GAP_MS = 1000


class ReplayError(Exception):
    """The file cannot be replayed; the text names the file and the line."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Trades in the file's order."""

    name: str  # of the file
    times: Sequence[int]  # recorded Unix ms, never falling
    prices: Sequence[int]  # cents


def read(path: Path) -> Recording:
    """Read and check a whole file: a header with `ts_ms` and `price`, then one trade a line.

    A stamp earlier than the line before it is taken as the same moment (recorders
    reorder by some ms). Raises ReplayError.
    """
    times, prices = array("q"), array("q")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            missing = {"ts_ms", "price"} - set(rows.fieldnames or ())
            if missing:
                raise ReplayError(f"{path}: no column {' and '.join(sorted(missing))}")
            for row in rows:
                try:
                    moment, price = int(row["ts_ms"]), cents((row["price"] or "").strip())
                except (ValueError, TypeError) as error:
                    raise ReplayError(f"{path}, line {rows.line_num}: {error}") from None
                times.append(max(moment, times[-1]) if times else moment)
                prices.append(price)
    except OSError as error:
        raise ReplayError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ReplayError(f"{path}: not a CSV text file ({error})") from error
    if not times:
        raise ReplayError(f"{path}: no trade in it")
    return Recording(path.name, times, prices)


class ReplaySource:
    """A recording played at `speed` times its own pace, over and over."""

    def __init__(self, recording: Recording, speed: float, clock: Clock) -> None:
        self.name = f"replay {recording.name}"
        self._recording = recording
        self._speed = speed
        self._clock = clock
        self._began: int | None = None
        self._last: Tick | None = None

    @property
    def status(self) -> SourceStatus:
        """Connected and heard for as long as it plays: a quiet market is not an outage."""
        heard = None if self._began is None else self._clock()
        return SourceStatus(self._began, heard, self._last)

    async def ticks(self) -> AsyncGenerator[Tick]:
        """Trades with their moments moved to now."""
        times, prices = self._recording.times, self._recording.prices
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            for moment, price in zip(times, prices, strict=True):
                due = began + (moment - times[0]) / 1000 / self._speed
                await asyncio.sleep(max(due - loop.time(), 0))
                now = self._clock()
                self._began = now if self._began is None else self._began
                self._last = Tick(now, now, price)
                yield self._last
            await asyncio.sleep(_LOOP_GAP_MS / 1000 / self._speed)
