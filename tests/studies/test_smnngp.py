"""What the study draws and counts, and its full-scale code on small data of the same schema."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from paperworks.studies import smnngp as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run


@pytest.fixture
def uci(tmp_path, monkeypatch):
    """Tables as the full scale reads them: numbers with a header, the target last."""
    (tmp_path / "uci").mkdir()
    rng = np.random.default_rng(0)
    for cell in study.tables.full:
        X = rng.normal(size=(50, 3))
        X[:, 2] = 1.0  # a constant column, as in naval
        frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(y=X[:, 0] + 0.5)
        frame.to_csv(tmp_path / cell["data"].removeprefix("file:"), index=False)
    monkeypatch.chdir(tmp_path)


def test_full_scale_reads_its_tables(uci):
    for cell in study.tables.full:
        study.study.data.check(cell["data"])
        run = Run(0, methods=study.REGRESSORS)
        metrics = study.regression(Setting({**cell, "depth": 1, "method": "t-2"}), run)
        assert metrics["rmse"] < 0.3
        assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize("method", study.PRIORS)
def test_full_scale_measures_on_pictures(tiny_hub, method):
    small = {"train_size": 20, "test": 9, "inducing": 4, "steps": 2, "samples": 2}
    small |= {"test_samples": 5, "lr": 0.03, "method": method}
    metrics = {}
    for cell in study.pictures.full:
        pictures = cell["pictures"] + ("&" if "?" in cell["pictures"] else "?") + "size=8"
        run = Run(0, methods=study.PRIORS)
        metrics = study.classification(Setting({**cell, **small, "pictures": pictures}), run)
        assert np.isfinite(list(metrics.values())).all()
        assert 0 <= metrics["accuracy_inverted"] <= 1
    assert cell["kernel"] == "cnn"
    assert len(metrics) == 6


def test_wine_predicts_alcohol():
    rows, targets = study.table("wine")
    assert rows.shape == (178, 12)
    assert len(np.unique(targets)) > 100
    assert study.table("diabetes")[0].shape == (442, 10)
    assert targets.std() == pytest.approx(1)


def test_shifts_are_student_t():
    draws = study.student_t2(5000, torch.Generator().manual_seed(0))
    assert stats.kstest(draws, stats.t(2).cdf).pvalue > 1e-3


def test_training_and_test_rows_are_apart():
    for name, keys in study.TABLES.items():
        rows = len(study.table(name)[0])
        assert max(study.SIZES[name]) + keys["test"] <= rows


def test_gradient_descent_fits_the_targets():
    """Networks of the trial, at one of their training rows: what is left after its steps."""
    rows = torch.nn.functional.normalize(torch.randn(4, 6, generator=generator()), dim=1) * 6**0.5
    rows[0] = rows[2]
    y = torch.tensor([1.0, -1.0, 0.5])
    K = study.nngp_kernel(rows[1:].double(), activation="relu", depth=1, C_W=2.0)
    prior = study.inverse_gamma(2.0)
    start, end = (
        study.outputs(rows, y, K, 500, steps, 20, prior, generator()) for steps in (0, 200)
    )
    assert start.std() > 0.5
    torch.testing.assert_close(end, torch.full((20,), -1.0), atol=0.02, rtol=0)


def generator():
    return torch.Generator().manual_seed(0)
