"""The report's pictures: return by bucket and calibration, with their bands."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fairness.verdict import ANY_BUCKET, Market

_GOOD, _BAD = "#2a6f97", "#c1121f"


def draw(market: Market, path: Path) -> None:
    """One picture for one market."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6.5), layout="constrained")
    figure.suptitle(f"{market.name}: {market.verdict}\n{market.about}", fontsize=11)
    _returns(left, market)
    _calibration(right, market)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _returns(axes: Axes, market: Market) -> None:
    rows = list(range(len(market.returns)))
    for row, band in zip(rows, market.returns, strict=True):
        colour = _BAD if band.low > ANY_BUCKET[1] else _GOOD
        axes.plot([max(band.low, 0), band.high], [row, row], color=colour, linewidth=2)
        axes.plot(band.mean, row, "o", color=colour)
    axes.axvspan(*ANY_BUCKET, color="#95d5b2", alpha=0.4, label="0.85 to 1.00")
    axes.set_yticks(rows, [f"{band.name}  (n={band.bets})" for band in market.returns], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 2)
    axes.set_xlabel("returned per stake, family-wise 95 % bands")
    axes.set_title("Return by distance (standard deviations) and lead (seconds)", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)


def _calibration(axes: Axes, market: Market) -> None:
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    for band, offered in market.calibration:
        axes.plot([offered, offered], [max(band.low, 0), band.high], color=_GOOD, linewidth=2)
        axes.plot(offered, band.mean, "o", color=_GOOD)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability that the rate was computed from")
    axes.set_ylabel("share of bets that won, family-wise 95 % bands")
    axes.set_title("Calibration", fontsize=10)
