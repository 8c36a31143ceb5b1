"""The site under load while something is done to it: bets and WebSockets from clients that live
through all of it, and whether any of them could tell.

    with load_on("tap-vm") as load:
        load.mark("deploy")
        ...
        load.mark("after")
    assert not broken(load.report)

    PYTHONPATH=tests python -m bench.under_load [--machine tap-vm] [--rate 500] [--sockets 1000]
        [--seconds 10] [--run 'systemctl restart tap-trading-api'] …

The load runs on the machine itself, on loopback, within every production limit (see
`bench.site_load`, and `bench.phases` for what counts as a failed request). It ends by itself
when this side dies. The command runs the words of each --run there as root, and prints the
report; exit code 1 when something was lost.
"""

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.machine import LoadMachine

_MODULES = (
    *("bettors", "frames", "load", "own_events", "phases"),
    *("site", "site_load", "sockets"),
)
#: Signing in and connecting may take this long, in s.
_READY_S = 120.0
#: So may, after the load, the last answers, the last events, and the look into the books.
_REPORT_S = 90.0


class LoadError(Exception):
    """The load could not run; the text says why."""


class Load:
    """A load under way. `report` is what it saw, once it has ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.report: dict[str, Any] = {}
        self._process = process
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def mark(self, phase: str) -> None:
        """From now on it is this phase; the first one is called `before`."""
        self._say(f"mark {' '.join(phase.split())}")  # one line

    def look_back(self, name: str, since: float, until: float) -> None:
        """Report what was between two moments (Unix s by the machine's clock) by itself too."""
        self._say(f"span {since} {until} {' '.join(name.split())}")

    def end(self) -> str:
        """Stop it; the line that it reports with."""
        self._say("stop")
        return self.line(_REPORT_S)

    def line(self, seconds: float) -> str:
        """Its next line. Raises LoadError when there is none within so many seconds."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise LoadError(f"the load says nothing for {seconds:g} s") from None
        if not line:
            raise LoadError("the load has ended")
        return line

    def _say(self, line: str) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise LoadError("the load has ended") from error


@contextmanager
def load_on(
    machine: str, *, rate: int = 500, sockets: int = 1000, limit_s: int = 600
) -> Iterator[Load]:
    """So many bets a second and WebSockets on the machine of scripts/vm.sh with this name, for
    the time of the block, which may take `limit_s` seconds. Raises LoadError.
    """
    there = LoadMachine(machine)
    there.bring(_MODULES)
    command = there.command(
        "bench.site_load",
        f"{rate} {sockets} {limit_s}",
        limit_s=_READY_S + limit_s + _REPORT_S,
    )
    with (
        tempfile.TemporaryFile("w+") as errors,
        there.begin(command, errors) as process,
    ):
        load = Load(process)
        try:
            if (said := load.line(_READY_S)) != "ready\n":
                raise LoadError(f"the load says {said!r}")
            yield load
            load.report = json.loads(load.end())
        except LoadError as error:
            errors.seek(0)
            raise LoadError(f"{error}: {errors.read()[-2000:]}") from error
        finally:
            process.terminate()  # with it goes its input, and so the load
    audit = there.attempt("tap audit", timeout=_REPORT_S)
    load.report["books"]["audit"] = (audit.stdout + audit.stderr).strip()
    load.report["books"]["exact"] = audit.returncode == 0 and not any(
        load.report["books"][name]
        for name in ("accepted_not_there", "there_not_accepted", "twice", "one_id_for_two")
    )


def broken(report: dict[str, Any]) -> list[str]:
    """What a client has lost, a sentence each: nothing of it may ever happen."""
    sockets = report["sockets"]
    wrong = {
        "requests failed": report["failed"],
        "attempts to connect failed": report["unconnected"],
        "events of traders were lost": sockets["lost_events"],
        "events of traders came twice": sockets["doubled_events"],
        "accepted bets were never heard of": sockets["bets_never_heard_of"],
        "WebSockets were closed without a word": sockets["closed_impolitely"],
        "WebSockets were refused": sockets["handshakes_refused"],
        "WebSockets are not back": sockets["not_back"],
    }
    found = [f"{number} {what}" for what, number in wrong.items() if number]
    if not report["books"]["exact"]:
        found.append(f"the books are wrong: {report['books']}")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.under_load")
    parser.add_argument("--machine", default="tap-vm")
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=10, help="before, and after each command")
    parser.add_argument("--run", metavar="COMMAND", action="append", default=[])
    args = parser.parse_args()
    with load_on(args.machine, rate=args.rate, sockets=args.sockets) as load:
        time.sleep(args.seconds)
        for command in args.run:
            load.mark(command)
            said = LoadMachine(args.machine).run(command)
            print(said, end="", file=sys.stderr)
            time.sleep(args.seconds)
        load.mark("after")
        time.sleep(args.seconds)
    print(json.dumps(load.report, indent=1))
    if wrong := broken(load.report):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
