"""Deep kernel machines: is the limit what the paper says, and is learning Gram matrices of use?

- `sampling`: the posterior mean E G of the Gram matrix of a deep Gaussian process with one hidden
  layer of N features (three data points, squared exponential kernel, noise 0.1) by Hamiltonian
  Monte Carlo, beside the matrix G* that maximises the DKM objective and beside K(G_0). Labels are
  seen N times (`replicate="width"`) or once ("one"). Distances are largest absolute entries.
- `regression`: test RMSE, and log density of test targets in nats with targets scaled to deviation
  1, on a composed function (y = sin(3|x₁ + x₂|) + noise of 0.1, eight more columns of noise, 600
  rows for training and validation, as many to test) and on diabetes. `alignment` is the centred
  alignment of K(G_L) with yyᵀ on test rows, K approximated through the inducing points.
- `timing`: an epoch of the sparse machine on n rows in batches of 500; a fit of
  one step of the full machine on n rows.

Differences from the paper. Small tables; one layer is sampled; length scales, one a column, are
trained in all sparse methods. What differs between seeds is the sample, or the split of diabetes.
The tables of the full scale, UCI regressions, are the reader's own CSV files, the target last, in a
folder `uci`; splits are drawn by seed, not read from the paper's files.

A method is a factory `method(setting, random_state)` of a scikit-learn regressor whose `predict`
takes `return_std=True`. Rows and targets come standardised by the training rows. Three candidates
each, by the log density of validation rows: `dkm` tunes ν, `nngp` (ν = ∞) and `svgp` (no hidden
layer) their learning rate, which is what they depend on most. `ard-gp` (exact, scikit-learn) and
`ridge` (Bayesian) maximise their evidence on the training rows and have nothing else.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge

from paperworks import data
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    Tune,
    all_of,
    bars,
    exponent,
    falls,
    grid,
    higher,
    lines,
    lower,
    report,
)
from paperworks.study.terms import slope
from paperworks.wide import (
    DeepKernelMachine,
    SparseDKMRegressor,
    SqExpKernel,
    psd_safe_cholesky,
    sample_dgp_grams,
)

Array = NDArray[Any]

# ---- sampling

X_THREE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
Y_THREE = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)


def sampling(setting: Setting, run: Run) -> dict[str, float]:
    kernel = SqExpKernel(learned=False)
    machine = DeepKernelMachine(
        1, kernel, nu=1.0, noise=0.1, fit_kernel=False, normalize_y=False, tol=1e-9
    ).fit(X_THREE.numpy(), Y_THREE[:, 0].numpy())
    nngp = kernel(X_THREE @ X_THREE.T / X_THREE.shape[1])
    samples = sample_dgp_grams(
        X_THREE,
        Y_THREE,
        kernel,
        [setting.width],
        setting.width if setting.replicate == "width" else 1,
        setting.samples,
        noise=0.1,
        chains=setting.chains,
        warmup=setting.warmup,
        generator=run.rng("method"),
    )
    mean = samples.grams[0].mean((0, 1))
    return {
        "distance_to_dkm": (mean - torch.from_numpy(machine.grams_[0])).abs().max().item(),
        "distance_to_nngp": (mean - nngp).abs().max().item(),
        "acceptance": samples.acceptance.mean().item(),
    }


# ---- regression


def composed(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Rows of ten columns, two of which matter through the modulus of their sum."""
    X = rng.normal(size=(n, 10))
    return X, np.sin(3 * np.abs(X[:, 0] + X[:, 1])) + 0.1 * rng.normal(size=n)


def parts_of(setting: Setting, run: Run) -> list[tuple[Array, Array]]:
    """Training, validation and test rows with their targets, standardised by the training rows."""
    if setting.data == "composed":
        rng = np.random.default_rng(run.random_state("split"))
        X, y = composed(2 * setting.n, rng)
        cuts = [setting.n * 4 // 5, setting.n]
        parts = list(zip(np.split(X, cuts), np.split(y, cuts)))
    else:
        sizes = (0.9 - setting.test, 0.1, setting.test)
        loaded = data.load(setting.data, sizes=sizes, generator=run.rng("split"))
        parts = [
            (x.double().numpy(), y.double().numpy())
            for x, y in (part.tensors() for part in (loaded.train, loaded.val, loaded.test))
        ]
    X, y = parts[0]
    spread = np.where(X.std(0) > 0, X.std(0), 1.0)
    return [((rows - X.mean(0)) / spread, (t - y.mean()) / y.std()) for rows, t in parts]


def sparse(**options: Any) -> Callable[[Setting, int], SparseDKMRegressor]:
    """A sparse machine with what the setting says, and what tuning chose."""

    def method(setting: Setting, random_state: int) -> SparseDKMRegressor:
        tuned = {key: setting[key] for key in ("nu", "learning_rate") if key in setting}
        return SparseDKMRegressor(
            setting.inducing,
            max_iter=setting.steps,
            random_state=random_state,
            **{"learning_rate": 0.1, **options, **tuned},
        )

    return method


class ARDProcess(GaussianProcessRegressor):
    """With one length scale a column, however many there are."""

    def fit(self, X: Array, y: Array) -> ARDProcess:
        self.kernel = ConstantKernel() * RBF(np.ones(X.shape[1])) + WhiteKernel(0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # length scales at their bound
            return super().fit(X, y)


METHODS: dict[str, Callable[[Setting, int], Any]] = {
    "dkm": sparse(n_layers=2),
    "nngp": sparse(n_layers=2, nu=math.inf),
    "svgp": sparse(n_layers=0),
    "ard-gp": lambda setting, random_state: ARDProcess(random_state=random_state),
    "ridge": lambda setting, random_state: BayesianRidge(),
}


def log_density(model: Any, X: Array, y: Array) -> float:
    mean, std = model.predict(X, return_std=True)
    return float(np.mean(-(((y - mean) / std) ** 2) / 2 - np.log(std) - math.log(2 * math.pi) / 2))


@torch.no_grad()
def alignment(model: SparseDKMRegressor, X: Array, y: Array) -> float:
    """⟨K, yyᵀ⟩/(‖K‖‖yyᵀ‖) of centred K and y, with K = K_ti K_ii⁻¹ K_it."""
    K = model.module_[:-1](torch.from_numpy(X))
    features = torch.linalg.solve_triangular(psd_safe_cholesky(K.ii), K.ti.T, upper=False).T
    features = features - features.mean(0)
    target = torch.from_numpy(y - y.mean())
    among = features.T @ features
    return ((features.T @ target).square().sum() / (among.norm() * target @ target)).item()


def regression(setting: Setting, run: Run) -> dict[str, float]:
    (X, y), (V, v), (T, t) = parts_of(setting, run)
    run.witness(split={"train": X, "val": V, "test": T})
    model = run.methods[setting.method](setting, run.random_state("method")).fit(X, y)
    metrics = {
        "rmse": float(np.sqrt(np.mean((model.predict(T) - t) ** 2))),
        "log_density": log_density(model, T, t),
        "val_log_density": log_density(model, V, v),
    }
    if isinstance(model, SparseDKMRegressor):
        metrics["alignment"] = alignment(model, T, t)
    return metrics


# ---- timing


def sparse_epoch(setting: Setting, X: Array, y: Array) -> float:
    """Seconds of one pass, after a first batch that places the inducing points."""
    model = SparseDKMRegressor(setting.inducing, batch_size=setting.batch, random_state=0)
    model.partial_fit(X[: setting.batch], y[: setting.batch])
    return seconds_of(lambda: model.partial_fit(X, y))


def full_step(setting: Setting, X: Array, y: Array) -> float:
    """Seconds of one step on all Gram matrices."""
    model = DeepKernelMachine(max_iter=1, optimizer="adam")
    return seconds_of(lambda: model.fit(X, y))


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def timing(setting: Setting, run: Run) -> dict[str, float]:
    X, y = composed(setting.n, np.random.default_rng(run.random_state("split")))
    measure = run.methods[setting.method]
    seconds = [measure(setting, X, y) for _ in range(setting.repeats)]
    return {"epoch_seconds": min(seconds)}


# ---- the study

WIDTHS: dict[str, Any] = {"replicate": ["width", "one"], "width": [8, 32, 128]}
COMPOSED: dict[str, Any] = {"data": "composed", "n": 600, "inducing": 50, "steps": 600}
DIABETES: dict[str, Any] = {"data": "diabetes", "test": 0.2, "inducing": 50, "steps": 200}
UCI = ["boston", "concrete", "energy", "kin8nm", "naval", "power", "protein", "wine", "yacht"]

posterior = Experiment(
    sampling,
    smoke=grid(replicate=["width", "one"], width=[4, 8], samples=5, chains=4, warmup=5),
    desk=grid(**WIDTHS, samples=150, chains=250, warmup=50),
    full=grid(**(WIDTHS | {"width": [8, 32, 128, 512]}), samples=1000, chains=500, warmup=200),
)
tables = Experiment(
    regression,
    METHODS,
    smoke=grid(**(COMPOSED | {"n": 40, "inducing": 5, "steps": 3})),
    desk=grid(**COMPOSED) + grid(**DIABETES),
    full=grid(data=[f"file:uci/{name}.csv" for name in UCI], test=0.1, inducing=100, steps=5000),
    tune=Tune(
        by="val_log_density",
        higher=True,
        learning_rate=[0.1, 0.2, 0.4],
        only={"dkm": {"nu": [1.0, 10.0, 100.0]}, "ard-gp": {}, "ridge": {}},
    ),
)
costs = Experiment(
    timing,
    {"sparse": sparse_epoch, "full": full_step},
    smoke=grid(method="sparse", n=[40, 80], batch=20, inducing=5, repeats=1)
    + grid(method="full", n=[5, 10], repeats=1),
    desk=grid(method="sparse", n=[6250, 25_000, 100_000], batch=500, inducing=50, repeats=1)
    + grid(method="full", n=[250, 500, 1000], repeats=2),
    full=grid(method="sparse", n=[10_000, 100_000, 1_000_000], batch=500, inducing=100, repeats=3)
    + grid(method="full", n=[1000, 2000, 4000], repeats=3),
)

to_dkm, to_nngp = (
    posterior.metric(name, log=True) for name in ("distance_to_dkm", "distance_to_nngp")
)
density, aligned = tables.metric("log_density"), tables.metric("alignment")
seconds = costs.metric("epoch_seconds", log=True)
repeated: dict[str, Any] = {"replicate": "width"}
once: dict[str, Any] = {"replicate": "one"}

study = Study(
    "dkm",
    experiments=[posterior, tables, costs],
    claims=[
        Claim(
            "C1",
            "With labels replicated N times, the mean Gram matrix of the sampled process closes in "
            "on that of the DKM objective like a power of N between -0.5 and -1.2, and is within "
            "0.05 at N = 128",
            all_of(
                exponent(to_dkm, along="width", value=-0.85, tolerance=0.35, **repeated),
                lower(to_dkm(width=128, **repeated), 0.05),
            ),
            margin="ours",
        ),
        Claim(
            "C2",
            "With labels seen once, it closes in on K(G_0) instead: that distance falls with N and "
            "is smaller at N = 128 than the distance to the DKM's matrix",
            all_of(
                falls(to_nngp, along="width", **once),
                lower(to_nngp(width=128, **once), to_dkm(width=128, **once)),
            ),
        ),
        Claim(
            "C3",
            "Test log density of the DKM is higher than the NNGP's on the composed function, and "
            "at most 0.05 nats lower on diabetes",
            all_of(
                higher(density("dkm", data="composed"), density("nngp", data="composed")),
                higher(density("dkm", data="diabetes"), density("nngp", data="diabetes"), by=-0.05),
            ),
            margin="ours",
        ),
        Claim(
            "C4",
            "The top kernel of the DKM is better aligned with the targets than the NNGP's, on both",
            all_of(
                *(
                    higher(aligned("dkm", data=name), aligned("nngp", data=name))
                    for name in ("composed", "diabetes")
                )
            ),
        ),
        Claim(
            "C5",
            "Time of an epoch grows with the number of rows to a power of 1 ± 0.15 for the sparse "
            "machine, and of at least 2 for the full one",
            all_of(
                exponent(seconds, "sparse", along="n", value=1.0, tolerance=0.15),
                higher(slope(seconds, "full", along="n", log=True), 2.0),
            ),
            margin="ours",
        ),
        Claim(
            "C6",
            "Test log density of the DKM less that of an exact Gaussian process with a length "
            "scale a column, mean over both tables",
            report(
                density.mean("dkm", data=["composed", "diabetes"])
                - density.mean("ard-gp", data=["composed", "diabetes"])
            ),
        ),
    ],
    figures=[
        lines(
            x="width",
            y="distance_to_dkm",
            by="replicate",
            experiment=posterior,
            logx=True,
            logy=True,
            title="Distance of the sampled Gram matrix to the DKM's",
        ),
        bars(x="data", y="log_density", by="method", experiment=tables),
        bars(x="data", y="alignment", by="method", experiment=tables),
        lines(x="n", y="epoch_seconds", by="method", experiment=costs, logx=True, logy=True),
    ],
    data=data.Accepts("table", bundled=["composed", "diabetes"]),
    demo=["C1"],
)
