"""Offers: whole on the wire, and rates by the model for the rows around the price."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.game import cell as cells
from tap_trading.game import grid
from tap_trading.game.grid import Column
from tap_trading.game.rates import RateModel, step_for
from tap_trading.market.bars import Bar
from tap_trading.market.offer import Offer, decimal_rate, decode, grid_fields, offered_cells
from tap_trading.market.state import MarketState

RATES = RateModel()
T = 1_764_000_001_900
BAR = Bar(T, 8_421_500, 8_421_600, 8_421_400, 8_421_550)
SIGMA, SPREAD = 7e-5, 0.2
GEOMETRY = grid.Geometry(width_s=5, columns=8, rows=12)


def columns(step: int) -> list[Column]:
    return [Column(start, 5, step) for start in grid.starts(GEOMETRY, T + 100)]


@given(
    st.builds(
        Offer,
        t=st.integers(0, 2**45),
        state=st.sampled_from(MarketState),
        reason=st.none() | st.sampled_from(["quorum_lost", "manual"]),
        retry_in_ms=st.none() | st.integers(0, 60_000),
        columns=st.lists(
            st.builds(Column, st.integers(0, 2**32), st.integers(1, 3600), st.integers(1, 10**6)),
            max_size=3,
        ).map(tuple),
        cells=st.dictionaries(st.text(max_size=20), st.integers(1, 10**6), max_size=5),
    )
)
def test_an_offer_comes_through_redis_as_it_was(offer: Offer) -> None:
    assert decode(offer.encode()) == offer


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"t":"x","state":"open","reason":null,"retry_in_ms":null,"columns":[],"cells":{}}',
        b'{"t":1,"state":"ajar","reason":null,"retry_in_ms":null,"columns":[],"cells":{}}',
        b'{"t":1,"state":"open","reason":null,"retry_in_ms":null,"columns":[[1]],"cells":{}}',
        b'{"t":1,"state":"open","reason":null,"retry_in_ms":null,"columns":[],"cells":[1]}',
        b'{"t":1,"state":"open","reason":null,"retry_in_ms":null,"columns":[],"cells":{"a":"b"}}',
    ],
)
def test_what_is_no_offer_is_refused(wire: bytes) -> None:
    with pytest.raises(ValueError, match="not an offer"):
        decode(wire)


def test_each_cell_has_the_models_rate_with_the_bars_end_as_now() -> None:
    step = step_for(BAR.close, SIGMA)
    found = offered_cells(RATES, BAR, SIGMA, SPREAD, columns(step), GEOMETRY.rows)
    assert len(found) > 40
    for column in columns(step):
        for low in grid.rows(column, BAR.close, GEOMETRY.rows):
            lead_s = column.start - (T + 100) / 1000
            chance = RATES.probability(BAR.close, SIGMA, SPREAD, lead_s, 5, low, low + step)
            rate = int(RATES.rate_bps(chance))
            assert found.get(cells.Cell(column.start, 5, low, low + step).cell_id, 0) == rate


def test_columns_keep_their_own_steps() -> None:
    first, second = Column(1_764_000_010, 5, 500), Column(1_764_000_015, 5, 1_000)
    found = offered_cells(RATES, BAR, SIGMA, SPREAD, [first, second], 6)
    heights = {}
    for cell_id in found:
        cell = cells.parse(cell_id)
        assert cell
        heights.setdefault(cell.start, set()).add(cell.high - cell.low)
    assert heights == {first.start: {500}, second.start: {1_000}}


def test_a_quiet_market_offers_nothing_too_likely_or_too_unlikely() -> None:
    found = offered_cells(RATES, BAR, 1e-5, 0.1, columns(5_000), 12)
    assert all(10_000 / 0.9 / 1.05 - 1 <= rate <= 10_000 / 0.02 / 1.05 for rate in found.values())
    assert len(found) < 8 * 12
    assert offered_cells(RATES, BAR, SIGMA, SPREAD, [], 12) == {}


def test_the_grid_as_clients_are_told_it() -> None:
    offer = Offer(T, MarketState.OPEN, None, None, [Column(10, 5, 500)], {"a": 10_582, "b": 9})
    assert grid_fields(offer) == {
        "columns": [{"start": 10, "width": 5, "step": 500}],
        "cells": [
            {"cell_id": "a", "reward_rate": "1.0582"},
            {"cell_id": "b", "reward_rate": "0.0009"},
        ],
    }
    assert grid_fields(None) == {"columns": [], "cells": []}


@given(st.integers(0, 10**9))
def test_rates_carry_every_digit(bps: int) -> None:
    text = decimal_rate(bps)
    assert len(text.partition(".")[2]) == 4
    assert round(float(text) * 10_000) == bps
    assert np.isclose(float(text), bps / 10_000)
