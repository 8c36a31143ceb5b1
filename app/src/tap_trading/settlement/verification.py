"""Whether a decision follows from what is stored.

Everything is computed again by the same rules and from nothing else: the rate from the bar it
was priced from, that bar's volatility from the bar before it, the result from the bars of the
window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tap_trading.base.logger import rfc3339_ms
from tap_trading.game.settlement import BAR_MS, MAX_GAP_MS, VoidReason, payout, window
from tap_trading.ledger.queries import Bet
from tap_trading.market.price_store import StoredBar
from tap_trading.settlement.evidence import Decision, Evidence
from tap_trading.settlement.models import ALL_RATES, ALL_VOLATILITIES


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence about a bet, and whether it is as it has to be."""

    right: bool
    text: str


def verify(bet: Bet, found: Decision, proof: Evidence) -> list[Finding]:
    """Compute a bet's rate and result again, and say in words what was found."""
    if bet.status == "insufficient_funds":
        return [Finding(True, "The balance did not cover the stake; nothing was decided.")]
    return [*_verify_rate(bet, found, proof), *_verify_result(bet, found, proof)]


def replay(bet: Bet, found: Decision, proof: Evidence) -> tuple[str, int | None, int | None]:
    """Status, rate in basis points and payout in cents that follow from the stored bars.

    Of a bet without a result the status is that of its rate.
    """
    rate, reason = _rate(found, proof)
    if reason is not None:
        return "void", None, None
    if rate is None:
        return "pending", None, None
    if proof.until < (found.cell.start + found.cell.width) * 1000:
        return "confirmed", rate, None
    seen = window(found.cell.start, found.cell.width, proof.bars)
    if seen.void:
        return "void", rate, None
    paid = payout(bet.amount, rate) if seen.wins(found.cell) else 0
    return ("won" if paid else "lost"), rate, paid


def _rate(found: Decision, proof: Evidence) -> tuple[int | None, VoidReason | None]:
    """The rate that follows from the bars, or why there is none; neither: it is too early."""
    cell, bar, pricing = found.cell, proof.priced, found.pricing
    start = cell.start * 1000
    if bar is None or bar.t + BAR_MS > start:
        return (None, VoidReason.NO_PRICE) if proof.until >= start else (None, None)
    volatility = _volatility(bar, proof.before)
    if volatility is None:
        return None, VoidReason.NO_PRICE
    if pricing is None:
        return None, None
    model = ALL_RATES[pricing.rate_model]
    chance = model.probability(
        *(bar.close, *volatility, (start - bar.t - BAR_MS) / 1000, cell.width),
        *(cell.low, cell.high),
    )
    rate = int(model.rate_bps(chance))
    if not rate:
        return None, VoidReason.NOT_OFFERED
    if rate < (found.bet.min_reward_rate_bps or 0):
        return None, VoidReason.RATE_BELOW_MINIMUM
    return rate, None


def _volatility(bar: StoredBar, before: StoredBar | None) -> tuple[float, float] | None:
    """The estimate after `bar`, computed from the bar before it where there is one."""
    model = ALL_VOLATILITIES[bar.volatility_model]
    state = bar.state
    if before is not None and before.volatility_model == bar.volatility_model:
        state = model.advance(before.state, bar.t, bar.close)
    return (model.sigma(state), model.spread(state)) if model.ready(state) else None


def _verify_rate(bet: Bet, found: Decision, proof: Evidence) -> Iterator[Finding]:
    rate, reason = _rate(found, proof)
    pricing, bar = found.pricing, proof.priced
    placed = f"placed {rfc3339_ms(bet.placed_at)}"
    if bet.status == "pending":
        yield Finding(rate is None and reason is None, f"It was {placed} and has no rate yet.")
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
            rate == bet.reward_rate_bps,
            f"{decided} {rate} basis points; {bet.reward_rate_bps} were fixed.",
        )


def _verify_result(bet: Bet, found: Decision, proof: Evidence) -> Iterator[Finding]:
    if bet.reward_rate_bps is None:
        return
    cell = found.cell
    end = (cell.start + cell.width) * 1000
    if bet.status == "confirmed":
        closed = f"Its window closes {rfc3339_ms(end)}; it has no result yet."
        yield Finding(found.window is None or proof.until <= end, closed)
        return
    seen = window(cell.start, cell.width, proof.bars)
    yield Finding(
        seen == found.window,
        f"Its window has {seen.bars} bars, the longest gap is {seen.longest_gap} ms (at most"
        f" {MAX_GAP_MS}), and the price went from {_dollars(seen.low)} to {_dollars(seen.high)};"
        f" the column was decided by {found.window}.",
    )
    status, _, paid = replay(bet, found, proof)
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
        (status, paid) == (bet.status, bet.payout_amount),
        f"{words} and is paid {_dollars(paid or 0)}; it is {bet.status} and was paid"
        f" {_dollars(bet.payout_amount or 0)}.",
    )


def _dollars(cents: int | None) -> str:
    return "-" if cents is None else f"${cents // 100:,}.{cents % 100:02d}"


def _numbers(volatility: tuple[float, float] | None) -> str:
    return "not known" if volatility is None else f"{volatility[0]!r} and {volatility[1]!r}"
