"""Files of markets: what they say becomes bars, and what cannot be read is named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairness.recordings import (
    OUTAGE_BARS,
    Ticks,
    UnreadableError,
    bars_of,
    own_spacing_ms,
    read_ticks,
)

T = 1_723_161_200_000


def write(folder: Path, *lines: str) -> Path:
    path = folder / "market.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_prices_are_read_to_the_cent_half_up_and_in_order_of_time(tmp_path: Path) -> None:
    path = write(tmp_path, "ts_ms,price,size", f"{T + 5},2.345,1", f"{T},61837.63000000,0.02", "")
    ticks = read_ticks(path)
    assert ticks.times.tolist() == [T, T + 5]
    assert ticks.cents.tolist() == [6_183_763, 235]


def test_columns_may_come_in_any_order_and_number(tmp_path: Path) -> None:
    path = write(tmp_path, "price, side, TS_MS", f"1.00,buy,{T}", f"2.00,sell,{T + 1}")
    assert read_ticks(path).cents.tolist() == [100, 200]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("12x,100.0", "ts_ms is not a whole number: '12x'"),
        (f"{T}.5,100.0", "ts_ms is not a whole number"),
        (f"{T * 1000},100.0", "no time in Unix ms"),
        (f"{T},", "price is not a number"),
        (f"{T},nan", "none in dollars"),
        (f"{T},inf", "none in dollars"),
        (f"{T},-5", "none in dollars"),
        (f"{T},0", "none in dollars"),
        (f"{T},1e12", "none in dollars"),
        (f"{T}", "1 fields where the header has 2"),
        (f"{T},100.0,7", "3 fields where the header has 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path, "ts_ms,price", f"{T},100.0", line)
    with pytest.raises(UnreadableError, match=says) as caught:
        read_ticks(path)
    assert str(caught.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((), "header must name"),
        (("time,close", f"{T},100"), "header must name"),
        (("ts_ms,price", f"{T},100"), "at least two"),
    ],
)
def test_a_file_without_a_market_is_refused(
    tmp_path: Path, lines: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UnreadableError, match=says):
        read_ticks(write(tmp_path, *lines))


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="No such file"):
        read_ticks(tmp_path / "none.csv")
    (tmp_path / "market.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnreadableError, match="decode"):
        read_ticks(tmp_path / "market.csv")


def test_a_file_has_the_spacing_of_its_own_observations() -> None:
    assert own_spacing_ms(np.arange(5) * 60_000) == 60_000
    assert own_spacing_ms(np.array([0, 0, 5, 7])) == 100  # never below a bar
    assert own_spacing_ms(np.array([0, 1000, 4000])) == 2000
    one_hole = np.array([*range(0, 400_000, 1000), 450_000])
    assert own_spacing_ms(one_hole) == 1000
    # A market that is mostly out is played more slowly, within reason.
    bursts = np.concatenate([np.arange(20) * 1000 + start for start in range(0, 10**6, 100_000)])
    assert own_spacing_ms(bursts) == 8000
    assert own_spacing_ms(np.append(one_hole, 10**12)) == 16_000


def bars(*slots_and_cents: tuple[int, int]):  # type: ignore[no-untyped-def] # whatever the reader returns
    times, cents = np.array(slots_and_cents).T
    return bars_of(Ticks(times * 100, cents), 100.0)


def test_a_bar_has_the_range_of_its_prices_and_of_the_previous_close() -> None:
    made = bars((0, 500), (1, 520), (1, 490), (1, 510), (2, 530))
    assert made.slots.tolist() == [0, 1, 2]
    assert made.low.tolist() == [500, 490, 510]
    assert made.high.tolist() == [500, 520, 530]
    assert made.close.tolist() == [500, 510, 530]


def test_a_price_stands_for_a_second_and_no_longer() -> None:
    made = bars((0, 500), (OUTAGE_BARS + 1, 600), (2 * OUTAGE_BARS + 3, 700))
    assert made.slots.tolist() == [*range(OUTAGE_BARS + 2), 2 * OUTAGE_BARS + 3]
    assert made.close.tolist() == [500] * (OUTAGE_BARS + 1) + [600, 700]
    assert made.low.tolist() == [500] * (OUTAGE_BARS + 2) + [600]


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 10**8)), min_size=2, max_size=60).filter(
        lambda ticks: len({slot for slot, _ in ticks}) > 1
    )
)
def test_bars_join_and_hold_every_price(ticks: list[tuple[int, int]]) -> None:
    ticks.sort(key=lambda tick: tick[0])
    made = bars(*ticks)
    assert np.all(np.diff(made.slots) > 0)
    assert np.all((made.low <= made.close) & (made.close <= made.high))
    assert np.all((made.low[1:] <= made.close[:-1]) & (made.close[:-1] <= made.high[1:]))
    for slot, cents in ticks:
        at = int(np.searchsorted(made.slots, slot))
        assert made.slots[at] == slot
        assert made.low[at] <= cents <= made.high[at]
    gaps = np.diff(made.slots)
    assert np.all((gaps == 1) | (gaps > OUTAGE_BARS + 1))
