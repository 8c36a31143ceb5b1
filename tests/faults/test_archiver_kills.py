"""`kill -9` of the archiver at random moments: everything is somewhere whole, and once."""

import functools
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.conftest import process_environment, python

from archived_site import Site, rows, site_with_a_closed_week
from object_storage import Storage
from tap_trading.archive import cold
from tap_trading.base.db import open_reader
from tap_trading.ledger.audit import audit

KILLS = 25
_ENDS_WITHIN_S = 60


class Archiver:
    """Runs it as its unit does."""

    def __init__(self, settings: dict[str, str], log: Path) -> None:
        self._settings = process_environment(settings)
        self._log = log

    def run(self, seconds: float = _ENDS_WITHIN_S, after: Callable[[], bool] = lambda: True) -> int:
        """Its exit code; it is killed so many seconds after something is seen."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                python("-m", "tap_trading.services.archiver"),
                env=self._settings, stdout=log, stderr=log,
            )  # fmt: skip
            try:
                while not after() and process.poll() is None:
                    time.sleep(0.001)
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()


def begun(folder: Path) -> bool:
    """Whether a copy is being made."""
    return any(folder.glob(".bets_*.unfinished"))


def finished(folder: Path) -> int:
    """How many archives there are."""
    return len(list(folder.glob("bets_*.db")))


def one_more(folder: Path, than: int) -> bool:
    """Whether there are more archives than there were."""
    return finished(folder) > than


def how_far(site: Site) -> str:
    """What is done."""
    archives = rows(site.books, "SELECT count(*), count(stored_at) FROM archives")[0]
    left = rows(site.books, "SELECT count(*) FROM transaction_ledger")[0][0]
    unfinished = len(list(site.shelf.folder.glob(".bets_*.unfinished")))
    return f"{archives[0]} archived, {archives[1]} stored, {unfinished} begun, {left} entries"


@pytest.mark.campaigns(1, 12)
async def test_an_archiver_that_is_killed_goes_on(
    campaign: int, environment: dict[str, str], database: Path, prices: Path, storage: Storage,
    tmp_path: Path, measured: Callable[[str], None],
) -> None:  # fmt: skip
    chance = random.Random(campaign)
    folder = tmp_path / "archive"
    site = await site_with_a_closed_week(database, prices, folder)
    saved = site.save()
    told = site.told(every=10)
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    archiver = Archiver(
        environment | storage.settings(tmp_path) | {"TAP_METRICS_DIR": str(metrics)},
        tmp_path / "archiver.log",
    )
    began = time.monotonic()
    assert archiver.run() == 0
    took = time.monotonic() - began
    start_anew(site, saved, storage)
    kills, rounds, seen = 0, 0, Counter[str]()
    while kills < KILLS:
        # Most of its time it only starts, so most kills are aimed: at a copy that is being made,
        # at the rows that go after it was, or at what goes to the storage.
        match chance.randrange(4):
            case 0:
                code = archiver.run(chance.uniform(0.4, 0.95) * took)
            case 1:
                code = archiver.run(chance.uniform(0, 0.1), lambda: begun(folder))
            case 2:
                made = functools.partial(one_more, folder, finished(folder))
                code = archiver.run(chance.uniform(0, 0.15), made)
            case _:
                code = archiver.run(
                    chance.uniform(0, 0.2), lambda: bool(list(folder.glob(".cold-*")))
                )
        kills += code != 0
        if database.exists():
            seen[how_far(site)] += 1
        assert site.told(every=10) == told
        with closing(open_reader(database)) as books:
            assert audit(books).findings == ()
        if code == 0:
            rounds += 1
            start_anew(site, saved, storage)
    assert archiver.run() == 0, (tmp_path / "archiver.log").read_text()
    assert site.told(every=10) == told
    assert rows(database, "SELECT * FROM transaction_ledger") == []
    assert [known.is_stored for known in cold.known(database)] == [True, True]
    bets = rows(saved, "SELECT id FROM bets ORDER BY id")
    moved = [rows(site.shelf.path(week), "SELECT id FROM bets") for week in site.shelf.weeks()]
    assert sorted(bet for archive in moved for bet in archive) == bets
    for week in site.shelf.weeks():
        with closing(open_reader(site.shelf.path(week))) as archive:
            assert audit(archive).findings == ()
    left = [path.name for path in folder.iterdir()]
    assert sorted(left) == [".lock", "bets_2025_w48.db", "bets_2025_w49.db"]
    measured(f"archiver: {kills} kills, {rounds} ends, seen: {dict(seen)}")


def start_anew(site: Site, saved: Path, storage: Storage) -> None:
    """Nothing was archived."""
    shutil.rmtree(site.shelf.folder)
    site.go_back(saved)
    storage.empty()
