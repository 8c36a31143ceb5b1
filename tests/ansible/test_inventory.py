"""group_vars really apply, for both inventories and for a copy made as README.md says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
GROUP_VARS: dict[str, Any] = yaml.safe_load((REPOSITORY / "group_vars/all.yml").read_text())
HOSTS = {"local": "tap-vm", "production": "tap-1"}


@pytest.mark.parametrize("inventory", HOSTS)
def test_group_vars_apply(inventory: str) -> None:
    host = HOSTS[inventory]
    own = own_settings(REPOSITORY / "inventory" / inventory, host)
    seen = host_variables(REPOSITORY / "inventory" / inventory, host)
    for name, value in (GROUP_VARS | own).items():
        assert seen.get(name) == value, f"{name} of group_vars/all.yml does not reach {host}"


@pytest.mark.parametrize("inventory", HOSTS)
def test_the_playbooks_group_holds_the_host(inventory: str) -> None:
    listed = ansible_inventory(REPOSITORY / "inventory" / inventory, "--list")
    assert listed["tap_trading"]["hosts"] == [HOSTS[inventory]]


def test_a_copy_of_the_example_keeps_its_group_vars(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "group_vars", tmp_path / "group_vars")
    (tmp_path / "inventory").mkdir()
    copy = tmp_path / "inventory/mysite"
    subprocess.run(["cp", "-a", REPOSITORY / "inventory/production", copy], check=True)
    assert host_variables(copy, "tap-1").items() >= GROUP_VARS.items()


def test_only_the_local_inventory_lowers_the_minimums() -> None:
    def lowered(inventory: str) -> list[str]:
        seen = host_variables(REPOSITORY / "inventory" / inventory, HOSTS[inventory])
        return [name for name in seen if name.startswith("preflight_min_")]

    assert lowered("local")
    assert not lowered("production")


@pytest.mark.parametrize("inventory", HOSTS)
def test_every_setting_is_one_that_a_role_knows(inventory: str) -> None:
    known = {
        name
        for defaults in REPOSITORY.glob("roles/*/defaults/main.yml")
        for name in yaml.safe_load(defaults.read_text()) or {}
    }
    seen = host_variables(REPOSITORY / "inventory" / inventory, HOSTS[inventory])
    unknown = [name for name in seen if name not in known and not name.startswith("ansible_")]
    assert not unknown, f"no role knows {unknown}"


def test_no_secret_stands_in_clear() -> None:
    words = ("password", "passphrase", "secret", "token", "private_key:")
    for file in [*REPOSITORY.glob("inventory/*/**/*.yml"), *REPOSITORY.glob("group_vars/**/*.yml")]:
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            setting = line.split("#", 1)[0].lower()
            assert not any(word in setting for word in words), f"{file}:{number}: {line}"


def own_settings(inventory: Path, host: str) -> dict[str, Any]:
    return yaml.safe_load((inventory / f"host_vars/{host}.yml").read_text()) or {}


def host_variables(inventory: Path, host: str) -> dict[str, Any]:
    return ansible_inventory(inventory, "--host", host)


def ansible_inventory(inventory: Path, *arguments: str) -> dict[str, Any]:
    command = [Path(sys.executable).with_name("ansible-inventory"), "-i", inventory, *arguments]
    # Away from the repository, so that only what lies beside the inventory can apply.
    environment = {name: value for name, value in os.environ.items() if name != "ANSIBLE_CONFIG"}
    ran = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)
