"""A machine that is gone, and an empty one that goes on from what had left it."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from nacl.signing import SigningKey
from testinfra.host import Host

from e2e.site.machine import VM, Machine
from object_storage import BUCKET, SECRET, Storage, running
from tap_trading.archive.sealing import Key

pytestmark = pytest.mark.units("tap-trading-*", "redis-server")
BASE = "http://127.0.0.1"
SERVES_WITHIN_S = 600
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass
class Told:
    """What a trader is told: of money, bets and entries."""

    balance: int
    bets: list[str]
    entries: list[str]


@dataclass
class Trader:
    """Somebody whose wallet outlives the machine."""

    site: Any  # of molecule/conftest.py
    wallet: SigningKey = field(default_factory=SigningKey.generate)

    def asks(self, path: str, token: str) -> Any:
        answer = self.site.get(f"{BASE}{path}", "--header", f"'Authorization: Bearer {token}'")
        assert answer.status == 200, answer.text
        return answer.json

    def is_told(self) -> Told:
        """After signing in anew."""
        token = self.site.sign_in(self.wallet)
        return Told(
            self.asks("/api/me", token)["balance"],
            [f"{bet['bet_id']} {bet['status']}" for bet in self.asks("/api/bets", token)["items"]],
            [entry["entry_id"] for entry in self.asks("/api/ledger", token)["items"]],
        )

    def bets(self) -> None:
        """Once, and waits until it is decided."""
        self.site.__dict__["token"] = self.site.sign_in(self.wallet)
        self.site.wait_until_open()
        cell = self.site.even_cell()
        answer = self.site.bet(cell.cell_id, f"key-{time.time_ns()}")
        assert answer.status == 202, answer.text
        decided = ("won", "lost", "void")
        self.site.wait_for_status(answer.json["bet_id"], *decided, until=cell.end + 30)


@dataclass
class Before:
    """What is remembered from one test to the next."""

    copies: list[str] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)


@pytest.fixture(scope="module")
def trader(site: Any) -> Trader:
    return Trader(site)


@pytest.fixture(scope="module")
def before() -> Before:
    return Before()


@pytest.fixture(scope="module")
def storage(machine: Machine) -> Iterator[Storage]:
    """Off the machine, at the other end of its own network; it lets nobody delete."""
    [gateway] = re.findall(r"default via (\S+)", machine.run("ip -4 route"))
    with running(gateway) as storage:
        storage.proxy.fault = lambda method, _: (
            (403, "AccessDenied") if method == "DELETE" else None
        )
        yield storage


@pytest.fixture(scope="module")
def key() -> str:
    return Key.generate()


@pytest.fixture
def play(playbook: Run, storage: Storage, key: str) -> Run:
    """Run a playbook with an inventory that knows the storage."""
    known = {
        "backup_s3_bucket": BUCKET,
        "backup_s3_endpoint": storage.endpoint,
        "backup_s3_access_key_id": "app",
        "backup_s3_secret": SECRET,
        "backup_key": key,
    }

    def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return playbook(name, "-e", json.dumps(known), *words, timeout=SERVES_WITHIN_S + 120)

    return run


def replace(machine: Machine) -> None:
    """Destroy the machine and make an empty one under its name."""
    ports = {"SSH": re.findall(r"Port (\d+)", machine.ssh_config.read_text())[0]}
    ports |= {"HTTP": machine.http.rsplit(":", 1)[1], "HTTPS": machine.https.rsplit(":", 1)[1]}
    machine.hang_up()
    environment = os.environ | {f"TAP_VM_{name}_PORT": port for name, port in ports.items()}
    for action in ("down", "up"):
        subprocess.run([VM, action, machine.name], check=True, timeout=300, env=environment)


def sentence(done: "subprocess.CompletedProcess[str]") -> str:
    """Why a playbook failed."""
    assert done.returncode != 0, done.stdout
    return done.stdout


def test_copies_leave_the_machine(
    machine: Machine,
    storage: Storage,
    play: Run,
    trader: Trader,
    before: Before,
) -> None:
    done = play("provision.yml", "--tags", "backup")
    assert done.returncode == 0, done.stdout
    for _ in range(2):
        trader.bets()
        machine.run("/opt/app/scripts/backup-hourly.sh", timeout=120)
        before.told.append(trader.is_told())
        newest = machine.run("ls /data/backups/bets-*.sealed | sort | tail -n 1").strip()
        before.copies.append(newest.rsplit("/", 1)[1])
        time.sleep(1)  # a copy's name tells its second
    kept = {path.rsplit("/", 1)[1] for path in storage.stored() if "/bets/" in path}
    assert set(before.copies) <= kept
    assert len(before.told[1].bets) == len(before.told[0].bets) + 1


def test_an_empty_machine_goes_on_from_the_last_copy(
    machine: Machine,
    play: Run,
    trader: Trader,
    before: Before,
    live_release: Callable[[], str],
    measured: Callable[[str], None],
) -> None:
    replace(machine)
    began = time.monotonic()
    done = play("restore.yml")
    assert done.returncode == 0, done.stdout
    trader.site.wait_until_healthy()
    took = time.monotonic() - began
    measured(f"from an empty machine to the last copy from the storage, serving: {took:.0f} s")
    assert took <= SERVES_WITHIN_S
    assert before.copies[1] in done.stdout
    assert trader.is_told() == before.told[1]
    live_release()
    assert machine.run("tap audit", timeout=120).startswith("/data/bets.db is clean: ")
    trader.bets()
    assert trader.is_told().bets[1:] == before.told[1].bets


def test_newer_books_stay_unless_that_is_said_twice(
    machine: Machine,
    host: Host,
    play: Run,
    trader: Trader,
    before: Before,
    live_release: Callable[[], str],
) -> None:
    newer, older = trader.is_told(), before.copies[0]
    named = ("-e", f"restore_copy={older}")
    once = (*named, "-e", "restore_over_newer=true")
    for words in (named, once):
        assert f"entries that {older} has not" in sentence(play("restore.yml", *words))
        live_release()
        assert trader.is_told() == newer
    said = sentence(play("restore.yml", *once))
    twice = re.search(r"-e restore_lose_since=\d{8}T\d{6}Z", said)
    assert twice, said
    done = play("restore.yml", *once, *twice[0].split())
    assert done.returncode == 0, done.stdout
    live_release()
    assert trader.is_told() == before.told[0]
    # What was there is not lost.
    aside = host.check_output("ls -d /data/aside/*").splitlines()[-1]
    told = machine.run(f"tap audit --database {aside}/bets.db", timeout=120)
    assert told.startswith(f"{aside}/bets.db is clean: ")
    record = json.loads(host.check_output("tail -n 1 /opt/app/releases.jsonl"))
    assert (record["what"], record["copies"]["bets"]) == ("restore", older)
    assert record["lost_entries"] > 0


def test_a_copy_that_is_not_there_changes_nothing(
    play: Run,
    trader: Trader,
    live_release: Callable[[], str],
) -> None:
    before = trader.is_told()
    name = "bets-20200101T000000Z.db.zst.sealed"
    said = sentence(play("restore.yml", "-e", f"restore_copy={name}"))
    assert f"has no copy {name} of bets; the last ones are: bets-" in said
    live_release()
    assert trader.is_told() == before


def test_one_that_is_killed_while_files_are_moved_is_ended_by_recover(
    machine: Machine,
    play: Run,
    playbook: Run,
    trader: Trader,
    before: Before,
    live_release: Callable[[], str],
) -> None:
    trader.bets()
    newer = trader.is_told()
    machine.run(
        "systemd-run --quiet --unit=killer sh -c"
        " 'until [ -e /opt/app/restore.json ]; do sleep 0.01; done; sleep 0.7;"
        " systemctl kill --signal=KILL tap-trading-deployment'"
    )
    stamp = re.findall(r"\d{8}T\d{6}Z", before.copies[1])[0]
    words = (
        f"restore_copy={before.copies[1]}",
        "restore_over_newer=true",
        f"restore_lose_since={stamp}",
    )
    said = sentence(play("restore.yml", *(part for word in words for part in ("-e", word))))
    assert "cut off" in said
    done = playbook("recover.yml")
    assert done.returncode == 0, done.stdout
    live_release()
    assert trader.is_told() in (newer, before.told[1])
    assert machine.run("tap audit", timeout=120).startswith("/data/bets.db is clean: ")
    assert machine.run("ls /data/restore").strip() == ""
