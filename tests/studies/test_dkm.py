"""Data of the study of deep kernel machines, and the measures it takes."""

import numpy as np
import pandas as pd
import pytest
import torch

from paperworks.studies.dkm import (
    METHODS,
    alignment,
    composed,
    log_density,
    parts_of,
    regression,
    study,
)
from paperworks.study import Setting
from paperworks.wide import SparseDKMRegressor


class Drawing:
    """The part of a run that a trial of tables uses."""

    methods = METHODS

    def __init__(self, seed=0):
        self.seed = seed

    def random_state(self, name):
        return self.seed

    def witness(self, **shared):
        assert set(shared) == {"split"}

    def rng(self, name):
        return torch.Generator().manual_seed(self.seed)


@pytest.fixture
def uci(tmp_path, monkeypatch):
    """Tables as the full scale reads them: numbers with a header, the target last."""
    (tmp_path / "uci").mkdir()
    rng = np.random.default_rng(0)
    for cell in study.experiment("regression").full:
        X = rng.normal(size=(60, 3))
        X[:, 2] = 1.0  # a constant column, as in naval
        frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(y=X[:, 0] + 0.5)
        frame.to_csv(tmp_path / cell["data"].removeprefix("file:"), index=False)
    monkeypatch.chdir(tmp_path)


def test_full_scale_reads_its_tables(uci):
    for cell in study.experiment("regression").full:
        study.data.check(cell["data"])
        (X, y), (V, _), (T, _) = parts_of(cell, Drawing())
        assert (len(X), len(V), len(T)) == (48, 6, 6)
        assert np.isfinite(X).all()
        assert y.std() == pytest.approx(1)


@pytest.mark.parametrize("method", METHODS)
def test_full_scale_measures_on_a_table(uci, method):
    cell = study.experiment("regression").full[0]
    small = Setting({**cell, "method": method, "inducing": 5, "steps": 3})
    metrics = regression(small, Drawing())
    assert all(np.isfinite(list(metrics.values())))
    assert ("alignment" in metrics) == (method in ("dkm", "nngp", "svgp"))


def test_only_two_columns_of_the_composed_function_matter():
    X, y = composed(20_000, np.random.default_rng(0))
    noise = y - np.sin(3 * np.abs(X[:, 0] + X[:, 1]))
    assert X.shape == (20_000, 10)
    assert noise.std() == pytest.approx(0.1, abs=0.005)


def test_parts_are_apart_and_standardised_by_the_training_rows():
    setting = Setting(data="composed", n=100)
    (X, y), (V, _), (T, _) = parts_of(setting, Drawing())
    assert (len(X), len(V), len(T)) == (80, 20, 100)
    np.testing.assert_allclose(X.mean(0), 0, atol=1e-12)
    assert y.std() == pytest.approx(1)
    assert len(np.unique(np.r_[X, V, T], axis=0)) == 200


@pytest.mark.parametrize("name", METHODS)
def test_methods_predict_with_a_deviation(name):
    X, y = composed(40, np.random.default_rng(0))
    setting = Setting(method=name, inducing=8, steps=5, learning_rate=0.1)
    model = METHODS[name](setting, 0).fit(X, y)
    mean, std = model.predict(X, return_std=True)
    expected = torch.distributions.Normal(torch.tensor(mean), torch.tensor(std))
    assert log_density(model, X, y) == pytest.approx(
        expected.log_prob(torch.tensor(y)).mean().item()
    )
    if isinstance(model, SparseDKMRegressor):
        assert model.max_iter == 5
        assert model.n_layers == (0 if name == "svgp" else 2)
        assert np.isinf(model.nu) == (name == "nngp")


def test_alignment_is_that_of_the_matrix():
    X, y = composed(30, np.random.default_rng(0))
    model = SparseDKMRegressor(30, 1, max_iter=5, random_state=0).fit(X, y)
    with torch.no_grad():
        K = model.module_[:-1](torch.from_numpy(X))
        low_rank = (K.ti @ torch.linalg.solve(K.ii, K.ti.T)).numpy()
    H = np.eye(30) - 1 / 30
    K, yy = H @ low_rank @ H, H @ np.outer(y, y) @ H
    expected = (K * yy).sum() / np.linalg.norm(K) / np.linalg.norm(yy)
    assert alignment(model, X, y) == pytest.approx(expected, rel=1e-3)
