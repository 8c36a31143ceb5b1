"""The random walk."""

from contextlib import aclosing
from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from tap_trading.market.feeds.mock import MockSource, walk
from tap_trading.market.feeds.source import SourceStatus, Tick


@given(st.integers(0, 2**32), st.integers(1, 10**12))
def test_a_seed_repeats_its_walk(seed: int, start: int) -> None:
    first, again = (list(islice(walk(seed, start), 50)) for _ in range(2))
    assert first == again
    assert first[0] == start
    assert min(first) >= 1


def test_other_seeds_walk_elsewhere_and_in_small_steps() -> None:
    one, other = (list(islice(walk(seed, 4_200_000), 1000)) for seed in (1, 2))
    assert one != other
    assert all(abs(b - a) < 0.0005 * a for a, b in pairwise(one))
    assert len(set(one)) > 500


async def test_it_tells_how_it_is_doing() -> None:
    source = MockSource(1, 4_200_000, iter((1000, 1100)).__next__)
    assert source.status == SourceStatus(None, None, None)
    async with aclosing(source.ticks()) as ticks:
        assert await anext(ticks) == Tick(1000, 1000, 4_200_000)
        second = await anext(ticks)
    assert source.status == SourceStatus(1000, 1100, second)
