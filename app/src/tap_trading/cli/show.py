"""`tap show`: a user or a bet as the books have it."""

import argparse
from collections.abc import Iterable

from tap_trading.archive.history import History
from tap_trading.archive.shelf import Shelf
from tap_trading.base.config import Settings
from tap_trading.base.logger import rfc3339_ms
from tap_trading.cli import amounts
from tap_trading.cli.command import Add, RefusedError, adder, books
from tap_trading.ledger import accounts, statement
from tap_trading.ledger.statement import Entry

_ENTRIES = 10
_AMOUNTS = frozenset({"amount", "payout_amount"})
_TIMES = frozenset({"placed_at", "resolved_at"})


def add_to(add: Add) -> None:
    """Add the command."""
    show = add("show", _user, "Show a user or a bet with the entries of the ledger.")
    add_kind = adder(show, "kind", "user|bet")
    command = add_kind("user", _user, "Show a user's account, bets and last entries.")
    command.add_argument("user", metavar="USER", help="user id or wallet address")
    command = add_kind("bet", _bet, "Show a bet and its entries.")
    command.add_argument("bet_id", metavar="BET_ID")


def _user(settings: Settings, args: argparse.Namespace) -> int:
    with books(settings.db_path) as connection:
        account = accounts.find(connection, args.user)
        if account is None:
            raise RefusedError(f"there is no user with the id or address {args.user}")
        bets = statement.bets_by_status(connection, account.user_id)
        entries = statement.latest_entries(connection, account.user_id, _ENTRIES)
    _print_table(
        [
            ("user", account.user_id),
            ("address", account.address),
            ("balance", amounts.shown(account.balance)),
            ("open stake", amounts.shown(account.open_stake)),
            ("version", str(account.version)),
            ("created", rfc3339_ms(account.created_at)),
            ("changed", rfc3339_ms(account.updated_at)),
            ("bets", ", ".join(f"{n} {status}" for status, n in bets.items()) or "none"),
        ]
    )
    _print_entries(f"last {len(entries)} entries" if entries else "no entries", entries)
    return 0


def _bet(settings: Settings, args: argparse.Namespace) -> int:
    with books(settings.db_path) as present:
        history = History(present, Shelf(settings.archive_dir))
        with history.where(args.bet_id) as connection:
            bet = statement.bet(connection, args.bet_id) if connection else None
            if connection is None or bet is None:
                raise RefusedError(f"there is no bet with the id {args.bet_id}")
            entries = statement.entries_of(connection, args.bet_id)
            house = statement.house_sides(connection, args.bet_id)
    _print_table([(name, _column(name, value)) for name, value in bet.items()])
    _print_entries("entries" if entries else "no entries", entries)
    if house:
        _print_entries("the house's side, with the rest of the batch", house)
    return 0


def _column(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and name in _AMOUNTS:
        return amounts.shown(value)
    if isinstance(value, int) and name in _TIMES:
        return f"{rfc3339_ms(value)} ({value})"
    return str(value)


def _print_table(rows: Iterable[tuple[str, str]]) -> None:
    for name, text in rows:
        print(f"{name:<19} {text}")


def _print_entries(title: str, entries: Iterable[Entry]) -> None:
    print(title)
    for entry in entries:
        print(
            f"  {rfc3339_ms(entry.created_at)}  {entry.ref_type:<10}"
            f"  {amounts.shown(entry.amount)}, then {amounts.dollars(entry.balance_after)}"
            f"  {entry.user_id}  {entry.ref_id}"
        )
        if details := ", ".join(f"{name}: {text}" for name, text in entry.details.items()):
            print(f"    {details}")
