"""`make bench-deploy`: a deploy, a deploy that has nothing to do, and a rollback, under load.

    PYTHONPATH=app/src:tests python -m bench.deploys [--machine tap-vm]
        [--inventory inventory/local] [--rate 500] [--sockets 1000]

Three builds are made: the checkout's, and two of the same commit and empty ones after it. The
first is live between all steps. They are timed while the site has nothing else to do, and done
again under load. Exit code 1 when a client lost anything; a time above its limit is only told,
because it is this machine's too.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.machine import LoadMachine
from bench.under_load import broken, load_on
from e2e.site.machine import ROOT

KEY = ROOT / ".keys" / "release.key"
RECORD = "/opt/app/releases.jsonl"
#: Nothing is done for so long before each step and after the last one, in s.
QUIET_S = 12.0
_PAUSE_S = 3.0
#: The switch is looked at from so long before it until so long after it, in s.
_BEFORE_S, _AFTER_S = 1.0, 5.0
#: A step that takes longer has failed, in s.
_GIVEN_UP_S = 300.0


@dataclass(frozen=True)
class Step:
    """Something that an op does to the site."""

    name: str
    command: list[str | Path]
    most_s: float  # that it may take


@dataclass
class Row:
    """A line of the table."""

    what: str
    found: str
    wanted: str
    kept: bool | None  # None: could not be measured


@dataclass
class Table:
    """What was measured beside what is wanted."""

    rows: list[Row] = field(default_factory=list)

    def limit(self, what: str, found: float | None, most: float, unit: str) -> None:
        """A figure that may not be above `most`; None: it is not known."""
        shown = "n/a" if found is None else f"{found:g}{unit}"
        kept = None if found is None else found <= most
        self.rows.append(Row(what, shown, f"<= {most:g}{unit}", kept))

    def tell(self, what: str, found: str) -> None:
        """A figure without a limit."""
        self.rows.append(Row(what, found, "", None))

    def __str__(self) -> str:
        words = {True: "ok", False: "NOT KEPT", None: "-"}
        return "\n".join(
            f"  {row.what:<34}{row.found:>12}   {row.wanted:<12} {words[row.kept]}"
            for row in self.rows
        )


def build(checkout: Path) -> Path:
    """The artifact of a checkout, signed with the key that machines trust."""
    key = Path(os.environ.get("TAP_RELEASE_KEY", KEY)).resolve()
    done = subprocess.run(
        [sys.executable, "scripts/build.py"],
        cwd=checkout,
        env=os.environ | {"TAP_RELEASE_KEY": str(key)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return checkout / done.stdout.strip()


@contextmanager
def other_builds(number: int) -> Iterator[list[Path]]:
    """Artifacts of the same commit under other versions: each has an empty commit more."""
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch, "clone")
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        # Its wheels are the same.
        (ROOT / ".cache").mkdir(exist_ok=True)
        (clone / ".cache").symlink_to(ROOT / ".cache")
        who = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
        what = ("commit", "--quiet", "--allow-empty", "--message", "Another")
        built = []
        for _ in range(number):
            subprocess.run(["git", "-C", clone, *who, *what], check=True)
            built.append(build(clone))
        yield built


def deploy(artifact: Path, inventory: str) -> list[str | Path]:
    """The command that deploys it."""
    return [ROOT / "scripts" / "deploy.sh", artifact, "-i", ROOT / inventory]


def rollback(inventory: str) -> list[str | Path]:
    """The command that makes the release before live again."""
    playbook = Path(sys.executable).with_name("ansible-playbook")
    return [playbook, ROOT / "playbooks" / "rollback.yml", "-i", ROOT / inventory]


def seconds_of(command: list[str | Path]) -> float:
    """Run it; how long it took, in s. Ends this program when it fails."""
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_GIVEN_UP_S,
        check=False,
    )
    if done.returncode:
        sys.exit(f"bench.deploys: {command[0]} failed:\n{done.stdout[-3000:]}")
    return time.monotonic() - began


def last_record(machine: LoadMachine) -> dict[str, Any]:
    """What the machine has put on record last."""
    return dict(json.loads(machine.run(f"tail -n 1 {RECORD}")))


def switched_at(record: dict[str, Any]) -> float:
    """When the new release went live, Unix s by the machine's clock."""
    return datetime.fromisoformat(record["switched_at"]).timestamp()


def under_load(machine: LoadMachine, steps: list[Step], rate: int, sockets: int) -> dict[str, Any]:
    """Do each step under load, in a phase of its name; the load's report."""
    with load_on(machine.name, rate=rate, sockets=sockets) as load:
        for step in steps:
            time.sleep(QUIET_S)
            load.mark(step.name)
            seconds_of(step.command)
            at = switched_at(last_record(machine))
            load.look_back(f"{step.name}: the switch", at - _BEFORE_S, at + _AFTER_S)
            load.mark(f"after {step.name}")
        time.sleep(QUIET_S)
    return load.report


def judge(table: Table, report: dict[str, Any], steps: list[Step]) -> None:
    """Add what the load saw."""
    phases, sockets = report["phases"], report["sockets"]
    before = phases["before"]["p99_ms"]
    table.tell("bets before: p99", f"{before:g} ms")
    for step in steps:
        most = max(100.0, 2 * before)
        switch = f"{step.name}: the switch"
        table.limit(f"{step.name}, the switch: p99 of bets", phases[switch]["p99_ms"], most, " ms")
        table.tell(f"{step.name}, all of it: p99", f"{phases[step.name]['p99_ms']:g} ms")
    table.limit("failed requests", report["failed"], 0, "")
    table.limit("slowest WebSocket back", sockets["slowest_return_s"], 5, " s")
    table.limit("closed without a word", sockets["closed_impolitely"], 0, "")
    table.limit("own events lost or doubled", _wrong_events(sockets), 0, "")
    table.limit("longest gap between prices", sockets["longest_price_gap_s"], 1, " s")
    exact = report["books"]["exact"]
    table.rows.append(Row("books", "exact" if exact else "WRONG", "exact", exact))


def _wrong_events(sockets: dict[str, Any]) -> int:
    names = ("lost_events", "doubled_events", "bets_never_heard_of")
    return sum(int(sockets[name]) for name in names)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.deploys")
    parser.add_argument("--machine", default="tap-vm")
    parser.add_argument("--inventory", default="inventory/local")
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--sockets", type=int, default=1000)
    args = parser.parse_args()
    machine, table = LoadMachine(args.machine), Table()
    with other_builds(2) as (second, third):
        seconds_of(deploy(build(ROOT), args.inventory))
        back = Step("rollback", rollback(args.inventory), 10)
        for step in (
            Step("deploy", deploy(second, args.inventory), 30),
            Step("no-op deploy", deploy(second, args.inventory), 10),
            back,
        ):
            time.sleep(_PAUSE_S)
            table.limit(step.name, round(seconds_of(step.command), 1), step.most_s, " s")
            if step.name != "no-op deploy":
                took = float(last_record(machine)["switch_s"])
                table.limit(f"{step.name}: switch", took, 1, " s")
        steps = [Step("deploy", deploy(third, args.inventory), 30), back]
        report = under_load(machine, steps, args.rate, args.sockets)
    judge(table, report, steps)
    print(f"deploys under {args.rate} bets/s and {args.sockets} WebSockets")
    print(
        f"  {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {args.machine} on {platform.node()}, ", end=""
    )
    cost = report["cost"]
    own = cost["bets_core"] + cost["sockets_core"]
    print(f"{cost['cores']} cores, {cost['cores_busy']:g} busy, {own:.2f} of them with the load")
    print(table)
    if wrong := broken(report):
        print(json.dumps(report, indent=1))
        sys.exit("bench.deploys: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
