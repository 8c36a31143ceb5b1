"""The questions that the machine asks of services, with nothing but Python's own library."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from tap_release import probe

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def greets(request: web.Request) -> web.StreamResponse:
    """As the WebSocket service does it: hello, prices, and what was said comes back."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_json({"type": "hello", "bars": ["x" * 70_000]})
    await socket.ping()
    said = await socket.receive_str()
    for _ in range(3):
        await socket.send_json({"type": "price", "padding": "x" * 300})
    await socket.send_str(said)
    return socket


async def is_rude(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_json({"type": "price"})
    return socket


async def closes(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_json({"type": "hello"})
    await socket.close()
    return socket


async def says_other_things(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_json({"type": "hello"})
    for _ in range(probe._MOST_FRAMES + 1):
        await socket.send_json({"type": "price"})
    return socket


async def refuses(_request: web.Request) -> web.StreamResponse:
    return web.json_response({"code": "overloaded"}, status=503)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Handler], probe.Where]]:
    """`serve(handler)`: where a server answers `/ws` so, and `/version` and `/list` with JSON."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runners: list[web.AppRunner] = []

    async def version(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": "v1"}, status=503)

    async def listed(_request: web.Request) -> web.StreamResponse:
        return web.json_response([])

    async def start(handler: Handler, path: Path) -> None:
        app = web.Application()
        for name, answer in (("/ws", handler), ("/version", version), ("/list", listed)):
            app.router.add_get(name, answer)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.UnixSite(runners[-1], path).start()

    async def stop() -> None:
        for runner in runners:
            await runner.cleanup()

    def serving(handler: Handler) -> probe.Where:
        path = tmp_path / f"{len(runners)}.sock"
        asyncio.run_coroutine_threadsafe(start(handler, path), loop).result(10)
        return probe.on_socket(path)

    yield serving
    asyncio.run_coroutine_threadsafe(stop(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_an_answer_is_an_object_with_its_status(serve: Callable[[Handler], probe.Where]) -> None:
    where = serve(greets)
    assert probe.ask(where, "/version") == (503, {"version": "v1"})
    with pytest.raises(probe.UNANSWERED, match=r"\[\] is not an object"):
        probe.ask(where, "/list")
    with pytest.raises(probe.UNANSWERED):
        probe.ask(where, "/nothing")  # no JSON


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    for where in (probe.on_socket(tmp_path / "none.sock"), probe.on_port(1)):
        with pytest.raises(probe.UNANSWERED):
            probe.ask(where, "/version")


def test_a_websocket_that_greets_and_echoes_is_well(
    serve: Callable[[Handler], probe.Where],
) -> None:
    probe.echo(serve(greets))


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (is_rude, "it greets with price"),
        (closes, "it closes the WebSocket"),
        (says_other_things, "gives nothing back"),
        (refuses, "its WebSocket says 503"),
    ],
)
def test_any_other_one_is_not(
    serve: Callable[[Handler], probe.Where], handler: Handler, says: str
) -> None:
    with pytest.raises(probe.UNANSWERED, match=says):
        probe.echo(serve(handler))
