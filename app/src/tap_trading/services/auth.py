"""`/api/auth/…`: signing in with a wallet and out again, and who sends a request."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from tap_trading.auth.challenge import BadNonceError, Challenges
from tap_trading.auth.sessions import LIFETIME_S, Session, Sessions
from tap_trading.auth.signature import Scheme
from tap_trading.base import logger
from tap_trading.base.errors import ProblemError
from tap_trading.base.logger import rfc3339_ms
from tap_trading.base.metrics import ERRORS
from tap_trading.base.redis import RedisError
from tap_trading.services import body
from tap_trading.services.http import json_response

#: The cookie that carries a session's token.
COOKIE = "tap_session"

#: How long a call waits for Redis, in s, before it gives up.
_PATIENCE_S = 2.0
#: What a client is told to wait then, in s.
_RETRY_AFTER_S = 2


class AuthRoutes:
    """Sign-in and sign-out of the HTTP API."""

    def __init__(
        self,
        *,
        challenges: Challenges,
        sessions: Sessions,
        scheme: Scheme,
        open_account: Callable[[str], Awaitable[str]],
    ) -> None:
        """`open_account` finds or creates the user of an address and returns their id."""
        self._challenges = challenges
        self._sessions = sessions
        self._scheme = scheme
        self._open_account = open_account

    async def challenge(self, request: web.Request) -> web.Response:
        """200 with a text that the owner of the address is to sign."""
        asked = body.text_fields(await request.read(), {"address"})
        address = self._address(asked)
        async with _redis_needed("There is no signing in at the moment."):
            issued = await self._challenges.issue(address)
        return _secret(
            {
                "nonce": issued.nonce,
                "message": issued.message,
                "expires_at": rfc3339_ms(issued.expires_at_ms),
            }
        )

    async def verify(self, request: web.Request) -> web.Response:
        """200 with a session when the text of that nonce was signed; each nonce works once."""
        asked = body.text_fields(await request.read(), {"address", "nonce", "signature"})
        address = self._address(asked)
        try:
            async with _redis_needed("There is no signing in at the moment."):
                text = await self._challenges.consume(address, asked["nonce"])
        except BadNonceError as error:
            logger.get().info("nonce refused", address=address, reason=str(error))
            raise ProblemError(
                401,
                "bad_nonce",
                "This nonce is unknown, used, expired or for another address; ask for a new one.",
            ) from None
        if not self._scheme.signed(address, text, asked["signature"]):
            logger.get().info("signature refused", address=address)
            raise ProblemError(
                401,
                "bad_signature",
                "This is not the address' signature of the message; ask for a new one to sign.",
            )
        user_id = await self._open_account(address)
        async with _redis_needed("There is no signing in at the moment."):
            token, session = await self._sessions.open(user_id, address)
        logger.get().info("signed in", user_id=user_id, address=address)
        response = _secret(
            {
                "token": token,
                "user_id": user_id,
                "expires_at": rfc3339_ms(session.expires_at_ms),
            }
        )
        response.set_cookie(
            COOKIE,
            token,
            max_age=LIFETIME_S,
            path="/",
            secure=True,
            httponly=True,
            samesite="Strict",
        )
        return response

    async def logout(self, request: web.Request) -> web.Response:
        """204 once the session is dead; without a session there is nothing to end: 401."""
        token = _token_in(request)
        session = await session_of(self._sessions, token)
        async with _redis_needed("You are still signed in: nothing can be ended now."):
            await self._sessions.revoke(token)
        logger.get().info("signed out", user_id=session.user_id)
        response = web.Response(status=204)
        response.del_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="Strict")
        return response

    def _address(self, asked: Mapping[str, str]) -> str:
        address = asked["address"]
        if not self._scheme.is_address(address):
            raise ProblemError(400, "malformed", "address must be an Ed25519 public key in base58.")
        return address


async def authenticate(request: web.Request, sessions: Sessions) -> Session:
    """Whose request this is. Raises ProblemError as `session_of` does."""
    return await session_of(sessions, _token_in(request))


async def session_of(sessions: Sessions, token: str) -> Session:
    """The session that `token` stands for.

    Raises ProblemError: 401 `unauthenticated` when there is none, 503 `unavailable` when
    Redis would have to be asked and does not answer.
    """
    async with _redis_needed("Nobody can be recognised at the moment."):
        session = await sessions.validate(token)
    if session is None:
        raise unauthenticated()
    return session


def unauthenticated() -> ProblemError:
    """What a request without a living session is answered."""
    return ProblemError(401, "unauthenticated", "Sign in first: there is no such session.")


def token_of(authorization: str, cookies: str) -> str | None:
    """The token in these two headers ("" for one that is not there): as a bearer, else as
    our cookie.

    An `Authorization` that is no bearer token means that the request carries none, whatever
    its cookies are: the client meant to say something else than they do.
    """
    if authorization:
        scheme, _, token = authorization.partition(" ")
        token = token.strip(" ")
        return token if scheme.lower() == "bearer" and token and " " not in token else None
    for part in cookies.split(";"):
        name, _, value = part.strip(" \t").partition("=")
        if name == COOKIE:
            return value or None
    return None


def _token_in(request: web.Request) -> str:
    """The token a request carries. Raises ProblemError `unauthenticated`."""
    headers = request.headers
    token = token_of(headers.get("Authorization", ""), headers.get("Cookie", ""))
    if token is None:
        raise unauthenticated()
    return token


@asynccontextmanager
async def _redis_needed(consequence: str) -> AsyncIterator[None]:
    """Answer 503 with this consequence when Redis does not do its part within 2 s."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            yield
    except (RedisError, OSError) as error:
        ERRORS.labels("auth_redis").inc()
        logger.get().warning("Redis does not answer", error=str(error))
        raise ProblemError(
            503, "unavailable", f"{consequence} Try again soon.", retry_after_s=_RETRY_AFTER_S
        ) from error


def _secret(fields: object) -> web.Response:
    """An answer that nobody on the way may keep."""
    response = json_response(fields)
    response.headers["Cache-Control"] = "no-store"
    return response
