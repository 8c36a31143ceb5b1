"""What every batch writes to the books: entries of the ledger, and the accounts after them.

The movements of a batch are one journal entry: a row for each user's side, then one for the
house's, with the sum of them (ADR 0010).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import apsw
import orjson

from tap_trading.ledger.accounts import HOUSE

#: What many users' movements may be of in one journal entry.
BatchRefType = Literal["BET", "PAYOUT", "REFUND"]

_READ_ACCOUNTS = """
SELECT u.id, u.balance, u.open_stake, u.open_liability
FROM json_each(?) e CROSS JOIN users u ON u.id = e.value
"""

_WRITE_ENTRY = """
INSERT INTO transaction_ledger (id, user_id, amount, balance_after, ref_type, ref_id, created_at,
                                metadata)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""

# `OR FAIL` spares the copies of pages that a statement keeps to be able to undo itself; the
# transaction is undone as a whole.
_WRITE_ACCOUNTS = """
UPDATE OR FAIL users
SET balance = e.value ->> 1, open_stake = e.value ->> 2, open_liability = e.value ->> 3,
    version = version + 1, updated_at = e.value ->> 4
FROM json_each(?) e
WHERE users.id = e.value ->> 0
"""


@dataclass(slots=True)
class Account:
    """A user's money, in cents."""

    balance: int
    open_stake: int  # of the bets that are not settled yet
    open_liability: int = (
        0  # what these may pay at most, as far as it was known when they were placed
    )


class Movement(NamedTuple):
    """The user's side of a movement."""

    #: Of its entry, without the last letter; sorts by `at`.
    entry_id: str
    user_id: str
    amount: int  # cents, above 0 when the user gains
    balance_after: int  # cents
    bet_id: str
    at: int  # Unix ms


def as_json(rows: object) -> str:
    """Rows for a statement that reads them by `json_each`."""
    return orjson.dumps(rows).decode()


def read_accounts(connection: apsw.Connection, user_ids: Iterable[str]) -> dict[str, Account]:
    """These users' accounts, by id; the house's too if it is among them."""
    rows = connection.execute(_READ_ACCOUNTS, (as_json(list(user_ids)),))
    return {user_id: Account(*amounts) for user_id, *amounts in rows}


def write(
    connection: apsw.Connection,
    ref_type: BatchRefType,
    movements: Sequence[Movement],
    house: int,
) -> int:
    """Write the movements of a batch as one journal entry; the house's balance after it.

    `house` is its balance before, in cents. Call it inside a transaction, with at least one
    movement.
    """
    rows: list[tuple[object, ...]] = []
    taken = last = 0
    for entry_id, user_id, amount, balance, bet_id, at in movements:
        rows.append((f"{entry_id}u", user_id, amount, balance, ref_type, bet_id, at, None))
        taken -= amount
        last = max(last, at)
    journal = movements[0].entry_id
    reference = f"batch_{journal.removeprefix('led_')}"
    house += taken
    bets = as_json({"bets": len(movements)})
    rows.append((f"{journal}h", HOUSE, taken, house, ref_type, reference, last, bets))
    connection.executemany(_WRITE_ENTRY, rows)
    return house


def write_accounts(
    connection: apsw.Connection, accounts: Mapping[str, Account], changed: Mapping[str, int]
) -> None:
    """Write the accounts that were changed; `changed` has the moment (Unix ms) by user."""
    rows = [
        (user, account.balance, account.open_stake, account.open_liability, at)
        for user, at in changed.items()
        for account in (accounts[user],)
    ]
    connection.execute(_WRITE_ACCOUNTS, (as_json(rows),))
