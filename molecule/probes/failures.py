"""Wait until a unit logged so many start-up failures; say when and why, as JSON.

failures UNIT COUNT
"""

import json
import subprocess
import sys
import time

DEADLINE_S = 50


def failures(unit: str, since: float) -> list[dict[str, object]]:
    shown = subprocess.run(
        ["journalctl", "--identifier", unit, "--since", f"@{since:.6f}", "--output", "json", "-q"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = []
    for line in shown.splitlines():
        entry = json.loads(line)
        try:
            words = json.loads(entry["MESSAGE"])
        except (ValueError, TypeError):
            continue
        if isinstance(words, dict) and words.get("level") in ("critical", "fatal"):
            stamp = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
            found.append({"time": stamp, "error": words.get("error", "")})
    return found


def main() -> None:
    unit, count = sys.argv[1], int(sys.argv[2])
    since = time.time() - 2
    end = time.monotonic() + DEADLINE_S
    while len(found := failures(unit, since)) < count and time.monotonic() < end:
        time.sleep(0.2)
    print(json.dumps(found))


main()
