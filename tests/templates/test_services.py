"""The units of the services: the plan's limits, the sandbox, the ports, and the back-off."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from tap_release import colours

from tap_trading.base import config
from templates.render import ROLES, accepts, evaluate, handles, render
from templates.units import complaints, exposure

PORTS = {"api": 8080, "ws": 8081, "price": 8090, "resolver": 8091}
#: Who writes to /data: the books, or the prices.
WRITERS = {"api", "price", "resolver"}
#: What the machine's own test (molecule) allows too.
LARGEST_EXPOSURE = 2.0
MANAGED = "Written by Ansible"

Unit = dict[str, dict[str, list[str]]]


def units(**overrides: Any) -> dict[str, dict[str, Any]]:
    """What the role knows of each service, in the order of their restarts."""
    return {unit["name"]: unit for unit in evaluate("services", "_services_units", **overrides)}


def rendered(name: str, kind: str, colour: str = "blue", **overrides: Any) -> str:
    """The text of a unit."""
    unit = units(**overrides)[name]
    item = (unit, colour) if kind == "service" else {"unit": unit}
    return render("services", f"{kind}.j2", item=item, ansible_managed=MANAGED, **overrides)


def unit_file(name: str, kind: str, **overrides: Any) -> Unit:
    """Section → directive → values, as systemd reads them."""
    found: Unit = defaultdict(lambda: defaultdict(list))
    section = ""
    for line in rendered(name, kind, **overrides).splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith(("#", ";")):
            key, value = line.split("=", 1)
            found[section][key].append(value)
    return found


@pytest.fixture(params=PORTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_there_is_a_unit_for_every_service() -> None:
    assert {name: unit["port"] for name, unit in units().items()} == PORTS


def test_who_makes_prices_and_results_is_restarted_before_who_shows_them() -> None:
    assert list(units()) == ["price", "resolver", "api", "ws"]


def test_the_plans_limits(name: str) -> None:
    service = unit_file(name, "service")["Service"]
    assert service["CPUQuota"] == ["50%"]
    assert service["CPUQuotaPeriodSec"] == ["20ms"]
    assert service["MemoryMax"] == ["1G"]
    assert "MemoryLimit" not in service
    # A deployment takes an idle colour's weight away, and gives it back.
    assert service["CPUWeight"] == [str(colours.WEIGHTS[name])]


def test_it_comes_back_for_ever(name: str) -> None:
    unit = unit_file(name, "service")
    assert unit["Service"]["Restart"] == ["always"]
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert "StartLimitIntervalSec" not in unit["Service"]
    backoff = "/opt/app/scripts/restart-backoff"
    assert unit["Service"]["ExecStartPre"] == [f"{backoff} wait"]
    assert unit["Service"]["ExecStartPost"] == [f"{backoff} started"]
    assert unit["Service"]["ExecStopPost"] == [f"{backoff} ended"]
    # The count of failures outlives the process, and the longest wait fits into a start.
    assert unit["Service"]["RuntimeDirectoryPreserve"] == ["yes"]
    assert int(unit["Service"]["TimeoutStartSec"][0]) > 60


def test_it_is_ordered_but_not_tied_to_redis(name: str) -> None:
    unit = unit_file(name, "service")["Unit"]
    assert "redis-server.service" in unit["After"][0].split()
    assert unit["Wants"] == ["redis-server.service"]
    assert unit["Requires"] == [f"tap-trading-{name}.socket"]
    assert unit["RequiresMountsFor"] == ["/data"]


def test_it_runs_the_live_release_as_the_app_user(name: str) -> None:
    unit = unit_file(name, "service")
    assert unit["Service"]["Type"] == ["notify"]
    assert unit["Service"]["ExecStart"] == [f"/opt/app/blue/{name}"]
    assert unit["Service"]["Sockets"] == [f"tap-trading-{name}.socket"]
    links = {"TAP_LIVE_LINK=/opt/app/current", "TAP_RELEASE_LINK=/opt/app/blue"}
    assert links <= set(unit["Service"]["Environment"])
    assert unit["Service"]["User"] == ["app"]
    assert unit["Service"]["Group"] == ["app"]
    assert unit["Service"]["EnvironmentFile"] == ["/etc/tap-trading/app.env"]
    assert unit["Unit"]["ConditionPathExists"] == [f"/opt/app/blue/{name}"]
    assert unit["Install"]["WantedBy"] == ["multi-user.target"]
    # A service gets 10 s to end gracefully; systemd waits longer than that.
    assert int(unit["Service"]["TimeoutStopSec"][0]) > 10


def test_the_journal_knows_it_by_its_name(name: str) -> None:
    service = unit_file(name, "service")["Service"]
    assert service["SyslogIdentifier"] == [f"tap-trading-{name}"]
    assert service["StandardOutput"] == service["StandardError"] == ["journal"]


def test_it_writes_to_data_alone_if_at_all(name: str) -> None:
    service = unit_file(name, "service")["Service"]
    assert service["ProtectSystem"] == ["strict"]
    assert service.get("ReadWritePaths", []) == (["/data"] if name in WRITERS else [])


def test_it_cannot_read_the_secrets_of_the_backups(name: str) -> None:
    assert unit_file(name, "service")["Service"]["InaccessiblePaths"] == [
        "-/etc/tap-trading/backup"
    ]


def test_its_arithmetic_starts_no_threads(name: str) -> None:
    assert "OPENBLAS_NUM_THREADS=1" in unit_file(name, "service")["Service"]["Environment"]


def test_it_has_no_network_and_no_rights_of_its_own(name: str) -> None:
    service = unit_file(name, "service")["Service"]
    for directive in ("PrivateNetwork", "NoNewPrivileges", "PrivateTmp", "ProtectHome"):
        assert service[directive] == ["yes"], directive
    assert service["CapabilityBoundingSet"] == [""]
    assert service["SupplementaryGroups"] == ["redis"]


@pytest.mark.parametrize("source", ["mock", "replay", "venues"])
def test_the_network_is_there_for_the_price_of_exchanges_alone(name: str, source: str) -> None:
    service = unit_file(name, "service", services_price_source=source)["Service"]
    online = name == "price" and source == "venues"
    assert service["PrivateNetwork"] == ["no" if online else "yes"]
    assert service["RestrictAddressFamilies"] == ["AF_UNIX AF_INET AF_INET6"]
    # Name servers may have any address, so none is denied.
    assert not {"IPAddressDeny", "IPAddressAllow"} & set(service)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
@pytest.mark.parametrize("source", ["mock", "venues"])
def test_its_sandbox_is_tight(name: str, source: str, tmp_path: Path) -> None:
    text = rendered(name, "service", services_price_source=source)
    assert exposure(tmp_path, f"tap-trading-{name}.service", text) < LARGEST_EXPOSURE


def test_its_socket_is_on_the_machine_only(name: str) -> None:
    socket = unit_file(name, "socket")
    bets = ["/run/tap-trading-bets.sock"] if name == "api" else []
    assert socket["Socket"]["ListenStream"] == [f"127.0.0.1:{PORTS[name]}", *bets]
    assert socket["Socket"]["SocketMode"] == ["0660"] * len(bets)
    assert socket["Socket"]["SocketGroup"] == ["www-data"] * len(bets)
    assert not {"ListenDatagram", "ListenFIFO", "BindIPv6Only"} & set(socket["Socket"])
    assert socket["Install"]["WantedBy"] == ["sockets.target"]
    assert socket["Socket"]["TriggerLimitIntervalSec"] == ["0"]


def test_the_two_colours_share_nothing_but_the_port(name: str) -> None:
    blue, green = (rendered(name, "service", colour) for colour in ("blue", "green"))
    assert blue.replace("blue", "green") == green
    assert blue != green
    assert unit_file(name, "socket")["Unit"]["ConditionPathExists"] == [
        f"|/opt/app/blue/{name}",
        f"|/opt/app/green/{name}",
    ]


def test_every_directive_means_one_thing(name: str) -> None:
    for kind in ("service", "socket"):
        for section, directives in unit_file(name, kind).items():
            twice = {key for key, values in directives.items() if len(values) > 1}
            assert twice <= {
                "SystemCallFilter",
                "ListenStream",
                "Environment",
                "ConditionPathExists",
            }, (kind, section, twice)


def test_the_environment_file_listens_where_the_sockets_do() -> None:
    text = render("services", "app.env.j2", ansible_managed=MANAGED)
    for unit, port in PORTS.items():
        assert f"TAP_{unit.upper()}_LISTEN='127.0.0.1:{port}'\n" in text


def test_overrides_reach_the_units(name: str) -> None:
    service = unit_file(
        name,
        "service",
        services_cpu_quota="75%",
        services_memory_max="700M",
        services_nofile=4711,
    )["Service"]
    assert service["CPUQuota"] == ["75%"]
    assert service["MemoryMax"] == ["700M"]
    assert service["LimitNOFILE"] == ["4711"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_systemd_finds_nothing_wrong_with_them(tmp_path: Path) -> None:
    texts = {
        f"tap-trading-{unit}{suffix}": rendered(unit, suffix.rpartition(".")[2])
        for unit in PORTS
        for suffix in ("-blue.service", ".service", ".socket")
    }
    texts["tap-trading-recover.service"] = render(
        "services", "tap-trading-recover.service.j2", ansible_managed=MANAGED
    )
    assert not complaints(tmp_path, texts)


@pytest.mark.parametrize(
    ("said", "restarted"),
    [
        ("", True),
        ("tap: no release is deployed yet", True),
        ("tap: wrong configuration: TAP_STAKES='-1': …", True),
        ("tap: wrong configuration: TAP_NEWER is not a setting", False),
    ],
)
def test_a_live_release_that_does_not_know_a_setting_yet_goes_on(
    said: str, restarted: bool
) -> None:
    """Provisioning for a newer release must not stop the one that serves."""
    given = {
        "ansible_check_mode": False,
        "_services_written": {"changed": True, "failed": False},
        "_services_asked": {"stderr": said, "rc": 78 if said else 0},
    }
    assert handles("services", "Restart each of the services", **given) is restarted
    assert (
        handles("services", "Say that the settings wait for a deployment", **given) is not restarted
    )
    preview = given | {"ansible_check_mode": True}
    assert not handles("services", "Restart each of the services", **preview)


# -- what is refused before anything is changed ------------------------------------------------


def both_accept(**variables: Any) -> tuple[bool, bool]:
    """Whether the preflight takes these values, and whether the services would."""
    ours = accepts(
        "services",
        "Refuse settings that the services would refuse",
        _services_replay={"skipped": True},
        **variables,
    )
    text = render("services", "app.env.j2", ansible_managed=MANAGED, **variables)
    lines = [line for line in text.splitlines() if "=" in line]
    given = dict(shlex.split(line)[0].split("=", 1) for line in lines)
    try:
        config.load(given)
    except config.ConfigError:
        return ours, False
    return ours, True


def limits() -> list[tuple[str, Any, bool]]:
    """The bounds of every number, from the services' own settings, and values beyond them."""
    found: list[tuple[str, Any, bool]] = []
    for name, field in config.Settings.model_fields.items():
        if name in ("stakes", "allowed_origins") or field.annotation not in (int, float):
            continue
        step = 1 if field.annotation is int else 0.5
        for limit in field.metadata:
            if hasattr(limit, "ge"):
                found += [(name, limit.ge, True), (name, limit.ge - step, False)]
            if hasattr(limit, "gt"):
                found += [(name, limit.gt, False), (name, limit.gt + step, True)]
            if hasattr(limit, "le"):
                found += [(name, limit.le, True), (name, limit.le + step, False)]
    return found


def test_every_number_has_limits() -> None:
    assert {name for name, *_ in limits()} == {
        "redis_wait_s",
        "ws_max_clients",
        "speed_bump_ms",
        "disk_full_percent",
        "max_open_stake",
        "max_cell_stake",
        "max_column_stake",
        "max_open_liability",
        "max_cell_liability",
        "max_column_liability",
        "practice_credit",
        "wallet_rate",
        "grid_width_s",
        "grid_columns",
        "grid_rows",
        "quorum",
        "mock_seed",
        "mock_start",
        "replay_speed",
    }


@pytest.mark.parametrize(("name", "value", "good"), limits())
def test_a_number_is_refused_where_the_services_refuse_it(
    name: str, value: float, good: bool
) -> None:
    assert both_accept(**{f"services_{name}": value}) == (good, good)
    # As a value from the command line, a text.
    assert both_accept(**{f"services_{name}": str(value)}) == (good, good)


@pytest.mark.parametrize(
    ("variable", "value", "good"),
    [
        ("stakes", [], False),
        ("stakes", [0], False),
        ("stakes", [100, -5], False),
        ("stakes", [1, 100_000_000], True),
        ("stakes", [100_000_001], False),
        ("allowed_origins", [], True),
        ("allowed_origins", ["https://a.example", "http://[::1]:8080"], True),
        ("allowed_origins", ["a.example"], False),
        ("allowed_origins", ["https://a.example", "https://b.example/path"], False),
        ("allowed_origins", ["ftp://a.example"], False),
        ("site_domain", "tap.example", True),
        ("site_domain", "[::1]:8443", True),
        ("site_domain", "a" * 200, True),
        ("site_domain", "a" * 201, False),
        ("site_domain", "Tap.example", False),
        ("site_domain", "tap.example/", False),
        ("site_domain", "https://tap.example", False),
        ("site_domain", "tap.example:0", False),
        ("site_domain", "tap_1", False),
        ("site_uri", "https://tap-vm", True),
        ("site_uri", "http://tap-vm/play", True),
        ("site_uri", "https://tap-vm:8443", False),
        ("site_uri", "https://other.example", False),
        ("site_uri", "ftp://tap-vm", False),
        ("site_uri", "https://tap-vm/?a", False),
        ("price_source", "replay", False),
        ("price_source", "venues", True),
        ("venues", ["kraken"], True),
        ("venues", [], False),
        ("venues", ["kraken", "binance"], False),
        ("venues", ["kraken", "gemini", "kraken"], False),
        ("cross_check", "", True),
        ("cross_check", "kraken", False),
        ("kraken_url", "ws://127.0.0.1:9/v2", True),
        ("kraken_url", "wss://example.net/?a=b'c$d", True),
        ("kraken_url", "https://example.net/", False),
        ("kraken_url", "wss://", False),
        ("kraken_url", "wss://example.net/ a", False),
        ("kraken_url", f"wss://{'a' * 494}", True),
        ("kraken_url", f"wss://{'a' * 495}", False),
        ("replay_speed", "inf", False),
        ("replay_speed", "nan", False),
    ],
)
def test_what_else_the_services_refuse(variable: str, value: Any, good: bool) -> None:
    assert both_accept(**{f"services_{variable}": value}) == (good, good)


@pytest.mark.parametrize(
    ("source", "venues", "quorum", "good"),
    [
        ("venues", ["kraken"], 1, True),
        ("venues", ["kraken"], 2, False),
        ("venues", ["kraken", "gemini", "bitstamp"], "3", True),
        ("venues", ["kraken", "gemini", "bitstamp"], "4", False),
        ("mock", ["kraken"], 2, True),
    ],
)
def test_a_quorum_has_to_be_there(source: str, venues: list[str], quorum: Any, good: bool) -> None:
    given = {"price_source": source, "venues": venues, "quorum": quorum}
    settings = {f"services_{name}": value for name, value in given.items()}
    assert both_accept(**settings) == (good, good)


def test_the_refusal_names_variable_and_range() -> None:
    task = yaml.safe_load((ROLES / "services/tasks/preflight.yml").read_text())[-1]
    said = evaluate(
        "services",
        "_says",
        _says=task["ansible.builtin.assert"]["fail_msg"],
        _services_replay={"skipped": True},
        **task["vars"],
        services_grid_rows=1,
        services_stakes=[],
    )
    assert said == (
        "services_stakes is [], but must be at least one amount, each from 1 to 100000000; "
        "services_grid_rows is 1, but must be from 2 to 200: nothing was changed."
    )


@pytest.mark.parametrize(
    ("version", "good"), [("3.11.2", True), ("3.10.12", False), ("3.13.5", False), ("3.1.1", False)]
)
def test_only_the_python_that_releases_are_built_for_is_taken(version: str, good: bool) -> None:
    task = yaml.safe_load((ROLES / "python/tasks/install.yml").read_text())[-1]
    condition = task["ansible.builtin.assert"]["that"]
    assert evaluate("python", condition, _python_version={"stdout": version}) is good


def test_only_the_processor_that_releases_are_built_for_is_taken() -> None:
    assert evaluate("preflight", "_preflight_architectures") == ["x86_64"]


def test_a_release_is_installed_with_the_python_that_was_provisioned() -> None:
    assert evaluate("release", "release_python") == "/usr/bin/python3"
    other = "/usr/bin/python3.11"
    assert evaluate("release", "release_python", python_interpreter=other) == other


def test_relative_names_count_from_where_the_op_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/op/site")
    monkeypatch.setenv("HOME", "/home/op")
    task = yaml.safe_load((ROLES / "services/tasks/preflight.yml").read_text())[0]
    path = task["ansible.builtin.stat"]["path"]
    for name, found in [
        ("dist/a b.tar.gz", "/home/op/site/dist/a b.tar.gz"),
        ("~/x.csv", "/home/op/x.csv"),
        ("/srv/x", "/srv/x"),
    ]:
        assert evaluate("release", "_release_file", release_artifact=name) == found
        assert evaluate("services", "_path", _path=path, services_replay_file=name) == found


# -- restart-backoff -------------------------------------------------------------------------


class Backoff:
    """roles/services/files/restart-backoff with a `sleep` that only notes its argument."""

    def __init__(self, folder: Path) -> None:
        self.runtime = folder / "runtime"
        self.runtime.mkdir()
        self._slept = folder / "slept"
        programs = folder / "bin"
        programs.mkdir()
        sleep = programs / "sleep"
        sleep.write_text(f'#!/bin/sh\necho "$1" >>{self._slept}\n')
        sleep.chmod(0o755)
        self._path = f"{programs}:/usr/bin:/bin"

    def __call__(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", ROLES / "services/files/restart-backoff", *words],
            env={"PATH": self._path, "RUNTIME_DIRECTORY": str(self.runtime), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def wait(self) -> int:
        """Seconds between two attempts: the unit's own RestartSec=1 and what `wait` sleeps."""
        self._slept.unlink(missing_ok=True)
        done = self("wait")
        assert done.returncode == 0, done.stderr
        return 1 + (int(self._slept.read_text()) if self._slept.exists() else 0)

    def fail(self) -> None:
        assert self("ended", SERVICE_RESULT="exit-code").returncode == 0


@pytest.fixture
def backoff(tmp_path: Path) -> Backoff:
    return Backoff(tmp_path)


def test_the_first_start_is_at_once(backoff: Backoff) -> None:
    assert backoff.wait() == 1


def test_failures_are_spaced_wider_and_wider_and_it_never_gives_up(backoff: Backoff) -> None:
    waits = []
    for _ in range(12):
        backoff.fail()
        waits.append(backoff.wait())
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]


def test_becoming_ready_forgets_the_failures(backoff: Backoff) -> None:
    for _ in range(5):
        backoff.fail()
    assert backoff.wait() == 16
    assert backoff("started").returncode == 0
    backoff.fail()
    assert backoff.wait() == 1


@pytest.mark.parametrize("result", [{"SERVICE_RESULT": "success"}, {}])
def test_a_clean_stop_forgets_the_failures(backoff: Backoff, result: dict[str, str]) -> None:
    for _ in range(5):
        backoff.fail()
    assert backoff("ended", **result).returncode == 0
    assert backoff.wait() == 1


@pytest.mark.parametrize("garbage", ["", "\n", "many\n", "-3\n", "3 4\n", "1\n2\n", "\0\n"])
def test_garbage_in_the_count_is_no_failure(backoff: Backoff, garbage: str) -> None:
    (backoff.runtime / "failures").write_text(garbage)
    assert backoff.wait() == 1
    backoff.fail()
    assert (backoff.runtime / "failures").read_text() == "1\n"


@pytest.mark.parametrize("count", ["08\n", "010\n", "99999999999999999999\n"])
def test_a_number_of_odd_looks_still_lets_it_start(backoff: Backoff, count: str) -> None:
    (backoff.runtime / "failures").write_text(count)
    assert 1 <= backoff.wait() <= 60


@pytest.mark.parametrize("words", [(), ("begin",)])
def test_a_wrong_word_is_refused(backoff: Backoff, words: tuple[str, ...]) -> None:
    done = backoff(*words)
    assert done.returncode == 2
    assert done.stderr == "restart-backoff: one of: wait, started, ended\n"
