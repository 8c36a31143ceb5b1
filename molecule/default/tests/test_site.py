"""The thin thread: page, API, stream and bets, each through Nginx."""

import asyncio
import json
import re
import ssl
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession
from testinfra.host import Host

from e2e.site.machine import ROOT, Machine

pytestmark = pytest.mark.units("nginx", "tap-trading-*")
#: Where Nginx brings bets.
BETS = "/run/tap-trading-bets.sock"
SERVICES = {"api": 8080, "ws": 8081, "price": 8090, "resolver": 8091}
LEDGER = ROOT / "app/src/tap_trading/ledger"
#: A result is there so long after its column at the latest, in s.
RESULT_S = 2
VERSION = re.compile(r"v\d+\.\d+\.\d+-\d+\+[0-9a-f]{8}(\.dirty\.[0-9a-f]{8})?")


def test_the_plans_own_commands_work(host: Host) -> None:
    for command in (
        "curl --fail --silent --show-error http://localhost/api/healthz",
        "curl --fail --silent --show-error http://localhost:8080/healthz",
        "redis-cli ping",
        "sqlite3 :memory: 'SELECT 1;'",
        "systemctl start tap-trading-api",
    ):
        host.check_output(command)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_says_how_it_is_and_which_build_it_is(site: Any, service: str) -> None:
    base = f"http://127.0.0.1:{SERVICES[service]}"
    health = site.get(f"{base}/healthz")
    assert health.status == 200
    assert health.json["status"] == "ok"
    assert health.json["component"] == service
    version = site.get(f"{base}/version").json
    assert set(version) == {"version", "build_time", "git_commit", "python_version"}
    assert VERSION.fullmatch(version["version"])
    assert version["git_commit"] in version["version"]
    metrics = site.get(f"{base}/metrics")
    assert metrics.status == 200
    assert "python_info" in metrics.text


def test_all_services_are_the_live_release(site: Any, host: Host) -> None:
    live = host.check_output("basename $(readlink /opt/app/current)")
    answers = {site.get(f"http://127.0.0.1:{p}/version").json["version"] for p in SERVICES.values()}
    assert answers == {live}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_api_reads_and_writes_sqlite_and_redis(site: Any, scheme: str) -> None:
    site.wait_until_open()
    health = site.get(f"{scheme}://localhost/api/healthz")
    assert health.status == 200
    assert health.json["checks"] == {
        "sqlite": "ok",  # a real write
        "redis": "ok",
        "price": "open",
        "revocations": "ok",
        "disk": "ok",
        "schema": f"version {len(list((LEDGER / 'schema').glob('*.sql')))}",
    }


def test_metrics_stay_on_the_machine(site: Any) -> None:
    assert site.get("http://localhost/metrics").status == 404
    assert site.get("http://localhost/api/metrics").status == 404


def test_the_page_is_served_with_its_headers(site: Any) -> None:
    page = site.get("http://localhost/")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff"
    [script] = re.findall(r'<script type="module" src="([^"]+)"', page.text)
    asset = site.get(f"http://localhost/{script.lstrip('/')}")
    assert asset.status == 200
    assert "immutable" in asset.headers["cache-control"]


def test_tls_is_modern_and_promises_to_stay(site: Any, machine: Machine) -> None:
    assert site.get("https://localhost/").headers["strict-transport-security"] == "max-age=31536000"
    assert "strict-transport-security" not in site.get("http://localhost/").headers
    where = urlsplit(machine.https)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_3

    async def protocol() -> str:
        _, writer = await asyncio.open_connection(where.hostname, where.port, ssl=context)
        seen = writer.get_extra_info("ssl_object").version()
        writer.close()
        await writer.wait_closed()
        return str(seen)

    assert asyncio.run(protocol()) == "TLSv1.3"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_stream_greets_and_brings_a_price_within_2_seconds(
    stream: Any, machine: Machine, site: Any, scheme: str
) -> None:
    site.wait_until_open()
    began = time.monotonic()
    hello, price = await stream.messages("hello", "price", base=getattr(machine, scheme))
    assert time.monotonic() - began < 2
    assert hello["type"] == "hello"
    assert hello["state"] == "open"
    assert hello["bars"]
    assert hello["grid"]["cells"]
    assert price["low"] <= price["price"] <= price["high"]
    assert abs(price["t"] - time.time() * 1000) < 2000


async def test_the_stream_echoes_and_answers_pings(machine: Machine) -> None:
    async with ClientSession() as session, session.ws_connect(f"{machine.http}/ws") as socket:
        await socket.send_json({"type": "echo", "words": "hello"})
        await socket.send_json({"type": "ping"})
        seen = {}
        async with asyncio.timeout(3):
            while {"echo", "pong"} - set(seen):
                message = await socket.receive_json()
                seen[message["type"]] = message
    assert seen["echo"] == {"type": "echo", "words": "hello"}
    assert seen["pong"]["server_time"]


def test_a_bet_is_taken_and_is_in_the_database(place_bet: Any, host: Host) -> None:
    key = str(uuid.uuid4())
    answer = place_bet(key=key, amount=1000)
    assert answer.status == 202
    assert answer.headers["content-type"].startswith("application/json")
    bet = answer.json
    assert bet["status"] == "accepted"
    assert bet["amount"] == 1000
    assert bet["balance"] >= 0
    row = host.check_output(
        "sqlite3 -readonly -json /data/bets.db %s",
        f"SELECT cell_id, amount, status FROM bets WHERE id = '{bet['bet_id']}'",
    )
    [found] = json.loads(row)
    # Its rate may have been fixed already.
    assert found.pop("status") in ("pending", "confirmed")
    assert found == {"cell_id": bet["cell_id"], "amount": 1000}


def test_a_bet_gets_its_rate_and_its_result_with_evidence(
    site: Any, host: Host, measured: Callable[[str], None]
) -> None:
    site.wait_until_open()
    cell = site.even_cell()
    placed = site.bet(cell.cell_id, str(uuid.uuid4()), 1000)
    assert placed.status == 202, placed.text
    bet_id = placed.json["bet_id"]
    confirmed = site.wait_for_status(bet_id, "confirmed", until=time.time() + 5)
    rate = confirmed["reward_rate"]
    assert re.fullmatch(r"\d+\.\d{4}", rate)
    assert (confirmed["payout_amount"], confirmed["resolved_at"]) == (None, None)

    bet = site.wait_for_status(bet_id, "won", "lost", "void", until=cell.end + RESULT_S + 1)
    late = datetime.fromisoformat(bet["resolved_at"]).timestamp() - cell.end
    measured(f"a result {late * 1000:.0f} ms after its column: {bet['status']} at {rate}")
    assert 0 <= late <= RESULT_S
    # Nothing was out, so nothing is void.
    assert bet["status"] in ("won", "lost"), bet
    assert bet["reward_rate"] == rate
    bps = int(rate.replace(".", ""))
    assert bet["payout_amount"] == (1000 * bps // 10_000 if bet["status"] == "won" else 0)

    evidence = bet["evidence"]
    assert evidence["void_reason"] is None
    assert evidence["rate"]["bar"] < cell.start * 1000
    assert all(cell.start * 1000 <= bar["t"] < cell.end * 1000 for bar in evidence["bars"])
    assert len(evidence["bars"]) == evidence["result"]["bars"] > 0
    touched = any(bar["low"] <= cell.high and bar["high"] >= cell.low for bar in evidence["bars"])
    assert touched is (bet["status"] == "won")
    said = host.check_output(f"tap verify {bet_id}")
    assert said.startswith(f"{bet_id} is {bet['status']}: ")
    assert "WRONG" not in said
    assert host.check_output("tap audit").startswith("/data/bets.db is clean: ")


def test_without_a_session_nobody_bets(site: Any) -> None:
    answer = site.post("/api/bets", {}, "--header 'Idempotency-Key: k'")
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")


def test_bets_go_through_kept_connections(place_bet: Any, host: Host) -> None:
    def opened() -> int:
        found = host.check_output("ss --no-header --unix state established src %s", BETS)
        return len(found.splitlines())

    assert oct(host.file(BETS).mode) == "0o660"
    assert host.file(BETS).group == "www-data"
    for _ in range(5):
        assert place_bet().status == 202
    assert opened() >= 1


def test_a_bet_asked_twice_is_placed_once(place_bet: Any, site: Any) -> None:
    key = str(uuid.uuid4())
    first = place_bet(key=key)
    again = site.bet(first.json["cell_id"], key)
    assert (again.status, again.json) == (202, first.json)
    other = site.bet(first.json["cell_id"], str(uuid.uuid4()))
    assert (other.status, other.json["code"]) == (409, "duplicate_cell")


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        (["--data-binary '{'", "--header 'Idempotency-Key: k'"], 400, "malformed"),
        (["--data-binary '{}'"], 400, "missing_idempotency_key"),
        (
            ["--data-binary \"$(head -c 20000 /dev/zero | tr '\\0' x)\"", "--header 'Expect:'"],
            413,
            "payload_too_large",
        ),
        (["--request DELETE"], 405, "method_not_allowed"),
        (["--request STEAL"], 405, "method_not_allowed"),
        (["--request-target \"$(printf '/api/\\377')\""], 400, "malformed"),
    ],
    ids=["not JSON", "no key", "too large", "wrong method", "no method", "unreadable address"],
)
def test_bad_input_gets_one_clear_problem(
    site: Any, options: list[str], status: int, code: str
) -> None:
    answer = site.get("http://localhost/api/bets", *site.bearer, *options)
    assert answer.status == status
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json["code"] == code
    assert answer.json["request_id"] == answer.headers["x-request-id"]


def test_an_unknown_route_is_a_problem_too(site: Any) -> None:
    answer = site.get("http://localhost/api/nothing")
    assert (answer.status, answer.json["code"]) == (404, "not_found")


def test_one_request_id_leads_from_nginx_into_the_services_journal(site: Any, host: Host) -> None:
    answer = site.get("http://localhost/api/version")
    request_id = answer.headers["x-request-id"]
    time.sleep(1.2)  # Nginx writes its log every second
    assert host.run("grep -q %s /var/log/nginx/access.log", request_id).rc == 0
    lines = host.check_output(
        "journalctl --output cat --identifier tap-trading-api --grep %s", request_id
    )
    line = json.loads(lines.splitlines()[-1])
    assert line["component"] == "api"
    assert line["request_id"] == request_id
    assert line["level"] == "info"


def test_more_than_100_requests_a_minute_are_refused_with_429(machine: Machine) -> None:
    source = f"127.77.{int(time.time()) % 250}.{int(time.time()) // 250 % 250 + 1}"
    # One loop asks and shows every answer: a place frees every 600 ms, so a refusal cannot be
    # asked for afterwards.
    answers = machine.run(
        f"for i in $(seq 40); do curl --silent --interface {source}"
        " --write-out ' %{http_code}\\n' http://127.0.0.1/api/version; done"
    ).splitlines()
    bodies_by_code: dict[str, list[str]] = {}
    for answer in answers:
        body, _, code = answer.rpartition(" ")
        bodies_by_code.setdefault(code, []).append(body)
    assert set(bodies_by_code) == {"200", "429"}
    # The burst, and one more for each 600 ms that a busy machine may take over it.
    assert 20 <= len(bodies_by_code["200"]) <= 30
    assert {json.loads(body)["code"] for body in bodies_by_code["429"]} == {"rate_limited"}
