"""The unit and the timer of the daily audit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from templates.render import accepts, render
from templates.units import complaints

MANAGED = "Written by Ansible"


def directives(role: str, template: str, **overrides: object) -> list[str]:
    """The lines that say something."""
    text = render(role, template, ansible_managed=MANAGED, **overrides)
    return [line for line in text.splitlines() if line and not line.startswith(("#", "["))]


def test_it_audits_the_live_releases_ledger_into_the_folder_of_metrics() -> None:
    unit = directives("audit", "tap-trading-audit.service.j2")
    assert "ExecStart=/opt/app/current/tap audit --metrics /data/metrics/audit.prom" in unit
    assert "EnvironmentFile=-/etc/tap-trading/app.env" in unit
    assert "ConditionPathExists=/opt/app/current/tap" in unit
    assert "SyslogIdentifier=tap-trading-audit" in unit
    assert "TimeoutStartSec=3600" in unit
    settings = render("services", "app.env.j2", ansible_managed=MANAGED)
    assert "TAP_METRICS_DIR='/data/metrics'\n" in settings


def test_its_sandbox_is_that_of_the_backup() -> None:
    def sandbox(role: str) -> list[str]:
        unit = directives(role, f"tap-trading-{role}.service.j2")
        return unit[unit.index("User=app") :]

    assert sandbox("audit") == sandbox("backup")


def test_it_runs_every_day_also_after_a_night_without_the_machine() -> None:
    timer = directives("audit", "tap-trading-audit.timer.j2")
    assert "OnCalendar=*-*-* 03:30:00" in timer
    assert "Persistent=yes" in timer
    other = directives("audit", "tap-trading-audit.timer.j2", audit_time="23:05")
    assert "OnCalendar=*-*-* 23:05:00" in other


@pytest.mark.parametrize(
    ("settings", "good"),
    [
        ({}, True),
        ({"audit_time": "00:00"}, True),
        ({"audit_time": "23:59"}, True),
        ({"audit_time": "24:00"}, False),
        ({"audit_time": "3:30"}, False),
        ({"audit_time": "210"}, False),  # what YAML makes of 03:30 without quotes
        ({"audit_time": "03:30\n"}, False),
        ({"audit_timeout": 1}, True),
        ({"audit_timeout": 0}, False),
        ({"audit_timeout": "never"}, False),
    ],
)
def test_what_the_preflight_takes(settings: dict[str, object], good: bool) -> None:
    task = "Refuse an audit that would never run or never end"
    assert accepts("audit", task, **settings) is good


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_systemd_finds_nothing_wrong_with_them(tmp_path: Path) -> None:
    units = {
        f"tap-trading-audit.{kind}": render(
            "audit", f"tap-trading-audit.{kind}.j2", ansible_managed=MANAGED
        )
        for kind in ("service", "timer")
    }
    assert not complaints(tmp_path, units)
