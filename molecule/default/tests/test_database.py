"""SQLite: how the file is set up, its schema, and its backups."""

import secrets
import time
from typing import Any

import pytest
from testinfra.host import Host

from e2e.site.machine import Machine

pytestmark = pytest.mark.units("tap-trading-*")
DATABASE = "/data/bets.db"
PRICES = "/data/prices.db"


def read(host: Host, statement: str, database: str = DATABASE) -> str:
    """Ask the distribution's SQLite, which must never write to a live database."""
    return host.check_output("sqlite3 -readonly %s %s", database, statement)


@pytest.mark.parametrize("path", [DATABASE, PRICES])
def test_the_file_is_set_up_as_the_plan_says(host: Host, path: str) -> None:
    assert read(host, "PRAGMA journal_mode", path) == "wal"
    assert read(host, "PRAGMA auto_vacuum", path) == "2"  # incremental
    assert read(host, "PRAGMA quick_check", path) == "ok"


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", ".lock"])
def test_the_files_are_the_apps_and_nobody_else_writes(host: Host, suffix: str) -> None:
    books, prices = host.file(DATABASE + suffix), host.file(PRICES + suffix)
    assert (prices.user, prices.group, prices.mode) == (books.user, books.group, books.mode)
    assert (prices.user, prices.group) == ("app", "app")
    assert prices.mode & 0o022 == 0
    assert host.file("/data").mode == 0o750  # so nobody else reads either


def test_a_bar_is_written_every_100_ms(host: Host, site: Any) -> None:
    site.wait_until_open()
    began = int(read(host, "SELECT max(t) FROM bars", PRICES))
    time.sleep(3)
    ended = int(read(host, "SELECT max(t) FROM bars", PRICES))
    assert ended - began >= 2500
    count = int(read(host, f"SELECT count(*) FROM bars WHERE t > {began} AND t <= {ended}", PRICES))
    assert count >= 0.95 * (ended - began) / 100
    odd = "SELECT count(*) FROM bars WHERE sigma IS NULL AND t > " + str(began)
    assert read(host, odd, PRICES) == "0"
    assert int(read(host, "SELECT bars_until FROM progress", PRICES)) > ended


def test_the_schema_is_the_live_releases(host: Host) -> None:
    tables = set(read(host, "SELECT name FROM sqlite_master WHERE type = 'table'").split())
    assert {"users", "bets", "transaction_ledger", "idempotency_keys"} <= tables
    partial = read(host, "SELECT sql FROM sqlite_master WHERE name = 'idx_bets_pending'")
    assert "WHERE status = 'pending'" in partial
    assert host.file("/opt/app/schema/001_initial.sql").contains("CREATE TABLE users")
    prices = set(read(host, "SELECT name FROM sqlite_master WHERE type = 'table'", PRICES).split())
    assert {"bars", "progress", "offered_columns", "overrides"} <= prices
    assert host.file("/opt/app/schema/prices/001_prices.sql").contains("CREATE TABLE bars")
    assert host.check_output("tap migrate") == "the schema is up to date"


def test_a_backup_is_a_whole_database_with_the_latest_bet(
    host: Host, machine: Machine, place_bet: Any
) -> None:
    bet_id = place_bet().json["bet_id"]
    machine.run("/opt/app/scripts/backup-hourly.sh", timeout=120)
    newest = host.check_output("ls -t /data/backups/bets-*.db.zst | head -n 1")
    copy = f"/tmp/tap-test-{secrets.token_hex(4)}.db"
    try:
        machine.run(f"zstd --quiet --decompress {newest} -o {copy}")
        assert read(host, "PRAGMA integrity_check", copy) == "ok"
        assert read(host, f"SELECT count(*) FROM bets WHERE id = '{bet_id}'", copy) == "1"
    finally:
        machine.run(f"rm -f {copy}")
    assert host.file(newest).user == "app"
    assert host.file(newest).mode == 0o600


def test_backups_are_made_every_hour(host: Host) -> None:
    timer = host.check_output(
        "systemctl show tap-trading-backup.timer --property=ActiveState,TimersCalendar"
    )
    assert "ActiveState=active" in timer
    assert "OnCalendar=*-*-* *:00:00" in timer


def test_every_backup_run_notes_what_fills_the_disk(host: Host, machine: Machine) -> None:
    machine.run("/opt/app/scripts/backup-hourly.sh", timeout=120)
    told = host.file("/data/metrics/disk.prom").content_string
    assert 'tap_disk_part_bytes{part="books"} ' in told
    assert "tap_disk_part_bytes" in host.check_output("curl -s http://127.0.0.1:8080/metrics")
    note = host.file("/data/metrics/disk-usage.jsonl")
    assert note.user == "app"
    assert host.check_output("tap disk").splitlines()[0].split() == [
        *("part", "size", "growth", "per", "day")
    ]


def test_a_backup_that_cannot_be_made_says_so(machine: Machine) -> None:
    machine.run("mv /data/backups /data/backups.away")
    try:
        failed = machine.attempt("/opt/app/scripts/backup-hourly.sh")
        assert failed.returncode == 1
        assert failed.stderr.startswith("backup-hourly: /data/backups is missing")
    finally:
        machine.run("mv /data/backups.away /data/backups")


def test_the_ops_tool_answers_root(host: Host) -> None:
    health = host.check_output("tap health").splitlines()
    assert [line.split()[:2] for line in health] == [
        ["api", "ok"],
        ["ws", "ok"],
        ["price", "ok"],
        ["resolver", "ok"],
    ]
    assert "DB_PATH=/data/bets.db" in host.check_output("tap settings").splitlines()
    refused = host.run("setpriv --reuid=nobody --regid=nogroup --clear-groups tap health")
    assert refused.rc == 77
    assert refused.stderr.strip() == "tap: run it as root"
