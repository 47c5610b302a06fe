"""Terms: which cells they mean, what they compute, how sure rounding leaves them."""

import math

import numpy as np
import pytest
import scipy.stats

from paperworks.study.contract import Experiment, grid
from paperworks.study.terms import NotMeasured as Missing
from paperworks.study.terms import Record, Table, TermError, log, rank_correlation, slope, trend


def trial(setting, run):
    raise AssertionError("claims run nothing")


def experiment(methods=("a", "b"), **axes):
    cells = grid(**axes)
    return Experiment(trial, dict.fromkeys(methods), smoke=cells[:1], desk=cells, full=cells)


def measured(experiment, measure, seeds, scale="desk", added=()):
    """A table of `measure(setting, seed) -> metrics`, and the grids it stands on."""
    grids = {experiment.name: experiment.cells(scale, added)}
    table = Table(
        Record(experiment.name, cell, seed, measure(cell, seed))
        for cell in grids[experiment.name]
        for seed in seeds
    )
    return table, grids


SEEDS = (100, 101, 102)
rounding = experiment(bits=[4, 3, 2], data=["digits", "photos"])
error = rounding.metric("error", log=True)
accuracy = rounding.metric("accuracy")


def measure(setting, seed):
    base = setting.bits + 10 * (setting.method == "b") + 100 * (setting.data == "photos")
    return {"error": base + seed, "accuracy": -base, "curve": [1.0, 2.0]}


table, grids = measured(rounding, measure, SEEDS)


def values(term, table=table, grids=grids, seeds=SEEDS):
    return term.values(table, seeds, grids).tolist()


def test_a_selector_singles_out_a_cell():
    assert values(error("b", bits=3, data="digits")) == [113, 114, 115]


def test_several_cells_where_one_is_meant_are_named():
    with pytest.raises(TermError, match=r"method=a, bits=3 means several.*data=digits and data=ph"):
        error("a", bits=3).cells(grids)
    with pytest.raises(TermError, match="method=a and method=b"):
        values(error(bits=3, data="digits"))


def test_a_typing_error_in_a_selector_is_found_when_the_study_is_imported():
    with pytest.raises(TermError, match="unknown setting key of trial 'bit': did you mean bits"):
        error("a", bit=3)
    with pytest.raises(TermError, match="no cell with method=c at any scale"):
        error("c")
    with pytest.raises(TermError, match="bits=7"):
        error.mean(bits=7)
    with pytest.raises(ValueError, match="unknown setting key"):
        slope(error, "a", along="bit")
    with pytest.raises(TypeError, match="expected a metric"):
        slope(error("a", bits=3, data="digits"), along="bits")


def test_a_cell_of_another_scale_is_not_run():
    _, smoke = measured(rounding, measure, SEEDS, "smoke")
    term = error("a", bits=2, data="digits")
    assert term.cells(smoke) == set()
    with pytest.raises(Missing, match=r"not run at this scale or with these settings: .*bits=2"):
        values(term, grids=smoke)
    with pytest.raises(Missing, match="not run at this scale"):
        values(term, grids={})


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (None, r"bits=3.* failed \(seed 101\)"),
        ({}, r"bits=3.* has not run \(seed 101\)"),
        ({"accuracy": 1.0}, "has no error"),
        ({"error": [1.0, 2.0]}, "has no error"),
    ],
)
def test_what_is_missing_is_named(metrics, message):
    broken, _ = measured(
        rounding,
        lambda s, seed: metrics if (s.bits, seed) == (3, 101) else measure(s, seed),
        SEEDS,
    )
    with pytest.raises(Missing, match=message):
        values(error.mean("a"), broken)
    assert values(error("a", bits=4, data="digits"), broken) == [104, 105, 106]


def test_two_records_of_one_place_are_refused():
    record = Record("trial", grid(bits=3)[0], 0, {"error": 1.0})
    with pytest.raises(ValueError, match="two records of trial"):
        Table([record, record])


def test_mean_max_min_over_matching_cells():
    assert values(error.mean("a", data="digits")) == [103, 104, 105]
    assert values(error.max("a", bits=[2, 3], data="digits")) == [103, 104, 105]
    assert values(error.min(data="photos")) == [202, 203, 204]
    assert values(error.mean(["a", "b"], bits=4, data="digits")) == [109, 110, 111]


def test_a_users_rival_changes_no_claim():
    table, grids = measured(
        rounding,
        lambda s, seed: {"error": 0.0 if s.method == "mine" else 1.0},
        SEEDS,
        added=["mine"],
    )
    assert values(error.min(), table, grids) == [1, 1, 1]
    assert len(error.mean().cells(grids)) == 12


def test_arithmetic():
    a, b = error("a", bits=3, data="digits"), error("b", bits=3, data="digits")
    assert values(b - a) == [10, 10, 10]
    assert values((a + b) / 2 - 1) == [107, 108, 109]
    assert values(2 * a - b * 1 + (1 - a) + 1 / (a / a) + (1 + -a)) == pytest.approx(
        [-110, -111, -112]
    )
    assert values(log(a)) == pytest.approx(np.log([103, 104, 105]))


def test_terms_refuse_what_is_none():
    a = error("a", bits=3, data="digits")
    with pytest.raises(TypeError, match="expected a term"):
        a + error
    with pytest.raises(TypeError, match="expected a term"):
        a - True
    with pytest.raises(ValueError, match="finite"):
        a + math.inf


def test_which_terms_are_compared_on_logarithms():
    loss, other = error("a", bits=3, data="digits"), error("b", bits=3, data="digits")
    right = accuracy("a", bits=3, data="digits")
    positive = [loss, error.mean(), error.max(), error.min(), loss / other, 2 * loss, loss + other]
    assert all(term.log for term in positive)
    signed = [right, -loss, 1 - loss, loss - other, loss * right, log(loss)]
    assert not any(term.log for term in [*signed, slope(error, "a", along="bits", data="digits")])


def test_what_a_term_needs():
    term = error("a", bits=3, data="digits") - accuracy.mean("b", bits=3)
    assert term.cells(grids) == {
        ("trial", cell.canonical())
        for cell in grids["trial"]
        if cell.bits == 3 and (cell.method == "b" or cell.data == "digits")
    }
    assert term.metrics() == {("trial", "error"), ("trial", "accuracy")}
    assert (
        2 * term / 3 + slope(error, "a", along="bits", data="digits")
    ).metrics() == term.metrics()


def test_slope_inside_each_seed():
    assert values(slope(error, "a", along="bits", data="digits")) == pytest.approx([1, 1, 1])
    sizes = experiment(methods=(), n=[8, 2, 4])
    table, grids = measured(sizes, lambda s, seed: {"loss": seed * s.n**-0.5}, SEEDS)
    fitted = slope(sizes.metric("loss"), along="n", log=True)
    assert values(fitted, table, grids) == pytest.approx([-0.5] * 3)


@pytest.mark.parametrize(("n", "log"), [([0, 1], True), (["inf", 1], False), (["x", "y"], False)])
def test_a_slope_needs_numbers(n, log):
    sizes = experiment(methods=(), n=n)
    table, grids = measured(sizes, lambda s, seed: {"loss": 1.0}, SEEDS)
    with pytest.raises(TermError, match="needs"):
        values(slope(sizes.metric("loss"), along="n", log=log), table, grids)


@pytest.mark.parametrize(
    ("levels", "order"),
    [
        ([10, 9, 100], [9, 10, 100]),
        (["inf", 2, 16], [2, 16, "inf"]),
        (["small", "big", "bigger"], ["small", "big", "bigger"]),
    ],
)
def test_levels_rise_as_numbers_and_keep_the_grids_order_as_words(levels, order):
    sizes = experiment(methods=(), n=levels)
    table, grids = measured(
        sizes, lambda s, seed: {"loss": float(order.index(s.n))}, SEEDS, scale="desk"
    )
    term = trend(sizes.metric("loss"), None, "n", 1.0, {})
    assert values(term, table, grids) == [1, 1, 1]


def test_trend_per_seed():
    rows = {100: [1, 2, 3], 101: [1, 3, 2], 102: [3, 2, 1]}
    sizes = experiment(methods=(), n=[1, 2, 4])
    table, grids = measured(sizes, lambda s, seed: {"y": rows[seed][[1, 2, 4].index(s.n)]}, rows)
    y = sizes.metric("y")
    assert values(trend(y, None, "n", 0.0, {}), table, grids) == pytest.approx([1, 1 / 3, -1])
    assert values(trend(y, None, "n", 1.0, {}), table, grids) == [1, -1, -1]
    assert values(trend(y, None, "n", -1.0, {}), table, grids) == [-1, -1, 1]


def test_a_series_needs_two_levels_that_are_told_apart():
    _, smoke = measured(rounding, measure, SEEDS, "smoke")
    with pytest.raises(Missing, match=r"needs several bits, .*has 1"):
        values(slope(error, "a", along="bits", data="digits"), grids=smoke)
    with pytest.raises(TermError, match="data=digits and data=photos"):
        slope(error, "a", along="bits").cells(grids)


def test_rank_correlation_across_cells():
    rng = np.random.default_rng(0)
    numbers = {
        (c.canonical(), s): rng.integers(0, 4, 2).astype(float)
        for c in rounding.cells("desk")
        for s in SEEDS
    }
    table, _ = measured(
        rounding, lambda s, seed: dict(zip(["x", "y"], numbers[s.canonical(), seed])), SEEDS
    )
    x, y = rounding.metric("x"), rounding.metric("y")
    found = values(rank_correlation(x, y, over=["method", "bits", "data"]), table)
    for seed, rho in zip(SEEDS, found):
        pairs = [v for (_, s), v in numbers.items() if s == seed]
        assert rho == pytest.approx(scipy.stats.spearmanr(*zip(*pairs)).statistic)
    with pytest.raises(TermError, match="several cells"):
        values(rank_correlation(x, y, "a", over="bits"), table)


def test_rank_correlation_across_experiments_pairs_by_key():
    first, second = experiment(methods=(), n=[4, 3, 2]), experiment(methods=(), n=[2, 3, 4])
    second.name = "second"
    grids = {e.name: e.cells("desk") for e in (first, second)}
    table = Table(
        Record(name, cell, seed, {"y": cell.n * (1.0 if name == "trial" else -1.0)})
        for name, cells in grids.items()
        for cell in cells
        for seed in SEEDS
    )
    term = rank_correlation(first.metric("y"), second.metric("y"), over="n")
    assert values(term, table, grids) == pytest.approx([-1, -1, -1])
    assert term.metrics() == {("trial", "y"), ("second", "y")}
    with pytest.raises(Missing, match="needs several n, the same"):
        values(term, table, {**grids, "second": grids["second"][1:]})


def accuracies(a, b, q=None):
    two = experiment(n=[0])
    table, grids = measured(two, lambda s, seed: {"y": a if s.method == "a" else b}, SEEDS)
    y = two.metric("y", resolution=q)
    return y("a"), y("b"), lambda term, **how: term.rounding(table, SEEDS, grids, **how)


def test_rounding_of_a_difference_is_q_over_root_six():
    a, b, rounding = accuracies(0.9, 0.8, q=0.01)
    assert rounding(a) == pytest.approx(0.01 / math.sqrt(12))
    assert rounding(a - b) == pytest.approx(0.01 / math.sqrt(6))
    assert rounding(3 * a - 3 * b) == pytest.approx(0.03 / math.sqrt(6))
    assert rounding((a + b) / 2) == pytest.approx(0.005 / math.sqrt(6))
    assert rounding(a - a) == pytest.approx(0)  # the same rounding twice


def test_rounding_on_logarithms_is_relative():
    a, b, rounding = accuracies(0.5, 0.25, q=0.001)
    expected = math.hypot(0.001 / 0.5, 0.001 / 0.25) / math.sqrt(12)
    assert rounding(log(a) - log(b)) == pytest.approx(expected, rel=1e-4)
    assert math.isfinite(accuracies(0.01, 0.01, q=0.1)[2](log(a)))  # never below 0


def test_rounding_without_a_resolution_is_in_the_tenth_digit():
    a, b, rounding = accuracies(1e6, 1e6)
    assert rounding(a - b) == pytest.approx(1e-3 / math.sqrt(6))
    a, b, rounding = accuracies(1.0, 1.0, q=0.1)
    assert rounding(a - b, declared=False) == pytest.approx(1e-9 / math.sqrt(6), rel=1e-5)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_a_rank_statistic_moves_in_steps(k):
    sizes = experiment(methods=(), n=list(range(k)))
    table, grids = measured(sizes, lambda s, seed: {"y": float(s.n)}, SEEDS)
    y = sizes.metric("y")
    steps = {
        trend(y, None, "n", 0.0, {}): 4 / (k * (k - 1)),
        trend(y, None, "n", 1.0, {}): 2.0,
        rank_correlation(y, y, over="n"): 12 / (k * (k * k - 1)),
    }
    for term, step in steps.items():
        assert term.rounding(table, SEEDS, grids) == pytest.approx(step / math.sqrt(6))
        assert (1 - term).rounding(table, SEEDS, grids) == pytest.approx(step / math.sqrt(6))


def test_resolution_must_be_positive():
    with pytest.raises(ValueError, match="resolution"):
        rounding.metric("accuracy", resolution=0)
