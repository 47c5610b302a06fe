"""Deep kernel machines as scikit-learn estimators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from paperworks import data, nets
from paperworks.wide.dkm.full import gaussian_log_likelihood
from paperworks.wide.dkm.grams import GramKernel, widths_of_layers
from paperworks.wide.dkm.layers import (
    GaussianLikelihood,
    GramLayer,
    InducingInput,
    SoftmaxLikelihood,
    SparseDKM,
    dkm_regularizer,
    inducing_grams,
    make_kernel,
    stabilised,
)
from paperworks.wide.estimators import ScaledTargets, inducing_rows
from paperworks.wide.kernels import gp_posterior

Array = NDArray[Any]

_PAIRS = 2**21
"""Pairs of rows and inducing points that a prediction works on at once."""

_PREDICTION_SAMPLES = 512
"""Samples of f over which class probabilities are averaged: the same ones for every row."""


# ---------------------------------------------------------------------------------------------
# What the estimators share
# ---------------------------------------------------------------------------------------------


class _DeepEstimator(BaseEstimator):
    """Checked hyperparameters, rows in float64 and in batches."""

    n_layers: int
    nu: float | Sequence[float]
    ard: bool
    lengthscale: float
    device: str
    n_features_in_: int

    def _widths(self) -> list[float]:
        """ν of each layer."""
        if isinstance(self.n_layers, bool) or self.n_layers not in range(1000):
            raise ValueError(f"n_layers must be an integer of at least 0, got {self.n_layers!r}")
        return widths_of_layers(self.nu, int(self.n_layers))

    def _lengthscale(self) -> Tensor:
        shape = (self.n_features_in_,) if self.ard else ()
        return torch.full(shape, float(self.lengthscale), dtype=torch.float64)

    def _tensor(self, rows: Array) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64, device=self.device)

    def _in_batches(
        self, X: ArrayLike, points: int, predict: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Array, ...]:
        """Predictions for checked rows, joined; memory does not grow with their number."""
        rows: Array = validate_data(self, X, dtype=np.float64, reset=False)
        with torch.no_grad():
            parts = [
                predict(self._tensor(rows[batch]))
                for batch in gen_batches(len(rows), max(1, _PAIRS // points))
            ]
        return tuple(torch.cat(column).cpu().numpy() for column in zip(*parts))


class _DeepRegressor(ScaledTargets, RegressorMixin, _DeepEstimator):
    """Targets in units of their own."""

    def _normalized(self, y: Array) -> Tensor:
        """Targets (n, outputs) as they are modelled, by what was learned from the first ones."""
        return self._tensor(self._scaled(y))

    def _checked(self, X: ArrayLike, y: ArrayLike, reset: bool = True) -> tuple[Array, Array]:
        options: Any = {"dtype": np.float64, "y_numeric": True, "multi_output": True}
        return validate_data(self, X, y, reset=reset, **options)

    def _outcome(self, mean: Array, variance: Array, return_std: bool) -> Any:
        """In the units and the shape of the targets."""
        mean = mean * self.y_scale_ + self.y_mean_
        std = np.sqrt(variance)[:, None] * self.y_scale_
        return (self._shaped(mean), self._shaped(std)) if return_std else self._shaped(mean)


def _lengthscale_of(chain: nn.Sequential) -> Array:
    inputs: Any = chain[0]
    return inputs.log_lengthscale.exp().detach().cpu().numpy()


# ---------------------------------------------------------------------------------------------
# Full Gram matrices
# ---------------------------------------------------------------------------------------------


class DeepKernelMachine(_DeepRegressor):
    """Deep kernel regression with learned Gram matrices of all training rows, n³ a step.

    Maximises the DKM objective J (see `dkm_objective`) over G_1 … G_L and, unless told otherwise,
    over length scales, kernel variances and noise; predicts by the Gaussian process with kernel
    K(G_L). Reach for it on up to about a thousand rows, when the learned representation itself is
    wanted, as matrices; use `SparseDKMRegressor` beyond.

    Rows are taken as they are: standardise columns first, since a squared exponential kernel
    wants them on about one scale (`make_pipeline(StandardScaler(), DeepKernelMachine())`).

    Args:
        n_layers: number L of Gram matrices; 0 is a Gaussian process.
        kernel: "rbf", "relu", "linear", or a `GramKernel`, copied for each layer.
        nu: ν_ℓ, one number or one a layer: small learns the representation most, and overfits
            small noisy tables; `np.inf` is the NNGP. Choose it by validation, 1 to 1000.
        noise: first variance of the observation noise, in units of the modelled targets.
        fit_kernel: train length scales, kernel variances and noise too; False holds them.
        lengthscale: first length scale.
        ard: one length scale a column.
        normalize_y: model targets with mean 0 and deviation 1 of each output; predictions come
            back in the targets' units either way.
        optimizer: "lbfgs" or "adam" (learning rate 0.01).
        max_iter: most iterations.
        tol: stops L-BFGS when no entry of the gradient is larger.
        device: where to compute, as torch names it.

    Attributes:
        grams_: G_1 … G_L of the training rows.
        objective_: J at the end, of the modelled targets; a kernel carries 1e-6 (1 + K) on its
            diagonal.
        noise_: variance of the noise, of the modelled targets.
        lengthscale_: length scales.
        n_iter_: iterations used.
        n_features_in_: number of columns.

    Raises:
        ValueError: in `fit`: "nu must be positive", or another argument that makes no sense.

    Source: arXiv 2108.13097. Trained length scales and the optimiser are ours.

    >>> X = np.linspace(-2, 2, 40)[:, None]
    >>> y = np.sign(X[:, 0])
    >>> machine = DeepKernelMachine(n_layers=1, nu=1.0, max_iter=30).fit(X, y)
    >>> machine.predict([[-1.0], [1.0]]).round(1), machine.grams_[0].shape
    (array([-1.,  1.]), (40, 40))
    """

    def __init__(
        self,
        n_layers: int = 2,
        kernel: str | GramKernel = "rbf",
        nu: float | Sequence[float] = 100.0,
        noise: float = 0.1,
        fit_kernel: bool = True,
        lengthscale: float = 1.0,
        ard: bool = False,
        normalize_y: bool = True,
        optimizer: Literal["lbfgs", "adam"] = "lbfgs",
        max_iter: int = 200,
        tol: float = 1e-5,
        device: str = "cpu",
    ) -> None:
        self.n_layers = n_layers
        self.kernel = kernel
        self.nu = nu
        self.noise = noise
        self.fit_kernel = fit_kernel
        self.lengthscale = lengthscale
        self.ard = ard
        self.normalize_y = normalize_y
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.tol = tol
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows X of shape (n, features) and targets y of shape (n,) or (n, outputs)."""
        if self.optimizer not in ("lbfgs", "adam"):
            raise ValueError(f"optimizer must be 'lbfgs' or 'adam', got {self.optimizer!r}")
        rows, targets = self._checked(X, y)
        self._learn_scale(targets)
        self._Y = self._normalized(targets)
        self._stack = self._make_stack(self._tensor(rows))
        self._likelihood = GaussianLikelihood(self.noise, learned=self.fit_kernel).to(self.device)
        parameters = [
            p
            for p in (*self._stack.parameters(), *self._likelihood.parameters())
            if p.requires_grad
        ]
        self.n_iter_ = self._maximise(parameters) if parameters else 0
        self.objective_ = self._objective().item()
        self.grams_ = [gram.cpu().numpy() for gram in inducing_grams(self._stack)]
        self.noise_ = self._likelihood.noise.item()
        self.lengthscale_ = _lengthscale_of(self._stack)
        return self

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """Mean for rows X, and if so asked the standard deviation of an observation.

        Args:
            X: rows, shape (m, features).
            return_std: also return the deviation, that of the noise included.

        Returns:
            Mean of shape (m,) or (m, outputs), or the pair of mean and deviation in that shape.
        """
        check_is_fitted(self)

        def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
            K = stabilised(self._stack(rows))
            assert K.ti is not None
            assert K.t is not None
            mean, variance = gp_posterior(
                K.ii, K.ti, K.t, self._Y, noise=self._likelihood.noise.detach()
            )
            return mean, variance.clamp(min=0) + self._likelihood.noise

        mean, variance = self._in_batches(X, len(self._Y), moments)
        return self._outcome(mean, variance, return_std)

    def _make_stack(self, X: Tensor) -> nn.Sequential:
        """The sparse machine whose inducing points are the training rows, without its top."""
        inputs = InducingInput(
            X,
            learned=False,
            lengthscale=self._lengthscale(),
            learned_lengthscale=self.fit_kernel,
        )
        layers: list[nn.Module] = [inputs]
        for width in self._widths():
            layers += [make_kernel(self.kernel), GramLayer(len(X), width)]
        layers.append(make_kernel(self.kernel))
        for layer in layers:
            if isinstance(layer, GramKernel) and not self.fit_kernel:
                layer.requires_grad_(False)
        return nn.Sequential(*layers).to(self.device)

    def _objective(self) -> Tensor:
        K = stabilised(self._stack(None)).ii
        fit = gaussian_log_likelihood(self._Y, K, self._likelihood.noise)
        return fit - dkm_regularizer(self._stack)

    def _maximise(self, parameters: list[nn.Parameter]) -> int:
        def loss() -> Tensor:
            optimizer.zero_grad()
            value = -self._objective()
            value.backward()
            return value

        optimizer: torch.optim.Optimizer
        if self.optimizer == "adam":
            optimizer = torch.optim.Adam(parameters, lr=0.01)
            for _ in range(self.max_iter):
                optimizer.step(loss)
            return self.max_iter
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=self.max_iter,
            history_size=20,
            tolerance_grad=self.tol,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(loss)
        return optimizer.state[parameters[0]]["n_iter"]


# ---------------------------------------------------------------------------------------------
# Inducing points
# ---------------------------------------------------------------------------------------------


class _SparseEstimator(_DeepEstimator):
    """Inducing points by k-means, Adam on mini-batches, a stream of batches."""

    n_inducing: int | None
    kernel: str | GramKernel
    max_iter: int
    batch_size: int
    learning_rate: float
    random_state: Any
    module_: SparseDKM
    likelihood_: Any

    def _log_prob(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """E_Q log P(y|f) of each row."""
        return self.likelihood_(mean, variance, y)

    def _build(self, X: Array, num_outputs: int, likelihood: nn.Module) -> None:
        """Everything that is trained, from the first rows."""
        random = check_random_state(self.random_state)
        self.module_ = SparseDKM.deep(
            torch.from_numpy(self._centres(X, random)),
            num_outputs,
            num_layers=int(self.n_layers),
            kernel=self.kernel,
            nu=self._widths(),
            lengthscale=self._lengthscale(),
        ).to(self.device)
        self.likelihood_ = likelihood.to(self.device)
        seed = int(random.randint(2**31))
        self._generator_state = torch.Generator(self.device).manual_seed(seed).get_state()
        self._adam: dict[str, Any] | None = None
        self.n_samples_seen_ = 0
        self.n_iter_ = 0

    def _centres(self, X: Array, random: np.random.RandomState) -> Array:
        if self.n_inducing is not None and not 1 <= self.n_inducing <= len(X):
            if self.n_inducing < 1:
                raise ValueError(f"n_inducing must be at least 1, got {self.n_inducing}")
            raise ValueError(
                f"n_inducing exceeds n_samples: {self.n_inducing} inducing points, {len(X)} rows"
            )
        return inducing_rows(X, 100 if self.n_inducing is None else self.n_inducing, random)

    def _train(self, X: Array, y: Tensor, steps: int, total: int, schedule: Any = None) -> None:
        """Adam on the objective per row, where `total` rows are what the data are."""

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            rows, targets = batch
            mean, variance = self.module_(rows)
            fit = self._log_prob(mean, variance, targets).mean()
            return dkm_regularizer(self.module_) / total - fit

        both = nn.ModuleList([self.module_, self.likelihood_])
        optimizer = torch.optim.Adam(
            [p for p in both.parameters() if p.requires_grad], lr=self.learning_rate
        )
        if self._adam is not None:
            optimizer.load_state_dict(self._adam)
        self._generator = torch.Generator(self.device)
        self._generator.set_state(self._generator_state)
        part = data.Split(self._tensor(X), y)
        batches = data.batches(part, min(self.batch_size, len(X)), self._generator)
        history = nets.fit(both, batches, loss, optimizer=optimizer, steps=steps, schedule=schedule)
        self._generator_state = self._generator.get_state()
        del self._generator  # generators cannot be copied or stored
        if history.diverged:
            raise ValueError(
                f"training diverged after {history.steps} steps: lower learning_rate (now "
                f"{self.learning_rate}) or standardise X"
            )
        self._adam = optimizer.state_dict() if schedule is None else None
        self.objective_ = -total * history.loss[-1]
        self.n_iter_ += history.steps
        self.grams_ = [gram.cpu().numpy() for gram in self.module_.grams()]
        self.lengthscale_ = _lengthscale_of(self.module_)

    def _fit(self, X: Array, y: Tensor) -> None:
        steps = self._number("max_iter")
        self._train(X, y, steps, len(X), schedule=lambda step: 0.1 ** (step / steps))
        self.n_samples_seen_ = len(X)

    def _partial_fit(self, X: Array, y: Tensor) -> None:
        self.n_samples_seen_ += len(X)
        steps = -(-len(X) // min(self._number("batch_size"), len(X)))
        self._train(X, y, steps, self.n_samples_seen_)

    def _number(self, name: str) -> int:
        number = getattr(self, name)
        if isinstance(number, bool) or int(number) != number or number < 1:
            raise ValueError(f"{name} must be a positive integer, got {number!r}")
        return int(number)

    def _check_training(self) -> None:
        self._number("max_iter")
        self._number("batch_size")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")

    def _moments(self, X: ArrayLike) -> tuple[Array, ...]:
        check_is_fitted(self)
        points = self.module_[0].num_inducing
        return self._in_batches(X, points, self.module_)


class SparseDKMRegressor(_DeepRegressor, _SparseEstimator):
    """Deep kernel regression with inducing points: a step costs the same for any number of rows.

    Trains a `SparseDKM` with a Gaussian likelihood by Adam on mini-batches, O(L(|B|P² + P³)) a
    step: inducing points, Gram matrices, length scales, kernel variances and noise. The top layer
    starts, and ends, at its optimum in closed form. Reach for it
    as a Gaussian process that learns its representation, on 10² to 10⁶ rows.

    Rows are taken as they are: standardise columns first, since a squared exponential kernel
    wants them on about one scale (`make_pipeline(StandardScaler(), SparseDKMRegressor())`).

    Args:
        n_inducing: number P of inducing points, at most that of rows; 100 by default, or fewer
            where there are fewer distinct rows. They start at the centres of k-means.
        n_layers: number L of Gram layers; 0 is a sparse Gaussian process (SVGP).
        kernel: "rbf", "relu", "linear", or a `GramKernel`, copied for each layer.
        nu: ν_ℓ, one number or one a layer: small learns the representation most, and overfits
            small noisy tables; `np.inf` is the NNGP. Choose it by validation, 1 to 1000.
        noise: first variance of the noise, in units of the modelled targets.
        lengthscale: first length scale.
        ard: one length scale a column.
        normalize_y: model targets with mean 0 and deviation 1 of each output; predictions come
            back in the targets' units either way.
        max_iter: steps of Adam.
        batch_size: rows of a step.
        learning_rate: of the first step; falls geometrically to a tenth.
        random_state: decides k-means and batches.
        device: where to compute, as torch names it.

    Attributes:
        module_: the trained `SparseDKM`.
        likelihood_: the trained `GaussianLikelihood`, of the modelled targets.
        grams_: G_1 … G_L of the inducing points.
        objective_: last value of the objective, on its batch.
        lengthscale_: length scales.
        n_iter_: steps taken.
        n_features_in_: number of columns.

    Raises:
        ValueError: in `fit`: "nu must be positive", "n_inducing exceeds n_samples", another
            argument that makes no sense, or training that diverged.

    Source: arXiv 2108.13097. Length scales a column, and standardised targets, are ours.

    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 2))
    >>> machine = SparseDKMRegressor(20, max_iter=150, learning_rate=0.05, random_state=0)
    >>> mean, std = machine.fit(X, np.abs(X[:, 0])).predict([[0.0, 0.0], [2.0, 0.0]], True)
    >>> bool(mean[1] - mean[0] > 1.2), std.shape
    (True, (2,))
    """

    def __init__(
        self,
        n_inducing: int | None = None,
        n_layers: int = 2,
        kernel: str | GramKernel = "rbf",
        nu: float | Sequence[float] = 100.0,
        noise: float = 0.1,
        lengthscale: float = 1.0,
        ard: bool = True,
        normalize_y: bool = True,
        max_iter: int = 2000,
        batch_size: int = 512,
        learning_rate: float = 0.01,
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.n_inducing = n_inducing
        self.n_layers = n_layers
        self.kernel = kernel
        self.nu = nu
        self.noise = noise
        self.lengthscale = lengthscale
        self.ard = ard
        self.normalize_y = normalize_y
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows X of shape (n, features) and targets y of shape (n,) or (n, outputs)."""
        rows, targets = self._start(X, y)
        self._fit(rows, self._normalized(targets))
        self._condition(rows, self._normalized(targets))
        return self

    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Go on with one pass over more rows of a stream, at a constant learning rate.

        The first call places the inducing points and takes the scale of the targets, so it should
        bring a few hundred rows. The data are taken to be all rows seen so far; for several passes
        over the same rows use `fit`.
        """
        if hasattr(self, "module_"):
            self._check_training()
            rows, targets = self._checked(X, y, reset=False)
            if (targets.ndim == 1) != self._single or targets[0].size != len(self.y_mean_):
                raise ValueError(
                    f"y must have {len(self.y_mean_)} outputs, got shape {targets.shape}"
                )
        else:
            rows, targets = self._start(X, y)
        self._partial_fit(rows, self._normalized(targets))
        return self

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """Mean for rows X, and if so asked the standard deviation of an observation.

        Args:
            X: rows, shape (m, features).
            return_std: also return the deviation, that of the noise included.

        Returns:
            Mean of shape (m,) or (m, outputs), or the pair of mean and deviation in that shape.
        """
        mean, variance = self._moments(X)
        return self._outcome(mean, variance + self.likelihood_.noise.item(), return_std)

    def _start(self, X: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        self._check_training()
        rows, targets = self._checked(X, y)
        self._learn_scale(targets)
        self._build(rows, len(self.y_mean_), GaussianLikelihood(self.noise))
        self._condition(rows, self._normalized(targets))
        return rows, targets

    def _condition(self, X: Array, y: Tensor) -> None:
        """The top layer in closed form."""
        hidden, top = self.module_[:-1], self.module_[-1]
        parts = gen_batches(len(X), max(1, _PAIRS // top.num_inducing))
        data = ((hidden(self._tensor(X[part])), y[part]) for part in parts)
        top.condition_(data, self.likelihood_.noise)


class SparseDKMClassifier(ClassifierMixin, _SparseEstimator):
    """Deep kernel classification with inducing points, softmax over one output a class.

    As `SparseDKMRegressor`, with E_Q log softmax(f)_y by reparametrised Monte Carlo. Reach for it
    where a Gaussian process classifier is too slow or its kernel too shallow.

    Rows are taken as they are: standardise columns first.

    Args:
        n_inducing: number P of inducing points, at most that of rows; 100 by default, or fewer
            where there are fewer distinct rows. They start at the centres of k-means.
        n_layers: number L of Gram layers; 0 is a sparse Gaussian process (SVGP).
        kernel: "rbf", "relu", "linear", or a `GramKernel`, copied for each layer.
        nu: ν_ℓ, one number or one a layer: small learns the representation most, and overfits
            small noisy tables; `np.inf` is the NNGP. Choose it by validation, 1 to 1000.
        lengthscale: first length scale.
        ard: one length scale a column.
        max_iter: steps of Adam.
        batch_size: rows of a step.
        learning_rate: of the first step; falls geometrically to a tenth.
        n_samples: samples of f a row in training.
        random_state: decides k-means, batches and samples.
        device: where to compute, as torch names it.

    Attributes:
        classes_: the labels.
        module_: the trained `SparseDKM`.
        likelihood_: its `SoftmaxLikelihood`.
        grams_: G_1 … G_L of the inducing points.
        objective_: last value of the objective, on its batch.
        lengthscale_: length scales.
        n_iter_: steps taken.
        n_features_in_: number of columns.

    Raises:
        ValueError: in `fit`: "nu must be positive", "n_inducing exceeds n_samples", another
            argument that makes no sense, or training that diverged.

    Source: arXiv 2108.13097. Length scales a column are ours.

    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 2))
    >>> y = np.where(np.linalg.norm(X, axis=1) < 1, "in", "out")
    >>> machine = SparseDKMClassifier(20, max_iter=100, learning_rate=0.05, random_state=0)
    >>> machine.fit(X, y).predict([[0.0, 0.0], [2.0, 0.0]])
    array(['in', 'out'], dtype='<U3')
    """

    def __init__(
        self,
        n_inducing: int | None = None,
        n_layers: int = 2,
        kernel: str | GramKernel = "rbf",
        nu: float | Sequence[float] = 100.0,
        lengthscale: float = 1.0,
        ard: bool = True,
        max_iter: int = 2000,
        batch_size: int = 512,
        learning_rate: float = 0.01,
        n_samples: int = 10,
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.n_inducing = n_inducing
        self.n_layers = n_layers
        self.kernel = kernel
        self.nu = nu
        self.lengthscale = lengthscale
        self.ard = ard
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.n_samples = n_samples
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows X of shape (n, features) and labels y of shape (n,)."""
        rows, labels = self._start(X, y, None)
        self._fit(rows, self._index(labels))
        return self

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Go on with one pass over more rows of a stream, at a constant learning rate.

        The first call places the inducing points, so it should bring a few hundred rows, and names
        all `classes` that will come (those of `y` by default). The data are taken to be all rows
        seen so far; for several passes over the same rows use `fit`.
        """
        if hasattr(self, "module_"):
            self._check_training()
            rows, labels = validate_data(self, X, y, dtype=np.float64, reset=False)
        else:
            rows, labels = self._start(X, y, classes)
        self._partial_fit(rows, self._index(labels))
        return self

    def predict_proba(self, X: ArrayLike) -> Array:
        """Class probabilities E_Q softmax(f) for rows X, shape (m, classes)."""
        mean, variance = self._moments(X)
        f, std = torch.from_numpy(mean), torch.from_numpy(variance).sqrt()[:, None]
        total = torch.zeros_like(f)
        for z in torch.from_numpy(self._normals):
            total += torch.softmax(f + std * z, 1)
        return (total / len(self._normals)).numpy()

    def predict(self, X: ArrayLike) -> Array:
        """The most probable class of rows X."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _start(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None) -> tuple[Array, Array]:
        self._check_training()
        rows: Array
        rows, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_ = np.unique(labels if classes is None else np.asarray(classes))
        number = len(self.classes_)
        self._build(rows, number, SoftmaxLikelihood(self._number("n_samples")))
        half = check_random_state(self.random_state).normal(size=(_PREDICTION_SAMPLES // 2, number))
        self._normals = np.concatenate([half, -half])
        return rows, labels

    def _index(self, y: Array) -> Tensor:
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y has classes that were not named at first: {unknown.tolist()}")
        return torch.from_numpy(np.searchsorted(self.classes_, y)).to(self.device)

    def _log_prob(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        return self.likelihood_(mean, variance, y, self._generator)
