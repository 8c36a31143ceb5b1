"""One release after another, forth and back, while many bet and look on: nobody can tell."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from bench.under_load import Load, broken, load_on
from e2e.site.machine import Machine
from e2e.site.releases import ARTIFACT, build, launcher, repack, sentence, version_of

pytestmark = pytest.mark.units("tap-trading-*", "nginx")
BETS_PER_S, SOCKETS = 500, 1000
BACK_WITHIN_S = 5
PRICE_GAP_S = 1
SERVICES = ("api", "ws", "price", "resolver")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def first() -> str:
    """The release that the machine was made with."""
    return version_of(ARTIFACT)


@pytest.fixture
def is_live(live_release: Callable[[], str], host: Host) -> Callable[[str, str], None]:
    """This release and no other is live, and a rollback goes to that one."""

    def check(version: str, before: str) -> None:
        assert live_release() == version
        assert host.check_output("readlink /opt/app/previous") == f"releases/{before}"

    return check


def records(host: Host, number: int) -> list[dict[str, Any]]:
    """The last lines of what the machine remembers of its releases."""
    return [
        json.loads(line)
        for line in host.check_output(f"tail -n {number} /opt/app/releases.jsonl").splitlines()
    ]


@pytest.fixture(scope="module")
def broken_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a third build, whose resolver waits for ever."""
    folder = tmp_path_factory.mktemp("third")
    third = build(folder / "checkout", {"app/src/tap_trading/__init__.py": "# a third build\n"})
    never = {"resolver": launcher("resolver", "export TAP_LIVE_LINK=/opt/app/never")}
    return repack(third, folder / third.name, never)


@pytest.fixture(scope="module")
def under_load(machine: Machine, another: Path, broken_one: Path) -> Iterator[ExitStack]:
    """Ends the load. What takes a while is done before it begins."""
    for artifact in (another, broken_one):
        machine.run(f"rm -rf /opt/app/releases/{version_of(artifact)}")  # of a run before
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def load(under_load: ExitStack, machine: Machine) -> Load:
    return under_load.enter_context(load_on(machine.name, rate=BETS_PER_S, sockets=SOCKETS))


def test_another_release_goes_live(
    load: Load, deploy: Run, first: str, another: Path, is_live: Any
) -> None:
    load.mark("deploy")
    done = deploy(another)
    assert done.returncode == 0, done.stdout
    is_live(version_of(another), first)


def test_one_that_does_not_take_over_is_taken_back(
    load: Load, deploy: Run, broken_one: Path, first: str, another: Path, is_live: Any,
    measured: Callable[[str], None],
) -> None:  # fmt: skip
    load.mark("broken")
    said = sentence(deploy(broken_one))
    measured(f"a deploy that is taken back: {said}")
    assert said.startswith(
        f"release: {version_of(broken_one)} does not work: resolver has not taken over within 10 s"
    )
    assert f"; {version_of(another)} is live" in said
    is_live(version_of(another), first)


def test_the_first_one_comes_back(
    load: Load, playbook: Run, first: str, another: Path, is_live: Any
) -> None:
    load.mark("rollback")
    done = playbook("rollback.yml")
    assert done.returncode == 0, done.stdout
    load.mark("after")
    is_live(first, version_of(another))


def test_nobody_could_tell(
    load: Load, under_load: ExitStack, measured: Callable[[str], None]
) -> None:
    under_load.close()
    for name, seen in load.report["phases"].items():
        measured(f"{name}: {seen}")
    sockets = load.report["sockets"]
    assert not broken(load.report), load.report
    assert sockets["slowest_return_s"] <= BACK_WITHIN_S
    assert sockets["longest_gap_with_greetings_s"] <= PRICE_GAP_S


def test_every_change_is_on_record(
    host: Host, first: str, another: Path, broken_one: Path, measured: Callable[[str], None]
) -> None:
    second = version_of(another)
    installed, deployed, installed_too, failed, back = records(host, 5)
    measured(f"switches: {deployed['switch_s']} s, back {back['switch_s']} s")
    assert (installed["what"], installed["version"]) == ("install", second)
    assert (deployed["what"], deployed["version"], deployed["previous"]) == (
        "deploy", second, first,
    )  # fmt: skip
    assert (installed_too["what"], installed_too["version"]) == ("install", version_of(broken_one))
    assert (failed["what"], failed["version"]) == ("deploy", version_of(broken_one))
    assert "resolver has not taken over" in failed["failed"]
    assert (back["what"], back["version"], back["previous"]) == ("rollback", first, second)
    for record in (deployed, back):
        assert 0 < record["switch_s"] < 2
        assert record["took_s"] > record["switch_s"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", record["switched_at"])
        assert "@" in record["by"]


def test_deploying_the_live_release_again_changes_nothing(
    deploy: Run, first: str, another: Path, host: Host, is_live: Any
) -> None:
    units = " ".join(f"tap-trading-{name}.service" for name in SERVICES)
    shown = f"systemctl show --property=MainPID --value {units}"
    before, log = host.check_output(shown), host.file("/opt/app/releases.jsonl").content
    done = deploy(ARTIFACT)
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert host.check_output(shown) == before
    assert host.file("/opt/app/releases.jsonl").content == log
    is_live(first, version_of(another))
