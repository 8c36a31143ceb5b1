"""The scripts behind `make up`, `deploy` and `down`, in a checkout whose path holds a space."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.conftest import ROOT


class Checkout:
    """Copies of some scripts, and stand-ins for the programs they call; `calls` has their words."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.bin = self.root / ".venv/bin"
        self.bin.mkdir(parents=True)
        (self.root / "scripts").mkdir()
        (self.root / ".vm").mkdir()
        self.program("python", f'exec "{shutil.which("python3")}" "$@"')
        self.program("sudo", 'shift; exec "$@"')

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def script(self, name: str) -> None:
        shutil.copy(ROOT / "scripts" / name, self.root / "scripts" / name)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", self.root / words[0], *words[1:]],
            cwd=self.root.parent,
            env={"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": "/root", **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


NOTES_ITS_VARIABLES = """
while [ $# -gt 0 ]; do [ "$1" != -e ] || printf '%s' "$2" >variables.json; shift; done
echo "tap-vm : ok=9 changed=3 unreachable=0"
"""


def test_deploy_hands_on_a_path_with_a_space(checkout: Checkout) -> None:
    checkout.script("deploy.sh")
    checkout.program("ansible-playbook", NOTES_ITS_VARIABLES)
    (checkout.root.parent / "my build.tar.gz").touch()
    done = checkout.run("scripts/deploy.sh", "my build.tar.gz", "--check")
    assert done.returncode == 0, done.stderr
    given = json.loads((checkout.root / "variables.json").read_text())
    assert given == {"release_artifact": str(checkout.root.parent / "my build.tar.gz")}


@pytest.mark.parametrize("status", [200, 503])
def test_up_hands_on_paths_and_tells_health(checkout: Checkout, status: int) -> None:
    checkout.script("up.sh")
    checkout.program("ansible-playbook", NOTES_ITS_VARIABLES)
    checkout.program("curl", f"echo said; exit {0 if status == 200 else 22}")
    for name in ("prerequisites.sh", "vm.sh"):
        path = checkout.root / "scripts" / name
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    (checkout.root / "scripts/build.py").write_text('print("dist/x.tar.gz")')
    (checkout.root.parent / "two days.csv").touch()
    done = checkout.run("scripts/up.sh", TAP_PRICE_SOURCE="replay", TAP_REPLAY_FILE="two days.csv")
    assert json.loads((checkout.root / "variables.json").read_text()) == {
        "release_artifact": str(checkout.root / "dist/x.tar.gz"),
        "services_price_source": "replay",
        "services_replay_file": str(checkout.root.parent / "two days.csv"),
    }
    assert "Health:  said" in done.stdout
    assert done.returncode == (0 if status == 200 else 1), done.stderr
    assert ("the site is not healthy" in done.stderr) is (status != 200)


PODMAN = """
echo "$*" >>podman.calls
case "$1 $2" in
  "container inspect") cat state 2>/dev/null || exit 1 ;;
  "rm --force") [ ! -e stuck ] || exit 125; rm -f state ;;
  "create --quiet") echo created >state ;;
  cp*) [ ! -e full ] || exit 125 ;;
  start*) echo running >state ;;
esac
"""


@pytest.fixture
def vm(checkout: Checkout) -> Checkout:
    checkout.script("vm.sh")
    checkout.program("podman", PODMAN)
    checkout.program("ssh", "exit 0")
    return checkout


#: Ports that nobody has here.
PORTS = {"TAP_VM_SSH_PORT": "47122", "TAP_VM_HTTP_PORT": "47180", "TAP_VM_HTTPS_PORT": "47143"}


def test_the_machines_keys_are_found_in_a_path_with_a_space(vm: Checkout) -> None:
    done = vm.run("scripts/vm.sh", "up", "m", **PORTS)
    assert done.returncode == 0, done.stderr
    read = subprocess.run(
        ["ssh", "-G", "-F", vm.root / ".vm/m/ssh_config", "m"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert f"identityfile {vm.root}/.vm/m/id_ed25519" in read
    assert f"userknownhostsfile {vm.root}/.vm/m/known_hosts" in read


def test_down_keeps_the_keys_of_a_machine_that_stays(vm: Checkout) -> None:
    vm.run("scripts/vm.sh", "up", "m", **PORTS)
    (vm.root / "stuck").touch()
    done = vm.run("scripts/vm.sh", "down", "m")
    assert done.returncode == 1
    assert "could not remove m" in done.stderr
    assert (vm.root / ".vm/m/id_ed25519").exists()
    (vm.root / "stuck").unlink()
    assert vm.run("scripts/vm.sh", "down", "m").returncode == 0
    assert not (vm.root / ".vm/m").exists()


def test_a_half_made_machine_is_removed(vm: Checkout) -> None:
    (vm.root / "full").touch()
    assert vm.run("scripts/vm.sh", "up", "m", **PORTS).returncode != 0
    assert not (vm.root / "state").exists()


def test_a_machine_that_never_ran_is_made_anew(vm: Checkout) -> None:
    (vm.root / "state").write_text("created\n")
    assert vm.run("scripts/vm.sh", "up", "m", **PORTS).returncode == 0
    calls = (vm.root / "podman.calls").read_text().splitlines()
    assert [line.split()[0] for line in calls if not line.startswith(("container", "image"))] == [
        "rm", "create", "cp", "cp", "start",
    ]  # fmt: skip
