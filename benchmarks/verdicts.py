"""How often are verdicts right? Simulated tables with a known truth, judged by the engine's code.

    python benchmarks/verdicts.py [TABLES]

prints, for 3, 5, 10 and 30 seeds, how often a claim comes out `reproduced`, or the interval covers
the truth. `tests/study/test_statistics.py` runs the same functions on fewer tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from paperworks.study import statistics
from paperworks.study.statistics import REPRODUCED, decide, interval

ABOVE = (0.0, np.inf)
Array = np.ndarray


def share(
    values: Array,
    region: tuple[float, float] = ABOVE,
    floor: Array | float = 0.0,
    word: str = REPRODUCED,
) -> float:
    """How many of the tables (tables, seeds) get this verdict."""
    _, low, high = interval(values, floor)
    return float(np.mean(decide(low, high, region, null=0.0) == word))


def effect(sd: float) -> Callable[..., float]:
    """`higher(a, b)`, normal differences, a true effect of so many standard deviations."""
    return lambda rng, tables, n: share(rng.normal(sd, 1, (tables, n)))


def smaller(rng: np.random.Generator, tables: int, n: int) -> float:
    """A true effect of 2 sd where 4 sd are stated: `smaller than stated`."""
    return share(rng.normal(2, 1, (tables, n)), (4.0, np.inf), word=statistics.SMALLER)


def equivalence(truth: float, tolerance: float) -> Callable[..., float]:
    """`within(a, b, tolerance)`, normal differences around `truth`, in standard deviations."""
    return lambda rng, tables, n: share(rng.normal(truth, 1, (tables, n)), (-tolerance, tolerance))


def both(rng: np.random.Generator, tables: int, n: int) -> float:
    """`all_of` a claim that is true by far and one with no effect."""
    _, low, high = interval(rng.normal([[[5.0]], [[0.0]]], 1, (2, tables, n)))
    return float(np.mean((decide(low, high, ABOVE, 0.0) == REPRODUCED).all(0)))


def chased(rng: np.random.Generator, tables: int, n: int) -> float:
    """No effect, and inconclusive claims alone get twice the seeds: what DESIGN forbids."""
    values = rng.normal(0, 1, (tables, 2 * n))
    _, low, high = interval(values[:, :n])
    first = decide(low, high, ABOVE, 0.0)
    _, low, high = interval(values)
    second = np.where(first == statistics.INCONCLUSIVE, decide(low, high, ABOVE, 0.0), first)
    return float(np.mean(second == REPRODUCED))


def growth(noise: float, shared: float = 0.0) -> Callable[..., float]:
    """`exponent(value=1, tolerance=0.1)` over sizes 1, 2, 4, 8; true, with noise in the logarithm.

    `shared` is noise that all seeds of a table have in common, as on one fixed data set.
    """

    def run(rng: np.random.Generator, tables: int, n: int) -> float:
        x = np.log([1, 2, 4, 8])
        y = x + rng.normal(0, noise, (tables, n, 4)) + rng.normal(0, shared, (tables, 1, 4))
        return share(statistics.slope(x, y), (0.9, 1.1))

    return run


def trend(truth: list[float]) -> Callable[..., float]:
    """`rises` over levels with these true means, noise 1."""

    def run(rng: np.random.Generator, tables: int, n: int) -> float:
        k = len(truth)
        tau = statistics.kendall_tau(rng.normal(truth, 1, (tables, n, k)))
        return share(tau, floor=4 / (k * (k - 1)) / np.sqrt(6))

    return run


def accuracies(
    p: float, points: int, gain: float = 0.0, floor: bool = True
) -> Callable[..., float]:
    """`higher` on the accuracies of two methods, right with chance p + gain and p at each point."""

    def run(rng: np.random.Generator, tables: int, n: int) -> float:
        a, b = rng.binomial(points, [[[p + gain]], [[p]]], (2, tables, n)) / points
        return share(a - b, floor=1 / points / np.sqrt(6) if floor else 0.0)

    return run


def skewed(logs: bool) -> Callable[..., float]:
    """`lower(loss, its own true level)`: log-normal losses, tested raw and on logarithms."""

    def run(rng: np.random.Generator, tables: int, n: int) -> float:
        z = rng.normal(0, 1, (tables, n))
        return share(z if logs else np.exp(z) - np.exp(0.5), (-np.inf, 0.0))

    return run


def reruns(of: str) -> Callable[..., float]:
    """Coverage of the interval when every seed splits the same 100 points anew, 80 to train.

    The quantity is the squared error of predicting the training mean minus that of predicting 0.3,
    for points with mean 0 and variance 1: 1/80 - 0.3² on `new data`. Given the points, its mean
    over `all splits` is another number, estimated from 2,000 of them.
    """

    def run(rng: np.random.Generator, tables: int, n: int) -> float:
        tables, extra = max(tables // 50, 100), 2000 * (of == "all splits")
        hits = 0
        for _ in range(tables):  # the splits of all tables at once would not fit in memory
            y = rng.permuted(np.tile(rng.normal(0, 1, 100), (n + extra, 1)), axis=1)
            mean, test = y[:, :80].mean(1, keepdims=True), y[:, 80:]
            d = ((test - mean) ** 2 - (test - 0.3) ** 2).mean(1)
            _, low, high = interval(d[:n])
            hits += low < (d[n:].mean() if extra else 1 / 80 - 0.3**2) < high
        return hits / tables

    return run


SITUATIONS: dict[str, Callable[..., float]] = {
    "no effect": effect(0.0),
    "effect 0.5 sd": effect(0.5),
    "effect 1 sd": effect(1.0),
    "effect 2 sd": effect(2.0),
    "effect 2 sd, 4 stated: smaller": smaller,
    "all_of(true, no effect)": both,
    "no effect, inconclusive rerun with 2n": chased,
    "within 1 sd, truth 0": equivalence(0.0, 1.0),
    "within 2 sd, truth 0": equivalence(0.0, 2.0),
    "within 2 sd, truth 2 sd": equivalence(2.0, 2.0),
    "exponent ± 0.1, noise 0.05": growth(0.05),
    "exponent ± 0.1, noise 0.15": growth(0.15),
    "exponent ± 0.1, truth 1.1, noise 0.05": lambda rng, tables, n: share(
        rng.normal(0.1, 0.05 / np.sqrt(5 * np.log(2) ** 2), (tables, n)), (-0.1, 0.1)
    ),
    "exponent ± 0.1, noise 0.05 + 0.15 shared": growth(0.05, 0.15),
    "rises, 2 levels, no effect": trend([0, 0]),
    "rises, 3 levels, no effect": trend([0, 0, 0]),
    "rises, 4 levels, no effect": trend([0, 0, 0, 0]),
    "rises, 4 levels, 1 sd a level": trend([0, 1, 2, 3]),
    "rises, 4 levels, up and down": trend([0, 2, 2, 0]),
    "accuracy 0.9 of 360, no effect": accuracies(0.9, 360),
    "accuracy 0.999 of 360, no effect": accuracies(0.999, 360),
    "accuracy 0.999 of 360, resolution ignored": accuracies(0.999, 360, floor=False),
    "accuracy 0.98 of 360, 0.01 better": accuracies(0.98, 360, 0.01),
    "log-normal loss, no effect, raw": skewed(logs=False),
    "log-normal loss, no effect, logs": skewed(logs=True),
    "coverage, one data set: its splits": reruns("all splits"),
    "coverage, one data set: new data": reruns("new data"),
}


def main() -> None:
    tables = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    seeds = (3, 5, 10, 30)
    print(f"| {tables:,} tables | " + " | ".join(f"{n} seeds" for n in seeds) + " |")
    print("|-|" + "-|" * len(seeds))
    for name, run in SITUATIONS.items():
        rates = (run(np.random.default_rng(n), tables, n) for n in seeds)
        print(
            f"| {name} | " + " | ".join(f"{100 * rate:.1f} %" for rate in rates) + " |", flush=True
        )


if __name__ == "__main__":
    main()
