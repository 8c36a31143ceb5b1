"""Ask the API without a pause while it is restarted; say how every request ended, as JSON.

load CELL KEY TOKEN RESTARTS    KEY belongs to a bet on CELL that TOKEN's wallet has placed
"""

import collections
import http.client
import json
import subprocess
import sys
import threading
import time

STAKE = 500
PAUSE_S = {"GET": 0.02, "POST": 0.06}  # a wallet may send 300 requests a minute
BETWEEN_RESTARTS_S = 1.0


class Load:
    def __init__(self, cell: str, key: str, token: str) -> None:
        self.body = json.dumps({"cell_id": cell, "amount": STAKE})
        self.headers = {"Idempotency-Key": key, "Authorization": f"Bearer {token}"}
        self.statuses: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self.bets: set[str] = set()
        self.ended = threading.Event()

    def ask(self, method: str, path: str) -> None:
        while not self.ended.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=15)
            try:
                if method == "POST":
                    connection.request(method, path, self.body, self.headers)
                else:
                    connection.request(method, path)
                answer = connection.getresponse()
                content = answer.read()
                self.statuses[f"{method} {answer.status}"] += 1
                if answer.status == 202:
                    self.bets.add(json.loads(content)["bet_id"])
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{method} {type(error).__name__}: {error}")
            finally:
                connection.close()
            time.sleep(PAUSE_S[method])


def main() -> None:
    load = Load(*sys.argv[1:4])
    work = [("GET", "/version"), ("GET", "/version"), ("POST", "/api/bets")]
    threads = [threading.Thread(target=load.ask, args=job) for job in work]
    for thread in threads:
        thread.start()
    for _ in range(int(sys.argv[4])):
        time.sleep(BETWEEN_RESTARTS_S)
        subprocess.run(["systemctl", "restart", "tap-trading-api"], check=True)
    time.sleep(BETWEEN_RESTARTS_S)
    load.ended.set()
    for thread in threads:
        thread.join()
    shown = {"statuses": load.statuses, "failures": load.failures, "bets": sorted(load.bets)}
    print(json.dumps(shown))


main()
