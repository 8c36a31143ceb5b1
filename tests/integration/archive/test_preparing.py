"""Copies made ready to take the place of the site's databases."""

import json
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import apsw
import pytest
from tests.integration.conftest import Tap

from archived_site import LATER, WEEK, Site, rows
from object_storage import Storage
from tap_trading.archive import cold, offsite
from tap_trading.archive.backup import copy_into
from tap_trading.archive.contents import Name
from tap_trading.archive.preparing import PLAN, Plan, compare, prepare
from tap_trading.archive.restore import RestoreError, Source
from tap_trading.archive.retention import Retention
from tap_trading.archive.shelf import Shelf
from tap_trading.base.db import open_reader, open_writer
from tap_trading.base.migrations import stored_version
from tap_trading.ledger import migrations
from tap_trading.ledger.accounts import find, post
from tap_trading.ledger.audit import audit

FIRST, SECOND = datetime(2025, 12, 1, 10, tzinfo=UTC), datetime(2025, 12, 1, 11, tzinfo=UTC)
NEWEST: Mapping[Name, str | None] = {"bets": None, "prices": None}
EVERYTHING = Retention(99, 99, 99)


def copied(site: Site, folder: Path, at: datetime = FIRST) -> Source:
    folder.mkdir(exist_ok=True)
    copy_into(folder, site.books, "bets", at, None)
    copy_into(folder, site.prices, "prices", at, None)
    return Source(folder, None)


def ready(source: Source, folder: Path, shelf: Shelf, name: str | None = None) -> Plan:
    return prepare(source, {"bets": name, "prices": None}, None, folder, shelf)


def deposit(books: Path, times: int = 1) -> None:
    """Two entries of the ledger each time: a user's and the house's."""
    with closing(open_writer(books)) as connection:
        [[user]] = connection.execute("SELECT id FROM users WHERE id <> 'house' LIMIT 1")
        [[entries]] = connection.execute("SELECT max(rowid) FROM transaction_ledger")
        for number in range(times):
            account = find(connection, user)
            assert account is not None
            post(
                connection,
                account=account,
                amount=100,
                ref_type="DEPOSIT",
                ref_id=f"wire-{entries}-{number}",
                metadata=None,
                now_ms=1_772_445_600_000 + number,
            )


async def test_a_copy_is_made_ready_and_proven_and_nothing_else_happens(
    site: Site, tmp_path: Path
) -> None:
    source, before = copied(site, tmp_path / "copies"), site.told(every=20)
    plan = ready(source, tmp_path / "ready", site.shelf)
    assert plan.copies == {
        "bets": "bets-20251201T100000Z.db.zst",
        "prices": "prices-20251201T100000Z.db.zst",
    }
    assert plan.rows["bets"] > 1000
    assert (plan.fetched, plan.unknown, plan.missing) == ([], [], [])
    assert site.told(every=20) == before
    assert sorted(path.name for path in (tmp_path / "ready").iterdir()) == [
        *("bets.db", "bets.db.lock", PLAN, "prices.db", "prices.db.lock")
    ]
    assert Site(tmp_path / "ready/bets.db", site.prices, site.shelf).told(every=20) == before
    with closing(open_reader(tmp_path / "ready/bets.db")) as connection:
        assert audit(connection).clean


async def test_a_copy_is_chosen_by_its_name(site: Site, tmp_path: Path) -> None:
    source = copied(site, tmp_path / "copies")
    copied(site, tmp_path / "copies", SECOND)
    folder = tmp_path / "ready"
    assert ready(source, folder, site.shelf).copies["bets"] == "bets-20251201T110000Z.db.zst"
    first = "bets-20251201T100000Z.db.zst"
    assert ready(source, folder, site.shelf, first).copies["bets"] == first
    with pytest.raises(RestoreError, match=f"no copy bets-x of bets; the last ones are: {first}"):
        ready(source, folder, site.shelf, "bets-x")
    assert not (folder / PLAN).exists(), "what was ready before is not ready any more"


async def test_what_would_be_lost_is_counted(site: Site, tmp_path: Path) -> None:
    source, folder = copied(site, tmp_path / "copies"), tmp_path / "ready"
    ready(source, folder, site.shelf)
    assert compare(site.books, site.prices, folder).lost_entries == 0
    deposit(site.books, times=3)
    change = compare(site.books, site.prices, folder)
    assert change.lost_entries == 6
    assert "written at 1772445600002 (Unix ms)" in change.last_entry
    later = copied(site, tmp_path / "copies", SECOND)
    ready(later, folder, site.shelf)
    assert compare(site.books, site.prices, folder).lost_entries == 0


async def test_books_behind_an_archive_are_compared_too(site: Site, tmp_path: Path) -> None:
    source, folder = copied(site, tmp_path / "copies"), tmp_path / "ready"
    ready(source, folder, site.shelf)
    site.archive()
    assert compare(site.books, site.prices, folder).lost_entries == 0
    deposit(site.books)
    assert compare(site.books, site.prices, folder).lost_entries == 2


async def test_other_books_altogether_lose_all_they_have(
    site: Site, tmp_path: Path, database: Path
) -> None:
    source, folder = copied(site, tmp_path / "copies"), tmp_path / "ready"
    ready(source, folder, site.shelf)
    fresh = tmp_path / "fresh.db"
    migrations.migrate(fresh)
    assert compare(fresh, site.prices, folder).lost_entries == 0, "an empty machine has none"
    assert compare(tmp_path / "none.db", site.prices, folder).lost_entries == 0
    [[entries]] = rows(site.books, "SELECT max(rowid) FROM transaction_ledger")
    with closing(open_writer(folder / "bets.db")) as connection:
        [[last]] = connection.execute("SELECT max(rowid) FROM transaction_ledger")
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE transaction_ledger SET id = 'led_x' WHERE rowid = ?", (last,))
    assert compare(site.books, site.prices, folder).lost_entries == entries


async def test_damaged_books_are_no_reason_to_fail(site: Site, tmp_path: Path) -> None:
    source, folder = copied(site, tmp_path / "copies"), tmp_path / "ready"
    ready(source, folder, site.shelf)
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database at all, whatever its name says" * 200)
    change = compare(broken, site.prices, folder)
    assert change.lost_entries is None
    assert "not a database" in change.last_entry


async def test_prices_stay_where_they_go_on_from_the_copy(site: Site, tmp_path: Path) -> None:
    source, folder = copied(site, tmp_path / "copies"), tmp_path / "ready"
    ready(source, folder, site.shelf)
    assert compare(site.books, site.prices, folder).keeps_prices
    with closing(open_writer(folder / "prices.db")) as connection:
        connection.execute("DROP TRIGGER bars_never_change")
        connection.execute(
            "UPDATE bars SET high = high + 1, close = close + 1 WHERE t = (SELECT max(t) FROM bars)"
        )
    assert not compare(site.books, site.prices, folder).keeps_prices
    assert not compare(site.books, tmp_path / "none.db", folder).keeps_prices


async def test_nothing_can_be_compared_that_is_not_ready(site: Site, tmp_path: Path) -> None:
    with pytest.raises(RestoreError, match="nothing is ready"):
        compare(site.books, site.prices, tmp_path)


async def test_archives_that_belong_to_the_copy_are_fetched(
    site: Site, storage: Storage, tmp_path: Path
) -> None:
    [made] = site.archive()
    store = storage.store()
    cold.store(site.books, site.shelf, store, None, LATER)
    copied(site, tmp_path / "copies")
    offsite.send(tmp_path / "copies", store, {"bets": EVERYTHING, "prices": EVERYTHING})
    before, content = site.told(every=20), made.path.read_bytes()
    empty = Shelf(tmp_path / "empty machine")
    plan = ready(Source(tmp_path / "nothing here", store), tmp_path / "ready", empty)
    assert (plan.fetched, plan.unknown, plan.missing) == ([made.path.name], [], [])
    assert (tmp_path / "ready/archive" / made.path.name).read_bytes() == content
    there = Site(tmp_path / "ready/bets.db", site.prices, Shelf(tmp_path / "ready/archive"))
    assert there.told(every=20) == before
    # On the machine where it is, it stays.
    assert ready(Source(tmp_path, store), tmp_path / "ready", site.shelf).fetched == []


async def test_an_archive_that_is_nowhere_is_told_and_its_week_counts_as_away(
    site: Site, tmp_path: Path
) -> None:
    site.archive()
    source = copied(site, tmp_path / "copies")
    empty = Shelf(tmp_path / "empty machine")
    assert ready(source, tmp_path / "ready", empty).missing == [WEEK.name]
    with Site(tmp_path / "ready/bets.db", site.prices, empty).history() as history:
        assert history.archived_before() == WEEK.ends_at


async def test_archives_that_the_copy_does_not_know_do_not_stay(site: Site, tmp_path: Path) -> None:
    source = copied(site, tmp_path / "copies")
    [made] = site.archive()
    assert ready(source, tmp_path / "ready", site.shelf).unknown == [made.path.name]
    assert made.path.exists(), "it is moved with the rest"


def with_schema(path: Path, version: int) -> None:
    migrations.migrate(path, migrations.available()[:version])


async def test_a_copy_of_an_older_schema_is_brought_up_to_this_one(
    tmp_path: Path, prices: Path
) -> None:
    books = tmp_path / "older.db"
    with_schema(books, 3)
    site = Site(books, prices, Shelf(tmp_path / "archive"))
    plan = ready(copied(site, tmp_path / "copies"), tmp_path / "ready", site.shelf)
    assert plan.copies["bets"]
    assert stored_version(tmp_path / "ready/bets.db") == len(migrations.available())
    assert stored_version(books) == 3


async def test_an_older_copy_whose_ledger_is_wrong_is_refused(tmp_path: Path, prices: Path) -> None:
    books = tmp_path / "older.db"
    with_schema(books, 3)
    source = copied(Site(books, prices, Shelf(tmp_path)), tmp_path / "copies")
    ready(source, tmp_path / "ready", Shelf(tmp_path / "archive"))
    with closing(apsw.Connection(str(books))) as connection:
        connection.execute("UPDATE users SET balance = balance + 5 WHERE id = 'house'")
    with pytest.raises(Exception, match="failed its audit"):
        copied(Site(books, prices, Shelf(tmp_path)), tmp_path / "copies", SECOND)


async def test_tap_prepares_and_compares(
    site: Site, run_tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(site, tmp_path / "copies")
    for name, value in {
        "DB_PATH": site.books,
        "PRICES_DB_PATH": site.prices,
        "TAP_ARCHIVE_DIR": site.shelf.folder,
    }.items():
        monkeypatch.setenv(name, str(value))
    where = ("--to", str(tmp_path / "ready"))
    code, out, err = run_tap("restore-prepare", "--dest", str(tmp_path / "copies"), *where)
    assert (code, err) == (0, "")
    assert json.loads(out)["copies"]["bets"] == "bets-20251201T100000Z.db.zst"
    code, out, err = run_tap("restore-compare", *where)
    assert (code, err) == (0, "")
    assert json.loads(out) == {"lost_entries": 0, "last_entry": "", "keeps_prices": True}
    code, out, err = run_tap("restore-prepare", "--offsite", *where)
    assert (code, out) == (1, "")
    assert err == "tap: no copies leave this machine: there is no TAP_S3_BUCKET\n"
