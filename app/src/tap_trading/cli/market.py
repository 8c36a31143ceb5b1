"""`tap market`: what ops do to the market by hand, each time with a reason and a name."""

import argparse
import time
from contextlib import closing
from pathlib import Path

import apsw

from tap_trading.base.clock import system_clock
from tap_trading.base.config import Settings
from tap_trading.base.db import DatabaseError, WriterLock, open_writer
from tap_trading.base.logger import rfc3339_ms
from tap_trading.cli import operator
from tap_trading.cli.command import Add, Run, adder, books
from tap_trading.market import price_store
from tap_trading.market.point import dollars
from tap_trading.market.price_store import Action, Override

_LOCK_WAIT_S = 30.0
_SHOWN = 10


def add_to(add: Add) -> None:
    """Add the command."""
    market = add("market", _status, "Show the market, suspend it, or take a suspension back.")
    add_action = adder(market, "action", "suspend|release|status")
    command = add_action("suspend", _runs("suspend"), "Take no more bets until it is released.")
    operator.add_arguments(command, "the audit")
    command = add_action(
        "release", _runs("release"), "Take a suspension back; prices then decide alone."
    )
    operator.add_arguments(command, "the audit")
    add_action("status", _status, "Show the last bar and what was done by hand.")


def _status(settings: Settings, _args: argparse.Namespace) -> int:
    with books(settings.prices_db_path) as connection:
        bar = price_store.last_bar(connection)
        done = price_store.overrides(connection, _SHOWN)
    if bar is None:
        print("last bar   none")
    else:
        age_s = (time.time_ns() / 1e6 - bar.t) / 1000
        print(f"last bar   {rfc3339_ms(bar.t)}, {age_s:.1f} s ago, {dollars(bar.close)}")
    suspended = bool(done) and done[0].action == "suspend"
    print(f"by hand    {'suspended' if suspended else 'not suspended'}")
    for override in done:
        print(
            f"  {rfc3339_ms(override.created_at)}  {override.action:<7}  {override.operator}:"
            f" {override.reason}"
        )
    return 0


def _runs(action: Action) -> Run:
    def run(settings: Settings, args: argparse.Namespace) -> int:
        by = operator.name_of(args)
        path = settings.prices_db_path
        with books(path) as connection:
            last = price_store.last_override(connection)
        if (last.action if last else "release") == action:
            state = "suspended" if action == "suspend" else "not suspended"
            print(f"the market is {state} by hand already; nothing was written")
            return 0
        for name, text in (("action", action), ("reason", args.reason), ("operator", by)):
            print(f"{name:<10} {text}")
        if not args.yes and not operator.confirmed():
            print("not confirmed; nothing was written")
            return 1
        _write(path, Override(action, args.reason, by, system_clock()))
        print("written; it is in force within a second")
        return 0

    return run


def _write(path: Path, override: Override) -> None:
    """Raises DatabaseError; nothing was written then."""
    lock = WriterLock(path)
    try:
        with lock.held(_LOCK_WAIT_S), closing(open_writer(path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            price_store.write_override(connection, override)
            connection.execute("COMMIT")
    except apsw.Error as error:
        raise DatabaseError(f"{path}: {error}; nothing was written") from error
    finally:
        lock.close()
