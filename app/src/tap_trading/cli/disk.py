"""`tap disk`: what fills the disk, how fast, and how many days are left until bets are refused."""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tap_trading.base import growth, textfile
from tap_trading.base.config import Settings
from tap_trading.base.disk import HYSTERESIS_POINTS
from tap_trading.base.growth import DAY_S, OTHER, WEEK_S, Growth, Sample
from tap_trading.base.textfile import Metric
from tap_trading.cli.command import Add, RefusedError

BACKUPS = Path("/data/backups")

#: In the folder of metrics: the samples, and what the API shows of them.
_SAMPLES = "disk-usage.jsonl"
_METRICS = "disk.prom"

#: From so many days on nobody asks for hours.
_WHOLE_DAYS = 10

_TITLES = {
    "books": "books",
    "prices": "prices",
    "archives": "archives",
    "backups": "backups",
    OTHER: "everything else",
}


def add_to(add: Add) -> None:
    """Add the command."""
    command = add(
        "disk",
        _disk,
        "Show what fills the disk, how much a day, and in how many days new bets are refused.",
    )
    command.add_argument(
        "--dest", type=Path, default=BACKUPS, metavar="DIR", help="folder of the backups"
    )


def take_sample(settings: Settings, backups: Path) -> None:
    """Keep what is in use now, and tell it as metrics. What cannot be kept is said on standard
    error; whoever calls has more important things to do.
    """
    try:
        sample = _measured(settings, backups)
        samples = growth.note(settings.metrics_dir / _SAMPLES, sample)
        textfile.write(settings.metrics_dir / _METRICS, _metrics(settings, samples, sample))
    except OSError as error:
        print(f"tap: the disk's use was not noted: {error}", file=sys.stderr)


def _measured(settings: Settings, backups: Path) -> Sample:
    """Raises OSError."""
    parts = {
        "books": _files_of(settings.db_path),
        "prices": _files_of(settings.prices_db_path),
        "archives": [settings.archive_dir],
        "backups": [backups],
    }
    return growth.measure(settings.db_path.parent, parts, int(time.time()))


def _files_of(database: Path) -> list[Path]:
    return [database, *(database.with_name(database.name + end) for end in ("-wal", "-shm"))]


def _metrics(settings: Settings, samples: Sequence[Sample], now: Sample) -> list[Metric]:
    left = {
        name: growth.days_left(now.usage, settings.disk_full_percent, found.used)
        for name, over_s in (("day", DAY_S), ("week", WEEK_S))
        if (found := growth.growth(samples, now, over_s))
    }
    return [
        Metric(
            "tap_disk_days_left",
            "Days until new bets are refused, if it goes on as in the last day or week.",
            left,
            "rate",
        ),
        Metric("tap_disk_part_bytes", "What each part takes, in bytes.", now.parts, "part"),
        Metric("tap_disk_usable_bytes", "Used or free, in bytes.", {"": now.usable}),
        Metric("tap_disk_sample_timestamp_seconds", "When this was seen, Unix time.", {"": now.at}),
    ]


def _disk(settings: Settings, args: argparse.Namespace) -> int:
    try:
        now = _measured(settings, args.dest)
        samples = growth.read(settings.metrics_dir / _SAMPLES)
    except OSError as error:
        raise RefusedError(str(error)) from error
    day = growth.growth(samples, now, DAY_S)
    week = growth.growth(samples, now, WEEK_S)
    for row in _table(now, day):
        print("{:<16} {:>11} {:>15}".format(*row))
    print(_verdict(now, settings.disk_full_percent, day, week))
    return 0


def _table(now: Sample, day: Growth | None) -> Iterator[tuple[str, str, str]]:
    yield "part", "size", "growth per day"
    for name, title in _TITLES.items():
        yield title, _size(now.parts[name]), _signed(day.parts[name]) if day else "-"
    yield "all", _size(now.used), _signed(day.used) if day else "-"


def _verdict(now: Sample, limit: int, day: Growth | None, week: Growth | None) -> str:
    used = f"{now.usage.percent:.1f} % of {_size(now.usable)} are in use"
    if now.usage.percent >= limit:
        return (
            f"{used}: it is full, and new bets are refused until it is below"
            f" {limit - HYSTERESIS_POINTS:g} %; docs/disk.md says what to do"
        )
    if day is None:
        return (
            f"{used}; how fast it grows is not known yet: that takes samples over an hour, and one"
            " is taken with each hourly backup"
        )
    found = [_when(now, limit, day, "today's rate")]
    if week and week.over_s > day.over_s:
        found.append(_when(now, limit, week, f"that of the last {week.over_s / DAY_S:.1f} days"))
    return f"{used}; from {limit} % on new bets are refused: {', '.join(found)}"


def _when(now: Sample, limit: int, rate: Growth, whose: str) -> str:
    days = growth.days_left(now.usage, limit, rate.used)
    if math.isinf(days):
        return f"never at {whose} (it does not grow)"
    return f"in {days:,.{0 if days >= _WHOLE_DAYS else 1}f} days at {whose}"


def _size(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:.0f} B"


def _signed(size: float) -> str:
    return ("+" if size > 0 else "") + _size(size)
