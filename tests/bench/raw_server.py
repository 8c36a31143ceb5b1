"""The baselines, on aiohttp and uvloop: a route that reads and decodes a body and answers
as many bytes as the API does, and WebSockets that all get a frame ten times a second. No
access log, no database, nothing else.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator

import orjson
import uvloop
from aiohttp import WSMsgType, web

ANSWER = orjson.dumps(
    {
        "status": "accepted",
        "bet_id": "bet_019ab3c2d4e50123456789abcdef",
        "cell_id": "btc-usd:1764000000:5:8421000:8422000",
        "amount": 100,
        "balance": None,
        "placed_at": "2026-02-03T12:00:00.000Z",
    }
)


async def answer(request: web.Request) -> web.Response:
    """Read, decode, answer."""
    orjson.loads(await request.read())
    return web.Response(body=ANSWER, status=202, content_type="application/json")


SOCKETS: set[web.WebSocketResponse] = set()


async def connect(request: web.Request) -> web.WebSocketResponse:
    """Keep a WebSocket until its client goes."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    SOCKETS.add(socket)
    async for _ in socket:
        pass
    SOCKETS.discard(socket)
    return socket


async def send_prices(_app: web.Application) -> AsyncIterator[None]:
    """The barest fan-out: one frame, encoded once, sent to each in turn."""

    async def run() -> None:
        while True:
            price = {"type": "price", "t": time.time_ns() // 10**6, "price": 1, "low": 1, "high": 1}
            frame = orjson.dumps(price)
            for socket in tuple(SOCKETS):
                if not socket.closed:
                    await socket.send_frame(frame, WSMsgType.TEXT)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(run())
    yield
    task.cancel()


def main() -> None:
    """Serve on the port given as the first word."""
    uvloop.install()
    app = web.Application()
    app.router.add_post("/api/bets", answer)
    app.router.add_get("/ws", connect)
    app.cleanup_ctx.append(send_prices)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


if __name__ == "__main__":
    main()
