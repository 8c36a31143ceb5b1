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
FIXED = {
    *("DB_PATH", "PRICES_DB_PATH", "REDIS_ADDR", "TAP_METRICS_DIR", "TAP_ARCHIVE_DIR"),
    *("TAP_API_LISTEN", "TAP_WS_LISTEN", "TAP_PRICE_LISTEN", "TAP_RESOLVER_LISTEN"),
}
#: Settings of the copies, which no service reads.
OF_THE_BACKUP = [name for name in SETTING_NAMES if name.startswith(("TAP_S3_", "TAP_BACKUP_"))]
#: What tells the units of the two colours apart.
OF_THE_UNIT = {"TAP_LIVE_LINK", "TAP_RELEASE_LINK"}
#: Settings whose default depends on the machine.
OF_THE_MACHINE = {"TAP_SITE_DOMAIN", "TAP_SITE_URI"}


#: An off-machine storage, as an inventory has it.
STORAGE = {
    "backup_s3_bucket": "tap-copies",
    "backup_s3_endpoint": "https://s3.example.net",
    "backup_s3_region": "eu-central-1",
    "backup_s3_access_key_id": "it's me",
    "backup_s3_secret": "hidden",
    "backup_key": "A" * 43 + "=",
}


def environment(
    role: str = "services", file: str = "app.env.j2", **overrides: Any
) -> dict[str, str]:
    """What systemd and a shell read from the rendered file."""
    found = {}
    text = render(role, file, ansible_managed="Written by Ansible", **overrides)
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
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \|", reference.settings_page(), re.MULTILINE)
    assert tuple(rows) == SETTING_NAMES


def test_every_setting_and_its_default_is_in_words() -> None:
    for field in Settings.model_fields.values():
        assert field.description, field.alias
        assert field.description.endswith("."), field.alias
    assert "| `HOST:PORT` or `unix:/path` | `localhost:6379` |" in reference.settings_page()
    assert "| number, from 0 to 30 | `10.0` |" in reference.settings_page()
    assert "| web origins, separated by commas | (empty) |" in reference.settings_page()
    assert "| names, separated by commas | `coinbase," in reference.settings_page()
    assert "| empty, `binance` | `binance` |" in reference.settings_page()


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
    elsewhere = {*OF_THE_UNIT, *OF_THE_BACKUP}
    assert list(environment(services_disk_full_percent=90)) == [
        name for name in SETTING_NAMES if name not in elsewhere
    ]
    assert list(environment("backup", "backup.env.j2", **STORAGE)) == OF_THE_BACKUP
    assert environment("backup", "backup.env.j2") == {}
    assert set(reference.set_where()) == set(SETTING_NAMES)


def test_a_newer_setting_is_left_out_while_it_is_the_default() -> None:
    """So that a release that does not know it can be gone back to."""
    assert set(SETTING_NAMES) - set(environment()) == {
        *(*OF_THE_UNIT, *OF_THE_BACKUP),
        "TAP_DISK_FULL_PERCENT",
    }


def test_the_rendered_settings_load_and_are_the_defaults() -> None:
    rendered, defaults = config.load(environment()), config.load({})
    for name, field in Settings.model_fields.items():
        if field.alias not in FIXED | OF_THE_MACHINE:
            assert getattr(rendered, name) == getattr(defaults, name), field.alias
    assert rendered.redis_addr == Address(path="/run/redis/redis-server.sock")
    assert rendered.db_path == Path("/data/bets.db")
    assert rendered.prices_db_path == Path("/data/prices.db")
    assert rendered.metrics_dir == Path("/data/metrics")
    assert rendered.archive_dir == Path("/data/archive")
    assert rendered.api_listen == Address("127.0.0.1", 8080)
    assert rendered.ws_listen == Address("127.0.0.1", 8081)
    assert rendered.price_listen == Address("127.0.0.1", 8090)
    assert rendered.resolver_listen == Address("127.0.0.1", 8091)


def test_the_storage_of_the_copies_reaches_them_and_no_secret_does() -> None:
    given = environment("backup", "backup.env.j2", **STORAGE | {"backup_s3_access_key_id": "a'$b"})
    settings = config.load(given)
    assert settings.model_dump(by_alias=True, include=_fields(set(OF_THE_BACKUP))) == {
        "TAP_S3_BUCKET": "tap-copies",
        "TAP_S3_ENDPOINT": "https://s3.example.net",
        "TAP_S3_REGION": "eu-central-1",
        "TAP_S3_PREFIX": "tap-vm",
        "TAP_S3_ACCESS_KEY_ID": "a'$b",
        "TAP_S3_SECRET_FILE": Path("/etc/tap-trading/backup/s3-secret"),
        "TAP_BACKUP_KEY_FILE": Path("/etc/tap-trading/backup/key"),
    }
    assert not {"hidden", STORAGE["backup_key"]} & set(given.values())
    only_key = environment("backup", "backup.env.j2", backup_key=STORAGE["backup_key"])
    assert list(only_key) == ["TAP_BACKUP_KEY_FILE"]


def test_overrides_reach_the_services() -> None:
    settings = config.load(
        environment(
            services_log_level="debug",
            services_redis_wait_s=3,
            services_speed_bump_ms=250,
            services_allowed_origins=["https://a.example", "http://b.example:8080"],
            services_site_domain="tap.example:8443",
            services_site_uri="https://tap.example:8443/play",
            services_ws_max_clients=5,
            services_stakes=[7, 11],
            services_max_open_stake=21,
            services_max_cell_stake=22,
            services_max_column_stake=23,
            services_max_open_liability=31,
            services_max_cell_liability=32,
            services_max_column_liability=33,
            services_practice_credit=0,
            services_wallet_rate=24,
            services_disk_full_percent=90,
            services_grid_width_s=10,
            services_grid_columns=6,
            services_grid_rows=4,
            services_price_source="replay",
            services_venues=["gemini", "kraken"],
            services_quorum=1,
            services_cross_check="",
            services_coinbase_url="wss://a.example/coinbase",
            services_kraken_url="wss://a.example/v2?it's",
            services_bitstamp_url="ws://127.0.0.1:9/bitstamp",
            services_gemini_url="ws://127.0.0.1:9/gemini",
            services_binance_url="ws://127.0.0.1:9/binance",
            services_mock_seed=3,
            services_mock_start=500,
            services_replay_file="/home/op/recordings/two days.csv",
            services_replay_speed=2.5,
        )
    )
    assert settings.model_dump(
        by_alias=True, exclude=_fields(FIXED | OF_THE_UNIT | set(OF_THE_BACKUP))
    ) == {
        "LOG_LEVEL": "debug",
        "TAP_REDIS_WAIT_S": 3.0,
        "TAP_SPEED_BUMP_MS": 250,
        "TAP_ALLOWED_ORIGINS": ("https://a.example", "http://b.example:8080"),
        "TAP_SITE_DOMAIN": "tap.example:8443",
        "TAP_SITE_URI": "https://tap.example:8443/play",
        "TAP_WS_MAX_CLIENTS": 5,
        "TAP_STAKES": (7, 11),
        "TAP_MAX_OPEN_STAKE": 21,
        "TAP_MAX_CELL_STAKE": 22,
        "TAP_MAX_COLUMN_STAKE": 23,
        "TAP_MAX_OPEN_LIABILITY": 31,
        "TAP_MAX_CELL_LIABILITY": 32,
        "TAP_MAX_COLUMN_LIABILITY": 33,
        "TAP_PRACTICE_CREDIT": 0,
        "TAP_WALLET_RATE": 24,
        "TAP_DISK_FULL_PERCENT": 90,
        "TAP_GRID_WIDTH_S": 10,
        "TAP_GRID_COLUMNS": 6,
        "TAP_GRID_ROWS": 4,
        "TAP_PRICE_SOURCE": "replay",
        "TAP_VENUES": ("gemini", "kraken"),
        "TAP_QUORUM": 1,
        "TAP_CROSS_CHECK": "",
        "TAP_COINBASE_URL": "wss://a.example/coinbase",
        "TAP_KRAKEN_URL": "wss://a.example/v2?it's",
        "TAP_BITSTAMP_URL": "ws://127.0.0.1:9/bitstamp",
        "TAP_GEMINI_URL": "ws://127.0.0.1:9/gemini",
        "TAP_BINANCE_URL": "ws://127.0.0.1:9/binance",
        "TAP_MOCK_SEED": 3,
        "TAP_MOCK_START": 500,
        "TAP_REPLAY_FILE": settings.replay_file,
        "TAP_REPLAY_SPEED": 2.5,
    }
    assert settings.replay_file is not None
    # On the machine, where the services may read it, and not where the op has it.
    assert settings.replay_file.parent == Path("/data/replay")


@pytest.mark.parametrize(
    ("given", "domain", "uri"),
    [
        ({}, "tap-vm", "https://tap-vm"),
        ({"inventory_hostname": "Tap.Example"}, "tap.example", "https://tap.example"),
        ({"nginx_server_names": ["_"]}, "tap-vm", "https://tap-vm"),
        (
            {"nginx_server_names": ["~^x", "*.a.example", "B.example", "c.example"]},
            *("b.example", "https://b.example"),
        ),
        (
            {"nginx_server_names": ["b.example"], "services_site_domain": "a.example:444"},
            *("a.example:444", "https://a.example:444"),
        ),
        (
            {"services_site_domain": "127.0.0.1:88", "services_site_uri": "http://127.0.0.1:88"},
            *("127.0.0.1:88", "http://127.0.0.1:88"),
        ),
    ],
)
def test_the_site_is_called_as_its_visitors_know_it(
    given: dict[str, Any], domain: str, uri: str
) -> None:
    settings = config.load(environment(**given))
    assert (settings.site_domain, settings.site_uri) == (domain, uri)


def test_a_quote_in_a_file_name_stays_inside_its_setting() -> None:
    """The file is read by systemd and, as root, by a shell."""
    name = "a day's $(trades).csv"
    found = environment(services_price_source="replay", services_replay_file=f"/home/op/{name}")
    assert found["TAP_REPLAY_FILE"].endswith(f"/{name}")


def _fields(aliases: set[str]) -> set[str]:
    return {name for name, field in Settings.model_fields.items() if field.alias in aliases}
