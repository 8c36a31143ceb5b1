"""The exposition: a process's own metrics and the files that timers leave, never broken."""

import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tap_trading.base import metrics

GOOD = b"# TYPE tap_audit_clean gauge\ntap_audit_clean 1\n"


def left_out() -> float:
    return metrics.ERRORS.labels("metrics_file")._value.get()


def values(exposition: bytes) -> dict[str, float]:
    """All samples without labels; the text has to be whole."""
    families = text_string_to_metric_families(exposition.decode())
    return {s.name: s.value for family in families for s in family.samples if not s.labels}


def test_files_follow_the_processs_own_metrics(tmp_path: Path) -> None:
    (tmp_path / "audit.prom").write_bytes(GOOD)
    (tmp_path / "archive.prom").write_bytes(b"tap_archive_files 7\n")
    (tmp_path / "notes.txt").write_bytes(b"tap_notes 1\n")
    found = values(metrics.exposition(tmp_path))
    assert found["tap_audit_clean"] == 1
    assert found["tap_archive_files"] == 7
    assert "tap_notes" not in found
    assert "process_cpu_seconds_total" in found


@pytest.mark.parametrize("folder", [None, Path("/nowhere/at/all")])
def test_no_folder_is_fine(folder: Path | None) -> None:
    before = left_out()
    assert "process_cpu_seconds_total" in values(metrics.exposition(folder))
    assert left_out() == before


@pytest.mark.parametrize(
    "content",
    [
        b"not a metric\n",
        b"tap_audit_entries 1",  # cut off
        b"",
        b"\xff\xfe\n",
        b"tap_x " + b"1" * 70_000 + b"\n",
        b"# TYPE tap_errors counter\ntap_errors_total 1\n",  # one of our own
        b"tap_http_request_seconds_count 1\n",
        GOOD,  # in another file already
    ],
)
def test_a_file_that_would_spoil_the_whole_is_left_out_and_counted(
    tmp_path: Path, content: bytes
) -> None:
    metrics.HTTP_SECONDS.labels("GET", "/", 200).observe(0.1)
    (tmp_path / "a.prom").write_bytes(GOOD)
    (tmp_path / "b.prom").write_bytes(content)
    (tmp_path / "c.prom").write_bytes(b"tap_last 3\n")
    before = left_out()
    exposition = metrics.exposition(tmp_path)
    found = values(exposition)
    assert found["tap_audit_clean"] == 1
    assert found["tap_last"] == 3
    assert exposition.count(b"\ntap_audit_clean ") == 1
    assert left_out() == before + 1
    assert metrics.exposition().count(b'tap_errors_total{kind="metrics_file"}') == 1


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.prom")
    (tmp_path / "folder.prom").mkdir()
    (tmp_path / "dangling.prom").symlink_to(tmp_path / "nothing")
    before = left_out()
    assert "process_cpu_seconds_total" in values(metrics.exposition(tmp_path))
    assert left_out() == before + 3
