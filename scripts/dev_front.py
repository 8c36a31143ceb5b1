"""The one origin of `make dev`, in the place that Nginx has on the machine.

It serves the page, built anew when a source of it changes, and passes /api/ and /ws on to
the services.
"""

import asyncio
import mimetypes
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import build_frontend
import yaml
from aiohttp import web

ROOT = Path(__file__).resolve().parents[1]

#: Takes a component, a message and a level.
Say = Callable[[str, str, str], None]

_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)


@asynccontextmanager
async def serving(
    listening: socket.socket, ports: Mapping[str, int], say: Say
) -> AsyncIterator[None]:
    """The page and the proxy, behind the one origin."""
    async with aiohttp.ClientSession(
        auto_decompress=False, timeout=aiohttp.ClientTimeout(total=30)
    ) as session:
        proxy = Proxy(session, ports)
        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/api/{path:.*}", proxy.api)
        app.router.add_get("/ws", proxy.stream, allow_head=False)
        app.router.add_get("/{path:.*}", Page(say).get)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.SockSite(runner, listening).start()
            yield
        finally:
            await runner.cleanup()


class Page:
    """The built page, held in memory, and built again when a source changed."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._sources: frozenset[tuple[str, int, int]] = frozenset()
        self._files: dict[str, bytes] = {}
        # The same policy as on the machine, so that what it forbids is noticed here.
        defaults = yaml.safe_load((ROOT / "roles/nginx/defaults/main.yml").read_text())
        self._headers = {
            "Content-Security-Policy": " ".join(defaults["nginx_content_security_policy"].split()),
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-cache",
        }

    async def get(self, request: web.Request) -> web.Response:
        """A file of the page; a path that is none is the page itself."""
        try:
            self._refresh()
        except build_frontend.BuildError as error:
            self._say("page", str(error), "error")
            return web.Response(status=500, text=f"The page cannot be built: {error}\n")
        name = request.path.lstrip("/")
        if name not in self._files:
            if name.startswith("assets/") or name == "metrics":
                return web.Response(status=404, text="404 Not Found\n")
            name = build_frontend.INDEX
        return web.Response(
            body=self._files[name],
            content_type=mimetypes.guess_type(name)[0] or "application/octet-stream",
            headers=self._headers,
        )

    def _refresh(self) -> None:
        sources = frozenset(
            (str(path), path.stat().st_mtime_ns, path.stat().st_size)
            for path in build_frontend.SOURCE.rglob("*")
            if path.is_file()
        )
        if sources == self._sources:
            return
        self._files = build_frontend.compile_page(build_frontend.SOURCE)
        if self._sources:
            self._say("page", "built anew", "info")
        self._sources = sources


class Proxy:
    """/api/ and /ws, passed on the way Nginx does it."""

    def __init__(self, session: aiohttp.ClientSession, ports: Mapping[str, int]) -> None:
        self._session = session
        self._ports = ports

    async def api(self, request: web.Request) -> web.StreamResponse:
        """One request to the API."""
        return await self._pass_on(request, "api")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """One WebSocket, or whatever else was asked of /ws."""
        down = web.WebSocketResponse(max_msg_size=0)
        if not down.can_prepare(request):
            return await self._pass_on(request, "ws")
        kept = ("Origin", "Cookie", "Authorization", "User-Agent")
        headers = {name: request.headers[name] for name in kept if name in request.headers}
        url = f"http://127.0.0.1:{self._ports['ws']}{request.raw_path}"
        try:
            up = await self._session.ws_connect(
                url, headers=headers | self._forwarded(request), max_msg_size=0
            )
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(status=error.status, text=f"{error.message}\n")
        except aiohttp.ClientError as error:
            return self._unreachable("ws", error)
        async with up:
            await down.prepare(request)
            pumps = [
                asyncio.create_task(_pump(up, down)),
                asyncio.create_task(_pump(down, up)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        return down

    async def _pass_on(self, request: web.Request, service: str) -> web.StreamResponse:
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in _HOP_BY_HOP and name.lower() not in ("host", "x-real-ip")
        ]
        url = f"http://127.0.0.1:{self._ports[service]}{request.raw_path}"
        try:
            async with self._session.request(
                request.method,
                aiohttp.client.URL(url, encoded=True),
                headers=[*headers, *self._forwarded(request).items()],
                data=await request.read(),
                allow_redirects=False,
            ) as answer:
                body = await answer.read()
        except aiohttp.ClientError as error:
            return self._unreachable(service, error)
        passed = [
            (name, value)
            for name, value in answer.headers.items()
            if name.lower() not in _HOP_BY_HOP and name.lower() not in ("content-length", "date")
        ]
        response = web.Response(status=answer.status, reason=answer.reason, body=body)
        response.headers.popall("Content-Type", None)
        response.headers.extend(passed)
        return response

    @staticmethod
    def _forwarded(request: web.Request) -> dict[str, str]:
        # The services compare an Origin with the host that the browser sees.
        return {"Host": request.host, "X-Real-IP": request.remote or "127.0.0.1"}

    @staticmethod
    def _unreachable(service: str, error: Exception) -> web.Response:
        problem = {
            "type": "urn:tap-trading:problem:unavailable",
            "title": "Service Unavailable",
            "status": 503,
            "detail": f"The {service} service does not answer: {error}",
            "code": "unavailable",
        }
        return web.json_response(problem, status=503, content_type="application/problem+json")


async def _pump(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    target: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    """Pass messages on until one side closes, and its close code with them."""
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await target.send_bytes(message.data)
    code = source.close_code
    # 1005 and 1006 say that there was no code; they cannot be sent.
    await target.close(code=code if code and code not in (1005, 1006) else 1001)
