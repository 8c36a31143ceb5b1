"""A site that plays whatever a test needs: the built page, a stream, accounts and bets.

Run it to look at the page without the services:

    python tests/e2e/page/fake_site.py [--port 8000] [--no-grid]
"""

import argparse
import asyncio
import json
import math
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import base58
from aiohttp import WSCloseCode, web
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from e2e.page.fake_bets import FakeBets, now_text, user_id

CSP = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)
BAR_MS = 100
COLUMN_S = 5
STEP = 1_000
#: Of the price, in cents per square root of a second.
VOLATILITY = 600
CREDIT = 100_000
COOKIE = "tap_session"
PROXY_PAGE = "<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>"


Answer = Callable[[], web.StreamResponse]


@dataclass
class BetRequest:
    """One POST /api/bets as it arrived."""

    key: str | None
    body: dict[str, Any]
    authorization: str | None


@dataclass
class Accounts:
    """Who is known and signed in, as the API has it.

    `answers` are used up one per request to their path, before anything else happens. `domain`,
    `uri`, `names` and `asks_for_nonce` put something else than the truth into the text to sign.
    Without `keeps_cookies` a session is known by its bearer token alone, as over plain HTTP.
    """

    balances: dict[str, int] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)
    challenges: dict[str, tuple[str, str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    domain: str | None = None
    uri: str | None = None
    names: str | None = None
    asks_for_nonce: str | None = None
    keeps_cookies: bool = True

    def routes(self, app: web.Application) -> None:
        for method, name, handler in (
            ("POST", "auth/challenge", self._challenge),
            ("POST", "auth/verify", self._verify),
            ("POST", "auth/logout", self._logout),
            ("GET", "me", self._me),
        ):
            app.router.add_route(method, f"/api/{name}", self._counted(name, handler))

    def owner(self, request: web.Request) -> str | None:
        """The address of the session that a request belongs to."""
        return self.sessions.get(self._token(request))

    @staticmethod
    def _token(request: web.Request) -> str:
        authorization = request.headers.get("Authorization")
        if authorization is not None:
            return authorization.removeprefix("Bearer ")
        return request.cookies.get(COOKIE, "")

    def _counted(self, name: str, handler: Any) -> Any:
        async def counted(request: web.Request) -> web.StreamResponse:
            self.calls.append(name)
            if waiting := self.answers.get(name):
                return waiting.pop(0)()
            response: web.StreamResponse = await handler(request)
            return response

        return counted

    async def _challenge(self, request: web.Request) -> web.StreamResponse:
        address = (await request.json())["address"]
        if len(base58.b58decode(address)) != 32:
            return problem(400, "malformed", "address must be an Ed25519 public key in base58.")()
        nonce = secrets.token_hex(11)
        text = sign_in_text(
            self.domain or request.host,
            self.names or address,
            self.asks_for_nonce or nonce,
            self.uri or f"http://{self.domain or request.host}",
        )
        self.challenges[nonce] = (address, text)
        return web.json_response({"nonce": nonce, "message": text, "expires_at": now_text()})

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        address, text = self.challenges.pop(asked["nonce"], ("", ""))
        if address != asked["address"]:
            return problem(401, "bad_nonce", "This nonce is unknown, used or expired.")()
        try:
            VerifyKey(base58.b58decode(address)).verify(
                text.encode(), base58.b58decode(asked["signature"])
            )
        except BadSignatureError:
            return problem(401, "bad_signature", "This is not the address' signature.")()
        token = secrets.token_urlsafe(32)
        self.sessions[token] = address
        self.balances.setdefault(address, CREDIT)
        response = web.json_response(
            {"token": token, "user_id": user_id(address), "expires_at": now_text()}
        )
        if self.keeps_cookies:
            response.set_cookie(COOKIE, token, secure=True, httponly=True, samesite="Strict")
        return response

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        if self.owner(request) is None:
            return unauthenticated()
        del self.sessions[self._token(request)]
        response = web.Response(status=204)
        response.del_cookie(COOKIE)
        return response

    async def _me(self, request: web.Request) -> web.StreamResponse:
        address = self.owner(request)
        if address is None:
            return unauthenticated()
        return web.json_response({
            "user_id": user_id(address),
            "address": address,
            "balance": self.balances[address],
            "currency": "USD",
        })  # fmt: skip


@dataclass
class FakeSite:
    """State and levers.

    `answers` are used up one per bet request of somebody signed in, then bets are accepted; not
    `accepting` answers the stream like a proxy without a site; `mute` leaves pings unanswered;
    `blank` knows no price. `steps` are the row heights (cents) of the columns, in turn.
    """

    dist: Path
    accounts: Accounts = field(default_factory=Accounts)
    state: str = "open"
    reason: str = ""
    steps: tuple[int, ...] = (STEP,)
    with_grid: bool = True
    price: int = 6_421_357
    url: str = ""
    bets: list[BetRequest] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    sockets: set[web.WebSocketResponse] = field(default_factory=set)
    connections: int = 0
    pings: int = 0
    accepting: bool = True
    mute: bool = False
    blank: bool = False
    version_answer: Answer | None = None

    def __post_init__(self) -> None:
        self.books = FakeBets(self.accounts.balances)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_secured])
        app.router.add_get("/", self._index)
        app.router.add_static("/assets", self.dist / "assets")
        app.router.add_get("/ws", self._stream)
        self.accounts.routes(app)
        app.router.add_post("/api/bets", self._bet)
        app.router.add_get("/api/bets", self._own_bets)
        app.router.add_get("/api/bets/{id}", self._own_bet)
        app.router.add_get("/api/version", self._version)
        app.on_shutdown.append(self._close_all)
        return app

    async def send(self, **message: Any) -> None:
        for socket in list(self.sockets):
            await socket.send_json(message)

    async def send_price(self, price: int | None = None, t: int | None = None) -> dict[str, int]:
        self.price = self.price if price is None else price
        bar = self.bar(bar_time() if t is None else t, self.price)
        await self.send(type="price", **bar)
        return bar

    async def send_grid(self) -> None:
        await self.send(type="grid", **self.grid())

    async def set_state(self, state: str, reason: str = "", **more: Any) -> None:
        self.state, self.reason = state, reason
        await self.send(type="status", state=state, reason=reason, **more)

    async def drop(self, code: int = WSCloseCode.GOING_AWAY) -> None:
        for socket in list(self.sockets):
            await socket.close(code=code)

    def grid(self) -> dict[str, Any]:
        if not self.with_grid or self.state == "suspended":
            return {"columns": [], "cells": []}
        return make_grid(time.time(), self.price, self.steps)

    def cell_ids(self) -> list[str]:
        return [cell["cell_id"] for cell in self.grid()["cells"]]

    @staticmethod
    def bar(t: int, price: int) -> dict[str, int]:
        return {"t": t, "price": price, "low": price - 150, "high": price + 150}

    def hello(self) -> dict[str, Any]:
        bars = history(self.price, bar_time())
        return {
            "type": "hello",
            "epoch": self.books.epoch,
            "seq": 0,
            "server_time": now_text(),
            "price": None if self.blank else bars[-1],
            "bars": [] if self.blank else bars,
            "grid": self.grid(),
            "state": self.state,
            "reason": self.reason,
        }

    async def _index(self, _request: web.Request) -> web.FileResponse:
        return web.FileResponse(self.dist / "index.html")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        if not self.accepting:
            return web.Response(status=503, text=PROXY_PAGE, content_type="text/html")
        socket = web.WebSocketResponse(timeout=1)
        await socket.prepare(request)
        await socket.send_json(self.hello())
        self.sockets.add(socket)
        owner = self.accounts.owner(request)
        if owner is not None and self.books.knows_cookies:
            await self.books.introduce(socket, owner)
        try:
            async for message in socket:
                await self._answer(socket, json.loads(message.data))
        finally:
            self.sockets.discard(socket)
            self.books.listeners.pop(socket, None)
        return socket

    async def _answer(self, socket: web.WebSocketResponse, said: dict[str, Any]) -> None:
        match said["type"]:
            case "ping":
                self.pings += 1
                if not self.mute:
                    await socket.send_json({"type": "pong", "server_time": now_text()})
                return
            case "auth":
                await self.books.introduce(socket, self.accounts.sessions.get(said["token"]))
            case "resume":
                await self.books.resume(socket, said)
        self.books.heard.append(said)

    async def _bet(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        given = request.headers
        self.bets.append(BetRequest(given.get("Idempotency-Key"), body, given.get("Authorization")))
        owner = self.accounts.owner(request)
        if owner is None:
            return unauthenticated()
        if self.answers:
            return self.answers.pop(0)()
        bet = self.books.place(owner, f"bet_{len(self.bets):04}", body)
        return accepted(body, bet["bet_id"], self.accounts.balances[owner], bet["placed_at"])

    async def _own_bets(self, request: web.Request) -> web.StreamResponse:
        owner = self.accounts.owner(request)
        self.books.calls.append("bets")
        if owner is None:
            return unauthenticated()
        asked = request.query
        return web.json_response(
            self.books.page(owner, int(asked.get("limit", 50)), asked.get("cursor"))
        )

    async def _own_bet(self, request: web.Request) -> web.StreamResponse:
        owner = self.accounts.owner(request)
        bet_id = request.match_info["id"]
        self.books.calls.append(f"bets/{bet_id}")
        if owner is None:
            return unauthenticated()
        bet = self.books.one(owner, bet_id)
        if bet is None:
            return problem(404, "not_found", "You have no bet with this id.")()
        return web.json_response(bet)

    async def _version(self, _request: web.Request) -> web.StreamResponse:
        if self.version_answer is not None:
            return self.version_answer()
        return web.json_response({
            "version": "v0.1.0-12+3f2a91c",
            "build_time": "2026-01-01T00:00:00.000Z",
            "git_commit": "3f2a91c",
            "python_version": "3.11.2",
        })  # fmt: skip

    async def _close_all(self, _app: web.Application) -> None:
        await self.drop()


@web.middleware
async def _secured(request: web.Request, handler: Any) -> web.StreamResponse:
    response: web.StreamResponse = await handler(request)
    if not response.prepared:
        response.headers["Content-Security-Policy"] = CSP
        response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@asynccontextmanager
async def serve(site: FakeSite, port: int = 0) -> AsyncIterator[FakeSite]:
    runner = web.AppRunner(site.app(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        site.url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield site
    finally:
        await runner.cleanup()


def sign_in_text(domain: str, address: str, nonce: str, uri: str) -> str:
    """What the API asks a wallet to sign."""
    return (
        f"{domain} wants you to sign in with your Solana account:\n{address}\n\n"
        "Sign in to BTC tap trading. This moves no funds and costs nothing.\n\n"
        f"URI: {uri}\nVersion: 1\nChain ID: mainnet\nNonce: {nonce}\n"
        f"Issued At: {now_text()}\nExpiration Time: {now_text()}"
    )


def unauthenticated() -> web.Response:
    return problem(401, "unauthenticated", "Sign in first: there is no such session.")()


def accepted(
    body: dict[str, Any], bet_id: str, balance: int, placed_at: str | None = None
) -> web.Response:
    answer = {
        "status": "accepted",
        "bet_id": bet_id,
        "cell_id": body["cell_id"],
        "amount": body["amount"],
        "balance": balance,
        "placed_at": placed_at or now_text(),
    }
    return web.json_response(answer, status=202)


def problem(
    status: int, code: str, detail: str, headers: dict[str, str] | None = None
) -> Callable[[], web.Response]:
    body = {
        "type": f"/problems/{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": "r-1",
    }
    return lambda: web.json_response(
        body, status=status, headers=headers, content_type="application/problem+json"
    )


def proxy_page(status: int = 503) -> Callable[[], web.Response]:
    return lambda: web.Response(status=status, text=PROXY_PAGE, content_type="text/html")


def make_grid(
    now: float, price: int, steps: tuple[int, ...] = (STEP,), columns: int = 8, rows: int = 17
) -> dict[str, Any]:
    first = (int(now) // COLUMN_S + 2) * COLUMN_S
    described, cells = [], []
    for start in (first + COLUMN_S * n for n in range(columns)):
        step = steps[start // COLUMN_S % len(steps)]
        described.append({"start": start, "width": COLUMN_S, "step": step})
        base = (price // step - rows // 2) * step
        for low in range(base, base + rows * step, step):
            rate = invented_rate(price, low, low + step, start - now)
            if rate is not None:
                cell_id = f"btc-usd:{start}:{COLUMN_S}:{low}:{low + step}"
                cells.append({"cell_id": cell_id, "reward_rate": rate})
    return {"columns": described, "cells": cells}


def invented_rate(price: int, low: int, high: int, lead_s: float) -> str | None:
    """A rate that looks like one; None where no cell would be offered."""
    deviation = VOLATILITY * math.sqrt(2 * max(lead_s, 1))

    def below(edge: int) -> float:
        return (1 + math.erf((edge - price) / deviation)) / 2

    chance = min(2 * (below(high) - below(low)), 0.9)
    return None if chance < 0.02 else f"{math.floor(10_000 / (chance * 1.05)) / 10_000:.4f}"


def history(price: int, until: int, count: int = 600) -> list[dict[str, int]]:
    """A minute of bars that ends at `price`, the same every time."""
    dice = random.Random(7)
    bars = []
    walk = float(price)
    for n in range(count):
        bars.append(FakeSite.bar(until - n * BAR_MS, round(walk)))
        walk += dice.gauss(0, 190) + 40 * math.sin(n / 40)
    return bars[::-1]


def bar_time() -> int:
    """The stamp of the last bar that is complete."""
    return time.time_ns() // 1_000_000 // BAR_MS * BAR_MS - BAR_MS


async def _show(port: int, *, with_grid: bool, dist: Path) -> None:
    shown = FakeSite(dist=dist, with_grid=with_grid, steps=(STEP, STEP, STEP * 3 // 2))
    async with serve(shown, port) as site:
        print(f"The page is at {site.url}")
        dice = random.Random()
        for tick in range(10**9):
            await asyncio.sleep(BAR_MS / 1_000)
            await site.send_price(site.price + round(dice.gauss(0, 190)))
            if tick % 5 == 0:
                await site.send_grid()
                await _resolve(site.books, dice)


async def _resolve(books: FakeBets, dice: random.Random) -> None:
    """Invented rates, and results by lot."""
    for bet in [bet for bets in books.bets.values() for bet in bets]:
        _, start, width, *_ = bet["cell_id"].split(":")
        if bet["status"] == "pending":
            await books.confirm(bet["bet_id"], f"{dice.uniform(1.2, 20):.4f}")
        elif bet["status"] == "confirmed" and time.time() > int(start) + int(width):
            rate = round(float(bet["reward_rate"]) * 10_000)
            won = dice.random() < 0.95 * 10_000 / rate
            await books.settle(bet["bet_id"], bet["amount"] * rate // 10_000 if won else 0)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
    import tempfile

    from build_frontend import build

    parser = argparse.ArgumentParser(description="Serve the page with invented prices.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--no-grid", action="store_true", help="offer no cells")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        dist = Path(scratch) / "dist"
        build(dist)
        asyncio.run(_show(arguments.port, with_grid=not arguments.no_grid, dist=dist))


if __name__ == "__main__":
    main()
