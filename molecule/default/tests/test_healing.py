"""What breaks heals by itself: killed processes, an absent Redis or API, a full disk."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

from e2e.site.machine import Machine

TIMES = 10
HEALED_WITHIN_S = 10
KILLED = {
    "tap-trading-api": "http://127.0.0.1:8080/healthz",
    "tap-trading-ws": "http://127.0.0.1:8081/healthz",
    "tap-trading-price": "http://127.0.0.1:8090/healthz",
    # Well again means: everybody who needs it has found it again.
    "redis-server": "http://127.0.0.1:8080/healthz",
    "nginx": "http://127.0.0.1/",
}
API = "tap-trading-api.service tap-trading-api.socket"


@pytest.mark.units(*KILLED)
@pytest.mark.parametrize("unit", KILLED)
def test_a_kill_is_healed_within_10_seconds_ten_times_in_a_row(
    unit: str, probe: Callable[..., Any], site: Any, measured: Callable[[str], None]
) -> None:
    seconds = probe("heal", unit, KILLED[unit], TIMES, timeout=400)
    shown = ", ".join("never" if took is None else f"{took:.1f}" for took in seconds)
    measured(f"healed after a kill, {unit}: {shown} s")
    assert len(seconds) == TIMES
    assert all(took is not None and took <= HEALED_WITHIN_S for took in seconds), shown
    site.wait_until_healthy()


@pytest.mark.units("tap-trading-api")
def test_a_restart_refuses_no_request(
    probe: Callable[..., Any], place_bet: Any, site: Any, measured: Callable[[str], None]
) -> None:
    key = str(uuid.uuid4())
    bet = place_bet(key=key)
    assert bet.status == 202
    seen = probe("load", bet.json["cell_id"], key, site.token, 3, timeout=120)
    measured(f"requests during three restarts of the API: {seen['statuses']}")
    assert seen["failures"] == []
    assert set(seen["statuses"]) == {"GET 200", "POST 202"}
    assert seen["statuses"]["GET 200"] > 100
    # The same bet each time, placed once.
    assert seen["bets"] == [bet.json["bet_id"]]


@pytest.fixture
def without_api(machine: Machine, site: Any) -> Iterator[None]:
    assert site.token  # nobody signs in later
    machine.run(f"systemctl stop {API}")
    yield
    machine.run(f"systemctl start {API}")
    site.wait_until_healthy()


@pytest.mark.units("nginx", "tap-trading-api")
@pytest.mark.usefixtures("without_api")
def test_nginx_answers_sanely_while_there_is_no_api(site: Any) -> None:
    answer = site.bet("btc-usd:0:5:0:1", "any")
    assert answer.status == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert answer.json["code"] == "unavailable"
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert site.get("http://localhost/").status == 200


@pytest.fixture
def without_redis(machine: Machine, site: Any) -> Iterator[None]:
    machine.run("systemctl stop redis-server")
    yield
    machine.run("systemctl start redis-server")
    site.wait_until_healthy()


@pytest.mark.units("redis-server", "tap-trading-api", "tap-trading-ws", "tap-trading-price")
def test_services_outlive_redis_and_say_that_it_is_missing(
    site: Any, machine: Machine, systemd: Callable[..., dict[str, str]],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    def processes() -> list[dict[str, str]]:
        return [
            systemd(f"tap-trading-{name}.service", "ActiveState", "MainPID", "NRestarts")
            for name in ("api", "ws", "price")
        ]

    before = processes()
    request.getfixturevalue("without_redis")
    health = site.get("http://127.0.0.1:8080/healthz")
    assert health.status == 503
    assert health.json["status"] == "unavailable"
    assert health.json["checks"]["sqlite"] == "ok"
    assert health.json["checks"]["redis"] != "ok"
    time.sleep(3)
    assert processes() == before
    machine.run("systemctl start redis-server")
    site.wait_until_healthy(10)
    for port in (8081, 8090):
        machine.run(
            f"for i in $(seq 50); do curl -sf http://127.0.0.1:{port}/healthz && exit 0; sleep 0.2;"
            " done; exit 1"
        )
    assert processes() == before


@pytest.fixture
def small_data(machine: Machine, site: Any) -> Iterator[str]:
    """/data as a small file system of its own; all that is in it moves there and back."""
    aside = "/var/tmp/tap-test-data"
    units = f"{API} tap-trading-backup.timer"
    machine.run(
        f"set -e; rm -rf {aside}; systemctl stop {units}; cp -a /data {aside};"
        f" size=$(du -sm {aside} | cut -f1); mount -t tmpfs -o size=$((size + 12))M tmpfs /data;"
        f" cp -a {aside}/. /data; systemctl start {units}"
    )
    site.wait_until_healthy()
    yield "/data"
    machine.run(
        f"set -e; systemctl stop {units}; rm -rf /data/filling* {aside}; cp -a /data {aside};"
        f" umount /data; find /data -mindepth 1 -delete; cp -a {aside}/. /data; rm -rf {aside};"
        f" systemctl start {units}"
    )
    site.wait_until_healthy()


@pytest.mark.units("tap-trading-api")
def test_a_full_disk_refuses_bets_loses_none_and_heals(
    small_data: str, machine: Machine, host: Host, place_bet: Any, site: Any,
    measured: Callable[[str], None],
) -> None:  # fmt: skip
    accepted = [place_bet().json["bet_id"] for _ in range(3)]
    machine.attempt(f"dd if=/dev/zero of={small_data}/filling bs=64K status=none")
    machine.attempt(f"dd if=/dev/zero of={small_data}/filling2 bs=1 status=none count=65536")
    refused = []
    for _ in range(6):
        answer = place_bet()
        if answer.status == 202:  # there was room left in the log that is there already
            accepted.append(answer.json["bet_id"])
        else:
            refused.append(answer)
    assert refused
    for answer in refused:
        assert answer.status == 503
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert answer.headers["retry-after"] == "5"
        assert answer.json["code"] == "storage_unavailable"
    health = site.get("http://127.0.0.1:8080/healthz")
    measured(f"health while the disk is full: {health.status} {health.json['checks']}")
    machine.run(f"rm -f {small_data}/filling {small_data}/filling2")
    after = place_bet()
    assert after.status == 202
    accepted.append(after.json["bet_id"])
    rows = json.loads(
        host.check_output(
            "sqlite3 -readonly -json /data/bets.db 'SELECT id FROM bets ORDER BY placed_at'"
        )
    )
    assert set(accepted) <= {row["id"] for row in rows}
    assert host.check_output("sqlite3 -readonly /data/bets.db 'PRAGMA integrity_check'") == "ok"
    site.wait_until_healthy()
