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
BACKUP_DUE_S = 2 * 3600
DISK_FULL_PERCENT = 85


def main() -> None:
    worries: list[str] = []
    release = live_release()
    if release is None:
        worries.append("no release is deployed: run playbooks/deploy.yml")
    deployed = release is not None
    view = {
        "release": release or "none deployed yet",
        "release before": release_before(),
        "last changes of release": last_changes(),
        "units": units(worries),
        "health": {name: health(name, port, worries, deployed) for name, port in SERVICES.items()},
        "disk": {path: disk(path, worries) for path in ("/", "/data")},
        "last backup": last_backup(worries, deployed),
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
    for block in shown.stdout.split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = unit.get("Id", "")
        if not name or name.endswith(".slice"):
            continue
        if unit["LoadState"] == "not-found":
            states[name] = "not installed"
            worries.append(f"{name} is not installed: run playbooks/provision.yml")
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


def last_backup(worries: list[str], deployed: bool) -> str:
    backups = sorted(BACKUPS.glob("*.zst"), key=lambda file: file.stat().st_mtime)
    if not backups:
        return "none yet"
    stat = backups[-1].stat()
    age = time.time() - stat.st_mtime
    if deployed and age > BACKUP_DUE_S:
        worries.append(
            "the last backup is over 2 hours old: journalctl -t tap-trading-backup -n 50"
        )
    return f"{backups[-1].name}, {age / 60:.0f} minutes old, {stat.st_size / 1e6:.1f} MB, {len(backups)} kept"


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
