"""Copies of both databases: made, sent off the machine, restored and tried, also on bad days."""

import json
import os
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import apsw
import pytest
from tests.integration.conftest import Tap

from copied_site import CopiedSite
from market_days import BEGIN, FAR, NEAR, Tape, Traders
from object_storage import HANG, IMPATIENT, RESET, Storage
from tap_trading.archive import drill, hourly, scratch
from tap_trading.archive.contents import Contents, UnprovenError, compare, contents_of
from tap_trading.archive.hourly import PRICES_KEPT, Plan
from tap_trading.archive.objects import ObjectStore
from tap_trading.archive.restore import Source
from tap_trading.archive.retention import Retention
from tap_trading.archive.scratch import alone_in
from tap_trading.archive.sealing import Key
from tap_trading.base.config import Settings
from tap_trading.base.db import open_reader, open_writer
from tap_trading.ledger.audit import audit

KEY = Key.generate()
BETS_KEPT = Retention(24, 7, 5)


@pytest.fixture
def site(
    database: Path,
    prices: Path,
    tape: Tape,
    traders: Traders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> CopiedSite:
    """Bets and bars, a key, and no storage."""
    tape.play([8_421_500 + number % 7 for number in range(300)])
    for number, cell in enumerate((NEAR, FAR, NEAR)):
        traders.bet(cell, BEGIN + 100 * number, user=number)
    (tmp_path / "key").write_text(KEY)
    environment = {
        "DB_PATH": str(database),
        "PRICES_DB_PATH": str(prices),
        "TAP_METRICS_DIR": str(tmp_path),
        "TAP_BACKUP_KEY_FILE": str(tmp_path / "key"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return CopiedSite(tmp_path, environment)


@pytest.fixture
def away(site: CopiedSite, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The site's storage off the machine, which it does not wait for as long as it would."""
    for name, value in storage.settings(site.folder).items():
        monkeypatch.setenv(name, value)
    real = ObjectStore.of

    def impatient(settings: Settings) -> ObjectStore | None:
        return real(settings, IMPATIENT)

    monkeypatch.setattr(ObjectStore, "of", impatient)
    return storage


def plan(site: CopiedSite, **changes: object) -> Plan:
    made = Plan(
        databases={
            "bets": Path(site.environment["DB_PATH"]),
            "prices": Path(site.environment["PRICES_DB_PATH"]),
        },
        folder=site.copies,
        bets_kept=BETS_KEPT,
        key=Key.read(site.folder / "key"),
        metrics=site.metrics,
    )
    return replace(made, **changes)  # type: ignore[arg-type] # fields of Plan


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 1


# -- the hourly run ------------------------------------------------------------------------------


def test_both_databases_are_copied_encrypted_and_measured(site: CopiedSite, run_tap: Tap) -> None:
    code, out, err = run_tap(*site.backup_words())
    assert (code, err) == (0, "")
    bets, prices = site.names()
    assert bets.startswith("bets-")
    assert prices.startswith("prices-")
    assert out.splitlines()[0].startswith(f"{site.copies / bets} ")
    assert out.splitlines()[2] == "nothing left the machine: there is no TAP_S3_BUCKET"
    for name in (bets, prices):
        path = site.copies / name
        assert name.endswith(".db.zst.sealed")
        assert b"SQLite format" not in path.read_bytes()
        database = name.split("-")[0]
        assert site.value("tap_backup_size_bytes", database) == path.stat().st_size
        assert time.time() - site.value("tap_backup_last_success_timestamp_seconds", database) < 60
        assert site.value("tap_backup_copy_seconds", database) > 0
        assert site.value("tap_backup_copy_seconds", database) < site.value(
            "tap_backup_duration_seconds", database
        )
        assert site.value("tap_backup_kept", database) == 1
    assert site.value("tap_backup_failed") == 0


def test_without_a_key_copies_are_zstd_as_ever(
    site: CopiedSite, run_tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAP_BACKUP_KEY_FILE")
    assert run_tap(*site.backup_words())[0] == 0
    assert all(name.endswith(".db.zst") for name in site.names())
    assert run_tap(*site.drill_words())[0] == 0


def test_copies_are_kept_by_hour_day_and_week(site: CopiedSite) -> None:
    small = plan(site, bets_kept=Retention(hourly=2, daily=2, weekly=2))
    begin = moment("2026-03-01T22:30:00")  # a Sunday
    for number in range(5):
        hourly.run(small, lambda: None, lambda n=number: begin + 3600 * n)
    assert site.names() == [
        "bets-20260301T233000Z.db.zst.sealed",  # the newest of its day and week
        "bets-20260302T013000Z.db.zst.sealed",
        "bets-20260302T023000Z.db.zst.sealed",
        *(
            f"prices-{stamp}Z.db.zst.sealed"
            for stamp in (
                "20260301T233000",
                "20260302T003000",
                "20260302T013000",
                "20260302T023000",
            )
        ),
    ]
    assert PRICES_KEPT.hourly == 3


@pytest.mark.damaged_books
def test_damaged_books_do_not_keep_the_prices_from_being_copied_and_drop_nothing(
    site: CopiedSite, database: Path, run_tap: Tap
) -> None:
    once = plan(site, bets_kept=Retention(1, 1, 1))
    hourly.run(once, lambda: None, lambda: moment("2026-03-01T10:00:00"))
    with closing(open_writer(database)) as connection:
        connection.execute("UPDATE users SET balance = balance + 1 WHERE id <> 'house'")
    outcome = hourly.run(once, lambda: None, lambda: moment("2026-03-01T11:00:00"))
    assert list(outcome.made) == ["prices"]
    [problem] = outcome.problems
    assert "failed its audit (findings: " in problem
    assert [name for name in site.names() if name.startswith("bets")] == [
        "bets-20260301T100000Z.db.zst.sealed"
    ]
    assert site.value("tap_backup_failed") == 1
    assert site.value("tap_backup_last_success_timestamp_seconds", "bets") == moment(
        "2026-03-01T10:00:00"
    )
    assert site.value("tap_backup_last_success_timestamp_seconds", "prices") == moment(
        "2026-03-01T11:00:00"
    )
    code, _, err = run_tap(*site.backup_words())
    assert code == 1
    assert err.startswith("tap: the copy of ")


def test_two_at_once_do_not_disturb_each_other(site: CopiedSite, run_tap: Tap) -> None:
    with alone_in(site.copies):
        code, _, err = run_tap(*site.backup_words())
        assert (code, err) == (
            *(1, f"tap: another process is making or trying copies in {site.copies}\n"),
        )
        assert run_tap("backup", "--dest", str(site.copies))[0] == 1
    assert run_tap(*site.backup_words())[0] == 0


def test_a_disk_without_room_for_a_copy_is_left_alone(
    site: CopiedSite, run_tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "SPARE_BYTES", 1 << 60)
    code, _, err = run_tap(*site.backup_words())
    assert code == 1
    assert err.count("MB free, but ") == 2
    assert site.names() == []


def test_a_copy_that_lacks_what_had_been_written_before_is_none(
    site: CopiedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter([100, 99, 5, 5])
    monkeypatch.setattr("tap_trading.archive.backup.last_written", lambda *_: next(numbers))
    outcome = hourly.run(plan(site), lambda: None)
    assert len(outcome.problems) == 1
    assert "lacks what had been written before it was begun" in outcome.problems[0]
    assert list(outcome.made) == ["prices"]


def test_metrics_that_cannot_be_written_fail_the_run_and_not_the_copies(
    site: CopiedSite, run_tap: Tap
) -> None:
    site.metrics.mkdir()
    code, out, err = run_tap(*site.backup_words())
    assert code == 1
    assert len(out.splitlines()) == 3
    assert err == f"tap: the metrics were not written: {site.metrics}: Is a directory\n"


# -- off the machine -----------------------------------------------------------------------------


def test_every_copy_goes_off_the_machine_once(
    site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    begin = moment("2026-03-02T10:00:00")
    for number in range(2):  # while there was no storage
        hourly.run(plan(site), lambda: None, lambda n=number: begin + 3600 * n)
    code, out, _ = run_tap(*site.backup_words())
    assert code == 0
    assert (
        out.splitlines()[2] == "off the machine: 6 sent and read back, 0 missing, 0 older removed"
    )
    there = {key.split("/")[-1]: away.content(key) for key in away.stored()}
    assert there == {name: (site.copies / name).read_bytes() for name in site.names()}
    assert {key.rsplit("/", 1)[0] for key in away.stored()} == {
        *("machine/backups/bets", "machine/backups/prices"),
    }
    assert site.value("tap_backup_offsite_pending") == 0
    assert (
        time.time() - site.value("tap_backup_offsite_last_success_timestamp_seconds", "prices") < 60
    )
    away.proxy.requests.clear()
    time.sleep(1.1)  # names have seconds
    _, out, _ = run_tap(*site.backup_words())
    assert "off the machine: 2 sent" in out
    assert away.proxy.requests.count("PUT") == 2
    assert away.proxy.requests.count("GET") == 1 + 2  # the list, and what was sent


def test_only_copies_that_are_proven_elsewhere_are_pruned(
    site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    prune = ["backup-prune", "--dest", str(site.copies)]
    begin = moment("2026-03-02T10:00:00")
    for number in range(4):
        hourly.run(plan(site), away.store, lambda n=number: begin + 3600 * n)
    names = site.names()
    away.client.delete_object(Bucket="tap-copies", Key=f"machine/backups/bets/{names[0]}")
    away.alter(f"machine/backups/bets/{names[1]}", lambda content: content.pop())
    proven = site.copies / ".offsite.json"
    kept = json.loads(proven.read_text())
    proven.write_text(json.dumps({k: v for k, v in kept.items() if names[2] not in k}))
    there = away.stored()
    code, out, err = run_tap(*prune)
    assert (code, err) == (0, "")
    # One is not there, one is cut short there, one was not read back, and one is the newest.
    assert site.names() == [*names[:4], names[6]]
    assert out.splitlines() == [
        *(
            f"{site.copies / name} removed; it is in s3://tap-copies/machine/"
            for name in names[4:6]
        ),
        "2 copies removed",
    ]
    assert away.stored() == there
    # What is here no more is kept there as long as ever.
    hourly.run(plan(site), away.store, lambda: begin + 4 * 3600)
    assert {f"machine/backups/bets/{name}" for name in names[:4]} <= set(away.stored())


def test_a_prune_that_cannot_be_sure_removes_nothing(
    site: CopiedSite, away: Storage, run_tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune = ["backup-prune", "--dest", str(site.copies)]
    for number in range(3):
        hourly.run(plan(site), away.store, lambda n=number: 1.8e9 + 3600 * n)
    names = site.names()
    with alone_in(site.copies):
        assert run_tap(*prune)[0] == 1
    away.proxy.fault = lambda _method, _number: RESET
    assert run_tap(*prune)[0] == 1
    away.proxy.heal()
    monkeypatch.delenv("TAP_S3_BUCKET")
    code, _, err = run_tap(*prune)
    assert (code, "so none was removed" in err) == (1, True)
    assert site.names() == names


def test_copies_from_before_migrations_go_off_the_machine_too(
    site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    inside = site.copies / "before-migrations"
    for _ in range(2):
        assert run_tap("backup", "--dest", str(inside), "--keep", "5")[0] == 0
    names = sorted(path.name for path in inside.iterdir())
    assert all(name.endswith(".sealed") for name in names)
    code, out, _ = run_tap(*site.backup_words())
    assert code == 0
    assert "off the machine: 4 sent and read back, 0 missing" in out
    stored = [key for key in away.stored() if "before-migrations" in key]
    assert stored == [f"machine/backups/before-migrations/bets/{name}" for name in names]
    # They are no hourly copies, and stay while those of the machine go.
    (inside / names[0]).unlink()
    assert run_tap(*site.backup_words("--keep", "1", "--keep-daily", "1"))[0] == 0
    assert [key for key in away.stored() if "before-migrations" in key] == stored
    assert site.value("tap_backup_offsite_pending") == 0


def test_copies_from_before_migrations_that_cannot_be_sent_are_missing(
    site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    inside = site.copies / "before-migrations"
    run_tap("backup", "--dest", str(inside), "--keep", "5")
    away.proxy.fault = lambda *_: (503, "SlowDown")
    assert run_tap(*site.backup_words())[0] == 1
    assert site.value("tap_backup_offsite_pending") == 3
    away.proxy.heal()
    with alone_in(inside):  # a deployment is making one
        assert run_tap(*site.backup_words())[0] == 0
    assert not [key for key in away.stored() if "before-migrations" in key]
    assert run_tap(*site.backup_words())[0] == 0
    assert len([key for key in away.stored() if "before-migrations" in key]) == 1


def test_what_was_put_but_not_read_back_is_read_back_and_not_put_again(
    site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    assert run_tap(*site.backup_words())[0] == 0
    (site.copies / ".offsite.json").unlink()
    away.proxy.requests.clear()
    report = hourly.offsite.send(site.copies, away.store(), plan(site).retentions())
    assert (len(report.sent), report.pending, report.problems) == (2, [], [])
    assert away.proxy.requests == ["GET"] * 3


@pytest.mark.parametrize("noted", [True, False])
def test_what_was_altered_or_lost_there_is_sent_again(
    noted: bool, site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    assert run_tap(*site.backup_words())[0] == 0
    bets, prices = away.stored()
    if noted:
        away.client.delete_object(Bucket="tap-copies", Key=bets)
    else:
        (site.copies / ".offsite.json").write_text("no JSON")
        away.alter(bets, flip)
    report = hourly.offsite.send(site.copies, away.store(), plan(site).retentions())
    assert bets.removeprefix("machine/") in report.sent
    assert away.content(bets) == (site.copies / bets.split("/")[-1]).read_bytes()
    assert away.stored() == [bets, prices]


def test_what_is_dropped_here_is_dropped_there_if_that_is_allowed(
    site: CopiedSite, away: Storage
) -> None:
    small = plan(site, bets_kept=Retention(1, 1, 1))

    def run_at(hour: int) -> hourly.Outcome:
        return hourly.run(small, away.store, lambda: moment(f"2026-03-02T{hour:02}:00:00"))

    run_at(10)
    away.client.put_object(Bucket="tap-copies", Key="machine/backups/bets/notes.txt", Body=b"")
    outcome = run_at(11)
    assert outcome.offsite
    assert outcome.offsite.removed == ["backups/bets/bets-20260302T100000Z.db.zst.sealed"]
    away.proxy.fault = lambda method, _: (403, "AccessDenied") if method == "DELETE" else None
    outcome = run_at(12)
    assert outcome.offsite
    assert (outcome.problems, outcome.offsite.may_not_remove) == ([], True)
    assert [key for key in away.stored() if "bets/" in key] == [
        "machine/backups/bets/bets-20260302T110000Z.db.zst.sealed",
        "machine/backups/bets/bets-20260302T120000Z.db.zst.sealed",
        "machine/backups/bets/notes.txt",
    ]


@pytest.mark.parametrize(
    "fault",
    [(503, "SlowDown"), (507, "InsufficientStorage"), (403, "AccessDenied"), RESET, HANG, "away"],
    ids=str,
)
def test_a_storage_on_a_bad_day_harms_no_copy_and_moves_the_alert(
    fault: tuple[int, str] | str, site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    if fault == "away":
        away.proxy.close()
    else:
        away.proxy.fault = lambda *_: fault
    code, out, err = run_tap(*site.backup_words())
    assert code == 1
    assert err.startswith("tap: s3://tap-copies/machine/: could not list backups/")
    assert len(err.splitlines()) == 1
    assert "off the machine: 0 sent and read back, 2 missing" in out
    assert len(site.names()) == 2
    assert site.value("tap_backup_failed") == 1
    assert site.value("tap_backup_offsite_pending") == 2
    away.proxy.heal()
    time.sleep(1.1)  # names have seconds
    code, out, _ = run_tap(*site.backup_words())
    # One hour keeps one copy: had it been another hour, those before would be sent as well.
    assert (code, ", 0 missing, " in out, ": 0 sent" in out) == (0, True, False)
    assert site.value("tap_backup_failed") == 0


def test_a_storage_that_fails_now_and_then_is_got_over(
    site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    away.proxy.fault = lambda _, number: (503, "SlowDown") if number % 3 else None
    assert run_tap(*site.backup_words())[0] == 0
    assert len(away.stored()) == 2


def test_what_the_storage_spoils_while_it_is_sent_does_not_count(
    site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    real = ObjectStore.put

    def spoil(store: ObjectStore, path: Path, key: str, kind: str) -> None:
        real(store, path, key, "STANDARD")
        if "bets" in key:
            away.alter(f"machine/{key}", flip)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ObjectStore, "put", spoil)
        code, _, err = run_tap(*site.backup_words())
    assert code == 1
    assert "backups/bets/bets-" in err
    assert "is not what it should be" in err
    assert site.value("tap_backup_offsite_pending") == 1
    assert run_tap(*site.drill_words())[0] == 1


def test_a_secret_that_is_missing_is_told_and_the_copies_are_made(
    site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    Path(os.environ["TAP_S3_SECRET_FILE"]).unlink()
    code, _, err = run_tap(*site.backup_words())
    assert (code, "s3-secret cannot be read" in err) == (1, True)
    assert len(site.names()) == 2
    assert site.value("tap_backup_failed") == 1


def test_ended_while_it_sends_it_says_so_in_the_metrics(
    site: CopiedSite, away: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: object) -> None:
        raise SystemExit(143)  # what SIGTERM becomes in `tap`

    monkeypatch.setattr(ObjectStore, "put", ended)
    with pytest.raises(SystemExit):
        hourly.run(plan(site), away.store)
    assert len(site.names()) == 2
    assert site.value("tap_backup_failed") == 1
    assert time.time() - site.value("tap_backup_last_success_timestamp_seconds", "bets") < 60


def test_an_alert_stays_until_a_run_has_ended_well(site: CopiedSite, away: Storage) -> None:
    away.proxy.fault = lambda *_: (503, "SlowDown")
    hourly.run(plan(site), away.store)
    away.proxy.heal()
    seen = []

    def connect() -> ObjectStore:
        seen.append(site.value("tap_backup_failed"))
        return away.store()

    hourly.run(plan(site), connect)
    assert (seen, site.value("tap_backup_failed")) == ([1], 0)


# -- restored ------------------------------------------------------------------------------------


@pytest.mark.parametrize("offsite", [True, False])
def test_a_restored_database_is_the_one_that_was_copied(
    offsite: bool, site: CopiedSite, away: Storage, database: Path, run_tap: Tap
) -> None:
    assert run_tap(*site.backup_words())[0] == 0
    target = site.folder / "restored.db"
    words = ["restore", "--dest", str(site.copies), "--to", str(target)]
    if offsite:
        words.append("--offsite")
        for name in site.names():
            (site.copies / name).unlink()
    code, out, err = run_tap(*words)
    assert (code, err) == (0, "")
    assert out.startswith(f"{target} is bets-")
    with closing(open_reader(database)) as live, closing(open_reader(target)) as restored:
        assert audit(restored).findings == ()
        for table in ("users", "bets", "transaction_ledger", "exposures"):
            question = f"SELECT * FROM {table} ORDER BY 1"
            assert restored.execute(question).fetchall() == live.execute(question).fetchall()
    code, _, err = run_tap(*words)
    assert (code, err) == (1, f"tap: {target} is there already; name a new file\n")


def test_a_database_appears_once_it_is_proven(
    site: CopiedSite, run_tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_tap(*site.backup_words())[0] == 0
    target = site.folder / "restored.db"

    def unproven(*_: object) -> None:
        assert not target.exists()
        raise UnprovenError("failed its audit")

    monkeypatch.setattr("tap_trading.archive.restore.prove", unproven)
    code, _, err = run_tap("restore", "--dest", str(site.copies), "--to", str(target))
    assert (code, "failed its audit" in err, target.exists()) == (1, True, False)
    assert not list(site.folder.glob(".restore-*"))


def test_a_copy_is_restored_by_its_name(site: CopiedSite, run_tap: Tap) -> None:
    begin = moment("2026-03-02T10:00:00")
    for number in range(2):
        hourly.run(plan(site), lambda: None, lambda n=number: begin + 3600 * n)
    name = "prices-20260302T100000Z.db.zst.sealed"
    words = ["restore", "--dest", str(site.copies), "--to", str(site.folder / "out.db")]
    code, out, _ = run_tap(*words, "--database", "prices", "--copy", name)
    assert (code, f"is {name}, proven: " in out) == (0, True)
    code, _, err = run_tap(*words, "--copy", name)
    assert (code, err) == (1, f"tap: {name} is not the name of a copy of bets\n")
    assert run_tap(*words, "--offsite")[2] == (
        "tap: no copies leave this machine: there is no TAP_S3_BUCKET\n"
    )


def test_without_copies_there_is_nothing_to_restore(site: CopiedSite, run_tap: Tap) -> None:
    code, _, err = run_tap("restore", "--dest", str(site.copies), "--to", str(site.folder / "x"))
    assert (code, err) == (1, f"tap: there is no copy of bets in {site.copies}\n")


def test_a_flipped_byte_in_any_copy_is_caught_and_the_copy_named(
    site: CopiedSite, run_tap: Tap
) -> None:
    assert run_tap(*site.backup_words())[0] == 0
    chance = random.Random(1)
    for database, name in zip(("bets", "prices"), site.names(), strict=True):
        path = site.copies / name
        whole = path.read_bytes()
        for _ in range(20):
            altered = bytearray(whole)
            altered[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
            path.write_bytes(altered)
            target = site.folder / "restored.db"
            words = ["--dest", str(site.copies), "--database", database, "--to", str(target)]
            code, _, err = run_tap("restore", *words)
            assert (code, name in err, target.exists()) == (1, True, False)
        path.write_bytes(whole)


def test_a_copy_under_the_name_of_another_is_refused(site: CopiedSite, run_tap: Tap) -> None:
    hourly.run(plan(site), lambda: None, lambda: moment("2026-03-02T10:00:00"))
    [bets] = [name for name in site.names() if name.startswith("bets")]
    newer = site.copies / "bets-20260302T120000Z.db.zst.sealed"
    (site.copies / bets).rename(newer)
    code, _, err = run_tap(
        "restore", "--dest", str(site.copies), "--to", str(site.folder / "out.db")
    )
    assert code == 1
    assert f"{newer} is another copy than its name says" in err


def _without_a_user(connection: apsw.Connection) -> None:
    connection.execute(
        "INSERT INTO users (id, wallet_address, created_at, updated_at)"
        " VALUES ('user_x', 'x', 0, 0)"
    )


def _with_another_beat(connection: apsw.Connection) -> None:
    connection.execute("UPDATE write_probe SET beats = beats + 1")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_a_user, "rows of users, but"),
        (_with_another_beat, "has another sentinel than was copied: beat 1, entry"),
    ],
)
def test_what_was_not_copied_is_noticed(
    change: Callable[[apsw.Connection], None], says: str, database: Path, site: CopiedSite
) -> None:
    before = contents_of(database, "bets", 0)
    compare(before, contents_of(database, "bets", 0))
    with closing(open_writer(database)) as connection:
        change(connection)
    with pytest.raises(UnprovenError, match=says):
        compare(before, contents_of(database, "bets", 0))


def test_a_label_says_what_a_copy_holds(database: Path, prices: Path, site: CopiedSite) -> None:
    found = contents_of(prices, "prices", 4711)
    assert Contents.from_label(found.as_label()) == found
    assert found.rows["bars"] == 300
    assert found.sentinel.endswith(f"the last {BEGIN + 29_900} at {8_421_500 + 299 % 7}")
    for label in (b"", b"{}", b"[]", b'"text"', b'{"database": "other"}'):
        with pytest.raises(UnprovenError, match="does not say what it holds"):
            Contents.from_label(label)


# -- the drill -----------------------------------------------------------------------------------


def test_the_drill_restores_what_is_off_the_machine(
    site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    assert run_tap(*site.backup_words())[0] == 0
    for name in site.names():
        (site.copies / name).write_bytes(b"not what is restored")
    left = site.folder / "drill" / ".drill-killed"
    left.mkdir(parents=True)
    code, out, err = run_tap(*site.drill_words())
    assert (code, err) == (0, "")
    bets, prices = out.splitlines()
    assert " from off the machine restored and proven in " in bets
    assert prices.startswith("prices-")
    assert list((site.folder / "drill").iterdir()) == []
    for database in ("bets", "prices"):
        assert site.value("tap_restore_drill_ok", database) == 1
        assert (
            time.time() - site.value("tap_restore_drill_last_success_timestamp_seconds", database)
            < 60
        )
        assert site.value("tap_restore_drill_copy_timestamp_seconds", database) == site.value(
            "tap_backup_last_success_timestamp_seconds", database
        )
    assert site.value("tap_restore_drill_offsite") == 1


def test_without_a_storage_the_drill_takes_the_machines_own_and_says_so(
    site: CopiedSite, run_tap: Tap
) -> None:
    assert run_tap(*site.backup_words())[0] == 0
    code, out, _ = run_tap(*site.drill_words())
    assert code == 0
    assert "from this machine alone (there is no TAP_S3_BUCKET) restored and proven" in out
    assert site.value("tap_restore_drill_offsite") == 0


def test_a_drill_that_fails_names_the_copy_and_moves_the_alert(
    site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    assert run_tap(*site.backup_words())[0] == 0
    assert run_tap(*site.drill_words())[0] == 0
    succeeded = site.value("tap_restore_drill_last_success_timestamp_seconds", "bets")
    bets = next(key for key in away.stored() if "/bets-" in key)
    away.alter(bets, flip)
    code, out, err = run_tap(*site.drill_words())
    assert code == 1
    assert out.startswith("prices-")
    assert f"s3://tap-copies/{bets}" in err
    assert site.value("tap_restore_drill_ok", "bets") == 0
    assert site.value("tap_restore_drill_ok", "prices") == 1
    assert site.value("tap_restore_drill_last_success_timestamp_seconds", "bets") == succeeded
    away.proxy.fault = lambda *_: (503, "SlowDown")
    code, _, err = run_tap(*site.drill_words())
    assert (code, err.count("could not list backups/")) == (1, 2)
    assert list((site.folder / "drill").iterdir()) == []


def test_a_drill_on_old_copies_fails(site: CopiedSite) -> None:
    hourly.run(plan(site), lambda: None, lambda: moment("2026-03-02T10:00:00"))

    def drilled_at(text: str) -> drill.Outcome:
        source = Source(site.copies, None)
        key = Key.read(site.folder / "key")
        return drill.run(source, site.folder / "drill", key, None, lambda: moment(text))

    assert drilled_at("2026-03-03T11:00:00").problems == {}
    outcome = drilled_at("2026-03-03T13:00:00")
    assert "is 27 hours old: bets-20260302T100000Z" in outcome.problems["bets"]
    assert outcome.restored == {}


def test_a_new_key_is_printed(run_tap: Tap, tmp_path: Path) -> None:
    code, out, _ = run_tap("backup-key")
    (tmp_path / "new").write_text(out)
    assert (code, len(Key.read(tmp_path / "new").secret)) == (0, 32)


# -- of a real size ------------------------------------------------------------------------------


@pytest.fixture
def large(site: CopiedSite, database: Path) -> Path:
    """Books of some 100 MB."""
    connection = open_writer(database)
    with connection:
        for number in range(200):
            connection.execute(
                "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n"
                " WHERE value < 1000) INSERT INTO users (id, wallet_address, created_at, updated_at)"
                " SELECT 'user_' || (? * 1000 + value), hex(randomblob(110)), 0, 0 FROM n",
                (number,),
            )
    connection.close()
    return database


def test_books_of_a_hundred_megabytes_go_away_and_come_back(
    large: Path, site: CopiedSite, away: Storage, run_tap: Tap
) -> None:
    assert run_tap(*site.backup_words())[0] == 0
    assert large.stat().st_size + large.with_name("bets.db-wal").stat().st_size > 90e6
    assert site.value("tap_backup_size_bytes", "bets") > 20e6  # so it goes in parts
    assert site.value("tap_backup_copy_seconds", "bets") < 5
    code, out, _ = run_tap(*site.drill_words())
    assert code == 0
    assert "rows, beat 0, entry led_" in out
    assert away.unfinished() == []
