"""Ask the site all the time, through Nginx and on each port, until the input ends; say as JSON how
often, what it said it was, and what was no answer.

serving
"""

import collections
import http.client
import itertools
import json
import select
import sys
import time

PORTS = {"nginx": 80, "api": 8080, "ws": 8081, "price": 8090, "resolver": 8091}
EVERY_S = 0.05
TIMEOUT_S = 3


def ask(port: int, path: str, source: str) -> str:
    """The version it says; raises OSError, ValueError or HTTPException."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=TIMEOUT_S, source_address=(source, 0)
    )
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        return str(json.loads(body)["version"])
    finally:
        connection.close()


def main() -> None:
    asked: collections.Counter[str] = collections.Counter()
    versions: dict[str, list[str]] = {name: [] for name in PORTS}
    failures: list[str] = []
    began = time.monotonic()
    print("ready", flush=True)
    # Nginx counts requests per address: each comes from another one.
    for number in itertools.count():
        if select.select([sys.stdin], [], [], EVERY_S)[0]:
            break
        for name, port in PORTS.items():
            source = f"127.{number // 62500 % 200 + 30}.{number // 250 % 250}.{number % 250 + 1}"
            path = "/api/version" if name == "nginx" else "/version"
            asked[name] += 1
            try:
                seen = ask(port, path, source)
            except (OSError, ValueError, http.client.HTTPException) as error:
                failures.append(f"{name} after {time.monotonic() - began:.1f} s: {error!r}")
            else:
                if seen not in versions[name]:
                    versions[name].append(seen)
    print(json.dumps({"asked": asked, "versions": versions, "failures": failures}))


main()
