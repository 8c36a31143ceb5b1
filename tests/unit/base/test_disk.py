"""How full a disk is, and when that closes and opens betting."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tap_trading.base import disk
from tap_trading.base.disk import HYSTERESIS_POINTS, DiskGuard, Usage, usage_of

LIMIT = 95


class Disk:
    """A file system that is as full as a test says."""

    def __init__(self) -> None:
        self.percent: float | None = 0.0  # None: it cannot be asked
        self.guard = DiskGuard(Path("/data"), LIMIT, self.ask)

    def ask(self, _path: Path) -> Usage:
        if self.percent is None:
            raise OSError(5, "Input/output error")
        return Usage(round(self.percent * 1000), 100_000)

    def is_full_at(self, percent: float | None) -> bool:
        self.percent = percent
        self.guard.look()
        return self.guard.is_full


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


def test_it_counts_as_df_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 1000 blocks 50 are root's; of the others 760 are in use.
    stat = SimpleNamespace(f_blocks=1000, f_bfree=240, f_bavail=190, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _path: stat)
    found = usage_of(Path("/data"))
    assert found == Usage(760 * 4096, 950 * 4096)
    assert found.percent == 80


def test_a_real_one(tmp_path: Path) -> None:
    found, shown = usage_of(tmp_path), shutil.disk_usage(tmp_path)
    assert found.used == pytest.approx(shown.used, rel=0.01)
    assert found.usable == pytest.approx(shown.used + shown.free, rel=0.01)
    with pytest.raises(FileNotFoundError):
        usage_of(tmp_path / "no such folder")


def test_one_without_a_size_is_not_full() -> None:
    assert Usage(0, 0).percent == 0


def test_it_closes_at_the_limit_and_opens_two_points_below(log: list[Any]) -> None:
    full = Disk()
    seen = [94.9, 95.0, 94.9, 93.0, 92.9, 94.9, 95.0]
    assert [full.is_full_at(percent) for percent in seen] == [
        *(False, True, True, True, False, False, True)
    ]
    assert [(line["log_level"], line["event"], line["used_percent"]) for line in log] == [
        ("critical", "disk full: new bets are refused", 95.0),
        ("warning", "disk no longer full: new bets are taken again", 92.9),
        ("critical", "disk full: new bets are refused", 95.0),
    ]


@given(st.lists(st.one_of(st.none(), st.floats(0, 100))))
def test_it_is_never_open_at_the_limit_nor_closed_below_the_hysteresis(
    seen: list[float | None],
) -> None:
    full, before = Disk(), False
    for percent in seen:
        now = full.is_full_at(percent)
        if percent is None or round(percent, 3) < LIMIT - HYSTERESIS_POINTS:
            assert not now
        elif round(percent, 3) >= LIMIT:
            assert now
        else:
            assert now == before
        before = now


async def test_one_that_cannot_be_asked_refuses_nothing_and_says_so_once(log: list[Any]) -> None:
    full = Disk()
    assert full.is_full_at(99)
    assert not full.is_full_at(None)
    assert not full.is_full_at(None)
    assert [line["event"] for line in log][1:] == [
        *("disk cannot be asked", "disk no longer full: new bets are taken again")
    ]
    assert await full.guard.check() == "cannot be asked: Input/output error"
    assert full.is_full_at(99)
    assert await full.guard.check() == "99.0 % in use: new bets are refused"
    assert not full.is_full_at(10)
    assert await full.guard.check() == "ok"
    full.is_full_at(None)
    assert [line["event"] for line in log][-1] == "disk cannot be asked"


def test_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, float] = {}
    for name in ("_USED_RATIO", "_BETS_REFUSED"):
        monkeypatch.setattr(
            disk, name, SimpleNamespace(set=lambda value, name=name: told.update({name: value}))
        )
    Disk().is_full_at(96.5)
    assert told == {"_USED_RATIO": pytest.approx(0.965), "_BETS_REFUSED": True}
