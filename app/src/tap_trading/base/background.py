"""Tasks that must run for as long as the service does."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

from tap_trading.base import logger


async def end(task: asyncio.Task[None]) -> None:
    """Cancel `task` and wait until it is over.

    A cancellation can get lost inside a library (redis-py loses one that comes while it
    connects), so it is repeated.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.25)


@asynccontextmanager
async def running(
    work: Coroutine[object, object, None], name: str, failed: asyncio.Future[BaseException]
) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` inside the block and cancel it at its end.

    If `work` ends by itself with an exception, `failed` gets it, so that the process can
    stop with one sentence instead of living on without a limb.
    """
    task = asyncio.create_task(work, name=name)

    def ended(done: asyncio.Task[None]) -> None:
        if done.cancelled() or failed.done():
            return
        error = done.exception() or RuntimeError(f"{name} ended")
        logger.get().error("background task ended", task=name, error=str(error))
        failed.set_result(error)

    task.add_done_callback(ended)
    try:
        yield task
    finally:
        await end(task)
