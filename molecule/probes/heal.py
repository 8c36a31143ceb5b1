"""Kill a unit and measure how long until it is well again, so many times in a row.

heal UNIT URL TIMES    URL answers 200 when the unit is well; with TIMES 0 it only waits
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

GIVE_UP_S = 30


def main_pid(unit: str) -> int:
    shown = subprocess.run(
        ["systemctl", "show", "--property=MainPID", "--value", unit],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(shown.stdout)


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait(unit: str, url: str, killed: int) -> tuple[float, int]:
    """Until another process than `killed` answers well; the seconds and the last status."""
    began = time.monotonic()
    while True:
        seen = 0
        if main_pid(unit) not in (0, killed):
            seen = status(url)
        took = time.monotonic() - began
        if seen == 200 or took > GIVE_UP_S:
            return took, seen
        time.sleep(0.05)


def main() -> None:
    unit, url, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if times == 0:
        print(json.dumps({"status": wait(unit, url, 0)[1]}))
        return
    seconds = []
    for _ in range(times):
        killed = main_pid(unit)
        subprocess.run(["systemctl", "kill", "--signal=KILL", unit], check=True)
        took, seen = wait(unit, url, killed)
        seconds.append(took if seen == 200 else None)
    print(json.dumps(seconds))


main()
