"""Releases that do not work, and machines that cannot take one: the old release goes on."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from e2e.site.machine import ROOT, Machine
from e2e.site.releases import ARTIFACT, build, launcher, repack, sentence, version_of

pytestmark = pytest.mark.units("tap-trading-*")
Run = Callable[..., "subprocess.CompletedProcess[str]"]
UNIT = r"tap-trading-api-(blue|green)\.service"
#: What a service of the release begins with, and what is said of it.
BEFORE_THE_SWITCH = {
    "a service that does not start": (
        {"api": "#!/bin/sh\nexit 1\n"},
        rf"systemctl: .*{UNIT}",
    ),
}
AFTER_IT = {
    "a resolver that never takes over": (
        {"resolver": launcher("resolver", "export TAP_LIVE_LINK=/opt/app/never")},
        r"resolver has not taken over within 10 s: standing by",
    ),
    "a service that dies when it is live": (
        {"api": launcher("api", "(live; sleep 1; kill -KILL $$) &")},
        rf"{UNIT} (is|had to be restarted)|api does not answer|the site (is|does)",
    ),
    "a service that hangs when it is live": (
        {"ws": launcher("ws", "(live; sleep 1; kill -STOP $$) &")},
        r"ws does not answer any more|the site does not answer",
    ),
}


@pytest.fixture
def bad(another: Path, tmp_path: Path) -> Callable[..., Path]:
    """An artifact of another build with other files in it."""
    return lambda changes: repack(another, tmp_path / another.name, changes)


@pytest.mark.parametrize("fault", [*BEFORE_THE_SWITCH, *AFTER_IT])
def test_a_release_that_does_not_work_is_taken_back(
    fault: str, deploy: Run, live: str, bad: Callable[..., Path], serving: Any, host: Host,
    measured: Callable[[str], None],
) -> None:  # fmt: skip
    changes, says = (BEFORE_THE_SWITCH | AFTER_IT)[fault]
    artifact = bad(changes)
    version = version_of(artifact)
    # A process that dies or hangs while it is the live one takes its connections along.
    with serving(perfect=fault in BEFORE_THE_SWITCH):
        said = sentence(deploy(artifact))
    measured(f"{fault}: {said}")
    assert re.match(rf"release: {re.escape(version)} does not work: ({says})", said)
    assert f"; {live} is live" in said
    [last] = map(json.loads, host.check_output("tail -n 1 /opt/app/releases.jsonl").splitlines())
    assert (last["what"], last["version"]) == ("deploy", version)
    assert last["failed"].endswith(f"; {live} is live")


def test_a_migration_that_fails_changes_nothing(
    deploy: Run, live: str, tmp_path: Path, machine: Machine, host: Host, serving: Any,
    measured: Callable[[str], None],
) -> None:  # fmt: skip
    wrong = "CREATE TABLE half (id INTEGER) STRICT;\nINSERT INTO nowhere VALUES (1);\n"
    folder = "app/src/tap_trading/ledger/schema"
    name = f"{len(list((ROOT / folder).glob('*.sql'))) + 1:03d}_wrong.sql"
    bad = build(tmp_path / "checkout", {f"{folder}/{name}": wrong})
    schema = "sqlite3 -readonly /data/bets.db .schema"
    before = host.check_output(schema)
    with serving():
        said = sentence(deploy(bad))
    measured(f"a migration that fails: {said}")
    machine.run(f"rm -rf '/opt/app/releases/{version_of(bad)}'")
    assert f"{name} failed and changed nothing: " in said
    assert "no such table" in said
    assert f"; {live} is live" in said
    assert host.check_output(schema) == before
    kept = host.check_output("ls /data/backups/before-migrations").splitlines()
    assert [name for name in kept if name.startswith("bets")]


@pytest.fixture
def little_room(machine: Machine) -> Iterator[str]:
    """The folder of the snapshots as a file system of 100 MB."""
    folder = "/data/backups"
    machine.run(
        f"mount -t tmpfs -o size=100M,mode=750,uid=$(id -u app),gid=$(id -g app) tmpfs {folder}"
    )
    yield folder
    machine.run(f"umount {folder}")


def test_a_full_disk_stops_a_deployment_before_it_begins(
    deploy: Run, live: str, another: Path, little_room: str, serving: Any, host: Host
) -> None:
    with serving():
        said = sentence(deploy(another))
    assert re.fullmatch(
        rf"{little_room} has 10[0-9] MB free, a deployment needs 500 MB; nothing was deployed\.",
        said,
    ), said
    assert not host.file(f"/opt/app/releases/{version_of(another)}").exists


def test_somebody_elses_lock_is_respected_until_it_is_ended(
    deploy: Run, playbook: Run, live: str, machine: Machine, host: Host, another: Path
) -> None:
    machine.run(f"/opt/app/scripts/release --by=ada@desk begin {version_of(another)}")
    said = sentence(deploy(another))
    assert re.fullmatch(
        rf"ada@desk has locked deployments since \S+Z \(deploy {re.escape(version_of(another))}\);"
        r" the lock ends at \S+Z, or with playbooks/unlock\.yml; nothing was deployed\.",
        said,
    ), said
    assert "ada@desk has locked deployments" in sentence(playbook("rollback.yml"))
    ended = playbook("unlock.yml")
    assert ended.returncode == 0, ended.stdout
    assert "changed=1" in ended.stdout
    assert "ada@desk" in ended.stdout
    assert "changed=0" in playbook("unlock.yml").stdout
    again = deploy(ARTIFACT)
    assert again.returncode == 0, again.stdout
    assert "changed=0" in again.stdout
