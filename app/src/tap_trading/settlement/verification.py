"""Whether a decision follows from what is stored.

Everything is computed again by the same rules and from nothing else: the rate from the bar it
was priced from, that bar's volatility from the bar before it, the result from the bars of the
window.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tap_trading.base.logger import rfc3339_ms
from tap_trading.game.settlement import BAR_MS, MAX_GAP_MS, VoidReason, payout
from tap_trading.market.price_store import StoredBar
from tap_trading.settlement.evidence import Case, Decision
from tap_trading.settlement.models import ALL_RATES, ALL_VOLATILITIES


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence about a bet, and whether it is as it has to be."""

    right: bool
    text: str


class Result(NamedTuple):
    """What became of a bet, or has to."""

    status: str  # of a bet without a result: that of its rate
    rate_bps: int | None
    payout: int | None  # cents


class Rate(NamedTuple):
    """A bet's rate, or why there is none; neither: it is too early."""

    bps: int | None = None
    void_reason: VoidReason | None = None


def verify(case: Case) -> list[Finding]:
    """Compute a bet's rate and result again, and say in words what was found."""
    if case.found.status == "insufficient_funds":
        return [Finding(True, "The balance did not cover the stake; nothing was decided.")]
    [rate] = _rates([case])
    return [*_verify_rate(case, rate), *_verify_result(case, rate)]


def replay(cases: Sequence[Case]) -> list[Result]:
    """What follows from the stored bars, for each bet; soonest done for thousands at once."""
    return [_result(case, rate) for case, rate in zip(cases, _rates(cases), strict=True)]


def stored(found: Decision) -> Result:
    """What the books say became of a bet."""
    return Result(found.status, found.bet.reward_rate_bps, found.payout_amount)


def _result(case: Case, rate: Rate) -> Result:
    found, proof = case
    if found.status == "insufficient_funds":
        return stored(found)  # nothing was decided
    if rate.void_reason is not None:
        return Result("void", None, None)
    if rate.bps is None:
        return Result("pending", None, None)
    if proof.until < (found.cell.start + found.cell.width) * 1000:
        return Result("confirmed", rate.bps, None)
    if proof.window.void:
        return Result("void", rate.bps, None)
    paid = payout(found.bet.amount, rate.bps) if proof.window.wins(found.cell) else 0
    return Result("won" if paid else "lost", rate.bps, paid)


def _rates(cases: Sequence[Case]) -> list[Rate]:
    """The rates that follow from the bars.

    A call of a model takes as long for one bet as for a hundred, so there is one for all; a bet's
    rate has the same bits as alone (`game/rates.py`).
    """
    bars = {proof.priced.t: (proof.priced, proof.before) for _, proof in cases if proof.priced}
    volatilities = {t: _volatility(bar, before) for t, (bar, before) in bars.items()}
    rates = [Rate()] * len(cases)
    asked: defaultdict[str, dict[int, tuple[float, ...]]] = defaultdict(dict)
    for number, (found, proof) in enumerate(cases):
        cell, bar, pricing = found.cell, proof.priced, found.pricing
        start = cell.start * 1000
        if bar is None or bar.t + BAR_MS > start:
            if proof.until >= start:
                rates[number] = Rate(void_reason=VoidReason.NO_PRICE)
            continue
        volatility = volatilities[bar.t]
        if volatility is None:
            rates[number] = Rate(void_reason=VoidReason.NO_PRICE)
        elif pricing is not None:
            lead_s = (start - bar.t - BAR_MS) / 1000
            asked[pricing.rate_model][number] = (
                *(bar.close, *volatility, lead_s, cell.width),
                *(cell.low, cell.high),
            )
    for name, inputs in asked.items():
        model = ALL_RATES[name]
        columns = np.array(list(inputs.values()), dtype=np.float64).T
        computed = model.rate_bps(model.probability(*columns)).tolist()
        for number, bps in zip(inputs, computed, strict=True):
            rates[number] = _judged(bps, cases[number].found.bet.min_reward_rate_bps)
    return rates


def _judged(bps: int, wanted: int | None) -> Rate:
    """A model's rate, 0 for none, where at least `wanted` was asked for."""
    if not bps:
        return Rate(void_reason=VoidReason.NOT_OFFERED)
    if bps < (wanted or 0):
        return Rate(void_reason=VoidReason.RATE_BELOW_MINIMUM)
    return Rate(bps)


def _volatility(bar: StoredBar, before: StoredBar | None) -> tuple[float, float] | None:
    """The estimate after `bar`, computed from the bar before it where there is one."""
    model = ALL_VOLATILITIES[bar.volatility_model]
    state = bar.state
    if before is not None and before.volatility_model == bar.volatility_model:
        state = model.advance(before.state, bar.t, bar.close)
    return (model.sigma(state), model.spread(state)) if model.ready(state) else None


def _verify_rate(case: Case, rate: Rate) -> Iterator[Finding]:
    found, proof = case
    bet, pricing, bar, reason = found.bet, found.pricing, proof.priced, rate.void_reason
    placed = f"placed {rfc3339_ms(bet.placed_at)}"
    if found.status == "pending":
        yield Finding(rate == Rate(), f"It was {placed} and has no rate yet.")
        return
    if pricing is None or bar is None:
        right = reason is VoidReason.NO_PRICE and found.void_reason == reason
        yield Finding(right, f"It was {placed}; there was no usable price before its window began.")
        return
    yield Finding(
        (bar.t, bar.close) == (pricing.bar, pricing.price),
        f"It was {placed}; the first bar {pricing.speed_bump_ms} ms later is that of"
        f" {rfc3339_ms(bar.t)} and closed at {_dollars(bar.close)}; the rate was computed from"
        f" {rfc3339_ms(pricing.bar)} at {_dollars(pricing.price)}.",
    )
    volatility = _volatility(bar, proof.before)
    yield Finding(
        volatility == (pricing.sigma, pricing.spread),
        f"The volatility after that bar is {_numbers(volatility)} by the model"
        f" {bar.volatility_model}; {pricing.sigma!r} and {pricing.spread!r} were used.",
    )
    decided = f"The rate of this cell by the model {pricing.rate_model} is then"
    if reason is not None:
        why = {
            VoidReason.NOT_OFFERED: "none: its chance has left the range that is offered",
            VoidReason.RATE_BELOW_MINIMUM: "below the least that was asked for",
            VoidReason.NO_PRICE: "none: there is no usable estimate of the volatility",
        }.get(reason, reason.value)
        yield Finding(found.void_reason == reason, f"{decided} {why}; so it is void.")
    else:
        yield Finding(
            rate.bps == bet.reward_rate_bps,
            f"{decided} {rate.bps} basis points; {bet.reward_rate_bps} were fixed.",
        )


def _verify_result(case: Case, rate: Rate) -> Iterator[Finding]:
    found, proof = case
    cell, seen = found.cell, proof.window
    if found.bet.reward_rate_bps is None:
        return
    end = (cell.start + cell.width) * 1000
    if found.status == "confirmed":
        closed = f"Its window closes {rfc3339_ms(end)}; it has no result yet."
        yield Finding(found.window is None or proof.until <= end, closed)
        return
    yield Finding(
        seen == found.window,
        f"Its window has {seen.bars} bars, the longest gap is {seen.longest_gap} ms (at most"
        f" {MAX_GAP_MS}), and the price went from {_dollars(seen.low)} to {_dollars(seen.high)};"
        f" the column was decided by {found.window}.",
    )
    status, _, paid = _result(case, rate)
    band = f"{_dollars(cell.low)} to {_dollars(cell.high)}"
    touching = next(
        (bar for bar in proof.bars if bar.low <= cell.high and bar.high >= cell.low), None
    )
    if seen.void:
        words = "The feed was without a price for too long, so the column is void"
    elif touching is not None:
        words = f"The price was in {band} in the bar of {rfc3339_ms(touching.t)}, so it won"
    else:
        words = f"The price was never in {band}, so it lost"
    yield Finding(
        (status, paid) == (found.status, found.payout_amount),
        f"{words} and is paid {_dollars(paid or 0)}; it is {found.status} and was paid"
        f" {_dollars(found.payout_amount or 0)}.",
    )


def _dollars(cents: int | None) -> str:
    return "-" if cents is None else f"${cents // 100:,}.{cents % 100:02d}"


def _numbers(volatility: tuple[float, float] | None) -> str:
    return "not known" if volatility is None else f"{volatility[0]!r} and {volatility[1]!r}"
