"""What the study draws, asks and trains, and its full-scale code on few pictures."""

import numpy as np
import pandas as pd
import pytest
import torch

from paperworks.studies import widecnn as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run
from paperworks.wide import HierarchicalKernel


def run(methods=None, seed=0):
    return Run(seed, methods=methods or {})


def test_fields_have_the_covariance_of_their_teacher():
    """Variance 1, training and test points in one draw, the same points for every teacher."""
    field, other = (study.random_field(run(), name, 8, 40, 3000) for name in ("2-2", "2"))
    assert torch.equal(field["X"], other["X"])
    K = HierarchicalKernel((2, 2))(field["X"]) / 3
    covariance = field["Y"] @ field["Y"].mT / 3000
    assert (covariance - K).abs().max() < 0.12
    assert covariance.diagonal().mean() == pytest.approx(1, abs=0.02)


def test_samples_are_nested_and_a_matching_student_learns():
    setting = Setting(d=8, test=50, draws=3, largest=128, teacher="2", P=128, method="2")
    errors = {
        P: study.fields(Setting(setting | {"P": P}), run(study.STUDENTS))["error"]
        for P in (32, 128)
    }
    assert errors[128] < 0.5 * errors[32] < 0.3


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((1, 8, 8), (4, 4, 4)), ((3, 32, 32), (12, 4, 4, 4, 4)), ((3, 6, 4), (12,))],
)
def test_filters_of_pictures(shape, sizes):
    assert study.picture_filters(*shape) == sizes
    model = study.hierarchical(shape, 0)
    X = np.random.default_rng(0).random((12, np.prod(shape)))
    assert model.fit(X, np.arange(12) % 2).kernel_.filter_sizes == sizes
    assert study.even_sides(torch.ones(2, 3, 7, 8)).shape == (2, 3, 6, 8)


@pytest.mark.parametrize("method", study.CLASSIFIERS)
def test_full_scale_reads_cifar(tiny_hub, method):
    cell = next(c for c in study.collected.full if c["data"] == "hub:uoft-cs/cifar10")
    metrics = study.pictures(
        Setting(cell | {"method": method, "train": 24, "test": 8}), run(study.CLASSIFIERS)
    )
    assert 0 <= metrics["accuracy"] <= 1


def test_full_scale_has_deeper_teachers():
    cells = [cell for cell in study.learning.full if cell["d"] == 16]
    assert {cell["teacher"] for cell in cells} == {"2", "2-2", "2-2-2", "2-2-2-2"}
    deepest = Setting(
        next(c for c in cells if c["method"] == "2-2-2-2")
        | {"teacher": "2-2-2-2", "test": 20, "largest": 32, "P": 32}
    )
    assert study.fields(deepest, run(study.DEEPER))["error"] < 1.5


def test_trained_networks_go_to_their_kernel():
    setting = Setting(d=8, teacher="2-2", P=16, test=50, steps=150)
    distances = [study.finite(Setting(setting | {"width": width}), run()) for width in (8, 128)]
    assert all(found["training_error"] < 1e-3 for found in distances)
    assert distances[1]["distance"] < 0.6 * distances[0]["distance"]


def test_slopes_are_drawn_for_students_that_can_learn_the_teacher():
    rows = [
        {
            "experiment": "fields",
            "teacher": t,
            "method": m,
            "P": P,
            "seed": 0,
            "d": 8,
            "error": 1 / P,
        }
        for t in ("2", "2-2")
        for m in (*study.STUDENTS, "my-rival")
        for P in (256, 512)
    ]
    panels = study.learning_curves(pd.DataFrame(rows)).axes
    dashed = [sum(line.get_linestyle() == "--" for line in axes.lines) for axes in panels]
    assert dashed == [3, 2]
    empty = pd.DataFrame({"experiment": ["spectrum"], "seed": [0]})  # only some claims were run
    assert not study.learning_curves(empty).axes
