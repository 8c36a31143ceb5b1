"""A lease: one holder at a time, and one that was taken over is fenced off."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tap_trading.base.db import open_writer
from tap_trading.base.lease import FencedError, Lease

TTL_MS = 1500
NOW = 1_764_000_000_000


@pytest.fixture
def connection(database: Path) -> Iterator[apsw.Connection]:
    connection = open_writer(database)
    yield connection
    connection.close()


def lease(holder: str, name: str = "job") -> Lease:
    return Lease(name, holder, TTL_MS)


def test_one_at_a_time(connection: apsw.Connection) -> None:
    one, two = lease("one"), lease("two")
    assert one.take(connection, NOW)
    assert not two.take(connection, NOW + TTL_MS - 1)
    one.renew(connection, NOW + TTL_MS - 1)
    assert not two.take(connection, NOW + TTL_MS)
    assert two.take(connection, NOW + 2 * TTL_MS)
    two.renew(connection, NOW + 2 * TTL_MS)


def test_one_that_was_taken_over_is_fenced_off(connection: apsw.Connection) -> None:
    one, two = lease("one"), lease("two")
    one.take(connection, NOW)
    two.take(connection, NOW + TTL_MS)
    with pytest.raises(FencedError):
        one.renew(connection, NOW + TTL_MS)
    one.release(connection)  # is not the other's
    two.renew(connection, NOW + TTL_MS)
    assert not one.take(connection, NOW + TTL_MS + 1)


def test_it_is_kept_though_late_as_long_as_nobody_took_it(connection: apsw.Connection) -> None:
    one = lease("one")
    one.take(connection, NOW)
    one.renew(connection, NOW + 10 * TTL_MS)


def test_released_it_is_free_at_once(connection: apsw.Connection) -> None:
    one, two = lease("one"), lease("two")
    one.take(connection, NOW)
    one.release(connection)
    assert two.take(connection, NOW)
    with pytest.raises(FencedError):
        one.renew(connection, NOW)


def test_a_clock_that_was_set_back_locks_nobody_out(connection: apsw.Connection) -> None:
    one, two = lease("one"), lease("two")
    one.take(connection, NOW + 3_600_000)
    assert two.take(connection, NOW)


def test_leases_of_other_names_are_others(connection: apsw.Connection) -> None:
    assert lease("one").take(connection, NOW)
    assert lease("two", "another job").take(connection, NOW)


def test_without_having_taken_it_nothing_is_proved(connection: apsw.Connection) -> None:
    with pytest.raises(FencedError):
        lease("one").renew(connection, NOW)
