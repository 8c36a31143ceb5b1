"""Metrics in a file: replaced in one step, read back, and shown by the API."""

import os
import time
from pathlib import Path

import pytest

from tap_trading.base import metrics, textfile
from tap_trading.base.textfile import Metric

ONE = Metric("tap_test_one", "One.", {"": 1.5})
TWO = Metric("tap_test_two", "Two.", {"bets": 2, "prices": 3}, "database")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "test.prom"
    textfile.write(path, [ONE, TWO])
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in tmp_path.iterdir()] == ["test.prom"]
    assert textfile.read(path) == {
        "tap_test_one": {"": 1.5},
        "tap_test_two": {"bets": 2.0, "prices": 3.0},
    }
    assert b'\ntap_test_two{database="prices"} 3.0\n' in metrics.exposition(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"tap_test_one{ 1\n"])
def test_what_cannot_be_read_says_nothing(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "test.prom"
    if content is not None:
        path.write_bytes(content)
    assert textfile.read(path) == {}


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(
    tmp_path: Path,
) -> None:
    left, new = tmp_path / ".test.prom-abc", tmp_path / ".test.prom-def"
    for path in (left, new):
        path.write_text("half")
    os.utime(left, (time.time() - 100,) * 2)
    textfile.write(tmp_path / "test.prom", [ONE])
    assert (left.exists(), new.exists()) == (False, True)


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "test.prom"
    (path / "folder").mkdir(parents=True)
    with pytest.raises(OSError, match="Is a directory"):
        textfile.write(path, [ONE])
    assert [file.name for file in tmp_path.iterdir()] == ["test.prom"]
