"""`tap deposit`, `withdraw` and `adjust`: money moved by hand, with a reason and a name.

What will be written is shown first and only written to the account as it was shown: when
somebody changed it meanwhile, it is shown again. A reference makes a movement repeatable:
it is written once, however often it is asked for.
"""

import argparse
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw

from tap_trading.base.clock import system_clock
from tap_trading.base.config import Settings
from tap_trading.base.db import DatabaseError, WriterLock, open_writer
from tap_trading.cli import amounts, operator
from tap_trading.cli.command import Add, RefusedError, Run, books
from tap_trading.ledger import accounts, statement
from tap_trading.ledger.accounts import Account, RefType
from tap_trading.ledger.ids import new_id

#: The kinds of movements that people write; a reference stands for one of any kind.
_BY_HAND: tuple[RefType, ...] = ("DEPOSIT", "WITHDRAWAL", "ADJUSTMENT")
_COMMANDS = (
    ("deposit", "Credit a user with money that came in."),
    ("withdraw", "Debit a user with money that is paid out."),
    ("adjust", "Correct a user's balance, upwards or (-12.50) downwards."),
)

#: An account that changes this often between showing and writing is left alone.
_ATTEMPTS = 100
#: The services hold the writer's lock for milliseconds, though often.
_LOCK_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class _Order:
    """What an operator asks for."""

    kind: RefType
    user: str  # id or address
    amount: int  # cents, below 0 when the user loses them
    reason: str
    operator: str
    reference: str


def add_to(add: Add) -> None:
    """Add the three commands."""
    for (name, help_), kind in zip(_COMMANDS, _BY_HAND, strict=True):
        command = add(name, _runs(kind), help_)
        command.add_argument("user", metavar="USER", help="user id or wallet address")
        command.add_argument(
            "amount",
            metavar="AMOUNT",
            type=amounts.parse_signed if kind == "ADJUSTMENT" else amounts.parse,
            help="dollars, such as 12.50",
        )
        command.add_argument(
            "--reference",
            type=_reference,
            help="name of this movement, written only once however often it is repeated",
        )
        operator.add_arguments(command, "the books")


def _reference(text: str) -> str:
    if not accounts.REFERENCE.fullmatch(text):
        raise argparse.ArgumentTypeError("must be 1 to 64 visible ASCII characters")
    return text


def _runs(kind: RefType) -> Run:
    def run(settings: Settings, args: argparse.Namespace) -> int:
        order = _Order(
            kind=kind,
            user=args.user,
            amount=-args.amount if kind == "WITHDRAWAL" else args.amount,
            reason=args.reason,
            operator=operator.name_of(args),
            reference=args.reference or new_id("ops", system_clock()),
        )
        return _carry_out(settings.db_path, order, ask=not args.yes)

    return run


def _carry_out(path: Path, order: _Order, *, ask: bool) -> int:
    for _ in range(_ATTEMPTS):
        with books(path) as connection:
            account = _account(connection, order.user)
            earlier = _earlier(connection, order.reference)
        if earlier is not None:
            return _tell_repeated(order, account, earlier)
        _show(order, account)
        if account.balance + order.amount < 0:
            raise RefusedError(
                f"{account.user_id} has only {amounts.shown(account.balance)}; nothing was written"
            )
        if ask and not operator.confirmed():
            print("not confirmed; nothing was written")
            return 1
        try:
            after = _write(path, account, order)
        except (accounts.StaleAccountError, accounts.DuplicateReferenceError):
            print("somebody else was faster, so nothing was written; looking again")
            continue
        print(f"written: {account.user_id} has {amounts.shown(after.balance)}")
        print(f"reference: {order.reference}")
        return 0
    raise RefusedError(
        f"{order.user} was changed {_ATTEMPTS} times between reading and writing;"
        " nothing was written, try again"
    )


def _account(connection: apsw.Connection, user: str) -> Account:
    account = accounts.find(connection, user)
    if account is None:
        raise RefusedError(f"there is no user with the id or address {user}")
    if account.user_id == accounts.HOUSE:
        raise RefusedError("the house is the other side of every movement; name a user")
    return account


def _earlier(connection: apsw.Connection, reference: str) -> statement.Entry | None:
    """The user's entry of the movement by hand that has this reference."""
    for entry in statement.entries_of(connection, reference):
        if entry.ref_type in _BY_HAND and entry.user_id != accounts.HOUSE:
            return entry
    return None


def _tell_repeated(order: _Order, account: Account, earlier: statement.Entry) -> int:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(earlier.created_at / 1000))
    asked = (order.kind, account.user_id, order.amount, order.reason)
    done = (earlier.ref_type, earlier.user_id, earlier.amount, earlier.details.get("reason"))
    if asked == done:
        print(f"done before, on {when}; nothing was written now")
        print(f"reference: {order.reference}")
        return 0
    raise RefusedError(
        f"the reference {order.reference} was used on {when} for another movement:"
        f" {earlier.ref_type} of {amounts.shown(earlier.amount)} to {earlier.user_id},"
        f" reason: {earlier.details.get('reason', 'none')}; nothing was written"
    )


def _show(order: _Order, account: Account) -> None:
    after = account.balance + order.amount
    for name, text in (
        (order.kind.lower(), amounts.shown(order.amount)),
        ("user", account.user_id),
        ("address", account.address),
        ("balance", f"{amounts.shown(account.balance)} -> {amounts.shown(after)}"),
        ("reason", order.reason),
        ("operator", order.operator),
        ("reference", order.reference),
    ):
        print(f"{name:<10} {text}")


def _write(path: Path, account: Account, order: _Order) -> Account:
    """Write the movement to the account as it was shown.

    Raises AccountError or DatabaseError; nothing was written then.
    """
    lock = WriterLock(path)
    try:
        with lock.held(_LOCK_WAIT_S), closing(open_writer(path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            if _earlier(connection, order.reference) is not None:
                raise accounts.DuplicateReferenceError(order.reference)
            after = accounts.post(
                connection,
                account=account,
                amount=order.amount,
                ref_type=order.kind,
                ref_id=order.reference,
                metadata={"reason": order.reason, "operator": order.operator},
                now_ms=system_clock(),
            )
            connection.execute("COMMIT")
            return after
    except apsw.Error as error:
        raise DatabaseError(f"{path}: {error}; nothing was written") from error
    finally:
        lock.close()
