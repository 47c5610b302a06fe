"""The study at full scale's settings, made tiny; its methods, figures and fixtures."""

import pandas as pd
import pytest
import torch

from paperworks.studies import iclinear as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run

TINY = {"examples": 12, "steps": 2, "batch": 2, "tasks": 20, "width": 16, "layers": 2}


@pytest.mark.parametrize("shift", study.SHIFTS)
def test_full_scale_compares_on_shifted_tasks(shift):
    cells = [cell for cell in study.compared.full if cell["shift"] == shift]
    assert {cell["dim"] for cell in cells} == {8}
    run = Run(0, methods=study.CANDIDATES)
    metrics = study.learners(Setting(cells[-1] | TINY, method="ols"), run)
    assert len(metrics["spd_curve"]) == 11
    kept = [spd for size, spd in enumerate(metrics["spd_curve"], start=1) if size != 8]
    assert metrics["spd"] == pytest.approx(sum(kept) / len(kept))
    seen = run.fixture(study.answers, seed=0, **fixture_arguments(cells[-1] | TINY))
    mean = {"shifted_x": 2.5}.get(shift, 0.0)
    assert seen["x"].mean().item() == pytest.approx(mean, abs=0.15)


def fixture_arguments(cell):
    return {key: cell[key] for key in (*study.LEARNER, "tasks", "shift")}


def test_full_scale_has_every_depth_and_width():
    cells = [cell for cell in study.compared.full if cell["shift"] == "none"]
    assert {cell["layers"] for cell in cells} == {1, 2, 4, 8, 12, 16}
    assert {cell["width"] for cell in cells} == {16, 32, 64, 128, 256, 512}
    assert {cell["steps"] for cell in cells} == {500_000}


@pytest.mark.parametrize("target", study.TARGETS)
@pytest.mark.parametrize("method", study.PROBES)
def test_full_scale_probes(target, method):
    (cell,) = [cell for cell in study.read.full if cell["target"] == target]
    cell = Setting(cell | TINY | {"probe_steps": 2, "layers": 3}, method=method)
    metrics = study.probes(cell, Run(0, methods=study.PROBES))
    assert len(metrics["r2_curve"]) == 3
    assert (metrics["first_r2"], metrics["last_r2"]) == tuple(metrics["r2_curve"][::2])


@pytest.mark.parametrize("algorithm", ["ridge", "sgd"])
def test_full_scale_weights_are_written(algorithm):
    (cell,) = [cell for cell in study.weights.full if cell["algorithm"] == algorithm]
    assert study.constructed(Setting(cell | {"examples": 5}), Run(0))["error"] < 1e-5


def test_a_candidate_of_the_learner_itself_is_at_distance_zero():
    (cell, *_) = study.compared.smoke
    run = Run(0)
    args = {key: cell[key] for key in study.LEARNER}
    model = study.trained(run, **args)

    def itself(x, y):
        with torch.no_grad():
            return model(study.interleave(x, y).float()).double()

    run.methods["itself"] = itself
    metrics = study.learners(Setting(cell, method="itself"), run)
    assert metrics["spd"] < 1e-10
    assert metrics["implicit_weight_difference"] < 1e-8


def test_every_candidate_predicts_every_position():
    x, y = torch.randn(4, 5, 2), torch.randn(4, 5)
    for name, candidate in study.CANDIDATES.items():
        assert candidate(x, y).shape == (4, 5), name
    assert set(study.RIDGES) | set(study.GD) <= set(study.CANDIDATES)


@pytest.mark.parametrize("draw", [study.by_context, study.by_ridge])
def test_figures_of_what_has_run(draw):
    nothing = pd.DataFrame({"experiment": ["constructed"], "seed": [0], "error": [1e-6]})
    assert draw(nothing).axes
    row = {"experiment": "learners", "seed": 0, "learner": "deep", "layers": 3, "noise": 0.0}
    row |= {"shift": "none", "method": "ridge_0.25", "spd": 0.1, "spd_curve": [0.2, 0.1]}
    assert draw(pd.DataFrame([row])).axes[0].lines
