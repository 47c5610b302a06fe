"""Does a prior on the scale of a wide network's last layer give better uncertainty?

- `networks`: outputs of 4000 real ReLU networks of width 2048, each with its own variance of the
  last layer from InverseGamma(2, 2), at one input: as initialised, and after gradient descent on
  the last layer. Kolmogorov-Smirnov tests against the t with 4 degrees of freedom that the theory
  gives, and against the normal of equal variance.
- `regression`: small tables. `splits` random splits a seed: the first n of a permutation are for
  training, the last `test` rows for testing, alike for all n. NLL is the mean negative log density
  of a test target in nats, targets scaled to deviation 1 over the whole table (a choice of unit
  only), `shifted` that of targets with Student-t(2) noise added. The squares of that noise have no
  mean, and so a Gaussian process's NLL has none: shifted NLL is the median over splits, beside it
  their mean, which does not settle however many there are. ReLU kernel of 4 hidden layers
  (C_W = 2, C_b = 0.09, of the official grid); columns are scaled by the training rows. The noise ε
  is chosen by each method's own evidence, or given (`noise` is a number).
- `classification`: digits by inducing points, trained on clean ones. Kernel, inducing points and
  all else are learned by the bound. `noise` are test pixels plus Gaussian noise, `inverted` are
  1 − x; `train="without 1, 4, 8"` leaves these classes out of training, not out of the test.

Methods of `regression` are factories `method(kernel, noise, random_state)` (noise None: choose it)
of an estimator with `predict` and `log_predictive_density(X, y)`: NNGPs of fixed amplitude ("nngp")
and of the amplitude of largest likelihood ("nngp-ml", the strongest), t-processes with α = β
("t-2", the official default, which the claims mean, and "t-1") and BurrXII(2, 1), whose tail is
that of InverseGamma(2, ·), by importance sampling. Those of `classification` are priors of `SVSP`,
trained until NLL on clean rows is that of thrice the steps or of half the learning rate.

Differences from the paper. Small tables; wine (scikit-learn's) predicts alcohol and has 178 rows,
too few for n = 200. α, β are fixed and so is the kernel in `regression`. Corruptions are ours, also
at full scale, where MNIST-C and CIFAR-10-C would need another loader; its UCI tables are the
reader's own CSV files, the target last, in a folder `uci`. Digits, 8 x 8, with a fully connected
kernel; the kernel of a convolutional network is for the full scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.distributions import Distribution, InverseGamma

from paperworks import data
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
from paperworks.wide import (
    SVSP,
    BurrXII,
    Delta,
    HeavyTailedEnsemble,
    NNGPKernel,
    ScaleMixtureRegressor,
    nngp_kernel,
    ntk_posterior,
    scale_mixture,
)
from paperworks.wide.smnngp.classification import train_svsp

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Array = NDArray[Any]


def inverse_gamma(alpha: float) -> InverseGamma:
    """With α = β."""
    return InverseGamma(*torch.tensor([alpha, alpha], dtype=torch.float64))


# ---- networks


def networks(setting: Setting, run: Run) -> dict[str, float]:
    prior = inverse_gamma(2.0)
    rows = torch.randn(setting.n + 1, setting.dim, generator=run.rng("split"))
    rows = nn.functional.normalize(rows, dim=1) * setting.dim**0.5
    y = torch.randn(setting.n, generator=run.rng("targets"))
    run.witness(split={"rows": rows, "targets": y})
    K = nngp_kernel(rows.double(), activation="relu", depth=1, C_W=2.0)
    X, x = slice(1, None), slice(1)
    mean, variance = torch.zeros(1, dtype=torch.float64), K[x, x]
    if setting.trained:
        kernels = K[X, X], K[x, X], K[x, x], K[X, X], K[x, X]
        mean, variance = ntk_posterior(*kernels, y.double())
    steps = setting.steps if setting.trained else 0
    parts = [
        outputs(rows, y, K[X, X], setting.width, steps, size, prior, run.rng("weights"))
        for size in [setting.together] * (setting.networks // setting.together)
    ]
    f = torch.cat(parts).double().numpy()
    theory: Any = scale_mixture(mean, variance, prior)
    df, loc, scale = theory.df.item(), theory.loc.item(), theory.scale_tril.item()
    normal = stats.norm(loc, scale * (df / (df - 2)) ** 0.5)
    to_t, to_normal = (stats.kstest(f, law.cdf) for law in (stats.t(df, loc, scale), normal))
    return {
        "t_pvalue": float(to_t.pvalue),
        "normal_pvalue": max(float(to_normal.pvalue), 1e-300),
        "distance_to_t": float(to_t.statistic),
        "distance_to_normal": float(to_normal.statistic),
    }


def outputs(
    rows: Tensor,
    y: Tensor,
    K: Tensor,
    width: int,
    steps: int,
    number: int,
    prior: Distribution,
    generator: torch.Generator,
) -> Tensor:
    """Outputs at the first row, after gradient descent of the last layers on the other rows."""

    def make_net() -> nn.Module:
        first = nn.Linear(rows.shape[1], width, bias=False)
        last = nn.Linear(width, 1, bias=False)
        for layer in (first, last):
            nn.init.normal_(layer.weight, std=(2.0 / layer.in_features) ** 0.5)
        return nn.Sequential(first, nn.ReLU(), last)

    ensemble = HeavyTailedEnsemble(make_net, number, prior, generator=generator)
    members: Any = ensemble.members
    with torch.no_grad():
        hidden = torch.stack([net[:-1](rows) for net in members])
        readout = torch.stack([net[-1].weight[0] for net in members])[..., None]
        h_test, h = hidden[:, :1], hidden[:, 1:]
        speed = torch.linalg.eigvalsh(K)  # of 2/width·h hᵀ, in the limit
        rate = 4 / width / (speed[0] + speed[-1]).item()
        # A step moves the readout by rate · hᵀ(y − f): what it moved by in all is hᵀc.
        moved, gram, rest = torch.zeros_like(h[..., :1]), h @ h.mT, y[:, None] - h @ readout
        for _ in range(steps):
            moved += rate * rest
            rest = rest - rate * gram @ rest
        return (h_test @ (readout + h.mT @ moved))[:, 0, 0]


# ---- regression

Method = Callable[[Any, float | None, int], Any]


def mixture(prior: Any) -> Method:
    def method(kernel: Any, noise: float | None, random_state: int) -> ScaleMixtureRegressor:
        return ScaleMixtureRegressor(
            kernel,
            prior=prior,
            noise=1.0 if noise is None else noise,
            optimize=noise is None,
            random_state=random_state,
        )

    return method


REGRESSORS: dict[str, Method] = {
    "nngp": mixture(Delta(1.0)),
    "nngp-ml": mixture("ml"),
    "t-1": mixture((1.0, 1.0)),
    "t-2": mixture((2.0, 2.0)),
    "burr": mixture(BurrXII(2.0, 1.0)),
}


def table(name: str) -> tuple[Array, Array]:
    """All rows, and their targets scaled to deviation 1."""
    X, y = data.load(name, sizes=(1.0, 0.0, 0.0)).train.tensors()
    rows, targets = X.double().numpy(), y.double().numpy()
    if name == "wine":
        rows, targets = rows[:, 1:], rows[:, 0]  # the first column is alcohol
    return rows, (targets - targets.mean()) / targets.std()


def regression(setting: Setting, run: Run) -> dict[str, float]:
    rows, targets = table(setting.data)
    test = counted(setting.test, len(rows))
    n = min(counted(setting.n, len(rows)), len(rows) - test)
    noise = None if setting.noise == "evidence" else float(setting.noise)
    kernel = partial(nngp_kernel, activation="relu", depth=setting.depth, C_W=2.0, C_b=0.09)
    orders = [torch.randperm(len(rows), generator=run.rng("split")) for _ in range(setting.splits)]
    run.witness(split=orders)
    scores = []
    for order in orders:
        seen, new = order[:n].numpy(), order[len(order) - test :].numpy()
        shift = student_t2(test, run.rng("shift"))
        scores.append(
            score(
                run.methods[setting.method](kernel, noise, run.random_state("method")),
                *scaled(rows[seen], rows[new]),
                targets[seen],
                targets[new],
                shift,
            )
        )
    of = {name: np.array([score[name] for score in scores]) for name in scores[0]}
    means = {f"{name}_mean" if name == "nll_shifted" else name: v.mean() for name, v in of.items()}
    return means | {"nll_shifted": float(np.median(of["nll_shifted"]))}


def score(model: Any, X: Array, T: Array, y: Array, t: Array, shift: Array) -> dict[str, float]:
    model.fit(X, y)
    return {
        "nll_clean": -model.log_predictive_density(T, t).mean(),
        "nll_shifted": -model.log_predictive_density(T, t + shift).mean(),
        "rmse": np.square(model.predict(T) - t).mean() ** 0.5,
    }


def scaled(X: Array, T: Array) -> tuple[Array, Array]:
    """By the mean and deviation of the training rows."""
    deviation = np.where(X.std(0) > 0, X.std(0), 1.0)
    return (X - X.mean(0)) / deviation, (T - X.mean(0)) / deviation


def student_t2(number: int, generator: torch.Generator) -> Array:
    """z/√e with z ~ N(0, 1) and e ~ Exp(1), which is χ²(2)/2."""
    z, u = (
        sample(number, generator=generator, dtype=torch.float64)
        for sample in (torch.randn, torch.rand)
    )
    return (z / (-torch.log1p(-u)).sqrt()).numpy()


def counted(size: float, rows: int) -> int:
    """A number of rows, or a share of them."""
    return size if isinstance(size, int) else round(size * rows)


# ---- classification

PRIORS: dict[str, Distribution] = {"svsp": inverse_gamma(2.0), "svgp": Delta(1.0)}


@dataclass(frozen=True)
class Pictures:
    """Rows of one part, centred and scaled by the training pictures, and labels."""

    x: Tensor
    y: Tensor


def classification(setting: Setting, run: Run) -> dict[str, float]:
    loaded = data.load(setting.pictures, sizes=parts_of(setting), generator=run.rng("split"))
    (X, y), (T, t) = loaded.train.tensors(), loaded.test.tensors()
    left_out = torch.tensor([1, 4, 8] if setting.train == "without 1, 4, 8" else [])
    seen = ~torch.isin(y, left_out)
    X, y = X[seen], y[seen]
    mean, deviation = X.mean(0), X.std()

    def part(pictures: Tensor, labels: Tensor) -> Pictures:
        rows = ((pictures - mean) / deviation).flatten(1).double()
        return Pictures(rows.to(run.device), labels.to(run.device))

    train = part(X, y)
    noisy = T + setting.noise * torch.randn(T.shape, generator=run.rng("noise"))
    tests = {"clean": T, "noise": noisy, "inverted": 1 - T}
    centres = run.fixture(
        inducing_points, seed=run.seed, setting={k: setting[k] for k in FROM_DATA}
    )
    run.witness(split={"train": train.x, "test": T}, weights=centres)
    model = SVSP(
        kernel_for(setting.kernel, X.shape[1:]),
        centres["points"].to(run.device),
        len(loaded.classes),
        run.methods[setting.method],
        num_data=len(y),
    ).to(run.device)
    train_svsp(
        model,
        data.Split(train.x, train.y),
        steps=setting.steps,
        batch_size=setting.batch,
        learning_rate=setting.lr,
        num_samples=setting.samples,
        generator=run.rng("batches"),
    )
    metrics: dict[str, float] = {}
    for name, pictures in tests.items():
        found = quality(model, part(pictures, t), setting)
        metrics |= {f"{key}_{name}": value for key, value in found.items()}
    return metrics


def parts_of(setting: Mapping[str, Any]) -> tuple[float, float, float]:
    """Rows to train and to test on, counts or shares, and none between."""
    train = setting["train_size"]
    return train, type(train)(0), setting["test"]


FROM_DATA = ("pictures", "train", "train_size", "test", "inducing")
"""Settings that the first inducing points depend on."""


def inducing_points(streams: Any, setting: dict[str, Any]) -> dict[str, Tensor]:
    """Centres of the training rows by k-means, the same for all methods."""
    sizes, generator = parts_of(setting), streams.rng("split")
    loaded = data.load(setting["pictures"], sizes=sizes, generator=generator)
    X, y = loaded.train.tensors()
    if setting["train"] == "without 1, 4, 8":
        X = X[~torch.isin(y, torch.tensor([1, 4, 8]))]
    rows = ((X - X.mean(0)) / X.std()).flatten(1).double().numpy()
    means = KMeans(setting["inducing"], n_init=1, random_state=streams.random_state("method"))
    return {"points": torch.from_numpy(means.fit(rows[:10_000]).cluster_centers_)}


def kernel_for(name: str, shape: torch.Size) -> NNGPKernel:
    return NNGPKernel("relu", 4, image_shape=tuple(shape) if name == "cnn" else None)


def quality(model: SVSP, part: Pictures, setting: Setting) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)  # one stream for all: draws of a prediction
    seed = generator.get_state()
    chances = []
    for rows in part.x.split(setting.together):
        generator.set_state(seed)
        chances.append(
            model.predict_proba(rows, num_samples=setting.test_samples, generator=generator)
        )
    p = torch.cat(chances)
    right = p[torch.arange(len(p), device=p.device), part.y]
    return {
        "nll": -right.clamp(min=1e-12).log().mean().item(),
        "accuracy": (p.argmax(1) == part.y).double().mean().item(),
    }


# ---- figures

COLOURS = {"nngp": "#999999", "nngp-ml": "#D55E00", "t-1": "#56B4E9", "t-2": "#0072B2"}
MARKERS = {"nngp": "v", "nngp-ml": "s", "t-1": "^", "t-2": "o", "burr": "D"}


def nll(frame: DataFrame) -> Figure:
    """NLL against n for clean and for shifted targets, one column a table."""
    from matplotlib.figure import Figure as Canvas

    columns = ["experiment", "method", "seed", "data", "n", "noise", "nll_clean", "nll_shifted"]
    frame = frame.reindex(columns=columns)  # some are missing where nothing of it has run
    rows = frame[(frame["experiment"] == "regression") & (frame["noise"] == "evidence")]
    tables = list(dict.fromkeys(rows["data"])) or ["not run"]
    canvas = Canvas(figsize=(4 * len(tables), 5.6), dpi=140, layout="constrained")
    panels = canvas.subplots(2, len(tables), squeeze=False, sharex="col")
    for column, name in enumerate(tables):
        for axes, metric in zip(panels[:, column], ("nll_clean", "nll_shifted")):
            of_table = rows[rows["data"] == name]
            for method, some in of_table.groupby("method", sort=False):
                by_n = some.groupby("n")[metric]
                mean = by_n.mean()
                error = [half_interval(values.to_numpy(float)) for _, values in by_n]
                axes.errorbar(
                    mean.index,
                    mean,
                    error,
                    label=method,
                    capsize=2,
                    color=COLOURS.get(method, "#009E73"),
                    marker=MARKERS.get(method, "x"),
                    markersize=4,
                )
            sizes = sorted(of_table["n"].unique())
            axes.set(xscale="log", title=f"{name}, {metric.removeprefix('nll_')}")
            axes.set_xticks(sizes, [f"{n:g}" for n in sizes])
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
        panels[1, column].set_xlabel("training rows n")
    for axes in panels[:, 0]:
        axes.set_ylabel("NLL in nats")
    if len(rows):
        panels[0, 0].legend(frameon=False, fontsize=8)
    seeds = rows["seed"].nunique()
    note = f"clean: means over splits; shifted (t(2) noise on targets): medians; {seeds} seeds"
    canvas.supxlabel(note, fontsize=8, color="0.35")
    return canvas


def half_interval(values: Array) -> float:
    return 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0


def classes(frame: DataFrame) -> Figure:
    """NLL and accuracy of both processes on each test set."""
    from matplotlib.figure import Figure as Canvas

    rows = frame[frame["experiment"] == "classification"]
    canvas = Canvas(figsize=(8, 3.2), dpi=140, layout="constrained")
    panels = canvas.subplots(1, 2)
    places = [("all", "clean"), ("all", "noise"), ("all", "inverted")]
    places.append(("without 1, 4, 8", "clean"))
    names = ["clean", "noise", "inverted", "classes\nleft out"]
    for axes, metric in zip(panels, ("nll", "accuracy")):
        for i, (method, some) in enumerate(rows.groupby("method", sort=False)):
            cells = [
                some.loc[some["train"] == train, f"{metric}_{on}"].to_numpy(float)
                for train, on in places
            ]
            axes.bar(
                np.arange(4) + 0.38 * (i - 0.5),
                [cell.mean() if len(cell) else np.nan for cell in cells],
                0.36,
                yerr=[half_interval(cell) for cell in cells],
                label=method,
                capsize=2,
                color=("#0072B2", "#D55E00", "#009E73")[i % 3],
                hatch=("", "//", "..")[i % 3],
                edgecolor="white",
            )
        axes.set_xticks(range(4), names)
        axes.set_ylabel("NLL in nats" if metric == "nll" else "accuracy")
        axes.spines[["top", "right"]].set_visible(False)
    if len(rows):
        panels[0].legend(frameon=False, fontsize=8)
    note = f"means and 95 % intervals, {rows['seed'].nunique()} seeds; trained on clean pictures"
    canvas.supxlabel(note, fontsize=8, color="0.35")
    return canvas


# ---- the study

SIZES = {"diabetes": [10, 20, 40, 80, 200], "wine": [10, 20, 40, 80]}
FEW = [10, 20, 40, 80]
TABLES: dict[str, dict[str, Any]] = {
    "diabetes": {"data": "diabetes", "test": 242, "depth": 4, "splits": 30},
    "wine": {"data": "wine", "test": 98, "depth": 4, "splits": 30},
}
UCI = ["boston", "concrete", "energy", "kin8nm", "naval", "power", "wine", "yacht"]
NETWORKS: dict[str, Any] = {"trained": [0, 1], "n": 4, "dim": 6, "steps": 200}
DIGITS: dict[str, Any] = {
    "pictures": "digits",
    "train": ["all", "without 1, 4, 8"],
    "train_size": 1000,
    "test": 500,
    "inducing": 50,
    "kernel": "mlp",
    "noise": 0.3,
    "steps": 1000,
    "batch": 100,
    "lr": 0.1,
    "samples": 20,
    "test_samples": 500,
    "together": 250,
}
HUB: dict[str, Any] = {
    "pictures": [
        "hub:ylecun/mnist",
        "hub:uoft-cs/cifar10",
        "hub:ufldl-stanford/svhn?config=cropped_digits",
    ],
    "train": "all",
    "train_size": 1.0,
    "test": 1.0,
    "inducing": 200,
    "kernel": "cnn",
    "steps": 150_000,
    "lr": 0.01,
    "samples": 100,
    "test_samples": 10_000,
    "together": 100,
}

limits = Experiment(
    networks,
    smoke=grid(**(NETWORKS | {"steps": 20}), width=64, networks=50, together=25),
    desk=grid(**NETWORKS, width=2048, networks=4000, together=500),
    full=grid(**NETWORKS, width=8192, networks=20_000, together=500),
)
tables = Experiment(
    regression,
    REGRESSORS,
    smoke=grid(data="diabetes", n=10, test=50, depth=2, splits=2, noise=["evidence", 0.3]),
    desk=grid(**TABLES["diabetes"], n=SIZES["diabetes"], noise="evidence")
    + grid(**TABLES["wine"], n=SIZES["wine"], noise="evidence")
    + grid(**(TABLES["diabetes"] | {"splits": 3}), n=[10, 200], noise=0.3)
    + grid(**(TABLES["wine"] | {"splits": 3}), n=[10, 80], noise=0.3),
    full=grid(
        data=[f"file:uci/{name}.csv" for name in UCI],
        n=0.9,
        test=0.1,
        depth=4,
        splits=1,
        noise="evidence",
    ),
)
pictures = Experiment(
    classification,
    PRIORS,
    smoke=grid(
        **(DIGITS | {"train": "without 1, 4, 8", "train_size": 100, "test": 50}
        | {"inducing": 10, "steps": 3, "test_samples": 20}),
    ),
    desk=grid(**DIGITS),
    full=grid(**(DIGITS | HUB)),
)  # fmt: skip

t_pvalue = limits.metric("t_pvalue")
normal_pvalue = limits.metric("normal_pvalue", log=True)
clean, rmse = tables.metric("nll_clean"), tables.metric("rmse")
shifted, shifted_mean = tables.metric("nll_shifted"), tables.metric("nll_shifted_mean")
label_nll = {on: pictures.metric(f"nll_{on}") for on in ("noise", "inverted")}
accuracy = {
    on: pictures.metric(f"accuracy_{on}", resolution=1 / 500) for on in ("noise", "inverted")
}
unseen = pictures.metric("nll_clean")
by_evidence: dict[str, Any] = {"noise": "evidence"}

study = Study(
    "smnngp",
    experiments=[limits, tables, pictures],
    claims=[
        Claim(
            "C1",
            "With α = β = 2, outputs of networks of width 2048 pass a Kolmogorov-Smirnov test "
            "against t with 4 degrees of freedom (mean p above 0.05) and fail against the normal "
            "of equal variance (p below 1e-3), as initialised and with a trained last layer",
            all_of(
                *(higher(t_pvalue(trained=k), 0.05) for k in (0, 1)),
                *(lower(normal_pvalue(trained=k), 1e-3) for k in (0, 1)),
            ),
            margin="ours",
        ),
        Claim(
            "C2",
            "On targets with added noise the t-process's NLL is at least 0.5 nats below that of "
            "the NNGP with ML amplitude, on both tables and for every n up to 80",
            all_of(
                *(
                    lower(
                        shifted("t-2", data=name, n=n, **by_evidence),
                        shifted("nngp-ml", data=name, n=n, **by_evidence),
                        by=0.5,
                    )
                    for name in TABLES
                    for n in FEW
                )
            ),
            margin="ours",
            note="The margin was set after a pilot on diabetes, which no verdict uses. Medians "
            "over splits replaced means after a look at development seeds: no mean exists.",
        ),
        Claim(
            "C2b",
            "The same difference of means over splits, mean over tables and n up to 80",
            report(
                shifted_mean.mean("t-2", data=[*TABLES], n=FEW, **by_evidence)
                - shifted_mean.mean("nngp-ml", data=[*TABLES], n=FEW, **by_evidence)
            ),
        ),
        Claim(
            "C3",
            "On clean targets its NLL is not higher at n = 10, on both tables, and within 0.02 "
            "nats at n = 200 (diabetes)",
            all_of(
                *(
                    lower(
                        clean("t-2", data=name, n=10, **by_evidence),
                        clean("nngp-ml", data=name, n=10, **by_evidence),
                    )
                    for name in TABLES
                ),
                within(
                    clean("t-2", data="diabetes", n=200, **by_evidence)
                    - clean("nngp-ml", data="diabetes", n=200, **by_evidence),
                    0,
                    0.02,
                ),
            ),
            margin="ours",
            note="The margin was set after a pilot on diabetes, which no verdict uses.",
        ),
        Claim(
            "C4",
            "At equal noise ε all methods have the same RMSE to 1e-6",
            all_of(
                *(
                    within(
                        rmse(method, data=name, n=n, noise=0.3)
                        - rmse("nngp", data=name, n=n, noise=0.3),
                        0,
                        1e-6,
                    )
                    for method in REGRESSORS
                    if method != "nngp"
                    for name, sizes in SIZES.items()
                    for n in (sizes[0], sizes[-1])
                )
            ),
            margin="ours",
        ),
        Claim(
            "C5",
            "On digits with noise and on inverted ones SVSP's NLL is below SVGP's, and accuracy "
            "within one point",
            all_of(
                *(lower(of.mean("svsp", train="all"), of.mean("svgp", train="all"))
                  for of in label_nll.values()),
                *(within(of.mean("svsp", train="all"), of.mean("svgp", train="all"), 0.01)
                  for of in accuracy.values()),
            ),
            margin="ours",
            note="Inverted digits go as claimed; with noise on the pixels both are alike, SVSP "
            "0.006 nats worse: a thousand rows leave little doubt about the scale.",
        ),
        Claim(
            "C5b",
            "NLL of SVSP less that of SVGP on clean digits, when three classes were left out of "
            "training",
            report(
                unseen.mean("svsp", train="without 1, 4, 8")
                - unseen.mean("svgp", train="without 1, 4, 8")
            ),
        ),
        Claim(
            "C6",
            "With a BurrXII prior, by importance sampling, NLL on targets with added noise is "
            "below that of the NNGP with ML amplitude, on both tables and for every n up to 80",
            all_of(
                *(
                    lower(
                        shifted("burr", data=name, n=n, **by_evidence),
                        shifted("nngp-ml", data=name, n=n, **by_evidence),
                    )
                    for name in TABLES
                    for n in FEW
                )
            ),
        ),
    ],
    figures=[drawn(nll), drawn(classes)],
    data=data.Accepts("table", bundled=["diabetes", "wine"]),
    demo=["C4"],
)  # fmt: skip
