"""Recordings: read whole, checked, re-stamped to now, looping."""

import asyncio
import csv
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path

import pytest

from tap_trading.market.feeds import replay
from tap_trading.market.feeds.replay import ReplayError, ReplaySource, cents, read
from tap_trading.market.feeds.source import SourceStatus


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_prices_are_read_as_cents_half_up(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "ts_ms,price,size\n1,100.005,1\n2,100.0049,1\n3,7,2\n")
    assert list(read(file).prices) == [10001, 10000, 700]


def test_a_stamp_that_falls_back_is_the_same_moment(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "price,ts_ms\n1,1000\n2,990\n3,1010\n")
    assert list(read(file).times) == [1000, 1000, 1010]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column price and ts_ms"),
        ("time,price\n1,2\n", "no column ts_ms"),
        ("ts_ms,price\n", "no trade in it"),
        ("ts_ms,price\n1,100\nx,100\n", "line 3"),
        ("ts_ms,price\n1,abc\n", "line 2: 'abc' is not a price"),
        ("ts_ms,price\n1,-5\n", "line 2"),
        ("ts_ms,price\n1,0\n", "line 2"),
        ("ts_ms,price\n1,nan\n", "line 2"),
        ("ts_ms,price\n1,1e99\n", "line 2"),
        ("ts_ms,price\n1\n", "line 2"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ReplayError, match=words):
        read(write(tmp_path / "a.csv", text))


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="No such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ReplayError, match="not a CSV text file"):
        read(tmp_path / "b.csv")


async def test_it_plays_at_speed_and_loops(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "ts_ms,price\n1000,1\n1500,2\n2000,3\n")
    now = 0

    def clock() -> int:
        nonlocal now
        now += 1
        return now

    loop = asyncio.get_running_loop()
    began = loop.time()
    seen = []
    async for tick in ReplaySource(read(file), 20.0, clock).ticks():
        seen.append((tick.receive_time, tick.price, loop.time() - began))
        if len(seen) == 7:
            break
    assert [price for _, price, _ in seen] == [100, 200, 300, 100, 200, 300, 100]
    assert [t for t, _, _ in seen] == [1, 2, 3, 4, 5, 6, 7]
    # Recorded seconds pass 20 times as fast: never earlier than that.
    assert seen[2][2] >= 1.0 / 20 - 0.005
    assert seen[3][2] >= 2.0 / 20 - 0.005


async def test_a_quiet_recording_is_still_heard(tmp_path: Path) -> None:
    """A market that does not trade for minutes is no outage of its source."""
    file = write(tmp_path / "a.csv", "ts_ms,price\n1000,1\n900000,2\n")
    now = 5000
    source = ReplaySource(read(file), 1.0, lambda: now)
    assert source.status == SourceStatus(None, None, None)
    async with aclosing(source.ticks()) as ticks:
        first = await anext(ticks)
        now += 300_000
        assert source.status == SourceStatus(5000, 305_000, first)


async def test_a_hurried_replay_leaves_room_for_others(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "ts_ms,price\n" + "1,1\n" * 2000)
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    ticks = ReplaySource(read(file), 10_000.0, lambda: 0).ticks()
    for _ in range(2000):
        await anext(ticks)
    task.cancel()
    assert others > 500


def test_real_recordings_are_read_exactly(market_data: Path) -> None:
    files = sorted((market_data / "replay").glob("*.csv"))
    assert files
    for file in files:
        recording = replay.read(file)
        with file.open(newline="") as text:
            rows = list(csv.DictReader(text))
        assert list(recording.prices) == [cents(row["price"]) for row in rows], file.name
        assert all(earlier <= later for earlier, later in pairwise(recording.times)), file.name
