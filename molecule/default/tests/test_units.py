"""The units: sandbox, limits, start on boot, and the growing wait of a failing service."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

from e2e.site.machine import Machine

PORTS = {"api": 8080, "ws": 8081, "price": 8090, "resolver": 8091}
LARGEST_EXPOSURE = 2.0
#: The wait before the second, third … attempt, in s, as the plan's back-off has it.
WAITS = (1, 2, 4, 8)
#: What an attempt itself may take with half a core, in s.
STARTING_S = 5


def service_units(host: Host) -> list[str]:
    shown = host.check_output(
        "systemctl list-unit-files --plain --no-legend 'tap-trading-*.service'"
    )
    return [line.split()[0] for line in shown.splitlines()]


def test_every_service_is_sandboxed(host: Host, measured: Callable[[str], None]) -> None:
    units = service_units(host)
    # Each service in both colours, and what else there is.
    assert len(units) >= 13
    # It is the tool of releases, which as root replaces what the others are.
    units.remove("tap-trading-recover.service")
    exposures = {}
    for unit in units:
        said = host.run(f"systemd-analyze security --no-pager {unit}").stdout
        [exposure] = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)
        exposures[unit] = float(exposure)
    measured("exposure: " + ", ".join(f"{unit} {value}" for unit, value in exposures.items()))
    assert max(exposures.values()) <= LARGEST_EXPOSURE, exposures


@pytest.mark.parametrize("colour", ["blue", "green"])
@pytest.mark.parametrize("service", PORTS)
def test_a_service_has_half_a_core_and_a_gigabyte(
    host: Host, systemd: Callable[..., dict[str, str]], service: str, colour: str
) -> None:
    unit = f"tap-trading-{service}"
    shown = systemd(
        f"{unit}-{colour}.service", "CPUQuotaPerSecUSec", "MemoryMax", "SyslogIdentifier", "User",
        "Restart", "Environment", "PrivateNetwork",
    )  # fmt: skip
    # The live one has two names, and "indirect" to systemd, whether it is enabled or not.
    wanted = f"/etc/systemd/system/multi-user.target.wants/{unit}-{colour}.service"
    assert host.file(wanted).is_symlink
    assert shown == {
        "CPUQuotaPerSecUSec": "500ms",
        "MemoryMax": str(2**30),
        "SyslogIdentifier": unit,
        "User": "app",
        "Restart": "always",
        "Environment": "TAP_LIVE_LINK=/opt/app/current TAP_RELEASE_LINK=/opt/app/"
        f"{colour} OPENBLAS_NUM_THREADS=1",
        "PrivateNetwork": "yes",  # without exchanges even the price needs none
    }


def test_the_kernel_enforces_the_limits(host: Host, machine: Machine) -> None:
    handed_down = host.run(
        "test -d /sys/fs/cgroup/memory/system.slice"
        " || grep -qw memory /sys/fs/cgroup/cgroup.controllers"
    )
    if handed_down.rc != 0:
        pytest.skip("this host hands its container no control groups: limits were NOT tested")
    run = "systemd-run --quiet --wait --pipe"
    spin = "import time; end = time.monotonic() + 1\nwhile time.monotonic() < end: pass\n"
    used = host.check_output(
        f"{run} -p CPUQuota=20%% python3 -c %s", spin + "print(time.process_time())"
    )
    assert float(used) < 0.4
    hog = "b = bytearray(200_000_000)"
    killed = machine.attempt(f"{run} -p MemoryMax=50M -p MemorySwapMax=0 python3 -c '{hog}'")
    assert killed.returncode != 0


def test_the_ports_belong_to_the_socket_units(host: Host) -> None:
    for service, port in PORTS.items():
        shown = host.check_output(f"systemctl show tap-trading-{service}.socket -p Listen")
        assert shown.splitlines()[0] == f"Listen=127.0.0.1:{port} (Stream)"
        assert host.service(f"tap-trading-{service}.socket").is_enabled
        listening = host.check_output(f"ss --no-header --numeric --listening --tcp sport = :{port}")
        assert [line.split()[3] for line in listening.splitlines()] == [f"127.0.0.1:{port}"]


def test_the_price_is_logged_once_a_second(host: Host) -> None:
    lines = host.check_output(
        "journalctl --output cat --identifier tap-trading-price --since -10s"
    ).splitlines()
    entries = [json.loads(line) for line in lines]
    assert 8 <= len(entries) <= 12
    assert all(entry["component"] == "price" for entry in entries)


@pytest.fixture
def wrong_setting(machine: Machine) -> Iterator[Callable[[], None]]:
    """The stream's service finds a wrong setting; calling the fixture mends it."""
    folder = "/run/systemd/system/tap-trading-ws.service.d"
    machine.run(
        f"mkdir -p {folder} && echo TAP_WS_MAX_CLIENTS=many > /run/tap-test.env"
        f" && printf '[Service]\\nEnvironmentFile=/run/tap-test.env\\n' > {folder}/wrong.conf"
        " && systemctl daemon-reload"
    )

    def mend() -> None:
        machine.run(
            f"rm -f {folder}/wrong.conf && rmdir {folder} && rm -f /run/tap-test.env"
            " && systemctl daemon-reload"
        )

    yield mend
    if machine.attempt(f"test -d {folder}").returncode == 0:
        mend()
    machine.run("systemctl restart tap-trading-ws")


@pytest.mark.units("tap-trading-ws")
def test_a_failing_service_waits_longer_each_time_and_heals_when_mended(
    machine: Machine, probe: Callable[..., Any], wrong_setting: Callable[[], None],
    measured: Callable[[str], None],
) -> None:  # fmt: skip
    machine.run("systemctl restart --no-block tap-trading-ws")
    attempts = probe("failures", "tap-trading-ws", len(WAITS), timeout=60)
    assert len({attempt["error"] for attempt in attempts}) == 1
    assert "TAP_WS_MAX_CLIENTS" in attempts[0]["error"]
    times = [attempt["time"] for attempt in attempts]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    measured("back-off of a failing service: " + ", ".join(f"{wait:.1f} s" for wait in waits))
    for wait, planned in zip(waits, WAITS, strict=False):
        assert planned <= wait < planned + STARTING_S, waits
    assert waits == sorted(waits)
    wrong_setting()
    healed = probe("heal", "tap-trading-ws", "http://127.0.0.1:8081/healthz", 0, timeout=60)
    assert healed["status"] == 200
