#!/usr/bin/python3
"""Write one journal line for every disk threshold that is crossed, up or down.

Run once a minute by tap-trading-disk-watch.timer. What was already reported is
kept in $STATE_DIRECTORY, so that a disk that stays full is reported once.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STATE_BYTES = 4096


class Threshold(NamedTuple):
    percent: int
    level: str
    priority: int  # syslog's, read by journald from the start of the line


def main() -> int:
    """Compare every watched file system with what was reported before."""
    arguments = parse_arguments()
    thresholds = [
        Threshold(arguments.warning, "warning", 4),
        Threshold(arguments.error, "error", 3),
        Threshold(arguments.critical, "critical", 2),
    ]
    state = Path(os.environ["STATE_DIRECTORY"]) / "reported"
    before = read_state(state)
    after = {}
    for path, place in once_per_file_system(arguments.paths):
        used, free = usage(place)
        after[path] = report(
            path, used, free, thresholds, before.get(path, 0), arguments.hysteresis
        )
    if after != before:
        write_state(state, after)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for level in ("warning", "error", "critical"):
        parser.add_argument(f"--{level}", type=int, required=True, metavar="PERCENT")
    parser.add_argument("--hysteresis", type=int, default=2, metavar="POINTS")
    parser.add_argument("paths", nargs="+", type=Path)
    return parser.parse_args()


def once_per_file_system(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    """Yield each path whose file system was not seen yet, and an existing place on it."""
    seen = set()
    for path in paths:
        place = path
        while not place.exists():
            place = place.parent
        device = place.stat().st_dev
        if device not in seen:
            seen.add(device)
            yield str(path), place


def usage(place: Path) -> tuple[float, int]:
    """Return the share in use as df shows it (without root's reserve) and the free bytes."""
    stat = os.statvfs(place)
    used = stat.f_blocks - stat.f_bfree
    usable = used + stat.f_bavail
    return (100 * used / usable if usable else 0.0), stat.f_bavail * stat.f_frsize


def report(
    path: str, used: float, free: int, thresholds: list[Threshold], crossed: int, hysteresis: int
) -> int:
    """Log every threshold between the reported state and now; return how many lie below."""
    while crossed < len(thresholds) and used >= thresholds[crossed].percent:
        percent, level, priority = thresholds[crossed]
        message = f"the file system of {path} is {used:.1f} % full, which is {percent} % or more"
        log(priority, level, message, path, used, free, percent)
        crossed += 1
    while crossed > 0 and used < thresholds[crossed - 1].percent - hysteresis:
        crossed -= 1
        percent = thresholds[crossed].percent
        message = f"the file system of {path} is {used:.1f} % full, below {percent} % again"
        log(5, "info", message, path, used, free, percent)
    return crossed


def log(
    priority: int, level: str, message: str, path: str, used: float, free: int, threshold: int
) -> None:
    line = {
        "level": level,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "component": "disk-watch",
        "message": message,
        "path": path,
        "used_percent": round(used, 1),
        "threshold_percent": threshold,
        "free_bytes": free,
    }
    print(f"<{priority}>{json.dumps(line)}", flush=True)


def read_state(state: Path) -> dict[str, int]:
    """Return how many thresholds were reported per path; nothing when that is not known."""
    try:
        content = json.loads(state.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {path: crossed for path, crossed in content.items() if crossed in range(4)}


def write_state(state: Path, crossed: dict[str, int]) -> None:
    """Overwrite the state in place: a full disk has no room for a new file."""
    with os.fdopen(os.open(state, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(json.dumps(crossed).encode().ljust(STATE_BYTES))
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    sys.exit(main())
