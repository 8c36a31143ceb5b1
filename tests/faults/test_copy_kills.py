"""`kill -9` of backups, drills and restorations: no copy is lost, none is there twice or half, the
next run completes what the dead one began, and the databases do not notice.
"""

import json
import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.conftest import process_environment, python

from copied_site import CopiedSite
from market_days import BEGIN, FAR, NEAR, Tape, Traders
from object_storage import Storage
from tap_trading.archive.contents import prove
from tap_trading.archive.preparing import PLAN
from tap_trading.archive.sealing import Key, check
from tap_trading.base.db import open_reader
from tap_trading.ledger.audit import audit

KILLS = 25

#: Forks a `tap` for each line, so that a kill does not cost its imports again. Each has to end
#: before the next begins; what it said goes to a file.
STARTER = """
import json, os, sys
import boto3, botocore.config
from tap_trading.cli import main

for line in sys.stdin:
    words = json.loads(line)
    pid = os.fork()
    if not pid:
        os.dup2(os.open(words[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        main.main(words[1:])
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Taps:
    """Runs of `tap`, one after the other."""

    def __init__(self, environment: dict[str, str], said: Path) -> None:
        self._said = said
        self._starter = subprocess.Popen(
            python("-c", STARTER),
            env=process_environment(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        assert self._starter.stdin
        assert self._starter.stdout
        self._starter.stdin.close()
        self._starter.wait()
        self._starter.stdout.close()

    def run(self, words: list[str], kill_after_s: float | None = None) -> int:
        """The exit code; that of a killed one is -9."""
        assert self._starter.stdin
        assert self._starter.stdout
        self._starter.stdin.write(json.dumps([str(self._said), *words]) + "\n")
        self._starter.stdin.flush()
        pid = int(self._starter.stdout.readline())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            # Its parent waits for it only after it has told: it cannot be another one's yet.
            if not self._ended():
                os.kill(pid, signal.SIGKILL)
        return int(self._starter.stdout.readline())

    def _ended(self) -> bool:
        assert self._starter.stdout
        return bool(select.select([self._starter.stdout], [], [], 0)[0])

    def said(self) -> str:
        return self._said.read_text()


@pytest.fixture
def site(
    database: Path, prices: Path, tape: Tape, traders: Traders, storage: Storage, tmp_path: Path
) -> CopiedSite:
    """Books and prices of some megabytes, a key, and a storage."""
    tape.play([8_421_500 + number % 7 for number in range(2000)])
    for number, cell in enumerate((NEAR, FAR, NEAR)):
        traders.bet(cell, BEGIN + 100 * number, user=number)
    traders._connection.execute(
        "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n"
        " WHERE value < 20000) INSERT INTO users (id, wallet_address, created_at, updated_at)"
        " SELECT 'user_' || value, hex(randomblob(100)), 0, 0 FROM n"
    )
    (tmp_path / "key").write_text(Key.generate())
    environment = {
        "DB_PATH": str(database),
        "PRICES_DB_PATH": str(prices),
        "TAP_METRICS_DIR": str(tmp_path),
        "TAP_BACKUP_KEY_FILE": str(tmp_path / "key"),
        **storage.settings(tmp_path),
    }
    return CopiedSite(tmp_path, environment)


@pytest.fixture
def taps(site: CopiedSite) -> Iterator[Taps]:
    found = Taps(site.environment, site.folder / "said")
    yield found
    found.close()


def took(taps: Taps, words: list[str]) -> float:
    """How long a run takes that is not killed."""
    began = time.monotonic()
    assert taps.run(words) == 0, taps.said()
    return time.monotonic() - began


def leftovers(folder: Path) -> list[str]:
    """What is no copy."""
    return [
        path.name for path in folder.iterdir() if not path.name.startswith(("bets-", "prices-"))
    ]


@pytest.mark.campaigns(1, 12)
def test_killed_while_it_copies_and_sends(
    campaign: int,
    site: CopiedSite,
    taps: Taps,
    storage: Storage,
    measured: Callable[[str], None],
) -> None:
    chance, key = random.Random(campaign), Key.read(site.folder / "key")
    whole_s = min(took(taps, site.backup_words()) for _ in range(3))
    killed = 0
    for _ in range(KILLS):
        before = {name: (site.copies / name).read_bytes() for name in site_copies(site)}
        code = taps.run(site.backup_words(), kill_after_s=chance.uniform(0, 1.1 * whole_s))
        assert code in (0, -9), taps.said()
        killed += code == -9
        # An hour keeps one copy, and the newest of each database is whole at every moment.
        names = site_copies(site)
        for database in ("bets", "prices"):
            assert [name for name in names if name.startswith(database)]
            old = [name for name in before if name.startswith(database)]
            for name in set(old) & set(names):
                assert (site.copies / name).read_bytes() == before[name]
        for name in names:
            check(site.copies / name, key)
    assert taps.run(site.backup_words()) == 0, taps.said()
    assert ", 0 missing, " in taps.said()
    assert leftovers(site.copies) == [".offsite.json"]
    there = {key.split("/")[-1]: storage.content(key) for key in storage.stored()}
    assert there == {name: (site.copies / name).read_bytes() for name in site_copies(site)}
    assert len(there) == 2
    assert taps.run(site.drill_words()) == 0, taps.said()
    books_are_whole(site)
    measured(
        f"kill -9 of backups: {killed} of {KILLS} while they were at it, one takes {whole_s:.2f} s"
    )
    assert killed > KILLS / 2


@pytest.mark.campaigns(1, 12)
def test_killed_while_it_restores(
    campaign: int, site: CopiedSite, taps: Taps, measured: Callable[[str], None]
) -> None:
    chance = random.Random(campaign)
    assert taps.run(site.backup_words()) == 0, taps.said()
    copies = {name: (site.copies / name).read_bytes() for name in site_copies(site)}
    target = site.folder / "out" / "restored.db"
    target.parent.mkdir()
    restore = ["restore", "--dest", str(site.copies), "--offsite", "--to", str(target)]
    took(taps, site.drill_words())  # the first reads programs from disk
    whole_s = {"drill": took(taps, site.drill_words()), "restore": took(taps, restore)}
    wanted = target.read_bytes()
    target.unlink()
    killed = 0
    for number in range(KILLS):
        what, words = ("drill", site.drill_words()) if number % 2 else ("restore", restore)
        code = taps.run(words, kill_after_s=chance.uniform(0, 1.1 * whole_s[what]))
        assert code in (0, -9), taps.said()
        killed += code == -9
        if target.exists():  # then it is whole
            assert target.read_bytes() == wanted
            target.unlink()
        assert {name: (site.copies / name).read_bytes() for name in site_copies(site)} == copies
    assert taps.run(site.drill_words()) == 0, taps.said()
    assert list((site.folder / "drill").iterdir()) == []
    assert taps.run(restore) == 0, taps.said()
    assert target.read_bytes() == wanted
    assert list(target.parent.iterdir()) == [target]
    books_are_whole(site)
    measured(f"kill -9 of drills and restorations: {killed} of {KILLS} while they were at it")
    assert killed > KILLS / 2


@pytest.mark.campaigns(1, 12)
def test_killed_while_it_makes_a_copy_ready(
    campaign: int, site: CopiedSite, taps: Taps, measured: Callable[[str], None]
) -> None:
    chance = random.Random(campaign)
    assert taps.run(site.backup_words()) == 0, taps.said()
    ready = site.folder / "ready"
    prepare = ["restore-prepare", "--dest", str(site.copies), "--offsite", "--to", str(ready)]
    whole_s = min(took(taps, prepare) for _ in range(2))
    killed = 0
    for _ in range(KILLS):
        code = taps.run(prepare, kill_after_s=chance.uniform(0, 1.1 * whole_s))
        assert code in (0, -9), taps.said()
        killed += code == -9
        if (ready / PLAN).exists():
            # Then all of it is ready, and the machine may move it in.
            # Whoever only looked may have left an empty one.
            assert not any(log.stat().st_size for log in ready.glob("*-wal"))
            prove(ready / "bets.db", "bets")
            prove(ready / "prices.db", "prices")
    assert taps.run(prepare) == 0, taps.said()
    assert taps.run(["restore-compare", "--to", str(ready)]) == 0
    assert json.loads(taps.said())["lost_entries"] == 0
    books_are_whole(site)
    measured(f"kill -9 of restorations to come: {killed} of {KILLS} while they were at it")
    assert killed > KILLS / 3


def site_copies(site: CopiedSite) -> list[str]:
    return sorted(path.name for path in site.copies.glob("*.db.zst.sealed"))


def books_are_whole(site: CopiedSite) -> None:
    with closing(open_reader(Path(site.environment["DB_PATH"]))) as connection:
        assert audit(connection).findings == ()
        assert connection.pragma("integrity_check") == "ok"
