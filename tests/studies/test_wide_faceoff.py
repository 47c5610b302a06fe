"""The face-off of wide networks: fair methods, no look at the test rows, rivals of a user's own."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedKFold
from sklearn.preprocessing import StandardScaler

import paperworks
from paperworks.studies import wide_faceoff as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run

CV = StratifiedKFold(2)


def majority(cv, random_state):
    """A user's rival."""
    return DummyClassifier()


@pytest.mark.parametrize("method", study.METHODS)
def test_every_method_learns_row_by_row_and_ignores_units(method):
    """Scaling is part of the classifier; test rows are not looked at together."""
    X, y = load_iris(return_X_y=True)
    X, y, T, labels = X[::2], y[::2], X[1::2], y[1::2]
    fitted = study.METHODS[method](CV, 0).fit(X, y)
    predicted = fitted.predict(T)
    assert np.mean(predicted == labels) > 0.9
    far = np.concatenate([T, [[1e3, -1e3, 1e3, -1e3]]])
    assert (fitted.predict(far)[:-1] == predicted).all()
    if method in ("scale-mixture", "dkm"):  # trained step by step, where rounding grows
        assert isinstance(fitted[0], StandardScaler)
        return
    units = np.array([1.0, 100.0, 0.01, 8.0])
    again = study.METHODS[method](CV, 0).fit(X * units, y).predict(T * units)
    assert np.mean(predicted == again) > 0.97


def test_probabilities_come_where_the_report_says():
    probable = [
        name for name, method in study.METHODS.items() if hasattr(method(CV, 0), "predict_proba")
    ]
    assert sorted(probable) == sorted(study.PROBABLE)


def test_tuning_goes_by_accuracy_and_then_by_calibration():
    X, y = np.zeros((4, 1)), np.array([0, 1, 1, 1])
    sure, unsure, wrong = (
        DummyClassifier(strategy=how, **options).fit(X, y)
        for how, options in (("most_frequent", {}), ("prior", {}), ("constant", {"constant": 0}))
    )
    scores = [study.accuracy_then_brier(model, X, y) for model in (unsure, sure, wrong)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(0.75 - 0.375e-3)


def test_calibration_of_known_probabilities():
    """Sure of 80 % and right in half: Brier score (0.08 + 1.28)/2, 0.3 too sure."""
    probabilities = np.tile([0.8, 0.2], (4, 1))
    right = np.eye(2, dtype=bool)[[0, 0, 1, 1]]
    found = study.calibration(probabilities, right)
    assert found == pytest.approx({"brier": 0.68, "calibration_error": 0.3})
    sure = study.calibration(np.eye(2)[[0, 1]], np.eye(2, dtype=bool)[[0, 1]])
    assert sure == {"brier": 0, "calibration_error": 0}


def test_who_tunes_tries_equally_many_on_the_same_folds():
    searches = {
        name: search
        for name, method in study.METHODS.items()
        if isinstance(search := method(CV, 0), GridSearchCV)
    }
    assert {*study.RIVALS} <= searches.keys()
    assert {len(ParameterGrid(search.param_grid)) for search in searches.values()} == {12}
    assert all(search.cv is CV for search in searches.values())


def test_dimension_is_that_of_the_training_rows():
    rng = np.random.default_rng(0)
    curve = rng.random((40, 1)) ** np.arange(1, 6)
    body = rng.random((2000, 3)) @ rng.random((3, 5))
    made = []

    def make(dim):
        made.append(dim)
        return DummyClassifier()

    for rows in (curve, body):
        study.OfDimension(make).fit(rows, np.arange(len(rows)) % 2)
    assert made == [2, 3]


def test_tables_have_so_many_test_rows():
    for table, rows in study.TESTED.items():
        setting = Setting(method="majority", data=table, train=0.7, test=0.3, folds=3)
        run = Run(0, methods={"majority": majority})
        metrics = study.tables(setting, run)
        assert math.isclose(metrics["accuracy"] * rows, round(metrics["accuracy"] * rows))


def test_a_users_table_and_rival(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((150, 2))
    rows = [f"{a},{b},{'over' if a > b else 'under'}" for a, b in x]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,label", *rows]))
    results = paperworks.run(
        "wide_faceoff",
        scale="smoke",
        jobs=0,
        set={"data": f"file:{tmp_path / 'mine.csv'}"},
        add={"majority": majority},
    )
    accuracy = results.frame().set_index("method")["accuracy"]
    assert not results.failures
    assert set(accuracy.index) == {*study.METHODS, "majority"}
    assert accuracy["majority"] < 0.65 < accuracy.drop("majority").min()
