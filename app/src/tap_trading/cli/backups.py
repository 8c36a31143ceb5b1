"""`tap backup` and what belongs to it: copies made, restored, and tried."""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tap_trading.archive import drill, hourly, offsite
from tap_trading.archive.backup import BackupError, Copy, back_up
from tap_trading.archive.objects import ObjectStore, StoreError
from tap_trading.archive.preparing import compare, prepare
from tap_trading.archive.restore import RestoreError, Source, newest, restore
from tap_trading.archive.retention import Retention
from tap_trading.archive.scratch import NoScratchError, alone_in
from tap_trading.archive.sealing import Key, SealError
from tap_trading.archive.shelf import Shelf
from tap_trading.base.config import Settings
from tap_trading.cli import disk
from tap_trading.cli.command import Add, RefusedError

#: What these commands raise when they did not do what they were asked.
ERRORS = (BackupError, RestoreError, SealError, StoreError)


def add_to(add: Add) -> None:
    """Add the commands."""
    command = add("backup", _backup, "Make a checked, compressed copy of the database.")
    _add_folder(command, "folder of the copies")
    command.add_argument("--database", choices=("bets", "prices"), default="bets", help="which one")
    command.add_argument("--keep", type=_count, default=24, help="how many copies to keep")

    command = add(
        "backup-all",
        _backup_all,
        "Copy both databases, drop old copies, and send those off the machine that are not there"
        " yet; exit code 1 and a sentence for each thing that went wrong. What fills the disk is"
        " noted for tap disk.",
    )
    _add_folder(command, "folder of the copies")
    command.add_argument("--keep", type=_count, default=24, help="hours that keep a copy")
    command.add_argument("--keep-daily", type=_count, default=7, help="days that keep a copy")
    command.add_argument("--keep-weekly", type=_count, default=5, help="weeks that keep a copy")
    _add_metrics(command)

    command = add(
        "backup-prune",
        _backup_prune,
        "Remove the copies here that are proven off the machine, but the newest of each database:"
        " for a disk that is nearly full.",
    )
    _add_folder(command, "folder of the copies")

    command = add(
        "drill",
        _drill,
        "Restore the newest copy of each database, from off the machine if copies go there, prove"
        " it and throw it away; exit code 1 and a sentence for each that failed.",
    )
    _add_folder(command, "folder of the copies on the machine")
    command.add_argument(
        "--scratch", type=Path, default=Path("/data/drill"), help="folder to restore in"
    )
    _add_metrics(command)

    command = add("restore", _restore, "Make a copy a database again, in a new file, and prove it.")
    _add_folder(command, "folder of the copies on the machine")
    command.add_argument("--database", choices=("bets", "prices"), default="bets", help="which one")
    command.add_argument("--copy", metavar="NAME", help="which copy; default: the newest")
    command.add_argument("--offsite", action="store_true", help="from off the machine")
    command.add_argument("--to", type=Path, required=True, metavar="FILE", help="the new file")

    command = add(
        "restore-prepare",
        _restore_prepare,
        "Make a copy of each database ready to take the site's place, with the archives that belong"
        " to it; prints what is ready, as JSON. playbooks/restore.yml does the rest.",
    )
    _add_folder(command, "folder of the copies on the machine")
    command.add_argument("--copy", metavar="NAME", help="which of the books; default: the newest")
    command.add_argument("--prices", metavar="NAME", help="and of the prices")
    command.add_argument("--offsite", action="store_true", help="from off the machine")
    _add_ready(command)

    command = add(
        "restore-compare",
        _restore_compare,
        "Tell what the site would lose by what is ready, as JSON.",
    )
    _add_ready(command)

    add("backup-key", _backup_key, "Print a new key to encrypt backups with; nothing is stored.")


def _add_folder(command: argparse.ArgumentParser, help_: str) -> None:
    command.add_argument("--dest", type=Path, default=disk.BACKUPS, metavar="DIR", help=help_)


def _add_ready(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--to", type=Path, default=Path("/data/restore"), metavar="DIR", help="where it is ready"
    )


def _add_metrics(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--metrics", type=Path, metavar="FILE", help="write the result here, as Prometheus text"
    )


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _backup(settings: Settings, args: argparse.Namespace) -> int:
    path = settings.db_path if args.database == "bets" else settings.prices_db_path
    made = back_up(path, args.database, args.dest, args.keep, datetime.now(UTC), Key.of(settings))
    print(f"{made.path} {made.size} bytes, checked; {len(made.removed)} older removed")
    return 0


def _backup_all(settings: Settings, args: argparse.Namespace) -> int:
    """What the disk holds is noted at the end, whatever became of the copies."""
    try:
        return _copy_all(settings, args)
    finally:
        disk.take_sample(settings, args.dest)


def _copy_all(settings: Settings, args: argparse.Namespace) -> int:
    plan = hourly.Plan(
        databases={"bets": settings.db_path, "prices": settings.prices_db_path},
        folder=args.dest,
        bets_kept=Retention(args.keep, args.keep_daily, args.keep_weekly),
        key=Key.of(settings),
        metrics=args.metrics,
    )
    outcome = hourly.run(plan, lambda: ObjectStore.of(settings))
    for name, made in outcome.made.items():
        print(
            f"{made.path} {made.size} bytes, checked, in {made.seconds:.1f} s;"
            f" {outcome.dropped[name]} older removed"
        )
    if outcome.offsite is not None:
        sent = outcome.offsite
        print(
            f"off the machine: {len(sent.sent)} sent and read back, {len(sent.pending)} missing,"
            f" {len(sent.removed)} older removed"
        )
        if sent.may_not_remove:
            print("older ones there may not be removed by us: the bucket's lifecycle rules have to")
    elif not settings.s3_bucket:
        print("nothing left the machine: there is no TAP_S3_BUCKET")
    if outcome.problems:
        raise RefusedError("\n".join(outcome.problems))
    return 0


def _backup_prune(settings: Settings, args: argparse.Namespace) -> int:
    store = ObjectStore.of(settings)
    if store is None:
        raise RefusedError(
            "no copies leave this machine (there is no TAP_S3_BUCKET), so none was removed"
        )
    try:
        with alone_in(args.dest):
            removed = offsite.prune(args.dest, store)
    except (OSError, NoScratchError) as error:
        raise RefusedError(str(error)) from error
    for copy in removed:
        print(f"{args.dest / copy.name} removed; it is in {store}")
    print(f"{len(removed)} copies removed")
    return 0


def _drill(settings: Settings, args: argparse.Namespace) -> int:
    source = Source(args.dest, ObjectStore.of(settings))
    outcome = drill.run(source, args.scratch, Key.of(settings), args.metrics)
    place = "off the machine" if source.store else "this machine alone (there is no TAP_S3_BUCKET)"
    for found in outcome.restored.values():
        rows = sum(found.contents.rows.values())
        print(
            f"{found.copy.name} from {place} restored and proven in {found.seconds:.1f} s:"
            f" {rows} rows, {found.contents.sentinel}"
        )
    if outcome.problems:
        raise RefusedError("\n".join(outcome.problems.values()))
    return 0


def _restore(settings: Settings, args: argparse.Namespace) -> int:
    source = _source(settings, args)
    copy = Copy.named(args.copy) if args.copy else newest(source, args.database)
    if copy is None or copy.database != args.database:
        raise RefusedError(f"{args.copy} is not the name of a copy of {args.database}")
    contents = restore(source, copy, args.to, Key.of(settings))
    print(
        f"{args.to} is {copy.name}, proven: {sum(contents.rows.values())} rows, {contents.sentinel}"
    )
    return 0


def _source(settings: Settings, args: argparse.Namespace) -> Source:
    """Where copies come from. Raises RefusedError when there is no such place."""
    store = ObjectStore.of(settings) if args.offsite else None
    if args.offsite and store is None:
        raise RefusedError("no copies leave this machine: there is no TAP_S3_BUCKET")
    return Source(args.dest, store)


def _restore_prepare(settings: Settings, args: argparse.Namespace) -> int:
    plan = prepare(
        _source(settings, args),
        {"bets": args.copy, "prices": args.prices},
        Key.of(settings),
        args.to,
        Shelf(settings.archive_dir),
    )
    print(json.dumps(asdict(plan)))
    return 0


def _restore_compare(settings: Settings, args: argparse.Namespace) -> int:
    print(json.dumps(asdict(compare(settings.db_path, settings.prices_db_path, args.to))))
    return 0


def _backup_key(_settings: Settings, _args: argparse.Namespace) -> int:
    print(Key.generate())
    return 0
