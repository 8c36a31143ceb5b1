"""Bars: one for each slot that was watched to its end, none rewritten, none invented."""

from hypothesis import given
from hypothesis import strategies as st

from tap_trading.market.bars import Bar, BarBuilder, SlotClock

START = 1_764_000_000_000
prices = st.integers(1, 10**9)


def test_a_bar_holds_what_was_observed_inside_it() -> None:
    builder = BarBuilder()
    for at, price in ((START, 500), (START + 40, 510), (START + 60, 490), (START + 99, 505)):
        builder.observe(at, price)
        assert builder.close(at) is None
    assert builder.close(START + 100) == Bar(START, open=500, high=510, low=490, close=505)
    assert builder.close(START + 100) is None


def test_its_range_reaches_to_the_previous_close_also_across_a_gap() -> None:
    builder = BarBuilder(Bar(START, 500, 520, 480, 490))
    builder.observe(START + 5_050, 600)
    assert builder.close(START + 5_100) == Bar(START + 5_000, 600, 600, 490, 600)
    builder.observe(START + 5_150, 400)
    assert builder.close(START + 5_200) == Bar(START + 5_100, 400, 600, 400, 400)


def test_a_slot_that_has_had_its_bar_gets_no_other() -> None:
    builder = BarBuilder(Bar(START, 500, 520, 480, 490))
    for at in (START - 3_600_000, START, START + 99):
        builder.observe(at, 700)
        assert builder.close(START + 10_000) is None
    builder.observe(START + 199, 491)
    assert builder.close(START + 200) == Bar(START + 100, 491, 491, 490, 491)


def test_what_nobody_closed_is_forgotten() -> None:
    builder = BarBuilder()
    builder.observe(START + 50, 500)
    builder.observe(START + 450, 600)
    builder.observe(START + 60, 700)
    assert builder.close(START + 500) == Bar(START + 400, 600, 600, 600, 600)


@given(st.lists(st.tuples(st.integers(-500, 500), prices)), st.none() | prices)
def test_bars_rise_and_each_continues_the_one_before(
    moments: list[tuple[int, int]], first: int | None
) -> None:
    previous = None if first is None else Bar(START, first, first, first, first)
    builder, now = BarBuilder(previous), START
    for step, price in moments:
        now += step
        builder.observe(now, price)
        bar = builder.close(now + 100)
        if bar is None:
            continue
        assert bar.t % 100 == 0
        assert bar.t <= now < bar.t + 100
        assert bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high
        if previous:
            assert bar.t > previous.t
            assert bar.low <= previous.close <= bar.high
        previous = bar


def ends(slots: SlotClock, *moments: int) -> list[int | None]:
    found = [slots.due(START + moment) for moment in moments]
    return [None if end is None else end - START for end in found]


def test_each_slot_is_due_once_at_its_end() -> None:
    slots = SlotClock(START + 30)
    assert slots.next == START + 100
    assert ends(slots, 99, 100, 150, 199, 203, 300) == [None, 100, None, None, 200, 300]


def test_who_wakes_up_late_has_no_bar_for_what_was_missed() -> None:
    slots = SlotClock(START)
    # Stalled from 150 to 500: the slots that end at 200, 300, 400 and 500 went unwatched.
    assert ends(slots, 100, 500, 599, 600) == [100, None, None, 600]
    # Late by less than a slot is in time.
    assert ends(slots, 799, 800) == [700, 800]


def test_a_clock_that_jumps_ahead_leaves_a_gap() -> None:
    slots = SlotClock(START)
    assert ends(slots, 100, 3_600_050, 3_600_100) == [100, None, 3_600_100]


def test_a_clock_that_is_set_back_gets_no_second_bar_for_the_same_time() -> None:
    slots = SlotClock(START)
    assert ends(slots, 100, 200) == [100, 200]
    assert slots.behind(START + 250) == 0
    assert ends(slots, -5_000, -4_900, 100, 200, 299) == [None] * 5
    assert slots.behind(START - 5_000) == 5_200
    assert ends(slots, 300, 400) == [300, 400]


def test_after_a_restart_the_last_bar_stands() -> None:
    slots = SlotClock(START + 130, last=START + 100)
    assert ends(slots, 200, 300) == [None, 300]
    assert SlotClock(START + 130, last=START).next == START + 200
    ahead = SlotClock(START, last=START + 60_000)
    assert ahead.next == START + 60_200
    assert ahead.behind(START) == 60_100


@given(st.lists(st.integers(-1_000, 1_000), max_size=200))
def test_slots_rise_and_are_never_more_than_a_slot_late(steps: list[int]) -> None:
    slots, now, last = SlotClock(START), START, START
    for step in steps:
        now += step
        end = slots.due(now)
        if end is not None:
            assert end % 100 == 0
            assert last < end <= now < end + 100
            last = end
