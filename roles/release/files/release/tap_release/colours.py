"""Two colours of every service. One is live; the other is idle, or waits to take over.

A colour is a link beside `current` to the release that it runs, and a unit of each service. The
live colour is the one whose link points where `current` points: moving `current` is the whole of
the switch, and the services follow it by themselves. `tap-trading-api.service` is another name
for the live colour's unit.
"""

import contextlib
import re
import time
from pathlib import Path

from tap_release import probe
from tap_release.machine import Machine, ReleaseError, point, pointed, release_path

COLOURS = ("blue", "green")
#: In the order they are started in: the others begin with what price has made.
SERVICES = ("price", "resolver", "api", "ws")
#: Where each service answers /healthz and /version.
PORTS = {"api": 8080, "ws": 8081, "price": 8090, "resolver": 8091}
#: Who is one alone, and the check in which it says that it is at work.
SINGLE = {"price": "storing", "resolver": "resolver"}
#: The old colour's work goes on within a second; after so long something is wrong, in s.
TAKEN_OVER_WITHIN_S = 10.0

#: So many services start at once: each may take half a core, and the live colour needs one.
_AT_ONCE = 2
#: What the services count for where processors are short, as their units have it: bets and prices
#: before pictures of them. An idle one counts for less than anything else.
WEIGHTS = {"price": 300, "resolver": 200, "api": 300, "ws": 100}
_IDLE_WEIGHT = 10
_LOOK_EVERY_S = 0.02
_RUN = Path("/run")


def link(machine: Machine, colour: str) -> Path:
    """What a colour's units run."""
    return machine.root / colour


def version_of(machine: Machine, colour: str) -> str | None:
    """The release of a colour; None while it is idle."""
    return pointed(link(machine, colour))


def live(machine: Machine) -> str | None:
    """The live colour; None before the first release."""
    version = machine.live_version()
    found = [each for each in COLOURS if version and version_of(machine, each) == version]
    return found[0] if found else None


def other(colour: str | None) -> str:
    """The colour that is not this one."""
    return "green" if colour == "blue" else "blue"  # which is the first one


def unit(service: str, colour: str) -> str:
    """The name of a colour's unit."""
    return f"tap-trading-{service}-{colour}.service"


def units(colour: str) -> list[str]:
    """The units of a colour, in the order they are started in."""
    return [unit(service, colour) for service in SERVICES]


def start(machine: Machine, colour: str, version: str) -> None:
    """Run a release as a colour, which stands by unless it is live. Raises ReleaseError.

    A few services at a time, and one that is not live with little weight: the cores belong to the
    live colour.
    """
    point(link(machine, colour), release_path(version))
    weigh(machine, colour, idle=live(machine) != colour)
    names = units(colour)
    for begin in range(0, len(names), _AT_ONCE):
        machine.systemctl("start", *names[begin : begin + _AT_ONCE])


def weigh(machine: Machine, colour: str, *, idle: bool) -> None:
    """Have a colour's services count for little where processors are short, or for what they do."""
    for service in SERVICES:
        weight = _IDLE_WEIGHT if idle else WEIGHTS[service]
        with contextlib.suppress(ReleaseError):  # it is but a courtesy
            machine.systemctl(
                "set-property", "--runtime", unit(service, colour), f"CPUWeight={weight}"
            )


def restart(machine: Machine, colour: str) -> None:
    """Start the units of a colour anew. Raises ReleaseError."""
    machine.systemctl("restart", *units(colour))


def stop(machine: Machine, colour: str) -> None:
    """Have the services of a colour say goodbye and end. Raises ReleaseError."""
    machine.systemctl("stop", *units(colour))
    with contextlib.suppress(ReleaseError):  # nothing of it is left to forget
        machine.systemctl("reset-failed", *units(colour))
    link(machine, colour).unlink(missing_ok=True)


def name_live(machine: Machine, colour: str) -> None:
    """Have the plain names of the units mean this colour. Raises ReleaseError."""
    plain = {f"tap-trading-{service}.service": unit(service, colour) for service in SERVICES}
    for name, wanted in plain.items():
        if pointed(machine.units / name) != wanted:
            point(machine.units / name, Path(wanted))
    # Whoever moved the links may have been killed before systemd heard of it.
    shown = machine.systemctl("show", "--property=Id", *plain)
    if set(re.findall(r"^Id=(.*)$", shown, re.MULTILINE)) != set(plain.values()):
        machine.systemctl("daemon-reload")


def open_ports(machine: Machine) -> None:
    """Take the ports. Raises ReleaseError, which names who has one of them."""
    try:
        machine.systemctl("start", *(f"tap-trading-{service}.socket" for service in SERVICES))
    except ReleaseError:
        for port in PORTS.values():
            if owner := _stranger_on(machine, port):
                raise ReleaseError(f"127.0.0.1:{port} is in use by {owner}") from None
        raise


def close_ports(machine: Machine) -> None:
    """Give the ports back. Raises ReleaseError."""
    machine.systemctl("stop", *(f"tap-trading-{service}.socket" for service in SERVICES))


def _stranger_on(machine: Machine, port: int) -> str | None:
    """Who listens on a port, unless it is systemd for us."""
    with contextlib.suppress(ReleaseError):
        line = machine.run("ss", "-ltnpH", f"sport = :{port}").strip()
        if line and '("systemd",pid=1,' not in line:
            owner = re.search(r'\(\("([^"]*)",pid=([0-9]+)', line)
            return f"{owner[1]} (process {owner[2]})" if owner else "another program"
    return None


def private(service: str, colour: str) -> Path:
    """The socket on which a service of a colour answers whether it is live or not."""
    return _RUN / f"tap-trading-{service}-{colour}" / "private.sock"


def ask(service: str, path: str) -> probe.Answer:
    """What the live colour's service answers on its port. Raises probe.UNANSWERED."""
    return probe.ask(probe.on_port(PORTS[service]), path)


def ask_colour(service: str, colour: str, path: str) -> probe.Answer:
    """What a service of a colour answers on its private socket. Raises probe.UNANSWERED."""
    return probe.ask(probe.on_socket(private(service, colour)), path)


def await_ready(colour: str, version: str, without: frozenset[str], wait_s: float) -> None:
    """Wait until every service of a colour is this release and could take over, but for the
    checks named in `without`. Raises ReleaseError.
    """
    deadline = time.monotonic() + wait_s
    for service in SERVICES:
        while seen := _unready(service, colour, version, without):
            if time.monotonic() >= deadline:
                raise ReleaseError(f"{service} {seen}")
            time.sleep(_LOOK_EVERY_S * 5)


def _unready(service: str, colour: str, version: str, without: frozenset[str]) -> str | None:
    try:
        said = ask_colour(service, colour, "/readyz")[1]
        if said.get("version") != version:
            return f"is {said.get('version')}"
        failing, checks = said.get("failing", ["all"]), said.get("checks", {})
        if worth := sorted(set(failing) - without):
            return f"is not ready ({'; '.join(f'{name}: {checks.get(name)}' for name in worth)})"
        if service == "ws":
            echo(colour)
    except probe.UNANSWERED as error:
        return f"does not answer ({error})"
    return None


def echo(colour: str) -> None:
    """A WebSocket of a colour greets and gives back what it is told. Raises probe.UNANSWERED."""
    probe.echo(probe.on_socket(private("ws", colour)))


def await_takeover(colour: str, wait_s: float = TAKEN_OVER_WITHIN_S) -> None:
    """Wait until a colour makes the market and settles. Raises ReleaseError."""
    deadline = time.monotonic() + wait_s
    for service, check in SINGLE.items():
        while True:
            try:
                checks = ask_colour(service, colour, "/healthz")[1].get("checks")
                seen = str(checks.get(check)) if isinstance(checks, dict) else "no checks"
            except probe.UNANSWERED as error:
                seen = f"does not answer ({error})"
            if seen == "leading":
                break
            if time.monotonic() >= deadline:
                raise ReleaseError(f"{service} has not taken over within {wait_s:g} s: {seen}")
            time.sleep(_LOOK_EVERY_S)


def unwell(machine: Machine, colour: str, *, restarts: bool = True) -> str | None:
    """What is wrong with a colour's units; None when they all run, and never had to be restarted,
    if `restarts` count.
    """
    shown = machine.systemctl(
        "show", "--property=Id,ActiveState,SubState,NRestarts", *units(colour)
    )
    for block in shown.strip().split("\n\n"):
        said = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if said.get("ActiveState") != "active":
            return f"{said.get('Id')} is {said.get('ActiveState')} ({said.get('SubState')})"
        if restarts and said.get("NRestarts", "0") != "0":
            return f"{said.get('Id')} had to be restarted {said['NRestarts']} times"
    return None


def last_words(machine: Machine, colour: str, since: str, lines: int = 5) -> list[str]:
    """The end of what a colour's services have said since a time, of each that warned or failed."""
    found: list[str] = []
    for service in SERVICES:
        with contextlib.suppress(ReleaseError):
            said = machine.run(
                "journalctl", "--quiet", "--no-pager", "--output=cat", f"--since={since}",
                f"--unit={unit(service, colour)}", f"--lines={lines * 4}",
            )  # fmt: skip
            worth = [
                line
                for line in said.splitlines()
                if '"level":"info"' not in line and '"level":"debug"' not in line
            ]
            found += [f"{service}: {line}" for line in worth[-lines:]]
    return found
