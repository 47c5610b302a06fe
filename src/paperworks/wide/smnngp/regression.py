"""Regression under a scale mixture: a Student-t process, or a prior without closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from paperworks.wide.estimators import ScaledTargets
from paperworks.wide.kernels import psd_safe_cholesky
from paperworks.wide.smnngp.kernel import Kernel, diagonal, gram, own_kernel, parameters_of
from paperworks.wide.smnngp.scales import Prior, ScaleLaw, ScalePrior, law_of

Array = NDArray[Any]

_BATCH = 2**22
"""Entries of the kernel that a prediction holds at once: 32 MB."""

_NOISE = (-6.0, 4.0)
"""Powers of ten between which noise is sought, as in the official grid."""


class ScaleMixtureRegressor(ScaledTargets, RegressorMixin, BaseEstimator):
    """Gaussian process regression whose scale is not known: heavy tails, in closed form.

    y | s ~ N(0, s·K̃), K̃ = K(X, X) + noise·I, s ~ prior: what the readout of an infinitely wide
    network does whose last layer has weights of random variance s. With s ~ InverseGamma(α, β)
    and d = yᵀK̃⁻¹y a prediction is Student-t with 2α + n degrees of freedom,
    mean K_*K̃⁻¹y,  scale² = (β + d/2)/(α + n/2)·(k_** + noise − K_*K̃⁻¹K_*ᵀ).
    Means are those of the Gaussian process; what changes is how sure it is. Reach for it with few
    rows, or where those to come may be off: with many rows and a fitted amplitude both agree.

    Any other prior is integrated over by importance sampling. The price is one Cholesky
    factorisation, n³/3, as a Gaussian process; learning kernel and noise repeats it.

    Args:
        kernel: a function kernel(X, Z=None) of float64 tensors (n, d), (m, d) that gives (n, m); a
            module, such as `NNGPKernel`, whose parameters are learned; or the name of an
            activation, for `NNGPKernel(kernel, n_layers)`.
        n_layers: hidden layers of the kernel of a named activation.
        prior: of s: the pair (α, β) of an inverse gamma, or a torch distribution of one positive
            number: `InverseGamma`, `BurrXII`, `Gamma`, `Delta` for a Gaussian process, … or "ml":
            a Gaussian process with the s of largest likelihood, d/n.
        noise: variance of the noise in units of s, not negative; where learning starts.
        optimize: learn noise, and the parameters of a kernel that has some, by the evidence
            p(y) = ∫ N(y; 0, s·K̃) dH(s). Noise alone is found on the eigenvalues of K, between
            1e-6 and 1e4 of its mean diagonal; together by L-BFGS.
        normalize_y: model y with mean 0 and deviation 1 of each output; everything comes back in
            the units of y.
        n_draws: draws of s where there is no closed form.
        max_iter: most iterations of L-BFGS.
        random_state: draws s.

    Attributes:
        kernel_: the kernel, with learned parameters.
        noise_: the variance of the noise in units of s, of modelled targets.
        scale_: what is known of s given y; of an inverse gamma its `alpha` and `beta`.
        X_fit_, L_, white_: training rows, Cholesky factor L of K̃, L⁻¹y of modelled targets.
        n_iter_: evaluations of the evidence while learning.
        n_features_in_: number of features.

    Rows are taken as they are: scale columns first. Several outputs share s. The kernel of a
    network without biases is 0 at a row of zeros; rows that come twice need noise.

    Raises:
        ValueError: in `fit`: "alpha and beta must be positive", "kernel matrix is not positive
            definite; increase noise", a prior whose draws are not positive, a kernel that gives
            another shape.

    Source: arXiv 2107.01408, section 3.3 and appendix; noise inside the mixture, and K̃ also in
    d, where the official code takes K. The code learns α and β too, here they stay as given. It
    draws s from the prior; half of the draws from where the likelihood is are ours.

    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(15, 2))
    >>> y = X[:, 0] + 0.1 * rng.standard_t(2, size=15)
    >>> model = ScaleMixtureRegressor("relu", prior=(2.0, 2.0)).fit(X, y)
    >>> mean, std = model.predict([[1.0, 0.0]], return_std=True)
    >>> low, high = model.predict_quantile([[1.0, 0.0]], [0.05, 0.95])
    >>> bool(low < mean < high), 2 * model.scale_.alpha
    (True, 19.0)
    """

    kernel_: Kernel
    noise_: float
    scale_: ScaleLaw
    X_fit_: Array
    L_: Array
    white_: Array
    n_features_in_: int

    def __init__(
        self,
        kernel: Kernel | str = "relu",
        n_layers: int = 4,
        prior: Prior = (2.0, 2.0),
        noise: float = 0.1,
        optimize: bool = True,
        normalize_y: bool = True,
        n_draws: int = 1000,
        max_iter: int = 100,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.kernel = kernel
        self.n_layers = n_layers
        self.prior = prior
        self.noise = noise
        self.optimize = optimize
        self.normalize_y = normalize_y
        self.n_draws = n_draws
        self.max_iter = max_iter
        self.random_state = random_state

    # ---- learning

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows X (n, features) and targets y, shape (n,) or (n, outputs)."""
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be finite and not negative, got {self.noise}")
        for name in ("n_draws", "max_iter"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        options: Any = {"dtype": np.float64, "y_numeric": True, "multi_output": True}
        rows, targets = validate_data(self, X, y, **options)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        prior = law_of(self.prior, int(self.n_draws), seed)
        kernel = own_kernel(self.kernel, self.n_layers)
        self._learn_scale(targets.astype(np.float64))
        x, Y = torch.tensor(rows), torch.from_numpy(self._scaled(targets))
        noise, self.n_iter_ = float(self.noise), 1
        if self.optimize:
            learn = _learn_all if parameters_of(kernel) else _learn_noise
            noise, self.n_iter_ = learn(kernel, x, Y, prior, noise, self.max_iter)
        with torch.no_grad():
            L, white = _factor(gram(kernel, x), Y, noise)
            q = white.square().sum()
            self._log_evidence = _evidence(L, q, Y.numel(), Y.shape[1], prior).item()
            self.scale_ = prior.posterior(q, Y.numel())
        self.kernel_, self.noise_ = kernel, noise
        self.X_fit_, self.L_, self.white_ = rows, L.numpy(), white.numpy()
        return self

    def evidence(self) -> float:
        """log p(y) of the training targets in their own units, at the learned hyperparameters."""
        check_is_fitted(self)
        return self._log_evidence - len(self.X_fit_) * float(np.log(self.y_scale_).sum())

    # ---- predictions

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """Means of rows X (m, features), and the deviations of observations if so asked.

        Returns:
            Mean of shape (m,) or (m, outputs), or the pair of mean and deviation, which is
            infinite where the law of s has no mean.
        """
        mean, variance = self._moments(X)
        if not return_std:
            return self._shaped(mean)
        return self._shaped(mean), self._shaped(self._spread(variance) * self.scale_.mean**0.5)

    def predict_quantile(self, X: ArrayLike, q: float | Sequence[float]) -> Array:
        """Quantiles of observations at rows X (m, features).

        Args:
            X: rows.
            q: a probability between 0 and 1, or several.

        Returns:
            Shape (m,) or (m, outputs); with several probabilities they come first.

        Raises:
            ValueError: a probability that is not between 0 and 1.
        """
        levels = np.atleast_1d(np.asarray(q, dtype=np.float64))
        if not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"q must be between 0 and 1, got {q}")
        mean, variance = self._moments(X)
        spread = self._spread(variance)
        steps = [self.scale_.quantile(float(level)) for level in levels]
        values = np.stack([self._shaped(mean + step * spread) for step in steps])
        return values[0] if np.ndim(q) == 0 else values

    def log_predictive_density(self, X: ArrayLike, y: ArrayLike) -> Array:
        """log p(y_i | x_i, training data) of each row, shape (m,), in the units of y.

        Args:
            X: rows, shape (m, features).
            y: observations, shape (m,) or (m, outputs); several outputs of a row count together.

        Raises:
            ValueError: y of another shape than predictions have.
        """
        mean, variance = self._moments(X)
        observed = np.asarray(y, dtype=np.float64)
        if observed.shape != self._shaped(mean).shape:
            raise ValueError(f"y must have shape {self._shaped(mean).shape}, got {observed.shape}")
        residual = (observed.reshape(mean.shape) - mean) / self._spread(variance)
        q = torch.from_numpy(np.square(residual).sum(1))
        density = self.scale_.log_marginal(q, residual.shape[1]).numpy()
        return density - np.log(self._spread(variance)).sum(1)

    def sample_y(
        self,
        X: ArrayLike,
        n_samples: int = 1,
        random_state: int | np.random.RandomState | None = 0,
    ) -> Array:
        """Joint draws of observations at rows X, one s each, shape (m[, outputs], n_samples)."""
        check_is_fitted(self)
        rows = self._rows(X)
        half = self._half(rows)
        K = gram(self.kernel_, rows) - half.mT @ half
        factor = psd_safe_cholesky(K + self.noise_ * torch.eye(len(K), dtype=K.dtype))
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        s = self.scale_.sample(n_samples, generator)
        shape = (len(rows), self.white_.shape[1], n_samples)
        z = torch.randn(shape, generator=generator, dtype=K.dtype)
        noise = torch.einsum("mk,kos->mos", factor, z) * s.sqrt()
        mean = half.mT @ torch.from_numpy(self.white_)
        draws = (mean[..., None] + noise).numpy()
        draws = draws * self.y_scale_[:, None] + self.y_mean_[:, None]
        return draws[:, 0] if self._single else draws

    def _moments(self, X: ArrayLike) -> tuple[Array, Array]:
        """Means in the units of y (m, outputs), variances of modelled observations per s (m,)."""
        check_is_fitted(self)
        rows = self._rows(X)
        means, variances = [], []
        for part in gen_batches(len(rows), max(1, _BATCH // len(self.X_fit_))):
            half = self._half(rows[part])
            means.append(half.mT @ torch.from_numpy(self.white_))
            variance = diagonal(self.kernel_, rows[part]) - half.square().sum(0)
            variances.append(variance.clamp(min=0) + self.noise_)
        mean = torch.cat(means).detach().numpy() * self.y_scale_ + self.y_mean_
        return mean, torch.cat(variances).detach().numpy()

    @torch.no_grad()
    def _half(self, rows: Tensor) -> Tensor:
        """L⁻¹K(X, rows)."""
        K = gram(self.kernel_, torch.from_numpy(self.X_fit_), rows)
        return torch.linalg.solve_triangular(torch.from_numpy(self.L_), K, upper=False)

    def _rows(self, X: ArrayLike) -> Tensor:
        return torch.tensor(validate_data(self, X, dtype=np.float64, reset=False))

    def _spread(self, variance: Array) -> Array:
        """Deviation of an observation for s = 1, in the units of y, (m, outputs)."""
        return np.sqrt(variance)[:, None] * self.y_scale_


# ---------------------------------------------------------------------------------------------
# Private: evidence
# ---------------------------------------------------------------------------------------------


def _factor(K: Tensor, Y: Tensor, noise: float | Tensor) -> tuple[Tensor, Tensor]:
    """L with LLᵀ = K + noise·I, and L⁻¹Y."""
    noisy = K.clone()
    noisy.diagonal().add_(noise)
    L = psd_safe_cholesky(noisy)
    return L, torch.linalg.solve_triangular(L, Y, upper=False)


def _evidence(L: Tensor, q: Tensor, n: int, outputs: int, prior: ScalePrior) -> Tensor:
    return prior.log_marginal(q, n) - outputs * L.diagonal().log().sum()


def _evidence_and_slope(
    K: Tensor, Y: Tensor, noise: Tensor, prior: ScalePrior
) -> tuple[float, Tensor]:
    """log p(Y), and its derivative by K: −m′(q) ααᵀ − ½ outputs K̃⁻¹, α = K̃⁻¹Y, m of the prior.

    In closed form: half the work of differentiating through the factorisation.
    """
    L, white = _factor(K, Y, noise)
    q = white.square().sum().requires_grad_()
    with torch.enable_grad():
        value = _evidence(L, q, Y.numel(), Y.shape[1], prior)
    (by_q,) = torch.autograd.grad(value, q)
    half = torch.linalg.solve_triangular(L, torch.eye(len(L), dtype=L.dtype), upper=False)
    solved = half.mT @ white
    slope = torch.addmm(solved @ solved.mT, half.mT, half, beta=-by_q.item(), alpha=-Y.shape[1] / 2)
    return value.item(), slope


def _learn_noise(
    kernel: Kernel, X: Tensor, Y: Tensor, prior: ScalePrior, noise: float, max_iter: int
) -> tuple[float, int]:
    """The noise of largest evidence: on the eigenvalues of K each trial takes n operations."""
    with torch.no_grad():
        value, vector = torch.linalg.eigh(gram(kernel, X))
        power = (vector.mT @ Y).square().sum(1)
    value = value.clamp(min=0)
    unit = value.mean().item() or 1.0

    def loss(log_noise: Array) -> Array:
        total = value + unit * torch.from_numpy(10.0 ** np.atleast_1d(log_noise))[:, None]
        q = (power / total).sum(1)
        log_volume = total.log().sum(1) * Y.shape[1] / 2
        return (log_volume - prior.log_marginal(q, Y.numel())).numpy()

    grid = np.linspace(*_NOISE, 41)
    best = grid[loss(grid).argmin()]
    step = grid[1] - grid[0]
    found = optimize.minimize_scalar(
        lambda log_noise: loss(log_noise)[0],
        bounds=(max(best - step, _NOISE[0]), min(best + step, _NOISE[1])),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return unit * 10.0**found.x, len(grid) + found.nfev


def _learn_all(
    kernel: Kernel, X: Tensor, Y: Tensor, prior: ScalePrior, noise: float, max_iter: int
) -> tuple[float, int]:
    """Noise and the parameters of the kernel, which are changed in place, by L-BFGS."""
    with torch.no_grad():
        unit = diagonal(kernel, X).mean().item() or 1.0
    low, high = (math.log(unit) + power * math.log(10) for power in _NOISE)
    start = math.log(noise) if noise > 0 else low
    log_noise = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    parameters = [log_noise, *parameters_of(kernel)]

    def loss(vector: Array) -> tuple[float, Array]:
        vector_to_parameters(torch.from_numpy(vector), parameters)
        K = gram(kernel, X)
        noise = log_noise.detach().exp()
        value, slope = _evidence_and_slope(K.detach(), Y, noise, prior)
        by_kernel = torch.autograd.grad(K, parameters[1:], slope)
        gradients = [noise * slope.trace()[None], *by_kernel]
        return -value / Y.numel(), -parameters_to_vector(gradients).numpy() / Y.numel()

    first = parameters_to_vector(parameters).detach().numpy().astype(np.float64)
    bounds = [(low, high)] + [(None, None)] * (len(first) - 1)
    found = optimize.minimize(
        loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": max_iter}
    )
    vector_to_parameters(torch.from_numpy(found.x), parameters)
    return log_noise.exp().item(), found.nfev


__all__ = ["ScaleMixtureRegressor"]
