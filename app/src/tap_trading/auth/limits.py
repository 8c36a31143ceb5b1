"""How many requests a wallet may send in a minute, over all processes.

Counted in process, so that a request pays no round trip; about once a second the counts
are added up in Redis, and what the others counted comes back. Between two such moments a
wallet may exceed its limit by what it sends to different processes within that second.
While Redis is away every process counts for itself.
"""

import asyncio

import orjson

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.redis import Redis, RedisError

_WINDOW_MS = 60_000
_SHARE_EVERY_S = 1.0

#: Adds the counts of many users to a minute's and returns what they are then, both as JSON:
#: one command and one answer, because a client spends far more on each of thousands than
#: Redis does. KEYS: the minute's hash. ARGV: the counts by user, and its lifetime in s.
_ADD_UP = """
local counts = cjson.decode(ARGV[1])
for user, count in pairs(counts) do
  counts[user] = redis.call('HINCRBY', KEYS[1], user, count)
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return cjson.encode(counts)
"""


class WalletLimits:
    """Counts requests by user within the clock's minutes."""

    def __init__(self, redis: Redis, clock: Clock, per_minute: int) -> None:
        self._add_up = redis.register_script(_ADD_UP)
        self._clock = clock
        self._per_minute = per_minute
        self._window = 0  # the minute that is counted, since 1970
        self._known: dict[str, int] = {}  # what Redis said last
        self._new: dict[str, int] = {}  # not sent to Redis yet
        self._sent: dict[str, int] = {}  # on the way to Redis, not answered yet

    def take(self, user_id: str) -> int | None:
        """Count one request: None when it is within the limit, else after how many seconds
        the next may come.
        """
        now = self._clock()
        if now // _WINDOW_MS != self._window:
            self._window = now // _WINDOW_MS
            self._known.clear()
            self._new.clear()
            self._sent = {}
        new = self._new.get(user_id, 0)
        others = self._known.get(user_id, 0) + self._sent.get(user_id, 0)
        if others + new >= self._per_minute:
            return max((_WINDOW_MS - now % _WINDOW_MS) // 1000, 1)
        self._new[user_id] = new + 1
        return None

    async def share(self) -> None:
        """Exchange counts with the other processes about once a second, for ever."""
        away = False
        while True:
            await asyncio.sleep(_SHARE_EVERY_S)
            try:
                await self._exchange()
                away = False
            except (RedisError, OSError) as error:
                if not away:
                    logger.get().warning("rate limits not shared", error=str(error))
                away = True

    async def _exchange(self) -> None:
        sent, window = self._new, self._window
        if not sent:
            return
        self._new, self._sent = {}, sent
        try:
            answer = await self._add_up(
                keys=[f"rate:{window}"], args=[orjson.dumps(sent), _WINDOW_MS // 1000]
            )
        except (RedisError, OSError):
            if window == self._window:  # nothing is forgotten; it may be counted twice
                for user_id, count in sent.items():
                    self._new[user_id] = self._new.get(user_id, 0) + count
                self._sent = {}
            raise
        if window == self._window:
            known = self._known
            for user_id, count in orjson.loads(answer).items():
                # Redis may have been emptied; what was counted here is known all the same.
                known[user_id] = max(count, known.get(user_id, 0) + sent[user_id])
            self._sent = {}
