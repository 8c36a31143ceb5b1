"""A batch of bets in the database: the books are read in one question, the decision is
written in four statements, however many bets there are.

A statement per batch and not per bet keeps the event loop's thread free: SQLite works
without Python's lock inside a statement, and takes it again after each row it hands out.
"""

from collections.abc import Sequence

import apsw
import orjson

from tap_trading.ledger import journal
from tap_trading.ledger.accounts import HOUSE
from tap_trading.ledger.journal import Account, Movement, as_json
from tap_trading.ledger.placing import (
    BetRequest,
    Books,
    Decision,
    Exposure,
    KnownBet,
    Limits,
    Outcome,
    Placed,
    Refusal,
    decide,
    scopes,
)

# One row of JSON: the accounts, the bets behind the keys, the taken cells, the exposures.
# Each asked for is [user, key, cell].
_READ = """
SELECT
  (SELECT json_group_array(json_array(u.id, u.balance, u.open_stake, u.open_liability))
   FROM (SELECT DISTINCT value ->> 0 AS id FROM json_each(?1)) e CROSS JOIN users u USING (id)),
  (SELECT balance FROM users WHERE id = 'house'),
  (SELECT json_group_array(json_array(
     b.user_id, b.idempotency_key, b.cell_id, b.amount, b.min_reward_rate_bps,
     b.id, l.balance_after, b.placed_at))
   FROM json_each(?1) e
   CROSS JOIN bets b ON b.user_id = e.value ->> 0 AND b.idempotency_key = e.value ->> 1
   LEFT JOIN transaction_ledger l
     ON l.user_id = b.user_id AND l.ref_type = 'BET' AND l.ref_id = b.id),
  (SELECT json_group_array(json_array(b.user_id, b.cell_id))
   FROM json_each(?1) e
   CROSS JOIN bets b ON b.cell_id = e.value ->> 2 AND b.user_id = e.value ->> 0
   WHERE b.refused = 0),
  (SELECT json_group_object(x.scope, json_array(x.stake, x.liability))
   FROM json_each(?2) s CROSS JOIN exposures x ON x.scope = s.value)
"""

# One row at a time: a statement that writes several keeps a copy of every page it touches,
# to be able to undo itself. `OR FAIL` spares that where a statement changes many rows.
_WRITE_BET = """
INSERT INTO bets (id, user_id, cell_id, amount, min_reward_rate_bps, status, placed_at,
                  resolved_at, idempotency_key, liability, refused)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_WRITE_EXPOSURES = """
INSERT OR FAIL INTO exposures (scope, stake, liability)
SELECT key, value ->> 0, value ->> 1 FROM json_each(?) WHERE true
ON CONFLICT (scope) DO UPDATE SET stake = excluded.stake, liability = excluded.liability
"""


class BetBooks:
    """Places batches of bets; used by the writer's thread only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def place(self, connection: apsw.Connection, requests: Sequence[BetRequest]) -> list[Outcome]:
        """Judge the requests in their order and write the decision, inside the caller's
        transaction. Returns one outcome for each.

        Raises apsw.Error, and nothing may be kept of the transaction then.
        """
        books, house = _read(connection, requests)
        decisions = decide(books, requests, self._limits)
        fresh = [decision for decision in decisions if decision.fresh]
        if fresh:
            _write(connection, books, fresh, house)
        return [decision.outcome for decision in decisions]


def _read(connection: apsw.Connection, requests: Sequence[BetRequest]) -> tuple[Books, int]:
    """The books as far as these requests concern them, and the house's balance in cents."""
    asked = [(r.user_id, r.idempotency_key, r.cell_id) for r in requests]
    wanted = {scope for r in requests if r.refusal is None for scope in scopes(r.cell_id)}
    ((accounts, house, known, taken, exposures),) = connection.execute(
        _READ, (as_json(asked), as_json(list(wanted)))
    )
    books = Books(
        accounts={user: Account(*amounts) for user, *amounts in orjson.loads(accounts)},
        known={(user, key): _known(*bet) for user, key, *bet in orjson.loads(known)},
        taken={(user, cell) for user, cell in orjson.loads(taken)},
        exposures={scope: Exposure(*sums) for scope, sums in orjson.loads(exposures).items()},
    )
    return books, house


def _known(
    cell_id: str,
    amount: int,
    min_reward_rate_bps: int | None,
    bet_id: str,
    balance_after: int | None,
    placed_at: int,
) -> KnownBet:
    """The bet behind a key; one without a ledger entry was refused for lack of money."""
    outcome: Outcome = Refusal.INSUFFICIENT_FUNDS
    if balance_after is not None:
        outcome = Placed(bet_id, cell_id, amount, balance_after, placed_at)
    return KnownBet((cell_id, amount, min_reward_rate_bps), outcome)


def _write(
    connection: apsw.Connection, books: Books, fresh: Sequence[Decision], house: int
) -> None:
    """Write the bets, their ledger entries and what they changed.

    The stakes of a batch are one journal entry of the ledger: a row for each user's side,
    then one for the house's, with the sum of them (ADR 0010).
    """
    bets: list[tuple[object, ...]] = []
    movements: list[Movement] = []
    users: dict[str, int] = {}
    exposures: dict[str, Exposure] = {}
    for request, outcome, _ in fresh:
        placed = isinstance(outcome, Placed)
        bets.append(
            (
                request.bet_id,
                request.user_id,
                *request.terms,
                "pending" if placed else "insufficient_funds",
                request.placed_at,
                None if placed else request.placed_at,
                request.idempotency_key,
                request.liability if placed else 0,
                int(not placed),
            )
        )
        if not isinstance(outcome, Placed):
            continue
        bet_id, at, user_id = request.bet_id, request.placed_at, request.user_id
        entry_id = f"led_{bet_id.removeprefix('bet_')}"
        movements.append(Movement(entry_id, user_id, -request.amount, outcome.balance, bet_id, at))
        users[user_id] = at
        for scope in scopes(request.cell_id):
            exposures[scope] = books.exposures[scope]
    connection.executemany(_WRITE_BET, bets)
    if not movements:
        return
    books.accounts[HOUSE] = Account(journal.write(connection, "BET", movements, house), 0, 0)
    users[HOUSE] = max(users.values())
    journal.write_accounts(connection, books.accounts, users)
    sums = {scope: (each.stake, each.liability) for scope, each in exposures.items()}
    connection.execute(_WRITE_EXPOSURES, (as_json(sums),))
