"""Every role's argument specification says the same as its defaults, and says it in words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES_FOLDER = Path(__file__).parents[2] / "roles"
ROLES = sorted(folder.name for folder in ROLES_FOLDER.iterdir() if folder.is_dir())


def test_there_are_roles() -> None:
    assert ROLES, f"no roles in {ROLES_FOLDER}"


@pytest.mark.parametrize("role", ROLES)
def test_specification_and_defaults_name_the_same_variables(role: str) -> None:
    specified, defaults = options(role), role_defaults(role)
    assert sorted(specified) == sorted(defaults), (
        f"roles/{role}/meta/argument_specs.yml and roles/{role}/defaults/main.yml differ in "
        f"{sorted(set(specified) ^ set(defaults))}"
    )


@pytest.mark.parametrize("role", ROLES)
def test_specification_and_defaults_give_the_same_values(role: str) -> None:
    defaults = role_defaults(role)
    specified = {name: option.get("default") for name, option in options(role).items()}
    # Compared as JSON-like values with their types, since 1 == True and "1" may look alike.
    assert {name: typed(value) for name, value in specified.items()} == {
        name: typed(value) for name, value in defaults.items()
    }


@pytest.mark.parametrize("role", ROLES)
def test_every_option_is_described_and_typed(role: str) -> None:
    specification = argument_specification(role)
    assert specification.get("short_description"), f"{role} has no short_description"
    for name, option in all_options("", options(role)):
        assert option.get("description"), f"{role}: {name} has no description"
        assert option.get("type"), f"{role}: {name} has no type"
        if option["type"] == "list":
            assert option.get("elements"), f"{role}: {name} does not say what it is a list of"


@pytest.mark.parametrize("role", ROLES)
def test_public_variables_carry_the_roles_name_and_private_ones_an_underscore(role: str) -> None:
    for name in role_defaults(role):
        assert name.startswith(f"{role}_"), f"roles/{role}/defaults/main.yml: {name}"
    for name in load(role, "vars/main.yml"):
        assert name.startswith(f"_{role}_"), f"roles/{role}/vars/main.yml: {name}"


@pytest.mark.parametrize("role", ROLES)
def test_every_role_says_what_it_is_for(role: str) -> None:
    assert load(role, "meta/main.yml")["galaxy_info"]["description"]


def argument_specification(role: str) -> dict[str, Any]:
    return load(role, "meta/argument_specs.yml")["argument_specs"]["main"]


def options(role: str) -> dict[str, Any]:
    return argument_specification(role).get("options", {})


def role_defaults(role: str) -> dict[str, Any]:
    return load(role, "defaults/main.yml")


def all_options(prefix: str, found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The options and those inside them, by their full names."""
    listed = []
    for name, option in found.items():
        listed.append((prefix + name, option))
        listed += all_options(f"{prefix}{name}.", option.get("options", {}))
    return listed


def typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    return (type(value).__name__, value)


def load(role: str, path: str) -> dict[str, Any]:
    file = ROLES_FOLDER / role / path
    return (yaml.safe_load(file.read_text()) or {}) if file.exists() else {}
