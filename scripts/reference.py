#!/usr/bin/env python3
"""Writes the reference pages from the code: `make docs`.

docs/settings.md     every setting of the services, from tap_trading.base.config
docs/variables.md    every variable of the roles, from roles/*/meta/argument_specs.yml,
                     and what group_vars and the local machine set
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "app" / "src"))

from tap_trading.base import config

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = (
    "<!-- Written by scripts/reference.py (make docs); changes made here are overwritten. -->\n"
)

SETTINGS_HEAD = """\
# Settings of the services

api, ws, price, resolver and the ops tool `tap` read these from their environment at start-up. An
unknown `TAP_…` name or a wrong value stops them with one sentence that names it (exit code 78).

On the machine they stand in `/etc/tap-trading/app.env`, which the role `services` writes: set the
role's variable in an inventory ([variables.md](variables.md)) and run `playbooks/provision.yml`.
Those of the backups stand in `/etc/tap-trading/backup.env`, which the role `backup` writes and no
service reads.
`tap settings` shows what is in force. `make dev` takes all but the fixed ones from its own
environment; `make up` takes `TAP_PRICE_SOURCE`, `TAP_REPLAY_FILE` and `TAP_REPLAY_SPEED`.
"""

VARIABLES_HEAD = """\
# Variables of the roles

What an op may set in an inventory: for all machines in `group_vars/all.yml`, for one in
`host_vars/<machine>.yml`, for one run with `-e`. A name no role knows, or a value of the wrong
type, is refused before anything is changed.
"""

#: What the machine's settings stand in, by the role that writes it.
ENVIRONMENT_FILES = (("services", "app.env.j2"), ("backup", "backup.env.j2"))

_MARKUP = re.compile(r"\b[BCEILMOPUV]\(([^()]*)\)")


def pages() -> dict[Path, str]:
    """Every page with its content."""
    return {
        ROOT / "docs" / "settings.md": settings_page(),
        ROOT / "docs" / "variables.md": variables_page(),
    }


def settings_page() -> str:
    """The settings, in the order of the class that defines them."""
    places = set_where()
    rows = [
        (
            f"`{field.alias}`",
            kind_of(field),
            code(shown(field.default)) or "(empty)",
            field.description or "",
            places[str(field.alias)],
        )
        for field in config.Settings.model_fields.values()
    ]
    head = ("setting", "type", "default", "meaning", "set on the machine by")
    return f"{WRITTEN}{SETTINGS_HEAD}\n{table(head, rows)}"


def set_where() -> dict[str, str]:
    """What a role puts into each setting: a variable's name, or a fixed value."""
    found = {}
    for role, template in ENVIRONMENT_FILES:
        folder = ROOT / "roles" / role
        private = yaml.safe_load((folder / "vars/main.yml").read_text())
        for line in (folder / "templates" / template).read_text().splitlines():
            if match := re.fullmatch(r"([A-Z0-9_]+)='?(.*?)'?", line):
                name, value = match.groups()
                variables = re.findall(rf"\b_?{role}_\w+", value)
                if variables and variables[0].startswith("_"):
                    variables = re.findall(rf"\b{role}_\w+", private[variables[0]])
                found[name] = f"`{variables[0]}`" if variables else f"fixed: {code(value)}"
    for line in (ROOT / "roles/services/templates/service.j2").read_text().splitlines():
        if match := re.fullmatch(r"Environment=(TAP_[A-Z_]+)=(.*)", line):
            name, value = match.groups()
            found[name] = f"the unit: {code(re.sub(r'{{ colour }}', 'blue|green', value))}"
    return found


def kind_of(field: FieldInfo) -> str:
    """The type of a setting and its limits, in words."""
    words = type_words(field.annotation, field.metadata)
    lower, upper = limits(field.metadata)
    return f"{words}{range_words(lower, upper)}"


def type_words(annotation: Any, metadata: list[Any]) -> str:
    """A type in words."""
    if get_origin(annotation) is Literal:
        return ", ".join(code(choice) or "empty" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        (inner, *_) = get_args(annotation)
        base, *inside = get_args(inner)
        nested = [item for one in inside for item in getattr(one, "metadata", [one])]
        words = "names" if base is str else f"{type_words(base, [])}s"
        if inner == config.Origin:
            words = "web origins"
        return f"{words}, separated by commas{range_words(*limits(nested))}"
    if get_origin(annotation) in (Union, UnionType):
        (inner,) = (one for one in get_args(annotation) if one is not type(None))
        return f"{type_words(inner, metadata)}, or empty"
    if annotation is config.Address:
        tcp_only = get_args(config.TcpAddress)[1] in metadata
        return "`HOST:PORT`" if tcp_only else "`HOST:PORT` or `unix:/path`"
    return {int: "whole number", float: "number", Path: "path", str: "text"}[annotation]


def limits(metadata: list[Any]) -> tuple[str, str]:
    """The least and the largest value that validation lets pass, as words; "" without one."""
    lower = upper = ""
    for item in metadata:
        match item:
            case annotated_types.Ge(ge=value):
                lower = f"from {number(value)}"
            case annotated_types.Gt(gt=value):
                lower = f"above {number(value)}"
            case annotated_types.Le(le=value):
                upper = f"to {number(value)}"
            case _:
                pass
    return lower, upper


def range_words(lower: str, upper: str) -> str:
    """`, from 1 to 9`, or nothing."""
    words = " ".join(word for word in (lower, upper) if word)
    return f", {words}" if words else ""


def number(value: Any) -> str:
    """A number with its thousands apart."""
    return f"{value:,}"


def shown(value: object) -> str:
    """A default as it would stand in the environment."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def variables_page() -> str:
    """The variables by role, in the order in which the playbooks run the roles."""
    parts = [WRITTEN + VARIABLES_HEAD]
    roles = in_order()
    parts.append("Roles: " + ", ".join(f"[{role}](#{role})" for role in roles) + ".\n")
    parts.append("## Set for all machines\n\n`group_vars/all.yml` says:\n")
    parts.append(chosen_table(ROOT / "group_vars/all.yml"))
    parts.append("The local machine (`inventory/local/host_vars/tap-vm.yml`) differs in:\n")
    parts.append(chosen_table(ROOT / "inventory/local/host_vars/tap-vm.yml"))
    for role in roles:
        specification = yaml.safe_load(
            (ROOT / "roles" / role / "meta/argument_specs.yml").read_text()
        )
        main = specification["argument_specs"]["main"]
        parts.append(f"## {role}\n\n{sentence(main['short_description'])}\n")
        rows = list(option_rows(main.get("options", {})))
        if rows:
            parts.append(table(("variable", "type", "default", "meaning"), rows))
        else:
            parts.append("It has no variables.\n")
    return "\n".join(parts)


def in_order() -> list[str]:
    """The roles that have variables or a specification, as the playbooks name them."""
    known = {path.parents[1].name for path in ROOT.glob("roles/*/meta/argument_specs.yml")}
    named = [
        role["role"]
        for name in ("provision", "deploy")
        for play in yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text())
        for role in play.get("roles", [])
    ]
    return [*(role for role in named if role in known), *sorted(known - set(named))]


def option_rows(
    options: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    """A row for each option and, after it, for each option inside it."""
    for name, option in options.items():
        kind = option["type"]
        if "elements" in option:
            kind = f"{kind} of {option['elements']}"
        if "choices" in option:
            kind += ": " + ", ".join(code(choice) or "empty" for choice in option["choices"])
        default = code(value_words(option["default"])) if "default" in option else "(none)"
        if option.get("required"):
            default = "(required)"
        yield f"`{prefix}{name}`", kind, default, description(option["description"])
        yield from option_rows(option.get("options", {}), f"{prefix}{name}.")


def description(text: str | list[str]) -> str:
    """A description as one paragraph, its markup as Markdown."""
    whole = " ".join(text) if isinstance(text, list) else text
    return sentence(_MARKUP.sub(r"`\1`", whole))


def sentence(text: str) -> str:
    """The text on one line, with a full stop."""
    words = " ".join(text.split())
    return words if words.endswith((".", "!", "?")) else f"{words}."


def chosen_table(path: Path) -> str:
    """What a file of variables sets, with the comment above each."""
    values = yaml.safe_load(path.read_text()) or {}
    rows = [
        (f"`{name}`", code(value_words(value)), comment_above(path, name))
        for name, value in values.items()
    ]
    return table(("variable", "value", "why"), rows)


def comment_above(path: Path, name: str) -> str:
    """The comment lines directly above a variable."""
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith(f"{name}:"))
    comment: list[str] = []
    for line in reversed(lines[:end]):
        if not line.startswith("#"):
            break
        comment.insert(0, line.removeprefix("#").strip())
    return " ".join(comment)


def value_words(value: Any) -> str:
    """A value as YAML would have it on one line."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def code(text: object) -> str:
    """The text in a code span; nothing for an empty text."""
    return f"`{text}`" if str(text) else ""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n"
        for line in lines
    )


def main() -> None:
    """Command line."""
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
