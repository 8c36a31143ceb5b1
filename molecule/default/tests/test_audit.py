"""The daily audit: its timer, its metrics, and how loudly it fails."""

from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host

from e2e.site.machine import Machine

pytestmark = pytest.mark.units("tap-trading-audit", "tap-trading-api")
UNIT = "tap-trading-audit.service"
#: A copy of the books in which the house has seven cents too much.
DAMAGED = "/data/tap-test-damaged.db"


def audit_metrics(host: Host) -> dict[str, float]:
    """What the API's /metrics says of the last audit."""
    shown = host.check_output("curl --silent --fail http://127.0.0.1:8080/metrics")
    lines = [line.split() for line in shown.splitlines() if line.startswith("tap_audit_")]
    return {name: float(value) for name, value in lines}


def test_the_ledger_is_audited_every_day(host: Host) -> None:
    timer = host.check_output(
        "systemctl show tap-trading-audit.timer --property=ActiveState,UnitFileState,TimersCalendar"
    )
    assert "ActiveState=active" in timer
    assert "UnitFileState=enabled" in timer
    assert "OnCalendar=*-*-* 03:30:00" in timer


def test_the_live_ledger_is_clean_and_the_metrics_say_so(host: Host, machine: Machine) -> None:
    machine.run(f"systemctl start {UNIT}", timeout=120)
    said = host.check_output("tap audit")
    assert said.startswith("/data/bets.db is clean: ")
    found = audit_metrics(host)
    assert found["tap_audit_clean"] == 1
    assert found["tap_audit_findings"] == 0
    now = float(host.check_output("date +%s"))
    assert abs(now - found["tap_audit_timestamp_seconds"]) < 120
    written = host.file("/data/metrics/audit.prom")
    assert (written.user, written.mode) == ("app", 0o644)


@pytest.fixture
def damaged_books(machine: Machine) -> Iterator[None]:
    """The unit audits a damaged copy instead of the live books."""
    folder = f"/run/systemd/system/{UNIT}.d"
    machine.run("/opt/app/scripts/backup-hourly.sh", timeout=120)
    machine.run(
        f"zstd --quiet --force --decompress $(ls -t /data/backups/bets-*.db.zst | head -n 1) -o {DAMAGED}"
        f" && sqlite3 {DAMAGED} \"UPDATE users SET balance = balance + 7 WHERE id = 'house'\""
        f" && chown app: {DAMAGED}"
    )
    machine.run(
        f"mkdir -p {folder} && echo DB_PATH={DAMAGED} > /run/tap-test.env"
        f" && printf '[Service]\\nEnvironmentFile=/run/tap-test.env\\n' > {folder}/damaged.conf"
        " && systemctl daemon-reload"
    )
    yield
    machine.run(
        f"rm -rf {folder} /run/tap-test.env {DAMAGED}* && systemctl daemon-reload"
        f" && systemctl start {UNIT}"
    )


def test_a_finding_fails_the_unit_and_is_a_line_of_priority_err(
    host: Host,
    machine: Machine,
    damaged_books: None,
    systemd: Callable[..., dict[str, str]],
) -> None:
    assert machine.attempt(f"systemctl start {UNIT}").returncode != 0
    shown = systemd(UNIT, "ActiveState", "Result", "ExecMainStatus", "InvocationID")
    assert shown["ActiveState"] == "failed"
    assert (shown["Result"], shown["ExecMainStatus"]) == ("exit-code", "1")
    machine.run("journalctl --sync")
    lines = host.check_output(
        "journalctl --output cat --identifier tap-trading-audit --priority err"
        f" _SYSTEMD_INVOCATION_ID={shown['InvocationID']}"
    ).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("house has a balance of ")
    assert lines[1].startswith(f"{DAMAGED} is NOT clean (findings: 1): ")
    found = audit_metrics(host)
    assert (found["tap_audit_clean"], found["tap_audit_findings"]) == (0, 1)
