"""From one number a seed to a verdict: intervals, ranks, and what a margin makes of them.

Everything works along the last axis, the seeds, so that the code which decides a claim is the
code whose error rates `benchmarks/verdicts.py` simulates. See README.md beside this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit  # scipy.stats would add 0.7 s to every command

REPRODUCED = "reproduced"
SMALLER = "smaller than stated"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
REPORTED = "reported"

ERROR = 0.025
"""How often a claim that just misses its margin still comes out `reproduced`."""

Array = NDArray[np.float64]


def half_width(sd: ArrayLike, n: int) -> Array:
    """Half the 95 % t interval of a mean of `n` values with standard deviation `sd`.

    >>> round(float(half_width(1.0, 5)), 3)
    1.242
    """
    return np.asarray(sd) * (stdtrit(n - 1, 1 - ERROR) / np.sqrt(n))


def interval(values: ArrayLike, floor: ArrayLike = 0.0) -> tuple[Array, Array, Array]:
    """Mean and 95 % t interval of paired values, one a seed.

    Args:
        values: (..., seeds).
        floor: the least standard deviation to believe in (...). Rounded metrics agree by
            coincidence; the floor is the spread that their rounding alone would give.

    Returns:
        mean, low, high: (...) each.

    >>> [round(float(end), 3) for end in interval([0.9, 1.0, 1.1])]
    [1.0, 0.752, 1.248]
    """
    values = np.asarray(values, dtype=float)
    mean = values.mean(-1)
    half = half_width(np.maximum(values.std(-1, ddof=1), floor), values.shape[-1])
    return mean, mean - half, mean + half


def decide(low: ArrayLike, high: ArrayLike, region: tuple[float, float], null: float) -> Any:
    """The verdict on an interval, given the region where the claim holds.

    Wholly inside is `reproduced`. Wholly outside is `smaller than stated` when the region is
    one-sided and the interval lies on its side of `null`, the value of no effect, and `not
    reproduced` otherwise. Across an edge, or touching it, is `inconclusive`.

    >>> str(decide(0.01, 0.03, region=(0.05, np.inf), null=0.0))
    'smaller than stated'
    """
    low, high = np.asarray(low), np.asarray(high)
    inside = (region[0] < low) & (high < region[1])
    outside = (high < region[0]) | (region[1] < low)
    right = (low > null) & (region[1] == np.inf) | (high < null) & (region[0] == -np.inf)
    words = [REPRODUCED, SMALLER, NOT_REPRODUCED]
    return np.select([inside, outside & right, outside], words, INCONCLUSIVE)


def kendall_tau(y: ArrayLike) -> Array:
    """Kendall's τ_a of `y` (..., levels) with the order it comes in: rises minus falls over pairs.

    A tie counts as neither, so that a metric which cannot tell two levels apart pulls τ to 0
    (τ_b would leave such pairs out, and is undefined when all are tied).

    >>> float(kendall_tau([1, 2, 4, 3]))
    0.6666666666666666
    """
    y = np.asarray(y, dtype=float)
    first, second = np.triu_indices(y.shape[-1], k=1)
    return np.sign(y[..., second] - y[..., first]).mean(-1)


def every_step(y: ArrayLike) -> Array:
    """+1 where `y` (..., levels) rises at every step, -1 where it does not."""
    return np.where((np.diff(np.asarray(y, dtype=float)) > 0).all(-1), 1.0, -1.0)


def spearman(x: ArrayLike, y: ArrayLike) -> Array:
    """Spearman's ρ of (..., cells) with (..., cells), ties sharing their mean rank.

    NaN where either is constant: it then has no order to compare.

    >>> float(spearman([1, 2, 3, 4], [1, 3, 2, 4]))
    0.8
    """
    x, y = (_centred_ranks(np.asarray(v, dtype=float)) for v in (x, y))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def slope(x: ArrayLike, y: ArrayLike) -> Array:
    """Slope of the least-squares line through y (..., levels) at x (levels).

    >>> float(slope([0, 1, 2], [1, 3, 5]))
    2.0
    """
    centred = np.asarray(x, dtype=float) - np.mean(np.asarray(x, dtype=float))
    return np.asarray(np.asarray(y, dtype=float) @ centred / (centred @ centred))


def seeds_needed(mean: float, sd: float, region: tuple[float, float]) -> int:
    """How many seeds to publish with: 10, or 20 or 30 where that many decide and fewer do not.

    Decides means that the expected half-width is below the distance from `mean` to the nearest
    edge of `region`. Where even 30 seeds would not do, 10: more would only cost time.

    >>> [seeds_needed(mean, 1.0, (0.0, np.inf)) for mean in (1.0, 0.5, 0.4, 0.1)]
    [10, 20, 30, 10]
    """
    distance = min(abs(mean - edge) for edge in region)
    return next((n for n in (10, 20, 30) if half_width(sd, n) < distance), 10)


def by_chance(claims: int) -> float:
    """How many of so many claims would come out `reproduced` if none of them were true.

    >>> round(by_chance(350), 1)
    8.8
    """
    return ERROR * claims


def _centred_ranks(values: Array) -> Array:
    """Ranks (..., cells) minus their mean, ties sharing one: half of smaller minus larger ones."""
    return np.sign(values[..., :, None] - values[..., None, :]).sum(-1) / 2
