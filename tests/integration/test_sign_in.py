"""Sign-in from challenge to logout, with a real Redis: what gets in, and what does not."""

import asyncio
import hashlib
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from nacl.signing import SigningKey
from tests.conftest import RedisServer

from tap_trading.auth import base58
from tap_trading.auth import sessions as session_module
from tap_trading.auth.challenge import BadNonceError, Challenges
from tap_trading.auth.sessions import CHANNEL, Session, Sessions
from tap_trading.auth.signature import Ed25519
from tap_trading.base import background
from tap_trading.base.config import Address
from tap_trading.base.health import Health
from tap_trading.base.redis import Redis, RedisError, connect
from tap_trading.ledger.batcher import StorageUnavailableError
from tap_trading.services import auth, http

DOMAIN = "tap.example"
URI = "https://tap.example"
#: The order of the group that Ed25519 computes in.
ORDER = 2**252 + 27742317777372353535851937790883648493
DAY_MS = 86_400_000


class FakeClock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now_ms = time.time_ns() // 1_000_000

    def __call__(self) -> int:
        return self.now_ms


class Wallet:
    """A trader's key."""

    def __init__(self) -> None:
        self.key = SigningKey.generate()
        self.address = base58.encode(bytes(self.key.verify_key))

    def sign(self, text: str | bytes) -> str:
        data = text.encode() if isinstance(text, str) else text
        return base58.encode(self.key.sign(data).signature)


@dataclass
class Accounts:
    """Stands in for the ledger: finds or creates the user of an address."""

    users: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None

    async def open(self, address: str) -> str:
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        return self.users.setdefault(address, f"user_{len(self.users) + 1}")


@dataclass
class Site:
    """A running API with nothing but sign-in, and one route that needs it."""

    client: TestClient
    sessions: Sessions
    accounts: Accounts

    async def post(self, call: str, json: object = None, **headers: str) -> ClientResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(f"/api/auth/{call}", json=json, headers=named)

    async def challenge(self, wallet: Wallet) -> dict[str, str]:
        answer = await self.post("challenge", {"address": wallet.address})
        assert answer.status == 200, await answer.text()
        return dict(await answer.json())

    async def verify(self, wallet: Wallet, nonce: str, signature: str) -> ClientResponse:
        return await self.post(
            "verify", {"address": wallet.address, "nonce": nonce, "signature": signature}
        )

    async def sign_in(self, wallet: Wallet) -> str:
        """The token of a new session."""
        asked = await self.challenge(wallet)
        answer = await self.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["token"])

    async def whoami(self, token: str) -> ClientResponse:
        return await self.client.get("/whoami", headers={"Authorization": f"Bearer {token}"})


async def refused(answer: ClientResponse) -> tuple[int, str]:
    """Status and code of a problem."""
    assert answer.content_type == "application/problem+json", await answer.text()
    body = await answer.json()
    if answer.status == 503:
        assert int(answer.headers["Retry-After"]) > 0
    assert "Set-Cookie" not in answer.headers
    return answer.status, body["code"]


def key_of(token: str) -> str:
    """Where Redis has the session of a token."""
    return f"session:{hashlib.sha256(token.encode()).hexdigest()}"


async def eventually(true: Callable[[], bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def following(sessions: Sessions) -> AsyncIterator[Sessions]:
    """`sessions` that hear of revocations."""
    task = asyncio.create_task(sessions.follow())
    try:
        await eventually(lambda: sessions._subscription.connected)
        yield sessions
    finally:
        await background.end(task)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def wallet() -> Wallet:
    return Wallet()


@pytest.fixture
async def sessions(redis: Redis, clock: FakeClock) -> AsyncIterator[Sessions]:
    async with following(Sessions(redis, clock)) as sessions:
        yield sessions


@pytest.fixture
async def site(redis: Redis, clock: FakeClock, sessions: Sessions) -> AsyncIterator[Site]:
    accounts = Accounts()
    routes = auth.AuthRoutes(
        challenges=Challenges(redis, clock, DOMAIN, URI),
        sessions=sessions,
        scheme=Ed25519(DOMAIN),
        open_account=accounts.open,
    )

    async def whoami(request: web.Request) -> web.Response:
        session = await auth.authenticate(request, sessions)
        return http.json_response({"user_id": session.user_id, "address": session.address})

    app = http.application(Health("api"))
    app.router.add_post("/api/auth/challenge", routes.challenge)
    app.router.add_post("/api/auth/verify", routes.verify)
    app.router.add_post("/api/auth/logout", routes.logout)
    app.router.add_get("/whoami", whoami)
    async with TestServer(app) as server, TestClient(server) as client:
        yield Site(client, sessions, accounts)


# Getting in.


async def test_from_challenge_to_session(
    site: Site, wallet: Wallet, clock: FakeClock, redis: Redis
) -> None:
    answer = await site.post("challenge", {"address": wallet.address})
    assert answer.headers["Cache-Control"] == "no-store"
    asked = await answer.json()
    assert set(asked) == {"nonce", "message", "expires_at"}
    assert asked["message"].startswith(
        f"{DOMAIN} wants you to sign in with your Solana account:\n{wallet.address}\n\n"
    )
    assert f"\n\nURI: {URI}\nVersion: 1\nChain ID: mainnet\n" in asked["message"]
    assert f"\nNonce: {asked['nonce']}\n" in asked["message"]
    assert asked["message"].endswith(f"\nExpiration Time: {asked['expires_at']}")
    assert 0 < await redis.ttl(f"nonce:{asked['nonce']}") <= 90

    answer = await site.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    got = await answer.json()
    assert set(got) == {"token", "user_id", "expires_at"}
    assert got["user_id"] == site.accounts.users[wallet.address]
    stored = await redis.keys("session:*")
    assert len(stored) == 1
    assert got["token"].encode() not in stored[0] + await redis.get(stored[0])
    assert 86_000 < await redis.ttl(stored[0]) <= 86_400

    # The token works as a bearer and, by itself, as a cookie.
    me = await (await site.whoami(got["token"])).json()
    assert me == {"user_id": got["user_id"], "address": wallet.address}
    cookie = await site.client.get("/whoami", headers={"Cookie": f"tap_session={got['token']}"})
    assert await cookie.json() == me


async def test_the_cookie_is_for_this_site_and_no_script(site: Site, wallet: Wallet) -> None:
    asked = await site.challenge(wallet)
    answer = await site.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
    (header,) = answer.headers.getall("Set-Cookie")
    first, *attributes = header.split("; ")
    assert first == f"tap_session={(await answer.json())['token']}"
    assert sorted(attributes) == [
        "HttpOnly",
        "Max-Age=86400",
        "Path=/",
        "SameSite=Strict",
        "Secure",
    ]


async def test_a_hardware_wallets_signature_counts(site: Site, wallet: Wallet) -> None:
    asked = await site.challenge(wallet)
    text = asked["message"].encode()
    header = b"\xffsolana offchain" + bytes(33) + b"\x00\x01" + bytes(wallet.key.verify_key)
    signed = header + len(text).to_bytes(2, "little") + text
    answer = await site.verify(wallet, asked["nonce"], wallet.sign(signed))
    assert answer.status == 200


async def test_each_sign_in_is_a_session_of_its_own(site: Site, wallet: Wallet) -> None:
    first, second = await site.sign_in(wallet), await site.sign_in(wallet)
    assert first != second
    assert len(site.accounts.users) == 1
    assert (await site.post("logout", Authorization=f"Bearer {first}")).status == 204
    assert (await site.whoami(second)).status == 200


# Staying out.


async def test_of_fifty_at_once_one_gets_in(site: Site, wallet: Wallet, redis: Redis) -> None:
    asked = await site.challenge(wallet)
    signature = wallet.sign(asked["message"])
    answers = await asyncio.gather(
        *(site.verify(wallet, asked["nonce"], signature) for _ in range(50))
    )
    assert sorted(answer.status for answer in answers) == [200] + [401] * 49
    for answer in answers:
        if answer.status == 401:
            assert await refused(answer) == (401, "bad_nonce")
    assert len(await redis.keys("session:*")) == 1


async def test_a_replay_is_refused(site: Site, wallet: Wallet) -> None:
    asked = await site.challenge(wallet)
    signature = wallet.sign(asked["message"])
    assert (await site.verify(wallet, asked["nonce"], signature)).status == 200
    again = await site.verify(wallet, asked["nonce"], signature)
    assert await refused(again) == (401, "bad_nonce")


async def test_other_peoples_nonces_are_useless(site: Site, wallet: Wallet) -> None:
    asked, mallory = await site.challenge(wallet), Wallet()
    stolen = await site.verify(mallory, asked["nonce"], mallory.sign(asked["message"]))
    assert await refused(stolen) == (401, "bad_nonce")
    # It fails closed: the attempt has used it up.
    owner = await site.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
    assert await refused(owner) == (401, "bad_nonce")
    assert site.accounts.users == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda asked, wallet: Wallet().sign(asked["message"]),
        lambda asked, wallet: wallet.sign(asked["message"] + "\n"),
        lambda asked, wallet: wallet.sign(asked["message"].replace(DOMAIN, "evil.example")),
        lambda asked, wallet: wallet.sign(asked["nonce"]),
        lambda asked, wallet: wallet.sign(asked["message"])[:-1],
        lambda asked, wallet: wallet.sign(asked["message"])[:40],
        lambda asked, wallet: "1" + wallet.sign(asked["message"]),
        lambda asked, wallet: wallet.sign(asked["message"]) + " ",
        lambda asked, wallet: "",
        lambda asked, wallet: "z" * 5000,
        lambda asked, wallet: high(wallet.sign(asked["message"])),
    ],
)
async def test_forged_signatures(
    site: Site, wallet: Wallet, change: Callable[[dict[str, str], Wallet], str]
) -> None:
    asked = await site.challenge(wallet)
    forged = await site.verify(wallet, asked["nonce"], change(asked, wallet))
    assert await refused(forged) == (401, "bad_signature")
    # A forger has one try: the nonce is used up.
    right = await site.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
    assert await refused(right) == (401, "bad_nonce")
    assert site.accounts.users == {}


def high(signature: str) -> str:
    """The same signature with a scalar that is not reduced."""
    raw = base58.decode(signature, 64)
    assert raw
    scalar = int.from_bytes(raw[32:], "little") + ORDER
    return base58.encode(raw[:32] + scalar.to_bytes(32, "little"))


@pytest.mark.parametrize("nonce", ["", "short", "a" * 22, "a" * 21 + "é", "*" * 22, "a" * 5000])
async def test_unknown_nonces(site: Site, wallet: Wallet, nonce: str) -> None:
    answer = await site.verify(wallet, nonce, wallet.sign("x"))
    assert await refused(answer) == (401, "bad_nonce")


async def test_an_evicted_nonce_is_lost(site: Site, wallet: Wallet, redis: Redis) -> None:
    asked = await site.challenge(wallet)
    await redis.delete(f"nonce:{asked['nonce']}")
    answer = await site.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
    assert await refused(answer) == (401, "bad_nonce")


async def test_so_are_all_of_them_after_a_flush(site: Site, wallet: Wallet, redis: Redis) -> None:
    asked = await site.challenge(wallet)
    await redis.flushall()
    answer = await site.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
    assert await refused(answer) == (401, "bad_nonce")


@pytest.mark.parametrize(
    ("moved_ms", "status"),
    [(0, 200), (89_999, 200), (90_000, 401), (3_600_000, 401), (-5_000, 200), (-5_001, 401)],
)
async def test_our_clock_decides_also_when_it_steps_back(
    site: Site, wallet: Wallet, clock: FakeClock, moved_ms: int, status: int
) -> None:
    asked = await site.challenge(wallet)
    clock.now_ms += moved_ms
    answer = await site.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
    assert answer.status == status
    if status == 401:
        assert await refused(answer) == (401, "bad_nonce")


@pytest.mark.parametrize(
    ("domain", "uri"), [("other.example", URI), (DOMAIN, "http://tap.example")]
)
async def test_a_challenge_of_another_site_is_refused(
    site: Site, wallet: Wallet, redis: Redis, clock: FakeClock, domain: str, uri: str
) -> None:
    asked = await Challenges(redis, clock, domain, uri).issue(wallet.address)
    answer = await site.verify(wallet, asked.nonce, wallet.sign(asked.message))
    assert await refused(answer) == (401, "bad_nonce")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda issued: b"", "cannot be read"),
        (lambda issued: b"[]", "cannot be read"),
        (lambda issued: b"\xff", "cannot be read"),
        (lambda issued: orjson.dumps({**issued, "message": 5}), "cannot be read"),
        (lambda issued: orjson.dumps({**issued, "message": "sign here"}), "not for it"),
        (
            lambda issued: orjson.dumps({**issued, "message": issued["message"] + " "}),
            "not for it",
        ),
        (lambda issued: orjson.dumps({**issued, "address": "x"}), "not for it"),
        (lambda issued: orjson.dumps({**issued, "issued_at": 0}), "another time"),
        (lambda issued: orjson.dumps({**issued, "expires_at": 2**60}), "another time"),
    ],
)
async def test_a_stored_challenge_that_was_tampered_with_is_refused(
    wallet: Wallet,
    redis: Redis,
    clock: FakeClock,
    change: Callable[[dict[str, Any]], bytes],
    reason: str,
) -> None:
    challenges = Challenges(redis, clock, DOMAIN, URI)
    asked = await challenges.issue(wallet.address)
    key = f"nonce:{asked.nonce}"
    await redis.set(key, change(orjson.loads(await redis.get(key))))
    with pytest.raises(BadNonceError, match=reason):
        await challenges.consume(wallet.address, asked.nonce)
    assert await redis.get(key) is None


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("challenge", b""),
        ("challenge", b"{}"),
        ("challenge", b'{"address":5}'),
        ("challenge", b'{"address":"0x71C7656EC7ab88b098defB751B7401B5f6d8976F"}'),
        ("challenge", b'{"address":"1%ADDRESS"}'),
        ("challenge", b'{"address":"%ADDRESS "}'),
        ("challenge", b'{"address":"%ADDRESS","domain":"evil.example"}'),
        ("verify", b'{"address":"%ADDRESS","nonce":"a"}'),
        ("verify", b'{"address":"%ADDRESS","nonce":"a","signature":null}'),
        ("verify", b'{"address":"%ADDRESS","nonce":1,"signature":"a"}'),
        ("verify", b'{"address":"","nonce":"a","signature":"a"}'),
        ("verify", b'{"address":"%ADDRESS","nonce":"a","signature":"a","message":"x"}'),
    ],
)
async def test_malformed_requests(site: Site, wallet: Wallet, call: str, body: bytes) -> None:
    data = body.replace(b"%ADDRESS", wallet.address.encode())
    answer = await site.client.post(f"/api/auth/{call}", data=data)
    assert await refused(answer) == (400, "malformed")


async def test_no_account_no_session(site: Site, wallet: Wallet, redis: Redis) -> None:
    site.accounts.error = StorageUnavailableError("disk full")
    asked = await site.challenge(wallet)
    answer = await site.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
    assert answer.status >= 500
    assert await redis.keys("session:*") == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer " + "a" * 43},
        {"Authorization": "Bearer " + "a" * 42},
        {"Authorization": "Basic YTpi"},
        {"Cookie": "tap_session=" + "a" * 43},
        {"Cookie": "tap_session="},
    ],
)
async def test_without_a_session_nobody_is_known(site: Site, headers: dict[str, str]) -> None:
    for answer in (
        await site.client.get("/whoami", headers=headers),
        await site.client.post("/api/auth/logout", headers=headers),
    ):
        assert await refused(answer) == (401, "unauthenticated")


async def test_a_malformed_header_is_not_made_good_by_a_cookie(site: Site, wallet: Wallet) -> None:
    token = await site.sign_in(wallet)
    both = {"Authorization": "Bearer", "Cookie": f"tap_session={token}"}
    assert (await site.client.get("/whoami", headers=both)).status == 401


# Getting out.


@pytest.mark.parametrize("header", ["Authorization", "Cookie"])
async def test_logout_ends_the_session_and_its_cookie(
    site: Site, wallet: Wallet, header: str
) -> None:
    token = await site.sign_in(wallet)
    named = {"Authorization": f"Bearer {token}", "Cookie": f"tap_session={token}"}
    headers = {header: named[header]}
    answer = await site.post("logout", **headers)
    assert answer.status == 204
    assert await answer.read() == b""
    (cookie,) = answer.headers.getall("Set-Cookie")
    assert cookie.startswith('tap_session="";')
    assert "Max-Age=0" in cookie
    assert "Path=/" in cookie
    assert await refused(await site.whoami(token)) == (401, "unauthenticated")
    assert await refused(await site.post("logout", **headers)) == (401, "unauthenticated")


async def test_a_session_ends_after_a_day(site: Site, wallet: Wallet, clock: FakeClock) -> None:
    token = await site.sign_in(wallet)
    clock.now_ms += DAY_MS - 1
    assert (await site.whoami(token)).status == 200
    clock.now_ms += 1
    assert site.sessions.cached(token) is None
    assert await refused(await site.whoami(token)) == (401, "unauthenticated")


async def test_a_revocation_reaches_other_processes_within_a_second(
    site: Site, wallet: Wallet, redis_server: RedisServer, clock: FakeClock
) -> None:
    other_redis = connect(Address(path=str(redis_server.path)))
    async with following(Sessions(other_redis, clock)) as other:
        token = await site.sign_in(wallet)
        assert (await other.validate(token)) is not None
        assert other.cached(token) is not None
        assert (await site.post("logout", Authorization=f"Bearer {token}")).status == 204
        await eventually(lambda: other.cached(token) is None, within_s=1.0)
        assert await other.validate(token) is None
    await other_redis.aclose()


async def test_all_sessions_of_a_user_can_be_ended(
    redis: Redis, sessions: Sessions, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_STEP", 7)
    eves = [(await sessions.open("user_eve", "eve"))[0] for _ in range(30)]
    bobs, _ = await sessions.open("user_bob", "bob")
    await redis.set("session:garbage", "garbage")
    ops = Sessions(redis, clock)
    assert await ops.revoke_user("user_eve") == 30
    await eventually(lambda: not any(map(sessions.cached, eves)), within_s=1.0)
    assert [await sessions.validate(token) for token in eves] == [None] * 30
    assert sessions.cached(bobs) is not None
    assert await ops.revoke_user("user_eve") == 0
    assert await ops.revoke_user("user_nobody") == 0


# What memory may vouch for.


async def test_a_known_session_costs_no_question(
    site: Site, wallet: Wallet, redis: Redis, clock: FakeClock
) -> None:
    token = await site.sign_in(wallet)
    asked = await questions(redis)
    for _ in range(20):
        assert (await site.whoami(token)).status == 200
    assert await questions(redis) == asked
    clock.now_ms += 44_999
    assert site.sessions.cached(token) is not None
    assert site.sessions._renewing is None
    clock.now_ms += 60_000 - 44_999
    assert site.sessions.cached(token) is None
    assert (await site.whoami(token)).status == 200
    assert await questions(redis) == asked + 1
    # The clock steps back: the answer seems to come from the future, so it is asked again.
    clock.now_ms -= 10
    assert site.sessions.cached(token) is None
    assert (await site.whoami(token)).status == 200
    assert site.sessions.cached(token) is not None


async def test_a_session_in_use_is_asked_for_again_before_anyone_has_to_wait(
    redis: Redis, sessions: Sessions, clock: FakeClock
) -> None:
    opened = [(await sessions.open(f"user_{i}", "a"))[0] for i in range(250)]
    before = await questions(redis)
    clock.now_ms += 45_000
    for _ in range(3):
        assert all(sessions.cached(token) for token in opened)
    await redis.delete(f"session:{hashlib.sha256(opened[7].encode()).hexdigest()}")
    assert sessions._renewing is not None
    await sessions._renewing
    assert await questions(redis) == before + 3
    clock.now_ms += 59_999
    alive = [token for token in opened if sessions.cached(token)]
    assert alive == opened[:7] + opened[8:]


async def test_a_session_that_cannot_be_renewed_grows_old(
    redis: Redis, redis_server: RedisServer, sessions: Sessions, clock: FakeClock
) -> None:
    token, _ = await sessions.open("user_1", "a")
    clock.now_ms += 59_999
    redis_server.stop()
    assert sessions.cached(token) is not None
    assert sessions._renewing is not None
    await sessions._renewing
    clock.now_ms += 1
    assert sessions.cached(token) is None


async def questions(redis: Redis) -> int:
    """How many MGETs Redis has answered."""
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_mget", {"calls": 0})["calls"])


async def test_many_requests_at_once_ask_once(
    redis: Redis, sessions: Sessions, clock: FakeClock
) -> None:
    token, session = await sessions.open("user_1", "a")
    clock.now_ms += 60_000
    before = await questions(redis)
    found = await asyncio.gather(*(sessions.validate(token) for _ in range(500)))
    assert set(found) == {session}
    assert await questions(redis) - before <= 16


async def test_whoever_hears_no_revocations_keeps_nothing(redis: Redis, clock: FakeClock) -> None:
    deaf = Sessions(redis, clock)
    token, session = await deaf.open("user_1", "a")
    for _ in range(2):
        assert deaf.cached(token) is None
        assert await deaf.validate(token) == session
    with pytest.raises(RedisError, match=CHANNEL):
        await deaf.check()
    async with following(deaf):
        assert deaf.cached(token) is None
        assert await deaf.validate(token) == session
        assert deaf.cached(token) == session
        assert await deaf.check() == "ok"
    assert deaf.cached(token) is None


async def test_a_lost_subscription_means_asking_again(redis: Redis, sessions: Sessions) -> None:
    token, _ = await sessions.open("user_1", "a")
    assert sessions.cached(token) is not None
    # A revocation that this process cannot hear: its connection is cut at the same moment.
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.client_kill_filter(_type="pubsub")
        pipeline.delete(*await redis.keys("session:*"))
        await pipeline.execute()
    await eventually(lambda: sessions.cached(token) is None, within_s=1.0)
    assert await sessions.validate(token) is None
    await eventually(lambda: sessions._subscription.connected)
    again, _ = await sessions.open("user_1", "a")
    assert sessions.cached(again) is not None


async def test_an_answer_older_than_a_revocation_is_not_kept(
    redis: Redis, sessions: Sessions, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, _ = await sessions.open("user_1", "a")
    clock.now_ms += 60_000
    ask, elsewhere = sessions._stored, Sessions(redis, clock)

    async def overtaken(token_hash: str) -> bytes | None:
        stored = await ask(token_hash)
        heard = sessions._revocations
        await elsewhere.revoke(token)
        await eventually(lambda: sessions._revocations > heard)
        return stored

    monkeypatch.setattr(sessions, "_stored", overtaken)
    assert await sessions.validate(token) is not None  # the answer was true when it was given
    monkeypatch.undo()
    assert sessions.cached(token) is None
    assert await sessions.validate(token) is None


async def test_a_process_that_stands_by_knows_who_is_signed_in(
    redis: Redis, sessions: Sessions, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_STEP", 7)
    tokens = [(await sessions.open(f"user_{number}", "a"))[0] for number in range(30)]
    await redis.set("session:garbage", "garbage")
    async with following(Sessions(redis, clock)) as newcomer:
        assert newcomer.cached(tokens[0]) is None
        await newcomer.foresee()
        asked = await questions(redis)
        known = [newcomer.cached(token) for token in tokens]
        assert [each and each.user_id for each in known] == [f"user_{n}" for n in range(30)]
        assert newcomer.cached("x" * 43) is None
        assert await questions(redis) == asked
        # They are asked for again like all others, and not for ever.
        clock.now_ms += 60_000
        assert newcomer.cached(tokens[0]) is None
        assert await newcomer.validate(tokens[0]) is not None


async def test_foreseen_sessions_can_be_ended(
    redis: Redis, sessions: Sessions, clock: FakeClock
) -> None:
    shown, ended, lost = [(await sessions.open("user_1", "a"))[0] for _ in range(3)]
    async with following(Sessions(redis, clock)) as newcomer:
        await newcomer.foresee()
        assert newcomer.cached(shown) is not None
        heard = newcomer._revocations
        await sessions.revoke(shown)
        await sessions.revoke(ended)
        await eventually(lambda: newcomer._revocations == heard + 2)
        assert newcomer.cached(shown) is None
        assert newcomer.cached(ended) is None
        # Nor is any of them worth anything once a revocation may have been missed.
        epoch = newcomer._epoch
        await redis.client_kill_filter(_type="pubsub")
        await eventually(lambda: newcomer._epoch > epoch and newcomer._subscription.connected)
        assert newcomer.cached(lost) is None


async def test_what_is_foreseen_beside_a_revocation_is_not_kept(
    redis: Redis, sessions: Sessions, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, _ = await sessions.open("user_1", "a")
    async with following(Sessions(redis, clock)) as newcomer:
        real = newcomer._redis.mget

        async def overtaken(keys: list[bytes]) -> object:
            stored = await real(keys)
            heard = newcomer._revocations
            await sessions.revoke(token)
            await eventually(lambda: newcomer._revocations > heard)
            return stored

        monkeypatch.setattr(newcomer._redis, "mget", overtaken)
        await newcomer.foresee()
        assert newcomer.cached(token) is None


async def test_who_hears_no_revocations_foresees_nothing(redis: Redis, clock: FakeClock) -> None:
    deaf = Sessions(redis, clock)
    token, _ = await deaf.open("user_1", "a")
    other = Sessions(redis, clock)
    await other.foresee()
    assert other.cached(token) is None


async def test_memory_is_bounded(redis: Redis, clock: FakeClock) -> None:
    async with following(Sessions(redis, clock, most_cached=3)) as sessions:
        tokens = [(await sessions.open(f"user_{n}", "a"))[0] for n in range(3)]
        clock.now_ms += 60_000
        await sessions.validate(tokens[0])  # its answer is now the newest
        tokens.append((await sessions.open("user_3", "a"))[0])
        assert [sessions.cached(token) is not None for token in tokens] == [
            True,
            False,
            False,
            True,
        ]
        assert set(sessions._entries) == {tokens[0], tokens[2], tokens[3]}
        assert set(sessions._token_of.values()) == set(sessions._entries)
        for token in tokens:
            assert await sessions.validate(token) is not None


@pytest.mark.parametrize("payload", [b"", b"garbage", b"\xff" * 64, b"A" * 64, b"0" * 63])
async def test_garbage_among_revocations_is_survived(
    redis: Redis, sessions: Sessions, payload: bytes
) -> None:
    token, _ = await sessions.open("user_1", "a")
    other, _ = await sessions.open("user_1", "a")
    await redis.publish(CHANNEL, payload)
    await Sessions(redis, FakeClock()).revoke(other)
    await eventually(lambda: sessions.cached(other) is None)
    assert sessions.cached(token) is not None


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"5", b"{}", b'{"user_id":"a","address":"b","expires_at":"x"}']
)
async def test_what_is_no_session_opens_nothing(
    redis: Redis, sessions: Sessions, clock: FakeClock, value: bytes
) -> None:
    token, _ = await sessions.open("user_1", "a")
    (key,) = await redis.keys("session:*")
    await redis.set(key, value)
    clock.now_ms += 60_000
    assert await sessions.validate(token) is None


async def test_tokens_of_another_shape_are_not_even_asked_for(redis: Redis) -> None:
    nowhere = connect(Address(path="/nonexistent/redis.sock"))
    sessions = Sessions(nowhere, FakeClock())
    for token in ("", "a", "a" * 44, "a" * 42 + "é", "a" * 42 + "=", "a" * 43 + "\n"):
        assert sessions.cached(token) is None
        assert await sessions.validate(token) is None
    with pytest.raises(RedisError):
        await sessions.validate("a" * 43)
    await nowhere.aclose()


# While Redis is away, and when it is back.


async def test_redis_stopped_and_started(
    site: Site, wallet: Wallet, clock: FakeClock, redis: Redis, redis_server: RedisServer
) -> None:
    token, lost = await site.sign_in(wallet), await site.sign_in(wallet)
    asked = await site.challenge(wallet)
    kept = await redis.get(key_of(token))
    redis_server.stop()
    await eventually(lambda: not site.sessions._subscription.connected)
    await eventually(lambda: site.sessions.cached(token) is None)
    # Who was signed in still is, but nobody else can be told apart.
    for known in (token, lost):
        assert (await site.whoami(known)).status == 200
    stranger = secrets.token_urlsafe(32)
    assert await refused(await site.whoami(stranger)) == (503, "unavailable")
    challenge = await site.post("challenge", {"address": wallet.address})
    assert await refused(challenge) == (503, "unavailable")
    verify = await site.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
    assert await refused(verify) == (503, "unavailable")
    logout = await site.post("logout", Authorization=f"Bearer {token}")
    assert await refused(logout) == (503, "unavailable")
    # Expired is expired, also now.
    clock.now_ms += DAY_MS
    assert await refused(await site.whoami(token)) == (503, "unavailable")
    clock.now_ms -= DAY_MS

    redis_server.start()
    assert kept
    await redis.set(key_of(token), kept)  # as its append-only file would
    await eventually(lambda: site.sessions._subscription.connected, within_s=10)
    assert (await site.whoami(token)).status == 200
    assert site.sessions.cached(token) is not None
    assert await refused(await site.whoami(lost)) == (401, "unauthenticated")
    assert await refused(await site.whoami(stranger)) == (401, "unauthenticated")
    nonce = await site.verify(wallet, asked["nonce"], wallet.sign(asked["message"]))
    assert await refused(nonce) == (401, "bad_nonce")
    assert (await site.whoami(await site.sign_in(wallet))).status == 200


async def test_a_flush_ends_sessions_when_they_are_asked_for_next(
    site: Site, wallet: Wallet, clock: FakeClock, redis: Redis
) -> None:
    token = await site.sign_in(wallet)
    await redis.flushall()
    assert (await site.whoami(token)).status == 200
    clock.now_ms += 60_000
    assert await refused(await site.whoami(token)) == (401, "unauthenticated")


async def test_a_redis_that_hangs_is_not_waited_for_long(
    site: Site, wallet: Wallet, clock: FakeClock, redis_server: RedisServer
) -> None:
    token = await site.sign_in(wallet)
    clock.now_ms += 60_000
    process = redis_server._process
    assert process
    process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        answers = await asyncio.gather(*(site.whoami(token) for _ in range(40)))
        assert {answer.status for answer in answers} == {200}
        stranger = secrets.token_urlsafe(32)
        assert await refused(await site.whoami(stranger)) == (503, "unavailable")
        assert time.monotonic() - began < 2.0
        # From now on a single request at a time waits for Redis, and then it is another's turn.
        await asyncio.sleep(0.6)
        prober = asyncio.create_task(site.whoami(token))
        await asyncio.sleep(0.1)
        asked = time.monotonic()
        assert {(await site.whoami(token)).status for _ in range(20)} == {200}
        assert time.monotonic() - asked < 0.5
        assert (await prober).status == 200
        began = time.monotonic()
        challenge = await site.post("challenge", {"address": wallet.address})
        assert await refused(challenge) == (503, "unavailable")
        assert time.monotonic() - began < 4.0
    finally:
        process.send_signal(signal.SIGCONT)
    await eventually(lambda: site.sessions._ask_again_at < asyncio.get_running_loop().time())
    assert (await site.whoami(token)).status == 200
    assert site.sessions.cached(token) is not None


async def test_a_session_value_says_who_and_until_when(redis: Redis, clock: FakeClock) -> None:
    sessions = Sessions(redis, clock)
    token, session = await sessions.open("user_1", "addr")
    assert session == Session("user_1", "addr", clock.now_ms + DAY_MS)
    assert orjson.loads(await redis.get(key_of(token))) == {
        "user_id": "user_1",
        "address": "addr",
        "expires_at": clock.now_ms + DAY_MS,
    }
