"""Installs releases on this machine and makes them live. Run as root; Ansible drives it.

    release look ARTIFACT       check it where it lies, without unpacking it
    release begin VERSION       take the lock, end what was interrupted, see that there is room
    release install ARTIFACT    verify, unpack and install it beside the live release
    release deploy VERSION      migrate, start it as the idle colour, switch to it, watch it, end
                                the old colour; when anything fails, the old release goes on
    release rollback            deploy the release that was live before
    release restore             put copies of the databases in the place of what is there
    release recover             finish or take back a deployment or a restore that was interrupted
    release unlock              end the lock, whosever it is
    release pin VERSION         never remove it; `unpin` takes that back
    release current             print the live version

`look` needs no rights: the controller asks before it uploads. Each command may be repeated: what
is done already is left alone. A deployment goes on when whoever asked for it is gone. The last
line printed is JSON: {"changed": true|false, "version": …}. Exit code 1 with one sentence on
failure, and below it the last words of what failed.

What was done or refused, when, and by whom, is a line of JSON in /opt/app/releases.jsonl.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tap_release import artifact, deployment, lock, preflight, restoring, shelf
from tap_release.machine import Machine, ReleaseError, read_json, write_json

#: The unit that a deployment runs in, so that it does not end with the connection.
_UNIT = "tap-trading-deployment"

Done = dict[str, object]
Command = Callable[[Machine, argparse.Namespace], Done]


def _begin(machine: Machine, args: argparse.Namespace) -> Done:
    with deployment.alone(machine):
        token = lock.take(machine, args.by, f"deploy {args.version}")
        try:
            recovered = restoring.recover(machine) or deployment.recover(machine)
            artifact.sweep(machine)
            live = machine.live_version() == args.version
            if not live:
                preflight.check(machine, force=args.force)
            installed = artifact.is_same_build(machine, args.version, args.checksums)
        except (ReleaseError, OSError):
            lock.drop(machine, token)
            raise
    return {
        "changed": recovered is not None,
        "version": args.version,
        "recovered": recovered and recovered["result"],
        "token": token,
        "installed": installed,
        "live": live,
    }


def _install(machine: Machine, args: argparse.Namespace) -> Done:
    with deployment.alone(machine):
        if args.token:
            lock.prove(machine, args.token)
        return artifact.install(machine, args.artifact)


def _deploy(machine: Machine, args: argparse.Namespace) -> Done:
    def work() -> Done:
        return deployment.deploy(machine, args.version, by=args.by, watch_s=args.watch)

    return _locked(machine, args, f"deploy {args.version}", work)


def _rollback(machine: Machine, args: argparse.Namespace) -> Done:
    def work() -> Done:
        preflight.check(machine, force=True)
        return deployment.rollback(machine, by=args.by, watch_s=args.watch)

    return _locked(machine, args, "rollback", work)


def _restore(machine: Machine, args: argparse.Namespace) -> Done:
    wanted = restoring.Wanted(
        copy=args.copy,
        prices=args.prices,
        offsite=args.offsite,
        over_newer=args.over_newer,
        lose_since=args.lose_since,
    )

    def work() -> Done:
        deployment.recover(machine)
        return restoring.restore(machine, wanted, by=args.by)

    return _locked(machine, args, "restore", work)


def _locked(
    machine: Machine, args: argparse.Namespace, what: str, work: Callable[[], Done]
) -> Done:
    """Work under the lock that was taken before, or one of its own; it ends with the work."""
    with deployment.alone(machine):
        token = args.token or lock.take(machine, args.by, what)
        lock.prove(machine, token)
        try:
            return work()
        finally:
            lock.drop(machine, token)


def _recover(machine: Machine, _args: argparse.Namespace) -> Done:
    with deployment.alone(machine):
        found = restoring.recover(machine) or deployment.recover(machine)
        if found is not None:  # its lock goes with it; anybody else's stays
            lock.drop(machine, None)
        if lock.held(machine) is None:  # else somebody may be at it
            artifact.sweep(machine)
        version = machine.live_version()
        if found is None and version is not None:
            return deployment.confirm(machine, version)
        return found or {"changed": False, "version": None}


def _unlock(machine: Machine, args: argparse.Namespace) -> Done:
    # A deployment that is at work has the folder, and keeps its lock.
    with deployment.alone(machine):
        before = lock.drop(machine, args.token)
    return {"changed": before is not None, "was": before and lock.words(before)}


def _pin(machine: Machine, args: argparse.Namespace) -> Done:
    with deployment.alone(machine):
        return shelf.pin(machine, args.version, pinned=args.command == "pin")


#: What changes the machine, and goes on record.
_COMMANDS: dict[str, Command] = {
    "begin": _begin,
    "install": _install,
    "deploy": _deploy,
    "rollback": _rollback,
    "restore": _restore,
    "recover": _recover,
    "unlock": _unlock,
    "pin": _pin,
    "unpin": _pin,
}
#: What goes on without whoever asked for it.
_DETACHED = frozenset({"deploy", "rollback", "restore", "recover"})


def _recorded(machine: Machine, args: argparse.Namespace) -> Done:
    """Do it, and put it on record: what was done, and what was refused."""
    record: Done = {"by": args.by, "what": args.command}
    if getattr(args, "version", None):
        record["version"] = args.version
    try:
        done = _COMMANDS[args.command](machine, args)
    except (ReleaseError, OSError) as error:
        words = getattr(error, "words", None)
        machine.note(**record, failed=str(error), **({"words": words} if words else {}))
        raise
    if done["changed"]:
        told = {name: value for name, value in done.items() if name not in ("changed", "token")}
        machine.note(**record | told)
    return done


def _detached(machine: Machine, words: list[str]) -> Done:
    """Do it in a unit of its own and wait for it. Raises ReleaseError."""
    result = machine.result.with_name(f"{machine.result.name}-{secrets.token_hex(4)}")
    program = str(Path(sys.argv[0]).resolve())
    try:
        done = subprocess.run(
            [
                *("systemd-run", "--quiet", "--collect", "--wait", f"--unit={_UNIT}"),
                *("--", program, f"--result={result}", *words),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        found = read_json(result)
    finally:
        result.unlink(missing_ok=True)
    if found is None:
        if "already" in done.stderr:
            current = lock.held(machine)
            who = f": {lock.words(current)}" if current else ""
            raise ReleaseError(f"another deployment is under way on this machine{who}")
        said = done.stderr.strip().splitlines()
        raise ReleaseError(
            f"the deployment was cut off ({said[-1] if said else done.returncode}): end it with"
            " playbooks/recover.yml"
        )
    if "failed" in found:
        raise ReleaseError(found["failed"], found.get("words"))
    return found


def _with_result(machine: Machine, args: argparse.Namespace) -> None:
    """Do it, and leave the answer for whoever still waits."""
    try:
        answer: dict[str, Any] = _recorded(machine, args)
    except (ReleaseError, OSError) as error:
        answer = {"failed": str(error), "words": getattr(error, "words", [])}
    if args.result.parent.is_dir():
        write_json(args.result, answer)


def _pack(target: Path) -> None:
    """This tool as one file, the same bytes for the same sources."""
    folder = Path(__file__).resolve().parent
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(f".{os.getpid()}")
    with fresh.open("wb") as file:
        file.write(b"#!/usr/bin/python3 -I\n")
        with zipfile.ZipFile(file, "w") as archive:
            for path in sorted(folder.rglob("*.py")):
                name = path.relative_to(folder).as_posix()
                archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    fresh.rename(target)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="release", description="Install releases, make them live."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    looking = commands.add_parser("look")
    looking.add_argument("--trust", action="append", default=[], metavar="KEY")
    looking.add_argument("artifact", type=Path)
    commands.add_parser("pack").add_argument("target", type=Path)
    beginning = commands.add_parser("begin")
    beginning.add_argument("--force", action="store_true", help="although the site is not well")
    beginning.add_argument("--checksums", default="", help="the build's, as `look` prints it")
    beginning.add_argument("version")
    commands.add_parser("install").add_argument("artifact", type=Path)
    for command in ("deploy", "pin", "unpin"):
        commands.add_parser(command).add_argument("version")
    for command in ("rollback", "recover", "unlock", "current"):
        commands.add_parser(command)
    # A release that is rolled back to has been at work before.
    for command, watch_s in {"deploy": 5.0, "rollback": 1.0}.items():
        commands.choices[command].add_argument(
            "--watch", type=float, default=watch_s, metavar="S", help="how long it is watched"
        )
    restore = commands.add_parser("restore")
    restore.add_argument("--copy", default="", help="of the books; default: the newest")
    restore.add_argument("--prices", default="", help="of the prices; default: if need be")
    restore.add_argument("--offsite", action="store_true", help="from off the machine")
    restore.add_argument("--over-newer", action="store_true", help="although entries are lost")
    restore.add_argument("--lose-since", default="", metavar="STAMP", help="of the copy")
    for command in ("install", "deploy", "rollback", "restore", "unlock"):
        commands.choices[command].add_argument("--token", help="of the lock, as `begin` prints it")
    parser.add_argument("--python", default="/usr/bin/python3")
    parser.add_argument(
        "--by", default=os.environ.get("SUDO_USER", "root"), help="who, for the log"
    )
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Command line."""
    args = _parser().parse_args()
    machine = Machine(python=args.python)
    # A release is everyone's to read, whatever root's own files are.
    os.umask(0o022)
    # An end from outside still removes what is half done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("release: ended before it was done"))
    try:
        if args.command == "look":
            keys = args.trust or artifact.trusted(machine.keys)
            print(json.dumps(artifact.look(args.artifact, keys)))
        elif args.command == "pack":
            _pack(args.target)
        elif args.command == "current":
            print(machine.live_version() or "none")
        elif args.result is not None:
            _with_result(machine, args)
        elif args.command in _DETACHED:
            print(json.dumps(_detached(machine, sys.argv[1:])))
        else:
            print(json.dumps(_recorded(machine, args)))
    except (ReleaseError, OSError) as error:
        words = getattr(error, "words", [])
        sys.exit("\n  ".join([f"release: {error}", *words]))


if __name__ == "__main__":
    main()
