"""Archives in cold storage: proven before anything is missing here, whatever the storage does."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from archived_site import HOUR_MS, LATER, WEEK, Site, many_weeks
from object_storage import Storage
from tap_trading.archive import cold
from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.sealing import Key
from tap_trading.base import config, textfile
from tap_trading.base.config import Settings
from tap_trading.base.db import open_writer
from tap_trading.services import archiver

WEEK_MS = 7 * 24 * HOUR_MS
SUCCESS = "tap_last_successful_archive_timestamp_seconds"


@pytest.fixture
def key(tmp_path: Path) -> Key:
    path = tmp_path / "key"
    path.write_text(base64.b64encode(os.urandom(32)).decode())
    return Key.read(path)


@pytest.fixture
def settings(environment: dict[str, str], storage: Storage, tmp_path: Path) -> Settings:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    return config.load(
        {**environment, **storage.settings(tmp_path), "TAP_METRICS_DIR": str(metrics)}
    )


def states(site: Site) -> list[tuple[str, bool, bool]]:
    return [(k.week.name, k.is_stored, k.is_local) for k in cold.known(site.books)]


@pytest.mark.parametrize("sealed", [False, True])
async def test_an_archive_is_stored_and_comes_back_as_it_was(
    site: Site, storage: Storage, key: Key, tmp_path: Path, *, sealed: bool
) -> None:
    [made] = site.archive()
    content, used = made.path.read_bytes(), key if sealed else None
    report = cold.store(site.books, site.shelf, storage.store(), used, LATER)
    assert report.stored == [WEEK]
    assert report.removed == []
    [stored] = storage.store().list()
    assert stored.key == cold.key_of(WEEK, used)
    head = storage.client.list_objects_v2(Bucket="tap-copies")["Contents"][0]
    assert head["StorageClass"] == "STANDARD_IA"
    assert states(site) == [("2025_w48", True, True)]
    fetched = tmp_path / "fetched.db"
    cold.fetch(site.books, WEEK, storage.store(), used, fetched)
    assert fetched.read_bytes() == content
    # Nothing to do a second time.
    assert cold.store(site.books, site.shelf, storage.store(), used, LATER).stored == []
    assert not list(site.shelf.folder.glob(".cold-*"))


async def test_the_newest_four_stay_here(site: Site, storage: Storage) -> None:
    paths = many_weeks(site, 6)
    report = cold.store(site.books, site.shelf, storage.store(), None, LATER)
    assert len(report.stored) == 6
    assert report.removed == [WEEK, WEEK.next]
    assert [path.exists() for path in paths] == [False, False, True, True, True, True]
    assert [(stored, local) for _, stored, local in states(site)] == [
        (True, index >= 2) for index in range(6)
    ]


async def test_what_cannot_be_read_back_stays_here(site: Site, storage: Storage) -> None:
    paths = many_weeks(site, 5)
    cold.store(site.books, site.shelf, storage.store(), None, LATER)
    assert not paths[0].exists()
    # The next one is to go; a byte of it is not what it was.
    connection = open_writer(site.books)
    connection.execute("INSERT INTO archives SELECT '2026_w20', begins_at, ends_at, bets, entries,"
                       " size, sha256, archived_at, 1, 1 FROM archives LIMIT 1")  # fmt: skip
    connection.close()

    def flip(content: bytearray) -> None:
        content[len(content) // 2] ^= 1

    storage.alter(f"machine/archive/bets_{WEEK.next.name}.db.zst", flip)
    with pytest.raises(ArchiveError, match=r"bets_2025_w49\.db\.zst"):
        cold.store(site.books, site.shelf, storage.store(), None, LATER)
    assert paths[1].exists()
    assert states(site)[1] == ("2025_w49", True, True)


async def test_a_file_that_was_changed_here_is_not_stored(site: Site, storage: Storage) -> None:
    [made] = site.archive()
    made.path.chmod(0o640)
    with made.path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArchiveError, match="is not what it was when it was made"):
        cold.store(site.books, site.shelf, storage.store(), None, LATER)
    assert storage.store().list() == []


async def test_the_archiver_does_it_all_and_tells_its_metrics(
    site: Site, settings: Settings, storage: Storage
) -> None:
    assert archiver.run(settings, LATER)
    assert states(site) == [("2025_w48", True, True)]
    told = textfile.read(settings.metrics_dir / "archive.prom")
    assert told[SUCCESS][""] > 1_700_000_000
    assert told["tap_archive_failed"][""] == 0
    assert told["tap_archives"][""] == told["tap_archives_local"][""] == 1
    assert told["tap_archives_not_stored"][""] == 0


@pytest.mark.parametrize(
    "fault", [(503, "SlowDown"), (507, "Full"), (403, "AccessDenied"), "reset"]
)
async def test_a_storage_that_fails_keeps_everything_here_and_the_alarm_rings(
    site: Site, settings: Settings, storage: Storage, monkeypatch: Any, fault: Any
) -> None:
    monkeypatch.setattr(
        archiver.ObjectStore, "of", classmethod(lambda _cls, _settings: storage.store())
    )
    storage.proxy.fault = lambda method, _number: fault if method == "PUT" else None
    assert not archiver.run(settings, LATER)
    assert states(site) == [("2025_w48", False, True)]
    assert site.shelf.path(WEEK).exists()
    told = textfile.read(settings.metrics_dir / "archive.prom")
    assert told[SUCCESS][""] == 0
    assert told["tap_archive_failed"][""] == 1
    assert told["tap_archives_not_stored"][""] == 1
    storage.proxy.heal()
    assert archiver.run(settings, LATER)
    assert states(site) == [("2025_w48", True, True)]


async def test_without_storage_everything_stays_here(
    site: Site, environment: dict[str, str], tmp_path: Path
) -> None:
    settings = config.load({**environment, "TAP_METRICS_DIR": str(tmp_path)})
    assert archiver.run(settings, LATER)
    assert states(site) == [("2025_w48", False, True)]


def test_the_archiver_says_which_build_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        archiver.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("version: ")


def test_wrong_settings_are_said_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(archiver.logger, "configure", lambda *_: None)  # it is for the process
    monkeypatch.setenv("TAP_S3_REGION", "")
    monkeypatch.setenv("TAP_NO_SUCH", "1")
    with pytest.raises(SystemExit) as ended:
        archiver.main([])
    assert ended.value.code == 78
    said = capsys.readouterr()
    assert "TAP_NO_SUCH is not a setting" in said.out + said.err
