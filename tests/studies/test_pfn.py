"""The study at full scale's settings, made tiny; its references against each other; figures."""

import numpy as np
import pandas as pd
import pytest
import torch

from paperworks.studies import pfn as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run

TINY = {"width": 8, "layers": 1, "heads": 2, "hidden": 8, "steps": 3, "batch": 2, "epoch": 2}
TINY |= {"points": 12, "context": 8}


def task(prior, n=6, count=3, queries=2):
    cell = Setting(study.UNKNOWN | TINY | {"prior": prior, "n": n, "queries": queries})
    return study.task_of(cell, Run(0), count)


@pytest.mark.parametrize("prior", ["known_5d", "unknown_5d"])
def test_full_scale_trains_and_predicts(prior):
    experiment = study.known if prior == "known_5d" else study.unknown
    cells = [cell for cell in experiment.full if cell["prior"] == prior]
    assert {cell["n"] for cell in cells} == set(study.LARGE_SIZES)
    assert {cell["context"] for cell in cells} == {1999}
    small = TINY | {"n": 4, "tasks": 2, "buckets": 10, "accumulate": 2}
    for method in ("pfn", "exact" if prior == "known_5d" else "mle2"):
        run = Run(0, methods=experiment.methods)
        metrics = study.predictive(Setting(cells[0] | small, method=method), run)
        assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("method", study.CLASSIFIERS)
def test_full_scale_classifies_tables(method, tmp_path):
    cell = next(cell for cell in study.classified.full if cell["data"] == "iris")
    assert study.PRIORS[cell["prior"]].widths[0] == 60
    small = TINY | {"splits": 1, "accumulate": 1}
    metrics = study.tables(Setting(cell | small, method=method), Run(0, methods=study.CLASSIFIERS))
    assert 0 <= metrics["auc"] <= 1
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(60, 3)), columns=list("abc"))
    frame["kind"] = np.where(frame["a"] > 0, "cat", "dog")
    frame.to_csv(tmp_path / "pets.csv", index=False)
    own = Setting(cell | small | {"data": f"file:{tmp_path / 'pets.csv'}"}, method=method)
    assert 0 <= study.tables(own, Run(0, methods=study.CLASSIFIERS))["auc"] <= 1


def test_the_grid_of_hyperparameters_is_fine_enough():
    """Twice as fine, the oracle says the same."""
    seen = task("unknown", n=8, count=20)
    coarse, _ = study.exact(seen)
    options = study.hyperparameters(torch.device("cpu"), (24, 16))
    fine = study.exact_gp_ppd(seen.x_ctx, seen.y_ctx, seen.x_query, **options)
    assert abs(float((fine.log_prob(seen.y_query.double()) - coarse).mean())) < 0.02


def test_sampling_agrees_with_the_mixture():
    seen = task("unknown", n=8, count=10)
    log_prob, cdf = study.hmc(seen)
    expected, at = study.exact(seen)
    assert (log_prob - expected).abs().mean() < 0.1
    assert (cdf - at).abs().mean() < 0.03


def test_references_order_as_they_must():
    seen = task("known", n=10, count=200)
    assert study.exact(seen)[0].mean() > study.marginal(seen)[0].mean() + 0.5
    assert study.marginal(seen)[0].shape == (200, 2)
    one = study.mle2(task("unknown", n=5, count=2))
    assert one[0].shape == one[1].shape == (2, 2)


def test_two_classes_are_the_last_ones():
    X, y = study.two_classes("iris")
    assert X.shape == (100, 4)
    assert y.sum() == 50


@pytest.mark.parametrize("draw", [study.density_beside_the_posterior, study.gap_by_context])
def test_figures_of_what_has_run(draw):
    nothing = pd.DataFrame({"experiment": ["timing"], "seed": [0], "nll": [1.0], "method": ["pfn"]})
    assert draw(nothing).axes
    rows = [
        {"experiment": name, "seed": 0, "method": method, "n": 1, "nll": 1.0 + (method == "pfn"),
         "size": 3, "density": [0.1] * 9, "context_x": [0.5], "context_y": [0.0]}
        for name in ("known", "shown")
        for method in ("pfn", "exact")
    ]  # fmt: skip
    assert any(axes.lines for axes in draw(pd.DataFrame(rows)).axes)
