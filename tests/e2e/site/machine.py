"""A local machine (scripts/vm.sh) as the tests reach it: over SSH, and by its site's addresses."""

import shlex
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
VM = ROOT / "scripts" / "vm.sh"
EVERY_UNIT = ("tap-trading-*", "nginx", "redis-server")
JOURNAL_LINES = 60


@dataclass(frozen=True)
class Machine:
    """The machine of this name. Commands run on it as root."""

    name: str

    def run(self, command: str, *, timeout: float = 60, stdin: str = "") -> str:
        """Run a shell command; its output. Fails the test when it fails."""
        done = self.attempt(command, timeout=timeout, stdin=stdin)
        assert done.returncode == 0, (
            f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout

    def attempt(
        self, command: str, *, timeout: float = 60, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command that may fail."""
        return self.ssh(
            f"sudo sh -c {shlex.quote(command)}",
            *self.shared_connection,
            timeout=timeout,
            stdin=stdin,
        )

    def ssh(
        self, command: str, *options: str, timeout: float = 60, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Log in as the machine's own user and run a command there."""
        return subprocess.run(
            ["ssh", "-F", self.ssh_config, *options, self.name, command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def journal(self, units: tuple[str, ...], since: float) -> str:
        """What the units said since a Unix time, for a person to read."""
        # A service's unit has a name for each colour; the journal knows no other.
        words = " ".join(f"--unit '{unit.removesuffix('*')}*'" for unit in units)
        done = self.attempt(
            f"journalctl --no-pager --output short-iso --lines {JOURNAL_LINES}"
            f" --since @{int(since)} {words}"
        )
        return done.stdout + done.stderr

    def restart(self) -> None:
        """Reboot it and wait until it takes logins."""
        self.hang_up()
        subprocess.run([VM, "restart", self.name], check=True, timeout=120)

    def hang_up(self) -> None:
        """End the connection that is kept open between commands."""
        command = ["ssh", "-F", self.ssh_config, *self.shared_connection, "-O", "exit", self.name]
        subprocess.run(command, capture_output=True, check=False)

    @property
    def ssh_config(self) -> Path:
        """How to log in; its key lies beside it."""
        return ROOT / ".vm" / self.name / "ssh_config"

    @property
    def shared_connection(self) -> tuple[str, ...]:
        """Options of ssh that let many commands share one login."""
        path = self.ssh_config.with_name("control")
        return ("-oControlMaster=auto", "-oControlPersist=60", f"-oControlPath={path}")

    @cached_property
    def http(self) -> str:
        """Where the site answers on this host."""
        return self._urls[0]

    @cached_property
    def https(self) -> str:
        """The same over TLS."""
        return self._urls[1]

    @cached_property
    def _urls(self) -> list[str]:
        shown = subprocess.run(
            [VM, "urls", self.name], capture_output=True, text=True, check=True, timeout=30
        )
        return shown.stdout.split()


def add_journal(report: pytest.TestReport, item: pytest.Item, seconds: float) -> None:
    """Print with a failed test what the units it is about said while it ran.

    A test names them with the marker `units`; without it they are the site's.
    """
    machine = getattr(item, "funcargs", {}).get("machine")
    if not report.failed or machine is None:
        return
    marker = item.get_closest_marker("units")
    units = marker.args if marker else EVERY_UNIT
    said = machine.journal(units, time.time() - seconds - 1)
    report.sections.append((f"journal of {', '.join(units)}", said))


def machine_at(url: str) -> Machine:
    """The local machine whose site answers at this address."""
    for config in (ROOT / ".vm").glob("*/ssh_config"):
        machine = Machine(config.parent.name)
        running = subprocess.run(
            [VM, "status", machine.name], capture_output=True, text=True, check=True, timeout=30
        )
        if running.stdout.strip() == "running" and url.rstrip("/") in (machine.http, machine.https):
            return machine
    raise LookupError(f"no machine of scripts/vm.sh runs at {url}")
