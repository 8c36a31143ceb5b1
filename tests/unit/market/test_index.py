"""The index: no exchange moves it alone, none that comes or goes is seen in it."""

import json
import math
import os
import random
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tap_trading.market.feeds import replay
from tap_trading.market.index import (
    Absence,
    CrossCheck,
    Index,
    IndexRules,
    NoPrice,
    Reading,
    single,
)

START = 1_764_000_000_000
LEVEL = 8_000_000  # cents: 80,000 dollars
BPS = LEVEL // 10_000  # 800 cents
RULES = IndexRules()
VENUES = RULES.venues
#: What the slow values may move the index by in one slot, and the rounding, in cents.
SLACK = 1 + 2 * RULES.slow_bps_per_s * BPS / 10

Prices = Mapping[str, int | None]


class Market:
    """An index, told each 100 ms what each venue trades at. None: nothing is heard of it."""

    def __init__(self, rules: IndexRules = RULES, now: int = START) -> None:
        self.index = Index(rules)
        self.now = now

    def slot(self, prices: Prices, delays: Mapping[str, int] | None = None) -> Reading:
        """One slot: every venue that speaks trades in its middle."""
        for venue, price in prices.items():
            if price is not None:
                moment = self.now + 50
                self.index.tick(venue, moment - (delays or {}).get(venue, 20), moment, price)
        self.now += 100
        return self.index.at(self.now)

    def run(self, seconds: float, prices: Prices) -> list[Reading]:
        return [self.slot(prices) for _ in range(round(seconds * 10))]


def around(*offsets: int) -> dict[str, int]:
    """Prices of the first venues, so many cents off the level."""
    return {venue: LEVEL + offset for venue, offset in zip(VENUES, offsets, strict=False)}


def price_of(reading: Reading) -> int:
    assert reading.price is not None, reading
    return reading.price


def steps(readings: Iterable[Reading]) -> list[int]:
    prices = [price_of(reading) for reading in readings]
    return [abs(b - a) for a, b in pairwise(prices)]


tens_of_dollars = st.integers(-8_000, 8_000)


# What it is.


@pytest.mark.parametrize(
    ("offsets", "index"),
    [((0, 700, -300, 9000), 350), ((0, 700, -300), 0), ((0, 700), 350)],
)
def test_it_begins_as_the_median_of_the_raw_prices(offsets: tuple[int, ...], index: int) -> None:
    reading = Market().slot(around(*offsets))
    assert reading.price == LEVEL + index
    assert reading.counted == VENUES[: len(offsets)]
    assert reading.reason is None
    assert reading.absent == dict.fromkeys(VENUES[len(offsets) :], Absence.SILENT)


def test_half_a_cent_goes_up() -> None:
    assert Market().slot(around(0, 1)).price == LEVEL + 1


@given(st.tuples(*[tens_of_dollars] * 4), st.lists(st.integers(-400_000, 400_000), max_size=20))
def test_a_move_that_all_show_passes_at_once_and_whole(
    offsets: tuple[int, ...], moves: list[int]
) -> None:
    market = Market()
    before = price_of(market.slot(around(*offsets)))
    for move in moves:
        after = price_of(market.slot({v: p + move for v, p in around(*offsets).items()}))
        assert abs((after - before) - move) <= SLACK * (len(moves) + 1)


def test_one_source_alone_is_the_index_to_the_cent_and_may_be_quiet() -> None:
    index = Index(single("replay"))
    rng = random.Random(4)
    for slot in range(200):
        price = rng.randrange(1, 10**9)
        index.tick("replay", rng.randrange(10**12), START + 100 * slot + 40, price)
        assert index.at(START + 100 * slot + 100).price == price
    assert index.at(START + 86_400_000).price == price


# Who comes and goes.


@given(
    st.lists(st.tuples(*[tens_of_dollars] * 4), min_size=1, max_size=1),
    st.integers(0, 3),
    st.booleans(),
)
def test_a_venue_that_goes_and_comes_back_elsewhere_is_not_seen(
    offsets: list[tuple[int, ...]], index: int, lost: bool
) -> None:
    market, name = Market(), VENUES[index]
    prices: dict[str, int | None] = {**around(*offsets[0])}
    readings = market.run(2, prices)
    if lost:
        market.index.lost(name)
    readings += market.run(8, {**prices, name: None})
    assert name not in readings[-1].counted
    back = {**prices, name: LEVEL - offsets[0][index]}
    readings += market.run(20, back)
    assert name in readings[-1].counted
    assert max(steps(readings)) <= SLACK


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 800))
def test_no_change_of_venues_moves_it_more_than_the_market_moved(seed: int, noise: int) -> None:
    """Whoever comes, goes or falls silent: each step is at most the largest of any venue."""
    rng = random.Random(seed)
    market = Market(IndexRules(join_ms=700, silent_ms=400, carry_bps=1000, outlier_ms=500))
    offsets = {venue: rng.randint(-8_000, 8_000) for venue in VENUES}
    heard = dict.fromkeys(VENUES, True)
    level, last, known, changes = LEVEL, None, {}, set()
    for _ in range(300):
        level += round(rng.gauss(0, 300))
        for venue in VENUES:
            if rng.random() < 0.03:
                heard[venue] = not heard[venue]
        now = {v: level + offsets[v] + round(rng.gauss(0, noise)) for v in VENUES if heard[v]}
        moved = max((abs(p - known[v]) for v, p in now.items() if v in known), default=0)
        known |= now
        reading = market.slot(now)
        if last is not None and reading.price is not None:
            assert abs(reading.price - last) <= moved + SLACK
        last = reading.price
        changes.add(reading.counted)
    assert len(changes) > 3


def test_a_newcomer_is_watched_first() -> None:
    market = Market()
    market.run(1, around(0, 500, -500))
    readings = market.run(RULES.join_ms / 1000 + 1, around(0, 500, -500, 6_000))
    assert readings[0].absent == {"gemini": Absence.JOINING}
    assert readings[-1].counted == VENUES
    first = next(i for i, reading in enumerate(readings) if not reading.absent)
    assert first == RULES.join_ms / 100


def test_a_newcomer_that_does_not_trade_is_not_taken() -> None:
    market = Market()
    market.run(1, around(0, 500, -500))
    market.slot(around(0, 500, -500, 600))
    for _ in range(300):
        market.index.heard("gemini", market.now)
        reading = market.slot(around(0, 500, -500))
    assert reading.absent == {"gemini": Absence.JOINING}


def test_in_the_long_run_it_is_the_raw_median_again_and_goes_there_slowly() -> None:
    market = Market(IndexRules(basis_s=60.0))
    market.run(1, around(-2_000, 0, 2_400, 2_500))
    # The raw median of those left is 2,400; it was 1,200.
    left: Prices = {**around(0, 0, 2_400, 2_500), "coinbase": None}
    readings = market.run(120, left)
    assert max(steps(readings)) <= SLACK
    begin = price_of(readings[0])
    assert abs(begin - (LEVEL + 1_200)) <= 50
    assert price_of(readings[600]) - begin <= 60 * 2 * RULES.slow_bps_per_s * BPS
    readings = market.run(800, left)
    assert abs(price_of(readings[-1]) - (LEVEL + 2_400)) <= 15


def test_what_was_carried_over_a_change_ends_slowly() -> None:
    market = Market(IndexRules(basis_s=60.0))
    market.run(1, around(0, 0, 0, 0))
    before = price_of(market.slot(around(-400, -200, 200, 400)))
    market.index.lost("coinbase")
    left: Prices = {**around(0, -200, 200, 400), "coinbase": None}
    assert abs(price_of(market.slot(left)) - before) <= SLACK
    assert abs(market.index.export()["carry"] + 200) <= 1
    readings = market.run(500, left)
    assert max(steps(readings)) <= SLACK
    assert abs(market.index.export()["carry"]) <= 5
    assert abs(price_of(readings[-1]) - (LEVEL + 200)) <= 5


# Who lies.


class Crowd:
    """Honest venues around one random walk, each with its offset and its noise."""

    def __init__(self, seed: int, sigma: float, noise: float, spread: int = 4_000) -> None:
        self._rng = random.Random(seed)
        self._sigma, self._noise = sigma, noise
        self.offsets = {venue: self._rng.randint(-spread, spread) for venue in VENUES}
        self.level = float(LEVEL)

    def move(self) -> dict[str, int]:
        self.level += self._rng.gauss(0, self._sigma)
        return {
            venue: round(self.level + offset + self._rng.uniform(-self._noise, self._noise))
            for venue, offset in self.offsets.items()
        }


LIES: dict[str, Callable[[int, int], int | None]] = {
    "5 % high at once": lambda slot, price: price * 105 // 100,
    "5 % low at once": lambda slot, price: price * 95 // 100,
    "worthless": lambda slot, price: 1,
    "drifts away": lambda slot, price: price + 40 * slot,
    "drifts away very slowly": lambda slot, price: price + slot // 5,
    "drifts down very slowly": lambda slot, price: price - slot // 5,
    "jumps to and fro": lambda slot, price: price + (-1) ** (slot // 7) * 6_000,
    "to and fro, slowly": lambda slot, price: price + (-1) ** (slot // 400) * 15_000,
    "comes and goes, high": lambda slot, price: None if slot // 90 % 3 == 0 else price + 3_000,
    "nine dollars high": lambda slot, price: price + 900,
    "frozen": lambda slot, price: LEVEL,
    "gone": lambda slot, price: None,
}


#: What is told in a hurry, is judged in minutes; the rest in an hour.
SLOW = {"drifts away very slowly", "drifts down very slowly", "to and fro, slowly", "frozen"}


@pytest.mark.parametrize("venues", [4, 3])
@pytest.mark.parametrize("lie", LIES)
def test_one_liar_is_bounded_at_once_and_in_the_long_run(lie: str, venues: int) -> None:
    """At once the index moves no more than the honest ones differ without their offsets; in
    the long run no further than where their raw prices lie.
    """
    noise, spread = 100, 2_000
    crowd = Crowd(7, sigma=60, noise=noise, spread=spread)
    names = VENUES[:venues]
    market, liar = Market(), names[0]
    honest = [crowd.offsets[venue] for venue in names[1:]]
    last: tuple[float, int] | None = None
    with_liar = 0
    for slot in range(36_000 if lie in SLOW else 4_000):
        prices: dict[str, int | None] = {v: p for v, p in crowd.move().items() if v in names}
        if slot >= 300:
            prices[liar] = LIES[lie](slot - 300, prices[liar] or 0)
        reading = market.slot(prices)
        index = price_of(reading)
        off = index - crowd.level
        tolerance = 2 * noise + RULES.carry_bps * BPS
        assert min(honest) - tolerance <= off <= max(honest) + tolerance, slot
        if last is not None and slot > 300:
            moved = abs((index - last[1]) - (crowd.level - last[0]))
            assert moved <= 4 * noise + SLACK, (slot, reading)
        last = crowd.level, index
        with_liar += liar in reading.counted
    assert with_liar >= 300


def test_a_liar_leaves_after_some_seconds_and_is_named() -> None:
    market = Market()
    market.run(2, around(0, 1_000, -1_000, 0))
    lying = around(400_000, 1_000, -1_000, 0)
    readings = market.run(5, lying)
    gone = [reading.absent.get("coinbase") for reading in readings]
    assert gone[: RULES.outlier_ms // 100] == [None] * (RULES.outlier_ms // 100)
    assert set(gone[RULES.outlier_ms // 100 :]) == {Absence.OUTLIER}
    assert max(steps(readings)) <= SLACK
    assert max(steps(market.run(25, around(0, 1_000, -1_000, 0)))) <= SLACK
    assert market.slot(around(0, 1_000, -1_000, 0)).counted == VENUES


@pytest.mark.parametrize("offsets", [(400_000, 0, 500, -500), (400_000, 0, 500)])
def test_a_liar_at_the_start_is_left_out(offsets: tuple[int, ...]) -> None:
    readings = Market().run(40, around(*offsets))
    assert all(reading.absent["coinbase"] is Absence.OUTLIER for reading in readings)
    honest = [LEVEL + offset for offset in offsets[1:]]
    assert all(min(honest) <= price_of(reading) <= max(honest) for reading in readings)


def test_one_that_creeps_away_leaves_when_its_basis_is_too_large() -> None:
    market = Market(IndexRules(basis_s=5.0, slow_bps_per_s=1.0))
    for slot in range(1_000):
        wiggle = slot % 2  # or they would be taken for frozen
        reading = market.slot(around(wiggle, 200 + wiggle, wiggle - 200, 30 * slot))
        if 30 * slot < 29 * BPS:
            assert reading.counted == VENUES
    assert reading.absent == {"gemini": Absence.OUTLIER}


# When only two are left.


@pytest.mark.parametrize("lie", [400_000, -400_000, 26 * 800])
def test_of_two_one_lies_much_and_there_is_no_price_at_once(lie: int) -> None:
    market = Market()
    market.run(5, around(0, 1_000))
    readings = market.run(60, around(lie, 1_000))
    assert {(r.price, r.reason) for r in readings} == {(None, NoPrice.DISAGREEMENT)}
    assert price_of(market.slot(around(0, 1_000))) == LEVEL + 500


@pytest.mark.parametrize("lie", [8_000, -8_000, 3_000])
def test_of_two_one_lies_a_little_and_the_price_stands_then_ends(lie: int) -> None:
    market = Market()
    market.run(5, around(0, 1_000))
    readings = market.run(10, around(lie, 1_000))
    ends = RULES.agree_ms // 100
    assert all(abs(price_of(r) - (LEVEL + 500)) <= ends * SLACK for r in readings[:ends])
    assert {reading.reason for reading in readings[ends:]} == {NoPrice.DISAGREEMENT}


def test_of_two_one_lies_less_than_is_noticed_and_moves_nothing() -> None:
    market = Market()
    market.run(5, around(0, 0))
    readings = market.run(30, around(2 * BPS, 0))
    assert all(abs(price_of(reading) - LEVEL) <= 30 * SLACK for reading in readings)
    assert max(steps(readings)) <= SLACK


def test_a_dispute_is_not_settled_by_waiting_nor_by_one_never_heard_before() -> None:
    market = Market()
    market.run(5, around(0, 1_000))
    market.run(RULES.agree_ms / 1000, around(9_000, 1_000))
    assert {r.price for r in market.run(120, around(9_000, 1_000, 9_000))} == {None}


def test_two_of_four_that_agree_are_no_majority() -> None:
    market = Market()
    market.run(5, around(0, 0, 0, 0))
    readings = market.run(10, around(-20 * BPS, 0, 0, 20 * BPS))
    assert {r.reason for r in readings[RULES.agree_ms // 100 :]} == {NoPrice.DISAGREEMENT}


def test_a_third_that_was_known_settles_a_dispute() -> None:
    market = Market()
    market.run(20, around(0, 1_000, -1_000))
    market.run(10, {**around(0, 1_000), "bitstamp": None})
    assert market.slot(around(9_000, 1_000)).price is not None
    assert market.run(3, around(9_000, 1_000))[-1].reason is NoPrice.DISAGREEMENT
    reading = market.run(1, around(9_000, 1_000, -1_000))[-1]
    assert reading.counted == ("kraken", "bitstamp")
    assert abs(price_of(reading) - LEVEL) <= 20


def test_two_of_four_frozen_end_the_price_until_they_are_found_out() -> None:
    market = Market()
    market.run(20, around(0, 1_000, -1_000, 500))
    readings = []
    for slot in range(800):
        level = LEVEL + 20 * slot  # 2.5 basis points in 10 s
        prices = {
            "coinbase": LEVEL,
            "kraken": LEVEL + 1_000,
            "bitstamp": level - 1_000,
            "gemini": level + 500,
        }
        reading = market.slot(prices)
        readings.append(reading)
        if reading.price is not None:
            assert abs(reading.price - level - 250) <= RULES.agree_bps * BPS + 10 * 20 + 100
    assert NoPrice.DISAGREEMENT in {reading.reason for reading in readings}
    assert readings[-1].counted == ("bitstamp", "gemini")
    assert set(readings[-1].absent.values()) == {Absence.FROZEN}


# Who is silent, frozen or late.


def test_without_a_quorum_there_is_no_price_within_two_seconds() -> None:
    market = Market()
    market.run(5, around(0, 100, 200, 300))
    silence = {**around(0), **dict.fromkeys(VENUES[1:])}
    readings = market.run(10, silence)
    ended = next(i for i, r in enumerate(readings) if r.price is None)
    assert (ended + 1) * 100 <= 1_900
    assert {r.reason for r in readings[ended:]} == {NoPrice.QUORUM_LOST}
    assert market.run(1, around(0, 100))[-1].price is not None


def test_a_liar_is_not_of_the_quorum() -> None:
    market = Market()
    market.run(5, around(0, 100, 200))
    readings = market.run(2, {**around(0, 100), "kraken": None, "bitstamp": LEVEL + 400_000})
    assert price_of(readings[0]) == LEVEL + 100
    assert readings[-1].reason is NoPrice.QUORUM_LOST


def test_a_quorum_whose_connections_are_gone_ends_the_price_at_once() -> None:
    market = Market()
    market.run(5, around(0, 100, 200, 300))
    for venue in VENUES[1:]:
        market.index.lost(venue)
    assert market.slot(around(0)).reason is NoPrice.QUORUM_LOST


def test_a_venue_without_trades_lives_by_its_other_messages() -> None:
    market = Market()
    market.run(5, around(0, 100, 200, 300))
    for _ in range(200):
        market.index.heard("gemini", market.now + 10)
        reading = market.slot(around(0, 100, 200))
    assert reading.counted == VENUES


def test_what_a_venue_said_before_its_silence_does_not_count_after_it() -> None:
    market = Market()
    market.run(5, around(0, 100, 200, 300))
    for venue in VENUES:
        market.index.lost(venue)
    market.slot({})
    for _ in range(10):  # they speak again, but have not traded yet
        for venue in VENUES:
            market.index.heard(venue, market.now)
        reading = market.slot({})
        assert reading.reason is NoPrice.QUORUM_LOST
        assert reading.absent == dict.fromkeys(VENUES, Absence.SILENT)
    assert market.slot(around(5_000, 5_100)).price == LEVEL + 5_150


def test_a_price_that_stands_still_while_others_move_leaves() -> None:
    market = Market()
    readings = []
    for slot in range(700):
        wiggle = slot % 2 * 100
        readings.append(market.slot(around(0, 100 + wiggle, 200 + wiggle, 300 + wiggle)))
    assert readings[590].counted == VENUES
    assert readings[-1].absent == {"coinbase": Absence.FROZEN}
    assert max(steps(readings)) <= 100 + SLACK


def test_when_nothing_moves_nobody_is_frozen() -> None:
    assert Market().run(120, around(0, 100, 200, 300))[-1].counted == VENUES


def test_trades_that_arrive_late_do_not_count() -> None:
    market = Market()
    before = price_of(market.run(5, around(0, 100, 200, 300))[-1])
    for _ in range(25):
        market.index.heard("kraken", market.now)
        market.slot({**around(0, 100, 200, 300), "kraken": None})
    reading = market.slot(around(0, 100, 200, 300), delays={"kraken": 2_500})
    assert reading.absent == {"kraken": Absence.DELAYED}
    assert abs(price_of(reading) - before) <= SLACK
    assert market.run(16, around(0, 100, 200, 300))[-1].counted == VENUES


def test_a_venue_whose_clock_is_wrong_counts_unless_it_is_very_wrong() -> None:
    clocks = {"coinbase": -1_270, "kraken": 1_500, "bitstamp": 60_000, "gemini": -60_000}
    market = Market()
    for _ in range(300):
        reading = market.slot(around(0, 100, 200, 300), delays=clocks)
    assert reading.counted == ("coinbase", "kraken")
    assert set(reading.absent.values()) == {Absence.DELAYED}


def test_a_trade_older_than_the_last_is_no_news() -> None:
    market = Market()
    market.run(1, around(0, 0, 0, 0))
    now = market.now
    for venue in VENUES:
        market.index.tick(venue, now - 500, now + 10, LEVEL + 9_000)
    assert market.run(0.1, {})[0].price == LEVEL


def test_our_clock_set_back_ends_the_price_and_not_more() -> None:
    market = Market()
    market.run(5, around(0, 100, 200, 300))
    market.now -= 3_600_000
    assert market.slot({}).reason is NoPrice.QUORUM_LOST
    assert price_of(market.run(1, around(0, 100, 200, 300))[-1]) == LEVEL + 150


# A restart.


def test_a_restart_is_not_seen() -> None:
    market = Market()
    everyone = around(-3_000, 1_000, 2_000, 7_000)
    market.run(20, everyone)
    market.index.lost("gemini")
    before = price_of(market.run(1, {**everyone, "gemini": None})[-1])

    def again(state: object) -> list[Reading]:
        other = Market(now=market.now + 1_500)
        if state:
            assert other.index.restore(json.loads(json.dumps(state)), other.now)
        assert other.slot({}).reason is NoPrice.STARTING
        late: Prices = {v: everyone[v] for v in ("bitstamp", "gemini")}
        return [other.slot(late), *other.run(0.2, everyone)]

    readings = again(market.index.export())
    assert all(abs(price_of(reading) - before) <= 1 for reading in readings)
    assert readings[-1].counted == VENUES
    # The same without what the last process knew: hence the export.
    assert abs(price_of(again(None)[0]) - before) > 2_000


def test_what_was_known_long_ago_is_not_taken() -> None:
    market = Market()
    market.run(2, around(0, 1_000))
    state = market.index.export()
    assert not Index().restore(state, market.now + RULES.remember_ms + 1)
    assert not Index().restore(state, market.now - 5_000)
    assert not Index().restore(Index().export(), START)


@pytest.mark.parametrize(
    "change",
    [{"core": "x"}, {"core": math.nan}, {"carry": None}, {"basis": [1]}, {"basis": {"a": [1]}}],
)
def test_what_is_no_state_is_refused(change: dict[str, object]) -> None:
    market = Market()
    market.run(2, around(0, 1_000))
    index = Index()
    with pytest.raises(ValueError, match="not a state of the index"):
        index.restore({**market.index.export(), **change}, market.now)
    assert index.export() == Index().export()


def test_a_quorum_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="quorum 5 of 4"):
        IndexRules(quorum=5)


# The cross-check.


def test_the_cross_check_tells_what_lasts_and_learns_its_own_distance() -> None:
    check = CrossCheck()

    def seconds(count: int, price: int) -> list[bool]:
        nonlocal now
        told = []
        for _ in range(count * 10):
            now += 100
            check.tick(now, price)
            deviation = check.at(now, LEVEL)
            assert deviation is not None
            told.append(deviation.sustained)
        return told

    now = START
    usual = LEVEL + 40 * BPS  # another currency, a steady 40 basis points dearer
    assert not any(seconds(120, usual))
    told = seconds(20, usual + 25 * BPS)
    assert not any(told[:100])
    assert all(told[110:])
    assert not any(seconds(5, usual))
    assert check.at(now + 60_000, LEVEL) is None  # it fell silent
    assert check.at(now, None) is None


# Four venues made from one file of real trades.

#: Offset in cents, delay in ms, share of the trades.
MADE = {
    "coinbase": (0, 0, 1.0),
    "kraken": (1_500, 100, 0.5),
    "bitstamp": (-2_500, 300, 0.1),
    "gemini": (4_000, 500, 0.03),
}
Fault = Callable[[str, int, int], int | None]


def events_of(recording: replay.Recording) -> list[tuple[int, str, int, int]]:
    """What the made venues send, by our clock: moment, venue, its stamp, price.

    A heartbeat each second has the price 0.
    """
    events: list[tuple[int, str, int, int]] = []
    begin, end = recording.times[0], recording.times[-1]
    for venue, (offset, delay, share) in MADE.items():
        rng = random.Random(offset)
        for moment, price in zip(recording.times, recording.prices, strict=True):
            if rng.random() < share:
                events.append((moment + delay, venue, moment, price + offset))
        events += [(beat, venue, 0, 0) for beat in range(begin + delay, end, 1_000)]
    return sorted(events)


def play(
    events: list[tuple[int, str, int, int]], fault: Fault | None = None
) -> tuple[list[Reading], list[int]]:
    """The readings of the whole file, and in each slot the largest move of a sound venue.

    `fault` says from venue, ms since the start and price what arrives in its place.
    """
    index = Index()
    readings: list[Reading] = []
    moves: list[int] = []
    begin = events[0][0]
    edge = begin - begin % 100 + 100
    known: dict[str, int] = {}
    before: dict[str, int] = {}
    for moment, venue, exchange, price in events:
        while moment >= edge:
            readings.append(index.at(edge))
            moves.append(max((abs(known[v] - p) for v, p in before.items()), default=0))
            before = dict(known)
            edge += 100
        arrives = fault(venue, moment - begin, price) if fault else price
        if arrives is None:
            continue
        if price:
            index.tick(venue, exchange, moment, arrives)
            known[venue] = price
        else:
            index.heard(venue, moment)
    return readings, moves


Sound = tuple[list[tuple[int, str, int, int]], list[Reading], list[int]]


@pytest.fixture(scope="module")
def sound() -> Sound | None:
    """The events, and what comes of them when nothing fails; None without market data."""
    folder = os.environ.get("TAP_MARKET_DATA")
    if not folder:
        return None
    file = Path(folder) / "replay" / "binance_BTCUSDT_trades_2024-08-08.csv"
    events = events_of(replay.read(file))
    return events, *play(events)


def _lies(victim: str) -> Fault:
    return lambda v, at, p: p * 105 // 100 if v == victim and 60_000 < at < 120_000 else p


def _gone(victim: str) -> Fault:
    return lambda v, at, p: None if v == victim and 60_000 < at < 120_000 else p


def _drifts(victim: str) -> Fault:
    return lambda v, at, p: p + max(at - 60_000, 0) // 20 if v == victim and p else p


def _frozen(victim: str) -> Fault:
    held = 0

    def fault(venue: str, at: int, price: int) -> int:
        nonlocal held
        if venue != victim or not price:
            return price
        if at < 60_000:
            held = price
        return held

    return fault


#: A row of the grid, in cents, at this file's volatility (1.15 basis points in a second).
ROW = 1.5 * 1.15e-4 * math.sqrt(10) * 6_170_000


@pytest.mark.parametrize("victim", MADE)
@pytest.mark.parametrize("fault", [_lies, _gone, _drifts, _frozen])
@pytest.mark.usefixtures("market_data")  # skips without it, with its reason
def test_real_trades_one_exchange_fails_and_it_is_not_seen(
    sound: Sound, fault: Callable[[str], Fault], victim: str
) -> None:
    events, readings, moves = sound
    failing, _ = play(events, fault(victim))
    assert any(victim not in reading.counted for reading in failing[700:])
    begin = 20
    usual = [price_of(reading) for reading in readings[begin:]]
    prices = [price_of(reading) for reading in failing[begin:]]  # a price in every slot
    for i in range(1, len(prices)):
        # It stays within a row of where the sound one is, was or will be within 3 s …
        near = usual[max(i - 30, 0) : i + 31]
        assert min(near) - ROW <= prices[i] <= max(near) + ROW, i
        # … and steps no further than a venue has in the last second, but a quarter of a row.
        recent = max(moves[max(begin + i - 10, 0) : begin + i + 1])
        assert abs(prices[i] - prices[i - 1]) <= recent + ROW / 4, i


@pytest.mark.usefixtures("market_data")
def test_real_trades_quorum_lost_and_back(sound: Sound) -> None:
    def fault(venue: str, at: int, price: int) -> int | None:
        return None if venue != "kraken" and 60_000 <= at < 120_000 else price

    readings, _ = play(sound[0], fault)
    without = [i for i, reading in enumerate(readings[10:], 10) if reading.price is None]
    assert 600 < without[0] <= 619  # within 2 s
    assert 1_200 <= without[-1] < 1_210
    assert without == list(range(without[0], without[-1] + 1))
    assert {readings[i].reason for i in without} == {NoPrice.QUORUM_LOST}
