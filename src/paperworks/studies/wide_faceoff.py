"""Which classifier of wide networks for a small table, and is it worth leaving k-NN for?

A face-off of the field `wide`, tied to no paper: its estimators against tuned classifiers of
scikit-learn on three small tables. Run it on a table of your own with
`paperworks faceoff wide --set data=file:TABLE.csv`.

- `tables`: 70 % of the rows train, 30 % test, drawn anew, stratified, for each seed and shared by
  all methods; of the largest table also 25 and 100 rows. On the test rows accuracy and, of methods
  with probabilities, the Brier score Σ_c (p_c − y_c)² and the calibration error (how far the
  largest probability is from the share of right answers, mean over ten bins). Seconds of `fit`,
  tuning included, and of `predict`.

A method is a factory `method(cv, random_state)` of a scikit-learn classifier that gets the table as
it is; scaling is part of the classifier. `cv` are the folds of the training rows on which a method
that has something to tune chooses it, the same for all methods of a seed.

Networks of infinite width:

- `optimal` (infinitely deep too, with the activation for the dimension of the rows), `singular`
  (the Hilbert estimate with that exponent, its limit): nothing to tune.
- `relu-ntk` (a ReLU network of finite depth): depth and ridge.
- `hierarchical` (one hidden layer on rows that keep their lengths, a column of ones added): ridge.
- `dkm` (two layers of learned Gram matrices), `scale-mixture` (a heavy-tailed Gaussian process of a
  ReLU network, four layers): nothing is tuned, both train their kernels.

Of another kind: `pfn`, the transformer that comes with the package, trained once on a prior and on
no table; of more than ten columns it takes ten principal components: nothing to tune.

Rivals: `k-nn`: k and the weights of neighbours. `svm` (Gaussian kernel): C and γ. `logistic`: C.
`forest`: features a split and rows a leaf. `boosting` (of histograms): rate, leaves and rows a
leaf.

Whoever tunes tries 12 candidates on the same folds and takes the most accurate, among equals that
of the lowest Brier score. `optimal`, `singular` and `relu-ntk` see rows
on the positive orthant of a sphere: columns scaled to [0, 1] by the training rows, others clipped
to that, a column of ones added, rows divided by their norm. The dimension is the intrinsic one of
the training rows (TwoNN), at least 2. The others see columns of mean 0 and deviation 1.

Seeds split the same three tables anew: the intervals speak of reruns on them, not of new tables.
There is no paper to differ from: tables, candidates and margins are ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, Normalizer, StandardScaler
from sklearn.svm import SVC

from paperworks import data
from paperworks.incontext import PFNClassifier
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    all_of,
    drawn,
    grid,
    higher,
    lower,
    report,
    within,
)
from paperworks.study.figures import COLOURS, MARKERS, STYLES
from paperworks.wide import (
    DeepKernelClassifier,
    HierarchicalKernelClassifier,
    ScaleMixtureClassifier,
    SingularKernelClassifier,
    SparseDKMClassifier,
    intrinsic_dimension,
    optimal_activation,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

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
        values = {f"{last}__{k}": v for k, v in candidates.items()}
        return GridSearchCV(steps, values, scoring=accuracy_then_brier, cv=cv)

    return method


def accuracy_then_brier(classifier: ClassifierMixin, X: Array, y: Array) -> float:
    """What is tuned by: accuracy, and among equals, where there are probabilities, Brier's score.

    On small tables many candidates are equally accurate, and far from equally calibrated.
    """
    score = np.mean(classifier.predict(X) == y)
    if hasattr(classifier, "predict_proba"):
        right = y[:, None] == classifier.classes_
        score -= 1e-3 * calibration(classifier.predict_proba(X), right)["brier"]
    return float(score)


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
    "hierarchical": tuned(
        lambda _: make_pipeline(
            StandardScaler(), FunctionTransformer(with_ones), HierarchicalKernelClassifier()
        ),
        alpha=[10.0**power for power in range(-6, 6)],
    ),
    "dkm": lambda cv, random_state: standardised(
        SparseDKMClassifier(max_iter=200, learning_rate=0.05, random_state=random_state)
    ),
    "scale-mixture": lambda cv, random_state: standardised(
        ScaleMixtureClassifier(random_state=random_state)
    ),
    "pfn": lambda cv, random_state: standardised(PFNClassifier()),
    "k-nn": tuned(
        lambda _: standardised(KNeighborsClassifier()),
        n_neighbors=[1, 3, 5, 7, 9, 15],
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
    "forest": tuned(
        lambda random_state: standardised(RandomForestClassifier(random_state=random_state)),
        max_features=["sqrt", 0.3, 0.6, 1.0],
        min_samples_leaf=[1, 2, 5],
    ),
    "boosting": tuned(
        lambda random_state: standardised(
            HistGradientBoostingClassifier(random_state=random_state)
        ),
        learning_rate=[0.03, 0.1, 0.3],
        max_leaf_nodes=[4, 31],
        min_samples_leaf=[2, 20],
    ),
}
RIVALS = ("k-nn", "svm", "logistic", "forest", "boosting")
OTHERS = ("relu-ntk", "hierarchical", "dkm", "scale-mixture", "pfn")
PROBABLE = ("dkm", "scale-mixture", "pfn", "k-nn", "logistic", "forest", "boosting")


# ---- the trial


def tables(setting: Setting, run: Run) -> dict[str, float]:
    sizes = (setting.train, type(setting.train)(0), setting.test)  # counts or shares
    loaded = data.load(setting.data, sizes=sizes, generator=run.rng("split"))
    (X, y), (T, labels) = (
        (x.flatten(1).double().numpy(), y.numpy())
        for x, y in (part.tensors() for part in (loaded.train, loaded.test))
    )
    run.witness(split={"train": X, "labels": y, "test": T})
    cv = StratifiedKFold(setting.folds, shuffle=True, random_state=run.random_state("folds"))
    classifier = run.methods[setting.method](cv, run.random_state("method"))
    start = time.perf_counter()
    classifier.fit(X, y)
    fitted = time.perf_counter()
    predicted = classifier.predict(T)
    metrics = {
        "accuracy": np.mean(predicted == labels),
        "fit_seconds": fitted - start,
        "predict_seconds": time.perf_counter() - fitted,
        "rows": len(X),
    }
    if hasattr(classifier, "predict_proba"):
        right = labels[:, None] == classifier.classes_
        metrics |= calibration(classifier.predict_proba(T), right)
    return metrics


def calibration(probabilities: Array, right: Array) -> dict[str, float]:
    """The Brier score of probabilities (n, classes), and how far the largest is from the truth."""
    brier = np.square(probabilities - right).sum(1).mean()
    sure = probabilities.max(1)
    hit = right[np.arange(len(right)), probabilities.argmax(1)]
    bins = np.minimum((10 * sure).astype(int), 9)
    gaps = np.bincount(bins, weights=hit - sure)
    return {"brier": brier, "calibration_error": np.abs(gaps).sum() / len(sure)}


# ---- the figure


def by_rows(frame: DataFrame) -> Figure:
    """Error, calibration and time of each method against the rows it was trained on."""
    from matplotlib.figure import Figure as Canvas

    rows = frame[frame["data"] == frame["data"].iloc[-1]]
    rows = rows.assign(error=1 - rows["accuracy"])
    panels = {
        "error": "error",
        "brier": "Brier score",
        "fit_seconds": "seconds to fit, tuning included",
        "predict_seconds": "seconds to predict",
    }
    canvas = Canvas(figsize=(9, 6.5), dpi=140, layout="constrained")
    for axes, (metric, title) in zip(canvas.subplots(2, 2, sharex=True).flat, panels.items()):
        for i, (method, some) in enumerate(rows.groupby("method", sort=False)):
            if metric not in some or some[metric].isna().any():
                continue
            means = some.groupby("rows")[metric].mean()
            style: Any = {
                "color": COLOURS[i % len(COLOURS)],
                "marker": MARKERS[i % len(MARKERS)],
                "linestyle": STYLES[i % len(STYLES)],
            }
            axes.plot(means.index, means, label=method, markersize=4, **style)
        axes.set_title(title, fontsize=10)
        axes.set(xscale="log", yscale="log")
        sizes = sorted(rows["rows"].unique())
        axes.set_xticks(sizes, [f"{n:g}" for n in sizes])
        axes.xaxis.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    note = f"training rows of {rows['data'].iloc[0]}; means over {rows['seed'].nunique()} seeds"
    canvas.supxlabel(note, fontsize=8, color="0.35")
    return canvas


def by_table(frame: DataFrame) -> Figure:
    """Accuracy of each method on each table, trained on most of its rows."""
    from matplotlib.figure import Figure as Canvas

    rows = frame[frame["train"].astype(float) < 1]
    methods, tables = (list(dict.fromkeys(rows[key])) for key in ("method", "data"))
    canvas = Canvas(figsize=(9, 0.6 + 0.3 * len(methods)), dpi=140, layout="constrained")
    panels = canvas.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, table in zip(panels, tables):
        of_table = rows[rows["data"] == table].groupby("method", sort=False)["accuracy"]
        for i, (method, values) in enumerate(of_table):
            half = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
            axes.errorbar(
                values.mean(), i, xerr=half, color=COLOURS[method in RIVALS], fmt="o", capsize=2
            )
        axes.set_title(table, fontsize=10)
        axes.grid(axis="x", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].invert_yaxis()
    canvas.supxlabel(
        f"accuracy, mean and 95 % interval over {rows['seed'].nunique()} seeds",
        fontsize=8,
        color="0.35",
    )
    return canvas


# ---- the study

TESTED = {"iris": 45, "wine": 53, "breast_cancer": 170}
"""Test rows of each table."""

FEW = [25, 100]
"""Rows of the largest table on which methods are compared again."""

comparison = Experiment(
    tables,
    METHODS,
    smoke=grid(data="iris", train=0.6, test=0.4, folds=2),
    desk=grid(data=list(TESTED), train=0.7, test=0.3, folds=3)
    + grid(data="breast_cancer", train=FEW, test=171, folds=3),
    full=grid(data=[*TESTED, "digits"], train=0.7, test=0.3, folds=10)
    + grid(data="digits", train=[25, 100, 400], test=500, folds=3),
)
whole: dict[str, Any] = {"train": 0.7}
accuracy = {
    table: comparison.metric("accuracy", resolution=1 / rows) for table, rows in TESTED.items()
}
few = comparison.metric("accuracy", resolution=1 / 171)
overall, brier = (comparison.metric(name) for name in ("accuracy", "brier"))

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
                    higher(
                        of("optimal", data=table, **whole),
                        of(rival, data=table, **whole),
                        by=-0.02,
                    )
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
                    within(
                        of("singular", data=table, **whole),
                        of("optimal", data=table, **whole),
                        0.02,
                    )
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
                    higher(
                        of("relu-ntk", data=table, **whole),
                        of("svm", data=table, **whole),
                        by=-0.02,
                    )
                    for table, of in accuracy.items()
                )
            ),
            margin="ours",
        ),
        Claim(
            "C4",
            "Trained on 25 rows, the tuned neural tangent kernel is more accurate than tuned "
            "boosting; on every table as a whole its accuracy is at most 0.02 below",
            all_of(
                higher(
                    few("relu-ntk", data="breast_cancer", train=25),
                    few("boosting", data="breast_cancer", train=25),
                ),
                *(
                    higher(
                        of("relu-ntk", data=table, **whole),
                        of("boosting", data=table, **whole),
                        by=-0.02,
                    )
                    for table, of in accuracy.items()
                ),
            ),
            margin="ours",
        ),
        Claim(
            "C5",
            "Trained on 25 rows, the transformer that has only seen a prior has a lower Brier "
            "score than tuned logistic regression, forests and boosting",
            all_of(
                *(
                    lower(
                        brier("pfn", data="breast_cancer", train=25),
                        brier(rival, data="breast_cancer", train=25),
                    )
                    for rival in ("logistic", "forest", "boosting")
                )
            ),
            margin="ours",
        ),
        Claim(
            "C6",
            "Over the whole tables, deep kernel machines and scale mixtures, untuned, have a Brier "
            "score at most 0.02 above tuned logistic regression's",
            all_of(
                *(
                    lower(
                        brier.mean(method, data=list(TESTED), **whole),
                        brier.mean("logistic", data=list(TESTED), **whole),
                        by=-0.02,
                    )
                    for method in ("dkm", "scale-mixture")
                )
            ),
            margin="ours",
        ),
        *(
            Claim(
                f"C{number}",
                f"Accuracy of the optimal activation less that of {rival}, mean over the tables",
                report(
                    overall.mean("optimal", data=list(TESTED), **whole)
                    - overall.mean(rival, data=list(TESTED), **whole)
                ),
            )
            for number, rival in enumerate((*RIVALS, *OTHERS), start=7)
        ),
        *(
            Claim(
                f"C{number}",
                f"Brier score of {method}, mean over the tables",
                report(brier.mean(method, data=list(TESTED), **whole)),
            )
            for number, method in enumerate(PROBABLE, start=7 + len(RIVALS) + len(OTHERS))
        ),
    ],
    figures=[drawn(by_rows), drawn(by_table)],
    data=data.Accepts(["table", "image"], min_classes=2),
    demo=["C1"],
)
