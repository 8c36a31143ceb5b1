"""What status.yml shows of backups, drills, archives and the disk."""

import importlib.util
import os
import time
from pathlib import Path
from types import ModuleType

import pytest

from tap_trading.base import textfile
from tap_trading.base.textfile import Metric

SCRIPT = Path(__file__).resolve().parents[3] / "playbooks/files/status.py"


@pytest.fixture
def status(tmp_path: Path) -> ModuleType:
    """The script, on a machine with a copy of each database that is 10 minutes old."""
    found = importlib.util.spec_from_file_location("status", SCRIPT)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    module.BACKUPS = module.METRICS = tmp_path
    module.SETTINGS_OF_BACKUPS = tmp_path / "backup.env"
    for name in ("bets-20260302T100000Z.db.zst", "prices-20260302T100000Z.db.zst.sealed"):
        path = tmp_path / name
        path.write_bytes(bytes(2_500_000))
        os.utime(path, (time.time() - 600,) * 2)
    return module


def away(folder: Path, age_s: float, pending: int) -> None:
    (folder / "backup.env").write_text("TAP_S3_BUCKET='tap-copies'\n")
    taken = time.time() - age_s
    newest = {"bets": taken, "prices": taken + 60}
    name = "tap_backup_offsite_last_success_timestamp_seconds"
    metrics = [
        Metric("tap_backup_offsite_pending", "-", {"": pending}),
        Metric(name, "-", newest, "database"),
    ]
    textfile.write(folder / "backup.prom", metrics)


def drilled(folder: Path, age_s: float, bets: int, offsite: int) -> None:
    metrics = [
        Metric("tap_restore_drill_ok", "-", {"bets": bets, "prices": 1}, "database"),
        Metric("tap_restore_drill_timestamp_seconds", "-", {"": time.time() - age_s}),
        Metric("tap_restore_drill_offsite", "-", {"": offsite}),
    ]
    textfile.write(folder / "drill.prom", metrics)


def test_backups_without_a_storage(status: ModuleType, tmp_path: Path) -> None:
    worries: list[str] = []
    assert status.last_backup(worries, True) == {
        "bets": "bets-20260302T100000Z.db.zst, 10 minutes old, 2.5 MB, 1 kept",
        "prices": "prices-20260302T100000Z.db.zst.sealed, 10 minutes old, 2.5 MB, 1 kept",
        "off the machine": "no copy leaves the machine: backup_s3_bucket is not set",
    }
    assert worries == []
    old = tmp_path / "bets-20260302T100000Z.db.zst"
    os.utime(old, (time.time() - 3 * 3600,) * 2)
    status.last_backup(worries, True)
    assert [worry.partition(":")[0] for worry in worries] == [
        "the last backup of bets is over 2 hours old"
    ]
    old.unlink()
    assert status.last_backup([], True)["bets"] == "none yet"


def test_backups_off_the_machine(status: ModuleType, tmp_path: Path) -> None:
    worries: list[str] = []
    away(tmp_path, age_s=600, pending=0)
    assert status.off_the_machine(worries) == "the newest is 10 minutes old, 0 missing"
    assert worries == []
    away(tmp_path, age_s=5 * 86400, pending=3)
    assert status.off_the_machine(worries) == "the newest is 5 days old, 3 missing"
    assert worries == [
        (
            "3 backups are not off the machine, the newest there is 5 days old:"
            " journalctl -t tap-trading-backup -n 50"
        )
    ]
    (tmp_path / "backup.prom").unlink()
    assert status.off_the_machine(worries) == "none yet"
    assert len(worries) == 2


def archived(folder: Path, ago: float, failed: int) -> None:
    found = {
        "tap_last_successful_archive_timestamp_seconds": time.time() - ago,
        "tap_archive_failed": failed,
        "tap_archives": 6,
        "tap_archives_local": 4,
        "tap_archives_not_stored": 1,
    }
    metrics = [Metric(name, "-", {"": value}) for name, value in found.items()]
    textfile.write(folder / "archive.prom", metrics)


def test_the_archives(status: ModuleType, tmp_path: Path) -> None:
    worries: list[str] = []
    assert status.last_archive(worries, True) == "none yet"
    archived(tmp_path, 3600, failed=0)
    said = status.last_archive(worries, True)
    assert said == "6 weeks, 4 of them here, 1 not in cold storage"
    assert worries == []
    archived(tmp_path, 3 * 86400, failed=0)
    status.last_archive(worries, True)
    archived(tmp_path, 3600, failed=1)
    status.last_archive(worries, True)
    assert [worry.partition(":")[0] for worry in worries] == [
        "the archiver was last done 3 days ago",
        "the archiver was last done 60 minutes ago",
    ]


def test_the_days_until_the_disk_is_full(status: ModuleType, tmp_path: Path) -> None:
    worries: list[str] = []
    assert status.days_left(worries) == "not known yet"
    for day, week, said, worry in (
        (float("inf"), 400.0, "never at today's growth, 400 at the last week's", 0),
        (14.0, 30.2, "14 at today's growth, 30 at the last week's", 0),
        (13.9, 30.2, "14 at today's growth, 30 at the last week's", 1),
        (0.0, 0.0, "0 at today's growth, 0 at the last week's", 1),
    ):
        left = Metric("tap_disk_days_left", "-", {"day": day, "week": week}, "rate")
        textfile.write(tmp_path / "disk.prom", [left])
        worries.clear()
        assert status.days_left(worries) == said
        assert len(worries) == worry


def test_the_last_drill(status: ModuleType, tmp_path: Path) -> None:
    worries: list[str] = []
    assert status.last_drill(worries, True) == "none yet"
    drilled(tmp_path, 3600, bets=1, offsite=1)
    said = status.last_drill(worries, True)
    assert said == "restored and proven, from off the machine, 60 minutes ago"
    assert worries == []
    drilled(tmp_path, 9 * 86400, bets=0, offsite=0)
    said = status.last_drill(worries, True)
    assert said == "failed for bets, from the machine alone, 9 days ago"
    assert [worry.partition(":")[0] for worry in worries] == [
        "the last restore drill failed for bets",
        "the last restore drill is over 8 days old",
    ]
