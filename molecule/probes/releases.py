"""Say as JSON which release is live, which units its name stands for, and what is left lying about.

releases
"""

import json
import subprocess
from pathlib import Path

APP = Path("/opt/app")
SERVICES = ("api", "ws", "price", "resolver")
NAMES = frozenset(
    ("blue", "current", "frontend", "green", "previous", "releases", "releases.jsonl", "schema")
) | {"scripts"}


def pointed(name: str) -> str | None:
    try:
        return (APP / name).readlink().name
    except OSError:
        return None


def shown(prop: str, *units: str) -> list[str]:
    said = subprocess.run(
        ["systemctl", "show", f"--property={prop}", "--value", *units],
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.split()


def main() -> None:
    current = pointed("current")
    links = {colour: pointed(colour) for colour in ("blue", "green")}
    colours = sorted(links, key=lambda colour: links[colour] != current)
    left = [path.name for path in APP.iterdir() if path.name not in NAMES]
    left += [path.name for path in (APP / "releases").glob(".*")]
    left += [path.name for path in Path("/etc/systemd/system").glob(".*")]
    print(
        json.dumps(
            {
                "current": current,
                "previous": pointed("previous"),
                "colours": colours,
                "links": links,
                "live": shown("Id", *(f"tap-trading-{name}.service" for name in SERVICES)),
                "idle": shown(
                    "ActiveState",
                    *(f"tap-trading-{name}-{colours[1]}.service" for name in SERVICES),
                ),
                "left": left,
            }
        )
    )


main()
