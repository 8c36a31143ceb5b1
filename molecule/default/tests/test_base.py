"""The operating system: logins, updates, logs, firewall."""

import re
import socket

import pytest
from testinfra.host import Host

from e2e.site.machine import Machine

#: The plan's open ports; on 8080 and 8081 only loopback listens.
OPEN_IN_THE_FIREWALL = {22, 80, 443, 8080, 8081}
ANSWER_OUTSIDE = (22, 80, 443)
SILENT_OUTSIDE = (6379, 8080, 8081, 8090)


@pytest.mark.units("ssh")
def test_sshd_offers_nothing_but_keys(machine: Machine) -> None:
    refused = machine.ssh(
        "true",
        *("-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes"),
        *("-o", "PreferredAuthentications=password,keyboard-interactive"),
    )
    assert refused.returncode == 255
    assert "Permission denied (publickey)." in refused.stderr


@pytest.mark.units("ssh")
def test_sshd_goes_by_the_drop_in(host: Host) -> None:
    settings = set(host.check_output("sshd -T").splitlines())
    assert {
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "permitrootlogin without-password",
        "x11forwarding no",
        "permitemptypasswords no",
    } <= settings


def test_the_app_is_a_user_nobody_can_be(host: Host) -> None:
    app = host.user("app")
    assert app.home == "/opt/app"
    assert app.shell == "/usr/sbin/nologin"
    assert app.password in ("!", "*")
    assert set(app.groups) == {"app", "redis"}


def test_the_app_writes_its_data_and_nothing_of_its_program(host: Host) -> None:
    writable = host.check_output(
        "find /opt/app /etc/tap-trading -user app -o -group app -perm -020 -o -perm -002 ! -type l"
    )
    assert writable == ""
    data = host.file("/data")
    assert (data.user, data.group, data.mode) == ("app", "app", 0o750)
    assert host.run("setpriv --reuid=app --regid=app --init-groups test -w /data").rc == 0
    settings = host.file("/etc/tap-trading/app.env")
    assert (settings.user, settings.group, settings.mode) == ("root", "app", 0o640)


@pytest.mark.units("apt-daily-upgrade", "unattended-upgrades")
def test_security_updates_come_by_themselves_and_nothing_else_does(host: Host) -> None:
    settings = host.check_output("apt-config dump")
    assert 'APT::Periodic::Update-Package-Lists "1";' in settings
    assert 'APT::Periodic::Unattended-Upgrade "1";' in settings
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert host.service(timer).is_enabled
        assert host.service(timer).is_running
    said = host.check_output(
        "timeout 60 unattended-upgrade --dry-run --debug --apt-debug 2>&1 | head -n 40"
    )
    [origins] = re.findall(r"^Allowed origins are: (.*)$", said, re.MULTILINE)
    assert "codename=bookworm-security,label=Debian-Security" in origins
    assert all("ecurity" in origin for origin in origins.split(", "))


@pytest.mark.units("systemd-journald")
def test_the_journal_is_kept_and_bounded(host: Host) -> None:
    settings = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    for line in ("Storage=persistent", "SystemMaxUse=2G", "RateLimitBurst=50000"):
        assert re.search(rf"^{line}$", settings, re.MULTILINE)
    # What journald itself says it goes by, of its latest start.
    said = host.check_output("journalctl --unit systemd-journald --output cat --no-pager")
    bounds = re.findall(
        r"^System Journal \((/var/log/journal/\w+)\) is .*max (\S+),", said, re.MULTILINE
    )
    assert bounds, said
    assert bounds[-1][1] == "2.0G"
    assert host.run("ls /var/log/journal/*/system.journal").rc == 0


@pytest.mark.units("logrotate")
def test_logs_are_rotated_by_the_hour_and_by_size(host: Host, machine: Machine) -> None:
    timer = host.check_output("systemctl show logrotate.timer --property=TimersCalendar")
    assert "OnCalendar=*-*-* *:00:00" in timer
    assert "OnCalendar=*-*-* 00:00:00" not in timer
    machine.run("truncate --size 101M /var/log/nginx/access.log")
    try:
        machine.run("systemctl start logrotate.service")
        assert host.file("/var/log/nginx/access.log").size < 1_000_000
    finally:
        machine.run("rm -f /var/log/nginx/access.log.1*; systemctl kill -s USR1 nginx")


def test_the_kernel_queues_as_many_connections_as_the_sockets_ask_for(host: Host) -> None:
    assert host.sysctl("net.core.somaxconn") >= 4096


@pytest.mark.units("ufw")
def test_the_firewall_lets_in_the_plans_ports_and_no_others(host: Host) -> None:
    shown = host.check_output("ufw status verbose")
    assert "Status: active" in shown
    assert "Default: deny (incoming)" in shown
    rules = re.findall(r"^(\d+)/tcp(?: \(v6\))? +ALLOW IN +Anywhere", shown, re.MULTILINE)
    assert {int(port) for port in rules} == OPEN_IN_THE_FIREWALL
    assert len(re.findall(r"(?:ALLOW|LIMIT) IN", shown)) == 2 * len(OPEN_IN_THE_FIREWALL)
    assert host.service("ufw").is_enabled


@pytest.fixture(scope="module")
def address(host: Host) -> str:
    """The machine's own address, as its neighbours see it."""
    return host.check_output("hostname -I").split()[0]


@pytest.mark.parametrize("port", ANSWER_OUTSIDE)
def test_what_is_for_everybody_answers_from_outside(address: str, port: int) -> None:
    socket.create_connection((address, port), timeout=3).close()


@pytest.mark.parametrize("port", SILENT_OUTSIDE)
def test_what_is_for_the_machine_alone_does_not_answer_from_outside(
    address: str, port: int
) -> None:
    with pytest.raises(OSError):  # noqa: PT011  # refused or silent, both are right
        socket.create_connection((address, port), timeout=1.5)


def test_the_tools_of_the_plan_are_there(host: Host) -> None:
    host.check_output('sqlite3 :memory: "CREATE VIRTUAL TABLE words USING fts5(word)"')
    host.check_output("zstd --version")
    host.check_output("aws --version")
    host.check_output("python3 -c 'import sys; assert sys.version_info >= (3, 11)'")
