"""What fills a disk, and when it will be full."""

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.base import growth
from tap_trading.base.disk import Usage
from tap_trading.base.growth import DAY_S, HOUR_S, OTHER, WEEK_S, Sample

NOW = 1_764_000_000
USABLE = 256 * 10**9


def sample(at: int, used: int, books: int = 0) -> Sample:
    return Sample(at, used, USABLE, {"books": books, OTHER: used - books})


# What there is.


def test_files_and_folders_count_with_what_they_take(tmp_path: Path) -> None:
    (tmp_path / "bets.db").write_bytes(bytes(50_000))
    (tmp_path / "copies/deep").mkdir(parents=True)
    (tmp_path / "copies/deep/one").write_bytes(bytes(20_000))
    (tmp_path / "copies/two").write_bytes(bytes(30_000))
    (tmp_path / "copies/elsewhere").symlink_to("/usr")
    os.truncate(tmp_path / "copies/two", 10**12)  # a hole takes nothing
    books = [tmp_path / "bets.db", tmp_path / "bets.db-wal"]
    found = growth.measure(tmp_path, {"books": books, "copies": [tmp_path / "copies"]}, NOW)
    assert found.at == NOW
    assert 50_000 <= found.parts["books"] < 60_000
    assert 50_000 <= found.parts["copies"] < 80_000
    assert sum(found.parts.values()) == found.used


def test_what_is_on_another_file_system_is_not_counted(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is but one file system here")
    found = growth.measure(tmp_path, {"books": [elsewhere], "no": [tmp_path / "no"]}, NOW)
    assert (found.parts["books"], found.parts["no"]) == (0, 0)


def test_what_cannot_be_asked_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        growth.measure(tmp_path / "no", {}, NOW)


# What there was.


def test_samples_are_kept_for_35_days(tmp_path: Path) -> None:
    path = tmp_path / "disk-usage.jsonl"
    assert growth.read(path) == []
    for day in range(40):
        kept = growth.note(path, sample(NOW + day * DAY_S, 10**9 + day, books=day))
    assert kept == growth.read(path)
    assert [each.at for each in kept] == [NOW + day * DAY_S for day in range(4, 40)]
    assert kept[-1] == sample(NOW + 39 * DAY_S, 10**9 + 39, books=39)
    assert list(tmp_path.iterdir()) == [path]


def test_a_clock_that_was_wrong_leaves_no_sample_of_the_future(tmp_path: Path) -> None:
    path = tmp_path / "disk-usage.jsonl"
    for at in (NOW, NOW + WEEK_S, NOW + HOUR_S):
        kept = growth.note(path, sample(at, 10**9))
    assert [each.at for each in kept] == [NOW, NOW + HOUR_S]


def test_a_line_that_is_spoiled_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "disk-usage.jsonl"
    growth.note(path, sample(NOW, 10**9))
    for line in (b"{", b"\xff", b"3", b"{}", b'{"at":1,"used":2,"usable":3,"parts":[]}', b"\0\0"):
        path.write_bytes(line + b"\n" + path.read_bytes())
    assert growth.read(path) == [sample(NOW, 10**9)]


def test_a_disk_that_takes_no_more_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk-usage.jsonl"
    growth.note(path, sample(NOW, 10**9))

    def full(_path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        growth.note(path, sample(NOW + HOUR_S, 10**9))
    assert growth.read(path) == [sample(NOW, 10**9)]
    assert list(tmp_path.iterdir()) == [path]


# What comes.


def test_growth_is_what_was_added_since_the_oldest_sample_of_the_time() -> None:
    samples = [sample(NOW + hour * HOUR_S, 10**9 * hour, books=10**8 * hour) for hour in range(49)]
    samples[10] = sample(samples[10].at, 10**12)  # what came and went does not count
    found = growth.growth(samples, samples[-1], DAY_S)
    assert found is not None
    assert found.over_s == DAY_S
    assert found.used == pytest.approx(24 * 10**9)
    assert found.parts["books"] == pytest.approx(2.4 * 10**9)
    week = growth.growth(samples, samples[-1], WEEK_S)
    assert week is not None
    assert week.over_s == 2 * DAY_S


def test_less_than_an_hour_says_nothing() -> None:
    now = sample(NOW, 10**9)
    assert growth.growth([], now, DAY_S) is None
    assert growth.growth([now, sample(NOW - HOUR_S + 1, 0)], now, DAY_S) is None
    assert growth.growth([sample(NOW - DAY_S - 1, 0)], now, DAY_S) is None
    assert growth.growth([sample(NOW - HOUR_S, 0)], now, DAY_S) is not None


usages = st.builds(Usage, used=st.integers(0, 10**14), usable=st.integers(10**8, 10**14)).filter(
    lambda usage: usage.used <= usage.usable
)
limits = st.integers(50, 100)
rates = st.floats(1, 1e12)


@given(usages, limits, rates)
def test_after_so_many_days_it_is_full_and_not_before(
    usage: Usage, limit: int, rate: float
) -> None:
    days = growth.days_left(usage, limit, rate)
    then = 100 * (usage.used + days * rate) / usage.usable
    assert then == pytest.approx(max(limit, usage.percent))
    assert (days == 0) == (usage.used >= usage.usable * limit / 100)


@given(usages, limits, rates, st.floats(1, 10))
def test_whoever_grows_faster_is_full_earlier(
    usage: Usage, limit: int, rate: float, times: float
) -> None:
    days = growth.days_left(usage, limit, rate)
    assert growth.days_left(usage, limit, rate * times) == pytest.approx(days / times)


@given(usages, limits, st.floats(-1e12, 0))
def test_what_does_not_grow_is_never_full_unless_it_is(
    usage: Usage, limit: int, rate: float
) -> None:
    is_full = usage.used >= usage.usable * limit / 100
    assert growth.days_left(usage, limit, rate) == (0 if is_full else math.inf)
