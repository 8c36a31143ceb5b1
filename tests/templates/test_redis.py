"""redis.conf and the unit's drop-in: the plan's lines, and what an override changes."""

from __future__ import annotations

import configparser
from collections import defaultdict
from typing import Any

import pytest

from templates.render import accepts, render


def redis_conf(**overrides: Any) -> dict[str, list[str]]:
    """Every directive with its values, as Redis reads them."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in render("redis", "redis.conf.j2", **overrides).splitlines():
        if line and not line.startswith("#"):
            name, value = line.split(" ", 1)
            found[name].append(value)
    return dict(found)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("maxmemory", ["512mb"]),
        ("maxmemory-policy", ["allkeys-lru"]),
        ("appendonly", ["yes"]),
        ("appendfsync", ["everysec"]),
        ("save", ["900 1", "300 10", "60 10000"]),
        ("port", ["6379"]),
        ("dir", ["/var/lib/redis"]),
    ],
)
def test_the_plans_lines(name: str, values: list[str]) -> None:
    assert redis_conf()[name] == values


def test_only_this_machine_can_reach_it_and_a_machine_without_ipv6_starts() -> None:
    conf = redis_conf()
    assert conf["bind"] == ["127.0.0.1 -::1"]
    assert conf["protected-mode"] == ["yes"]
    assert conf["unixsocket"] == ["/run/redis/redis-server.sock"]
    assert conf["unixsocketperm"] == ["770"]
    assert "requirepass" not in conf


def test_systemd_and_the_journal_have_it() -> None:
    conf = redis_conf()
    assert conf["supervised"] == ["systemd"]
    assert conf["daemonize"] == ["no"]
    assert conf["logfile"] == ['""']


def test_every_directive_but_save_stands_once() -> None:
    assert [name for name, values in redis_conf().items() if len(values) > 1] == ["save"]


def test_overrides_reach_the_file() -> None:
    conf = redis_conf(
        redis_maxmemory="64mb",
        redis_maxmemory_policy="noeviction",
        redis_appendonly=False,
        redis_appendfsync="always",
        redis_save=["5 1"],
        redis_maxclients=7,
        redis_loglevel="warning",
    )
    assert conf["maxmemory"] == ["64mb"]
    assert conf["maxmemory-policy"] == ["noeviction"]
    assert conf["appendonly"] == ["no"]
    assert conf["appendfsync"] == ["always"]
    assert conf["save"] == ["5 1"]
    assert conf["maxclients"] == ["7"]
    assert conf["loglevel"] == ["warning"]


def test_no_snapshot_rules_switch_snapshots_off() -> None:
    assert redis_conf(redis_save=[])["save"] == ['""']


def test_the_unit_never_gives_up() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(render("redis", "redis-server.service.conf.j2"))
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["RestartSec"] == "1"
    assert unit["Service"]["ReadWritePaths"] == "/var/lib/redis"


@pytest.mark.parametrize("limit", ["512mb", "2gb", "1048576", "1G", "64m"])
def test_a_memory_limit_is_accepted(limit: str) -> None:
    assert accepts("redis", "Refuse a wrong memory limit", redis_maxmemory=limit)


@pytest.mark.parametrize("limit", ["", "0", "512 mb", "512xb", "-1", "mb"])
def test_a_wrong_memory_limit_is_refused(limit: str) -> None:
    assert not accepts("redis", "Refuse a wrong memory limit", redis_maxmemory=limit)


@pytest.mark.parametrize("rule", ["900", "900 1 1", "often", "0 1", ""])
def test_a_wrong_snapshot_rule_is_refused(rule: str) -> None:
    assert not accepts("redis", "Refuse a wrong snapshot rule", redis_save=["900 1", rule])
