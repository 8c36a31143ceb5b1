"""The naive way, as a baseline: aiohttp and aiosqlite, one transaction per bet, the same
rows, the same synchronous=FULL, none of the checks.
"""

import asyncio
import sys
import time
import uuid

import aiosqlite
import orjson
import uvloop
from aiohttp import web

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE users (id TEXT PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0));
CREATE TABLE bets (id TEXT PRIMARY KEY, user_id TEXT, cell_id TEXT, amount INTEGER,
    status TEXT, placed_at INTEGER, idempotency_key TEXT);
CREATE UNIQUE INDEX one_per_cell ON bets (cell_id, user_id);
CREATE UNIQUE INDEX key ON bets (user_id, idempotency_key);
CREATE TABLE ledger (id TEXT PRIMARY KEY, user_id TEXT, amount INTEGER, balance_after INTEGER,
    ref_id TEXT, created_at INTEGER);
INSERT INTO users VALUES ('user', 1000000000000), ('house', 0);
"""

LOCK: web.AppKey[asyncio.Lock] = web.AppKey("lock", asyncio.Lock)
DATABASE: web.AppKey[aiosqlite.Connection] = web.AppKey("database", aiosqlite.Connection)


async def place(request: web.Request) -> web.Response:
    """One bet, one transaction, its statements one after the other."""
    bet = orjson.loads(await request.read())
    database, bet_id, now = request.app[DATABASE], str(uuid.uuid4()), time.time_ns() // 10**6
    amount, key = bet["amount"], request.headers["Idempotency-Key"]
    async with request.app[LOCK]:
        await database.execute("BEGIN IMMEDIATE")
        balances = []
        for user, change in (("user", -amount), ("house", amount)):
            cursor = await database.execute(
                "UPDATE users SET balance = balance + ? WHERE id = ? RETURNING balance",
                (change, user),
            )
            balances.append(await cursor.fetchone())
        await database.execute(
            "INSERT INTO bets VALUES (?, ?, ?, ?, 'pending', ?, ?)",
            (bet_id, request.headers["Authorization"], bet["cell_id"], amount, now, key),
        )
        await database.executemany(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)",
            [
                (f"{bet_id}u", "user", -amount, balances[0][0], bet_id, now),
                (f"{bet_id}h", "house", amount, balances[1][0], bet_id, now),
            ],
        )
        await database.execute("COMMIT")
    answer = {"status": "accepted", "bet_id": bet_id, "balance": balances[0][0], **bet}
    return web.Response(body=orjson.dumps(answer), status=202, content_type="application/json")


async def _serve(port: int, path: str) -> None:
    async with aiosqlite.connect(path, isolation_level=None) as database:
        await database.executescript(_SCHEMA)
        app = web.Application()
        app[DATABASE] = database
        app[LOCK] = asyncio.Lock()
        app.router.add_post("/api/bets", place)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


def main() -> None:
    """Serve on the port given as the first word, with the database of the second."""
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2]))


if __name__ == "__main__":
    main()
