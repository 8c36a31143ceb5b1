"""Which trades are new: repeated and late ones are not, and gaps are noticed."""

from collections import Counter, deque
from collections.abc import Collection, Hashable

#: Trades remembered by their keys, to know them when they come again.
_REMEMBERED = 4096
#: So many trades in a row that were not new: the numbers have started anew, or one was wrong.
_MOST_REFUSED = 20


class ReconnectError(Exception):
    """The connection is to be given up for a new one; `reason` is a metric's label."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class TradeOrder:
    """The numbers of one product's trades, over all connections to its venue.

    A trade that has been seen is `repeated`; one whose number is lower than that of an
    earlier trade is `late`: it is not news, because a newer price is known. Neither is
    new. Where numbers are `contiguous`, one that was skipped is a trade `missed`, also when
    it happened between two connections.
    """

    def __init__(self, *, contiguous: bool) -> None:
        self._contiguous = contiguous
        #: What was noticed since somebody last cleared it: repeated, late, gaps, missed.
        self.noticed: Counter[str] = Counter()
        self._forget()

    def _forget(self) -> None:
        self._highest: int | None = None
        self._refused = 0
        self._order: deque[Hashable] = deque()
        self._seen: set[Hashable] = set()

    @property
    def highest(self) -> int | None:
        """The highest number so far."""
        return self._highest

    def is_new(self, number: int, key: Hashable = None) -> bool:
        """Judge a trade and remember it. `key` tells trades of one number apart.

        Raises ReconnectError, having forgotten every number, when too many in a row were
        not new.
        """
        key = number if key is None else key
        if key in self._seen:
            return self._refuse("repeated")
        self._remember(key)
        if self._highest is not None and number < self._highest:
            return self._refuse("late")
        if self._highest is not None and number > self._highest + 1:
            self._skip(number - self._highest - 1)
        self._highest = number
        self._refused = 0
        return True

    def old(self, numbers: Collection[int]) -> None:
        """Take note of trades from before the connection: they are never new."""
        known = set(numbers)
        for number in sorted(known - self._seen):
            self._remember(number)
        if known:
            self.reached(max(known))

    def reached(self, number: int) -> None:
        """Take note that the venue has come to this number: what lies before was missed."""
        if self._highest is None:
            self._highest = number
        elif number > self._highest:
            self._skip(number - self._highest)
            self._highest = number

    def _remember(self, key: Hashable) -> None:
        self._seen.add(key)
        self._order.append(key)
        if len(self._order) > _REMEMBERED:
            self._seen.discard(self._order.popleft())

    def _skip(self, count: int) -> None:
        if self._contiguous:
            self.noticed["gaps"] += 1
            self.noticed["missed"] += count

    def _refuse(self, why: str) -> bool:
        self.noticed[why] += 1
        self._refused += 1
        if self._refused >= _MOST_REFUSED:
            self._forget()
            raise ReconnectError("numbers", f"{_MOST_REFUSED} trades in a row were not new")
        return False
