"""`tap disk`, and the samples that the hourly run takes for it."""

import time
from pathlib import Path

import pytest
from tests.integration.conftest import Serve, Tap

from tap_trading.base import growth, textfile
from tap_trading.base.disk import Usage
from tap_trading.base.growth import DAY_S, HOUR_S, Sample
from tap_trading.services import api

GB = 10**9


@pytest.fixture
def tap(
    environment: dict[str, str], tmp_path: Path, run_tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> Tap:
    """`tap` of a machine whose limit is 95 %."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TAP_METRICS_DIR", str(tmp_path))
    monkeypatch.setenv("TAP_DISK_FULL_PERCENT", "95")
    return run_tap


def words(command: str, folder: Path) -> list[str]:
    return [command, "--dest", str(folder / "copies")]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of 256 GB, of which 200 are used."""
    monkeypatch.setattr(growth, "usage_of", lambda _path: Usage(200 * GB, 256 * GB))


def watched(folder: Path, days: int, gb_a_day: float, ended_s: int = 10) -> None:
    """The disk was sampled every hour for so many days, and grew by as much."""
    now = int(time.time()) - ended_s
    for hour in range(days * 24, -1, -1):
        used = int((200 - gb_a_day * hour / 24) * GB)
        growth.note(
            folder / "disk-usage.jsonl",
            Sample(now - hour * HOUR_S, used, 256 * GB, {"books": 0, growth.OTHER: used}),
        )


@pytest.mark.usefixtures("disk")
def test_days_left_at_the_rate_of_today_and_of_the_week(tap: Tap, tmp_path: Path) -> None:
    watched(tmp_path, 6, gb_a_day=2)
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies/one").write_bytes(bytes(3_000_000))
    code, out, err = tap(*words("disk", tmp_path))
    assert (code, err) == (0, "")
    rows = {line[:16].strip(): line[16:].split("  ") for line in out.splitlines()[:-1]}
    assert list(rows) == [
        *("part", "books", "prices", "archives", "backups", "everything else", "all")
    ]
    shown = {name: [cell.strip() for cell in cells if cell] for name, cells in rows.items()}
    assert shown["backups"][0] == "3.0 MB"
    assert shown["archives"][0] == "0 B"
    assert shown["all"] == ["200.0 GB", "+2.0 GB"]
    assert out.splitlines()[-1] == (
        "78.1 % of 256.0 GB are in use; from 95 % on new bets are refused: in 22 days at today's"
        " rate, in 22 days at that of the last 6.0 days"
    )


@pytest.mark.usefixtures("disk")
def test_a_disk_that_shrinks_is_never_full(tap: Tap, tmp_path: Path) -> None:
    watched(tmp_path, 2, gb_a_day=-1)
    out = tap(*words("disk", tmp_path))[1]
    assert out.splitlines()[-1].endswith(
        " refused: never at today's rate (it does not grow), never at that of the last 2.0 days (it"
        " does not grow)"
    )
    assert "-1.0 GB\n" in out


@pytest.mark.usefixtures("disk")
def test_too_few_samples_are_said_so(tap: Tap, tmp_path: Path) -> None:
    for samples in range(2):
        code, out, _ = tap(*words("disk", tmp_path))
        assert code == 0
        assert "how fast it grows is not known yet" in out.splitlines()[-1], samples
        watched(tmp_path, 0, gb_a_day=0)


def test_full_is_said_so(tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "usage_of", lambda _path: Usage(95 * GB, 100 * GB))
    code, out, _ = tap(*words("disk", tmp_path))
    assert code == 0
    assert out.splitlines()[-1] == (
        "95.0 % of 100.0 GB are in use: it is full, and new bets are refused until it is below"
        " 93 %; docs/disk.md says what to do"
    )


def test_a_disk_that_cannot_be_asked_is_one_sentence(
    tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PATH", str(tmp_path / "no" / "bets.db"))
    code, out, err = tap(*words("disk", tmp_path))
    assert (code, out) == (1, "")
    assert err.startswith("tap: ")
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("disk")
async def test_the_hourly_run_takes_a_sample_and_the_api_shows_it(
    tap: Tap, tmp_path: Path, serve: Serve
) -> None:
    watched(tmp_path, 3, gb_a_day=4)
    code, _, err = tap(*words("backup-all", tmp_path))
    assert (code, err) == (0, "")
    samples = growth.read(tmp_path / "disk-usage.jsonl")
    assert len(samples) == 3 * 24 + 2
    assert samples[-1].parts["books"] >= (tmp_path / "bets.db").stat().st_size
    assert samples[-1].parts["backups"] > 0
    told = textfile.read(tmp_path / "disk.prom")
    assert told["tap_disk_days_left"]["day"] == pytest.approx(43.2 / 4, rel=0.01)
    assert told["tap_disk_days_left"].keys() == {"day", "week"}
    assert told["tap_disk_usable_bytes"][""] == 256 * GB
    assert sum(told["tap_disk_part_bytes"].values()) == 200 * GB
    async with serve(api.build, TAP_METRICS_DIR=str(tmp_path)) as client:
        shown = await (await client.get("/metrics")).text()
    assert '\ntap_disk_days_left{rate="day"} ' in shown
    assert "\ntap_disk_used_ratio " in shown


def test_a_run_that_fails_takes_its_sample_too(
    tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRICES_DB_PATH", str(tmp_path / "no.db"))
    assert tap(*words("backup-all", tmp_path))[0] == 1
    (tmp_path / "copies").chmod(0o700)
    (tmp_path / "file").write_text("")
    assert tap("backup-all", "--dest", str(tmp_path / "file"))[0] == 1
    assert len(growth.read(tmp_path / "disk-usage.jsonl")) >= 1
    told = textfile.read(tmp_path / "disk.prom")
    assert "tap_disk_days_left" not in told  # too early
    assert told["tap_disk_part_bytes"]["books"] > 0


def test_a_sample_that_cannot_be_kept_fails_no_backup(
    tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAP_METRICS_DIR", str(tmp_path / "no"))
    code, out, err = tap(*words("backup-all", tmp_path))
    assert code == 0
    assert "bytes, checked" in out
    assert err.startswith("tap: the disk's use was not noted: ")


def test_growing_to_a_day(tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours matter when there are but a few days."""
    monkeypatch.setattr(growth, "usage_of", lambda _path: Usage(200 * GB, 256 * GB))
    watched(tmp_path, 1, gb_a_day=40, ended_s=DAY_S // 100)
    assert "in 1.1 days at today's rate" in tap(*words("disk", tmp_path))[1]
