"""What breaks heals by itself: killed processes, an absent Redis or API, a full disk."""

import asyncio
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
    "tap-trading-resolver": "http://127.0.0.1:8091/healthz",
    # Well again means: everybody who needs it has found it again.
    "redis-server": "http://127.0.0.1:8080/healthz",
    "nginx": "http://127.0.0.1/",
}
API = "tap-trading-api.service tap-trading-api.socket"
#: Whoever has a file in /data open, in the order in which they may stop.
WRITERS = " ".join(
    f"tap-trading-{name}.{kind}"
    for name in ("api", "resolver", "price")
    for kind in ("service", "socket")
)
#: A result is there so long after its column at the latest, in s, whatever was killed meanwhile.
LATE_S = 15


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


def checked(host: Host, bet_id: str) -> None:
    """Rate and result follow from what is stored, and the books are whole."""
    said = host.check_output(f"tap verify {bet_id}")
    assert "WRONG" not in said
    assert host.check_output("tap audit").startswith("/data/bets.db is clean: ")


@pytest.mark.units("tap-trading-resolver")
def test_a_bet_gets_its_result_although_the_resolver_is_killed(
    host: Host, site: Any, probe: Callable[..., Any], measured: Callable[[str], None]
) -> None:
    unit = "tap-trading-resolver"
    site.wait_until_open()
    cell = site.even_cell()
    bet_id = site.bet(cell.cell_id, str(uuid.uuid4())).json["bet_id"]
    kills = 0
    while time.time() < cell.end:  # before its rate, after it, and beside its result
        probe("heal", unit, KILLED[unit], 1)
        kills += 1
    bet = site.wait_for_status(bet_id, "won", "lost", "void", until=cell.end + LATE_S)
    measured(f"the resolver, killed {kills} times meanwhile, still decided: {bet['status']}")
    # Prices were there all the time: no kill of the resolver makes a bet void.
    assert bet["status"] in ("won", "lost"), bet
    checked(host, bet_id)
    site.wait_until_healthy()


@pytest.mark.units("tap-trading-price", "tap-trading-resolver")
def test_a_bet_on_a_column_without_prices_is_void_and_its_stake_is_back(
    machine: Machine, host: Host, site: Any
) -> None:
    site.wait_until_open()
    cell = site.even_cell()
    bet_id = site.bet(cell.cell_id, str(uuid.uuid4())).json["bet_id"]
    site.wait_for_status(bet_id, "confirmed", until=time.time() + 5)
    time.sleep(max(cell.start + cell.width / 2 - time.time(), 0))
    # systemd waits a second before the next start, which is longer than a gap may be.
    machine.run("systemctl kill --signal=KILL tap-trading-price")
    bet = site.wait_for_status(bet_id, "won", "lost", "void", until=cell.end + LATE_S)
    assert bet["status"] == "void", bet
    assert bet["evidence"]["void_reason"] == "feed_outage"
    assert bet["evidence"]["result"]["longest_gap_ms"] > 1000
    entries = site.get("http://127.0.0.1/api/ledger", *site.bearer).json["items"]
    refunds = [e["amount"] for e in entries if (e["ref_type"], e["ref_id"]) == ("REFUND", bet_id)]
    assert refunds == [500]
    checked(host, bet_id)
    site.wait_until_open()


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
            for name in ("api", "ws", "price", "resolver")
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
    for port in (8081, 8090, 8091):
        machine.run(
            f"for i in $(seq 50); do curl -sf http://127.0.0.1:{port}/healthz && exit 0; sleep 0.2;"
            " done; exit 1"
        )
    assert processes() == before


@pytest.fixture
def small_data(machine: Machine, site: Any) -> Iterator[str]:
    """/data as a small file system of its own; all that is in it moves there and back."""
    aside = "/var/tmp/tap-test-data"
    units = f"{WRITERS} tap-trading-backup.timer"
    machine.run(
        f"set -e; rm -rf {aside}; systemctl stop {units}; cp -a /data {aside};"
        f" size=$(du -sm {aside} | cut -f1); mount -t tmpfs -o size=$((size * 6 / 5 + 32))M tmpfs /data;"
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


@pytest.mark.units("tap-trading-api", "tap-trading-price", "tap-trading-resolver")
def test_a_full_disk_refuses_bets_loses_none_and_heals(
    small_data: str, machine: Machine, host: Host, place_bet: Any, site: Any, stream: Any,
    measured: Callable[[str], None],
) -> None:  # fmt: skip
    accepted = [place_bet().json["bet_id"] for _ in range(3)]
    free = asyncio.run(stream.open_cells(30))
    machine.attempt(f"dd if=/dev/zero of={small_data}/filling bs=64K status=none")
    machine.attempt(f"dd if=/dev/zero of={small_data}/filling2 bs=1 status=none count=65536")
    refused, tried = [], set()
    # Bars cannot be stored either: the market closes 10 s after the last one at the latest.
    end = time.monotonic() + 25
    while len(refused) < 6:
        assert time.monotonic() < end, "there is room on the full disk"
        answer = site.bet(free[0], str(uuid.uuid4()))
        # There was room left, a bet of before stands there, or the price has left it behind.
        if answer.status in (202, 409, 422):
            if answer.status == 202:
                accepted.append(answer.json["bet_id"])
            tried.add(free.pop(0))
            if not free:
                soon = asyncio.run(stream.open_cells(10))
                free = [cell for cell in soon if cell not in tried]
        else:
            refused.append(answer)
        time.sleep(0.5)
    for answer in refused:
        assert answer.status == 503
        assert answer.headers["content-type"].startswith("application/problem+json")
        # Somebody has to make room; where even that is too late, the books may take it next time.
        assert answer.headers["retry-after"] in ("5", "30")
        assert answer.json["code"] in ("storage_unavailable", "feed_stale")
    health = site.get("http://127.0.0.1:8080/healthz")
    measured(f"health while the disk is full: {health.status} {health.json['checks']}")
    machine.run(f"rm -f {small_data}/filling {small_data}/filling2")
    end = time.monotonic() + 5  # the API looks at the disk once a second
    while (after := place_bet()).status == 503 and time.monotonic() < end:
        time.sleep(0.3)
    assert after.status == 202
    accepted.append(after.json["bet_id"])
    rows = json.loads(
        host.check_output(
            "sqlite3 -readonly -json /data/bets.db 'SELECT id FROM bets ORDER BY placed_at'"
        )
    )
    assert set(accepted) <= {row["id"] for row in rows}
    for database in ("bets", "prices"):
        check = f"sqlite3 -readonly /data/{database}.db 'PRAGMA integrity_check'"
        assert host.check_output(check) == "ok"
    assert host.check_output("tap audit").startswith("/data/bets.db is clean: ")
    site.wait_until_healthy()
