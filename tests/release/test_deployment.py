"""Deployments on a machine that is a few dictionaries: what fails, is cut off, or is in the way."""

import contextlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tap_release import artifact as artifacts
from tap_release import colours, deployment, lock, preflight, shelf
from tap_release import machine as places
from tap_release.machine import ReleaseError
from tests.conftest import ROOT
from tests.release.fake_machine import NEWER, VERSION, FakeMachine, contents, installed, pack

PROGRAM = ROOT / "roles/release/files/release"


def deploy(machine: FakeMachine, version: str) -> dict[str, object]:
    return deployment.deploy(machine, version, by="ada@desk")


def serves(machine: FakeMachine, version: str) -> bool:
    """Whether this release is live, alone, under all its names, with nothing left under way."""
    colour = colours.live(machine)
    assert colour is not None
    names = [machine.units / f"tap-trading-{each}.service" for each in colours.SERVICES]
    return (
        machine.live_version() == version
        and set(machine.running) == set(colours.units(colour))
        and machine.colour_runs(colour) == {version}
        and not colours.link(machine, colours.other(colour)).is_symlink()
        and all(machine.names[name.name] == name.readlink().name for name in names)
        and all(colour in str(name.readlink()) for name in names)
        and not machine.deployment.exists()
    )


def test_the_first_release_goes_live(machine: FakeMachine, tmp_path: Path) -> None:
    installed(machine, tmp_path, VERSION)
    done = deploy(machine, VERSION)
    assert done["changed"] is True
    assert (done["version"], done["previous"], done["removed"]) == (VERSION, None, [])
    assert serves(machine, VERSION)
    assert colours.live(machine) == "blue"
    assert machine.current.readlink() == Path("releases", VERSION)
    schema = next(line for line in machine.commands if "tap" in line)
    assert schema.startswith("setpriv --reuid=999 --regid=998 ")
    assert f" env -i DB_PATH={machine.data}/bets.db PRICES_DB_PATH=" in schema
    # Nobody makes prices yet, so nobody has to hear any.
    assert "ws blue /readyz" in machine.asked


def test_the_next_one_takes_the_other_colour(machine: FakeMachine, tmp_path: Path) -> None:
    installed(machine, tmp_path, VERSION, NEWER)
    deploy(machine, VERSION)
    machine.commands.clear()
    machine.asked.clear()
    done = deploy(machine, NEWER)
    assert done["previous"] == VERSION
    assert serves(machine, NEWER)
    assert colours.live(machine) == "green"
    assert machine.previous_version() == VERSION
    assert "ws green /readyz" in machine.asked
    order = [
        next(n for n, line in enumerate(machine.commands) if words in line)
        for words in ("tap-trading-ws-green.service", "daemon-reload", "smoke", "stop")
    ]
    assert order == sorted(order)


def test_deploying_the_live_release_changes_nothing(machine: FakeMachine, tmp_path: Path) -> None:
    installed(machine, tmp_path, VERSION)
    deploy(machine, VERSION)
    machine.commands.clear()
    assert deploy(machine, VERSION) == {"changed": False, "version": VERSION}
    assert not [line for line in machine.commands if "start tap-trading-api-" in line]
    machine.restarted = {colours.unit("ws", "blue")}  # days ago; it is well now
    assert deploy(machine, VERSION) == {"changed": False, "version": VERSION}
    machine.running[colours.unit("ws", "blue")] = NEWER  # not what is installed as live
    assert deploy(machine, VERSION) == {"changed": True, "version": VERSION}
    assert serves(machine, VERSION)


class Faults:
    """What is wrong with the green colour."""

    def __init__(self, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
        self._machine = machine
        self._ask_colour = colours.ask_colour
        self.fault = ""
        monkeypatch.setattr(colours, "ask_colour", self._ask)

    def begin(self, fault: str) -> None:
        machine, self.fault = self._machine, fault
        match fault:
            case "ready":
                machine.unready = {NEWER}
            case "smoke":
                machine.unseen = {NEWER}
            case "restarts":
                machine.restarted = {colours.unit("api", "green")}
            case "daemon-reload" | "start tap-trading-api-green":
                machine.on_command = self._once

    def end(self) -> None:
        machine, self.fault = self._machine, ""
        machine.failing, machine.on_command = [], lambda _line: None
        machine.unready, machine.unseen, machine.restarted = set(), set(), set()

    def _once(self, line: str) -> None:
        """It fails once: for the way back it works again."""
        failed = any(self.fault in before for before in self._machine.commands)
        self._machine.failing = [self.fault] if self.fault in line and not failed else []

    def _ask(self, service: str, colour: str, path: str) -> tuple[int, dict[str, object]]:
        if colour == "green" and self.fault == "idle" and path == "/healthz":
            return 200, {"checks": {"storing": "standing by"}}
        watched = any("smoke" in line for line in self._machine.commands)
        if (colour, service, self.fault) == ("green", "resolver", "health") and watched:
            return 503, {"checks": {"resolver": "ill"}}
        return self._ask_colour(service, colour, path)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("ready", r"ws is not ready \(price_age: no price yet\)"),
        ("start tap-trading-api-green", "systemctl: start tap-trading-api-green failed"),
        ("smoke", r"the site is not healthy \(\{'redis': 'no'\}\)"),
        ("restarts", r"tap-trading-api-green\.service had to be restarted 1 times"),
        ("idle", r"price has not taken over within 10 s: standing by"),
        ("health", r"resolver is not healthy: \{'resolver': 'ill'\}"),
        ("daemon-reload", "daemon-reload failed"),
    ],
)
def test_whatever_fails_the_old_release_goes_on(
    machine: FakeMachine, tmp_path: Path, fault: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(machine, tmp_path, VERSION, NEWER)
    faults = Faults(machine, monkeypatch)
    deploy(machine, VERSION)
    machine.commands.clear()
    faults.begin(fault)
    with pytest.raises(ReleaseError, match=says) as caught:
        deploy(machine, NEWER)
    assert str(caught.value).startswith(f"{NEWER} does not work: ")
    assert str(caught.value).endswith(f"; {VERSION} is live")
    assert "\n" not in str(caught.value)
    assert serves(machine, VERSION)
    assert machine.previous_version() is None  # a rollback would have nowhere to go, as before
    assert (machine.releases / NEWER / places.FAILED).exists()
    faults.end()
    assert deploy(machine, NEWER)["changed"] is True
    assert serves(machine, NEWER)
    assert not (machine.releases / NEWER / places.FAILED).exists()


def test_the_last_words_of_what_failed_are_told(machine: FakeMachine, tmp_path: Path) -> None:
    installed(machine, tmp_path, VERSION)
    machine.unseen = {VERSION}
    run = machine.run

    def journal(*command: str) -> str:
        if command[0] == "journalctl" and "ws-blue" in " ".join(command):
            return '{"level":"info","m":1}\n{"level":"critical","error":"no"}\nTraceback\n'
        return run(*command)

    machine.run = journal  # type: ignore[method-assign] # one machine alone
    with pytest.raises(ReleaseError) as caught:
        deploy(machine, VERSION)
    assert caught.value.words == ['ws: {"level":"critical","error":"no"}', "ws: Traceback"]


def test_when_the_way_back_fails_too_the_first_cause_is_still_told(
    machine: FakeMachine, tmp_path: Path
) -> None:
    installed(machine, tmp_path, VERSION, NEWER)
    deploy(machine, VERSION)
    machine.unready = {NEWER}
    machine.failing = ["systemctl stop"]
    with pytest.raises(ReleaseError, match=r"is not ready .*; putting v1.* back failed too"):
        deploy(machine, NEWER)
    machine.failing = []
    # It is still on record as under way, and ended by whoever comes next.
    recovered = deployment.recover(machine)
    assert recovered is not None
    assert recovered["result"] == f"taken back, {VERSION} is live"
    assert serves(machine, VERSION)


def test_an_old_colour_that_does_not_end_is_ended_later(
    machine: FakeMachine, tmp_path: Path
) -> None:
    installed(machine, tmp_path, VERSION, NEWER)
    deploy(machine, VERSION)
    machine.failing = ["systemctl stop"]
    with pytest.raises(ReleaseError, match=r"is live, but the colour before it did not end"):
        deploy(machine, NEWER)
    assert machine.live_version() == NEWER
    assert (machine.releases / NEWER / places.WORKED).exists()
    machine.failing = []
    assert deployment.recover(machine) is not None
    assert serves(machine, NEWER)


def test_a_first_release_that_does_not_work_leaves_none_live(
    machine: FakeMachine, tmp_path: Path
) -> None:
    installed(machine, tmp_path, VERSION)
    machine.unseen = {VERSION}
    with pytest.raises(ReleaseError, match="no release is live"):
        deploy(machine, VERSION)
    assert not machine.current.is_symlink()
    assert not machine.running
    machine.unseen = set()
    assert deploy(machine, VERSION)["changed"] is True


# -- cut off -----------------------------------------------------------------------------------


class CutOffError(BaseException):
    """The process was killed, or the machine went down."""


class Cut:
    """Cuts off at a step: a command, or a change of a link or a file, before it and after it."""

    def __init__(self, at: int, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left = at
        machine.on_command = self._step
        for name in ("rename", "unlink"):
            monkeypatch.setattr(Path, name, self._cut(getattr(Path, name)))

    def _step(self, *_: object) -> None:
        self._left -= 1
        if self._left == -1:
            raise CutOffError

    def _cut(self, real: Callable[..., object]) -> Callable[..., object]:
        def cut(path: Path, *args: object, **more: object) -> object:
            self._step()
            done = real(path, *args, **more)
            self._step()
            return done

        return cut


def boot(machine: FakeMachine) -> None:
    """Every colour that has a release is started."""
    machine.running = {
        colours.unit(service, colour): version
        for colour in colours.COLOURS
        for service in colours.SERVICES
        if (version := colours.version_of(machine, colour))
    }


def cut_off(
    machine: FakeMachine, at: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]
) -> bool:
    """Work, and be cut off at a step; whether there were so many."""
    try:
        with monkeypatch.context() as patch:
            Cut(at, machine, patch)
            work()
    except CutOffError:
        return True
    finally:
        machine.on_command = lambda _line: None
    return False


@pytest.mark.parametrize("rebooted", [False, True])
@pytest.mark.parametrize("ill", [False, True])
def test_a_deployment_that_is_cut_off_anywhere_is_ended_by_the_next_run(
    machine: FakeMachine, tmp_path: Path, rebooted: bool, ill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    while True:
        machine.__init__(tmp_path / f"opt{steps}")  # type: ignore[misc] # a new one
        installed(machine, tmp_path, VERSION, NEWER)
        deploy(machine, VERSION)
        if not cut_off(machine, steps, monkeypatch, lambda: deploy(machine, NEWER)):
            break
        steps += 1
        if rebooted:
            boot(machine)
        # At every moment one is live, and runs.
        assert machine.live_version() in machine.running.values(), steps
        kept = (
            json.loads(machine.deployment.read_text())["stage"] == "kept"
            if (machine.deployment.exists())
            else machine.live_version() == NEWER
        )
        machine.unseen = {NEWER} if ill else set()
        with contextlib.suppress(ReleaseError):
            deployment.recover(machine)
        live = machine.live_version()
        assert live is not None
        assert serves(machine, live), steps
        assert kept or not ill or live == VERSION
        machine.unseen = set()
        assert deploy(machine, NEWER)["version"] == NEWER
        assert serves(machine, NEWER), steps
        assert not [*machine.root.glob(".*"), *machine.units.glob(".*")]
    assert steps > 40


# -- migrations --------------------------------------------------------------------------------


def with_schema(machine: FakeMachine, tmp_path: Path, version: str, bets: tuple[int, int]) -> None:
    said = {"schema": {"bets": bets, "prices": [1, 2]}}
    artifacts.install(machine, pack(tmp_path / f"{version}.tar.gz", contents(version, said=said)))


@pytest.mark.parametrize(("found", "taken"), [(0, True), (2, True), (4, True), (5, False)])
def test_a_release_for_another_schema_is_refused(
    machine: FakeMachine, tmp_path: Path, found: int, taken: bool
) -> None:
    with_schema(machine, tmp_path, VERSION, (3, 4))
    machine.schema["bets"] = found
    if taken:
        assert deploy(machine, VERSION)["changed"]
        assert any("tap migrate" in line for line in machine.commands) is (found < 3)
        return
    with pytest.raises(ReleaseError) as caught:
        deploy(machine, VERSION)
    assert str(caught.value) == (
        f"{VERSION} is built for another schema: it runs on 3 and 4 of bets.db, which is at 5"
    )
    assert not (machine.releases / VERSION / places.FAILED).exists()  # it was never tried
    assert not [line for line in machine.commands if "migrate" in line or " start " in line]


def test_what_the_live_release_could_not_run_on_is_refused(
    machine: FakeMachine, tmp_path: Path
) -> None:
    with_schema(machine, tmp_path, VERSION, (3, 4))
    with_schema(machine, tmp_path, NEWER, (5, 6))
    deploy(machine, VERSION)
    machine.commands.clear()
    with pytest.raises(ReleaseError, match=r"to schema 5, on which v1\.2\.3.* cannot run"):
        deploy(machine, NEWER)
    assert not [line for line in machine.commands if "migrate" in line]
    assert serves(machine, VERSION)


def test_a_database_is_copied_before_it_is_migrated(machine: FakeMachine, tmp_path: Path) -> None:
    with_schema(machine, tmp_path, VERSION, (3, 4))
    with_schema(machine, tmp_path, NEWER, (4, 5))
    deploy(machine, VERSION)
    machine.commands.clear()
    machine.schema["prices"] = 0  # there is none yet
    assert deploy(machine, NEWER)["migrated"] == ["bets", "prices"]
    taps = [line.split("/releases/")[1] for line in machine.commands if "/tap " in line]
    folder = machine.data / "backups/before-migrations"
    assert taps[:3] == [
        f"{NEWER}/tap schema",
        f"{VERSION}/tap backup --dest={folder} --keep=5",
        f"{NEWER}/tap migrate",
    ]


@pytest.mark.parametrize("encrypts", [True, False])
def test_such_a_copy_is_encrypted_where_there_is_a_key_and_the_release_knows_how(
    machine: FakeMachine, tmp_path: Path, *, encrypts: bool
) -> None:
    with_schema(machine, tmp_path, VERSION, (3, 4))
    with_schema(machine, tmp_path, NEWER, (4, 5))
    deploy(machine, VERSION)
    machine.encrypts = encrypts
    machine.backup_key.parent.mkdir(parents=True)
    machine.backup_key.write_text("secret")
    machine.commands.clear()
    deploy(machine, NEWER)
    [copied] = [line for line in machine.commands if "/tap backup" in line]
    assert (f" TAP_BACKUP_KEY_FILE={machine.backup_key} " in copied) == encrypts


@pytest.mark.parametrize("what", ["migrate", "backup"])
def test_a_failed_migration_changes_nothing(
    machine: FakeMachine, tmp_path: Path, what: str
) -> None:
    with_schema(machine, tmp_path, VERSION, (3, 4))
    with_schema(machine, tmp_path, NEWER, (4, 5))
    deploy(machine, VERSION)
    machine.commands.clear()
    machine.failing = [f"/tap {what}"]
    with pytest.raises(ReleaseError, match=f"{what} failed"):
        deploy(machine, NEWER)
    assert serves(machine, VERSION)
    assert not [line for line in machine.commands if "start tap-trading-api-green" in line]
    assert what == "migrate" or not [line for line in machine.commands if "migrate" in line]


# -- what is in the way --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            'LISTEN 0 5 0.0.0.0:8081 0.0.0.0:* users:(("python3",pid=4711,fd=3))\n',
            r"127\.0\.0\.1:8081 is in use by python3 \(process 4711\)",
        ),
        ("LISTEN 0 5 0.0.0.0:8081 0.0.0.0:*\n", "8081 is in use by another program"),
        ('LISTEN 0 5 [::]:8081 [::]:* users:(("api",pid=9,fd=3),("systemd",pid=1,fd=8))', "Job"),
    ],
)
def test_a_busy_port_is_named_with_who_has_it(
    machine: FakeMachine, tmp_path: Path, line: str, says: str
) -> None:
    installed(machine, tmp_path, VERSION)
    run = machine.run

    def busy(*command: str) -> str:
        if command[0] == "ss":
            return line if command[-1] == "sport = :8081" else ""
        if command[:2] == ("systemctl", "start") and command[2].endswith(".socket"):
            raise ReleaseError("systemctl: Job for tap-trading-ws.socket failed.")
        return run(*command)

    machine.run = busy  # type: ignore[method-assign] # one machine alone
    with pytest.raises(ReleaseError, match=says):
        deploy(machine, VERSION)


def test_a_missing_user_is_one_sentence(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(machine, tmp_path, VERSION)

    def getpwnam(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(places.pwd, "getpwnam", getpwnam)
    with pytest.raises(ReleaseError, match="there is no user app"):
        machine.tap(VERSION, "schema")


@pytest.mark.parametrize(
    ("said", "told"),
    [("setpriv: tap: no such table", "tap: no such table"), ("setpriv: 1", "setpriv: 1")],
)
def test_what_tap_says_of_itself_is_told_alone(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    def run(*command: str) -> str:
        raise ReleaseError(said)

    monkeypatch.setattr(machine, "run", run)
    with pytest.raises(ReleaseError) as caught:
        machine.tap(VERSION, "migrate")
    assert str(caught.value) == told


def test_what_is_not_installed_cannot_go_live(machine: FakeMachine) -> None:
    with pytest.raises(ReleaseError, match="v9 is not installed"):
        deploy(machine, "v9")
    assert machine.commands == []


def test_the_preflight_says_what_is_missing(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(machine, tmp_path, VERSION)
    preflight.check(machine, force=False)
    monkeypatch.setattr(preflight, "FREE_BYTES", 10**18)
    with pytest.raises(ReleaseError, match=r"releases has [0-9]+ MB free, a deployment needs"):
        preflight.check(machine, force=True)
    monkeypatch.undo()
    backups = machine.data / "backups"  # may be a file system of their own
    backups.mkdir(parents=True)
    real = shutil.disk_usage

    def disk_usage(path: Path) -> object:
        return real(path)._replace(free=99_000_000) if path == backups else real(path)

    monkeypatch.setattr(preflight.shutil, "disk_usage", disk_usage)
    with pytest.raises(ReleaseError, match=r"backups has 99 MB free, a deployment needs 500 MB"):
        preflight.check(machine, force=True)
    monkeypatch.undo()
    monkeypatch.setattr(preflight, "COLOUR_BYTES", 10**18)
    with pytest.raises(ReleaseError, match=r"MB of memory are available, a second colour needs"):
        preflight.check(machine, force=True)
    monkeypatch.undo()


def test_a_site_that_is_not_well_is_deployed_to_by_force_alone(
    machine: FakeMachine, tmp_path: Path
) -> None:
    installed(machine, tmp_path, VERSION)
    deploy(machine, VERSION)
    preflight.check(machine, force=False)
    del machine.running[colours.unit("ws", "blue")]
    with pytest.raises(ReleaseError, match=r"not well: ws does not answer \(nobody listens\)"):
        preflight.check(machine, force=False)
    preflight.check(machine, force=True)


# -- the lock ------------------------------------------------------------------------------------


def test_the_lock_says_who_has_it_and_ends(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = lock.take(machine, "ada@desk", "deploy v2")
    lock.prove(machine, token)
    with pytest.raises(ReleaseError, match=r"ada@desk has locked deployments since .*deploy v2"):
        lock.take(machine, "bob@desk", "deploy v3")
    # Whoever lost the connection comes back; what went on meanwhile goes no further.
    again = lock.take(machine, "ada@desk", "deploy v2")
    with pytest.raises(ReleaseError, match="has lost its lock"):
        lock.prove(machine, token)
    assert lock.drop(machine, token) is None
    now = lock.time.time()
    monkeypatch.setattr(lock.time, "time", lambda: now + lock.EXPIRES_S + 1)
    with pytest.raises(ReleaseError, match="has expired"):
        lock.prove(machine, again)
    lock.take(machine, "bob@desk", "deploy v3")
    found = lock.drop(machine, None)
    assert found is not None
    assert found["who"] == "bob@desk"
    assert lock.held(machine) is None


# -- what is kept, and going back ---------------------------------------------------------------


def numbered(number: int) -> str:
    return f"v2.0.0-{number}+0a1b2c3d"


def roll_back(machine: FakeMachine) -> dict[str, object]:
    return deployment.rollback(machine, by="ada@desk", watch_s=1)


def test_the_last_five_that_worked_are_kept(machine: FakeMachine, tmp_path: Path) -> None:
    for number in range(1, 9):
        installed(machine, tmp_path, numbered(number))
        done = deploy(machine, numbered(number))
        assert done["removed"] == ([numbered(number - 5)] if number > 5 else [])
    assert machine.left() == [numbered(number) for number in range(4, 9)]
    assert (machine.live_version(), machine.previous_version()) == (numbered(8), numbered(7))


def test_pinned_ones_stay_and_failed_ones_go(machine: FakeMachine, tmp_path: Path) -> None:
    pinned, bad, waiting = numbered(1), numbered(2), numbered(99)
    installed(machine, tmp_path, pinned, bad, waiting)
    deploy(machine, pinned)
    assert shelf.pin(machine, pinned, pinned=True)["changed"]
    assert not shelf.pin(machine, pinned, pinned=True)["changed"]
    machine.unready = {bad}
    with pytest.raises(ReleaseError, match="does not work"):
        deploy(machine, bad)
    assert bad in machine.left()  # to be looked at
    for number in range(3, 10):
        installed(machine, tmp_path, numbered(number))
        deploy(machine, numbered(number))
    assert machine.left() == [pinned, *(numbered(n) for n in range(5, 10)), waiting]
    assert shelf.pin(machine, pinned, pinned=False)["changed"]
    deploy(machine, numbered(8))
    assert pinned not in machine.left()
    for wrong in ("v9", "../releases", VERSION):
        with pytest.raises(ReleaseError, match="is not installed"):
            shelf.pin(machine, wrong, pinned=True)


def test_the_release_before_the_live_one_is_kept_however_old(
    machine: FakeMachine, tmp_path: Path
) -> None:
    installed(machine, tmp_path, *(numbered(number) for number in range(1, 8)))
    deploy(machine, numbered(1))
    for number in range(2, 7):
        deploy(machine, numbered(number))
        roll_back(machine)
    assert machine.live_version() == numbered(1)
    assert machine.previous_version() == numbered(6)
    assert numbered(7) in machine.left()  # never tried


def test_rolling_back_goes_the_way_of_a_deploy(machine: FakeMachine, tmp_path: Path) -> None:
    installed(machine, tmp_path, VERSION, NEWER)
    with pytest.raises(ReleaseError, match="no release before the live one"):
        roll_back(machine)
    deploy(machine, VERSION)
    deploy(machine, NEWER)
    machine.commands.clear()
    assert roll_back(machine)["version"] == VERSION
    assert serves(machine, VERSION)
    assert any("smoke" in line for line in machine.commands)
    machine.unready = {NEWER}
    with pytest.raises(ReleaseError, match=f"{re.escape(VERSION)} is live$"):
        roll_back(machine)
    assert serves(machine, VERSION)
    machine.unready, machine.unseen = set(), {NEWER}  # taken back after the switch
    with pytest.raises(ReleaseError, match="the site is not healthy"):
        roll_back(machine)
    machine.unseen = set()
    assert roll_back(machine)["version"] == NEWER


# -- as a program ----------------------------------------------------------------------------------


def test_everything_that_was_done_or_refused_is_on_record(
    machine: FakeMachine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(places, "Machine", lambda **_: machine)

    def run(*words: str) -> str:
        """The error, or what is printed."""
        result = tmp_path / "result"
        monkeypatch.setattr(
            sys, "argv", ["release", "--by=ada@desk", f"--result={result}", *map(str, words)]
        )
        runpy.run_path(str(PROGRAM), run_name="__main__")
        said = json.loads(result.read_text())
        return str(said["failed"]) if "failed" in said else str(said.get("token", ""))

    first, second = (
        str(pack(tmp_path / f"{version}.tar.gz", contents(version))) for version in (VERSION, NEWER)
    )
    for begins in ("begin", "recover"):  # both end what was interrupted
        (machine.releases / ".incoming-x" / "release").mkdir(parents=True)
        machine.upload.touch()
        token = run(begins, *([VERSION] if begins == "begin" else []))
        assert not list(machine.releases.glob(".*"))
        lock.drop(machine, None)
    token = run("begin", VERSION)
    machine.upload.touch()
    run("recover")  # while somebody uploads
    assert machine.upload.exists()
    assert run("install", first, f"--token={token}") == ""
    assert run("deploy", VERSION, f"--token={token}") == ""
    assert run("install", second) == run("install", first) == ""
    assert lock.held(machine) is None
    machine.unready = {NEWER}
    failed = run("deploy", NEWER)
    assert "does not work" in failed
    assert lock.held(machine) is None
    machine.unready = set()
    assert run("deploy", NEWER) == run("rollback") == run("pin", NEWER) == run("recover") == ""
    assert "is not installed" in run("unpin", "v9")
    lock.take(machine, "bob@desk", "deploy v3")
    assert "bob@desk has locked" in run("begin", NEWER)
    assert "bob@desk has locked" in run("rollback")
    assert run("unlock") == ""
    lines = [json.loads(line) for line in machine.log.read_text().splitlines()]
    assert {line["by"] for line in lines} == {"ada@desk"}
    assert [(line["what"], line.get("version"), "failed" in line) for line in lines] == [
        ("install", VERSION, False),
        ("deploy", VERSION, False),
        ("install", NEWER, False),
        ("deploy", NEWER, True),
        ("deploy", NEWER, False),
        ("rollback", VERSION, False),
        ("pin", NEWER, False),
        ("unpin", "v9", True),
        ("begin", NEWER, True),
        ("rollback", None, True),
        ("unlock", None, False),
    ]
    assert lines[3]["failed"] == failed
    assert lines[5]["previous"] == NEWER
    assert lines[5]["switch_s"] >= 0
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z", line["at"]) for line in lines)
    assert not capsys.readouterr().err


def test_a_log_that_takes_no_line_stops_nothing(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.log.mkdir()
    machine.note(what="pin")
    assert f"{machine.log} takes no line" in capsys.readouterr().err


def test_the_tool_is_packed_into_the_same_bytes_each_time(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        packed = tmp_path / name
        subprocess.run([sys.executable, "-I", PROGRAM, "pack", packed], check=True)
        made.append(packed.read_bytes())
    assert made[0] == made[1]
