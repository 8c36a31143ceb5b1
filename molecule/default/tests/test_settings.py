"""The machine was provisioned with the settings an op gives, not with something like them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host

from e2e.site.machine import ROOT, Machine

GROUP_VARS: dict[str, Any] = yaml.safe_load((ROOT / "group_vars/all.yml").read_text())


@pytest.fixture
def settings(machine: Machine, inventory: str) -> dict[str, Any]:
    """What Ansible takes for this machine."""
    program = Path(sys.executable).with_name("ansible-inventory")
    shown = subprocess.run(
        [program, "-i", inventory, "--host", machine.name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(shown.stdout))


def test_they_are_those_of_production_but_for_the_machines_own(
    settings: dict[str, Any], machine: Machine, inventory: str
) -> None:
    own = yaml.safe_load((ROOT / "inventory/local/host_vars/tap-vm.yml").read_text())
    hosts = yaml.safe_load((ROOT / inventory / "hosts.yml").read_text())
    reached = hosts["all"]["children"]["tap_trading"]["hosts"][machine.name]
    site = {name: value for name, value in reached.items() if name.startswith("services_site_")}
    ours = {name: value for name, value in settings.items() if not name.startswith("ansible_")}
    assert ours == GROUP_VARS | own | site
    assert len(site) == 2


def test_group_vars_reached_the_machine(host: Host) -> None:
    thresholds = GROUP_VARS["disk_watch_thresholds"]
    watch = host.file("/etc/systemd/system/tap-trading-disk-watch.service").content_string
    for level, percent in thresholds.items():
        assert f"--{level} {percent} " in watch
    script = host.file("/opt/app/scripts/backup-hourly.sh").content_string
    assert f"--keep {GROUP_VARS['backup_keep']}" in script
