"""What the estimators share; through them it is tested in test_dkm.py and test_smnngp.py."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator

from paperworks.wide.estimators import ScaledTargets, inducing_rows


class Model(ScaledTargets, BaseEstimator):
    def __init__(self, normalize_y=True):
        self.normalize_y = normalize_y


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(6,), (6, 2)])
def test_targets_come_back_in_their_units_and_shape(normalize, shape):
    y = 5 + 3 * np.random.default_rng(0).normal(size=shape)
    model = Model(normalize)
    model._learn_scale(y)
    scaled = model._scaled(y)
    if normalize:
        assert scaled.mean(0) == pytest.approx(np.zeros(scaled.shape[1]), abs=1e-12)
        assert scaled.std(0) == pytest.approx(np.ones(scaled.shape[1]))
    back = model._shaped(scaled * model.y_scale_ + model.y_mean_)
    assert back.shape == shape
    assert back == pytest.approx(y)


def test_constant_targets_are_only_shifted():
    model = Model()
    model._learn_scale(np.full(5, 1e6 / 3))
    assert model.y_scale_.tolist() == [1.0]
    assert not model._scaled(np.full(5, 1e6 / 3)).any()


def test_inducing_rows_are_distinct_rows_or_centres():
    rng = np.random.default_rng(0)
    few = rng.normal(size=(4, 2))
    rows = np.repeat(few, 3, axis=0)
    found = inducing_rows(rows, 10, np.random.RandomState(0))
    assert sorted(found.tolist()) == sorted(few.tolist())
    blobs = np.array([[0.0, 0.0], [9.0, 9.0]])[rng.integers(2, size=200)]
    blobs = blobs + 0.1 * rng.normal(size=blobs.shape)
    centres = inducing_rows(blobs, 2, np.random.RandomState(0))
    assert sorted(centres[:, 0].round().tolist()) == [0, 9]
    many = inducing_rows(rng.normal(size=(10_500, 1)), 3, np.random.RandomState(0))
    assert many.shape == (3, 1)
