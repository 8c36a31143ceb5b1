"""What a price service continues from: everything that the one before has stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import apsw
import orjson

from tap_trading.base import logger
from tap_trading.game.grid import Column
from tap_trading.game.settlement import MAX_GAP_MS
from tap_trading.game.volatility import State, VolatilityModel
from tap_trading.market import price_store
from tap_trading.market.bars import Bar
from tap_trading.market.point import BAR_MS
from tap_trading.market.price_store import Override, StoredBar

#: An estimate of another model is made anew from the bars of so long, in ms.
_REPLAYED_MS = 30 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where the market was left."""

    last: Bar | None  # None: another source's bars, or none at all
    state: State | None  # the volatility's after it
    after: int | None  # bars have to be stamped later than this, Unix ms
    columns: Mapping[int, Column]  # that were offered, by their start
    index: Mapping[str, Any]
    breaker: Mapping[str, Any]
    override: Override | None


def memory(source: str, index: Mapping[str, Any], breaker: Mapping[str, Any]) -> str:
    """What has to be remembered besides the bars, as JSON."""
    return orjson.dumps({"source": source, "index": index, "breaker": breaker}).decode()


def read(
    connection: apsw.Connection, source: str, model: VolatilityModel, width_s: int, now: int
) -> Continuation:
    """Where `source` goes on at `now` (Unix ms), with columns of this width in seconds.

    Another source's prices are another market: its bars are not continued, and the first bar
    comes so late that no column is settled by both.
    """
    remembered = _remembered(connection)
    last = price_store.last_bar(connection)
    until = price_store.bars_until(connection)
    after = max(until - BAR_MS, last.t if last else 0) or None
    same = remembered.get("source") == source
    if last is not None and not same:
        after = max(after or 0, last.t + MAX_GAP_MS + BAR_MS)
        logger.get().warning(
            "prices of another source before this one", before=remembered.get("source")
        )
        last = None
    columns = price_store.offered_columns(connection, now // 1000)
    return Continuation(
        last=Bar(last.t, last.open, last.high, last.low, last.close) if last else None,
        state=_state(connection, model, last) if last else None,
        after=after,
        columns={column.start: column for column in columns if column.width == width_s},
        index=remembered.get("index", {}) if same else {},
        breaker=remembered.get("breaker", {}) if same else {},
        override=price_store.last_override(connection),
    )


def _remembered(connection: apsw.Connection) -> dict[str, Any]:
    stored = price_store.index_memory(connection)
    found = orjson.loads(stored) if stored else {}
    return found if isinstance(found, dict) else {}


def _state(connection: apsw.Connection, model: VolatilityModel, last: StoredBar) -> State:
    """The volatility after the last bar, by this model."""
    if last.volatility_model == model.version:
        return last.state
    recent = price_store.bars(connection, last.t - _REPLAYED_MS, last.t + BAR_MS)
    first, *later = ((bar.t, bar.close) for bar in recent)
    start = model.start(*first)
    return [start, *model.follow(start, later)][-1]
