"""What each trader was told lately, in Redis, where every process that has traders finds it.

A trader who is connected, or was a moment ago, has a stream there, and events are numbered by
being added to it. Its numbers begin at the clock's microseconds, so one that was lost and made
anew gives none a second time. All of them are good for one epoch: whoever cannot rule out that
an event was not told ends it, and every client loads everything anew. See ADR 0016.
"""

import asyncio
import secrets
from collections.abc import Sequence
from typing import NamedTuple, cast

from tap_trading.base.redis import Redis
from tap_trading.ledger.resolving import Changes
from tap_trading.settlement import changes

#: Events of a trader that can be asked for again.
KEPT = 100
#: They are kept for so long after `History.keep` was last called for the trader, in s.
KEPT_S = 300

_EPOCH = "traders:epoch"
_STREAM = "trader:"
#: The token of the last resolver that has told all that it has changed.
_ALL_TOLD = "resolver:all_told"
_LARGEST_SEQ = 2**53 - 1  # that Lua and browsers can count to
#: So many in one pipeline, since reading its answer holds up everything else.
_AT_ONCE = 100

# An epoch ends with the run of Redis that it began in: what is loaded from its file at a start
# may lack the last second, and numbers would be given again.
_COMMON = """
local function run()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end
local function renew()
  redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. run())
  redis.call('PUBLISH', KEYS[2], ARGV[1])
  return ARGV[1]
end
local function epoch()
  local stored = redis.call('GET', KEYS[1]) or ''
  local known, of = string.match(stored, '^(%x+) (%x+)$')
  return of == run() and known or renew()
end
"""
_LOOK = _COMMON + "return epoch()"
_RENEW = _COMMON + "return renew()"
_LEAD = _COMMON + "if redis.call('GETDEL', KEYS[3]) ~= ARGV[2] then renew() end"

_PUBLISH = (
    _COMMON
    + """
local told = {epoch()}
for user, event in string.gmatch(ARGV[2], '(%S+) ([^\\n]+)') do
  local id = redis.call(
    'XADD', KEYS[3] .. user, 'NOMKSTREAM', 'MAXLEN', ARGV[3], '0-*', 'event', event)
  told[#told + 1] = id and user .. ' ' .. string.sub(id, 3) .. ' ' .. event or user .. ' 0 '
end
redis.call('PUBLISH', KEYS[2], table.concat(told, '\\n'))
"""
)

_ENTER = (
    _COMMON
    + """
local now, last, missed = epoch(), nil, {}
if redis.call('EXISTS', KEYS[3]) == 0 then
  local time = redis.call('TIME')
  local begin = string.format('0-%.0f', time[1] * 1000000 + time[2])
  redis.call('XADD', KEYS[3], 'MAXLEN', 0, begin, 'event', '')
end
redis.call('EXPIRE', KEYS[3], ARGV[2])
local info = redis.call('XINFO', 'STREAM', KEYS[3])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last = string.sub(info[i + 1], 3) end
end
if ARGV[3] ~= now then return {now, last, false} end
local found = redis.call('XRANGE', KEYS[3], '(0-' .. ARGV[4], '+')
for i, entry in ipairs(found) do missed[i] = entry[2][2] end
local complete = ARGV[4] == last
if #found > 0 then
  complete = found[1][1] == string.format('0-%.0f', tonumber(ARGV[4]) + 1)
end
return {now, last, complete and missed}
"""
)


class Entered(NamedTuple):
    """Where a trader's events go on from."""

    epoch: str
    seq: int  # of the last event
    #: The events after the place that was asked for; None when they are not all there.
    missed: list[bytes] | None


#: How far a client has come: an epoch, and the number of the last event it was told.
Place = tuple[str, int]


class History:
    """The streams of all traders."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._wanted: list[tuple[str, Place, asyncio.Future[Entered]]] = []
        self._asking: asyncio.Task[None] | None = None

    # All of these raise RedisError or OSError when Redis does not do it.

    async def publish(self, changed: Changes) -> None:
        """Number what a transaction has changed, and tell those who have traders.

        What raises may have been done all the same.
        """
        await self._run(_PUBLISH, _STREAM, changes.encode(changed), str(KEPT))

    async def epoch(self) -> str:
        """The present epoch."""
        return cast("bytes", await self._run(_LOOK)).decode()

    async def renew(self) -> None:
        """Begin a new epoch: something may not have been told."""
        await self._run(_RENEW)

    async def all_told(self, token: int) -> None:
        """The resolver with this token has told everything and changes nothing any more."""
        await self._redis.set(_ALL_TOLD, token)

    async def lead(self, token: int) -> None:
        """The resolver with this token begins: a new epoch, unless the one before it has told
        everything.
        """
        await self._run(_LEAD, _ALL_TOLD, str(token - 1))

    async def enter(self, user_id: str, place: tuple[object, object] = ("", 0)) -> Entered:
        """Have the events of a user kept from now on, if they are not yet, and find those
        after `place`, whatever a client says that is. Many at a time are one pipeline.
        """
        epoch, seq = place
        if type(epoch) is not str or type(seq) is not int or not 0 <= seq < _LARGEST_SEQ:
            epoch, seq = "", 0  # nobody's
        entered: asyncio.Future[Entered] = asyncio.get_running_loop().create_future()
        self._wanted.append((user_id, (epoch, seq), entered))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._enter_all())
        return await entered

    async def keep(self, users: Sequence[str]) -> list[str]:
        """Keep the events of connected users; those who have none kept any longer."""
        gone: list[str] = []
        for begin in range(0, len(users), _AT_ONCE):
            some = users[begin : begin + _AT_ONCE]
            pipeline = self._redis.pipeline(transaction=False)
            for user_id in some:
                pipeline.expire(_STREAM + user_id, KEPT_S)
            kept = await pipeline.execute()
            gone += [user_id for user_id, there in zip(some, kept, strict=True) if not there]
        return gone

    async def _run(self, script: str, key: str = "", *args: str | bytes) -> object:
        keys = (_EPOCH, changes.CHANNEL, key)
        return await cast(
            "asyncio.Future[object]",
            self._redis.eval(script, len(keys), *keys, _new_epoch(), *args),
        )

    async def _enter_all(self) -> None:
        while self._wanted:
            some, self._wanted = self._wanted[:_AT_ONCE], self._wanted[_AT_ONCE:]
            pipeline = self._redis.pipeline(transaction=False)
            for user_id, (epoch, seq), _ in some:
                keys = (_EPOCH, changes.CHANNEL, _STREAM + user_id)
                pipeline.eval(
                    *(_ENTER, len(keys), *keys),
                    *(_new_epoch(), str(KEPT_S), epoch, str(seq)),
                )
            try:
                answers = await pipeline.execute()
            except Exception as error:  # whatever it is, those who wait are told
                for _, _, entered in some:
                    if not entered.done():
                        entered.set_exception(error)
                continue
            for (_, _, entered), (now, last, missed) in zip(some, answers, strict=True):
                if not entered.done():
                    entered.set_result(Entered(now.decode(), int(last), missed))


def _new_epoch() -> str:
    return secrets.token_hex(8)
