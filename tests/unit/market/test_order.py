"""Which trades are new."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.market.feeds.order import ReconnectError, TradeOrder


def test_contiguous_numbers_are_new_and_leave_no_trace() -> None:
    order = TradeOrder(contiguous=True)
    assert all(order.is_new(number) for number in range(5, 10_005))
    assert not order.noticed


def test_a_gap_is_noticed_with_its_size() -> None:
    order = TradeOrder(contiguous=True)
    assert [order.is_new(number) for number in (10, 11, 15)] == [True] * 3
    assert order.noticed == {"gaps": 1, "missed": 3}


def test_numbers_that_count_other_things_too_have_no_gaps() -> None:
    order = TradeOrder(contiguous=False)
    assert all(order.is_new(number) for number in (10, 500, 501))
    assert not order.noticed


def test_a_repeated_trade_is_not_new_and_a_late_one_neither() -> None:
    order = TradeOrder(contiguous=False)
    assert [order.is_new(number) for number in (10, 10, 12, 11, 11, 13)] == [
        *(True, False, True, False, False, True)
    ]
    assert order.noticed == {"repeated": 2, "late": 1}


def test_trades_of_one_number_are_told_apart_by_their_key() -> None:
    order = TradeOrder(contiguous=False)
    assert order.is_new(10, "a")
    assert order.is_new(10, "b")
    assert not order.is_new(10, "a")


def test_old_trades_are_never_new_and_no_gap_the_first_time() -> None:
    order = TradeOrder(contiguous=True)
    order.old([7, 5, 6])
    assert not order.is_new(6)
    assert not order.is_new(4)
    assert order.is_new(8)
    assert order.noticed == {"repeated": 1, "late": 1}


def test_what_a_later_snapshot_holds_was_missed() -> None:
    order = TradeOrder(contiguous=True)
    assert order.is_new(10)
    order.old([9, 10, 11, 12])
    assert order.is_new(13)
    assert order.noticed == {"gaps": 1, "missed": 2}


def test_an_empty_snapshot_says_nothing() -> None:
    order = TradeOrder(contiguous=True)
    order.old([])
    assert order.is_new(1)


@pytest.mark.parametrize("wrong", [10**18, 2000])
def test_a_wrong_number_does_not_silence_the_venue_for_ever(wrong: int) -> None:
    order = TradeOrder(contiguous=True)
    assert order.is_new(1000)
    assert order.is_new(wrong)
    following = iter(range(1001, 1100))
    with pytest.raises(ReconnectError) as ended:
        any(order.is_new(number) for number in following)
    assert ended.value.reason == "numbers"
    # On the next connection, numbers begin anew.
    assert order.is_new(next(following))


@given(st.lists(st.integers(0, 40), max_size=200))
def test_new_trades_only_ever_grow(numbers: list[int]) -> None:
    order = TradeOrder(contiguous=True)
    new: list[int] = []
    refused = 0
    for number in numbers:
        try:
            is_new = order.is_new(number)
        except ReconnectError:
            new.clear()
            refused = 0
            continue
        refused += not is_new
        if is_new:
            assert not new or number > new[-1]
            new.append(number)


@given(st.data())
def test_missed_plus_new_is_all(data: st.DataObject) -> None:
    """Whatever is lost on the way, the numbers add up."""
    sent = range(100, 200)
    arrived = [*sorted(data.draw(st.sets(st.sampled_from(sent), min_size=1))), 200]
    order = TradeOrder(contiguous=True)
    assert all(order.is_new(number) for number in arrived)
    assert len(arrived) + order.noticed["missed"] == 200 - arrived[0] + 1
