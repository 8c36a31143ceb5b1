"""What several services wire alike: Redis with its health check, the watched price, the grid."""

from contextlib import AsyncExitStack

from tap_trading.base.config import Settings
from tap_trading.base.health import Health
from tap_trading.base.redis import Redis, connect, probe, wait_until_ready
from tap_trading.game.grid import Geometry
from tap_trading.market.watch import PriceWatch


def geometry(settings: Settings) -> Geometry:
    """The grid's geometry as configured."""
    return Geometry(settings.grid_width_s, settings.grid_columns, settings.grid_rows)


async def open_redis(settings: Settings, health: Health, stack: AsyncExitStack) -> Redis:
    """A client of a Redis that answers, closed with `stack` and checked by `health`.

    Raises StartupError when Redis does not answer in time.
    """
    redis = connect(settings.redis_addr)
    stack.push_async_callback(redis.aclose)
    await wait_until_ready(redis, settings.redis_addr, settings.redis_wait_s)

    async def check() -> str:
        return await probe(redis, health.component)

    health.add("redis", check)
    return redis


def tell_market_state(watch: PriceWatch, health: Health) -> None:
    """Show the market's state among the checks; a service is well without a price, but to take
    over it has to hear one.
    """

    async def check() -> str:
        status = watch.status()
        return f"{status.state}: {status.reason}" if status.reason else status.state.value

    health.add("price", check, vital=False)
    health.add_readiness("price_age", watch.check_age)
