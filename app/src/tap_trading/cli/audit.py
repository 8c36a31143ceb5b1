"""`tap audit`: the ledger proven, or what is wrong with it, also as metrics."""

import argparse
import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TextIO

from tap_trading.base import textfile
from tap_trading.base.config import Settings
from tap_trading.base.db import DatabaseError, open_reader
from tap_trading.base.textfile import Metric
from tap_trading.cli.command import Add, RefusedError
from tap_trading.ledger.audit import Report, audit

#: Read by journald from the start of a line: this one is an error.
_JOURNAL_ERROR = "<3>"


def add_to(add: Add) -> None:
    """Add the command."""
    command = add(
        "audit",
        _audit,
        "Prove that the ledger sums to 0 and that every balance is what its entries add up to;"
        " exit code 1 and a sentence for each finding if not.",
    )
    command.add_argument(
        "--database", type=Path, metavar="FILE", help="another database, such as an unpacked backup"
    )
    command.add_argument(
        "--metrics", type=Path, metavar="FILE", help="write the result here, as Prometheus text"
    )


def _audit(settings: Settings, args: argparse.Namespace) -> int:
    path: Path = args.database or settings.db_path
    if args.database is not None and not path.is_file():
        raise DatabaseError(f"there is no file {path}")
    with closing(open_reader(path)) as connection:
        report = audit(connection)
    _print(path, report)
    if args.metrics is not None:
        _write_metrics(args.metrics, report)
    return 0 if report.clean else 1


def _print(path: Path, report: Report) -> None:
    size = f"{report.users} users, {report.entries} entries, {report.bets} bets"
    if report.clean:
        print(f"{path} is clean: {size}, in {report.seconds:.1f} s")
        return
    mark = _JOURNAL_ERROR if _is_journal(sys.stdout) else ""
    for sentence in report.findings:
        print(f"{mark}{sentence}")
    if (more := report.found - len(report.findings)) > 0:
        print(f"{mark}and {more} more")
    print(
        f"{mark}{path} is NOT clean (findings: {report.found}): {size}, in {report.seconds:.1f} s"
    )


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd has connected the stream to its journal."""
    try:
        stat = os.fstat(stream.fileno())
    except OSError:  # not a file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def _write_metrics(path: Path, report: Report) -> None:
    found = (
        ("clean", "1 if the last audit found nothing, else 0.", int(report.clean)),
        ("timestamp_seconds", "When the last audit ended, Unix time.", time.time()),
        ("findings", "What the last audit found wrong.", report.found),
        ("users", "Users at the last audit.", report.users),
        ("entries", "Entries of the ledger at the last audit.", report.entries),
        ("seconds", "How long the last audit took, in seconds.", report.seconds),
    )
    try:
        textfile.write(
            path, [Metric(f"tap_audit_{name}", help_, {"": value}) for name, help_, value in found]
        )
    except OSError as error:
        raise RefusedError(f"the metrics were not written: {path}: {error.strerror}") from error
