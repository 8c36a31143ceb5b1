"""The archiver: moves closed weeks out of the books and brings them to cold storage.

It runs by timer and ends. What it did is in its metrics, a file of `TAP_METRICS_DIR`; the moment
of the last run that left nothing to do is a dead man's switch.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tap_trading.archive import cold
from tap_trading.archive.archiver import archive
from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.objects import ObjectStore, StoreError
from tap_trading.archive.sealing import Key, SealError
from tap_trading.archive.shelf import Shelf
from tap_trading.base import config, logger, textfile, version
from tap_trading.base.config import Settings
from tap_trading.base.textfile import Metric

_METRICS = "archive.prom"
_LAST_SUCCESS = "tap_last_successful_archive_timestamp_seconds"
_EXIT_CONFIG = 78


def run(settings: Settings, now: int) -> bool:
    """Do all there is to do at `now` (Unix ms); whether nothing is left undone."""
    log, shelf = logger.get(), Shelf(settings.archive_dir)
    began = time.monotonic()
    trouble = ""
    try:
        for made in archive(settings.db_path, settings.prices_db_path, shelf, now):
            log.info(
                "week archived",
                week=made.week.name,
                bets=made.bets,
                entries=made.entries,
                size=made.size,
            )
        _store(settings, shelf, now)
    except ArchiveError as error:
        trouble = str(error)
    if trouble:
        log.error("not everything is archived", error=trouble)
    _tell(settings, failed=bool(trouble), took_s=time.monotonic() - began)
    return not trouble


def _store(settings: Settings, shelf: Shelf, now: int) -> None:
    try:
        store = ObjectStore.of(settings)
        key = Key.of(settings)
    except (StoreError, SealError) as error:
        raise ArchiveError(str(error)) from error
    if store is None:
        logger.get().info("no cold storage is configured: all archives stay here alone")
        return
    done = cold.store(settings.db_path, shelf, store, key, now)
    for week in done.stored:
        logger.get().info("archive is in cold storage", week=week.name, storage=str(store))
    for week in done.removed:
        logger.get().info("archive is in cold storage alone", week=week.name)


def _tell(settings: Settings, *, failed: bool, took_s: float) -> None:
    path = settings.metrics_dir / _METRICS
    last = textfile.read(path).get(_LAST_SUCCESS, {}).get("", 0.0)
    metrics = [
        Metric(
            _LAST_SUCCESS,
            "When the archiver last ended with nothing left undone, Unix time.",
            {"": last if failed else time.time()},
        ),
        Metric("tap_archive_failed", "1 if its last run failed, else 0.", {"": int(failed)}),
        Metric("tap_archive_seconds", "How long its last run took, in seconds.", {"": took_s}),
        *_counted(settings.db_path),
    ]
    try:
        textfile.write(path, metrics)
    except OSError as error:
        logger.get().error("metrics not written", path=str(path), error=str(error))


def _counted(books: Path) -> list[Metric]:
    try:
        found = cold.known(books)
    except ArchiveError:  # which the run has told
        return []
    return [
        Metric("tap_archives", "Archives there are.", {"": len(found)}),
        Metric(
            "tap_archives_local",
            "Archives on this machine.",
            {"": sum(each.is_local for each in found)},
        ),
        Metric(
            "tap_archives_not_stored",
            "Archives that are not in cold storage yet.",
            {"": sum(not each.is_stored for each in found)},
        ),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `archiver`. Exit code 0: nothing is left undone; 1: something is; 78: wrong
    settings.
    """
    parser = argparse.ArgumentParser(prog="archiver", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="store_true", help="show which build this is")
    if parser.parse_args(argv).version:
        for name, value in version.current().as_json().items():
            print(f"{name}: {value}")
        sys.exit(0)
    logger.configure("archiver", "info")
    try:
        settings = config.load(os.environ)
    except config.ConfigError as error:
        logger.get().critical("wrong configuration", error=str(error))
        sys.exit(_EXIT_CONFIG)
    logger.configure("archiver", settings.log_level)
    sys.exit(0 if run(settings, time.time_ns() // 10**6) else 1)


if __name__ == "__main__":
    main()
