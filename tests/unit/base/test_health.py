"""Health reports."""

import asyncio

from tap_trading.base.health import Health


async def _ok() -> str:
    return "ok"


async def _broken() -> str:
    raise RuntimeError("no such luck")


async def test_all_well() -> None:
    health = Health("api")
    health.add("sqlite", _ok)
    report = await health.report()
    assert report.healthy
    assert report.as_json() == {"status": "ok", "component": "api", "checks": {"sqlite": "ok"}}


async def test_a_vital_check_that_fails_makes_the_service_unavailable() -> None:
    health = Health("api")
    health.add("sqlite", _broken)
    health.add("redis", _ok)
    report = await health.report()
    assert not report.healthy
    assert report.checks == {"sqlite": "no such luck", "redis": "ok"}


async def test_another_check_only_tells() -> None:
    health = Health("api")
    health.add("price", _broken, vital=False)
    report = await health.report()
    assert report.healthy
    assert report.checks == {"price": "no such luck"}


async def test_a_burst_of_probes_costs_one_round() -> None:
    rounds = 0

    async def counted() -> str:
        nonlocal rounds
        rounds += 1
        await asyncio.sleep(0.01)
        return "ok"

    health = Health("api")
    health.add("counted", counted)
    await asyncio.gather(*(health.report() for _ in range(20)))
    assert rounds == 1
