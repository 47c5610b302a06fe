"""Which classifier of wide networks for a small table, and is it worth leaving k-NN for?

A face-off of the field `wide`, tied to no paper: its estimators against tuned classifiers of
scikit-learn on three small tables. Run it on a table of your own with
`paperworks faceoff wide --set data=file:TABLE.csv`.

- `tables`: 70 % of the rows train, 30 % test, drawn anew, stratified, for each seed and shared by
  all methods. Accuracy on the test rows.

A method is a factory `method(cv, random_state)` of a scikit-learn classifier that gets the table as
it is; scaling is part of the classifier. `cv` are the folds of the training rows on which a method
that has something to tune chooses it, the same for all methods of a seed.

- `optimal` (infinitely wide and deep, with the activation for the dimension of the rows),
  `singular` (the Hilbert estimate with that exponent, its limit): nothing to tune.
- `relu-ntk` (a ReLU network of finite depth and infinite width): depth and ridge.
- `k-nn`: k and the weights of neighbours. `svm` (Gaussian kernel): C and γ. `logistic`: C.

Whoever tunes tries 12 candidates on the same five folds. Networks see rows on the positive orthant
of a sphere: columns scaled to [0, 1] by the training rows, others clipped to that, a column of ones
added, rows divided by their norm. The dimension is the intrinsic one of the training rows (TwoNN),
at least 2. The rivals see columns of mean 0 and deviation 1.

Seeds split the same three tables anew: the intervals speak of reruns on them, not of new tables.
There is no paper to differ from: tables, candidates and margins are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, Normalizer, StandardScaler
from sklearn.svm import SVC

from paperworks import data
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    all_of,
    grid,
    higher,
    lines,
    report,
    within,
)
from paperworks.wide import (
    DeepKernelClassifier,
    SingularKernelClassifier,
    intrinsic_dimension,
    optimal_activation,
)

Array = NDArray[Any]
Method = Callable[[StratifiedKFold, int], ClassifierMixin]


# ---- methods


class OfDimension(ClassifierMixin, BaseEstimator):
    """The classifier that `make` gives for the intrinsic dimension of its training rows."""

    def __init__(self, make: Callable[[int], ClassifierMixin]) -> None:
        self.make = make

    def fit(self, X: Array, y: Array) -> Self:
        self.classifier_ = self.make(max(2, round(intrinsic_dimension(X)))).fit(X, y)
        self.classes_ = self.classifier_.classes_
        return self

    def predict(self, X: Array) -> Array:
        return self.classifier_.predict(X)


def with_ones(X: Array) -> Array:
    return np.c_[X, np.ones(len(X))]


def on_sphere(classifier: ClassifierMixin) -> Pipeline:
    """The classifier on the positive orthant of a sphere."""
    ones = FunctionTransformer(with_ones)
    return make_pipeline(MinMaxScaler(clip=True), ones, Normalizer(), classifier)


def untuned(make: Callable[[int], ClassifierMixin]) -> Method:
    return lambda cv, random_state: on_sphere(OfDimension(make))


def tuned(pipeline: Callable[[int], Pipeline], **candidates: list[Any]) -> Method:
    """The pipeline with the best of all combinations of values for its last step."""

    def method(cv: StratifiedKFold, random_state: int) -> GridSearchCV:
        steps = pipeline(random_state)
        last = steps.steps[-1][0]
        return GridSearchCV(steps, {f"{last}__{k}": v for k, v in candidates.items()}, cv=cv)

    return method


def standardised(classifier: ClassifierMixin) -> Pipeline:
    return make_pipeline(StandardScaler(), classifier)


METHODS: dict[str, Method] = {
    "optimal": untuned(lambda dim: DeepKernelClassifier(optimal_activation(dim))),
    "singular": untuned(lambda dim: SingularKernelClassifier(dim=dim)),
    "relu-ntk": tuned(
        lambda _: on_sphere(DeepKernelClassifier("relu", depth=1, kernel="ntk")),
        depth=[1, 2, 4],
        ridge=[1e-3, 1e-2, 1e-1, 1.0],
    ),
    "k-nn": tuned(
        lambda _: standardised(KNeighborsClassifier()),
        n_neighbors=[1, 3, 5, 9, 15, 25],
        weights=["uniform", "distance"],
    ),
    "svm": tuned(
        lambda random_state: standardised(SVC(random_state=random_state)),
        C=[1, 10, 100],
        gamma=[1e-3, 1e-2, 1e-1, 1.0],
    ),
    "logistic": tuned(
        lambda random_state: standardised(
            LogisticRegression(max_iter=1000, random_state=random_state)
        ),
        C=[10 ** (power / 2) for power in range(-6, 6)],
    ),
}
RIVALS = ("k-nn", "svm", "logistic")


# ---- the trial


def tables(setting: Setting, run: Run) -> dict[str, float]:
    sizes = (setting.train, 0.0, setting.test)
    loaded = data.load(setting.data, sizes=sizes, generator=run.rng("split"))
    (X, y), (T, labels) = (
        (x.flatten(1).double().numpy(), y.numpy())
        for x, y in (part.tensors() for part in (loaded.train, loaded.test))
    )
    run.witness(split={"train": X, "labels": y, "test": T})
    cv = StratifiedKFold(setting.folds, shuffle=True, random_state=run.random_state("folds"))
    classifier = run.methods[setting.method](cv, run.random_state("method"))
    return {"accuracy": np.mean(classifier.fit(X, y).predict(T) == labels)}


# ---- the study

TESTED = {"iris": 45, "wine": 53, "breast_cancer": 170}
"""Test rows of each table."""

comparison = Experiment(
    tables,
    METHODS,
    smoke=grid(data="iris", train=0.6, test=0.4, folds=2),
    desk=grid(data=list(TESTED), train=0.7, test=0.3, folds=5),
    full=grid(data=[*TESTED, "digits"], train=0.7, test=0.3, folds=10),
)
accuracy = {
    table: comparison.metric("accuracy", resolution=1 / rows) for table, rows in TESTED.items()
}
overall = comparison.metric("accuracy").mean

study = Study(
    "wide_faceoff",
    experiments=[comparison],
    claims=[
        Claim(
            "C1",
            "Untuned, the optimal activation's accuracy is at most 0.02 below that of each tuned "
            "rival, on every table",
            all_of(
                *(
                    higher(of("optimal", data=table), of(rival, data=table), by=-0.02)
                    for table, of in accuracy.items()
                    for rival in RIVALS
                )
            ),
            margin="ours",
        ),
        Claim(
            "C2",
            "The Hilbert estimate, the optimal network's limit but for a bounded factor, is within "
            "0.02 of its accuracy on every table",
            all_of(
                *(
                    within(of("singular", data=table), of("optimal", data=table), 0.02)
                    for table, of in accuracy.items()
                )
            ),
            margin="ours",
        ),
        Claim(
            "C3",
            "The tuned neural tangent kernel's accuracy is at most 0.02 below the tuned SVM's on "
            "every table",
            all_of(
                *(
                    higher(of("relu-ntk", data=table), of("svm", data=table), by=-0.02)
                    for table, of in accuracy.items()
                )
            ),
            margin="ours",
        ),
        *(
            Claim(
                f"C{number}",
                f"Accuracy of the optimal activation less that of {rival}, mean over the tables",
                report(overall("optimal", data=list(TESTED)) - overall(rival, data=list(TESTED))),
            )
            for number, rival in enumerate(RIVALS, start=4)
        ),
    ],
    figures=[lines(x="method", y="accuracy", by="data")],
    data=data.Accepts(["table", "image"], min_classes=2),
    demo=["C1"],
)
