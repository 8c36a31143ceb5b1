"""The units and the settings of the copies, and what is refused before anything is changed."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tap_trading.base import config
from templates.render import accepts, evaluate, render
from templates.units import complaints, exposure

MANAGED = "Written by Ansible"
STORAGE: dict[str, Any] = {
    "backup_s3_bucket": "tap-copies",
    "backup_s3_access_key_id": "app",
    "backup_s3_secret": "hidden",
}


def tap_accepts(**variables: Any) -> bool:
    """Whether `tap` takes the settings that these variables become."""
    text = render("backup", "backup.env.j2", ansible_managed=MANAGED, **variables)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    try:
        config.load(dict(shlex.split(line)[0].split("=", 1) for line in lines))
    except (config.ConfigError, ValueError):  # also a line that is none
        return False
    return True


@pytest.mark.parametrize(
    ("variables", "good"),
    [
        ({}, True),
        ({"backup_s3_endpoint": "https://s3.example.net"}, True),
        ({"backup_s3_endpoint": "http://[::1]:9000/"}, True),
        ({"backup_s3_endpoint": "s3.example.net"}, False),
        ({"backup_s3_endpoint": "https://S3.example.net"}, False),
        ({"backup_s3_endpoint": "https://s3.example.net/path"}, False),
        ({"backup_s3_endpoint": "https://" + "a" * 243}, False),
        ({"backup_s3_bucket": "Tap"}, False),
        ({"backup_s3_bucket": "a.b"}, False),
        ({"backup_s3_bucket": "ab"}, False),
        ({"backup_s3_bucket": "tap-copies\n"}, False),
        ({"backup_s3_region": ""}, False),
        ({"backup_s3_region": "eu west"}, False),
        ({"backup_s3_prefix": "sites/one"}, True),
        ({"backup_s3_prefix": "sites/"}, False),
        ({"backup_s3_prefix": "/sites"}, False),
        ({"backup_s3_prefix": "a" * 201}, False),
        ({"backup_s3_access_key_id": ""}, False),
        ({"backup_s3_access_key_id": "two words"}, False),
    ],
)
def test_a_storage_is_refused_where_tap_refuses_it(variables: dict[str, Any], good: bool) -> None:
    given = STORAGE | variables
    accepted = accepts("backup", "Refuse a storage that cannot be reached", **given)
    assert (accepted, tap_accepts(**given)) == (good, good)


def test_a_bucket_needs_a_secret_and_none_needs_nothing() -> None:
    task = "Refuse a storage that cannot be reached"
    assert not accepts("backup", task, **STORAGE | {"backup_s3_secret": ""})
    assert accepts("backup", task)


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("", True),
        ("A" * 43 + "=", True),
        ("A" * 43, False),
        ("A" * 44, False),
        ("A" * 43 + "=\n", False),
        ("-" * 43 + "=", False),
    ],
)
def test_a_key_has_32_bytes(key: str, good: bool) -> None:
    assert accepts("backup", "Refuse a key that encrypts nothing", backup_key=key) is good


def test_secrets_are_files_that_go_when_they_are_no_longer_set() -> None:
    def files(**variables: Any) -> dict[str, str]:
        listed = evaluate("backup", "_backup_secrets", **variables)
        return {item["name"]: item["content"] for item in listed}

    assert files() == {"s3-secret": "", "key": ""}
    assert files(**STORAGE, backup_key="k") == {"s3-secret": "hidden", "key": "k"}
    assert files(backup_s3_secret="hidden")["s3-secret"] == ""


# -- the units -----------------------------------------------------------------------------------


def directives(template: str, **variables: Any) -> list[str]:
    """The lines that say something."""
    text = render("backup", template, ansible_managed=MANAGED, **variables)
    return [line for line in text.splitlines() if line and not line.startswith(("#", "["))]


#: Each with the program that it needs.
UNITS = {"backup": "tap", "drill": "tap", "archiver": "archiver"}


@pytest.mark.parametrize("unit", UNITS)
def test_the_network_is_there_for_the_storage_alone(unit: str) -> None:
    template = f"tap-trading-{unit}.service.j2"
    without, given = directives(template), directives(template, **STORAGE)
    assert {"PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"} <= set(without)
    assert set(given) - set(without) == {
        "PrivateNetwork=no",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "Wants=network-online.target",
        "After=network-online.target",
    }
    for unit_of in (without, given):
        assert "EnvironmentFile=-/etc/tap-trading/app.env" in unit_of
        assert "EnvironmentFile=-/etc/tap-trading/backup.env" in unit_of
        assert f"ConditionPathExists=/opt/app/current/{UNITS[unit]}" in unit_of
        assert f"SyslogIdentifier=tap-trading-{unit}" in unit_of


def test_all_run_in_the_same_sandbox() -> None:
    def sandbox(unit: str) -> list[str]:
        found = directives(f"tap-trading-{unit}.service.j2", **STORAGE)
        return found[found.index("User=app") :]

    assert sandbox("backup") == sandbox("drill") == sandbox("archiver")


def test_the_drill_runs_every_week() -> None:
    service = directives("tap-trading-drill.service.j2")
    assert (
        "ExecStart=/opt/app/current/tap drill --dest /data/backups --scratch /data/drill"
        " --metrics /data/metrics/drill.prom"
    ) in service
    assert "TimeoutStartSec=7200" in service
    assert "OnCalendar=Sun *-*-* 04:20:00" in directives("tap-trading-drill.timer.j2")
    other = directives("tap-trading-drill.timer.j2", backup_drill_time="daily")
    assert {"OnCalendar=daily", "Persistent=yes"} <= set(other)


def test_the_archiver_runs_every_day() -> None:
    service = directives("tap-trading-archiver.service.j2")
    assert "ExecStart=/opt/app/current/archiver" in service
    assert "TimeoutStartSec=21600" in service
    assert "OnCalendar=*-*-* 03:00:00" in directives("tap-trading-archiver.timer.j2")
    other = directives("tap-trading-archiver.timer.j2", backup_archive_time="Mon 05:00")
    assert {"OnCalendar=Mon 05:00", "Persistent=yes"} <= set(other)


@pytest.mark.parametrize(
    ("settings", "good"),
    [
        ({}, True),
        ({"backup_archive_timeout": 0}, False),
        ({"backup_archive_time": ""}, False),
        ({"backup_keep": 0}, False),
        ({"backup_keep_daily": 0}, False),
        ({"backup_keep_weekly": "none"}, False),
        ({"backup_timeout": 0}, False),
        ({"backup_drill_timeout": 0}, False),
        ({"backup_drill_time": "*-*-1..7 03:00"}, True),
        ({"backup_drill_time": ""}, False),
        ({"backup_drill_time": "daily\nOnBootSec=1"}, False),
    ],
)
def test_what_the_preflight_takes(settings: dict[str, Any], good: bool) -> None:
    assert accepts("backup", "Refuse to keep no backup", **settings) is good


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
@pytest.mark.parametrize("variables", [{}, STORAGE], ids=["alone", "storage"])
def test_systemd_finds_nothing_wrong_with_them(variables: dict[str, Any], tmp_path: Path) -> None:
    units = {
        f"tap-trading-{unit}.{kind}": render(
            "backup", f"tap-trading-{unit}.{kind}.j2", ansible_managed=MANAGED, **variables
        )
        for unit in UNITS
        for kind in ("service", "timer")
    }
    assert not complaints(tmp_path, units)
    for unit in UNITS:
        name = f"tap-trading-{unit}.service"
        assert exposure(tmp_path, name, units[name]) < 2.0


# -- the script ----------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script, for a machine whose folders are elsewhere."""
    text = render("backup", "backup-hourly.sh.j2", ansible_managed=MANAGED)
    text = text.replace("/opt/app/current", str(tmp_path)).replace("/data/", f"{tmp_path}/")
    path = tmp_path / "backup-hourly.sh"
    path.write_text(text.replace('[ "$(id -u)" -eq 0 ]', "false"))
    (tmp_path / "backups").mkdir()
    return path


def release(folder: Path, code: int) -> None:
    """A `tap` that notes its words, and whose backup-all ends with this code."""
    tap = folder / "tap"
    tap.write_text(
        f'#!/bin/sh\necho "${{TAP_S3_BUCKET-}} $*" >>{folder}/words\n'
        f'[ "$1" = backup ] || exit {code}\n'
    )
    tap.chmod(0o755)


def run(script: Path) -> tuple[int, list[str]]:
    environment = {"PATH": "/usr/bin:/bin", "TAP_S3_BUCKET": "tap-copies"}
    done = subprocess.run(["/bin/sh", script], env=environment, check=False)
    return done.returncode, (script.parent / "words").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 1, 78])
def test_the_script_backs_everything_up(code: int, script: Path) -> None:
    release(script.parent, code)
    folder = script.parent
    assert run(script) == (
        code,
        [
            (
                f"tap-copies backup-all --dest {folder}/backups --keep 24 --keep-daily 7"
                f" --keep-weekly 5 --metrics {folder}/metrics/backup.prom"
            )
        ],
    )


def test_a_release_that_was_rolled_back_to_makes_copies_too_and_removes_none(script: Path) -> None:
    release(script.parent, 2)
    code, words = run(script)
    assert (code, words[1:]) == (0, [f" backup --dest {script.parent}/backups --keep 204"])
