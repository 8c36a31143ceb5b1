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
from e2e.site.releases import ARTIFACT, launcher, repack, sentence, version_of

pytestmark = pytest.mark.units("tap-trading-*", "nginx")
BETS_PER_S, SOCKETS = 500, 1000
BACK_WITHIN_S = 5
PRICE_GAP_S = 1
PORTS = (8080, 8081, 8090, 8091)
SERVICES = ("api", "ws", "price", "resolver")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def first() -> str:
    """The release that the machine was made with."""
    return version_of(ARTIFACT)


def is_live(version: str, before: str, host: Host, site: Any) -> None:
    """This release and no other, under every name."""
    assert host.check_output("readlink /opt/app/current") == f"releases/{version}"
    assert host.check_output("readlink /opt/app/previous") == f"releases/{before}"
    colours = {
        colour: host.run(f"readlink /opt/app/{colour}").stdout.strip()
        for colour in ("blue", "green")
    }
    [live] = [colour for colour, link in colours.items() if link == f"releases/{version}"]
    [idle] = {"blue", "green"} - {live}
    assert colours[idle] == ""
    for service in SERVICES:
        shown = host.check_output(
            f"systemctl show --property=Id,ActiveState tap-trading-{service}"
        ).splitlines()
        assert shown == [f"Id=tap-trading-{service}-{live}.service", "ActiveState=active"]
        assert host.run(f"systemctl is-active tap-trading-{service}-{idle}").stdout == "inactive\n"
    for port in PORTS:
        assert site.get(f"http://127.0.0.1:{port}/version").json["version"] == version
    assert site.get("http://127.0.0.1/api/version").json["version"] == version
    assert not host.file("/opt/app/deployment.json").exists
    assert not host.file("/opt/app/deployment.lock").exists


def records(host: Host, number: int) -> list[dict[str, Any]]:
    """The last lines of what the machine remembers of its releases."""
    return [
        json.loads(line)
        for line in host.check_output(f"tail -n {number} /opt/app/releases.jsonl").splitlines()
    ]


@pytest.fixture(scope="module")
def under_load(machine: Machine, another: Path, third: Path) -> Iterator[ExitStack]:
    """From here on many bet and look on, until `load` is asked for its report."""
    machine.run(f"rm -rf /opt/app/releases/{version_of(another)}")  # of a run before
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def load(under_load: ExitStack, machine: Machine) -> Load:
    return under_load.enter_context(load_on(machine.name, rate=BETS_PER_S, sockets=SOCKETS))


def test_another_release_goes_live(
    load: Load, deploy: Run, first: str, another: Path, host: Host, site: Any
) -> None:
    load.mark("deploy")
    done = deploy(another)
    assert done.returncode == 0, done.stdout
    is_live(version_of(another), first, host, site)


def test_one_that_does_not_take_over_is_taken_back(
    load: Load, deploy: Run, first: str, another: Path, third: Path, tmp_path: Path, host: Host,
    site: Any, measured: Callable[[str], None],
) -> None:  # fmt: skip
    never = {"resolver": launcher("resolver", "export TAP_LIVE_LINK=/opt/app/never")}
    artifact = repack(third, tmp_path / "broken.tar.gz", never)
    load.mark("broken")
    said = sentence(deploy(artifact))
    measured(f"a deploy that is taken back: {said}")
    assert said.startswith(
        f"release: {version_of(third)} does not work: resolver has not taken over within 10 s"
    )
    assert f"; {version_of(another)} is live" in said
    is_live(version_of(another), first, host, site)


def test_the_first_one_comes_back(
    load: Load, playbook: Run, first: str, another: Path, host: Host, site: Any
) -> None:
    load.mark("rollback")
    done = playbook("rollback.yml")
    assert done.returncode == 0, done.stdout
    load.mark("after")
    is_live(first, version_of(another), host, site)


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
    host: Host, first: str, another: Path, third: Path, measured: Callable[[str], None]
) -> None:
    second = version_of(another)
    installed, deployed, installed_too, failed, back = records(host, 5)
    measured(f"switches: {deployed['switch_s']} s, back {back['switch_s']} s")
    assert (installed["what"], installed["version"]) == ("install", second)
    assert (deployed["what"], deployed["version"], deployed["previous"]) == (
        "deploy", second, first,
    )  # fmt: skip
    assert (installed_too["what"], installed_too["version"]) == ("install", version_of(third))
    assert (failed["what"], failed["version"]) == ("deploy", version_of(third))
    assert "resolver has not taken over" in failed["failed"]
    assert (back["what"], back["version"], back["previous"]) == ("rollback", first, second)
    for record in (deployed, back):
        assert 0 < record["switch_s"] < 2
        assert record["took_s"] > record["switch_s"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", record["switched_at"])
        assert "@" in record["by"]


def test_deploying_the_live_release_again_changes_nothing(
    deploy: Run, first: str, another: Path, host: Host, site: Any
) -> None:
    units = " ".join(f"tap-trading-{name}.service" for name in SERVICES)
    shown = f"systemctl show --property=MainPID --value {units}"
    before, log = host.check_output(shown), host.file("/opt/app/releases.jsonl").content
    done = deploy(ARTIFACT)
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert host.check_output(shown) == before
    assert host.file("/opt/app/releases.jsonl").content == log
    is_live(first, version_of(another), host, site)
