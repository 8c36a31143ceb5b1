"""Settings of all processes: typed, from the environment, validated once at start-up.

Every setting has one field here; `docs/settings.md` and the machine's environment
file are checked against it. An unknown or wrong setting stops the process with a
sentence that names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

#: Names with our prefix that belong to the repository's tests, not to a service.
_TEST_NAMES = frozenset({"TAP_MARKET_DATA"})


_LAST_PORT = 65535


class ConfigError(Exception):
    """The environment holds an unknown or wrong setting; the text names each one."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address or, when `path` is set, a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


def _tcp_address(value: object) -> object:
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) <= _LAST_PORT):
        raise ValueError("must be HOST:PORT with a port from 1 to 65535")
    return Address(host=host.strip("[]"), port=int(port))


def _address(value: object) -> object:
    if isinstance(value, str):
        path = value.removeprefix("unix:")
        if path.startswith("/"):
            return Address(path=path)
        if value.startswith("unix:"):
            raise ValueError("must be unix:/absolute/path or HOST:PORT")
    return _tcp_address(value)


def _listed(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _optional_path(value: object) -> object:
    return None if value == "" else value


TcpAddress = Annotated[Address, BeforeValidator(_tcp_address)]
AnyAddress = Annotated[Address, BeforeValidator(_address)]
Origin = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.\-\[\]:]+$")]

#: host or host:port, in lower case as browsers have it.
_SITE = r"([a-z0-9]([a-z0-9.\-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"
_SITE_DOMAIN = rf"^{_SITE}$"
_SITE_URI = rf"^https?://{_SITE}(/[A-Za-z0-9\-._~/]*)?$"


#: What S3 allows, without the dots that no certificate fits.
_BUCKET = r"^([a-z0-9][a-z0-9\-]{1,61}[a-z0-9])?$"
_ENDPOINT = rf"^(https?://{_SITE}/?)?$"
_PREFIX = r"^([A-Za-z0-9._\-]+(/[A-Za-z0-9._\-]+)*)?$"


VenueName = Annotated[str, Field(pattern=r"^(coinbase|kraken|bitstamp|gemini)$")]
FeedUrl = Annotated[str, Field(pattern=r"^(wss?://[^\s]+)?$", max_length=500)]


class Settings(BaseModel):
    """All settings. The alias of a field is the name of its environment variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="LOG_LEVEL", description="Least severe log lines to write."
    )
    db_path: Path = Field(
        Path("/data/bets.db"), alias="DB_PATH", description="SQLite file of bets and ledger."
    )
    prices_db_path: Path = Field(
        Path("/data/prices.db"),
        alias="PRICES_DB_PATH",
        description="SQLite file of the index's bars.",
    )
    archive_dir: Path = Field(
        Path("/data/archive"),
        alias="TAP_ARCHIVE_DIR",
        description="Folder of the weeks that were moved out of the database of bets.",
    )
    metrics_dir: Path = Field(
        Path("/data/metrics"),
        alias="TAP_METRICS_DIR",
        description="Folder of *.prom files, written by commands that run by timer; the API "
        "shows them at /metrics with its own.",
    )
    redis_addr: AnyAddress = Field(
        Address("localhost", 6379),
        alias="REDIS_ADDR",
        description="Redis, as HOST:PORT or unix:/path/to/socket.",
    )
    redis_wait_s: float = Field(
        10.0,
        alias="TAP_REDIS_WAIT_S",
        ge=0,
        le=30,
        description="How long a starting service waits for Redis before it gives up, in seconds.",
    )
    api_listen: TcpAddress = Field(
        Address("127.0.0.1", 8080),
        alias="TAP_API_LISTEN",
        description="Where the API listens when systemd hands it no socket.",
    )
    ws_listen: TcpAddress = Field(
        Address("127.0.0.1", 8081),
        alias="TAP_WS_LISTEN",
        description="Where the WebSocket service listens when systemd hands it no socket.",
    )
    price_listen: TcpAddress = Field(
        Address("127.0.0.1", 8090),
        alias="TAP_PRICE_LISTEN",
        description="Where the price service answers health, version and metrics when systemd "
        "hands it no socket.",
    )
    resolver_listen: TcpAddress = Field(
        Address("127.0.0.1", 8091),
        alias="TAP_RESOLVER_LISTEN",
        description="Where the resolver answers health, version and metrics when systemd hands it "
        "no socket.",
    )
    live_link: Annotated[Path | None, BeforeValidator(_optional_path)] = Field(
        None,
        alias="TAP_LIVE_LINK",
        description="The link to the live release. A service of another one stands by: it accepts "
        "no connections, makes no market and settles nothing. Empty: there is only one.",
    )
    release_link: Annotated[Path | None, BeforeValidator(_optional_path)] = Field(
        None,
        alias="TAP_RELEASE_LINK",
        description="The link through which this process was started; what it points to at the "
        "start is the release that it belongs to.",
    )
    speed_bump_ms: int = Field(
        300,
        alias="TAP_SPEED_BUMP_MS",
        ge=0,
        le=5_000,
        description="A bet's rate is computed from the first bar so many ms after it arrived.",
    )
    allowed_origins: Annotated[tuple[Origin, ...], BeforeValidator(_listed)] = Field(
        (),
        alias="TAP_ALLOWED_ORIGINS",
        description="Other web origins that may call the API (CORS) and open WebSockets, "
        "separated by commas. The site's own origin always may.",
    )
    site_domain: Annotated[str, Field(pattern=_SITE_DOMAIN, max_length=200)] = Field(
        "localhost",
        alias="TAP_SITE_DOMAIN",
        description="The site's host (and port, unless it is the usual one) as visitors type it. "
        "Wallets show it in the text to sign and compare it with the page's address.",
    )
    site_uri: Annotated[str, Field(pattern=_SITE_URI, max_length=250)] = Field(
        "http://localhost",
        alias="TAP_SITE_URI",
        description="The site's web address, at that domain; the text to sign names it too.",
    )
    ws_max_clients: int = Field(
        12_000,
        alias="TAP_WS_MAX_CLIENTS",
        ge=1,
        le=1_000_000,
        description="WebSockets open at once; one more is refused with 503.",
    )
    stakes: Annotated[
        tuple[Annotated[int, Field(gt=0, le=100_000_000)], ...], BeforeValidator(_listed)
    ] = Field(
        (100, 500, 1000, 2500, 5000),
        alias="TAP_STAKES",
        min_length=1,
        description="The stakes a trader may choose from, in cents, separated by commas.",
    )
    max_open_stake: int = Field(
        1_000_000,
        alias="TAP_MAX_OPEN_STAKE",
        gt=0,
        le=10**15,
        description="The most that a user may have at stake at once, in cents.",
    )
    max_cell_stake: int = Field(
        5_000_000,
        alias="TAP_MAX_CELL_STAKE",
        gt=0,
        le=10**15,
        description="The most that may be at stake on a cell, all users together, in cents.",
    )
    max_column_stake: int = Field(
        50_000_000,
        alias="TAP_MAX_COLUMN_STAKE",
        gt=0,
        le=10**15,
        description="The most that may be at stake on a column, all users together, in cents.",
    )
    max_open_liability: int = Field(
        5_000_000,
        alias="TAP_MAX_OPEN_LIABILITY",
        gt=0,
        le=10**15,
        description="The most that a user's open bets may pay together, in cents.",
    )
    max_cell_liability: int = Field(
        25_000_000,
        alias="TAP_MAX_CELL_LIABILITY",
        gt=0,
        le=10**15,
        description="The most that the bets on a cell may pay, all users together, in cents.",
    )
    max_column_liability: int = Field(
        250_000_000,
        alias="TAP_MAX_COLUMN_LIABILITY",
        gt=0,
        le=10**15,
        description="The most that the bets on a column may pay, all users together, in cents.",
    )
    practice_credit: int = Field(
        100_000,
        alias="TAP_PRACTICE_CREDIT",
        ge=0,
        le=10**12,
        description="What a new account is credited with, in cents; 0 switches practising off.",
    )
    wallet_rate: int = Field(
        300,
        alias="TAP_WALLET_RATE",
        ge=1,
        le=1_000_000,
        description="Requests that a wallet may send in a minute; one more is refused with 429.",
    )
    disk_full_percent: int = Field(
        95,
        alias="TAP_DISK_FULL_PERCENT",
        ge=50,
        le=100,
        description="New bets are refused while so many per cent of the databases' file system are "
        "in use, and until it is 2 points below.",
    )
    grid_width_s: int = Field(
        5,
        alias="TAP_GRID_WIDTH_S",
        ge=1,
        le=3600,
        description="Width of a column of the grid, in seconds.",
    )
    grid_columns: int = Field(
        8, alias="TAP_GRID_COLUMNS", ge=6, le=100, description="Placeable columns at any time."
    )
    grid_rows: int = Field(
        12, alias="TAP_GRID_ROWS", ge=2, le=200, description="Rows of the grid around the price."
    )
    price_source: Literal["mock", "replay", "venues"] = Field(
        "mock",
        alias="TAP_PRICE_SOURCE",
        description="Where prices come from: mock (a seeded random walk), replay (a file of "
        "recorded trades, re-stamped to now, looping) or venues (the index over exchanges).",
    )
    venues: Annotated[tuple[VenueName, ...], BeforeValidator(_listed)] = Field(
        ("coinbase", "kraken", "bitstamp", "gemini"),
        alias="TAP_VENUES",
        min_length=1,
        description="The exchanges that the index is made of, separated by commas: coinbase, "
        "kraken, bitstamp, gemini.",
    )
    quorum: int = Field(
        2,
        alias="TAP_QUORUM",
        ge=1,
        le=4,
        description="So many exchanges have to be heard and to agree, else there is no price.",
    )
    cross_check: Literal["", "binance"] = Field(
        "binance",
        alias="TAP_CROSS_CHECK",
        description="An exchange that the index is compared with and never made of, or empty.",
    )
    coinbase_url: FeedUrl = Field(
        "", alias="TAP_COINBASE_URL", description="Coinbase's feed; empty: the exchange's own."
    )
    kraken_url: FeedUrl = Field(
        "",
        alias="TAP_KRAKEN_URL",
        description="Kraken's feed, version 2 if its path ends in /v2; empty: the exchange's own.",
    )
    bitstamp_url: FeedUrl = Field(
        "", alias="TAP_BITSTAMP_URL", description="Bitstamp's feed; empty: the exchange's own."
    )
    gemini_url: FeedUrl = Field(
        "", alias="TAP_GEMINI_URL", description="Gemini's feed; empty: the exchange's own."
    )
    binance_url: FeedUrl = Field(
        "", alias="TAP_BINANCE_URL", description="Binance's feed; empty: the exchange's own."
    )
    mock_seed: int = Field(
        1, alias="TAP_MOCK_SEED", ge=0, description="Seed of the mock source's random walk."
    )
    mock_start: int = Field(
        4_200_000,
        alias="TAP_MOCK_START",
        ge=100,
        le=10**12,
        description="First price of the mock source, in cents.",
    )
    replay_file: Annotated[Path | None, BeforeValidator(_optional_path)] = Field(
        None,
        alias="TAP_REPLAY_FILE",
        description="CSV file of the replay source, with the columns ts_ms, price and any others.",
    )
    replay_speed: float = Field(
        1.0,
        alias="TAP_REPLAY_SPEED",
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description="How many recorded seconds the replay source plays in one second.",
    )

    s3_bucket: Annotated[str, Field(pattern=_BUCKET)] = Field(
        "",
        alias="TAP_S3_BUCKET",
        description="Bucket of the copies that leave the machine; empty: none leaves it.",
    )
    s3_endpoint: Annotated[str, Field(pattern=_ENDPOINT, max_length=250)] = Field(
        "",
        alias="TAP_S3_ENDPOINT",
        description="Web address of the S3-compatible storage; empty: AWS.",
    )
    s3_region: Annotated[str, Field(pattern=r"^[a-z0-9\-]+$", max_length=50)] = Field(
        "us-east-1", alias="TAP_S3_REGION", description="Region of the bucket."
    )
    s3_prefix: Annotated[str, Field(pattern=_PREFIX, max_length=200)] = Field(
        "",
        alias="TAP_S3_PREFIX",
        description="What the names of all objects begin with, without a slash at the end: "
        "machines that share a bucket need one each.",
    )
    s3_access_key_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]*$", max_length=200)] = Field(
        "", alias="TAP_S3_ACCESS_KEY_ID", description="Who the storage knows this machine as."
    )
    s3_secret_file: Annotated[Path | None, BeforeValidator(_optional_path)] = Field(
        None,
        alias="TAP_S3_SECRET_FILE",
        description="File with the secret access key, and nothing else.",
    )
    backup_key_file: Annotated[Path | None, BeforeValidator(_optional_path)] = Field(
        None,
        alias="TAP_BACKUP_KEY_FILE",
        description="File with the key that backups are encrypted with, 32 bytes in base64; empty: "
        "they are not encrypted.",
    )

    @model_validator(mode="after")
    def _a_bucket_needs_credentials(self) -> Self:
        if self.s3_bucket and not (self.s3_access_key_id and self.s3_secret_file):
            raise ValueError("TAP_S3_BUCKET needs TAP_S3_ACCESS_KEY_ID and TAP_S3_SECRET_FILE")
        return self

    @model_validator(mode="after")
    def _replay_needs_a_file(self) -> Self:
        if self.price_source == "replay" and self.replay_file is None:
            raise ValueError("TAP_PRICE_SOURCE=replay needs TAP_REPLAY_FILE")
        return self

    @model_validator(mode="after")
    def _venues_reach_the_quorum(self) -> Self:
        if len(set(self.venues)) < len(self.venues):
            raise ValueError("TAP_VENUES names an exchange twice")
        if self.price_source == "venues" and self.quorum > len(self.venues):
            raise ValueError(f"TAP_QUORUM={self.quorum} of {len(self.venues)} in TAP_VENUES")
        return self

    @model_validator(mode="after")
    def _one_site(self) -> Self:
        if urlsplit(self.site_uri).netloc != self.site_domain:
            raise ValueError(
                f"TAP_SITE_URI={self.site_uri} is not an address at "
                f"TAP_SITE_DOMAIN={self.site_domain}; wallets would warn of it"
            )
        return self


SETTING_NAMES: tuple[str, ...] = tuple(
    field.alias for field in Settings.model_fields.values() if field.alias
)


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings from `environ`.

    Raises ConfigError, naming every unknown `TAP_…` variable and every wrong value.
    """
    given = {name: environ[name] for name in SETTING_NAMES if name in environ}
    unknown = sorted(
        name
        for name in environ
        if name.startswith("TAP_") and name not in SETTING_NAMES and name not in _TEST_NAMES
    )
    wrong = [f"{name} is not a setting" for name in unknown]
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_context=False):
            reason = item["msg"].removeprefix("Value error, ")
            where = str(item["loc"][0]) if item["loc"] else ""
            wrong.append(f"{where}={given.get(where, '')!r}: {reason}" if where else reason)
        raise ConfigError("; ".join(wrong)) from None
    if wrong:
        raise ConfigError("; ".join(wrong))
    return settings
