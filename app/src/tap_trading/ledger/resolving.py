"""Bets after they were placed: confirmed, won, lost or void, with all that it moves.

Every function works inside the caller's transaction. A change of a bet names the status that
it comes from, and a payout or refund is an entry of the ledger whose reference is unique: if a
bet is not as the caller saw it, the whole transaction fails and nothing is moved.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apsw
import orjson

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


class Decided(NamedTuple):
    """A bet of any status, and what decided its rate."""

    bet: OpenBet
    status: str
    payout_amount: int | None  # cents; None until the bet is settled
    void_reason: str | None
    pricing: Pricing | None


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
SELECT json_group_array(number)
FROM (
  SELECT rowid AS number
  FROM bets INDEXED BY idx_bets_one_per_cell
  WHERE cell_id BETWEEN ? AND ? AND refused = 0 AND status = 'confirmed'
  ORDER BY rowid
)
"""
_READ = """
SELECT b.rowid, b.id, b.user_id, b.cell_id, b.amount, b.min_reward_rate_bps, b.reward_rate_bps,
       b.liability, b.placed_at
FROM json_each(?) e CROSS JOIN bets b ON b.rowid = e.value
WHERE b.status = 'confirmed'
"""
_WAITS = """
SELECT EXISTS (
  SELECT 1
  FROM bets INDEXED BY idx_bets_pending
  WHERE status = 'pending' AND cell_id BETWEEN ? AND ? AND idempotency_key IS NOT NULL
)
"""
# What was void before its column closed was released at once.
_UNRELEASED = """
SELECT user_id, sum(amount), sum(liability)
FROM bets INDEXED BY idx_bets_one_per_cell
WHERE cell_id BETWEEN ? AND ? AND refused = 0 AND user_id > ?
  AND (status IN ('won', 'lost') OR (status = 'void' AND void_reason = 'feed_outage'))
GROUP BY user_id
ORDER BY user_id
"""
# A row for each id, in their order.
_DECIDED = """
SELECT b.rowid, b.id, b.user_id, b.cell_id, b.amount, b.min_reward_rate_bps, b.reward_rate_bps,
       b.liability, b.placed_at,
       b.status, b.payout_amount, b.void_reason,
       p.bar, p.price, p.sigma, p.spread, p.speed_bump_ms, p.rate_model, p.volatility_model
FROM json_each(?) e LEFT JOIN bets b ON b.id = e.value LEFT JOIN pricings p ON p.bar = b.pricing
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
_RELEASE_USERS = """
UPDATE OR FAIL users
SET open_stake = open_stake - (e.value ->> 1), open_liability = open_liability - (e.value ->> 2)
FROM json_each(?) e
WHERE users.id = e.value ->> 0
"""
_RELEASED = "UPDATE settlements SET released = ? WHERE start = ? AND width = ? AND released = ?"
_FREE_SCOPES = """
UPDATE OR FAIL exposures SET stake = stake - (e.value ->> 1), liability = liability - (e.value ->> 2)
FROM json_each(?) e
WHERE exposures.scope = e.value ->> 0
"""


# Reading.


def pending(connection: apsw.Connection, placed_until: int, limit: int) -> list[OpenBet]:
    """Bets without a rate that were placed by `placed_until` (Unix ms), the longest waiting first."""
    return [OpenBet(*row) for row in connection.execute(_PENDING, (placed_until, limit))]


def confirmed(connection: apsw.Connection, start: int, width: int) -> list[int]:
    """Rows of a column's bets that have a rate and no result, in their order: bets of a moment
    lie together, and so do their references in the ledger.
    """
    return list(orjson.loads(connection.execute(_CONFIRMED, _cells(start, width)).get))


def read(connection: apsw.Connection, numbers: Sequence[int]) -> list[OpenBet]:
    """The bets of these rows, less those that are settled already."""
    return list(map(OpenBet._make, connection.execute(_READ, (as_json(numbers),))))


def waits(connection: apsw.Connection, start: int, width: int) -> bool:
    """Whether bets of a column wait for their rates."""
    return bool(connection.execute(_WAITS, _cells(start, width)).get)


def unreleased(
    connection: apsw.Connection, start: int, width: int, released: str
) -> list[tuple[str, int, int]]:
    """Users after `released` with settled bets in a column, by id: the stakes and liabilities of
    these, in cents.
    """
    return list(connection.execute(_UNRELEASED, (*_cells(start, width), released)))


def exposed_columns(connection: apsw.Connection, until: int) -> list[tuple[int, int]]:
    """Start and width (Unix s and s) of the columns that have open bets and end by `until`
    (Unix s), the longest past first.
    """
    rows = connection.execute(
        "SELECT scope FROM exposures WHERE scope < ? ORDER BY scope", (str(until),)
    )
    columns = {(int(start), int(width)) for (scope,) in rows for start, width in [_column(scope)]}
    return sorted(column for column in columns if sum(column) <= until)


def window_of(
    connection: apsw.Connection, start: int, width: int
) -> tuple[Window, str | None] | None:
    """What a column was decided by, and the last user who was released from it: "" for none,
    None when all were. None as long as it is not decided.
    """
    row = connection.execute(
        "SELECT bars, longest_gap, low, high, released FROM settlements"
        " WHERE start = ? AND width = ?",
        (start, width),
    ).fetchone()
    if row is None:
        return None
    *window, released = row
    return Window(*window), released


def _column(scope: str) -> list[str]:
    return scope.split(":", 2)[:2]


def _cells(start: int, width: int) -> tuple[str, str]:
    """The first and the last cell id that a column may have."""
    prefix = f"{SYMBOL}:{start}:{width}:"
    return prefix, f"{prefix}~"


def decided(connection: apsw.Connection, bet_ids: Sequence[str]) -> list[Decided | None]:
    """Each of these bets with what decided its rate; None for one that there is not."""
    return [
        None if row[0] is None else _decided(row)
        for row in connection.execute(_DECIDED, (as_json(bet_ids),))
    ]


def _decided(row: tuple[Any, ...]) -> Decided:
    bet, (status, payout_amount, void_reason), pricing = row[:9], row[9:12], row[12:]
    return Decided(
        *(OpenBet._make(bet), status, payout_amount, void_reason),
        None if pricing[0] is None else Pricing._make(pricing),
    )


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
        _void(connection, voids, now_ms, changes, at_once=True)
        _free(connection, [each.bet for each in voids])
    return changes


def settle(
    connection: apsw.Connection, settled: Sequence[Settled], now_ms: int, *, at_once: bool
) -> Changes:
    """Write results of confirmed bets and pay those that won.

    Their users are released `at_once`, or with all of their column by `release`. Raises
    BooksChangedError.
    """
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
    moved = settled if at_once else [each for each in settled if each.payout]
    _move(connection, "PAYOUT", moved, now_ms, changes, at_once=at_once)
    return changes


def void(
    connection: apsw.Connection, voids: Sequence[Void], now_ms: int, *, at_once: bool
) -> Changes:
    """Give back the stakes of a void column's bets; else like `settle`."""
    changes = Changes()
    _void(connection, voids, now_ms, changes, at_once=at_once)
    return changes


def release(
    connection: apsw.Connection,
    column: tuple[int, int],
    users: Sequence[tuple[str, int, int]],
    before: str,
    *,
    last: bool,
) -> None:
    """Let the settled bets of a column, given by start and width, no longer count as open for
    these users: the next ones after `before`, and the `last` ones of it.

    Raises BooksChangedError.
    """
    until = None if last else users[-1][0]
    _change(connection, _RELEASED, [(until, *column, before)])
    if users:
        connection.execute(_RELEASE_USERS, (as_json(users),))


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
    connection: apsw.Connection,
    voids: Sequence[Void],
    now_ms: int,
    changes: Changes,
    *,
    at_once: bool,
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
    _move(connection, "REFUND", refunds, now_ms, changes, at_once=at_once)


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
        raise BooksChangedError("the books were changed by somebody else meanwhile")


def _move(
    connection: apsw.Connection,
    ref_type: BatchRefType,
    settled: Sequence[Settled],
    now_ms: int,
    changes: Changes,
    *,
    at_once: bool,
) -> None:
    """Pay for these bets, and release their users if that is done at once."""
    if not settled:
        return
    users = dict.fromkeys((bet.user_id for bet, _ in settled), now_ms)
    accounts = journal.read_accounts(connection, [*users, HOUSE])
    movements: list[Movement] = []
    for bet, amount in settled:
        account = accounts[bet.user_id]
        if at_once:
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
