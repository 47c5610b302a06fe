"""Claims on tables where the verdict is known."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from paperworks.study.claims import (
    Claim,
    Verdict,
    all_of,
    equals,
    exponent,
    falls,
    higher,
    lower,
    report,
    rises,
    seeds_needed,
    within,
)
from paperworks.study.contract import Experiment, grid
from paperworks.study.terms import Record, Table, rank_correlation, slope

NOISE = np.array([-1.0, 1.0, -0.5, 0.5, 0.0])  # mean 0, standard deviation 0.79
SIZES = [1, 2, 4, 8]


def trial(setting, run):
    raise AssertionError("claims run nothing")


pair = Experiment(trial, {"a": 0, "b": 0}, *[grid(n=[0])] * 3, name="pair")
sweep = Experiment(trial, {}, *[grid(n=SIZES)] * 3, name="sweep")
GRIDS = {"pair": pair.cells("desk"), "sweep": sweep.cells("desk")}


def judge(form, seeds=None, grids=GRIDS, **rows):
    """The verdict on a=[a number a seed], b=..., or on y=[[a number a level] a seed]."""
    claim = form if isinstance(form, Claim) else Claim("C1", "So it is.", form)
    table = tabled(**rows)
    n = len(next(iter(rows.values())))
    return claim.evaluate(table, grids, range(100, 100 + n) if seeds is None else seeds)


def tabled(y=(), **methods):
    records = [
        Record("pair", cell, 100 + i, None if math.isnan(v) else {"y": v})
        for cell in GRIDS["pair"]
        for i, v in enumerate(methods.get(cell.method, ()))
    ]
    records += [
        Record("sweep", cell, 100 + i, {"y": float(v)})
        for i, row in enumerate(y)
        for cell, v in zip(GRIDS["sweep"], row)
    ]
    return Table(records)


def terms(**how):
    y = pair.metric("y", **how)
    return y("a"), y("b")


a, b = terms()
loss_a, loss_b = terms(log=True)
y = sweep.metric("y")


@pytest.mark.parametrize(
    ("gain", "form", "verdict"),
    [
        (3, higher(a, b), "reproduced"),
        (0.1, higher(a, b), "inconclusive"),
        (-3, higher(a, b), "not reproduced"),
        (3, higher(a, b, by=1), "reproduced"),
        (3, higher(a, b, by=10), "smaller than stated"),
        (3, higher(a, b, by=3), "inconclusive"),
        (0.1, higher(a, b, by=10), "not reproduced"),
        (-0.1, higher(a, b, by=-3), "reproduced"),
        (-6, higher(a, b, by=-3), "not reproduced"),
        (-3, lower(a, b), "reproduced"),
        (-3, lower(a, b, by=10), "smaller than stated"),
        (3, lower(a, b, by=-10), "reproduced"),
        (0.1, within(a, b, 3), "reproduced"),
        (5, within(a, b, 3), "not reproduced"),
        (0.1, within(a, b, 0.5), "inconclusive"),
        (3, equals(a - b, 3.1, 2), "reproduced"),
        (3, equals(a, 3, 2), "not reproduced"),
    ],
)
def test_forms_on_differences(gain, form, verdict):
    base = np.linspace(10, 90, 5)  # the seeds differ far more than the methods
    found = judge(form, a=base + gain + NOISE, b=base)
    assert found.verdict == verdict
    assert not found.reason


@pytest.mark.parametrize(
    ("ratio", "form", "verdict"),
    [
        (0.5, lower(loss_a, loss_b), "reproduced"),
        (0.5, lower(loss_a, loss_b, factor=0.7), "reproduced"),
        (0.8, lower(loss_a, loss_b, factor=0.7), "smaller than stated"),
        (1.0, lower(loss_a, loss_b, factor=0.7), "not reproduced"),
        (2.0, lower(a, b, factor=0.7), "not reproduced"),
        (5.0, higher(a, b, factor=3), "reproduced"),
        (2.0, higher(a, b, factor=3), "smaller than stated"),
        (0.9, higher(a, b, factor=0.5), "reproduced"),
        (0.5, lower(loss_a, 0.7 * loss_b), "reproduced"),
    ],
)
def test_forms_on_ratios(ratio, form, verdict):
    base = np.array([1e-3, 1e-1, 1.0, 10.0, 1e3])
    found = judge(form, a=base * ratio * np.exp(NOISE / 10), b=base)
    assert (found.verdict, found.quantity) == (verdict, "ratio")


def test_a_ratio_is_the_geometric_mean_with_the_interval_of_the_logarithms():
    rng = np.random.default_rng(0)
    x, z = rng.lognormal(size=(2, 6))
    found = judge(lower(loss_a, loss_b, factor=0.7), a=x, b=z)
    theirs = scipy.stats.ttest_rel(np.log(x), np.log(z)).confidence_interval(0.95)
    assert found.effect == pytest.approx(scipy.stats.gmean(x / z))
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(theirs)))
    assert found.margin == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("form", "quantity"),
    [
        (higher(loss_a, loss_b), "ratio"),
        (higher(loss_a, 0.3), "ratio"),
        (higher(2, loss_b), "ratio"),
        (higher(a, b, factor=1), "ratio"),
        (higher(loss_a, loss_b, by=0), "difference"),
        (higher(loss_a, b), "difference"),
        (higher(loss_a, 0), "difference"),
        (higher(loss_a - loss_b, 0.3), "difference"),
        (within(loss_a, loss_b, 0.1), "difference"),
    ],
)
def test_which_scale_decides(form, quantity):
    assert form.quantity == quantity


@pytest.mark.parametrize(
    "make",
    [
        lambda: higher(a, b, by=1, factor=2),
        lambda: higher(a, b, factor=-1),
        lambda: lower(a, b, factor=0),
        lambda: higher(a, b, by=math.nan),
        lambda: within(a, b, -0.1),
        lambda: within(a, b, 0),
        lambda: equals(a, math.inf, 1),
        lambda: exponent(y, along="n", value=1, tolerance=-1),
        lambda: all_of(),
        lambda: all_of(higher(a, b), report(a)),
        lambda: Claim("1", "text", higher(a, b)),
        lambda: Claim("C1ab", "text", higher(a, b)),
        lambda: Claim("C1", "text", higher(a, b), margin="theirs"),
    ],
)
def test_bad_arguments(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("id", ["C1", "C12", "C2a"])
def test_ids(id):
    assert judge(Claim(id, "text", higher(a, b)), a=NOISE, b=NOISE).claim == id


# What there is no verdict on


def test_fewer_than_three_seeds():
    found = judge(higher(a, b), a=[2.0, 3.0], b=[1.0, 1.0])
    assert (found.verdict, found.effect, found.low) == ("inconclusive", 1.5, None)
    assert "three seeds" in found.reason
    assert judge(higher(a, b), seeds=[], a=[2.0], b=[1.0]).verdict == "inconclusive"


def test_a_failed_or_missing_trial_is_named():
    found = judge(higher(a, b), a=[2, 3, math.nan, 5], b=[1, 1, 1, 1])
    assert found.verdict == "inconclusive"
    assert found.reason == "pair with method=a, n=0 failed (seed 102)"
    found = judge(higher(a, b), a=[2, 3, 4, 5], b=[1, 1, 1])
    assert found.reason == "pair with method=b, n=0 has not run (seed 103)"
    found = judge(higher(a, b), grids={}, a=[2, 3, 4], b=[1, 1, 1])
    assert found.reason.startswith("not run at this scale or with these settings")
    assert found.effect is None


@pytest.mark.parametrize("zero", [0.0, -1.0])
def test_no_logarithm(zero):
    found = judge(lower(loss_a, loss_b), a=[1, 2, zero, 1], b=[1, 1, 2, 3])
    assert (found.verdict, found.effect) == ("inconclusive", None)
    assert "seed 102" in found.reason
    assert "logarithm" in found.reason


def test_division_by_zero():
    found = judge(higher(a / b, 1), a=[1, 2, 3], b=[1, 0, 2])
    assert found.verdict == "inconclusive"
    assert "division by 0" in found.reason


# No variation over seeds


def test_a_constant_difference_of_varying_metrics_is_a_point():
    base = np.random.default_rng(0).normal(size=5)
    found = judge(higher(a, b, by=0.1), a=base + 0.3, b=base)
    assert (found.verdict, found.point, found.low, found.high) == (
        "reproduced", True, found.effect, found.effect,
    )  # fmt: skip
    assert judge(higher(a, b, by=0.5), a=base + 0.3, b=base).verdict == "smaller than stated"
    assert judge(within(a, b, 0.5), a=base + 0.3, b=base).verdict == "reproduced"
    assert judge(within(a, b, 0.1), a=base + 0.3, b=base).verdict == "not reproduced"


@pytest.mark.parametrize("shift", [0.0, 1e-16, 1e-13])
def test_identical_methods_are_no_different_to_the_last_digit(shift):
    base = np.random.default_rng(0).normal(size=5)
    for form in (higher(a, b), lower(a, b), higher(a + 0.3, b, by=0.3)):
        found = judge(form, a=base * (1 + shift), b=base)
        assert (found.verdict, found.reason) == ("inconclusive", "identical in every seed")
    assert judge(within(a, b, 0.1), a=base * (1 + shift), b=base).verdict == "reproduced"


def test_seeds_that_change_no_metric_decide_nothing():
    found = judge(higher(a, b), a=[0.9] * 5, b=[0.8] * 5)
    assert found.verdict == "inconclusive"
    assert "seeds had no effect" in found.reason
    assert judge(within(a, b, 1), a=[0.9] * 5, b=[0.8] * 5).verdict == "inconclusive"


def test_unless_the_metric_is_declared_deterministic():
    a, b = terms(deterministic=True)
    found = judge(higher(a, b), a=[0.9] * 5, b=[0.8] * 5)
    assert (found.verdict, found.point) == ("reproduced", True)
    assert judge(higher(b, a), a=[0.9] * 5, b=[0.8] * 5).verdict == "not reproduced"
    assert judge(higher(a, b), a=[0.9] * 5, b=[0.9] * 5).reason == "identical in every seed"
    assert judge(equals(a, 0.9, 1e-6), a=[0.9] * 5, b=[0.8] * 5).verdict == "reproduced"


def test_one_deterministic_metric_does_not_speak_for_the_other():
    exact = pair.metric("y", deterministic=True)
    found = judge(higher(exact("a"), b), a=[0.9] * 5, b=[0.8] * 5)
    assert "seeds had no effect" in found.reason
    assert judge(higher(exact("a"), b), a=[9.0] * 5, b=NOISE).verdict == "reproduced"


def test_a_resolution_keeps_saturated_accuracies_from_collapsing():
    a, b = terms(resolution=0.01)
    found = judge(higher(a, b, by=0.1), a=[1.0] * 5, b=[0.5] * 5)
    half = scipy.stats.t.ppf(0.975, 4) * 0.01 / math.sqrt(6) / math.sqrt(5)
    assert (found.verdict, found.point) == ("reproduced", False)
    assert found.high - found.low == pytest.approx(2 * half)
    found = judge(higher(a, b), a=[1.0] * 5, b=[1.0] * 5)
    assert (found.verdict, found.point) == ("inconclusive", False)
    assert "too few for so coarse" in found.reason
    assert judge(within(a, b, 0.02), a=[1.0] * 5, b=[1.0] * 5).verdict == "reproduced"


def test_a_resolution_below_the_spread_changes_nothing():
    fine = judge(higher(*terms(resolution=1e-3)), a=NOISE + 3, b=NOISE[::-1])
    bare = judge(higher(a, b), a=NOISE + 3, b=NOISE[::-1])
    assert (fine.low, fine.high) == (bare.low, bare.high)


# Along a setting


def test_rises_and_falls():
    up = [[1, 2, 3, 4], [5, 6, 7, 8], [1, 3, 4, 5], [0, 1, 2, 3], [2, 3, 5, 4]]
    down = [row[::-1] for row in up]
    assert judge(rises(y, along="n"), y=up).verdict == "reproduced"
    assert judge(falls(y, along="n"), y=up).verdict == "not reproduced"
    assert judge(falls(y, along="n"), y=down).verdict == "reproduced"
    assert judge(rises(y, along="n"), y=down).verdict == "not reproduced"
    found = judge(rises(y, along="n"), y=up)
    assert (found.quantity, found.margin, found.side) == ("tau", 0, "above")
    assert found.effect == pytest.approx((4 + 2 / 3) / 5)


def test_rises_is_not_fooled_by_a_jump():
    hump = np.array([[0, 9, 3, 1]]) + np.random.default_rng(0).normal(0, 0.1, (10, 4))
    assert judge(rises(y, along="n"), y=hump).verdict != "reproduced"


def test_strict_asks_every_step():
    mostly = [[1, 2, 4, 3]] * 5 + [[1, 2, 3, 4]] * 5
    varied = np.array(mostly) + np.arange(10)[:, None]
    assert judge(rises(y, along="n"), y=varied).verdict == "reproduced"
    assert judge(rises(y, along="n", strict=True), y=varied).verdict == "inconclusive"
    steady = np.arange(4) + np.arange(10)[:, None]
    assert judge(rises(y, along="n", strict=True), y=steady).verdict == "reproduced"
    assert judge(falls(y, along="n", strict=True), y=-steady).verdict == "reproduced"
    assert judge(falls(y, along="n", strict=True), y=steady).verdict == "not reproduced"


@pytest.mark.parametrize(("n", "verdict"), [(5, "inconclusive"), (6, "reproduced")])
def test_two_levels_need_six_agreeing_seeds(n, verdict):
    two = {"sweep": GRIDS["sweep"][:2]}
    found = judge(rises(y, along="n"), grids=two, y=np.arange(4) + np.arange(n)[:, None])
    assert (found.verdict, found.effect) == (verdict, 1)
    assert bool(found.reason) == (verdict == "inconclusive")


def test_exponent():
    power = 3 * np.array(SIZES) ** -0.5 * np.exp(0.01 * np.outer(NOISE, [1, -1, 1, -1]))
    assert judge(exponent(y, along="n", value=-0.5, tolerance=0.1), y=power).verdict == "reproduced"
    found = judge(exponent(y, along="n", value=-1, tolerance=0.1), y=power)
    assert (found.verdict, found.margin) == ("not reproduced", (-1.1, -0.9))
    zero = judge(exponent(y, along="n", value=-1, tolerance=0.1), y=power * [1, 1, 0, 1])
    assert "logarithm" in zero.reason


def test_slopes_and_rank_correlations_are_terms():
    rng = np.random.default_rng(0)
    rows = np.arange(4) + rng.normal(0, 0.01, (5, 4))
    assert judge(within(slope(y, along="n"), 0.4, 0.1), y=rows).verdict == "reproduced"
    same = rank_correlation(y, y, over="n")
    found = judge(higher(same, 0.5), y=rows)
    assert (found.verdict, found.effect, found.point) == ("reproduced", 0.5, False)
    assert judge(higher(same, 0.99), y=rows).verdict == "inconclusive"
    undefined = judge(higher(same, 0.5), y=[[1, 1, 1, 1], *rows])
    assert "ranking of equals" in undefined.reason


# Several forms, and none


def test_all_of_is_as_good_as_its_worst_part():
    base = np.arange(5.0)
    words = {}
    for gain in (3.0, 0.0, -3.0):
        form = all_of(higher(a, b), higher(a, b, by=-9), higher(a, b, by=-10))
        words[gain] = judge(form, a=base + gain + NOISE, b=base).verdict
    assert words == {3: "reproduced", 0: "inconclusive", -3: "not reproduced"}
    form = all_of(higher(a, b), higher(a, b, by=10))
    found = judge(form, a=base + 3 + NOISE, b=base)
    assert found.verdict == "smaller than stated"
    assert [part.verdict for part in found.parts] == ["reproduced", "smaller than stated"]
    assert found.sentence().startswith("1 of 2 parts reproduced; difference 3 [")
    assert form.metrics() == {("pair", "y")}
    assert len(form.cells(GRIDS)) == 2


def test_report_is_a_row_without_verdict():
    found = judge(report(a - b), a=NOISE + 2, b=NOISE[::-1])
    assert (found.verdict, found.margin, found.side) == ("reported", None, "")
    assert found.low < found.effect < found.high
    assert found.effect == pytest.approx(2)
    assert judge(report(loss_a), a=[1.0, 10.0, 100.0]).effect == pytest.approx(10)
    assert judge(report(a), a=[1.0, math.nan, 2.0]).verdict == "reported"
    assert judge(report(a), a=[1.0]).effect == 1


# What people and machines read


@pytest.mark.parametrize(
    ("form", "a", "sentence"),
    [
        (higher(a, b, by=1), NOISE + 3, "difference 3 [2.02, 3.98], needed above 1; 5 seeds"),
        (lower(a, b), NOISE + 3, "difference 3 [2.02, 3.98], needed below 0; 5 seeds"),
        (within(a, b, 2), NOISE + 3, "difference 3 [2.02, 3.98], needed between -2 and 2; 5 seeds"),
        (report(a), NOISE + 3, "value 53 [12.8, 93.2]; 5 seeds"),
        (
            higher(a, b), [3.0],
            "difference 3, needed above 0; 1 seed; an interval needs three seeds",
        ),
        (
            higher(a, b, by=3), np.full(5, 3.0),
            "difference 3 in every seed, needed above 3; 5 seeds; identical in every seed",
        ),
        (higher(a, b), [math.nan] * 3, "3 seeds; pair with method=a, n=0 failed (seed 100)"),
    ],
)  # fmt: skip
def test_sentences(form, a, sentence):
    base = np.array([10.0, 90.0, 30.0, 70.0, 50.0])[: len(a)]
    assert judge(form, a=base + a, b=base).sentence() == sentence


@pytest.mark.parametrize(
    "form",
    [higher(a, b, by=1), lower(loss_a, loss_b), within(a, b, 1), report(a), all_of(higher(a, b))],
)
def test_verdicts_survive_json(form):
    found = judge(Claim("C2a", "text", form, margin="paper"), a=[4.0, 3, 7], b=[1.0, 2, 2])
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Verdict.from_json(json.loads(text)) == found
    assert json.loads(text)["claim"] == "C2a"
    assert found.margin_owner == "paper"


# Before and after publishing


@pytest.mark.parametrize(("gain", "seeds"), [(3.0, 10), (0.5, 20), (0.32, 30), (0.05, 10)])
def test_seeds_needed_for_a_claim(gain, seeds):
    # the spread is 0.79: 10, 20, 30 seeds have half-widths 0.57, 0.37, 0.30
    base = np.linspace(0, 50, 5)
    table = tabled(a=base + gain + NOISE, b=base)
    for form in (higher(a, b), all_of(higher(a, b), higher(a, b, by=-9))):
        assert seeds_needed(Claim("C1", "", form), table, GRIDS, range(100, 105)) == seeds


def test_seeds_needed_on_logarithms():
    base = np.linspace(1, 50, 5)
    table = tabled(a=base * np.exp(0.5 + NOISE), b=base)
    claim = Claim("C1", "", higher(loss_a, loss_b))
    assert seeds_needed(claim, table, GRIDS, range(100, 105)) == 20


def test_ten_seeds_where_nothing_is_known():
    table = tabled(a=[1.0, 2.0, math.nan], b=[1.0, 2.0, 3.0])
    claims = [Claim("C1", "", form) for form in (higher(a, b), report(b))]
    assert [seeds_needed(c, table, GRIDS, range(100, 103)) for c in claims] == [10, 10]
    assert seeds_needed(claims[0], table, GRIDS, [100]) == 10


@pytest.mark.parametrize("form", [higher(a, b), lower(loss_a, loss_b), all_of(within(a, b, 1))])
def test_shift_from_the_shipped_effect(form):
    base = np.linspace(10, 50, 5)
    claim, seeds = Claim("C1", "", form), range(100, 105)
    theirs = tabled(a=base + 3 + NOISE, b=base)
    shipped = claim.evaluate(theirs, GRIDS, seeds)

    def shift(extra, seeds=seeds):
        ours = tabled(a=base + 3 + NOISE + extra, b=base)
        return claim.shift(ours, theirs, GRIDS, seeds, shipped)

    assert shift(np.zeros(5)) is None
    assert shift(NOISE * 10) is None  # large, but not in one direction
    assert shift(0.01 * (1 + NOISE / 10)) is None  # in one direction, but small
    assert "moved by" in shift(20 + NOISE)
    assert shift(20 + NOISE, seeds[:2]) is None
    assert "failed" in shift(np.full(5, math.nan))


def test_shift_of_a_point_ignores_the_last_digits():
    base = np.linspace(10, 50, 5)
    claim, seeds = Claim("C1", "", higher(a, b)), range(100, 105)
    theirs = tabled(a=base + 3, b=base)
    shipped = claim.evaluate(theirs, GRIDS, seeds)
    assert shipped.point
    assert claim.shift(tabled(a=base + 3 + 1e-6, b=base), theirs, GRIDS, seeds, shipped) is None
    assert claim.shift(tabled(a=base + 3.1, b=base), theirs, GRIDS, seeds, shipped)
