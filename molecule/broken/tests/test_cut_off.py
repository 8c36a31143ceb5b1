"""Deployments that are cut off: whoever asked is killed, the work itself is, or the machine goes
down. Something is live at every moment, and the next one to come ends it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from e2e.site.machine import ROOT, Machine
from e2e.site.releases import ARTIFACT, sentence, version_of

pytestmark = pytest.mark.units("tap-trading-*")
Run = Callable[..., "subprocess.CompletedProcess[str]"]
STAGES = {
    "locked": "test -e /opt/app/deployment.lock",
    "uploaded": "test -e /opt/app/releases/.upload.tar.gz",
    "installing": "ls -d /opt/app/releases/.incoming-*/release/venv",
    # What has nothing to migrate has migrated in an instant.
    "begun": "test -e /opt/app/deployment.json",
    "migrated": 'grep "stage.*migrated\\"" /opt/app/deployment.json',
    "ready": 'grep "stage.*ready\\"" /opt/app/deployment.json',
    "switched": 'grep "stage.*switched\\"" /opt/app/deployment.json',
}
SEEN_WITHIN_S = 90
ENDED_WITHIN_S = 120


class Controller:
    """A deploy in a process group of its own, and a look at how far it is."""

    def __init__(self, machine: Machine, inventory: str) -> None:
        self._machine, self._inventory = machine, inventory
        self._process: subprocess.Popen[str] | None = None

    def deploy_until(self, stage: str, artifact: Path) -> None:
        """Begin to deploy, and see it reach this stage."""
        look = (
            f"echo looking; for i in $(seq {SEEN_WITHIN_S * 50}); do"
            f" {STAGES[stage]} >/dev/null 2>&1 && exit 0; sleep 0.02; done; exit 1"
        )
        seen = subprocess.Popen(
            ["ssh", "-F", self._machine.ssh_config, self._machine.name, f"sudo sh -c '{look}'"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert seen.stdout
        assert seen.stdout.readline() == "looking\n"
        program = Path(sys.executable).with_name("ansible-playbook")
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE_"))}
        self._process = subprocess.Popen(
            [
                *(program, "-i", self._inventory, "playbooks/deploy.yml"),
                *("-e", f"release_artifact={artifact}", "-e", "release_watch_s=3"),
            ],
            cwd=ROOT,
            env=plain,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        reached = seen.wait(SEEN_WITHIN_S + 30)
        seen.stdout.close()
        assert reached == 0, f"it is not {stage}"

    def kill(self) -> None:
        """Kill it and everything it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate(timeout=30)
            self._process = None

    def wait(self) -> "subprocess.CompletedProcess[str]":
        """What it says in the end."""
        assert self._process is not None
        said, _ = self._process.communicate(timeout=ENDED_WITHIN_S)
        code, self._process = self._process.returncode, None
        return subprocess.CompletedProcess([], code, said)


@pytest.fixture
def controller(machine: Machine, inventory: str) -> Iterator[Controller]:
    made = Controller(machine, inventory)
    yield made
    made.kill()


@dataclass(frozen=True)
class Wanted:
    """What is to be deployed, and what was live before."""

    artifact: Path
    before: str

    @property
    def version(self) -> str:
        """Its version."""
        return version_of(self.artifact)


@pytest.fixture
def target(live_release: Callable[[], str], another: Path, machine: Machine) -> Wanted:
    """A release that is not live, and not installed yet."""
    before = live_release()
    wanted = Wanted(ARTIFACT if before == version_of(another) else another, before)
    machine.run(f"cd /opt/app && rm -rf previous 'releases/{wanted.version}'")
    return wanted


@pytest.fixture
def after(live_release: Callable[[], str], place_bet: Any) -> Callable[[str], None]:
    """This version is live now, and takes bets."""

    def check(version: str) -> None:
        assert live_release() == version
        assert place_bet().status == 202

    return check


def again(run: Callable[[], "subprocess.CompletedProcess[str]"]) -> None:
    """Run it until nothing of what was cut off is at work any more; who is at work is told."""
    end = time.monotonic() + ENDED_WITHIN_S
    while (done := run()).returncode != 0:
        assert "another deployment is under way on this machine" in sentence(done), done.stdout
        assert time.monotonic() < end, done.stdout
        time.sleep(1)


@pytest.mark.parametrize(
    "stage", ["locked", "uploaded", "installing", "begun", "ready", "switched"]
)
def test_the_same_deploy_again_ends_one_whose_controller_was_killed(
    stage: str, controller: Controller, target: Wanted, deploy: Run, serving: Any,
    after: Callable[[str], None],
) -> None:  # fmt: skip
    with serving():
        controller.deploy_until(stage, target.artifact)
        controller.kill()
        again(lambda: deploy(target.artifact))
    after(target.version)


def test_recovering_ends_a_deployment_whose_controller_was_killed(
    controller: Controller,
    target: Wanted,
    playbook: Run,
    serving: Any,
    after: Callable[[str], None],
) -> None:
    with serving():
        controller.deploy_until("begun", target.artifact)
        controller.kill()
        again(lambda: playbook("recover.yml"))
    # The machine went on with it by itself.
    after(target.version)


@pytest.mark.parametrize("stage", ["migrated", "switched"])
def test_recovering_ends_a_deployment_that_was_killed_itself(
    stage: str, controller: Controller, target: Wanted, playbook: Run, serving: Any,
    after: Callable[[str], None], machine: Machine,
) -> None:  # fmt: skip
    with serving():
        controller.deploy_until(stage, target.artifact)
        machine.run("systemctl kill --signal=KILL tap-trading-deployment")
        said = sentence(controller.wait())
        done = playbook("recover.yml")
        assert done.returncode == 0, done.stdout
    assert "the deployment was cut off" in said
    assert "end it with playbooks/recover.yml" in said
    after(target.version if stage == "switched" else target.before)


@pytest.mark.parametrize("stage", ["migrated", "switched"])
def test_a_machine_that_goes_down_ends_the_deployment_when_it_is_up_again(
    stage: str, controller: Controller, target: Wanted, host: Host, machine: Machine,
    after: Callable[[str], None],
) -> None:  # fmt: skip
    controller.deploy_until(stage, target.artifact)
    machine.restart()
    controller.kill()
    machine.run(
        f"for i in $(seq {ENDED_WITHIN_S * 5}); do test -e /opt/app/deployment.json || exit 0;"
        " sleep 0.2; done; systemctl status tap-trading-recover; exit 1",
        timeout=ENDED_WITHIN_S + 30,
    )
    record = host.check_output("tail -n 1 /opt/app/releases.jsonl")
    assert '"by": "boot", "what": "recover"' in record
    # Its lock ends with it: nobody has to wait.
    after(target.version if stage == "switched" else target.before)
