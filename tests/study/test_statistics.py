"""The interval and the verdict rule against scipy, by hand, and on tables with a known truth."""

import importlib.util
import itertools
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from paperworks.study import statistics

ABOVE = (0.0, np.inf)
FINITE = st.floats(-1e6, 1e6)


def test_interval_is_scipys_paired_t_interval():
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    theirs = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    mean, low, high = statistics.interval(a - b)
    assert mean == pytest.approx((a - b).mean())
    assert (low, high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


def test_interval_runs_along_the_last_axis():
    values = np.random.default_rng(0).normal(size=(4, 3, 5))
    mean, low, high = statistics.interval(values)
    assert mean.shape == low.shape == high.shape == (4, 3)
    np.testing.assert_allclose(low[2, 1], statistics.interval(values[2, 1])[1])


def test_floor_replaces_a_smaller_spread_and_no_larger_one():
    assert statistics.interval([1, 1, 1], floor=1.0)[1] == pytest.approx(
        1 - 4.3027 / 3**0.5, rel=1e-4
    )
    assert statistics.interval([0, 5, 10], floor=1.0) == statistics.interval([0, 5, 10])


def test_statistics_do_not_load_scipy_stats():
    code = "import sys, paperworks.study.claims; print('scipy.stats' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("low", "high", "region", "verdict"),
    [
        (0.1, 0.2, (0, math.inf), "reproduced"),
        (-0.1, 0.2, (0, math.inf), "inconclusive"),
        (0.0, 0.2, (0, math.inf), "inconclusive"),  # touches the margin
        (-0.2, -0.1, (0, math.inf), "not reproduced"),
        (0.1, 0.2, (0.3, math.inf), "smaller than stated"),
        (-0.1, 0.2, (0.3, math.inf), "not reproduced"),  # short of it, and the sign is not clear
        (0.1, 0.4, (0.3, math.inf), "inconclusive"),
        (-0.01, 0.01, (-0.02, math.inf), "reproduced"),  # not lower by more than 0.02
        (-0.05, -0.03, (-0.02, math.inf), "not reproduced"),
        (-0.2, -0.1, (-math.inf, -0.3), "smaller than stated"),
        (0.1, 0.2, (-math.inf, -0.3), "not reproduced"),
        (-0.4, -0.35, (-math.inf, -0.3), "reproduced"),
        (-0.1, 0.1, (-0.2, 0.2), "reproduced"),
        (-0.1, 0.3, (-0.2, 0.2), "inconclusive"),
        (0.3, 0.4, (-0.2, 0.2), "not reproduced"),
        (-0.5, 0.5, (-0.2, 0.2), "inconclusive"),
    ],
)
def test_decide(low, high, region, verdict):
    null = 0.0 if math.inf in map(abs, region) else math.nan
    assert statistics.decide(low, high, region, null) == verdict


@given(FINITE, st.floats(0, 1e3), st.floats(-10, 10))
def test_higher_and_lower_mirror_each_other(low, width, margin):
    up = statistics.decide(low, low + width, (margin, math.inf), 0.0)
    down = statistics.decide(-low - width, -low, (-math.inf, -margin), 0.0)
    assert up == down


@given(st.lists(FINITE, min_size=2, max_size=8, unique=True))
def test_kendall_tau_is_scipys_without_ties(y):
    theirs = scipy.stats.kendalltau(range(len(y)), y).statistic
    assert statistics.kendall_tau(y) == pytest.approx(theirs, abs=1e-12)


def test_kendall_tau_counts_a_tie_as_neither():
    assert statistics.kendall_tau([1, 1, 2]) == pytest.approx(2 / 3)
    assert statistics.kendall_tau([3, 3, 3]) == 0


def test_every_step():
    y = [[1, 2, 3], [1, 3, 2], [1, 1, 2], [3, 2, 1]]
    assert statistics.every_step(y).tolist() == [1, -1, -1, -1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=10))
def test_spearman_is_scipys_with_ties(pairs):
    x, y = np.array(pairs, dtype=float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert np.isnan(statistics.spearman(x, y))
    else:
        theirs = scipy.stats.spearmanr(x, y).statistic
        assert statistics.spearman(x, y) == pytest.approx(theirs, abs=1e-12)


def test_slope_is_scipys():
    x, y = np.random.default_rng(0).normal(size=(2, 6))
    assert statistics.slope(x, y) == pytest.approx(scipy.stats.linregress(x, y).slope)


@pytest.mark.parametrize(
    ("mean", "region", "seeds"),
    [
        (0.8, ABOVE, 10),  # 10 seeds: half-width 0.715
        (0.7, ABOVE, 20),  # 20 seeds: 0.468
        (0.4, ABOVE, 30),  # 30 seeds: 0.373
        (0.3, ABOVE, 10),
        (-0.8, ABOVE, 10),
        (0.0, (-0.4, 0.4), 30),
        (0.8, (-1.2, 1.2), 30),  # the nearer edge counts
    ],
)
def test_seeds_needed(mean, region, seeds):
    assert statistics.seeds_needed(mean, 1.0, region) == seeds


def test_by_chance():
    assert statistics.by_chance(40) == pytest.approx(1.0)


# How often verdicts are right: the functions of benchmarks/verdicts.py on 20,000 tables, where a
# rate of 2.5 % has a standard error of 0.11 points.

_path = Path(__file__).parents[2] / "benchmarks" / "verdicts.py"
_spec = importlib.util.spec_from_file_location("verdicts", _path)
verdicts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(verdicts)


def rate(situation, n, tables=20_000):
    return situation(np.random.default_rng(n), tables, n)


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize(
    "situation",
    [
        verdicts.effect(0.0),
        verdicts.both,
        verdicts.equivalence(2.0, 2.0),
        verdicts.accuracies(0.9, 360),
        verdicts.accuracies(0.999, 360),
        verdicts.skewed(logs=True),
    ],
    ids=["no effect", "all_of", "at the edge of within", "accuracies", "saturated", "log ratios"],
)
def test_false_reproductions_stay_at_the_level(situation, n):
    assert rate(situation, n) < 0.025 + 4 * 0.0011


@pytest.mark.parametrize(
    ("situation", "rates"),
    [
        (verdicts.effect(0.0), (0.025, 0.025, 0.025)),
        (verdicts.effect(0.5), (0.08, 0.14, 0.29)),
        (verdicts.effect(1.0), (0.18, 0.40, 0.80)),
        (verdicts.effect(2.0), (0.47, 0.91, 1.0)),
        (verdicts.equivalence(0.0, 1.0), (0.06, 0.15, 0.61)),
        (verdicts.equivalence(0.0, 2.0), (0.32, 0.83, 1.0)),
        (verdicts.growth(0.05), (0.68, 0.997, 1.0)),
        (verdicts.growth(0.15), (0.07, 0.17, 0.66)),
    ],
)
def test_power_is_what_the_guide_promises(situation, rates):
    found = [rate(situation, n) for n in (3, 5, 10)]
    assert found == pytest.approx(rates, abs=0.015)


def exact_rate_of_a_trend(k, n):
    """P(`rises` is reproduced) where all orders of k levels are equally likely, by enumeration."""
    orders = itertools.permutations(range(k))
    taus = Counter(round(float(statistics.kendall_tau(order)), 12) for order in orders)
    values, weights = np.array(list(taus)), np.array(list(taus.values())) / math.factorial(k)
    total = 0.0
    for seeds in itertools.combinations_with_replacement(range(len(values)), n):
        counts = np.bincount(seeds, minlength=len(values))
        ways = math.factorial(n) / math.prod(map(math.factorial, counts.tolist()))
        _, low, _ = statistics.interval(values[list(seeds)], 4 / (k * (k - 1)) / math.sqrt(6))
        total += ways * np.prod(weights**counts) * (low > 0)
    return total


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("n", [3, 5])
def test_a_trend_by_chance(k, n):
    assert exact_rate_of_a_trend(k, n) < 0.0275


@pytest.mark.parametrize("k", [2, 3, 4])
def test_a_trend_by_chance_with_ten_seeds(k):
    assert rate(verdicts.trend([0.0] * k), 10) < 0.0275 + 4 * 0.0011


@pytest.mark.parametrize("n", range(3, 11))
def test_two_levels_need_six_agreeing_seeds(n):
    _, low, _ = statistics.interval(np.ones(n), floor=2 / math.sqrt(6))
    assert (low > 0) == (n >= 6)


def test_a_trend_is_found_and_a_hump_is_none():
    assert rate(verdicts.trend([0, 1, 2, 3]), 5) > 0.9
    assert rate(verdicts.trend([0, 2, 2, 0]), 5) < 0.03


def test_what_the_rules_are_there_to_prevent():
    """Each of these would break the level; the engine does none of them."""
    assert rate(verdicts.skewed(logs=False), 5) > 0.1  # losses on the raw scale
    assert rate(verdicts.chased, 5) > 0.04  # more seeds for inconclusive claims alone
    y = np.random.default_rng(0).integers(0, 2, (20_000, 5)) * 2.0 - 1  # two levels, no effect
    assert verdicts.share(y) > 0.025  # no floor: five agreeing seeds, a point at 1


def test_one_data_set_the_interval_speaks_of_its_reruns_only():
    """Splitting one data set anew covers its own mean, and new data the less the more seeds."""
    assert rate(verdicts.reruns("all splits"), 10) > 0.88
    assert rate(verdicts.reruns("new data"), 10) < 0.82
    assert rate(verdicts.reruns("new data"), 30) < 0.65
