"""Redis as the plan wants it, and what the price service publishes into it."""

import json
import re
import time
from typing import Any

import pytest
from testinfra.host import Host

from e2e.site.machine import Machine

pytestmark = pytest.mark.units("redis-server", "tap-trading-price")

PLAN = {
    "maxmemory": str(512 * 1024 * 1024),
    "maxmemory-policy": "allkeys-lru",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "900 1 300 10 60 10000",
    "bind": "127.0.0.1 -::1",
    "unixsocket": "/run/redis/redis-server.sock",
}


@pytest.mark.parametrize("name", PLAN)
def test_it_goes_by_the_plans_line(host: Host, name: str) -> None:
    answer = host.check_output("redis-cli config get %s", name).splitlines()
    assert answer == [name, PLAN[name]]


def test_ops_reach_it_without_a_word(host: Host) -> None:
    assert host.check_output("redis-cli ping") == "PONG"
    version = re.search(r"redis_version:(\d+)", host.check_output("redis-cli info server"))
    assert version
    assert int(version[1]) >= 7


def test_it_listens_on_loopback_only(host: Host) -> None:
    listening = {socket for socket in host.socket.get_listening_sockets() if ":6379" in socket}
    assert listening <= {"tcp://127.0.0.1:6379", "tcp://::1:6379"}
    assert "tcp://127.0.0.1:6379" in listening


def test_its_socket_is_for_the_app_and_not_for_everybody(host: Host) -> None:
    ping = "redis-cli -s /run/redis/redis-server.sock ping"
    assert host.check_output(f"setpriv --reuid=app --regid=app --init-groups {ping}") == "PONG"
    refused = host.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups {ping}")
    assert "Permission denied" in refused.stdout + refused.stderr


def test_prices_are_published(machine: Machine) -> None:
    heard = machine.attempt("timeout 2 redis-cli --csv subscribe prices:btc:usd").stdout
    messages = re.findall(r'^"message","prices:btc:usd","(.*)"$', heard, re.MULTILINE)
    assert len(messages) >= 10, heard


def test_offers_are_published_twice_a_second_and_the_latest_is_kept(
    machine: Machine, host: Host, site: Any
) -> None:
    site.wait_until_open()
    heard = machine.attempt("timeout 4 redis-cli --csv subscribe market:btc:usd").stdout
    assert 5 <= heard.count('"message","market:btc:usd",') <= 9
    offer = json.loads(host.check_output("redis-cli --raw get market:btc:usd"))
    assert offer["state"] == "open"
    assert offer["cells"]
    assert 0 < int(host.check_output("redis-cli ttl market:btc:usd")) <= 3600


def test_the_latest_price_is_kept_for_an_hour(host: Host) -> None:
    before = host.check_output("redis-cli get price:btc:usd")
    assert 0 < int(host.check_output("redis-cli ttl price:btc:usd")) <= 3600
    time.sleep(0.5)
    assert host.check_output("redis-cli get price:btc:usd") != before


def test_the_history_gets_one_member_a_second_with_time_and_sequence(host: Host) -> None:
    key = "prices:btc:usd:ts"
    before = int(host.check_output(f"redis-cli zcard {key}"))
    began = time.monotonic()
    time.sleep(3)
    added = int(host.check_output(f"redis-cli zcard {key}")) - before
    assert abs(added - (time.monotonic() - began)) <= 1.5
    member = host.check_output(f"redis-cli zrange {key} -1 -1")
    assert re.fullmatch(r"\d{13}:\d+:\d+\.\d\d", member), member


def test_it_survives_a_restart_with_its_data(host: Host, machine: Machine) -> None:
    machine.run("redis-cli set tap-test:kept yes EX 600")
    time.sleep(1.1)  # appendfsync everysec
    machine.run("systemctl kill -s KILL redis-server && sleep 2.5")
    machine.run(
        "for i in $(seq 50); do redis-cli ping 2>/dev/null | grep -q PONG && break; sleep 0.2; done"
    )
    assert host.check_output("redis-cli get tap-test:kept") == "yes"
    machine.run("redis-cli del tap-test:kept")
