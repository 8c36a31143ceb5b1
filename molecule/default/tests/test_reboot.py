"""A reboot: everything comes back by itself."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from e2e.site.machine import Machine

RUNNING = (
    *(f"tap-trading-{name}.{kind}" for name in ("api", "ws", "price", "resolver") for kind in ("service", "socket")),
    "tap-trading-audit.timer",
    "tap-trading-backup.timer",
    "tap-trading-drill.timer",
    "tap-trading-archiver.timer",
    "tap-trading-disk-watch.timer",
    "nginx.service",
    "redis-server.service",
    "ssh.service",
)  # fmt: skip


@pytest.fixture(scope="module")
def rebooted(machine: Machine, site: Any) -> float:
    """Seconds from the command to a healthy site."""
    began = time.monotonic()
    machine.restart()
    site.wait_until_healthy(60)
    return time.monotonic() - began


@pytest.mark.units("tap-trading-*", "nginx", "redis-server")
def test_every_unit_is_active_without_a_single_restart(
    rebooted: float, host: Host, systemd: Callable[..., dict[str, str]],
    measured: Callable[[str], None],
) -> None:  # fmt: skip
    measured(f"reboot until the site is healthy: {rebooted:.1f} s")
    for unit in RUNNING:
        shown = systemd(unit, "ActiveState", "NRestarts")
        assert shown["ActiveState"] == "active", unit
        assert shown.get("NRestarts", "0") == "0", unit
    assert "inactive" not in host.check_output("ufw status")
    failed = host.check_output("systemctl list-units --failed --plain --no-legend")
    assert failed == ""


@pytest.mark.units("tap-trading-*")
@pytest.mark.usefixtures("rebooted")
def test_no_service_complained(host: Host) -> None:
    lines = host.check_output("journalctl --boot --unit 'tap-trading-*' --output cat --no-pager")
    entries = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    assert entries
    bad = [entry for entry in entries if entry["level"] in ("error", "critical")]
    assert bad == []


@pytest.mark.units("tap-trading-*", "nginx", "redis-server")
@pytest.mark.usefixtures("rebooted")
async def test_the_site_works(stream: Any, site: Any) -> None:
    site.wait_until_open()
    hello, price = await stream.messages("hello", "price")
    assert hello["state"] == "open"
    assert price["price"] > 0


@pytest.mark.usefixtures("rebooted")
def test_bets_are_taken(place_bet: Any) -> None:
    assert place_bet().status == 202
