"""The restore drill: the newest copy of each database is restored, from off the machine if there
is one, proven, and thrown away.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tap_trading.archive.backup import Copy
from tap_trading.archive.contents import NAMES, Contents, Name
from tap_trading.archive.restore import RestoreError, Source, newest, restore
from tap_trading.archive.scratch import NoScratchError, alone_in, scratch
from tap_trading.archive.sealing import Key
from tap_trading.base import textfile
from tap_trading.base.textfile import Metric

#: Copies are made every hour: one that is older was not the newest, or they are no longer made.
OLDEST_S = 26 * 3600.0

_SCRATCH = ".drill-"


@dataclass(frozen=True, slots=True)
class Restored:
    """A copy that was restored and proven."""

    copy: Copy
    contents: Contents
    seconds: float  # how long that took


@dataclass(slots=True)
class Outcome:
    """What came of a drill."""

    restored: dict[Name, Restored] = field(default_factory=dict)
    problems: dict[Name, str] = field(default_factory=dict)  # a sentence for each that failed


def run(
    source: Source,
    folder: Path,
    key: Key | None,
    metrics: Path | None,
    clock: Callable[[], float] = time.time,
) -> Outcome:
    """Restore each database's newest copy in `folder`, and leave nothing there.

    Raises RestoreError when the folder cannot be used; what else goes wrong is in the outcome.
    """
    outcome = Outcome()
    try:
        with alone_in(folder):
            for name in NAMES:
                with scratch(folder, _SCRATCH) as place:
                    _try(source, name, place, key, clock, outcome)
    except NoScratchError as error:
        raise RestoreError(str(error)) from error
    except OSError as error:
        raise RestoreError(f"{folder}: {error.strerror or error}") from error
    if metrics is not None:
        try:
            _tell(metrics, source, outcome, clock())
        except OSError as error:
            raise RestoreError(
                f"the metrics were not written: {metrics}: {error.strerror}"
            ) from error
    return outcome


def _try(
    source: Source,
    name: Name,
    place: Path,
    key: Key | None,
    clock: Callable[[], float],
    outcome: Outcome,
) -> None:
    began = time.perf_counter()
    try:
        copy = newest(source, name)
        contents = restore(source, copy, place / f"{name}.db", key)
    except RestoreError as error:
        outcome.problems[name] = str(error)
        return
    age_s = clock() - copy.taken.timestamp()
    if age_s > OLDEST_S:
        outcome.problems[name] = (
            f"the newest copy of {name} in {source} is {age_s / 3600:.0f} hours old: {copy.name}"
        )
        return
    outcome.restored[name] = Restored(copy, contents, time.perf_counter() - began)


def _tell(path: Path, source: Source, outcome: Outcome, now: float) -> None:
    before = textfile.read(path)

    def per_database(name: str, help_: str, found: Mapping[Name, float]) -> Metric:
        full = f"tap_restore_drill_{name}"
        return Metric(full, help_, {**before.get(full, {}), **dict(found.items())}, "database")

    done = outcome.restored
    textfile.write(
        path,
        [
            per_database(
                "ok",
                "1 if the last drill restored and proved the newest copy, else 0.",
                {name: float(name in done) for name in NAMES},
            ),
            Metric("tap_restore_drill_timestamp_seconds", "When the last drill ended.", {"": now}),
            Metric(
                "tap_restore_drill_offsite",
                "1 if the last drill restored from off the machine, 0 if from the machine.",
                {"": float(source.store is not None)},
            ),
            per_database(
                "last_success_timestamp_seconds",
                "When a drill last restored and proved a copy, Unix time.",
                dict.fromkeys(done, now),
            ),
            per_database(
                "copy_timestamp_seconds",
                "When the copy was taken that was restored last, Unix time.",
                {name: found.copy.taken.timestamp() for name, found in done.items()},
            ),
            per_database(
                "duration_seconds",
                "How long the last restoration took with all its proofs, in seconds.",
                {name: found.seconds for name, found in done.items()},
            ),
        ],
    )
