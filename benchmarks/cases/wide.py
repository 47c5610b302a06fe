"""Infinitely wide networks beside neural-tangents and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cases.case import Case, largest_difference, rng

# ---- wide: kernels of an infinitely wide ReLU network


def inputs(n: int, d: int) -> np.ndarray:
    return rng().standard_normal((n, d))


def our_kernels() -> Callable[[], Any]:
    from paperworks.wide import deep_kernels

    X = torch.from_numpy(inputs(4000, 100))
    return lambda: torch.stack(
        deep_kernels(X, activation="relu", depth=3, C_W=2.0, C_b=0.1)
    ).numpy()


def their_kernel(depth: int, W: float, b: float) -> Any:
    """`kernel_fn` of neural-tangents, in double precision and compiled."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import stax

    dense = stax.Dense(1, W_std=W**0.5, b_std=b**0.5)
    layers = [dense, *[stax.Relu(), dense] * depth]
    kernel = stax.serial(*layers)[2]
    return jax.jit(kernel, static_argnames="get")


def their_kernels() -> Callable[[], Any]:
    kernel = their_kernel(3, 2.0, 0.1)
    X = inputs(4000, 100)
    return lambda: np.stack(kernel(X, None, get=("nngp", "ntk")))


# ---- wide: kernels of a convolutional network


def our_cnn() -> Callable[[], Any]:
    from paperworks.wide import cnn_ntk_kernel

    X = torch.from_numpy(inputs(1000, 64).reshape(-1, 1, 8, 8))
    options = {"activation": "relu", "filter_sizes": [3, 3, 3, 3], "C_W": 2.0, "C_b": 0.1}
    return lambda: cnn_ntk_kernel(X, **options).numpy()


def their_cnn() -> Callable[[], Any]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import stax

    weights = {"W_std": 2**0.5, "b_std": 0.1**0.5}
    block = [stax.Conv(1, (3, 3), padding="SAME", **weights), stax.Relu()]
    kernel = jax.jit(
        stax.serial(*block * 4, stax.Flatten(), stax.Dense(1, **weights))[2], static_argnames="get"
    )
    X = inputs(1000, 64).reshape(-1, 8, 8, 1)
    return lambda: np.asarray(kernel(X, None, get="ntk"))


# ---- permute: many small networks


def our_ensemble() -> Callable[[], Any]:
    from paperworks.wide import train_ensemble

    eye = torch.eye(10)

    def trained() -> np.ndarray:
        networks = train_ensemble(
            eye, eye.flip(0), 300, 1000, generator=torch.Generator().manual_seed(0)
        )
        return networks(two_ones()).mean(0).detach().numpy()

    return trained


def their_ensemble() -> Callable[[], Any]:
    eye = torch.eye(10)

    def trained() -> np.ndarray:
        torch.manual_seed(1)
        total = torch.zeros(45, 10)
        for _ in range(300):
            first, last = torch.randn(1000, 10), torch.randn(10, 1000)
            optimizer = torch.optim.SGD([first.requires_grad_(), last.requires_grad_()], lr=4.1)
            for _ in range(60):
                optimizer.zero_grad()
                out = (eye @ first.T / 10**0.5).relu() @ last.T / 1000**0.5
                (0.5 * (out - eye.flip(0)).square().sum()).backward()
                optimizer.step()
            with torch.no_grad():
                total += (two_ones() @ first.T / 10**0.5).relu() @ last.T / 1000**0.5
        return (total / 300).numpy()

    return trained


def two_ones() -> torch.Tensor:
    places = torch.combinations(torch.arange(10), 2)
    return torch.nn.functional.one_hot(places, 10).sum(1).float() / 2**0.5


# ---- optimal: a deep kernel as a classifier


def circles(n: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows on the positive orthant of a sphere, and which of two overlapping classes they are."""
    draw = np.random.default_rng([0, stream])
    y = draw.integers(0, 2, n)
    alphas = np.array([[3, 1, 2, 1, 1], [1, 2, 2, 2, 3]])
    rows = np.stack([draw.dirichlet(alphas[label]) for label in y])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), y


def our_classifier(**options: Any) -> Callable[[], Any]:
    from paperworks.wide import DeepKernelClassifier

    (X, y), (T, _) = circles(2000, 0), circles(2000, 1)
    return lambda: DeepKernelClassifier(**options).fit(X, y).predict(T)


def their_classifier() -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    kernel = their_kernel(100, 2.0, 0.0)
    (X, y), (T, _) = circles(2000, 0), circles(2000, 1)

    @jax.jit
    def votes(K: Any, K_test: Any, y: Any) -> Any:
        return K_test @ jax.scipy.linalg.solve(K, y, assume_a="pos")

    def fit_and_predict() -> Any:
        K, K_test = kernel(X, None, get="ntk"), kernel(T, X, get="ntk")
        return np.asarray(votes(K, K_test, jnp.asarray(2.0 * y - 1)) > 0).astype(int)

    return fit_and_predict


def sklearn_classifier(name: str) -> Callable[[], Any]:
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    (X, y), (T, _) = circles(2000, 0), circles(2000, 1)
    model, knobs = {
        "k-nn": (KNeighborsClassifier(), {"n_neighbors": [1, 3, 5, 9, 15, 25, 41, 65]}),
        "svm": (SVC(), {"C": [0.1, 1, 10, 100], "gamma": [1, 10, 100, 1000]}),
    }[name]
    return lambda: GridSearchCV(model, knobs).fit(X, y).predict(T)


def accuracies(ours: np.ndarray, peer: np.ndarray) -> str:
    truth = circles(2000, 1)[1]
    same = (ours == peer).mean()
    return f"accuracy {(ours == truth).mean():.3f} | {(peer == truth).mean():.3f}, {same:.1%} alike"


# ---- pdlt: flows and the solver


def gram(n: int, d: int = 100) -> torch.Tensor:
    X = torch.from_numpy(inputs(n, d))
    return X @ X.T / d


def our_flow(activation: str, n: int = 1000, depth: int = 50) -> Callable[[], Any]:
    from paperworks.wide import kernel_flow

    start = gram(n)
    return lambda: kernel_flow(activation, start, depth, C_W=2.0, C_b=0.1)[-1].numpy()


def their_flow(layer: str, n: int = 1000, depth: int = 50) -> Callable[[], Any]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import stax

    dense = stax.Dense(1, W_std=2.0**0.5, b_std=0.1**0.5)
    layers = [dense, *[getattr(stax, layer)(), dense] * (depth - 1)]
    kernel = jax.jit(stax.serial(*layers)[2], static_argnames="get")
    X = inputs(n, 100)
    return lambda: np.asarray(kernel(X, None, get="nngp"))


def our_ntk_flow(activation: str, n: int = 1000, depth: int = 5) -> Callable[[], Any]:
    from paperworks.wide import ntk_flow

    start = gram(n)  # λ = C: the NTK parametrisation
    return lambda: ntk_flow(activation, start, depth, C_W=2.0, C_b=0.1, lambda_W=2.0, lambda_b=0.1)[
        -1
    ].numpy()


def their_ntk_flow(layer: str, n: int = 1000, depth: int = 5) -> Callable[[], Any]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import stax

    dense = stax.Dense(1, W_std=2.0**0.5, b_std=0.1**0.5)
    layers = [dense, *[getattr(stax, layer)(), dense] * (depth - 1)]
    kernel = jax.jit(stax.serial(*layers)[2], static_argnames="get")
    X = inputs(n, 100)
    return lambda: np.asarray(kernel(X, None, get="ntk"))


def our_solver() -> Callable[[], Any]:  # target: below 50 ms
    from paperworks.wide import criticality

    return lambda: np.array(criticality("gelu")[:3])


def their_gain() -> Callable[[], Any]:  # no GELU in the table: ReLU's gain is what people take
    from torch.nn.init import calculate_gain

    return lambda: np.array([calculate_gain("relu") ** 2, 0.0, np.nan])


# ---- dkm: a deep kernel regression with inducing points


def composed(n: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng([0, stream])
    X = draw.standard_normal((n, 10))
    return X, np.sin(3 * np.abs(X[:, 0] + X[:, 1])) + 0.1 * draw.standard_normal(n)


def our_epochs(n: int = 10_000, epochs: int = 5) -> Callable[[], Any]:
    from paperworks.wide import SparseDKMRegressor

    (X, y), (T, _) = composed(n, 0), composed(2000, 1)
    model = SparseDKMRegressor(
        100, n_layers=2, nu=10.0, batch_size=500, max_iter=epochs * n // 500,
        learning_rate=0.05, random_state=0,
    )  # fmt: skip
    return lambda: np.stack(model.fit(X, y).predict(T, return_std=True))


def their_epochs(n: int = 10_000, epochs: int = 5) -> Callable[[], Any]:
    """Doubly stochastic deep GP of gpytorch: a hidden layer of two units, 100 inducing points."""
    import gpytorch
    import torch
    from gpytorch.models.deep_gps import DeepGP, DeepGPLayer
    from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy

    class Layer(DeepGPLayer):
        def __init__(self, inputs: int, outputs: int | None) -> None:
            shape = torch.Size([] if outputs is None else [outputs])
            points = torch.randn(*shape, 100, inputs, generator=torch.Generator().manual_seed(0))
            strategy = VariationalStrategy(
                self, points, CholeskyVariationalDistribution(100, batch_shape=shape)
            )
            super().__init__(strategy, inputs, outputs)
            self.mean_module = gpytorch.means.ConstantMean(batch_shape=shape)
            self.covar_module = gpytorch.kernels.ScaleKernel(
                gpytorch.kernels.RBFKernel(batch_shape=shape, ard_num_dims=inputs),
                batch_shape=shape,
            )

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(x), self.covar_module(x)
            )

    class Model(DeepGP):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.last = Layer(10, 2), Layer(2, None)
            self.likelihood = gpytorch.likelihoods.GaussianLikelihood()

        def forward(self, x: Any) -> Any:
            return self.last(self.hidden(x))

    (X, y), (T, _) = composed(n, 0), composed(2000, 1)
    X, y, T = (torch.from_numpy(a).float() for a in (X, (y - y.mean()) / y.std(), T))
    scale, shift = composed(n, 0)[1].std(), composed(n, 0)[1].mean()

    def fit() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Model()
            elbo = gpytorch.mlls.DeepApproximateMLL(
                gpytorch.mlls.VariationalELBO(model.likelihood, model, n)
            )
            adam = torch.optim.Adam(model.parameters(), lr=0.05)
            for _ in range(epochs):
                for rows in torch.randperm(n).split(500):
                    adam.zero_grad()
                    (-elbo(model(X[rows]), y[rows])).backward()
                    adam.step()
            with torch.no_grad(), gpytorch.settings.num_likelihood_samples(10):
                predicted = model.likelihood(model(T))
                mean = predicted.mean.mean(0)
                second = (predicted.variance + predicted.mean**2).mean(0)
            std = (second - mean**2).sqrt()
            return np.stack([mean.numpy() * scale + shift, std.numpy() * scale])

    return fit


def rmse_and_nlpd(ours: np.ndarray, peer: np.ndarray) -> str:
    truth = composed(2000, 1)[1]

    def scores(prediction: np.ndarray) -> str:
        mean, std = prediction
        z = (truth - mean) / std
        nlpd = (z**2 / 2 + np.log(std) + np.log(2 * np.pi) / 2).mean()
        return f"{np.sqrt(np.mean((truth - mean) ** 2)):.3f}, {nlpd:.3f}"

    return f"RMSE, NLPD {scores(ours)} | {scores(peer)}"


# ---- widecnn: networks without overlap


def our_hierarchy(n: int = 2000) -> Callable[[], Any]:
    from paperworks.wide import HierarchicalKernel

    X = torch.from_numpy(inputs(n, 8))
    kernel = HierarchicalKernel((2, 2, 2))
    return lambda: kernel(X).numpy()


def their_hierarchy(n: int = 2000) -> Callable[[], Any]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import stax

    channels_last = ("NHC", "HIO", "NHC")
    one = stax.Conv(1, (2,), (2,), "VALID", W_std=2**0.5, dimension_numbers=channels_last)
    conv = [one, stax.Relu()]
    kernel = jax.jit(
        stax.serial(*conv * 3, stax.Flatten(), stax.Dense(1, W_std=2**0.5))[2],
        static_argnames="get",
    )
    X = inputs(n, 8)[:, :, None]
    return lambda: np.asarray(kernel(X, None, get="ntk"))


def field(n: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of eight angles' sines and cosines, and a rough function of neighbours."""
    angle = np.random.default_rng([0, stream]).uniform(0, 2 * np.pi, (n, 4))
    X = np.stack([np.cos(angle), np.sin(angle)], -1).reshape(n, 8)
    return X, np.abs(X[:, 0] - X[:, 2]) + np.abs(X[:, 5] - X[:, 7])


def our_local_regression() -> Callable[[], Any]:
    from paperworks.wide import HierarchicalKernelRegressor

    (X, y), (T, _) = field(2000, 0), field(2000, 1)
    return lambda: HierarchicalKernelRegressor((2, 2)).fit(X, y).predict(T)


def tuned_kernel_ridge() -> Callable[[], Any]:
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV

    (X, y), (T, _) = field(2000, 0), field(2000, 1)
    knobs = {"gamma": [0.03, 0.1, 0.3, 1], "alpha": [1e-6, 1e-3]}
    return lambda: GridSearchCV(KernelRidge(kernel="rbf"), knobs, cv=3).fit(X, y).predict(T)


def errors(ours: np.ndarray, peer: np.ndarray) -> str:
    truth = field(2000, 1)[1]
    mine, theirs = (np.mean((p - truth) ** 2) / truth.var() for p in (ours, peer))
    return f"relative squared error {mine:.4f} | {theirs:.4f}"


# ---- smnngp: a process with its evidence, and steps of the sparse classifier


def noisy(n: int) -> tuple[np.ndarray, np.ndarray]:
    X = inputs(n, 10)
    return X, np.sin(X[:, 0]) + 0.1 * np.random.default_rng(1).standard_t(3, n)


def our_t_process() -> Callable[[], Any]:
    """Fit and evidence at fixed hyperparameters, and 1,000 predictions."""
    from paperworks.wide import ScaleMixtureRegressor

    def kernel(X: torch.Tensor, Z: torch.Tensor | None = None) -> torch.Tensor:
        return torch.exp(-torch.cdist(X, X if Z is None else Z).square() / 2)

    X, y = noisy(2000)
    T = noisy(3000)[0][-1000:]
    options = {"noise": 0.1, "optimize": False, "normalize_y": False}
    model = ScaleMixtureRegressor(kernel, **options)
    return lambda: model.fit(X, y).predict(T)


def sklearn_process() -> Callable[[], Any]:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    X, y = noisy(2000)
    T = noisy(3000)[0][-1000:]
    model = GaussianProcessRegressor(RBF(1.0), alpha=0.1, optimizer=None)
    return lambda: model.fit(X, y).predict(T)


def our_learned_process() -> Callable[[], Any]:
    """Noise and length scale by evidence; the amplitude is integrated over."""
    from paperworks.wide import ScaleMixtureRegressor

    class RBF(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64).log())

        def forward(self, X: torch.Tensor, Z: torch.Tensor | None = None) -> torch.Tensor:
            scale = self.log_scale.exp()
            return torch.exp(-torch.cdist(X / scale, (X if Z is None else Z) / scale).square() / 2)

        def diag(self, X: torch.Tensor) -> torch.Tensor:
            return X.new_ones(len(X))

    X, y = noisy(1000)
    model = ScaleMixtureRegressor(RBF())
    return lambda: model.fit(X, y).predict(X)


def sklearn_learned_process() -> Callable[[], Any]:
    """Noise, amplitude and length scale by evidence."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    X, y = noisy(1000)
    kernel = ConstantKernel() * RBF(3.0) + WhiteKernel(0.1)
    model = GaussianProcessRegressor(kernel, normalize_y=True)
    return lambda: model.fit(X, y).predict(X)


def our_svsp() -> Callable[[], Any]:
    """100 steps of Adam on batches of 100 digits, 200 inducing points, RBF kernel."""
    from sklearn.datasets import load_digits

    from paperworks.wide import ScaleMixtureClassifier

    def kernel(X: torch.Tensor, Z: torch.Tensor | None = None) -> torch.Tensor:
        return torch.exp(-torch.cdist(X, X if Z is None else Z).square() / 8)

    X, y = load_digits(return_X_y=True)
    model = ScaleMixtureClassifier(kernel, n_inducing=200, max_iter=100, random_state=0)
    return lambda: model.fit(X / 16, y).predict(X / 16)


def gpytorch_svgp() -> Callable[[], Any]:
    import gpytorch
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    x, t = torch.from_numpy(X / 16), torch.from_numpy(y)

    class SVGP(gpytorch.models.ApproximateGP):
        def __init__(self, points: torch.Tensor) -> None:
            law = gpytorch.variational.CholeskyVariationalDistribution(200, torch.Size([10]))
            strategy = gpytorch.variational.VariationalStrategy(self, points, law)
            super().__init__(
                gpytorch.variational.IndependentMultitaskVariationalStrategy(strategy, num_tasks=10)
            )
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, rows: torch.Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(rows), self.covar_module(rows)
            )

    def trained() -> np.ndarray:
        torch.manual_seed(0)
        model = SVGP(x[torch.randperm(len(x))[:200]].clone()).double()
        likelihood = gpytorch.likelihoods.SoftmaxLikelihood(
            num_features=10, num_classes=10, mixing_weights=False
        ).double()
        bound = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(x))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for _ in range(100):
            rows = torch.randint(len(x), (100,))
            optimizer.zero_grad()
            (-bound(model(x[rows]), t[rows])).backward()
            optimizer.step()
        with torch.no_grad():
            return likelihood(model(x)).probs.mean(0).argmax(1).numpy()

    return trained


def digits_right(ours: np.ndarray, peer: np.ndarray) -> str:
    from sklearn.datasets import load_digits

    truth = load_digits(return_X_y=True)[1]
    return f"accuracy {(ours == truth).mean():.3f} | {(peer == truth).mean():.3f}"


CASES = {
    "kernels": Case(
        "NNGP and NTK, 4,000 x 100 inputs, depth 3",
        "neural-tangents",
        {"ours": our_kernels, "peer": their_kernels},
        largest_difference,
    ),
    "cnn-kernel": Case(
        "NTK of a convolutional network, 1,000 pictures 8 x 8, 4 layers",
        "neural-tangents",
        {"ours": our_cnn, "peer": their_cnn},
        largest_difference,
    ),
    "ensemble": Case(
        "300 networks of width 1,000 trained on 10 bits, 60 steps",
        "one after the other, autograd",
        {"ours": our_ensemble, "peer": their_ensemble},
        lambda ours, peer: f"means differ by {np.abs(ours - peer).max():.3f}",
        repeats=1,
    ),
    "deep": Case(
        "ReLU NTK classifier, 100 layers, fit + predict 2,000",
        "neural-tangents",
        {
            "ours": lambda: our_classifier(activation="relu", depth=100, kernel="ntk"),
            "peer": their_classifier,
        },
        accuracies,
    ),
    "k-nn": Case(
        "optimal classifier, fit + predict 2,000",
        "tuned k-NN",
        {"ours": our_classifier, "peer": lambda: sklearn_classifier("k-nn")},
        accuracies,
    ),
    "svm": Case(
        "optimal classifier, fit + predict 2,000",
        "tuned SVC",
        {"ours": our_classifier, "peer": lambda: sklearn_classifier("svm")},
        accuracies,
    ),
    **{
        f"flow-{ours}": Case(
            f"kernels of 50 layers, 1,000 inputs, {ours}",
            "neural-tangents",
            {"ours": lambda a=ours: our_flow(a), "peer": lambda a=theirs: their_flow(a)},
            largest_difference,  # expected below 1e-6
        )
        for ours, theirs in (("relu", "Relu"), ("erf", "Erf"), ("gelu", "Gelu"))
    },
    "ntk-flow": Case(
        "NTK of 5 layers, 1,000 inputs, gelu",
        "neural-tangents",
        {"ours": lambda: our_ntk_flow("gelu"), "peer": lambda: their_ntk_flow("Gelu")},
        largest_difference,
    ),
    "criticality": Case(
        "variances for GELU",
        "calculate_gain",
        {"ours": our_solver, "peer": their_gain},
        lambda ours, peer: f"C_W {ours[0]:.3f}, C_b {ours[1]:.3f} | {peer[0]:.3f}, 0",
    ),
    "dkm": Case(
        "sparse deep kernel regression, 10,000 x 10, P = 100, two layers, 5 epochs",
        "gpytorch (DSVI deep GP)",
        {"ours": our_epochs, "peer": their_epochs},
        rmse_and_nlpd,
    ),
    "dkm-100k": Case(
        "the same with 100,000 rows, 1 epoch (time / that of 10,000: linear is 10)",
        "gpytorch (DSVI deep GP)",
        {"ours": lambda: our_epochs(100_000, 1), "peer": lambda: their_epochs(100_000, 1)},
        rmse_and_nlpd,
    ),
    "hierarchy": Case(
        "NTK without overlap, 2,000 x 8 inputs, filters 2-2-2",
        "neural-tangents",
        {"ours": our_hierarchy, "peer": their_hierarchy},
        largest_difference,
    ),
    "local": Case(
        "regression of a function of neighbours, fit + predict 2,000",
        "scikit-learn, tuned RBF",
        {"ours": our_local_regression, "peer": tuned_kernel_ridge},
        errors,
    ),
    "t-process": Case(
        "Student-t process, 2,000 x 10: fit, evidence, predict 1,000",
        "scikit-learn",
        {"ours": our_t_process, "peer": sklearn_process},
        largest_difference,
    ),
    "t-process-learned": Case(
        "the same with hyperparameters by evidence, 1,000 x 10",
        "scikit-learn",
        {"ours": our_learned_process, "peer": sklearn_learned_process},
        largest_difference,
        repeats=1,
    ),
    "svsp": Case(
        "100 steps of a sparse process on digits, 200 inducing points",
        "gpytorch SVGP",
        {"ours": our_svsp, "peer": gpytorch_svgp},
        digits_right,
        repeats=1,
    ),
}
