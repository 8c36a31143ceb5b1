"""Bets after they were placed: confirmed, won, lost or void, with all that it moves.

Every function works inside the caller's transaction. A change of a bet names the status that
it comes from, and a payout or refund is an entry of the ledger whose reference is unique: if a
bet is not as the caller saw it, the whole transaction fails and nothing is moved.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import apsw

from tap_trading.game.cell import SYMBOL
from tap_trading.game.settlement import VoidReason, Window
from tap_trading.ledger import journal
from tap_trading.ledger.accounts import HOUSE
from tap_trading.ledger.ids import new_id
from tap_trading.ledger.journal import Account, BatchRefType, Movement, as_json
from tap_trading.ledger.placing import scopes
from tap_trading.ledger.queries import Bet


class BooksChangedError(Exception):
    """A bet is not as it was read: the transaction must not be committed."""


class OpenBet(NamedTuple):
    """A bet that is not settled yet."""

    number: int  # of its row
    bet_id: str
    user_id: str
    cell_id: str
    amount: int  # cents
    min_reward_rate_bps: int | None
    reward_rate_bps: int | None  # None while it is pending
    liability: int  # cents
    placed_at: int  # Unix ms


class Pricing(NamedTuple):
    """What rates were computed from."""

    bar: int  # stamp of the bar, Unix ms
    price: int  # its close, cents
    sigma: float  # per square root of a second
    spread: float  # standard deviation of its logarithm
    speed_bump_ms: int
    rate_model: str
    volatility_model: str


class Confirmed(NamedTuple):
    """A bet whose rate is fixed."""

    bet: OpenBet
    bar: int  # of its pricing
    reward_rate_bps: int


class Void(NamedTuple):
    """A bet whose stake is given back."""

    bet: OpenBet
    reason: VoidReason
    bar: int | None = None  # of its pricing, when there was one


class Settled(NamedTuple):
    """A bet whose window has closed."""

    bet: OpenBet
    payout: int  # cents; 0 when it is lost


@dataclass(slots=True)
class Changes:
    """What a transaction did, to be told to the traders."""

    #: Each with its user.
    bets: list[tuple[str, Bet]] = field(default_factory=list)
    balances: dict[str, int] = field(default_factory=dict)  # cents, by user


# A bet without a key is one of schema 1, whose bets moved no money and stay as they are.
_PENDING = """
SELECT rowid, id, user_id, cell_id, amount, min_reward_rate_bps, reward_rate_bps, liability,
       placed_at
FROM bets INDEXED BY idx_bets_pending
WHERE status = 'pending' AND placed_at <= ? AND idempotency_key IS NOT NULL
ORDER BY placed_at
LIMIT ?
"""
_CONFIRMED = """
SELECT rowid, id, user_id, cell_id, amount, min_reward_rate_bps, reward_rate_bps, liability,
       placed_at
FROM bets INDEXED BY idx_bets_one_per_cell
WHERE cell_id BETWEEN ? AND ? AND (cell_id, user_id) > (?, ?)
  AND status <> 'insufficient_funds' AND status = 'confirmed'
ORDER BY cell_id, user_id
LIMIT ?
"""
_OPEN = """
SELECT count(*)
FROM bets INDEXED BY idx_bets_one_per_cell
WHERE cell_id BETWEEN ? AND ? AND status <> 'insufficient_funds'
  AND status IN ('pending', 'confirmed') AND idempotency_key IS NOT NULL
"""
_DECISION = """
SELECT rowid, id, user_id, cell_id, amount, min_reward_rate_bps, reward_rate_bps, liability,
       placed_at, void_reason, pricing
FROM bets
WHERE id = ?
"""
_PRICING = """
SELECT bar, price, sigma, spread, speed_bump_ms, rate_model, volatility_model
FROM pricings
WHERE bar = ?
"""
_CONFIRM = """
UPDATE bets SET status = 'confirmed', reward_rate_bps = ?, pricing = ?
WHERE rowid = ? AND id = ? AND status = 'pending'
"""
_SETTLE = """
UPDATE bets SET status = ?, payout_amount = ?, resolved_at = ?
WHERE rowid = ? AND id = ? AND status = 'confirmed'
"""
_VOID = """
UPDATE bets SET status = 'void', void_reason = ?, resolved_at = ?, pricing = coalesce(?, pricing)
WHERE rowid = ? AND id = ? AND status IN ('pending', 'confirmed')
"""
_WRITE_PRICING = """
INSERT INTO pricings (bar, price, sigma, spread, speed_bump_ms, rate_model, volatility_model)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (bar) DO NOTHING
"""
_WRITE_WINDOW = """
INSERT INTO settlements (start, width, bars, longest_gap, low, high, void, settled_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (start, width) DO NOTHING
"""
_FREE_SCOPES = """
UPDATE OR FAIL exposures SET stake = stake - (e.value ->> 1), liability = liability - (e.value ->> 2)
FROM json_each(?) e
WHERE exposures.scope = e.value ->> 0
"""


# Reading.


def pending(connection: apsw.Connection, placed_until: int, limit: int) -> list[OpenBet]:
    """Bets without a rate that were placed by `placed_until` (Unix ms), the longest waiting first."""
    return [OpenBet(*row) for row in connection.execute(_PENDING, (placed_until, limit))]


def confirmed(
    connection: apsw.Connection, start: int, width: int, after: OpenBet | None, limit: int
) -> list[OpenBet]:
    """Bets of a column that have a rate and no result, cell by cell, in each user by user;
    those after a bet of it only, so that the settled ones need not be looked through.
    """
    first, last = _cells(start, width)
    cell, user = (after.cell_id, after.user_id) if after else (first, "")
    rows = connection.execute(_CONFIRMED, (cell, last, cell, user, limit))
    return [OpenBet(*row) for row in rows]


def is_open(connection: apsw.Connection, start: int, width: int) -> bool:
    """Whether bets of a column wait for their rates or results."""
    return bool(connection.execute(_OPEN, _cells(start, width)).get)


def exposed_columns(connection: apsw.Connection, until: int) -> list[tuple[int, int]]:
    """Start and width (Unix s and s) of the columns that have open bets and end by `until`
    (Unix s), the longest past first.
    """
    rows = connection.execute(
        "SELECT scope FROM exposures WHERE scope < ? ORDER BY scope", (str(until),)
    )
    columns = {(int(start), int(width)) for (scope,) in rows for start, width in [_column(scope)]}
    return sorted(column for column in columns if sum(column) <= until)


def window_of(connection: apsw.Connection, start: int, width: int) -> Window | None:
    """What a column was decided by; None as long as it is not."""
    row = connection.execute(
        "SELECT bars, longest_gap, low, high FROM settlements WHERE start = ? AND width = ?",
        (start, width),
    ).fetchone()
    return Window(*row) if row else None


def _column(scope: str) -> list[str]:
    return scope.split(":", 2)[:2]


def _cells(start: int, width: int) -> tuple[str, str]:
    """The first and the last cell id that a column may have."""
    prefix = f"{SYMBOL}:{start}:{width}:"
    return prefix, f"{prefix}~"


def decision_of(
    connection: apsw.Connection, bet_id: str
) -> tuple[OpenBet, str | None, Pricing | None] | None:
    """A bet with what decided its rate: why it is void, if it is, and its pricing, if it has
    one. None when there is no such bet.
    """
    row = connection.execute(_DECISION, (bet_id,)).fetchone()
    if row is None:
        return None
    *bet, reason, bar = row
    pricing = connection.execute(_PRICING, (bar,)).fetchone()
    return OpenBet(*bet), reason, Pricing(*pricing) if pricing else None


# Writing.


def confirm(
    connection: apsw.Connection,
    decisions: Sequence[Confirmed | Void],
    pricings: Iterable[Pricing],
    now_ms: int,
) -> Changes:
    """Fix the rates of pending bets, or give their stakes back. Raises BooksChangedError."""
    connection.executemany(_WRITE_PRICING, list(pricings))
    fixed = [decision for decision in decisions if isinstance(decision, Confirmed)]
    _change(
        connection,
        _CONFIRM,
        [(each.reward_rate_bps, each.bar, each.bet.number, each.bet.bet_id) for each in fixed],
    )
    changes = Changes(
        [
            _changed(each.bet, "confirmed", rate=each.reward_rate_bps, payout=None, now_ms=None)
            for each in fixed
        ]
    )
    voids = [decision for decision in decisions if isinstance(decision, Void)]
    if voids:
        _void(connection, voids, now_ms, changes)
        _free(connection, [each.bet for each in voids])
    return changes


def settle(
    connection: apsw.Connection,
    settled: Sequence[Settled],
    now_ms: int,
) -> Changes:
    """Write results of confirmed bets and pay those that won. Raises BooksChangedError."""
    _change(
        connection,
        _SETTLE,
        [
            ("won" if payout else "lost", payout, now_ms, bet.number, bet.bet_id)
            for bet, payout in settled
        ],
    )
    changes = Changes(
        [
            _changed(
                *(bet, "won" if payout else "lost"),
                rate=bet.reward_rate_bps,
                payout=payout,
                now_ms=now_ms,
            )
            for bet, payout in settled
        ]
    )
    _move(connection, "PAYOUT", settled, now_ms, changes)
    return changes


def void(connection: apsw.Connection, voids: Sequence[Void], now_ms: int) -> Changes:
    """Give back the stakes of a void column's bets. Raises BooksChangedError."""
    changes = Changes()
    _void(connection, voids, now_ms, changes)
    return changes


def write_window(
    connection: apsw.Connection, start: int, width: int, window: Window, now_ms: int
) -> None:
    """Keep what a column is decided by; the first one stays."""
    connection.execute(
        _WRITE_WINDOW,
        (
            *(start, width, window.bars, window.longest_gap, window.low, window.high),
            *(int(window.void), now_ms),
        ),
    )


def close_column(connection: apsw.Connection, start: int, width: int) -> None:
    """Forget the exposures of a column whose bets are all settled."""
    column = f"{start}:{width}"
    connection.execute(
        "DELETE FROM exposures WHERE scope = ?1 OR scope BETWEEN ?1 || ':' AND ?1 || ':~'",
        (column,),
    )


def _void(
    connection: apsw.Connection, voids: Sequence[Void], now_ms: int, changes: Changes
) -> None:
    _change(
        connection,
        _VOID,
        [(reason.value, now_ms, bar, bet.number, bet.bet_id) for bet, reason, bar in voids],
    )
    changes.bets += [
        _changed(bet, "void", rate=bet.reward_rate_bps, payout=None, now_ms=now_ms)
        for bet, _, _ in voids
    ]
    refunds = [Settled(each.bet, each.bet.amount) for each in voids]
    _move(connection, "REFUND", refunds, now_ms, changes)


def _changed(
    bet: OpenBet, status: str, *, rate: int | None, payout: int | None, now_ms: int | None
) -> tuple[str, Bet]:
    return bet.user_id, Bet(
        *(bet.bet_id, bet.cell_id, bet.amount, status, rate, payout, bet.placed_at, now_ms)
    )


def _change(
    connection: apsw.Connection, statement: str, rows: Sequence[tuple[object, ...]]
) -> None:
    before = connection.total_changes()
    connection.executemany(statement, rows)
    if connection.total_changes() - before != len(rows):
        raise BooksChangedError("a bet was changed by somebody else meanwhile")


def _move(
    connection: apsw.Connection,
    ref_type: BatchRefType,
    settled: Sequence[Settled],
    now_ms: int,
    changes: Changes,
) -> None:
    """End what was open for these bets, and pay."""
    if not settled:
        return
    users = dict.fromkeys((bet.user_id for bet, _ in settled), now_ms)
    accounts = journal.read_accounts(connection, [*users, HOUSE])
    movements: list[Movement] = []
    for bet, amount in settled:
        account = accounts[bet.user_id]
        account.open_stake -= bet.amount
        account.open_liability -= bet.liability
        if amount:
            account.balance += amount
            entry_id = new_id("led", now_ms)
            movements.append(
                Movement(entry_id, bet.user_id, amount, account.balance, bet.bet_id, now_ms)
            )
            changes.balances[bet.user_id] = account.balance
    if movements:
        balance = journal.write(connection, ref_type, movements, accounts[HOUSE].balance)
        accounts[HOUSE] = Account(balance, 0)
        users[HOUSE] = now_ms
    journal.write_accounts(connection, accounts, users)


def _free(connection: apsw.Connection, bets: Sequence[OpenBet]) -> None:
    """Take bets out of the exposures of their cells and columns."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for bet in bets:
        for scope in scopes(bet.cell_id):
            sums[scope][0] += bet.amount
            sums[scope][1] += bet.liability
    rows = [(scope, stake, liability) for scope, (stake, liability) in sums.items()]
    connection.execute(_FREE_SCOPES, (as_json(rows),))
