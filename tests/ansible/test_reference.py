"""docs/settings.md and docs/variables.md say what the code says; so does the environment file."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import reference

from tap_trading.base import config
from tap_trading.base.config import SETTING_NAMES, Address, Settings
from templates.render import render

#: Settings that the machine fixes: paths, sockets and ports of the layout.
FIXED = {"DB_PATH", "REDIS_ADDR", "TAP_API_LISTEN", "TAP_WS_LISTEN", "TAP_PRICE_LISTEN"}


def environment(**overrides: Any) -> dict[str, str]:
    """What systemd and a shell read from the rendered file."""
    found = {}
    text = render("services", "app.env.j2", ansible_managed="Written by Ansible", **overrides)
    for line in text.splitlines():
        if line and not line.startswith("#"):
            (word,) = shlex.split(line)
            name, value = word.split("=", 1)
            assert name not in found, f"{name} stands there twice"
            found[name] = value
    return found


@pytest.mark.parametrize("path", reference.pages(), ids=lambda path: path.name)
def test_the_reference_is_up_to_date(path: Path) -> None:
    assert path.exists(), "run make docs"
    assert path.read_text() == reference.pages()[path], "run make docs"


def test_every_setting_is_documented_once() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|", reference.settings_page(), re.MULTILINE)
    assert tuple(rows) == SETTING_NAMES


def test_every_setting_and_its_default_is_in_words() -> None:
    for field in Settings.model_fields.values():
        assert field.description, field.alias
        assert field.description.endswith("."), field.alias
    assert "| `HOST:PORT` or `unix:/path` | `localhost:6379` |" in reference.settings_page()
    assert "| number, from 0 to 30 | `10.0` |" in reference.settings_page()


def test_every_role_and_variable_is_documented() -> None:
    page = reference.variables_page()
    for specification in reference.ROOT.glob("roles/*/meta/argument_specs.yml"):
        role = specification.parents[1].name
        assert f"\n## {role}\n" in page
        main = reference.yaml.safe_load(specification.read_text())["argument_specs"]["main"]
        for name in main.get("options", {}):
            assert page.count(f"\n| `{name}` |") >= 1, name
    assert "\n| `disk_watch_thresholds.warning` | int | `70` |" in page
    assert not re.search(r"\b[COVI]\([^)]*\)", page), "markup of Ansible is left"


def test_a_table_survives_what_stands_in_its_cells() -> None:
    assert reference.table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y z |\n"


def test_the_environment_file_names_exactly_the_settings() -> None:
    assert tuple(environment()) == SETTING_NAMES
    assert set(reference.set_where()) == set(SETTING_NAMES)


def test_the_rendered_settings_load_and_are_the_defaults() -> None:
    rendered, defaults = config.load(environment()), config.load({})
    for name, field in Settings.model_fields.items():
        if field.alias not in FIXED:
            assert getattr(rendered, name) == getattr(defaults, name), field.alias
    assert rendered.redis_addr == Address(path="/run/redis/redis-server.sock")
    assert rendered.db_path == Path("/data/bets.db")
    assert rendered.api_listen == Address("127.0.0.1", 8080)
    assert rendered.ws_listen == Address("127.0.0.1", 8081)
    assert rendered.price_listen == Address("127.0.0.1", 8090)


def test_overrides_reach_the_services() -> None:
    settings = config.load(
        environment(
            services_log_level="debug",
            services_redis_wait_s=3,
            services_allowed_origins=["https://a.example", "http://b.example:8080"],
            services_ws_max_clients=5,
            services_stakes=[7, 11],
            services_grid_width_s=10,
            services_grid_columns=6,
            services_grid_rows=4,
            services_price_source="replay",
            services_mock_seed=3,
            services_mock_start=500,
            services_replay_file="/home/op/recordings/two days.csv",
            services_replay_speed=2.5,
        )
    )
    assert settings.model_dump(by_alias=True, exclude=_fields(FIXED)) == {
        "LOG_LEVEL": "debug",
        "TAP_REDIS_WAIT_S": 3.0,
        "TAP_ALLOWED_ORIGINS": ("https://a.example", "http://b.example:8080"),
        "TAP_WS_MAX_CLIENTS": 5,
        "TAP_STAKES": (7, 11),
        "TAP_GRID_WIDTH_S": 10,
        "TAP_GRID_COLUMNS": 6,
        "TAP_GRID_ROWS": 4,
        "TAP_PRICE_SOURCE": "replay",
        "TAP_MOCK_SEED": 3,
        "TAP_MOCK_START": 500,
        "TAP_REPLAY_FILE": settings.replay_file,
        "TAP_REPLAY_SPEED": 2.5,
    }
    assert settings.replay_file is not None
    # On the machine, where the services may read it, and not where the op has it.
    assert settings.replay_file.parent == Path("/data/replay")


def test_a_quote_in_a_file_name_stays_inside_its_setting() -> None:
    """The file is read by systemd and, as root, by a shell."""
    name = "a day's $(trades).csv"
    found = environment(services_price_source="replay", services_replay_file=f"/home/op/{name}")
    assert found["TAP_REPLAY_FILE"].endswith(f"/{name}")


def _fields(aliases: set[str]) -> set[str]:
    return {name for name, field in Settings.model_fields.items() if field.alias in aliases}
