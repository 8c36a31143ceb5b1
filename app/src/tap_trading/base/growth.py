"""What fills a file system, sampled every hour, and when it will be full."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

from tap_trading.base.disk import Usage, usage_of

HOUR_S = 3600
DAY_S = 24 * HOUR_S
WEEK_S = 7 * DAY_S
_KEPT_S = 35 * DAY_S
#: st_blocks counts in these, in bytes, whatever the file system's own blocks are.
_BLOCK = 512

#: The part that is everything else on the file system.
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Sample:
    """What was in use at a moment."""

    at: int  # Unix s
    used: int  # bytes of the whole file system
    usable: int  # bytes, used or free
    parts: Mapping[str, int]  # bytes by the name of the part; together they are what is used

    @property
    def usage(self) -> Usage:
        """The file system as a whole."""
        return Usage(self.used, self.usable)


class Growth(NamedTuple):
    """How much more was in use after some time."""

    over_s: int  # seconds
    used: float  # bytes per day, of the whole file system
    parts: Mapping[str, float]  # bytes per day, by the name of the part


def measure(folder: Path, parts: Mapping[str, Sequence[Path]], now: int) -> Sample:
    """What the files and folders of each part take of the file system of `folder`, at `now`
    (Unix s). What is on another file system, or cannot be looked at, counts as nothing there.

    Raises OSError when the file system cannot be asked.
    """
    usage, device = usage_of(folder), folder.stat().st_dev
    sizes = {name: sum(_allocated(path, device) for path in paths) for name, paths in parts.items()}
    # Files come and go while they are counted.
    other = max(usage.used - sum(sizes.values()), 0)
    return Sample(now, usage.used, usage.usable, {**sizes, OTHER: other})


def _allocated(path: Path, device: int) -> int:
    """The bytes that a file or a whole folder takes of this device's disk."""
    try:
        stat = path.lstat()
        if stat.st_dev != device:
            return 0
        inside = list(path.iterdir()) if path.is_dir() and not path.is_symlink() else []
    except OSError:
        return 0
    return stat.st_blocks * _BLOCK + sum(_allocated(each, device) for each in inside)


def read(path: Path) -> list[Sample]:
    """The samples that `note` kept, the oldest first; none when there is no such file.

    A line that is none is left out. Raises OSError.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return sorted(_samples(lines), key=lambda sample: sample.at)


def _samples(lines: list[bytes]) -> Iterator[Sample]:
    for line in lines:
        try:
            found = orjson.loads(line)
            parts = {str(name): int(size) for name, size in found["parts"].items()}
            yield Sample(int(found["at"]), int(found["used"]), int(found["usable"]), parts)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue


def note(path: Path, sample: Sample) -> list[Sample]:
    """Keep a sample with those of the 35 days before it; all that are kept, the oldest first.

    The file is replaced in one step. Raises OSError; what was there stays then.
    """
    # One that is not before it was taken while the clock was wrong.
    before = [each for each in read(path) if sample.at - _KEPT_S <= each.at < sample.at]
    samples = [*before, sample]
    written = path.with_name(f".{path.name}.new")
    try:
        written.write_bytes(b"".join(orjson.dumps(asdict(each)) + b"\n" for each in samples))
        written.replace(path)
    except OSError:
        written.unlink(missing_ok=True)
        raise
    return samples


def growth(samples: Sequence[Sample], now: Sample, over_s: int) -> Growth | None:
    """How `now` differs from the oldest sample of the last `over_s` seconds, per day.

    None when there is none that is an hour old.
    """
    past = [each for each in samples if HOUR_S <= now.at - each.at <= over_s]
    if not past:
        return None
    first = min(past, key=lambda sample: sample.at)
    seconds = now.at - first.at
    days = seconds / DAY_S
    parts = {name: (size - first.parts.get(name, 0)) / days for name, size in now.parts.items()}
    return Growth(seconds, (now.used - first.used) / days, parts)


def days_left(usage: Usage, limit_percent: float, per_day: float) -> float:
    """Days until so many per cent are in use, if it grows by `per_day` bytes a day: 0 when they
    are already, infinity when it does not grow.
    """
    room = usage.usable * limit_percent / 100 - usage.used
    if room <= 0:
        return 0.0
    return room / per_day if per_day > 0 else math.inf
