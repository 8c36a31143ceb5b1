"""A week moves out of the books: all of it, once, and everything is as before."""

from contextlib import closing
from typing import Any

import apsw
import pytest

from archived_site import HOUR_MS, LATER, WEEK, Site, rows, totals
from tap_trading.archive import scratch
from tap_trading.archive.archiver import archive
from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.moving import Mover
from tap_trading.archive.weeks import Week
from tap_trading.base.db import WriterLock, open_reader, open_writer
from tap_trading.ledger import accounts
from tap_trading.ledger.audit import audit
from tap_trading.ledger.queries import Cursor
from tap_trading.settlement import evidence, verification


async def test_a_week_moves_and_nobody_can_tell(site: Site) -> None:
    before, sums = site.told(), totals(site.books)
    bets = rows(site.books, "SELECT id FROM bets ORDER BY id")
    [made] = site.archive()
    assert made.path == site.shelf.folder / "bets_2025_w48.db"
    assert made.week == WEEK
    assert site.told() == before
    assert totals(site.books, made.path) == sums
    # Each bet is in one place.
    moved = rows(made.path, "SELECT id FROM bets")
    left = rows(site.books, "SELECT id FROM bets")
    assert 200 < made.bets == len(moved) < len(bets)
    assert sorted(moved + left) == bets
    for path in (site.books, made.path):
        with closing(open_reader(path)) as connection:
            assert audit(connection).findings == ()
            assert connection.pragma("integrity_check") == "ok"
    assert made.path.stat().st_mode & 0o777 == 0o440
    assert [path.name for path in site.shelf.folder.iterdir() if path.name[0] != "."] == [
        made.path.name
    ]


async def test_bets_that_were_open_at_the_end_of_the_week_are_carried_over(site: Site) -> None:
    [made] = site.archive()
    carried = rows(site.books, "SELECT bet_id, user_id, amount, week FROM carried_bets")
    assert len(carried) > 3
    for bet_id, user_id, amount, week in carried:
        assert week == WEEK.name
        [(placed, resolved, stake)] = rows(
            site.books, f"SELECT placed_at, resolved_at, amount FROM bets WHERE id = '{bet_id}'"
        )
        assert placed < WEEK.ends_at <= resolved
        assert amount == -stake
        entries = f"SELECT user_id, amount FROM transaction_ledger WHERE ref_id = '{bet_id}'"
        assert (user_id, amount) in rows(made.path, entries)
        assert (user_id, amount) not in rows(site.books, entries)


async def test_a_disk_without_room_for_the_week_is_left_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = site.told()
    monkeypatch.setattr(scratch, "SPARE_BYTES", 1 << 60)
    with pytest.raises(ArchiveError, match=r"MB free, but .* MB are needed"):
        site.archive()
    assert [path.name for path in site.shelf.folder.iterdir()] == [".lock"]
    assert rows(site.books, "SELECT * FROM archives") == []
    monkeypatch.setattr(scratch, "SPARE_BYTES", 0)
    assert len(site.archive()) == 1
    assert site.told() == before


async def test_every_file_begins_with_what_the_one_before_ended_with(site: Site) -> None:
    [first] = site.archive()
    [second] = site.archive(LATER + 7 * 24 * HOUR_MS)
    assert second.week == WEEK.next
    ended = dict(rows(first.path, "SELECT id, balance FROM users"))
    began = dict(rows(second.path, "SELECT user_id, balance FROM opening_balances"))
    assert began == ended
    assert sum(ended.values()) == 0
    with closing(open_reader(second.path)) as connection:
        assert audit(connection).findings == ()
    # Nothing is left in the books but who has how much.
    assert rows(site.books, "SELECT * FROM bets") == []
    assert rows(site.books, "SELECT * FROM transaction_ledger") == []
    assert rows(site.books, "SELECT * FROM pricings") == []
    assert rows(site.books, "SELECT * FROM settlements") == []
    assert dict(rows(site.books, "SELECT id, balance FROM users")) == {
        user: first_sum + totals(second.path).get(user, 0) for user, first_sum in ended.items()
    }


async def test_what_older_weeks_began_with_goes_bit_by_bit_too(site: Site) -> None:
    site.archive()
    kept = rows(site.books, "SELECT * FROM opening_balances")
    with closing(open_writer(site.books)) as connection:
        connection.pragma("foreign_keys", 0)
        for number in range(450):
            connection.execute("INSERT INTO opening_balances VALUES ('2000_w01', ?, 5)", (number,))
            connection.execute("INSERT INTO carried_bets VALUES ('2000_w01', ?, 'u', 5)", (number,))
    turns: list[float] = []
    with Mover(site.books, pause=turns.append) as mover:
        mover.clear()
    assert rows(site.books, "SELECT * FROM opening_balances") == kept
    assert rows(site.books, "SELECT * FROM carried_bets WHERE week = '2000_w01'") == []
    assert len(turns) >= 2 * 3, "bets are written in between"


async def test_archived_bets_are_verified_from_their_own_file(site: Site) -> None:
    with site.reading() as books:
        ids = [bet for (bet,) in books.execute("SELECT id FROM bets ORDER BY id")]
        with closing(open_reader(site.prices)) as prices:
            found = evidence.decisions(books, ids)
            wanted = verification.replay(evidence.cases(prices, [f for f in found if f], 300))
    [made] = site.archive()
    replayed = {}
    for path, prices_path in ((made.path, made.path), (site.books, site.prices)):
        with closing(open_reader(path)) as books, closing(open_reader(prices_path)) as prices:
            here = [bet for (bet,) in books.execute("SELECT id FROM bets")]
            decided = [each for each in evidence.decisions(books, here) if each]
            results = verification.replay(evidence.cases(prices, decided, 300))
            for case, result in zip(decided, results, strict=True):
                assert verification.stored(case) == result
                replayed[case.bet.bet_id] = result
    assert [replayed[bet] for bet in ids] == wanted


async def test_a_week_is_left_alone_for_an_hour(site: Site) -> None:
    assert site.archive(WEEK.ends_at + HOUR_MS - 1) == []
    assert not list(site.shelf.folder.glob("*.db"))
    assert [made.week for made in site.archive(WEEK.ends_at + HOUR_MS)] == [WEEK]
    assert site.archive(WEEK.ends_at + HOUR_MS) == []


async def test_a_page_is_whole_while_rows_are_in_both(site: Site, monkeypatch: Any) -> None:
    before = site.told()
    monkeypatch.setattr("tap_trading.archive.moving.Mover.clear", lambda _self: 0)
    [made] = site.archive()
    assert len(rows(site.books, "SELECT id FROM bets")) > made.bets
    assert site.told() == before
    with site.reading() as books:
        assert audit(books).findings == ()
    monkeypatch.undo()
    assert site.archive() == []
    assert site.told() == before
    assert made.bets not in rows(site.books, "SELECT count(*) FROM bets")[0]


async def test_references_of_archived_movements_are_never_used_again(site: Site) -> None:
    [user, *_] = site.users()
    site.archive()
    with site.reading() as books:
        account = accounts.find(books, user)
    assert account is not None
    lock, connection = WriterLock(site.books), open_writer(site.books)
    with lock.held(), connection, pytest.raises(accounts.DuplicateReferenceError):
        accounts.post(
            connection, account=account, amount=5, ref_type="DEPOSIT",
            ref_id=f"practice_{user}", metadata=None, now_ms=LATER,
        )  # fmt: skip
    with lock.held():
        connection.close()
    lock.close()


async def test_only_what_is_archived_can_be_deleted(site: Site) -> None:
    site.archive()
    lock, connection = WriterLock(site.books), open_writer(site.books)
    with lock.held(), pytest.raises(apsw.ConstraintError, match="append-only"):
        connection.execute("DELETE FROM transaction_ledger")
    with lock.held():
        connection.close()
    lock.close()


async def test_an_archive_that_is_there_is_proven_before_it_counts(site: Site) -> None:
    saved = site.save()
    [made] = site.archive()
    # An older backup is restored: the books begin before the archive again.
    site.go_back(saved)
    before = site.told()
    inode = made.path.stat().st_ino
    [again] = site.archive()
    assert again == made
    assert made.path.stat().st_ino == inode
    assert site.told() == before


async def test_an_archive_with_a_flipped_bit_is_named_and_nothing_is_deleted(site: Site) -> None:
    saved = site.save()
    [made] = site.archive()
    site.go_back(saved)
    content = bytearray(made.path.read_bytes())
    amount = content.rindex(b"btc-usd:")
    content[amount + 9] ^= 1
    made.path.chmod(0o640)
    made.path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"bets_2025_w48\.db"):
        site.archive()
    assert rows(site.books, "SELECT week FROM horizon") == [("",)]
    with site.reading() as books:
        assert audit(books).findings == ()


async def test_one_archiver_at_a_time(site: Site) -> None:
    first = archive(site.books, site.prices, site.shelf, LATER)
    next(first)
    with pytest.raises(ArchiveError, match="another process is archiving"):
        site.archive()
    first.close()
    assert site.archive() == []


async def test_a_column_that_is_not_settled_to_its_end_is_waited_for(site: Site) -> None:
    lock, connection = WriterLock(site.books), open_writer(site.books)
    column = WEEK.ends_at // 1000 - 100
    with lock.held():
        connection.execute(
            "INSERT INTO settlements (start, width, bars, longest_gap, void, settled_at)"
            f" VALUES ({column}, 1, 0, 1000, 1, 0)"
        )
    with pytest.raises(ArchiveError, match=rf"column {column}:1 is not settled to its end yet"):
        site.archive()
    with lock.held():
        connection.execute("UPDATE settlements SET released = NULL")
        connection.close()
    lock.close()
    assert [made.week for made in site.archive()] == [WEEK]


async def test_the_file_gets_small_again(site: Site) -> None:
    pages = rows(site.books, "PRAGMA page_count")[0][0]
    [made] = site.archive()
    [(left,)] = rows(site.books, "PRAGMA page_count")
    [(free,)] = rows(site.books, "PRAGMA freelist_count")
    assert free < 100
    assert left < pages
    assert made.path.stat().st_size == made.size


async def test_weeks_without_anything_are_no_files(site: Site) -> None:
    made = site.archive(LATER + 100 * 7 * 24 * HOUR_MS)
    assert [each.week for each in made] == [WEEK, Week(2025, 49)]


async def test_a_cursor_of_an_archive_that_is_gone_still_has_its_place(site: Site) -> None:
    [user, *_] = site.users()
    with site.history() as history:
        all_bets = history.bets(user, limit=100).items
    [made] = site.archive()
    local = [bet for bet in all_bets if bet.placed_at >= WEEK.ends_at]
    made.path.unlink()
    oldest = all_bets[-1]
    with site.history() as history:
        assert history.bets(user, cursor=Cursor(oldest.placed_at, oldest.bet_id)).items == []
        assert len(history.bets(user, limit=100).items) >= len(local)
