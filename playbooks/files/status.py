#!/usr/bin/python3
"""Tell in one JSON object how the site is. Run on the machine by status.yml; changes nothing."""

import http.client
import json
import os
import subprocess
import time
from pathlib import Path

SERVICES = {"api": 8080, "ws": 8081, "price": 8090, "resolver": 8091}
BACKUPS = Path("/data/backups")
SETTINGS_OF_BACKUPS = Path("/etc/tap-trading/backup.env")
METRICS = Path("/data/metrics")
BACKUP_DUE_S = 2 * 3600
DRILL_DUE_S = 8 * 24 * 3600
ARCHIVE_DUE_S = 2 * 24 * 3600
TWO_DAYS_MIN = 2 * 24 * 60
DISK_FULL_PERCENT = 85
DISK_DAYS_LEFT = 14


def main() -> None:
    worries: list[str] = []
    release = live_release()
    if release is None:
        worries.append("no release is deployed: run playbooks/deploy.yml")
    deployed = release is not None
    view = {
        "release": release or "none deployed yet",
        "release before": release_before(),
        "colours": colours(),
        "deployment under way": under_way(worries),
        "lock of deployments": lock(),
        "schema": schema(worries, deployed),
        "last changes of release": last_changes(),
        "units": units(worries),
        "health": {name: health(name, port, worries, deployed) for name, port in SERVICES.items()},
        "disk": {path: disk(path, worries) for path in ("/", "/data")},
        "days until the disk is full": days_left(worries),
        "last backups": last_backup(worries, deployed),
        "last restore drill": last_drill(worries, deployed),
        "archives": last_archive(worries, deployed),
        "firewall": firewall(worries),
    }
    print(json.dumps({"summary": worries or "all is well", **view}))


def live_release() -> str | None:
    current = Path("/opt/app/current")
    return current.resolve().name if current.exists() else None


def release_before() -> str:
    previous = Path("/opt/app/previous")
    return previous.resolve().name if previous.exists() else "none"


def last_changes() -> list[str]:
    try:
        return Path("/opt/app/releases.jsonl").read_text().splitlines()[-3:]
    except OSError:
        return []


def colours() -> dict[str, str]:
    """Which release each colour has; the idle one has none."""
    live = live_release()
    shown = {}
    for colour in ("blue", "green"):
        link = Path("/opt/app", colour)
        version = link.resolve().name if link.exists() else None
        role = "live" if version == live else "not live"
        shown[colour] = f"{version}, {role}" if version else "idle"
    return shown


def under_way(worries: list[str]) -> str:
    try:
        said = json.loads(Path("/opt/app/deployment.json").read_text())
    except (OSError, ValueError):
        return "none"
    alive = subprocess.run(
        ["/usr/bin/systemctl", "is-active", "--quiet", "tap-trading-deployment.service"],
        check=False,
    )
    if alive.returncode:
        worries.append("a deployment was cut off: run playbooks/recover.yml")
    return f"{said.get('what')} of {said.get('version')}, {said.get('stage')}, by {said.get('by')}"


def lock() -> str:
    try:
        said = json.loads(Path("/opt/app/deployment.lock").read_text())
    except (OSError, ValueError):
        return "free"
    if said.get("expires_at", 0) <= time.time():
        return "free"
    return (
        f"{said.get('who')} since {said.get('since')} ({said.get('what')}), until"
        f" {said.get('expires')} or playbooks/unlock.yml"
    )


def schema(worries: list[str], deployed: bool) -> str:
    """The versions of the databases' schemas, as the live release reads them."""
    if not deployed:
        return "none yet"
    asked = subprocess.run(
        ["/usr/local/sbin/tap", "schema"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        worries.append(f"the schema cannot be read: {asked.stderr.strip()}")
        return "unknown"
    return ", ".join(f"{name} {version}" for name, version in json.loads(asked.stdout).items())


def units(worries: list[str]) -> dict[str, str]:
    shown = subprocess.run(
        [
            "/usr/bin/systemctl",
            "show",
            "--property=Id,LoadState,ActiveState,SubState,Type,Result,NRestarts",
            "tap-trading-*",
            "redis-server.service",
            "nginx.service",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    states = {}
    idle = tuple(f"-{name}.service" for name, what in colours().items() if what == "idle")
    for block in shown.stdout.split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = unit.get("Id", "")
        if not name or name.endswith(".slice"):
            continue
        if unit["LoadState"] == "not-found":
            states[name] = "not installed"
            worries.append(f"{name} is not installed: run playbooks/provision.yml")
            continue
        if name.endswith(idle) and unit["ActiveState"] == "inactive":
            continue
        words = [f"{unit['ActiveState']} ({unit['SubState']})"]
        if "NRestarts" in unit:
            words.append(f"{unit['NRestarts']} restarts")
        states[name] = ", ".join(words)
        if unit["ActiveState"] == "failed" or unit.get("Result", "success") != "success":
            worries.append(f"{name} failed ({unit['Result']}): journalctl -u {name} -n 50")
        elif unit["ActiveState"] == "inactive" and unit.get("Type") != "oneshot":
            worries.append(f"{name} is stopped: systemctl start {name}")
    return dict(sorted(states.items()))


def health(name: str, port: int, worries: list[str], deployed: bool) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        answer = f"{response.status} {response.read(2000).decode(errors='replace').strip()}"
        well = response.status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException) as error:
        answer, well = f"no answer on 127.0.0.1:{port} ({error})", False
    finally:
        connection.close()
    if deployed and not well:
        worries.append(f"{name} is not healthy: journalctl -t tap-trading-{name} -n 50")
    return answer


def disk(path: str, worries: list[str]) -> str:
    try:
        stat = os.statvfs(path)
    except FileNotFoundError:
        return "missing"
    used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    usable = used + stat.f_bavail * stat.f_frsize
    percent = 100 * used / usable if usable else 0.0
    if percent >= DISK_FULL_PERCENT:
        worries.append(f"the file system of {path} is {percent:.0f} % full")
    return f"{percent:.0f} % of {usable / 1e9:.1f} GB in use"


def days_left(worries: list[str]) -> str:
    """In how many days new bets are refused, as the last hourly run saw it."""
    said = metrics("disk.prom")
    day, week = (said.get(f'tap_disk_days_left{{rate="{rate}"}}') for rate in ("day", "week"))
    if day is None or week is None:
        return "not known yet"
    if day < DISK_DAYS_LEFT:
        worries.append(
            f"new bets are refused in {day:.1f} days at today's growth of /data: tap disk"
        )
    return f"{in_days(day)} at today's growth, {in_days(week)} at the last week's"


def in_days(days: float) -> str:
    return "never" if days == float("inf") else f"{days:.0f}"


def last_backup(worries: list[str], deployed: bool) -> dict[str, str]:
    """The newest copy of each database, and how far the copies off the machine are."""
    shown = {}
    for database in ("bets", "prices"):
        backups = sorted(
            BACKUPS.glob(f"{database}-*.db.zst*"), key=lambda file: file.stat().st_mtime
        )
        if not backups:
            shown[database] = "none yet"
            continue
        stat = backups[-1].stat()
        if deployed and time.time() - stat.st_mtime > BACKUP_DUE_S:
            worries.append(
                f"the last backup of {database} is over 2 hours old:"
                " journalctl -t tap-trading-backup -n 50"
            )
        shown[database] = (
            f"{backups[-1].name}, {age(stat.st_mtime)} old, {stat.st_size / 1e6:.1f} MB,"
            f" {len(backups)} kept"
        )
    shown["off the machine"] = off_the_machine(worries)
    return shown


def off_the_machine(worries: list[str]) -> str:
    try:
        configured = "TAP_S3_BUCKET=" in SETTINGS_OF_BACKUPS.read_text()
    except OSError:
        configured = False
    if not configured:
        return "no copy leaves the machine: backup_s3_bucket is not set"
    said = metrics("backup.prom")
    pending = said.get("tap_backup_offsite_pending")
    newest = {
        database: said.get(
            f'tap_backup_offsite_last_success_timestamp_seconds{{database="{database}"}}'
        )
        for database in ("bets", "prices")
    }
    if pending is None or None in newest.values():
        worries.append("no copy is off the machine yet: systemctl start tap-trading-backup")
        return "none yet"
    oldest = min(taken for taken in newest.values() if taken is not None)
    if pending or time.time() - oldest > BACKUP_DUE_S:
        worries.append(
            f"{pending:.0f} backups are not off the machine, the newest there is {age(oldest)} old:"
            " journalctl -t tap-trading-backup -n 50"
        )
    return f"the newest is {age(oldest)} old, {pending:.0f} missing"


def last_drill(worries: list[str], deployed: bool) -> str:
    """What the last restore drill proved, and when."""
    said = metrics("drill.prom")
    ended = said.get("tap_restore_drill_timestamp_seconds")
    if ended is None:
        return "none yet"
    failed = [
        database
        for database in ("bets", "prices")
        if said.get(f'tap_restore_drill_ok{{database="{database}"}}') != 1
    ]
    place = "off the machine" if said.get("tap_restore_drill_offsite") else "the machine alone"
    if failed:
        worries.append(
            f"the last restore drill failed for {' and '.join(failed)}:"
            " journalctl -t tap-trading-drill -n 50"
        )
    if deployed and time.time() - ended > DRILL_DUE_S:
        worries.append(
            "the last restore drill is over 8 days old: systemctl start tap-trading-drill"
        )
    result = f"failed for {' and '.join(failed)}" if failed else "restored and proven"
    return f"{result}, from {place}, {age(ended)} ago"


def last_archive(worries: list[str], deployed: bool) -> str:
    """How many weeks are archived, where they are, and when the archiver last had nothing to do."""
    said = metrics("archive.prom")
    succeeded = said.get("tap_last_successful_archive_timestamp_seconds")
    if succeeded is None:
        return "none yet"
    if said.get("tap_archive_failed") or (deployed and time.time() - succeeded > ARCHIVE_DUE_S):
        worries.append(
            f"the archiver was last done {age(succeeded)} ago:"
            " journalctl -t tap-trading-archiver -n 50"
            if succeeded
            else "the archiver never got to its end: journalctl -t tap-trading-archiver -n 50"
        )
    weeks, here = said.get("tap_archives", 0), said.get("tap_archives_local", 0)
    missing = said.get("tap_archives_not_stored", 0)
    return f"{weeks:.0f} weeks, {here:.0f} of them here, {missing:.0f} not in cold storage"


def metrics(name: str) -> dict[str, float]:
    """The samples of a *.prom file by name and label; none if it is not there."""
    found = {}
    try:
        for line in METRICS.joinpath(name).read_text().splitlines():
            if line and not line.startswith("#"):
                sample, _, value = line.rpartition(" ")
                found[sample] = float(value)
    except (OSError, ValueError):
        return {}
    return found


def age(since: float) -> str:
    minutes = (time.time() - since) / 60
    return f"{minutes:.0f} minutes" if minutes < TWO_DAYS_MIN else f"{minutes / 1440:.0f} days"


def firewall(worries: list[str]) -> str:
    if not Path("/usr/sbin/ufw").exists():
        worries.append("there is no firewall: run playbooks/provision.yml")
        return "not installed"
    shown = subprocess.run(["/usr/sbin/ufw", "status"], capture_output=True, text=True, check=True)
    lines = shown.stdout.splitlines()
    if "Status: active" not in lines:
        worries.append("the firewall is off: run playbooks/provision.yml --tags firewall")
        return "off"
    ports = {
        line.split()[0].removesuffix("/tcp") for line in lines if "ALLOW" in line or "LIMIT" in line
    }
    return "active, open: " + ", ".join(sorted(ports, key=lambda port: (len(port), port)))


if __name__ == "__main__":
    main()
