"""Renders a role's templates the way Ansible does, without a machine.

`render("nginx", "nginx.conf.j2", nginx_worker_connections=9)` takes the role's defaults and private
variables, lays the overrides over them and answers the text that would land on the machine.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).resolve().parents[2] / "roles"

# What a role may know of the machine; an override of `ansible_facts` replaces all of it.
FACTS = {
    "architecture": "x86_64",
    "distribution": "Debian",
    "distribution_major_version": "12",
    "distribution_release": "bookworm",
    "distribution_version": "12",
    "hostname": "tap-vm",
    "memtotal_mb": 8000,
    "os_family": "Debian",
    "processor_nproc": 4,
    "python_version": "3.11.2",
    "service_mgr": "systemd",
    "virtualization_role": "guest",
    "virtualization_tech_guest": ["kvm"],
    "virtualization_type": "kvm",
}


def render(role: str, template: str, **overrides: Any) -> str:
    """The text of roles/<role>/templates/<template> with the role's variables and these overrides."""
    folder = ROLES / role / "templates"
    templar = Templar(loader=DataLoader()).copy_with_new_env(
        searchpath=[str(folder)], available_variables=variables(role, **overrides)
    )
    source = (folder / template).read_text(encoding="utf-8")
    return str(templar.template(trust_as_template(source), escape_backslashes=False))


def evaluate(role: str, expression: str, **overrides: Any) -> Any:
    """The value of one of a role's variables, or of any expression over them."""
    templar = Templar(loader=DataLoader(), variables=variables(role, **overrides))
    return templar.template(trust_as_template("{{ " + expression + " }}"))


def accepts(role: str, task: str, **overrides: Any) -> bool:
    """Whether the `assert` of this name in the role's preflight holds."""
    path = ROLES / role / "tasks" / "preflight.yml"
    for found in DataLoader().load_from_file(str(path), trusted_as_template=True):
        if found["name"] == task:
            conditions = found["ansible.builtin.assert"]["that"]
            if isinstance(conditions, str):
                conditions = [conditions]
            named = found.get("vars", {}) | overrides
            return all(evaluate(role, condition, **named) for condition in conditions)
    raise LookupError(f"roles/{role}/tasks/preflight.yml has no task {task!r}")


def handles(role: str, handler: str, **overrides: Any) -> bool:
    """Whether the handler of this name does anything, once it is notified."""
    path = ROLES / role / "handlers" / "main.yml"
    for found in DataLoader().load_from_file(str(path), trusted_as_template=True):
        if found["name"] == handler:
            conditions = found.get("when", [])
            if isinstance(conditions, str):
                conditions = [conditions]
            return all(evaluate(role, condition, **overrides) for condition in conditions)
    raise LookupError(f"roles/{role}/handlers/main.yml has no handler {handler!r}")


def variables(role: str, **overrides: Any) -> dict[str, Any]:
    """A role's defaults and private variables, the overrides over them, and the facts."""
    trusted = {name: _trust(value) for name, value in overrides.items()}
    machine = {"ansible_facts": FACTS, "inventory_hostname": "tap-vm"}
    return machine | _declared(role) | trusted


@cache
def _declared(role: str) -> dict[str, Any]:
    _plugins()
    loader = DataLoader()
    found: dict[str, Any] = {}
    for folder in ("defaults", "vars"):
        path = ROLES / role / folder / "main.yml"
        if path.exists():
            found |= loader.load_from_file(str(path), trusted_as_template=True) or {}
    return found


@cache
def _plugins() -> None:
    init_plugin_loader()


def _trust(value: Any) -> Any:
    """An override may hold a template, like a value in an inventory."""
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, list):
        return [_trust(item) for item in value]
    if isinstance(value, dict):
        return {key: _trust(item) for key, item in value.items()}
    return value
