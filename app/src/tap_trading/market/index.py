"""The index: one price from several exchanges, which none of them can move alone.

Exchanges differ by tens of dollars for hours, a row of the grid may be a few dollars high.
So each venue's price is first freed of its basis, its slow distance from the others, and the
median is taken of what is left. A venue that joins, leaves or lies then finds the others
where it found them. docs/adr/0012 says why it is made this way, and states the bounds.

Pure: time comes in as Unix ms by our own clock. Inside, prices are float cents; outside,
integer cents. The words used here:

- raw price: a venue's last trade; basis: what is subtracted from it; adjusted: the rest.
- core: the median of the adjusted prices of the venues that count.
- carry: what keeps index = core + carry where it is when the set of venues changes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

_BPS = 10_000  # basis points in a whole
_NEVER = 10**15  # ms
_MINUTE_MS = 60_000
_PAIR = 2
#: A message stamped further ahead than this is of a clock that has been set back since.
_FUTURE_MS = 1_000
#: Longest step, in ms, by which slow values move at once: an outage is not made up for.
_LONGEST_STEP_MS = 200


class NoPrice(StrEnum):
    """Why there is no index."""

    STARTING = "starting"  # this process has had none yet
    QUORUM_LOST = "quorum_lost"  # too few venues are heard
    DISAGREEMENT = "disagreement"  # no majority of them says the same


class Absence(StrEnum):
    """Why a venue does not count."""

    SILENT = "silent"  # nothing heard, or no trade since it was last lost
    DELAYED = "delayed"  # its trades arrive late
    FROZEN = "frozen"  # its price stands still while others move
    OUTLIER = "outlier"  # too far from the others
    JOINING = "joining"  # its basis is being learnt


@dataclass(frozen=True, slots=True)
class IndexRules:
    """What the index is made of. Distances are basis points of the price."""

    venues: tuple[str, ...] = ("coinbase", "kraken", "bitstamp", "gemini")
    #: So many venues have to be heard and to agree. Two: see docs/adr/0012.
    quorum: int = 2
    lively_ms: int = 1_700  # heard within this, a venue counts towards the quorum
    silent_ms: int = 6_000  # not heard for so long, it leaves
    frozen_ms: int = 60_000  # its price the same for so long,
    frozen_moves: int = 30  # while the others' have changed so often, it leaves
    delay_ms: int = 2_000  # later than its own quickest of the last minutes by this, it leaves
    reorder_ms: int = 2_000  # for so long after a trade, one stamped earlier is no news
    clock_ms: int = 5_000  # its clock and ours differ by more than this, it leaves
    join_ms: int = 15_000  # a newcomer is watched for so long
    agree_bps: float = 3.0  # from the index: within this, a venue agrees
    agree_ms: int = 1_000  # for so long a majority may disagree before the price ends
    split_bps: float = 25.0  # no majority within this ends the price at once
    outlier_bps: float = 10.0  # further off than this
    outlier_ms: int = 3_000  # for so long, a venue leaves
    basis_bps: float = 30.0  # a venue whose basis is larger leaves
    basis_s: float = 900.0  # a basis is learnt with this time constant
    slow_bps_per_s: float = 0.003  # and never faster than this; the carry ends likewise
    carry_bps: float = 3.0  # largest carry
    remember_ms: int = 600_000  # a basis is remembered for so long without an index

    def __post_init__(self) -> None:
        if not 1 <= self.quorum <= len(self.venues):
            raise ValueError(f"quorum {self.quorum} of {len(self.venues)} venues")


def single(venue: str) -> IndexRules:
    """Rules under which the index is one source's price exactly, however quiet that source."""
    return IndexRules(
        (venue,),
        quorum=1,
        lively_ms=_NEVER,
        silent_ms=_NEVER,
        delay_ms=_NEVER,
        reorder_ms=0,
        clock_ms=_NEVER,
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """The index at one moment."""

    t: int  # Unix ms
    price: int | None  # cents
    reason: NoPrice | None  # why there is no price
    counted: tuple[str, ...]  # the venues it was made of
    absent: Mapping[str, Absence]  # and why the others were not


@dataclass(slots=True)
class _Venue:
    """What is known of one venue. Times are Unix ms by our clock, prices cents."""

    name: str
    heard: int | None = None
    price: int = 0  # 0: none yet
    exchange: int = 0  # the venue's own stamp of its last trade
    received: int = 0  # and ours
    changed: int = 0  # when its price last became another
    moves: int = 0  # how many changes of any venue there had been by then
    lag: int = 0  # received - exchange of the last trade
    least_lags: tuple[int, int] = (_NEVER, _NEVER)  # of the last minute and the one before
    lag_minute: int = 0
    basis: float = 0.0
    basis_at: int = -_NEVER  # when it was last confirmed
    counts: bool = False
    restored: bool = False  # the basis comes from another process
    off_since: int | None = None  # since when it is too far off
    watch: "_Watch | None" = None  # while it joins

    def adjusted(self) -> float:
        """Its price without its basis."""
        return self.price - self.basis

    def tick(self, exchange: int, received: int, price: int, reorder_ms: int) -> bool:
        """Take a trade, unless a newer one is known (venues repeat and reorder).

        Whether the price is another than before.
        """
        self.heard = received
        if self.price and exchange < self.exchange and 0 <= received - self.received < reorder_ms:
            return False
        moved = price != self.price
        if moved:
            self.changed = received
        self.exchange, self.received, self.price = exchange, received, price
        self.lag = received - exchange
        minute = received // _MINUTE_MS
        if minute != self.lag_minute:
            self.least_lags = (_NEVER, self.least_lags[0])
            self.lag_minute = minute
        self.least_lags = (min(self.lag, self.least_lags[0]), self.least_lags[1])
        return moved

    def leave(self) -> None:
        """Count no more; the basis is remembered."""
        self.counts = False
        self.off_since = None
        self.watch = None

    def age(self, t: int) -> int:
        """Milliseconds since it was heard; stamps of a clock set back count as never."""
        if self.heard is None or self.heard > t + _FUTURE_MS:
            return _NEVER + 1
        return t - self.heard


@dataclass(slots=True)
class _Watch:
    """A newcomer's distance from the core while it is watched."""

    since: int  # Unix ms
    total: float = 0.0
    samples: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.samples


@dataclass(slots=True)
class Index:
    """The index over the venues of its rules: tell it what arrives, ask it every 100 ms."""

    rules: IndexRules = field(default_factory=IndexRules)
    _venues: dict[str, _Venue] = field(init=False)
    _core: float = field(init=False, default=0.0)  # 0: none yet
    _carry: float = field(init=False, default=0.0)
    _usable: bool = field(init=False, default=False)  # the last reading had a price
    _used_at: int | None = field(init=False, default=None)  # when one last had
    _moves: int = field(init=False, default=0)  # how often a venue's price has changed
    _began: bool = field(init=False, default=False)  # one has had, in this process
    _split_since: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._venues = {name: _Venue(name) for name in self.rules.venues}

    def tick(self, venue: str, exchange_ms: int, receive_ms: int, price: int) -> None:
        """A trade of a venue: its stamp and ours in Unix ms, its price in cents."""
        one = self._venues[venue]
        if one.tick(exchange_ms, receive_ms, price, self.rules.reorder_ms):
            self._moves += 1
            one.moves = self._moves

    def heard(self, venue: str, receive_ms: int) -> None:
        """Any other message of a venue: it lives."""
        self._venues[venue].heard = receive_ms

    def lost(self, venue: str) -> None:
        """The connection to a venue is gone: it leaves without waiting for its silence."""
        self._venues[venue].heard = None

    def at(self, t: int) -> Reading:
        """The index at `t` (Unix ms). To be asked once for each 100 ms, in rising order."""
        absent = {
            venue.name: fault
            for venue in self._venues.values()
            if (fault := self._unfit(venue, t)) is not None
        }
        held = self._core = self._pulled(self._counted())
        absent |= self._change_members(t, absent, held)
        reason = self._verdict(t)
        if reason is not None and self._assemble(t, absent):
            reason = self._verdict(t)
        counted = self._counted()
        for venue in counted:
            absent.pop(venue.name, None)
        if reason is None and self._usable:
            limit = self._cents(self.rules.carry_bps)
            self._carry = _clamp(self._carry + held - self._core, -limit, limit)
        self._usable = reason is None
        price = self._settle(t, counted) if reason is None else None
        return Reading(t, price, reason, tuple(venue.name for venue in counted), absent)

    # Who counts.

    def _counted(self) -> list[_Venue]:
        return [venue for venue in self._venues.values() if venue.counts]

    def _is_lively(self, venue: _Venue, t: int) -> bool:
        return venue.age(t) <= self.rules.lively_ms

    def _unfit(self, venue: _Venue, t: int) -> Absence | None:
        """What is wrong with a venue by itself, whatever the index is."""
        rules = self.rules
        if venue.age(t) > rules.silent_ms or not venue.price:
            return Absence.SILENT
        quickest = min(venue.least_lags)
        if venue.lag - quickest > rules.delay_ms or abs(venue.lag) > rules.clock_ms:
            return Absence.DELAYED
        moves = self._moves - venue.moves
        if t - venue.changed > rules.frozen_ms and moves >= rules.frozen_moves:
            return Absence.FROZEN
        return None

    def _change_members(
        self, t: int, absent: Mapping[str, Absence], core: float
    ) -> dict[str, Absence]:
        """Let venues leave and join, judged by the core; returns who is kept out, and why."""
        kept_out: dict[str, Absence] = {}
        for venue in self._venues.values():
            if venue.name in absent:
                venue.leave()
                if absent[venue.name] is Absence.SILENT:
                    venue.price = 0  # what it says next is news, what it said is not
            elif venue.counts:
                if self._is_outlier(venue, core, t):
                    venue.leave()
                    kept_out[venue.name] = Absence.OUTLIER
            elif not self._usable:
                venue.watch = None
                kept_out[venue.name] = Absence.JOINING
            else:
                verdict = self._watch(venue, core, t)
                if verdict is not None:
                    kept_out[venue.name] = verdict
        self._core = self._pulled(self._counted())
        return kept_out

    def _is_outlier(self, venue: _Venue, core: float, t: int) -> bool:
        """Whether a venue that counts is too far off, and has been for too long."""
        if not self._usable:  # nothing to judge it by
            venue.off_since = None
            return False
        if abs(venue.basis) > self._cents(self.rules.basis_bps):
            return True
        if abs(venue.adjusted() - core) <= self._cents(self.rules.outlier_bps):
            venue.off_since = None
            return False
        if venue.off_since is None:
            venue.off_since = t
        return t - venue.off_since >= self.rules.outlier_ms

    def _watch(self, venue: _Venue, core: float, t: int) -> Absence | None:
        """Learn a newcomer's basis; None as soon as it counts."""
        rules = self.rules
        gap = venue.price - core
        if abs(gap) > self._cents(rules.basis_bps):
            venue.watch = None
            return Absence.OUTLIER
        near = self._cents(rules.agree_bps)
        if venue.restored and abs(gap - venue.basis) <= near:
            self._admit(venue, venue.basis, t)
            return None
        watch = venue.watch
        if watch is None or abs(gap - watch.mean) > self._cents(rules.outlier_bps):
            watch = venue.watch = _Watch(t)
        watch.total += gap
        watch.samples += 1
        if (
            t - watch.since < rules.join_ms
            or venue.received <= watch.since  # not one trade meanwhile
            or abs(gap - watch.mean) > near
        ):
            return Absence.JOINING
        self._admit(venue, watch.mean, t)
        return None

    def _admit(self, venue: _Venue, basis: float, t: int) -> None:
        venue.leave()
        venue.counts, venue.restored = True, False
        venue.basis, venue.basis_at = basis, t

    def _assemble(self, t: int, absent: dict[str, Absence]) -> bool:
        """Without an index, begin one from those that agree; whether it could be done.

        Bases that are remembered decide. Only when none is, the raw median is believed: a
        dispute between venues is never ended by forgetting who said what.
        """
        rules = self.rules
        fit = [
            venue
            for venue in self._venues.values()
            if absent.get(venue.name) in {None, Absence.JOINING} and self._is_lively(venue, t)
        ]
        if len(fit) < rules.quorum:
            return False
        known = [v for v in fit if t - v.basis_at <= rules.remember_ms]
        raw = _median([v.price for v in fit])
        centre = _median([v.adjusted() for v in known]) if known else raw
        near, far = (centre * bps / _BPS for bps in (rules.agree_bps, rules.basis_bps))
        old = [v for v in known if abs(v.adjusted() - centre) <= near / 2]
        new = [v for v in fit if v not in known and abs(v.price - raw) <= far]
        majority = 2 * len(old) > len(known) if known else 2 * len(new) > len(fit)
        if not majority or len(old) + len(new) < rules.quorum:
            return False
        if not known:
            self._carry = 0.0
        for venue in self._venues.values():
            venue.leave()
        for venue in old:
            self._admit(venue, venue.basis, t)
        for venue in new:
            self._admit(venue, venue.price - centre, t)
        absent |= {v.name: Absence.OUTLIER for v in fit if not v.counts}
        self._split_since = None
        self._core = self._pulled(old + new)
        return True

    # What they say.

    def _cents(self, bps: float) -> float:
        """A distance in basis points as cents at the present level."""
        return bps * self._core / _BPS

    def _pulled(self, venues: Iterable[_Venue]) -> float:
        """The median of the adjusted prices; of two, the point between them next to the core.

        So neither of two can move the index alone: it moves as far as both have moved.
        """
        prices = sorted(venue.adjusted() for venue in venues)
        if not prices:
            return self._core
        low, high = prices[(len(prices) - 1) // 2], prices[len(prices) // 2]
        if len(prices) > _PAIR or not self._core:
            return (low + high) / 2
        return _clamp(self._core, low, high)

    def _verdict(self, t: int) -> NoPrice | None:
        """Why there is no price at this moment; None when there is."""
        rules, counted = self.rules, self._counted()
        distances = [abs(venue.adjusted() - self._core) for venue in counted]
        split = self._cents(rules.split_bps)
        lively = sum(self._is_lively(venue, t) for venue in counted)
        heard = sum(
            distance <= split and self._is_lively(venue, t)
            for venue, distance in zip(counted, distances, strict=True)
        )
        near = self._cents(rules.agree_bps)
        if 2 * sum(distance <= near for distance in distances) > len(counted):
            self._split_since = None
        elif self._split_since is None:
            self._split_since = t
        if lively < rules.quorum:
            return NoPrice.QUORUM_LOST if self._began else NoPrice.STARTING
        lasting = self._split_since is not None and t - self._split_since >= rules.agree_ms
        if lasting or 2 * sum(distance <= split for distance in distances) <= len(counted):
            return NoPrice.DISAGREEMENT
        return NoPrice.QUORUM_LOST if heard < rules.quorum else None

    def _settle(self, t: int, counted: Sequence[_Venue]) -> int:
        """Let the slow values move a step, and say the price in cents."""
        price = max(math.floor(self._core + self._carry + 0.5), 1)
        step_ms = 0 if self._used_at is None else min(max(t - self._used_at, 0), _LONGEST_STEP_MS)
        share = step_ms / 1000 / self.rules.basis_s
        fastest = self._cents(self.rules.slow_bps_per_s) * step_ms / 1000
        raw = _median([venue.price for venue in counted])
        for venue in counted:
            error = venue.price - raw - venue.basis
            venue.basis += _clamp(error * share, -fastest, fastest)
            venue.basis_at = t
        self._carry -= _clamp(self._carry * share, -fastest, fastest)
        self._used_at, self._began = t, True
        return price

    # A restart is not to be seen.

    def export(self) -> dict[str, Any]:
        """What the next process continues from, as JSON can carry it."""
        return {
            "t": self._used_at,
            "core": self._core,
            "carry": self._carry,
            "basis": {
                venue.name: [venue.basis, venue.basis_at]
                for venue in self._venues.values()
                if venue.basis_at > 0
            },
        }

    def restore(self, state: Mapping[str, Any], now: int) -> bool:
        """Continue from an export, unless it is too old or there was no index in it.

        Only for an index that has not been asked yet. Raises ValueError when it is no
        export; nothing is taken from it then.
        """
        try:
            t, core, carry = state["t"], state["core"], float(state["carry"])
            bases = {
                str(name): (float(basis), int(at)) for name, (basis, at) in state["basis"].items()
            }
            if t is None:
                return False
            used_at, core = int(t), float(core)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not a state of the index: {error!r}") from error
        if not all(map(math.isfinite, (core, carry, *(basis for basis, _ in bases.values())))):
            raise ValueError("not a state of the index: a number is not finite")
        if core <= 0 or not -_FUTURE_MS <= now - used_at <= self.rules.remember_ms:
            return False
        self._core, self._carry, self._used_at = core, carry, used_at
        for name, (basis, at) in bases.items():
            if name in self._venues:
                venue = self._venues[name]
                venue.basis, venue.basis_at, venue.restored = basis, at, True
        return True


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the cross-check is from the index, beyond its usual distance."""

    bps: float  # of the index
    sustained: bool  # for so long that somebody has to be told


@dataclass(slots=True)
class CrossCheck:
    """A market with another quote currency, held against the index. It never moves it."""

    limit_bps: float = 20.0
    after_ms: int = 10_000  # a deviation beyond the limit is told when it lasted so long
    silent_ms: int = 10_000  # nothing is said of a market that traded longer ago
    basis_s: float = 3_600.0  # its own basis is learnt with this time constant
    _price: int | None = field(init=False, default=None)
    _received: int = field(init=False, default=0)
    _basis: float | None = field(init=False, default=None)  # a share of the index
    _learnt_s: float = field(init=False, default=0.0)
    _last: int | None = field(init=False, default=None)
    _off_since: int | None = field(init=False, default=None)

    def tick(self, receive_ms: int, price: int) -> None:
        """A trade: our stamp in Unix ms, price in cents of its quote currency."""
        self._received, self._price = receive_ms, price

    def at(self, t: int, index: int | None) -> Deviation | None:
        """Its distance from the index (cents) at `t`; None while either is missing."""
        if self._price is None or index is None or not 0 <= t - self._received <= self.silent_ms:
            self._off_since = self._last = None
            return None
        distance = self._price / index - 1
        if self._basis is None:
            self._basis = distance
        step_ms = 0 if self._last is None else min(max(t - self._last, 0), _LONGEST_STEP_MS)
        self._last = t
        # Young, it is the mean of all it has seen, else one odd first trade would last an hour.
        self._learnt_s = min(self._learnt_s + step_ms / 1000, self.basis_s)
        off = distance - self._basis
        if step_ms:
            self._basis += off * min(step_ms / 1000 / self._learnt_s, 1.0)
        if abs(off) * _BPS <= self.limit_bps:
            self._off_since = None
        elif self._off_since is None:
            self._off_since = t
        lasting = self._off_since is not None and t - self._off_since >= self.after_ms
        return Deviation(off * _BPS, lasting)


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
