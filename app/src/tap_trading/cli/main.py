"""`tap`: what ops ask of the running site and its database."""

import argparse
import http.client
import json
import os
import signal
import sys
from collections.abc import Sequence

from tap_trading.base import config, version
from tap_trading.base.config import Address, Settings
from tap_trading.base.db import DatabaseError
from tap_trading.base.migrations import stored_version
from tap_trading.cli import audit, backups, disk, history, market, money, show, verify
from tap_trading.cli.command import RefusedError, adder
from tap_trading.ledger import migrations
from tap_trading.ledger.accounts import AccountError
from tap_trading.market import price_store

_TIMEOUT_S = 5.0


def _migrate(settings: Settings, _args: argparse.Namespace) -> int:
    done = {
        settings.db_path: migrations.migrate(settings.db_path),
        settings.prices_db_path: price_store.migrate(settings.prices_db_path),
    }
    for path, applied in done.items():
        for migration in applied:
            print(f"applied {migration.name} to {path}")
    if not any(done.values()):
        print("the schema is up to date")
    return 0


def _schema(settings: Settings, _args: argparse.Namespace) -> int:
    found = {"bets": settings.db_path, "prices": settings.prices_db_path}
    print(json.dumps({name: stored_version(path) for name, path in found.items()}))
    return 0


def _health(settings: Settings, _args: argparse.Namespace) -> int:
    worst = 0
    for name, address in (
        ("api", settings.api_listen),
        ("ws", settings.ws_listen),
        ("price", settings.price_listen),
        ("resolver", settings.resolver_listen),
    ):
        healthy, text = _ask(address)
        print(f"{name:<9} {text}")
        worst |= not healthy
    return int(worst)


def _ask(address: Address) -> tuple[bool, str]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        report = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        return False, f"does not answer at {address}: {error}"
    finally:
        connection.close()
    checks = ", ".join(f"{name}: {text}" for name, text in report["checks"].items())
    return report["status"] == "ok", f"{report['status']} ({checks})"


def _settings(settings: Settings, _args: argparse.Namespace) -> int:
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        text = (
            ",".join(map(str, value))
            if isinstance(value, tuple)
            else str("" if value is None else value)
        )
        print(f"{field.alias}={text}")
    return 0


def _version(_settings: Settings, _args: argparse.Namespace) -> int:
    for name, value in version.current().as_json().items():
        print(f"{name}: {value}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tap", description="Look after the tap trading site.")
    add = adder(parser, "command", "COMMAND")
    add("health", _health, "Ask every service how it is; exit code 1 if one is not well.")
    show.add_to(add)
    money.add_to(add)
    audit.add_to(add)
    verify.add_to(add)
    market.add_to(add)
    add("migrate", _migrate, "Bring both databases' schemas up to date, creating them if need be.")
    add("schema", _schema, "Show the schema versions of both databases, as JSON; 0 is none.")
    backups.add_to(add)
    history.add_to(add)
    disk.add_to(add)
    add("settings", _settings, "Show every setting as it is in force.")
    add("version", _version, "Show which build this is.")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `tap`. Exit code 0: done; 1: not done; 2: wrong words; 78: wrong settings."""
    args = _parser().parse_args(argv)
    # systemd ends a command that takes too long: what it began is cleaned up all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        code: int = args.run(config.load(os.environ), args)
    except config.ConfigError as error:
        print(f"tap: wrong configuration: {error}", file=sys.stderr)
        code = 78
    except (
        *(DatabaseError, AccountError, RefusedError),
        *(*backups.ERRORS, *history.ERRORS),
    ) as error:
        for sentence in str(error).splitlines():
            print(f"tap: {sentence}", file=sys.stderr)
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
