"""The audit: proof that the ledger is whole, or sentences that say where it is not.

All questions are asked of one moment, in a read transaction that the writer never waits
for. Each is one statement whose rows are what is wrong, so that millions of entries stay
inside SQLite; what it has to sort goes to temporary files and not to memory.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import apsw

from tap_trading.base.db import DatabaseError

#: The first schema whose weeks are archived.
_OLDEST_SCHEMA = 4

#: How many sentences a report holds for each question; all findings are counted.
LISTED = 20

_TEMPORARY_FILES = 1  # PRAGMA temp_store


@dataclass(frozen=True, slots=True)
class _Question:
    """A statement that selects what is wrong, and the sentence for each of its rows."""

    sql: str
    sentence: str


_QUESTIONS = (
    _Question(
        "SELECT sum(amount) FROM present_entries HAVING sum(amount) <> 0",
        "all entries together are {} cents instead of 0",
    ),
    _Question(
        """
        SELECT u.id, u.balance, coalesce(o.balance, 0) + coalesce(l.total, 0)
        FROM users u
        LEFT JOIN opening_balances o
          ON o.week = (SELECT week FROM horizon) AND o.user_id = u.id
        LEFT JOIN (SELECT user_id, sum(amount) AS total FROM present_entries GROUP BY user_id) l
          ON l.user_id = u.id
        WHERE u.balance <> coalesce(o.balance, 0) + coalesce(l.total, 0)
        """,
        "{} has a balance of {} cents, but its entries add up to {}",
    ),
    _Question(
        """
        SELECT week, sum(balance) FROM opening_balances
        WHERE week = (SELECT week FROM horizon)
        GROUP BY week HAVING sum(balance) <> 0
        """,
        "the balances at the end of {} are together {} cents instead of 0",
    ),
    _Question(
        "SELECT id, balance FROM users WHERE balance < 0 AND id <> 'house'",
        "{} owes: its balance is {} cents",
    ),
    _Question(
        """
        SELECT id, user_id, balance_after, before, amount
        FROM (
          SELECT e.id, e.user_id, e.amount, e.balance_after,
                 coalesce(
                   lag(e.balance_after) OVER (PARTITION BY e.user_id ORDER BY e.number),
                   o.balance, 0
                 ) AS before
          FROM present_entries e
          LEFT JOIN opening_balances o
            ON o.week = (SELECT week FROM horizon) AND o.user_id = e.user_id
        )
        WHERE balance_after <> before + amount
        """,
        "entry {} of {} says {} cents afterwards, but it was {} before and {} were moved",
    ),
    # A journal entry is a row for each user's side and then the house's, together 0.
    _Question(
        """
        SELECT id, ref_type, ref_id, total - before
        FROM (
          SELECT id, ref_type, ref_id, total, lag(total, 1, 0) OVER (ORDER BY number) AS before
          FROM (
            SELECT id, user_id, ref_type, ref_id, number,
                   sum(amount) OVER (ORDER BY number) AS total
            FROM present_entries
          )
          WHERE user_id = 'house'
        )
        WHERE total <> before
        """,
        "entry {} of the house for {} {} and the users' entries before it are together {} cents"
        " instead of 0",
    ),
    # What the bets of a batch move shares one entry of the house; anything else is one of each.
    _Question(
        """
        SELECT ref_type, ref_id, count(*), count(*) FILTER (WHERE user_id = 'house'), sum(amount)
        FROM present_entries
        WHERE ref_type NOT IN ('BET', 'PAYOUT', 'REFUND')
        GROUP BY ref_type, ref_id
        HAVING count(*) <> 2 OR count(*) FILTER (WHERE user_id = 'house') <> 1 OR sum(amount) <> 0
        """,
        "{} {} is not an entry of a user and its opposite of the house: it has {} in all, {} of"
        " the house, together {} cents",
    ),
    # A bet without a key is one of schema 1, whose bets moved no money. The stake of a bet that
    # was carried over from the week before is in an archive.
    _Question(
        """
        SELECT b.id, b.user_id, b.status, b.amount, coalesce(b.moved || ' cents', 'nothing')
        FROM (
          SELECT b.id, b.user_id, b.status, b.amount, b.idempotency_key,
                 CASE WHEN e.id IS NULL OR c.amount IS NULL THEN coalesce(e.amount, c.amount)
                 ELSE e.amount + c.amount END AS moved
          FROM present_bets b
          LEFT JOIN transaction_ledger e
            ON e.user_id = b.user_id AND e.ref_type = 'BET' AND e.ref_id = b.id
            AND e.rowid > (SELECT entries FROM horizon)
          LEFT JOIN carried_bets c
            ON c.week = (SELECT week FROM horizon) AND c.bet_id = b.id
        ) b
        WHERE CASE
          WHEN b.status = 'insufficient_funds' THEN b.moved IS NOT NULL
          WHEN b.moved IS NULL THEN b.idempotency_key IS NOT NULL
          ELSE b.moved <> -b.amount
        END
        """,
        "bet {} of {} is {} with a stake of {} cents, but its entry moved {}",
    ),
    # A bet that was carried over has to be there.
    _Question(
        """
        SELECT c.bet_id, c.user_id, c.week
        FROM carried_bets c LEFT JOIN bets b ON b.id = c.bet_id AND b.user_id = c.user_id
        WHERE c.week = (SELECT week FROM horizon) AND b.id IS NULL
        """,
        "bet {} of {} was carried over from {}, but is not there",
    ),
    # Paid once if it was won, given back once if it is void, and neither in any other case.
    _Question(
        """
        SELECT b.id, b.user_id, b.status, b.amount,
               coalesce(b.reward_rate_bps || ' basis points', 'no rate'),
               coalesce(b.payout_amount || ' cents', 'nothing'),
               coalesce(p.amount || ' cents', 'nothing'), coalesce(r.amount || ' cents', 'nothing')
        FROM present_bets b
        LEFT JOIN transaction_ledger p
          ON p.user_id = b.user_id AND p.ref_type = 'PAYOUT' AND p.ref_id = b.id
        LEFT JOIN transaction_ledger r
          ON r.user_id = b.user_id AND r.ref_type = 'REFUND' AND r.ref_id = b.id
        WHERE p.amount IS NOT CASE WHEN b.status = 'won' THEN b.payout_amount END
          OR r.amount IS NOT CASE WHEN b.status = 'void' THEN b.amount END
          OR b.payout_amount IS NOT CASE
            WHEN b.status = 'won' THEN b.amount * b.reward_rate_bps / 10000
            WHEN b.status = 'lost' THEN 0
          END
        """,
        "bet {} of {} is {} with a stake of {} cents at {} and a payout of {}, but it was paid {}"
        " and given back {}",
    ),
    _Question(
        """
        SELECT e.id, e.user_id, e.amount, e.ref_id, coalesce('is of ' || b.user_id, 'is not there')
        FROM present_entries e
        LEFT JOIN bets b ON b.id = e.ref_id
        WHERE e.ref_type IN ('BET', 'PAYOUT', 'REFUND') AND e.user_id <> 'house'
          AND e.user_id IS NOT b.user_id
          AND NOT (e.ref_type = 'BET' AND b.id IS NULL AND EXISTS (
            SELECT 1 FROM carried_bets c
            WHERE c.week > (SELECT week FROM horizon) AND c.bet_id = e.ref_id
              AND c.user_id = e.user_id AND c.amount = e.amount
          ))
        """,
        "entry {} of {} moved {} cents for bet {}, which {}",
    ),
    # Bets that count as open: the open ones, and settled ones whose users are not released from
    # their column yet. The plus keeps the index of users out: read in the order of the table, of
    # which few bets are open, this is twenty times as fast.
    _Question(
        """
        SELECT u.id, u.open_stake, u.open_liability, coalesce(o.stake, 0), coalesce(o.liability, 0)
        FROM users u
        LEFT JOIN (
          SELECT user_id, sum(amount) AS stake, sum(liability) AS liability
          FROM (
            SELECT b.user_id, b.amount, b.liability
            FROM bets b
            LEFT JOIN transaction_ledger e
              ON e.user_id = b.user_id AND e.ref_type = 'BET' AND e.ref_id = b.id
            WHERE b.status IN ('pending', 'confirmed')
              AND (b.idempotency_key IS NOT NULL OR e.id IS NOT NULL)
            UNION ALL
            SELECT b.user_id, b.amount, b.liability
            FROM settlements s
            JOIN bets b
              ON b.cell_id BETWEEN 'btc-usd:' || s.start || ':' || s.width || ':'
                AND 'btc-usd:' || s.start || ':' || s.width || ':~'
              AND b.refused = 0 AND b.user_id > s.released
            WHERE s.released IS NOT NULL
              AND (b.status IN ('won', 'lost')
                OR (b.status = 'void' AND b.void_reason = 'feed_outage'))
          )
          GROUP BY +user_id
        ) o ON o.user_id = u.id
        WHERE u.open_stake <> coalesce(o.stake, 0) OR u.open_liability <> coalesce(o.liability, 0)
        """,
        "{} has an open stake of {} and an open liability of {} cents, but its bets that count as"
        " open add up to {} and {}",
    ),
    _Question(
        """
        SELECT wanted.value
        FROM json_each('["ledger_is_append_only_update","ledger_is_append_only_delete"]') wanted
        WHERE NOT EXISTS (
          SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = wanted.value
        )
        """,
        "the trigger {} is missing: entries can be changed",
    ),
    _Question(
        "PRAGMA foreign_key_check",
        "row {1} of {0} points to a row of {2} that is not there",
    ),
)


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit found."""

    users: int  # without the house
    entries: int
    bets: int
    found: int  # all findings
    findings: tuple[str, ...]  # a sentence for each, but not for more than LISTED of a kind
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return self.found == 0


def audit(connection: apsw.Connection, *, inside: bool = False) -> Report:
    """Audit the database of `connection`, which must not be inside a transaction; with `inside`
    it is, and what that transaction has is audited.

    Raises DatabaseError when it cannot be read or its schema knows no money yet.
    """
    began = time.perf_counter()
    try:
        with nullcontext() if inside else _one_moment(connection):
            _check_schema(connection)
            users, entries, bets = connection.execute(
                "SELECT (SELECT count(*) FROM users WHERE id <> 'house'),"
                " (SELECT count(*) FROM present_entries), (SELECT count(*) FROM present_bets)"
            ).fetchone() or (0, 0, 0)
            found, listed = 0, []
            for question in _QUESTIONS:
                for number, sentence in enumerate(_ask(connection, question)):
                    found += 1
                    if number < LISTED:
                        listed.append(sentence)
    except apsw.Error as error:
        raise DatabaseError(f"{_name(connection)} cannot be audited: {error}") from error
    return Report(users, entries, bets, found, tuple(listed), time.perf_counter() - began)


@contextmanager
def _one_moment(connection: apsw.Connection) -> Iterator[None]:
    """All reads inside see the same state, and sort in temporary files."""
    kept = connection.pragma("temp_store")
    connection.pragma("temp_store", _TEMPORARY_FILES)
    try:
        connection.execute("BEGIN")
        try:
            yield
        finally:
            if connection.in_transaction:  # an error may have ended it
                connection.execute("ROLLBACK")
    finally:
        connection.pragma("temp_store", kept)


def _name(connection: apsw.Connection) -> str:
    return connection.db_filename("main")


def _check_schema(connection: apsw.Connection) -> None:
    version = 0
    if connection.table_exists("main", "schema_migrations"):
        [[version]] = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations")
    if version < _OLDEST_SCHEMA:
        raise DatabaseError(
            f"{_name(connection)} has schema {version}, the audit needs"
            f" {_OLDEST_SCHEMA}; run: tap migrate"
        )


def _ask(connection: apsw.Connection, question: _Question) -> Iterator[str]:
    try:
        for row in connection.execute(question.sql):
            yield question.sentence.format(*row)
    except apsw.SQLError as error:
        if "integer overflow" not in str(error):
            raise
        yield "amounts are so large that they cannot be added up"
