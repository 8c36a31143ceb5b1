"""Accounts, and every movement of money outside the batch of bets.

A movement is a pair of ledger entries under one reference: the user's, and its opposite of
the house, which is the counterparty of all. Both balances and both entries are written
together or not at all, and only to the account as the caller saw it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import apsw
import orjson

from tap_trading.ledger.ids import new_id

#: The counterparty of every movement, and the only account that may owe.
HOUSE = "house"

#: The largest single movement, in cents: 10 billion dollars.
MAX_AMOUNT = 10**12

RefType = Literal["PAYOUT", "REFUND", "DEPOSIT", "WITHDRAWAL", "ADJUSTMENT"]

#: What may stand as a reference: as an idempotency key, 1 to 64 visible ASCII characters.
REFERENCE = re.compile(r"[\x21-\x7e]{1,64}")


class AccountError(Exception):
    """No money was moved; the text says why."""


class StaleAccountError(AccountError):
    """Somebody else changed the account since the caller read it."""


class InsufficientFundsError(AccountError):
    """The balance would go below zero."""


class DuplicateReferenceError(AccountError):
    """There is a movement of this kind under this reference already."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account as it was read: to write to it, it has to be like this still."""

    user_id: str
    address: str
    balance: int  # cents
    open_stake: int  # cents
    version: int
    created_at: int  # Unix ms
    updated_at: int  # Unix ms


def find(connection: apsw.Connection, user_id_or_address: str) -> Account | None:
    """The account with this id or, if none has it, with this wallet address."""
    row = connection.execute(
        "SELECT id, wallet_address, balance, open_stake, version, created_at, updated_at"
        " FROM users WHERE id = ?1 OR wallet_address = ?1 ORDER BY id = ?1 DESC LIMIT 1",
        (user_id_or_address,),
    ).fetchone()
    return Account(*row) if row else None


def open_account(
    connection: apsw.Connection, address: str, now_ms: int, practice_credit: int
) -> Account:
    """The account of a wallet, created with its practice credit (cents, 0 for none) when
    there is none yet.

    Call it inside a transaction that may write, and keep nothing of that when it raises.
    Raises ValueError for the house's address and for a credit above MAX_AMOUNT.
    """
    if address == HOUSE:
        raise ValueError("nobody signs in as the house")
    # Writing comes first: from then on nobody else can create the account as well.
    created = connection.execute(
        "INSERT INTO users (id, wallet_address, created_at, updated_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (wallet_address) DO NOTHING RETURNING id",
        (new_id("user", now_ms), address, now_ms, now_ms),
    ).fetchone()
    account = find(connection, address)
    if account is None:
        raise AccountError(f"the account of {address} could not be created")
    if created is None or practice_credit <= 0:
        return account
    return post(
        connection,
        account=account,
        amount=practice_credit,
        ref_type="DEPOSIT",
        ref_id=f"practice_{account.user_id}",
        metadata={"reason": "practice credit", "operator": "tap-trading"},
        now_ms=now_ms,
    )


def post(
    connection: apsw.Connection,
    *,
    account: Account,
    amount: int,
    ref_type: RefType,
    ref_id: str,
    metadata: Mapping[str, object] | None,
    now_ms: int,
) -> Account:
    """Write a movement of `amount` cents, signed from the user's view; the account after it.

    Call it inside a transaction that may write. All or nothing of it is kept, also within a
    larger transaction that goes on. `metadata` becomes JSON on both entries.

    Raises StaleAccountError when `account` is not as it is now, InsufficientFundsError when
    its balance would go below zero, DuplicateReferenceError for a reference that a movement
    of this kind has already, and ValueError for an amount or a reference out of bounds.
    """
    _check(account, amount, ref_id)
    with connection:
        if _is_used(connection, ref_type, ref_id):
            raise DuplicateReferenceError(f"there is a {ref_type} with the reference {ref_id}")
        balance, version = _move(connection, account, amount, now_ms)
        house = connection.execute(
            "UPDATE users SET balance = balance - ?, version = version + 1, updated_at = ?"
            " WHERE id = ? RETURNING balance",
            (amount, now_ms, HOUSE),
        ).fetchone()
        if house is None:
            raise AccountError("the database has no house account; nothing was written")
        text = None if metadata is None else orjson.dumps(metadata).decode()
        entry = new_id("led", now_ms)
        connection.executemany(
            "INSERT INTO transaction_ledger (id, user_id, amount, balance_after, ref_type,"
            " ref_id, metadata, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (f"{entry}u", account.user_id, amount, balance, ref_type, ref_id, text, now_ms),
                (f"{entry}h", HOUSE, -amount, house[0], ref_type, ref_id, text, now_ms),
            ],
        )
    return replace(account, balance=balance, version=version, updated_at=now_ms)


def _check(account: Account, amount: int, ref_id: str) -> None:
    if account.user_id == HOUSE:
        raise ValueError("the house is the other side of every movement and has none of its own")
    if type(amount) is not int or amount == 0 or abs(amount) > MAX_AMOUNT:
        raise ValueError(f"an amount must be whole cents up to {MAX_AMOUNT}, not {amount!r}")
    if not REFERENCE.fullmatch(ref_id):
        raise ValueError("a reference must be 1 to 64 visible ASCII characters")


def _is_used(connection: apsw.Connection, ref_type: str, ref_id: str) -> bool:
    """Whether a movement has the reference; of its two entries the house's is always there."""
    found = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM transaction_ledger"
        " WHERE user_id = ?1 AND ref_type = ?2 AND ref_id = ?3)"
        " OR EXISTS (SELECT 1 FROM archived_references WHERE ref_type = ?2 AND ref_id = ?3)",
        (HOUSE, ref_type, ref_id),
    ).get
    return bool(found)


def _move(
    connection: apsw.Connection, account: Account, amount: int, now_ms: int
) -> tuple[int, int]:
    """Change the user's balance; the new balance and version."""
    moved = connection.execute(
        "UPDATE users SET balance = balance + ?1, version = version + 1, updated_at = ?2"
        " WHERE id = ?3 AND version = ?4 AND balance + ?1 >= 0 RETURNING balance, version",
        (amount, now_ms, account.user_id, account.version),
    ).fetchone()
    if moved is not None:
        balance, version = moved
        return balance, version
    current = connection.execute(
        "SELECT version FROM users WHERE id = ?", (account.user_id,)
    ).fetchone()
    if current is None or current[0] != account.version:
        raise StaleAccountError(f"{account.user_id} was changed meanwhile")
    raise InsufficientFundsError(
        f"{account.user_id} has {account.balance} cents, which is less than {-amount}"
    )
