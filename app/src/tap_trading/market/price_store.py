"""The price database: bars, the columns that were offered, and what ops did by hand.

Every function works on a connection; whoever writes calls them inside a transaction that may
write, and holds the lease of the price service.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import apsw
import orjson

from tap_trading.base import migrations
from tap_trading.base.migrations import Migration
from tap_trading.game.grid import Column
from tap_trading.game.volatility import State, VolatilityModel
from tap_trading.market.bars import Bar

#: Of the one who makes bars.
LEASE = "price"

_BARS = """
SELECT t, open, high, low, close, sigma, spread, volatility_model, estimate
FROM bars WHERE t >= ? AND t < ? ORDER BY t
"""
_RANGES = "SELECT t, low, high FROM bars WHERE t >= ? AND t < ? ORDER BY t"
_FIRST_BAR = """
SELECT t, open, high, low, close, sigma, spread, volatility_model, estimate
FROM bars WHERE t >= ? AND t < ? ORDER BY t LIMIT 1
"""
_BAR_BEFORE = """
SELECT t, open, high, low, close, sigma, spread, volatility_model, estimate
FROM bars WHERE t < ? ORDER BY t DESC LIMIT 1
"""
_LAST_BAR = """
SELECT t, open, high, low, close, sigma, spread, volatility_model, estimate
FROM bars ORDER BY t DESC LIMIT 1
"""
_WRITE_BAR = """
INSERT INTO bars (t, open, high, low, close, sigma, spread, volatility_model, estimate)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True)
class StoredBar:
    """A bar (prices in cents) and the volatility estimate after it."""

    t: int  # Unix ms
    open: int
    high: int
    low: int
    close: int
    sigma: float | None  # per square root of a second; None while it is worth no bet
    spread: float | None  # standard deviation of its logarithm
    volatility_model: str
    estimate: tuple[float, ...]  # what that model's state holds besides time and close

    @property
    def state(self) -> State:
        """The estimate's state, of a bar whose model has states of today's shape."""
        return State(float(self.t), float(self.close), *self.estimate)


class Range(NamedTuple):
    """Where the price was during a bar, the close before it included, in cents: all that results
    depend on, and a tenth of a bar's reading.
    """

    t: int  # Unix ms
    low: int
    high: int


Action = Literal["suspend", "release"]


@dataclass(frozen=True, slots=True)
class Override:
    """Something that ops did to the market."""

    action: Action
    reason: str
    operator: str
    created_at: int  # Unix ms


def available() -> list[Migration]:
    """The migrations of the price database that this release carries, in order."""
    return migrations.available("tap_trading.market")


def migrate(path: Path, wanted: Sequence[Migration] | None = None) -> list[Migration]:
    """Bring the price database at `path` up to date, creating it if need be.

    Returns what was applied now. Raises DatabaseError.
    """
    return migrations.migrate(path, available() if wanted is None else wanted)


# Reading.


def bars(connection: apsw.Connection, begin: int, end: int) -> list[StoredBar]:
    """The bars stamped inside [begin, end), in Unix ms, oldest first."""
    return [_bar(*row) for row in connection.execute(_BARS, (begin, end))]


def ranges(connection: apsw.Connection, begin: int, end: int) -> list[Range]:
    """The ranges of the bars stamped inside [begin, end), in Unix ms, oldest first."""
    return list(map(Range._make, connection.execute(_RANGES, (begin, end))))


def first_bar(connection: apsw.Connection, begin: int, end: int) -> StoredBar | None:
    """The first bar stamped inside [begin, end), in Unix ms; None when there is none."""
    row = connection.execute(_FIRST_BAR, (begin, end)).fetchone()
    return _bar(*row) if row else None


def bar_before(connection: apsw.Connection, t: int) -> StoredBar | None:
    """The last bar stamped before `t` (Unix ms); None when there is none."""
    row = connection.execute(_BAR_BEFORE, (t,)).fetchone()
    return _bar(*row) if row else None


def last_bar(connection: apsw.Connection) -> StoredBar | None:
    """The newest bar; None when there never was one."""
    row = connection.execute(_LAST_BAR).fetchone()
    return _bar(*row) if row else None


def bars_until(connection: apsw.Connection) -> int:
    """Every bar stamped before this moment (Unix ms) is final."""
    row = connection.execute("SELECT bars_until FROM progress").fetchone()
    return int(row[0]) if row else 0


def offered_columns(connection: apsw.Connection, since: int) -> list[Column]:
    """The columns that were offered and start at `since` (Unix s) or later, soonest first."""
    rows = connection.execute(
        "SELECT start, width, step FROM offered_columns WHERE start >= ? ORDER BY start", (since,)
    )
    return [Column(*row) for row in rows]


def last_override(connection: apsw.Connection) -> Override | None:
    """What ops did last; None when they never did anything."""
    return next(iter(overrides(connection, 1)), None)


def overrides(connection: apsw.Connection, limit: int) -> list[Override]:
    """What ops did, the last first."""
    rows = connection.execute(
        "SELECT action, reason, operator, created_at FROM overrides ORDER BY id DESC LIMIT ?",
        (limit,),
    )
    return [Override(*row) for row in rows]


def index_memory(connection: apsw.Connection) -> str | None:
    """What `remember_index` wrote last."""
    row = connection.execute("SELECT state FROM index_memory").fetchone()
    return row[0] if row else None


def _bar(*row: Any) -> StoredBar:
    t, open_, high, low, close, sigma, spread, model, estimate = row
    carried = tuple(orjson.loads(estimate))
    return StoredBar(t, open_, high, low, close, sigma, spread, model, carried)


# Writing.


def write_bar(connection: apsw.Connection, bar: Bar, model: VolatilityModel, state: State) -> None:
    """Add a bar, with `model`'s state after it.

    Raises apsw.ConstraintError when there is one of that moment already.
    """
    ready = model.ready(state)
    sigma, spread = (model.sigma(state), model.spread(state)) if ready else (None, None)
    _, _, *carried = state
    estimate = orjson.dumps(carried).decode()
    connection.execute(
        _WRITE_BAR,
        (*(bar.t, bar.open, bar.high, bar.low, bar.close, sigma, spread), model.version, estimate),
    )


def finish_bars(connection: apsw.Connection, until: int) -> None:
    """Promise that no bar stamped before `until` (Unix ms) will be added any more."""
    connection.execute("UPDATE progress SET bars_until = max(bars_until, ?)", (until,))


def write_columns(connection: apsw.Connection, columns: Sequence[Column], now_ms: int) -> None:
    """Fix the steps of columns that are offered for the first time."""
    connection.executemany(
        "INSERT INTO offered_columns (start, width, step, offered_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (start, width) DO NOTHING",
        [(column.start, column.width, column.step, now_ms) for column in columns],
    )


def remember_index(connection: apsw.Connection, state: str, now_ms: int) -> None:
    """Keep what the index needs after a restart, as JSON."""
    connection.execute(
        "INSERT INTO index_memory (id, saved_at, state) VALUES (1, ?, ?) ON CONFLICT (id)"
        " DO UPDATE SET saved_at = excluded.saved_at, state = excluded.state",
        (now_ms, state),
    )


def write_override(connection: apsw.Connection, override: Override) -> None:
    """Add what ops do now; it is in force within a second."""
    connection.execute(
        "INSERT INTO overrides (action, reason, operator, created_at) VALUES (?, ?, ?, ?)",
        (override.action, override.reason, override.operator, override.created_at),
    )


def drop_bars(connection: apsw.Connection, before: int, limit: int) -> int:
    """Drop up to `limit` bars stamped before `before` (Unix ms), and columns long past.

    Returns how many bars were dropped.
    """
    connection.execute(
        "DELETE FROM bars WHERE t IN (SELECT t FROM bars WHERE t < ? ORDER BY t LIMIT ?)",
        (before, limit),
    )
    dropped = connection.changes()
    connection.execute("DELETE FROM offered_columns WHERE start < ?", (before // 1000,))
    return dropped
