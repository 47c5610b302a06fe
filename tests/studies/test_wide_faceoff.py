"""The face-off of wide networks: fair methods, no look at the test rows, rivals of a user's own."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedKFold

import paperworks
from paperworks.studies import wide_faceoff as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run

CV = StratifiedKFold(2)


def majority(cv, random_state):
    """A user's rival."""
    return DummyClassifier()


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return X[::2], y[::2], X[1::2], y[1::2]


@pytest.mark.parametrize("method", study.METHODS)
def test_every_method_learns_and_ignores_units(method, iris):
    """Columns in other units change nothing: scaling is part of the classifier."""
    X, y, T, labels = iris
    units = np.array([1.0, 100.0, 0.01, 8.0])
    predicted = study.METHODS[method](CV, 0).fit(X, y).predict(T)
    again = study.METHODS[method](CV, 0).fit(X * units, y).predict(T * units)
    assert np.mean(predicted == labels) > 0.9
    assert np.mean(predicted == again) > 0.97


def test_who_tunes_tries_equally_many_on_the_same_folds():
    searches = {
        name: search
        for name, method in study.METHODS.items()
        if isinstance(search := method(CV, 0), GridSearchCV)
    }
    assert {*study.RIVALS} <= searches.keys()
    assert {len(ParameterGrid(search.param_grid)) for search in searches.values()} == {12}
    assert all(search.cv is CV for search in searches.values())


@pytest.mark.parametrize("method", study.METHODS)
def test_predictions_are_of_a_row_alone(method, iris):
    """Test rows are not looked at together: one of them far off moves no other."""
    X, y, T, _ = iris
    classifier = study.METHODS[method](CV, 0).fit(X, y)
    far = np.concatenate([T, [[1e3, -1e3, 1e3, -1e3]]])
    assert (classifier.predict(far)[:-1] == classifier.predict(T)).all()


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
        setting = Setting(method="majority", data=table, train=0.7, test=0.3, folds=5)
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
