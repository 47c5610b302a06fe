"""Does a transformer that was trained on tasks of a prior predict as its Bayesian posterior does?

- `known`: tasks of a Gaussian process with lengthscale 0.3 and noise 0.01, by the size n of the
  context. `nll` is the negative log-likelihood of held-out y, a row each; the best possible is that
  of the exact posterior. `marginal` knows the prior and looks at no context.
- `unknown`: lengthscale and noise are drawn for each task. `exact` is the mixture over a grid of
  12 × 8 hyperparameters; `mle2` maximises the marginal likelihood with scikit-learn from four
  starts, inside the ranges that the prior has.
- `timing`: seconds a data set of 10 rows and 10 queries, and the likelihood reached there. The PFN
  predicts 1,000 data sets in a batch, Hamiltonian Monte Carlo samples the hyperparameters of a
  batch of data sets, one chain each; scikit-learn takes one after the other.
- `shown`: the density on a grid of x and y, for one task.
- `tables`: two classes of a table, 5 principal components, 30 training rows, by a PFN trained on
  labels of Bayesian neural networks; `auc` is the mean over random splits.

A method of the first four is `method(task) -> (log density, distribution function)`, both at
`task.y_query`, (B, Q); see `Task`. One of `tables` is `method(random_state, network)`, which makes
a scikit-learn classifier. Each network is trained once a seed and shared. Baselines of `tables`
tune themselves on the training rows: ridge by cross-validation, a kernel by marginal likelihood,
leaf sizes by out-of-bag score.

Differences from the paper. Desk: one feature, contexts of at most 14 rows, width 64, minutes. Full:
five features, contexts of up to 1,999 rows, 650 times as many tasks; the tables are the
bundled ones, or yours through `--set data=file:…`, in place of the OpenML suite. Omniglot is left
out.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, Normal

from paperworks import data
from paperworks.incontext import (
    PFN,
    BarDistribution,
    BNNPrior,
    CategoricalHead,
    GPPrior,
    PFNClassifier,
    exact_gp_ppd,
    fit_pfn,
    hmc_ppd,
    log_uniform,
)
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    all_of,
    drawn,
    grid,
    lower,
    within,
)
from paperworks.study.figures import COLOURS, MARKERS, STYLES
from paperworks.study.run import Streams
from paperworks.study.terms import Formula
from paperworks.wide.kernels import gp_posterior, psd_safe_cholesky

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

# ---- tasks, and the networks that are trained on them

LENGTHSCALES, NOISES = (0.1, 1.0), (1e-3, 1e-1)
PRIORS: dict[str, Any] = {
    "known": GPPrior("rbf", 0.3, 0.01),
    "unknown": GPPrior("rbf", log_uniform(*LENGTHSCALES), log_uniform(*NOISES)),
    "known_5d": GPPrior("rbf", 0.6, 1e-4, num_features=5),
    "unknown_5d": GPPrior(
        "matern52", Gamma(3.0, 6.0), Gamma(1.1, 0.05), Gamma(0.5, 0.15), num_features=5, ard=True
    ),
    "labels": BNNPrior([5, 16]),
    "tabular": BNNPrior([60, 64], weight_std=log_uniform(0.3, 2.0), min_features=1),
}
MODEL = (
    "prior", "width", "layers", "heads", "hidden", "buckets", "points", "context", "steps", "batch",
    "accumulate", "epoch", "lr",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a method is given.

    Args:
        prior: its name among `PRIORS`.
        x_ctx, y_ctx, x_query: (B, n, F), (B, n), (B, Q, F).
        y_query: (B, Q), where densities are asked for.
        network: the PFN of this seed, after "third" of its training or at the "end".
        generator: for what the method draws.
    """

    prior: str
    x_ctx: Tensor
    y_ctx: Tensor
    x_query: Tensor
    y_query: Tensor
    network: Callable[[str], PFN]
    generator: torch.Generator

    def first(self, count: int) -> Task:
        """The first data sets only."""
        names = ("x_ctx", "y_ctx", "x_query", "y_query")
        return replace(self, **{name: getattr(self, name)[:count] for name in names})


Answer = tuple[Tensor, Tensor]


def empty(*, prior: str, width: int, layers: int, heads: int, hidden: int, buckets: int) -> PFN:
    """A network for a prior; with `buckets` 0 for two classes."""
    head: Any = BarDistribution(torch.linspace(0, 1, buckets + 1)) if buckets else CategoricalHead()
    F = PRIORS[prior].widths[0] if not buckets else PRIORS[prior].num_features
    return PFN(F, head, width, layers, heads, hidden)


def trained(frun: Streams, **args: Any) -> dict[str, dict[str, Tensor]]:
    """Weights after a third of the training and at its end."""
    with frun.seeded("weights"):
        model = empty(**{key: args[key] for key in MODEL[:6]})
    prior = PRIORS[args["prior"]]
    draw = frun.rng("batches")
    if args["buckets"]:
        _, y = prior.sample(2000, 10, draw)
        model.head = BarDistribution.from_samples(y, args["buckets"])
    model = model.to(frun.device)
    kept: dict[str, dict[str, Tensor]] = {}
    done = 0

    def keep() -> None:
        nonlocal done
        done += 1
        if done == max(1, args["steps"] // 3):
            kept["third"] = state(model)

    fit_pfn(
        model,
        prior,
        args["steps"],
        batch_size=args["batch"],
        num_points=args["points"],
        max_context=args["context"],
        context_sizes="weighted" if args["buckets"] else "uniform",
        standardize=not args["buckets"],
        lr=args["lr"],
        accumulate=args["accumulate"],
        epoch=args["epoch"],
        after_step=[keep],
        generator=draw,
    )
    return kept | {"end": state(model)}


def state(model: PFN) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def network(run: Run, setting: Setting, when: str = "end") -> PFN:
    """The network of this seed, trained at most once."""
    args: dict[str, Any] = {key: setting[key] for key in MODEL}
    model = empty(**{key: args[key] for key in MODEL[:6]})
    model.load_state_dict(run.fixture(trained, seed=run.seed, **args)[when])
    return model.to(run.device).eval()


def task_of(setting: Setting, run: Run, count: int) -> Task:
    """New data sets of the prior, cut after n rows."""
    n, queries = setting.n, setting.queries
    x, y = PRIORS[setting.prior].sample(count, n + queries, run.rng("split"))
    x, y = x.to(run.device), y.to(run.device)
    return Task(
        setting.prior, x[:, :n], y[:, :n], x[:, n:], y[:, n:], partial(network, run, setting),
        run.rng("method"),
    )  # fmt: skip


# ---- predictives


def pfn(task: Task, when: str = "end") -> Answer:
    model = task.network(when)
    with torch.no_grad():
        logits = model(task.x_ctx, task.y_ctx, task.x_query).double()
    head: Any = model.head
    return head.log_prob(logits, task.y_query), head.cdf(logits, task.y_query)


def exact(task: Task) -> Answer:
    prior = PRIORS[task.prior]
    if task.prior.startswith("known"):
        options = {"kernel": prior.kernel, "lengthscale": prior.lengthscale, "noise": prior.noise}
    else:
        options = hyperparameters(task.x_ctx.device)
    predictive = exact_gp_ppd(task.x_ctx, task.y_ctx, task.x_query, **options)
    y = task.y_query.double()
    return predictive.log_prob(y), predictive.cdf(y)


def marginal(task: Task) -> Answer:
    """The prior's own predictive: no context."""
    nothing = replace(task, x_ctx=task.x_ctx[:, :0], y_ctx=task.y_ctx[:, :0])
    return exact(nothing)


def hyperparameters(device: torch.device, counts: tuple[int, int] = (12, 8)) -> dict[str, Tensor]:
    """Midpoints of a grid in the logarithms of lengthscale and noise, equally probable."""
    axes = [
        torch.exp(math.log(low) + math.log(high / low) * (torch.arange(count) + 0.5) / count)
        for (low, high), count in zip((LENGTHSCALES, NOISES), counts)
    ]
    pairs = torch.cartesian_prod(*axes).to(device)
    return {"lengthscale": pairs[:, 0], "noise": pairs[:, 1]}


def mle2(task: Task) -> Answer:
    """Hyperparameters of each data set by maximal marginal likelihood, from four starts."""
    if task.prior == "unknown":
        kernel = RBF(0.3, LENGTHSCALES) + WhiteKernel(0.01, NOISES)
    else:
        ell = np.ones(task.x_ctx.shape[2])
        kernel = ConstantKernel() * Matern(ell, nu=2.5) + WhiteKernel()
    seed = int(torch.randint(2**31, (), generator=task.generator))
    answers = []
    for x, y, queries, y_query in zip(task.x_ctx, task.y_ctx, task.x_query, task.y_query):
        process = GaussianProcessRegressor(kernel, n_restarts_optimizer=3, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bound of the prior's range was reached
            process.fit(x.cpu().double(), y.cpu().double())
            mean, std = process.predict(queries.cpu().double(), return_std=True)
        predictive = Normal(torch.from_numpy(mean), torch.from_numpy(std))
        y_query = y_query.cpu().double()
        answers.append((predictive.log_prob(y_query), predictive.cdf(y_query)))
    log_prob, cdf = (torch.stack(part) for part in zip(*answers))
    return log_prob, cdf


def hmc(task: Task, num_samples: int = 100, warmup: int = 100) -> Answer:
    """Posterior of lengthscale and noise by sampling; z ~ N(0, I), Φ(z) the place in the range."""
    x, queries = task.x_ctx.double(), task.x_query.double()
    y, y_query = task.y_ctx.double(), task.y_query.double()
    near, far = torch.cdist(x, x).square() / 2, torch.cdist(queries, x).square() / 2
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)

    def scales(z: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.special.ndtr(z)
        values = [
            torch.exp(math.log(low) + math.log(high / low) * place[:, i])[:, None]
            for i, (low, high) in enumerate((LENGTHSCALES, NOISES))
        ]
        return values[0], values[1]

    def log_joint(z: Tensor) -> Tensor:
        ell, noise = scales(z)
        K = torch.exp(-near / ell[..., None].square()) + noise[..., None] * eye
        evidence = MultivariateNormal(
            torch.zeros_like(y), scale_tril=psd_safe_cholesky(K), validate_args=False
        )
        return evidence.log_prob(y) - z.square().sum(1) / 2

    def log_predictive(z: Tensor) -> Tensor:
        ell, noise = scales(z)
        K_xx, K_tx = (torch.exp(-r / ell[..., None].square()) for r in (near, far))
        mean, variance = gp_posterior(K_xx, K_tx, torch.ones_like(y_query), y, noise=noise)
        predictive = Normal(mean, (variance.clamp(min=0) + noise).sqrt())
        cdf = predictive.cdf(y_query).clamp(min=1e-300)
        return torch.stack([predictive.log_prob(y_query), cdf.log()], dim=1)

    start = torch.zeros(len(x), 2, dtype=x.dtype, device=x.device)
    found = hmc_ppd(
        log_joint, log_predictive, start, num_samples=num_samples, warmup=warmup, num_steps=6,
        step_size=0.3, generator=task.generator,
    )  # fmt: skip
    return found[:, 0], found[:, 1].exp()


def predictive(setting: Setting, run: Run) -> dict[str, float]:
    task = task_of(setting, run, setting.tasks)
    run.witness(split={"x": task.x_query, "y": task.y_query})
    log_prob, cdf = run.methods[setting.method](task)
    off_centre = (cdf - 0.5).abs()
    return {
        "nll": -log_prob.mean().item(),
        "coverage_68": (off_centre < 0.34).double().mean().item(),
        "coverage_95": (off_centre < 0.475).double().mean().item(),
    }


def timing(setting: Setting, run: Run) -> dict[str, float]:
    method = run.methods[setting.method]
    sets: Any = setting.get(f"{setting.method}_sets", setting.tasks)
    task = task_of(setting, run, setting.tasks).first(sets)
    run.witness(split=task.y_query[:1])
    method(task.first(2))  # what is loaded once
    start = time.perf_counter()
    log_prob, _ = method(task)
    seconds = time.perf_counter() - start
    return {"predict_seconds": seconds / len(task.y_ctx), "nll": -log_prob.mean().item()}


def shown(setting: Setting, run: Run) -> dict[str, Any]:
    """Density on a grid of x and y, after the context of one task."""
    task = task_of(setting, run, 1)
    size = setting.size
    x, y = torch.linspace(0, 1, size), torch.linspace(-3, 3, size)
    places = torch.cartesian_prod(x, y).to(run.device)[None]
    task = replace(task, x_query=places[..., :1], y_query=places[..., 1])
    run.witness(split={"x": task.x_ctx, "y": task.y_ctx})
    log_prob, _ = run.methods[setting.method](task)
    return {
        "density": log_prob[0].exp().tolist(),
        "context_x": task.x_ctx[0, :, 0].tolist(),
        "context_y": task.y_ctx[0].tolist(),
    }


# ---- tables


def tables(setting: Setting, run: Run) -> dict[str, float]:
    X, y = two_classes(setting.data)
    model = network(run, setting)
    seeds = np.random.RandomState(run.random_state("split")).randint(2**31, size=setting.splits)
    run.witness(split=torch.from_numpy(seeds), weights={"embed": model.embed_x.weight})
    random_state = run.random_state("method")
    aucs = []
    for seed in seeds.tolist():
        rows, rest = train_test_split(
            np.arange(len(X)), train_size=setting.rows, stratify=y, random_state=seed
        )
        reduce = make_pipeline(StandardScaler(), PCA(min(setting.components, X.shape[1])))
        train = reduce.fit_transform(X[rows])
        classifier = run.methods[setting.method](random_state, model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bound of a kernel's range was reached
            classifier.fit(train, y[rows])
        p = classifier.predict_proba(reduce.transform(X[rest]))[:, 1]
        aucs.append(roc_auc_score(y[rest], p))
    return {"auc": float(np.mean(aucs))}


def two_classes(name: str) -> tuple[np.ndarray, np.ndarray]:
    """All rows of the last two classes: of iris those that overlap."""
    table = data.load(name)
    parts = [part.tensors() for part in (table.train, table.val, table.test) if part is not None]
    X = torch.cat([x for x, _ in parts]).double().numpy()
    y = torch.cat([y for _, y in parts]).numpy()
    kept = y >= y.max() - 1
    return X[kept], (y[kept] == y.max()).astype(int)


def logistic(random_state: int, model: PFN) -> Any:
    ridges = {"C": [10.0**k for k in range(-3, 3)]}
    return GridSearchCV(LogisticRegression(max_iter=1000), ridges, scoring="neg_log_loss", cv=5)


def process(random_state: int, model: PFN) -> Any:
    kernel = ConstantKernel() * RBF(3.0)
    return GaussianProcessClassifier(
        kernel, n_restarts_optimizer=1, random_state=random_state, max_iter_predict=50
    )


class TunedForest:
    """A random forest with the leaf size of the best out-of-bag score."""

    def __init__(self, random_state: int, model: PFN) -> None:
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> None:
        forests = [
            RandomForestClassifier(
                100, min_samples_leaf=leaf, oob_score=True, random_state=self.random_state
            ).fit(X, y)
            for leaf in (1, 3, 6)
        ]
        self.best = max(forests, key=lambda forest: forest.oob_score_)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return self.best.predict_proba(X)


def pfn_classifier(random_state: int, model: PFN) -> PFNClassifier:
    return PFNClassifier(model)


# ---- figures


def density_beside_the_posterior(frame: DataFrame) -> Figure:
    """The PFN's density and the exact one for a task, whole and at one x."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9, 3.2), dpi=140, layout="constrained")
    axes = canvas.subplots(1, 3)
    rows = frame[frame["experiment"] == "shown"]
    rows = rows[rows["seed"] == rows["seed"].min()]
    for i, method in enumerate(("exact", "pfn")):
        row = rows[rows["method"] == method]
        if row.empty:
            continue
        size = int(row["size"].iloc[0])
        density = np.reshape(row["density"].iloc[0], (size, size)).T
        name = {"exact": "exact posterior", "pfn": "PFN"}[method]
        axes[i].imshow(
            np.sqrt(density), origin="lower", extent=(0, 1, -3, 3), aspect="auto", cmap="Blues"
        )
        axes[i].plot(row["context_x"].iloc[0], row["context_y"].iloc[0], "o", color="black", ms=4)
        axes[i].set_title(name, fontsize=10)
        axes[i].set_xlabel("x")
        column = size // 2
        axes[i].axvline(column / (size - 1), color="0.4", linestyle=":")
        style: Any = {"color": COLOURS[i], "linestyle": STYLES[i]}
        axes[2].plot(np.linspace(-3, 3, size), density[:, column], label=name, **style)
    axes[0].set_ylabel("y")
    axes[2].set_title("density at the dotted x", fontsize=10)
    axes[2].set_xlabel("y")
    if axes[2].lines:
        axes[2].legend(frameon=False, fontsize=8)
    axes[2].spines[["top", "right"]].set_visible(False)
    return canvas


def gap_by_context(frame: DataFrame) -> Figure:
    """How much worse than the exact posterior, by the size of the context."""
    from matplotlib.figure import Figure as Canvas

    names = {"pfn": "PFN", "pfn_third": "PFN, a third of the training", "mle2": "MLE-II",
             "marginal": "prior, no context"}  # fmt: skip
    titles = {"known": "known hyperparameters", "unknown": "unknown hyperparameters"}
    canvas = Canvas(figsize=(8, 3.4), dpi=140, layout="constrained")
    for axes, (experiment, title) in zip(canvas.subplots(1, 2, sharey=True), titles.items()):
        axes.set(title=title, xlabel="rows in the context")
        axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        rows = frame[frame["experiment"] == experiment]
        if rows.empty:
            continue
        nll = rows.astype({"nll": float}).pivot_table("nll", ["n", "seed"], "method")
        for i, (method, name) in enumerate(names.items()):
            if method in nll:
                gap = (nll[method] - nll["exact"]).groupby("n").mean().dropna()
                style: Any = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": STYLES[i]}
                axes.plot(gap.index, gap, label=name, **style)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    canvas.axes[0].set_ylabel("NLL above the exact posterior (nats)")
    seeds = frame["seed"].nunique()
    note = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    canvas.supxlabel(note, fontsize=8, color="0.35")
    return canvas


# ---- the study

PREDICTIVES: dict[str, Callable[[Task], Answer]] = {
    "pfn": pfn,
    "pfn_third": partial(pfn, when="third"),
    "exact": exact,
    "marginal": marginal,
    "mle2": mle2,
    "hmc": hmc,
}


def methods(*names: str) -> dict[str, Callable[[Task], Answer]]:
    return {name: PREDICTIVES[name] for name in names}


CLASSIFIERS: dict[str, Callable[[int, PFN], Any]] = {
    "pfn": pfn_classifier,
    "logistic": logistic,
    "gp": process,
    "forest": TunedForest,
}
BASELINES = ["logistic", "gp", "forest"]
TABLES = ["breast_cancer", "wine", "iris"]
SIZES, FEW = [1, 3, 5, 10, 14], [1, 3, 5]

SMALL: dict[str, Any] = {
    "width": 64, "layers": 4, "heads": 4, "hidden": 128, "batch": 64, "accumulate": 1, "epoch": 1,
    "lr": 3e-3,
}  # fmt: skip
CURVES = SMALL | {"buckets": 100, "points": 16, "context": 14}
KNOWN = CURVES | {"prior": "known", "steps": 600}
UNKNOWN = CURVES | {"prior": "unknown", "steps": 600}
LABELS = SMALL | {"buckets": 0, "points": 36, "context": 30, "prior": "labels", "steps": 300}
TINY = {"width": 8, "layers": 1, "heads": 2, "hidden": 8, "steps": 3, "batch": 4}
LARGE: dict[str, Any] = {
    "width": 512, "layers": 6, "heads": 4, "hidden": 1024, "buckets": 1000, "points": 2010,
    "context": 1999, "steps": 250_000, "batch": 4, "accumulate": 25, "epoch": 100, "lr": 3e-4,
}  # fmt: skip
LARGE_LABELS = LARGE | {
    "prior": "tabular", "buckets": 0, "points": 100, "context": 60, "batch": 256, "accumulate": 1,
    "steps": 40_000, "width": 256, "layers": 5, "hidden": 512, "lr": 2e-5,
}  # fmt: skip
LARGE_SIZES = [10, 100, 500, 1000, 1999]

known = Experiment(
    predictive,
    name="known",
    methods=methods("pfn", "pfn_third", "exact", "marginal"),
    smoke=grid(n=[1, 3], tasks=20, queries=2, **(KNOWN | TINY)),
    desk=grid(n=SIZES, tasks=1000, queries=2, **KNOWN),
    full=grid(n=LARGE_SIZES, tasks=100, queries=10, prior="known_5d", **LARGE),
)
unknown = Experiment(
    predictive,
    name="unknown",
    methods=methods("pfn", "exact", "marginal", "mle2"),
    smoke=grid(n=FEW, tasks=3, queries=2, **(UNKNOWN | TINY)),
    desk=grid(n=FEW, tasks=60, queries=6, **UNKNOWN)
    + grid(method=["pfn", "exact", "marginal"], n=[10, 14], tasks=60, queries=6, **UNKNOWN),
    full=grid(
        method=["pfn", "mle2"], n=LARGE_SIZES, tasks=100, queries=10, prior="unknown_5d", **LARGE
    ),
)
timed = Experiment(
    timing,
    methods=methods("pfn", "mle2", "hmc"),
    smoke=grid(n=3, queries=3, tasks=4, mle2_sets=1, hmc_sets=1, **(UNKNOWN | TINY)),
    desk=grid(n=10, queries=10, tasks=1000, mle2_sets=20, hmc_sets=100, **UNKNOWN),
    full=grid(n=10, queries=10, tasks=1000, mle2_sets=100, hmc_sets=1000, **UNKNOWN),
)
one_task = Experiment(
    shown,
    methods=methods("pfn", "exact"),
    smoke=grid(n=4, queries=1, size=6, **(KNOWN | TINY)),
    desk=grid(n=4, queries=1, size=61, **KNOWN),
    full=grid(n=4, queries=1, size=61, **KNOWN),
)
classified = Experiment(
    tables,
    methods=CLASSIFIERS,
    smoke=grid(data="iris", rows=20, components=5, splits=1, **(LABELS | TINY)),
    desk=grid(data=TABLES, rows=30, components=5, splits=8, **LABELS),
    full=grid(data=TABLES, rows=30, components=60, splits=20, **LARGE_LABELS),
)

nll, hyper_nll = known.metric("nll"), unknown.metric("nll")
seconds = timed.metric("predict_seconds", log=True)
auc = classified.metric("auc")
best_baseline = Formula(lambda *means: np.max(means, axis=0), *(auc.mean(m) for m in BASELINES))


def coverages(experiment: Experiment) -> list[Any]:
    return [
        within(experiment.metric(f"coverage_{level}").mean("pfn"), level / 100, 0.05)
        for level in (68, 95)
    ]


study = Study(
    "pfn",
    experiments=[known, unknown, timed, one_task, classified],
    claims=[
        Claim(
            "C1",
            "The PFN's NLL is at most 0.2 nats above the exact posterior's, the mean over contexts "
            "of 1 to 14 rows, and less than 0.35 of what a predictor without context loses",
            all_of(
                lower(nll.mean("pfn") - nll.mean("exact"), 0.2),
                lower(
                    nll.mean("pfn") - nll.mean("exact"),
                    0.35 * (nll.mean("marginal") - nll.mean("exact")),
                ),
            ),
            margin="ours",
            note="The margin was set after a pilot on seed 0.",
        ),
        Claim(
            "C2",
            "The gap to the exact posterior is smaller at the end than after a third of training",
            lower(nll.mean("pfn") - nll.mean("exact"), nll.mean("pfn_third") - nll.mean("exact")),
        ),
        Claim(
            "C3",
            "With unknown hyperparameters and at most 5 rows the PFN's NLL is below that of a "
            "process with hyperparameters of maximal marginal likelihood",
            lower(hyper_nll.mean("pfn", n=FEW), hyper_nll.mean("mle2", n=FEW)),
        ),
        Claim(
            "C4",
            "A predicted data set takes the PFN, in batches of 1,000, 1/50 of the time of MLE-II "
            "and 1/200 of that of Hamiltonian Monte Carlo",
            all_of(
                lower(seconds("pfn"), seconds("mle2"), factor=1 / 50),
                lower(seconds("pfn"), seconds("hmc"), factor=1 / 200),
            ),
            margin="ours",
            note="The chains of 100 data sets are sampled together here, as one batch.",
        ),
        Claim(
            "C5",
            "Central intervals of 68 % and 95 % of the PFN hold 68 % and 95 % of the y within 5 "
            "points, with known and with unknown hyperparameters",
            all_of(*coverages(known), *coverages(unknown)),
            margin="ours",
        ),
        Claim(
            "C6",
            "On tables with 30 training rows the PFN's mean AUC is within 0.03 of that of the best "
            "tuned baseline",
            within(auc.mean("pfn"), best_baseline, 0.03),
            margin="ours",
        ),
    ],
    figures=[drawn(density_beside_the_posterior), drawn(gap_by_context)],
    data=data.Accepts("table", min_classes=2),
    demo=["C1"],
)
