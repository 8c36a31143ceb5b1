"""A disk that is nearly full: new bets are refused while SQLite can still write, all else goes on,
and what the runbook says makes room. Its commands are taken from the document itself.
"""

import asyncio
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from tests.conftest import ROOT, process_environment, python
from tests.faults.disk import small_file_system
from tests.integration.conftest import Serve, problem
from tests.integration.signed_in import Trader, live_price, sign_in

import live_market
from archived_site import LATER, many_weeks, site_with_a_closed_week
from live_market import GEOMETRY
from market_days import BAR_MS, Tape, finish, resolving
from object_storage import Storage
from tap_trading.archive import cold, hourly, scratch
from tap_trading.archive.retention import Retention
from tap_trading.base.clock import system_clock
from tap_trading.base.disk import usage_of
from tap_trading.base.redis import Redis
from tap_trading.ledger import migrations
from tap_trading.market import price_store
from tap_trading.services import api

MEGABYTES = 32
CREDIT, STAKE = 100_000, 500

#: What the runbook's programs are in this test; the folders of the copies are elsewhere.
TAP = """#!/bin/sh
case $1 in disk | backup-prune) set -- "$@" --dest {data}/backups ;; esac
exec {python} -m tap_trading.cli.main "$@"
"""
JOURNALCTL = """#!/bin/sh
[ "$*" = --vacuum-size=200M ] && : >{data}/journal
"""


@dataclass
class Machine:
    """A machine whose /data is a small file system."""

    data: Path
    programs: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def books(self) -> Path:
        return self.data / "bets.db"

    @property
    def prices(self) -> Path:
        return self.data / "prices.db"

    @property
    def percent(self) -> float:
        return usage_of(self.data).percent

    def install(self, name: str, text: str) -> None:
        interpreter = " ".join(python())
        path = self.programs / name
        path.write_text(text.format(data=self.data, python=interpreter))
        path.chmod(0o755)

    def fill(self, percent: float) -> None:
        """Something else takes so much that this much is in use."""
        with (self.data / "ballast").open("ab", buffering=0) as file:
            while self.percent < percent:
                file.write(bytes(4096))

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """What ops type."""
        environment = process_environment(self.settings)
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command.replace("/data", str(self.data))],
            env=environment | {"PATH": f"{self.programs}:{environment['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    def files(self, pattern: str) -> list[str]:
        return sorted(path.name for path in self.data.glob(pattern))


@pytest.fixture
def machine(tmp_path: Path, environment: dict[str, str], storage: Storage) -> Iterator[Machine]:
    """Empty databases on a small disk, and a storage off the machine."""
    machine = Machine(tmp_path / "data", tmp_path / "programs")
    machine.programs.mkdir()
    with small_file_system(machine.data, MEGABYTES):
        migrations.migrate(machine.books)
        price_store.migrate(machine.prices)
        for folder in ("archive", "backups", "metrics"):
            (machine.data / folder).mkdir()
        machine.settings = {
            **environment,
            **storage.settings(tmp_path),
            "DB_PATH": str(machine.books),
            "PRICES_DB_PATH": str(machine.prices),
            "TAP_ARCHIVE_DIR": str(machine.data / "archive"),
            "TAP_METRICS_DIR": str(machine.data / "metrics"),
            "TAP_DISK_FULL_PERCENT": "95",
        }
        machine.install("tap", TAP)
        machine.install("journalctl", JOURNALCTL)
        yield machine


async def history(machine: Machine, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What gathers in weeks: a journal, three archives, and copies, all of them elsewhere too."""
    monkeypatch.setattr(scratch, "SPARE_BYTES", 0)  # it is a small disk
    (machine.data / "journal").write_bytes(bytes(128 * 1024))
    site = await site_with_a_closed_week(machine.books, machine.prices, machine.data / "archive")
    many_weeks(site, 3)
    cold.store(site.books, site.shelf, storage.store(), None, LATER)
    plan = hourly.Plan(
        databases={"bets": machine.books, "prices": machine.prices},
        folder=machine.data / "backups",
        bets_kept=Retention(24, 7, 5),
        key=None,
        metrics=None,
    )
    for hour in range(3):
        done = hourly.run(plan, storage.store, lambda hour=hour: 1.79e9 + 3600 * hour)
        assert done.problems == []


def runbook() -> list[str]:
    """The commands of docs/disk.md for a disk that is nearly full, in their order."""
    text = (ROOT / "docs" / "disk.md").read_text()
    [section] = re.findall(
        r"^## The disk is nearly full\n(.*?)^## ", text, re.DOTALL | re.MULTILINE
    )
    return re.findall(r"^    (\S.*)$", section, re.MULTILINE)


def cells() -> list[str]:
    """Cells of the last columns that are offered, of each the one that the price is in."""
    return [
        cell.cell_id
        for cell in live_market.cells(GEOMETRY)
        if cell.low <= live_market.PRICE < cell.high
    ][4:]


async def until_the_api_says(client: TestClient, words: str) -> None:
    """Wait for its check of the disk; it looks once a second."""
    async with asyncio.timeout(5):
        while True:
            answer = await client.get("/healthz")
            assert answer.status == 200  # whatever the disk is like, and with a real write
            if words in (await answer.json())["checks"]["disk"]:
                return
            await asyncio.sleep(0.1)


async def refused(trader: Trader, cell_id: str, key: str) -> None:
    answer = await trader.bet(cell_id, STAKE, key)
    assert (answer.status, (await problem(answer))["code"]) == (503, "storage_unavailable")
    assert answer.headers["Retry-After"] == "30"


async def balance(trader: Trader) -> int:
    return int((await trader.json("/api/me"))["balance"])


async def test_a_disk_that_is_nearly_full_and_what_the_runbook_does_about_it(
    machine: Machine, serve: Serve, redis: Redis, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history(machine, storage, monkeypatch)
    tape = Tape(machine.prices, system_clock() // BAR_MS * BAR_MS, live_market.PRICE)
    async with serve(api.build, **machine.settings) as client, live_price(client, redis):
        ada = await sign_in(client)
        wanted = cells()[0]
        placed = await ada.bet(wanted, STAKE, "before")
        assert placed.status == 202

        machine.fill(95.2)
        await until_the_api_says(client, "new bets are refused")
        await refused(ada, cells()[1], "after")
        again = await ada.bet(wanted, STAKE, "before")
        assert (again.status, await again.read()) == (202, await placed.read())
        bob = await sign_in(client)  # SQLite can write
        assert await balance(bob) == CREDIT

        # The column's time passes on the tape, and the resolver pays.
        start, width = map(int, wanted.split(":")[1:3])
        tape.stay((start + width + 2) * 1000)
        tape.close()
        async with resolving(machine.books, machine.prices, lambda: tape.now) as resolver:
            await finish(resolver)
        bet = await ada.json(f"/api/bets/{(await placed.json())['bet_id']}")
        assert (bet["status"], bet["payout_amount"] > STAKE) == ("won", True)
        paid = CREDIT - STAKE + bet["payout_amount"]
        assert await balance(ada) == paid
        assert machine.percent >= 93

        # A backup is refused for lack of room, and what fills the disk is noted all the same.
        hourly_run = machine.run("tap backup-all --dest /data/backups")
        assert (hourly_run.returncode, "MB are needed" in hourly_run.stderr) == (1, True)
        assert "was not noted" not in hourly_run.stderr
        assert len((machine.data / "metrics/disk-usage.jsonl").read_text().splitlines()) == 1
        await refused(ada, cells()[1], "after")

        commands, made_room = runbook(), {}
        for command in commands:
            before = machine.percent
            done = machine.run(command)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            made_room[command] = before - machine.percent
            if command == "tap disk" and before >= 95:
                assert "it is full, and new bets are refused" in done.stdout
        useful = [command for command, points in made_room.items() if points > 0.1]
        assert useful == [
            *("journalctl --vacuum-size=200M", "tap backup-prune", "tap archive-prune --keep 1")
        ]
        assert machine.percent < 93

        await until_the_api_says(client, "ok")
        assert (await ada.bet(cells()[1], STAKE, "after")).status == 202
        assert (await bob.bet(cells()[1], STAKE, "first")).status == 202
        assert (await balance(ada), await balance(bob)) == (paid - STAKE, CREDIT - STAKE)
    audited = machine.run("tap audit")
    assert audited.returncode == 0, audited.stderr
    # What may never go is there.
    assert machine.files("*.db") == ["bets.db", "prices.db"]
    assert machine.files("archive/bets_*.db") == ["bets_2025_w50.db"]
    newest = machine.files("backups/*.zst")
    assert [name.partition("-")[0] for name in newest] == ["bets", "prices"]
