"""Settings: typed, validated, and every refusal names what is wrong."""

from pathlib import Path

import pytest

from tap_trading.base import config
from tap_trading.base.config import Address, ConfigError, load


def test_an_empty_environment_gives_the_plans_defaults() -> None:
    settings = load({})
    assert settings.db_path == Path("/data/bets.db")
    assert settings.redis_addr == Address("localhost", 6379)
    assert settings.api_listen == Address("127.0.0.1", 8080)
    assert settings.ws_listen == Address("127.0.0.1", 8081)
    assert settings.price_listen == Address("127.0.0.1", 8090)
    assert settings.stakes == (100, 500, 1000, 2500, 5000)
    assert settings.grid_columns >= 6
    assert settings.price_source == "mock"


def test_values_are_read_with_their_types() -> None:
    settings = load(
        {
            "LOG_LEVEL": "debug",
            "REDIS_ADDR": "unix:/run/redis/redis-server.sock",
            "TAP_API_LISTEN": "[::1]:9000",
            "TAP_ALLOWED_ORIGINS": "https://a.example, https://b.example:8443",
            "TAP_STAKES": "100,200",
            "TAP_REPLAY_SPEED": "2.5",
            "TAP_REPLAY_FILE": "",
        }
    )
    assert settings.redis_addr == Address(path="/run/redis/redis-server.sock")
    assert settings.api_listen == Address("::1", 9000)
    assert settings.allowed_origins == ("https://a.example", "https://b.example:8443")
    assert settings.stakes == (100, 200)
    assert settings.replay_speed == 2.5
    assert settings.replay_file is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOG_LEVEL", "loud"),
        ("REDIS_ADDR", "localhost"),
        ("REDIS_ADDR", "unix:redis.sock"),
        ("REDIS_ADDR", "localhost:0"),
        ("TAP_API_LISTEN", "127.0.0.1:99999"),
        ("TAP_API_LISTEN", "/run/api.sock"),
        ("TAP_ALLOWED_ORIGINS", "example.com"),
        ("TAP_ALLOWED_ORIGINS", "https://a.example/path"),
        ("TAP_STAKES", ""),
        ("TAP_STAKES", "100,-5"),
        ("TAP_STAKES", "ten"),
        ("TAP_GRID_COLUMNS", "5"),
        ("TAP_VENUES", ""),
        ("TAP_VENUES", "coinbase,mtgox"),
        ("TAP_VENUES", "coinbase,binance"),
        ("TAP_QUORUM", "0"),
        ("TAP_CROSS_CHECK", "kraken"),
        ("TAP_KRAKEN_URL", "https://ws.kraken.com"),
        ("TAP_REPLAY_SPEED", "0"),
        ("TAP_REPLAY_SPEED", "nan"),
        ("TAP_REPLAY_SPEED", "inf"),
        ("TAP_MOCK_SEED", "-1"),
        ("TAP_PRICE_SOURCE", "coinbase-pro"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}="):
        load({name: value})


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="TAP_REPLAY_FIEL is not a setting"):
        load({"TAP_REPLAY_FIEL": "x.csv"})


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"TAP_NOPE": "1", "LOG_LEVEL": "loud", "TAP_GRID_ROWS": "none"})
    assert all(name in str(caught.value) for name in ("TAP_NOPE", "LOG_LEVEL", "TAP_GRID_ROWS"))


def test_other_peoples_variables_are_left_alone() -> None:
    assert load({"PATH": "/bin", "TAP_MARKET_DATA": "/data", "TAPE": "x"}) == load({})


def test_replay_needs_its_file() -> None:
    with pytest.raises(ConfigError, match="TAP_PRICE_SOURCE=replay needs TAP_REPLAY_FILE"):
        load({"TAP_PRICE_SOURCE": "replay"})


def test_every_setting_has_a_name_and_a_description() -> None:
    assert len(config.SETTING_NAMES) == len(config.Settings.model_fields)
    for field in config.Settings.model_fields.values():
        assert field.description
        assert field.description.endswith(".")


def test_the_quorum_can_be_reached() -> None:
    assert load({"TAP_PRICE_SOURCE": "venues", "TAP_VENUES": "kraken, gemini"}).quorum == 2
    for wrong in (
        {"TAP_PRICE_SOURCE": "venues", "TAP_VENUES": "kraken"},
        {"TAP_VENUES": "kraken,gemini,kraken"},
    ):
        with pytest.raises(ConfigError, match="TAP_VENUES"):
            load(wrong)
