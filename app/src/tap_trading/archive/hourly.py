"""The hourly run: both databases copied, old copies dropped, the rest sent off the machine, and
all of it told as metrics. Whatever fails, the rest is done.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tap_trading.archive import offsite
from tap_trading.archive.backup import Backup, BackupError, copies_in, copy_into
from tap_trading.archive.contents import NAMES, Name
from tap_trading.archive.objects import ObjectStore, StoreError
from tap_trading.archive.offsite import Report
from tap_trading.archive.retention import Retention, kept
from tap_trading.archive.scratch import NoScratchError, alone_in
from tap_trading.archive.sealing import Key
from tap_trading.base import textfile
from tap_trading.base.textfile import Metric

#: Prices are large and soon of no use but as evidence, and each copy has seven days of them: the
#: weekly ones have no gap.
PRICES_KEPT = Retention(hourly=3, daily=2, weekly=5)


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    made: dict[Name, Backup] = field(default_factory=dict)
    dropped: dict[Name, int] = field(default_factory=dict)  # older copies that were removed here
    problems: list[str] = field(default_factory=list)  # a sentence each
    offsite: Report | None = None  # None: nothing leaves the machine, or not yet


@dataclass(frozen=True, slots=True)
class Plan:
    """What is copied where, and how long it is kept."""

    databases: Mapping[Name, Path]
    folder: Path
    bets_kept: Retention
    key: Key | None
    metrics: Path | None  # a *.prom file

    def retentions(self) -> dict[Name, Retention]:
        """How long the copies of each database are kept."""
        return {"bets": self.bets_kept, "prices": PRICES_KEPT}


def run(
    plan: Plan, connect: Callable[[], ObjectStore | None], clock: Callable[[], float] = time.time
) -> Outcome:
    """Copy, drop, send, tell. `connect` gives the storage, None when there is none.

    Raises BackupError when the folder cannot be used; what else goes wrong is in the outcome.
    """
    outcome = Outcome()
    try:
        with alone_in(plan.folder):
            for name in NAMES:
                _copy(plan, name, datetime.fromtimestamp(clock(), UTC), outcome)
            # The storage may take long, and this process may be ended before it answers.
            _tell(plan, outcome, clock(), ended=False)
            try:
                _send(plan, connect, outcome)
            except BaseException:
                outcome.problems.append("it was ended before all copies were off the machine")
                raise
            finally:
                _tell(plan, outcome, clock(), ended=True)
    except NoScratchError as error:
        raise BackupError(str(error)) from error
    except OSError as error:
        raise BackupError(f"{plan.folder}: {error.strerror or error}") from error
    return outcome


def _copy(plan: Plan, name: Name, now: datetime, outcome: Outcome) -> None:
    """A database that cannot be copied keeps the copies from before, all of them."""
    try:
        outcome.made[name] = copy_into(plan.folder, plan.databases[name], name, now, plan.key)
    except BackupError as error:
        outcome.problems.append(str(error))
        return
    copies = copies_in(plan.folder, name)
    stays = kept([copy.taken for copy in copies], plan.retentions()[name])
    old = [copy for copy in copies if copy.taken not in stays]
    for copy in old:
        (plan.folder / copy.name).unlink()
    outcome.dropped[name] = len(old)


def _send(plan: Plan, connect: Callable[[], ObjectStore | None], outcome: Outcome) -> None:
    try:
        store = connect()
    except StoreError as error:
        outcome.problems.append(str(error))
        return
    if store is not None:
        outcome.offsite = offsite.send(plan.folder, store, plan.retentions())
        offsite.send_before_migrations(plan.folder, store, outcome.offsite)
        outcome.problems += outcome.offsite.problems


def _tell(plan: Plan, outcome: Outcome, now: float, *, ended: bool) -> None:
    """Write the metrics; what this run did not reach, or not yet, stays as the last one left it."""
    if plan.metrics is None:
        return
    before = textfile.read(plan.metrics)

    def per_database(name: str, help_: str, found: Mapping[Name, float]) -> Metric:
        full = f"tap_backup_{name}"
        return Metric(full, help_, {**before.get(full, {}), **dict(found.items())}, "database")

    made, sent = outcome.made, outcome.offsite
    newest = sent.newest if sent else {}
    failed = before.get("tap_backup_failed", {"": 0.0})
    if ended or outcome.problems:
        failed = {"": float(bool(outcome.problems))}
    metrics = [
        Metric("tap_backup_failed", "1 if anything went wrong in the last run, else 0.", failed),
        Metric("tap_backup_timestamp_seconds", "When these were written, Unix time.", {"": now}),
        per_database(
            "last_success_timestamp_seconds",
            "When the newest proven copy was taken, Unix time.",
            {name: backup.contents.taken_at / 1000 for name, backup in made.items()},
        ),
        per_database(
            "size_bytes",
            "Size of the newest copy, sealed, in bytes.",
            {name: float(backup.size) for name, backup in made.items()},
        ),
        per_database(
            "duration_seconds",
            "How long the newest copy took with all its proofs, in seconds.",
            {name: backup.seconds for name, backup in made.items()},
        ),
        per_database(
            "copy_seconds",
            "How long the newest copy read the database, in seconds.",
            {name: backup.copied_s for name, backup in made.items()},
        ),
        per_database(
            "kept",
            "Copies on the machine.",
            {name: float(len(copies_in(plan.folder, name))) for name in NAMES},
        ),
        per_database(
            "offsite_last_success_timestamp_seconds",
            "When the newest copy was taken that is proven off the machine, Unix time.",
            {name: copy.taken.timestamp() for name, copy in newest.items()},
        ),
    ]
    pending = {"": float(len(sent.pending))} if sent else before.get("tap_backup_offsite_pending")
    if pending:
        metrics.append(
            Metric(
                "tap_backup_offsite_pending", "Copies that are not off the machine yet.", pending
            )
        )
    try:
        textfile.write(plan.metrics, metrics)
    except OSError as error:
        sentence = f"the metrics were not written: {plan.metrics}: {error.strerror}"
        if sentence not in outcome.problems:
            outcome.problems.append(sentence)
