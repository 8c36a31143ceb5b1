"""Migrations: ordered, once, each whole or not at all; and the schema's own rules."""

from pathlib import Path

import apsw
import pytest

from tap_trading.base.db import DatabaseError, ReaderPool, open_writer
from tap_trading.base.migrations import Migration
from tap_trading.ledger.migrations import available, check_schema, migrate

FIRST = Migration(1, "001_a.sql", "CREATE TABLE a (x INTEGER) STRICT;")
SECOND = Migration(2, "002_b.sql", "CREATE TABLE b (x INTEGER) STRICT;")


def tables(path: Path) -> set[str]:
    connection = open_writer(path)
    names = {
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
    }
    connection.close()
    return names


def test_each_is_applied_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    assert migrate(path, [FIRST]) == [FIRST]
    assert migrate(path, [FIRST, SECOND]) == [SECOND]
    assert migrate(path, [FIRST, SECOND]) == []
    assert tables(path) == {"schema_migrations", "a", "b"}


def test_one_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    broken = Migration(
        2, "002_c.sql", "CREATE TABLE c (x INTEGER) STRICT; INSERT INTO nope VALUES (1);"
    )
    with pytest.raises(DatabaseError, match=r"002_c\.sql failed and changed nothing: .*nope"):
        migrate(path, [FIRST, broken])
    assert tables(path) == {"schema_migrations", "a"}
    assert migrate(path, [FIRST, SECOND]) == [SECOND]


def test_a_changed_migration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    migrate(path, [FIRST])
    changed = Migration(1, FIRST.name, FIRST.sql + " -- edited")
    with pytest.raises(DatabaseError, match=r"001_a\.sql was changed"):
        migrate(path, [changed, SECOND])
    assert "b" not in tables(path)


def test_an_unwritable_place_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="No such file or directory"):
        migrate(tmp_path / "no" / "m.db")


async def test_a_release_refuses_an_older_schema(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    migrate(path, [])
    pool = ReaderPool(path, size=1)
    await pool.open()
    with pytest.raises(
        DatabaseError,
        match=f"schema is 0, this release needs {available()[-1].version}; run: tap migrate",
    ):
        await check_schema(pool)
    migrate(path)
    assert await check_schema(pool) == available()[-1].version
    await pool.close()


@pytest.fixture
def connection(database: Path) -> object:
    connection = open_writer(database)
    connection.execute("INSERT INTO users VALUES ('u', 'w', 500, 1, 0, 0, 0, 0)")
    yield connection
    connection.close()


def test_the_schema_is_strict_and_indexed_as_planned(connection: apsw.Connection) -> None:
    listed = {row[1]: row[5] for row in connection.execute("PRAGMA table_list")}
    assert all(listed[name] for name in ("users", "bets", "transaction_ledger", "idempotency_keys"))
    indexes = {
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='index'")
    }
    assert {
        "idx_bets_pending",
        "idx_bets_user",
        "idx_ledger_user_time",
        "idx_ledger_ref",
    } <= indexes


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE users SET balance = -1 WHERE id = 'u'",
        "UPDATE users SET balance = 'many' WHERE id = 'u'",
        "UPDATE users SET open_stake = -1 WHERE id = 'u'",
        "INSERT INTO exposures (scope, stake) VALUES ('1764000000:5', -1)",
        "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at) VALUES ('b', 'u', 'c', 0, 'pending', 1)",
        "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at) VALUES ('b', 'u', 'c', 1, 'maybe', 1)",
        "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at) VALUES ('b', 'x', 'c', 1, 'pending', 1)",
        "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at) VALUES ('b', 'u', 'c', 1.5, 'pending', 1)",
        "INSERT INTO transaction_ledger VALUES ('t', 'u', -600, -100, 'BET', 'b', NULL, 1)",
        "INSERT INTO transaction_ledger VALUES ('t', 'u', 1, 1, 'GIFT', 'b', NULL, 1)",
        "INSERT INTO transaction_ledger VALUES ('t', 'u', 1, 1, 'BET', 'b', '{', 1)",
    ],
)
def test_the_schema_refuses(connection: apsw.Connection, statement: str) -> None:
    with pytest.raises(apsw.ConstraintError):
        connection.execute(statement)


def test_the_house_alone_may_owe(connection: apsw.Connection) -> None:
    connection.execute("UPDATE users SET balance = -500 WHERE id = 'house'")


def test_the_ledger_is_append_only(connection: apsw.Connection) -> None:
    connection.execute(
        "INSERT INTO transaction_ledger VALUES ('t', 'u', 500, 500, 'DEPOSIT', 'd', NULL, 1)"
    )
    for statement in (
        "UPDATE transaction_ledger SET amount = 1",
        "DELETE FROM transaction_ledger",
        "REPLACE INTO transaction_ledger VALUES ('t', 'u', 1, 1, 'DEPOSIT', 'd', NULL, 1)",
    ):
        with pytest.raises(apsw.ConstraintError, match="append-only"):
            connection.execute(statement)
    with pytest.raises(apsw.ConstraintError, match="UNIQUE"):
        connection.execute(
            "INSERT INTO transaction_ledger VALUES ('t2', 'u', 1, 501, 'DEPOSIT', 'd', NULL, 1)"
        )


def test_one_bet_per_user_and_cell_unless_it_was_not_paid(connection: apsw.Connection) -> None:
    def bet(name: str, status: str) -> None:
        connection.execute(
            "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at, refused)"
            " VALUES (?, 'u', 'c', 1, ?, 1, ?)",
            (name, status, status == "insufficient_funds"),
        )

    bet("unpaid", "insufficient_funds")
    bet("void", "void")
    with pytest.raises(apsw.ConstraintError):
        bet("again", "pending")
    bet("unpaid again", "insufficient_funds")


def test_a_key_stands_for_one_bet_of_its_user(connection: apsw.Connection) -> None:
    def bet(name: str, cell: str, key: str | None) -> None:
        connection.execute(
            "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at, idempotency_key)"
            " VALUES (?, 'u', ?, 1, 'pending', 1, ?)",
            (name, cell, key),
        )

    bet("of schema 1", "a", None)
    bet("another of schema 1", "b", None)
    bet("first", "c", "k")
    with pytest.raises(apsw.ConstraintError, match="idempotency_key"):
        bet("second", "d", "k")


def test_a_release_of_schema_1_keeps_working(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    migrate(path, available()[:1])
    connection = open_writer(path)
    user = "INSERT INTO users (id, wallet_address, created_at, updated_at) VALUES (?, ?, 0, 0)"
    bet = (
        "INSERT INTO bets (id, user_id, cell_id, amount, min_reward_rate_bps, status, placed_at)"
        " VALUES (?, 'u', ?, 100, NULL, 'pending', 1)"
    )
    connection.execute(user, ("u", "w"))
    connection.execute(bet, ("before", "a"))
    connection.close()
    migrate(path)
    connection = open_writer(path)
    connection.execute(bet, ("after", "b"))
    connection.execute("INSERT INTO idempotency_keys VALUES ('u', 'k', x'00', 'after', '{}', 1)")
    with pytest.raises(apsw.ConstraintError):
        connection.execute(bet, ("twice", "b"))
    connection.close()
