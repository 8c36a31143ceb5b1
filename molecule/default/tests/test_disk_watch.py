"""The disk watch: one journal line for every threshold that a file system crosses."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from e2e.site.machine import Machine

pytestmark = pytest.mark.units("tap-trading-disk-watch", "tap-test-disk-watch")
FOLDER = "/mnt/tap-test-disk"
UNIT = "tap-test-disk-watch"
IDENTIFIER = "tap-trading-disk-watch"
MEGABYTES = 20


@pytest.fixture
def small_disk(host: Host, machine: Machine) -> Iterator[str]:
    """A file system of 20 MB that a copy of the real unit watches."""
    unit = host.file("/etc/systemd/system/tap-trading-disk-watch.service").content_string
    unit, paths = re.subn(r"^    / /data$", f"    {FOLDER}", unit, flags=re.MULTILINE)
    assert paths == 1
    unit = unit.replace("StateDirectory=tap-trading-disk-watch", f"StateDirectory={UNIT}")
    machine.run(f"cat > /run/systemd/system/{UNIT}.service", stdin=unit)
    machine.run(
        f"mkdir -p {FOLDER} && mount -t tmpfs -o size={MEGABYTES}M tmpfs {FOLDER}"
        " && systemctl daemon-reload"
    )
    yield FOLDER
    machine.run(
        f"umount {FOLDER}; rmdir {FOLDER}; rm /run/systemd/system/{UNIT}.service"
        f"; systemctl daemon-reload; systemctl clean --what=state {UNIT} 2>/dev/null"
        f"; rm -rf /var/lib/private/{UNIT} /var/lib/{UNIT}"
    )


def test_every_threshold_is_reported_once_up_and_once_down(
    small_disk: str, machine: Machine
) -> None:
    seen = [""]
    new_entries(machine, seen)

    def reported_at(percent: int) -> list[tuple[str, int, str]]:
        """Level, threshold and the journal's priority of each new line."""
        fill(machine, small_disk, percent)
        machine.run(f"systemctl start {UNIT}")
        entries = new_entries(machine, seen)
        lines = [json.loads(entry["MESSAGE"]) for entry in entries]
        assert all(line["path"] == small_disk for line in lines)
        return [
            (line["level"], line["threshold_percent"], entry["PRIORITY"])
            for line, entry in zip(lines, entries, strict=True)
        ]

    assert reported_at(10) == []
    assert reported_at(75) == [("warning", 70, "4")]
    assert reported_at(76) == []
    assert reported_at(97) == [("error", 85, "3"), ("critical", 95, "2")]
    assert reported_at(97) == []
    assert reported_at(75) == [("info", 95, "5"), ("info", 85, "5")]
    assert reported_at(69) == []
    assert reported_at(10) == [("info", 70, "5")]


def test_it_runs_every_minute(host: Host) -> None:
    timer = host.check_output(
        "systemctl show tap-trading-disk-watch.timer"
        " --property=ActiveState,TimersCalendar,LastTriggerUSec"
    )
    assert "ActiveState=active" in timer
    assert "OnCalendar=*-*-* *:*:00" in timer
    last = host.check_output(
        "systemctl show tap-trading-disk-watch.service"
        " --property=ExecMainStartTimestamp,Result,ExecMainStatus"
    )
    assert "Result=success" in last
    assert "ExecMainStatus=0" in last


def fill(machine: Machine, folder: str, percent: int) -> None:
    kilobytes = MEGABYTES * 1024 * percent // 100
    machine.run(
        f"rm -f {folder}/filling"
        f" && dd if=/dev/zero of={folder}/filling bs=1K count={kilobytes} status=none"
    )


def new_entries(machine: Machine, seen: list[str]) -> list[dict[str, Any]]:
    """What the watch wrote to the journal since the last call; `seen` holds the journal's cursor."""
    machine.run("journalctl --sync")
    after = f"--after-cursor '{seen[0]}'" if seen[0] else ""
    shown = machine.attempt(f"journalctl -q --unit {UNIT} {after} --output json").stdout
    entries = [json.loads(line) for line in shown.splitlines()]
    if entries:
        seen[0] = entries[-1]["__CURSOR"]
    return [entry for entry in entries if entry.get("SYSLOG_IDENTIFIER") == IDENTIFIER]
