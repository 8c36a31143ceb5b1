"""Backups: consistent under load, checked, packed, and only so many kept."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import pytest
import zstandard

from tap_trading.archive.backup import BackupError, back_up
from tap_trading.ledger.batcher import Batcher

NOW = datetime(2026, 2, 3, 12, tzinfo=UTC)


def unpack(packed: Path, target: Path) -> apsw.Connection:
    with packed.open("rb") as source, target.open("wb") as plain:
        zstandard.ZstdDecompressor().copy_stream(source, plain)
    return apsw.Connection(str(target))


async def test_a_copy_taken_under_writing_is_whole(database: Path, tmp_path: Path) -> None:
    batcher: Batcher[None, None] = Batcher(database)
    await batcher.open()
    stop = asyncio.Event()
    written = 0

    def pair(number: int) -> object:
        def work(connection: apsw.Connection) -> None:
            for side in "ab":
                name = f"{side}{number}"
                connection.execute(
                    "INSERT INTO users (id, wallet_address, created_at, updated_at)"
                    " VALUES (?1, ?1, 0, 0)",
                    (name,),
                )

        return work

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            await batcher.run(pair(written))
            written += 1

    writer = asyncio.create_task(write())
    await asyncio.sleep(0.1)
    backup = await asyncio.to_thread(back_up, database, "bets", tmp_path / "copies", 5, NOW)
    stop.set()
    await writer
    await batcher.close()
    assert backup.path.name == "bets-20260203T120000Z.db.zst"
    copy = unpack(backup.path, tmp_path / "plain.db")
    counts = copy.execute(
        "SELECT count(*) FILTER (WHERE id LIKE 'a%'), count(*) FILTER (WHERE id LIKE 'b%') FROM users"
    ).fetchone()
    copy.close()
    assert counts[0] == counts[1] > 0  # never half a transaction
    assert counts[0] <= written
    assert [p.name for p in (tmp_path / "copies").iterdir()] == [backup.path.name]


def test_only_the_newest_are_kept(database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    for hour in range(5):
        back_up(database, "bets", folder, 3, NOW + timedelta(hours=hour))
    assert sorted(p.name[5:20] for p in folder.iterdir()) == [
        *("20260203T140000", "20260203T150000", "20260203T160000"),
    ]


def test_what_a_killed_attempt_left_is_removed(database: Path, tmp_path: Path) -> None:
    left = tmp_path / "copies" / ".backup-abc"
    left.mkdir(parents=True)
    (left / "copy.db").write_bytes(b"half")
    back_up(database, "bets", tmp_path / "copies", 3, NOW)
    assert len(list((tmp_path / "copies").iterdir())) == 1


def test_no_database_no_backup(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="there is no such database"):
        back_up(tmp_path / "no.db", "bets", tmp_path / "copies", 3, NOW)
    assert list((tmp_path / "copies").iterdir()) == []


def test_a_broken_database_is_not_backed_up(database: Path, tmp_path: Path) -> None:
    plain = bytearray(database.read_bytes())
    plain[4096 * 3 : 4096 * 3 + 2048] = b"\x55" * 2048
    database.write_bytes(plain)
    with pytest.raises(BackupError):
        back_up(database, "bets", tmp_path / "copies", 3, NOW)
    assert list((tmp_path / "copies").iterdir()) == []


def test_an_unusable_folder_is_said_so(database: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackupError, match="file"):
        back_up(database, "bets", tmp_path / "file", 3, NOW)


def test_a_name_is_given_once(database: Path, tmp_path: Path) -> None:
    first, second = (back_up(database, "bets", tmp_path / "copies", 3, NOW) for _ in range(2))
    assert first.path != second.path
    assert first.path.exists()
    assert second.contents.taken_at == first.contents.taken_at + 1000
